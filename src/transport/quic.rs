//! `quic://PEERID@host:port`: ZMTP in one stream of a QUIC connection, with a second for commands in a hurry. A peer is its
//! key; see [`secure`](super::secure).
//!
//! Each address that is listened on has a UDP socket of its own; sockets of one key on one runtime dial from one.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, ClientConfig, Connection as QuicConnection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout,
    RecvStream, Runtime as _, SendStream, ServerConfig, StoppedError, TokioRuntime, TransportConfig,
    TransportErrorCode, VarInt,
    crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig},
};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime,
};

use super::{
    Address, Bound, Boxed, Connected, Connection, Listener, Read, ReadHalf, Transport, Write,
    secure::{self, Found},
    tcp,
};
use crate::{
    allowed::Allowed,
    error::{AddressError, BindError},
    events::DownReason,
    identity::PeerId,
    options::Options,
};

pub(crate) struct Quic;

/// How a connection is closed.
const DONE: VarInt = VarInt::from_u32(0);
const NOT_ALLOWED: VarInt = VarInt::from_u32(1);
/// The alerts of TLS that say so: certificate unknown, access denied.
const KEY_REFUSED: [u8; 2] = [46, 49];

/// From so many handshakes under way on, one who comes has to show first that it is where it says it is.
const RETRY_FROM: usize = 64;

/// What is bounded of what nobody has accepted yet.
const INCOMING: usize = 256;
const INCOMING_BYTES: u64 = 64 << 10;
const INCOMING_BYTES_ALL: u64 = 8 << 20;

/// After so long nobody waits any more for the port of a listener that has stopped: a connection that ended in its handshake
/// is remembered for three seconds, and another may have begun meanwhile.
const FREE: Duration = Duration::from_secs(10);

/// What may be under way: QUIC's own bounds, below those of the sockets. What quinn keeps to send is as much as the stream
/// of messages may have under way, and what the stream of commands needs beside it: more would only wait there once more,
/// out of the processor's cache.
const STREAM_WINDOW: u32 = 2 << 20;
const WINDOW: u32 = 8 << 20;
const SEND_WINDOW: u64 = (2 << 20) + (256 << 10);

impl Transport for Quic {
    fn check(&self, address: &Address, listen: bool, options: &Options) -> Result<(), AddressError> {
        secure::check(address, listen, options)
    }

    fn bind<'a>(&'a self, address: &'a Address, options: &'a Options) -> Boxed<'a, Result<Bound, BindError>> {
        Box::pin(async move {
            let failed = |error| address.bind_error(error);
            let (key, rest) = secure::listening(address, options)?;
            // Who is not allowed is told so by a code of ours, which says more than a failed handshake.
            let anybody = Allowed::default();
            anybody.anybody();
            let tls = secure::server(key, anybody).map_err(io::Error::other).map_err(failed)?;
            let tls = QuicServerConfig::try_from(tls).map_err(io::Error::other).map_err(failed)?;
            let mut config = ServerConfig::with_crypto(Arc::new(tls));
            config.transport_config(Arc::new(transport(options)));
            config.max_incoming(INCOMING);
            config.incoming_buffer_size(INCOMING_BYTES).incoming_buffer_size_total(INCOMING_BYTES_ALL);
            let (candidates, any) = tcp::resolve(address, rest, true).await.map_err(failed)?;
            let mut error = io::ErrorKind::NotFound.into();
            for candidate in candidates {
                match udp(candidate, any).and_then(|socket| endpoint(socket, Some(config.clone()))) {
                    Ok((endpoint, socket)) => {
                        let local = endpoint.local_addr().map_err(failed)?;
                        let address = secure::bound(address, key, local);
                        let allowed = options.allowed.clone();
                        return Ok(Bound {
                            address,
                            listener: Box::new(Accepting { endpoint, socket, allowed, pending: Arc::default() }),
                        });
                    }
                    Err(other) => error = other,
                }
            }
            Err(failed(error))
        })
    }

    fn dial<'a>(&'a self, address: &'a Address, options: &'a Options, turn: usize) -> Boxed<'a, io::Result<Connected>> {
        Box::pin(async move {
            let (id, key, rest) = secure::dialling(address, options)?;
            let dialler = Dialler::get(key.id())?;
            let (candidates, _) = tcp::resolve(address, rest, false).await?;
            let to = *candidates
                .get(turn % candidates.len().max(1))
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?;
            let found = Found::default();
            let tls = secure::client(key, id, found.clone()).map_err(io::Error::other)?;
            let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(io::Error::other)?));
            config.transport_config(Arc::new(transport(options)));
            let connecting = dialler.endpoint.connect_with(config, to, "peer.invalid").map_err(io::Error::other)?;
            let opening = async move {
                let connection = connecting.await.map_err(|error| match found.get() {
                    Some(id) => DownReason::OtherKey { id: *id },
                    None => reason(&error),
                })?;
                let id = id_of(&connection)?;
                let (send, recv) = connection.open_bi().await.map_err(|error| reason(&error))?;
                let control = async move { connection.open_bi().await };
                Ok((streams(send, recv, control, Some(dialler)), Some(id)))
            };
            Ok(tcp::connected("quic", to, Box::pin(opening)))
        })
    }
}

fn transport(options: &Options) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.max_concurrent_bidi_streams(VarInt::from_u32(2)).max_concurrent_uni_streams(VarInt::from_u32(0));
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW)).receive_window(VarInt::from_u32(WINDOW));
    config.send_window(SEND_WINDOW).datagram_receive_buffer_size(None);
    // Who is silent for too long is gone; without heartbeats nobody is.
    let idle = options.heartbeat.and_then(|_| IdleTimeout::try_from(options.dead_after).ok());
    // quinn adds it to the clock.
    let every = options.heartbeat.map(|every| every.min(LONGEST));
    config.max_idle_timeout(idle).keep_alive_interval(every);
    config
}

/// A longer time is none.
const LONGEST: Duration = Duration::from_secs(86_400);

/// What the kernel may keep of datagrams: one UDP socket serves many links.
const KERNEL_BUFFER: usize = 4 << 20;

fn udp(at: SocketAddr, any: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    if at.is_ipv6() {
        socket.set_only_v6(!any)?;
    }
    socket.bind(&at.into())?;
    // The system may allow less; then more is lost of what many peers send at once, and sent again.
    let _less = socket.set_recv_buffer_size(KERNEL_BUFFER);
    let _less = socket.set_send_buffer_size(KERNEL_BUFFER);
    Ok(socket.into())
}

/// Also gives what tells whether the UDP socket is still there.
fn endpoint(socket: UdpSocket, server: Option<ServerConfig>) -> io::Result<(Endpoint, Weak<dyn AsyncUdpSocket>)> {
    let socket = TokioRuntime.wrap_udp_socket(socket)?;
    let there = Arc::downgrade(&socket);
    let (config, runtime) = (EndpointConfig::default(), Arc::new(TokioRuntime));
    Ok((Endpoint::new_with_abstract_socket(config, server, socket, runtime)?, there))
}

/// The UDP socket that is dialled from, as long as anybody uses it.
struct Dialler {
    endpoint: Endpoint,
}

type Diallers = Vec<(PeerId, runtime::Id, Weak<Dialler>)>;

impl Dialler {
    /// That of this key on this runtime.
    fn get(key: PeerId) -> io::Result<Arc<Self>> {
        static ALL: Mutex<Diallers> = Mutex::new(Vec::new());
        let runtime = runtime::Handle::current().id();
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(.., dialler)| dialler.strong_count() > 0);
        let known = all.iter().find(|(of, on, _)| *of == key && *on == runtime);
        if let Some(dialler) = known.and_then(|(.., dialler)| dialler.upgrade()) {
            return Ok(dialler);
        }
        // One for both families; where there is no IPv6, for the other.
        let socket =
            udp((Ipv6Addr::UNSPECIFIED, 0).into(), true).or_else(|_| udp((Ipv4Addr::UNSPECIFIED, 0).into(), false));
        let (endpoint, _) = endpoint(socket?, None)?;
        let dialler = Arc::new(Self { endpoint });
        all.push((key, runtime, Arc::downgrade(&dialler)));
        Ok(dialler)
    }
}

struct Accepting {
    endpoint: Endpoint,
    socket: Weak<dyn AsyncUdpSocket>,
    allowed: Allowed,
    /// Handshakes under way.
    pending: Arc<AtomicUsize>,
}

/// One handshake under way.
struct Pending(Arc<AtomicUsize>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Listener for Accepting {
    fn accept<'a>(&'a mut self, _: &'a Options) -> Boxed<'a, io::Result<Connected>> {
        Box::pin(async move {
            let incoming = loop {
                let incoming = self.endpoint.accept().await.ok_or(io::ErrorKind::NotConnected)?;
                if incoming.remote_address_validated() || self.pending.load(Relaxed) < RETRY_FROM {
                    break incoming;
                }
                if let Err(error) = incoming.retry() {
                    error.into_incoming().refuse();
                }
            };
            self.pending.fetch_add(1, Relaxed);
            let (pending, allowed) = (Pending(Arc::clone(&self.pending)), self.allowed.clone());
            let peer = incoming.remote_address();
            let opening = async move {
                let _pending = pending;
                let connecting = incoming.accept().map_err(|error| reason(&error))?;
                let connection = connecting.await.map_err(|error| reason(&error))?;
                let id = id_of(&connection)?;
                if !allowed.admits(&id) {
                    connection.close(NOT_ALLOWED, b"");
                    return Err(DownReason::NotAllowed { id }.into());
                }
                let (send, recv) = connection.accept_bi().await.map_err(|error| reason(&error))?;
                let control = async move { connection.accept_bi().await };
                Ok((streams(send, recv, control, None), Some(id)))
            };
            Ok(tcp::connected("quic", peer, Box::pin(opening)))
        })
    }

    fn stop(self: Box<Self>) -> Boxed<'static, ()> {
        let Self { endpoint, socket, .. } = *self;
        endpoint.set_server_config(None);
        Box::pin(async move {
            let freed = async {
                // What was closed is remembered for a while, to answer those who have not heard of it.
                endpoint.wait_idle().await;
                drop(endpoint);
                // quinn's own task has it for a moment longer.
                while socket.strong_count() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let _free = tokio::time::timeout(FREE, freed).await;
        })
    }
}

fn id_of(connection: &QuicConnection) -> Result<PeerId, DownReason> {
    let protocol = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let keys = connection.peer_identity().and_then(|keys| keys.downcast::<Vec<CertificateDer<'static>>>().ok());
    secure::id_shown(protocol.and_then(|data| data.protocol).as_deref(), keys.as_deref().map(|keys| &keys[..]))
}

/// What the end of a connection means for a link.
pub(crate) fn reason(error: &ConnectionError) -> DownReason {
    match error {
        ConnectionError::ApplicationClosed(close) if close.error_code == NOT_ALLOWED => DownReason::Denied,
        ConnectionError::ApplicationClosed(_) => DownReason::Ended,
        ConnectionError::ConnectionClosed(close)
            if KEY_REFUSED.map(TransportErrorCode::crypto).contains(&close.error_code) =>
        {
            DownReason::Denied
        }
        ConnectionError::LocallyClosed => DownReason::Closed,
        ConnectionError::Reset | ConnectionError::TimedOut => DownReason::Io(Arc::new(io::Error::from(error.clone()))),
        ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::CidsExhausted => DownReason::Insecure(error.to_string()),
    }
}

/// Both streams of a link.
fn streams(
    send: SendStream,
    recv: RecvStream,
    control: impl Future<Output = Result<(SendStream, RecvStream), ConnectionError>> + Send + 'static,
    dialler: Option<Arc<Dialler>>,
) -> Connection {
    let control = async move {
        let (send, recv) = control.await?;
        // What is small and in a hurry goes before what is not.
        send.set_priority(1)?;
        Ok::<_, io::Error>((Box::new(Reading(recv)) as Read, Box::new(send) as Write))
    };
    Connection::Stream {
        read: Box::new(Reading(recv)),
        write: Box::new(Writing { send, ending: None, _dialler: dialler }),
        control: Some(Box::pin(control)),
    }
}

struct Reading(RecvStream);

impl ReadHalf for Reading {}

impl AsyncRead for Reading {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read_buf(cx, buf)) {
            // A connection that is done is the end of its stream.
            Err(quinn::ReadError::ConnectionLost(ConnectionError::ApplicationClosed(close)))
                if close.error_code == DONE =>
            {
                Poll::Ready(Ok(()))
            }
            read => Poll::Ready(read.map_err(io::Error::from)),
        }
    }
}

struct Writing {
    send: SendStream,
    /// Waits until the peer has all there was.
    ending: Option<Boxed<'static, Result<Option<VarInt>, StoppedError>>>,
    /// The UDP socket stays as long as a connection uses it.
    _dialler: Option<Arc<Dialler>>,
}

impl AsyncWrite for Writing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, buf).map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // QUIC sends what it has as soon as it may.
        Poll::Ready(Ok(()))
    }

    /// Ready when the peer has all, for what it has not when the connection is dropped is gone.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let ending = this.ending.get_or_insert_with(|| {
            // One that was finished before is being waited for as well.
            let _finished = this.send.finish();
            Box::pin(this.send.stopped())
        });
        // One who closes the connection has had all it wanted.
        ending.as_mut().poll(cx).map(|_stopped| Ok(()))
    }
}
