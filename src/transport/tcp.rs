//! `tcp://host:port`: plain ZMTP. Free on loopback; elsewhere only where the code says so.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::{
    net::{
        TcpListener, TcpSocket, TcpStream, lookup_host,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::{
    Address, Bound, Boxed, Connected, Connection, Listener, Opening, Transport,
    socket::{AsSocket, Kind, halves},
};
use crate::{
    error::{AddressError, BindError},
    options::Options,
};

pub(crate) struct Tcp;

/// What stands before the port.
enum Host<'a> {
    Ip(IpAddr),
    /// `localhost`: loopback, and no look-up.
    Loopback,
    /// `*`: everywhere.
    Any,
    Name(&'a str),
}

impl Transport for Tcp {
    fn check(&self, address: &Address, listen: bool, options: &Options) -> Result<(), AddressError> {
        if check(address, address.rest(), listen)? || options.danger_plaintext {
            return Ok(());
        }
        Err(AddressError::Plaintext { address: address.to_string() })
    }

    fn bind<'a>(&'a self, address: &'a Address, options: &'a Options) -> Boxed<'a, Result<Bound, BindError>> {
        Box::pin(async move {
            let bound = bind(address, address.rest(), options).await;
            let (listener, local) = bound.map_err(|error| address.bind_error(error))?;
            let address = Address { rest: local.to_string(), ..address.clone() };
            Ok(Bound { address, listener: Box::new(Accepting(listener)) })
        })
    }

    fn dial<'a>(&'a self, address: &'a Address, options: &'a Options, _: usize) -> Boxed<'a, io::Result<Connected>> {
        Box::pin(async move {
            let (stream, peer) = dial(address, address.rest(), options).await?;
            Ok(connected("tcp", peer, opened(stream)))
        })
    }
}

/// Whether a host and a port may be listened on or dialled at all, and whether that stays on this machine.
pub(super) fn check(address: &Address, rest: &str, listen: bool) -> Result<bool, AddressError> {
    let (host, port) = parse(address, rest)?;
    if !listen && matches!(host, Host::Any) {
        return Err(address.malformed("* can only be listened on"));
    }
    if !listen && port == 0 {
        return Err(address.malformed("port 0 can only be listened on"));
    }
    Ok(match host {
        Host::Loopback => true,
        Host::Ip(ip) => ip.to_canonical().is_loopback(),
        Host::Any | Host::Name(_) => false,
    })
}

/// Listens on the first address of a host that can be listened on.
pub(super) async fn bind(address: &Address, rest: &str, options: &Options) -> io::Result<(TcpListener, SocketAddr)> {
    let (candidates, any) = resolve(address, rest, true).await?;
    let mut failed = io::ErrorKind::NotFound.into();
    for candidate in candidates {
        match listen(candidate, any, options) {
            Ok(listener) => {
                let local = listener.local_addr()?;
                return Ok((listener, local));
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Dials the addresses of a host one after the other.
pub(super) async fn dial(address: &Address, rest: &str, options: &Options) -> io::Result<(TcpStream, SocketAddr)> {
    let (candidates, _) = resolve(address, rest, false).await?;
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in candidates {
        match dial_one(candidate, options).await {
            Ok(stream) => return Ok((stream, candidate)),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn parse<'a>(address: &Address, rest: &'a str) -> Result<(Host<'a>, u16), AddressError> {
    let Some((host, port)) = rest.rsplit_once(':') else {
        return Err(address.malformed("it needs a port, as in 127.0.0.1:7000"));
    };
    let port =
        port.parse().map_err(|_| address.malformed("the port is not a number from 0 to 65535 (0 takes a free one)"))?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => {
            let ip: Ipv6Addr =
                inner.parse().map_err(|_| address.malformed("the IPv6 address in brackets is not one"))?;
            Host::Ip(ip.into())
        }
        None if host == "*" => Host::Any,
        None if host.eq_ignore_ascii_case("localhost") => Host::Loopback,
        None => match host.parse::<Ipv4Addr>() {
            Ok(ip) => Host::Ip(ip.into()),
            Err(_) if host.is_empty() => return Err(address.malformed("the host is missing")),
            Err(_) if host.contains([':', '/', '[', ']', '@', ' ']) => {
                let why = match host.contains('@') {
                    true => "no peer id stands in a tcp:// address, only in tls:// and quic://",
                    false => "the host is not a name; IPv6 addresses stand in [brackets]",
                };
                return Err(address.malformed(why));
            }
            Err(_) => Host::Name(host),
        },
    };
    Ok((host, port))
}

/// The addresses to try, in order; and whether all interfaces are meant.
pub(super) async fn resolve(address: &Address, rest: &str, listen: bool) -> io::Result<(Vec<SocketAddr>, bool)> {
    let (host, port) = parse(address, rest).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let at = |ip: IpAddr| SocketAddr::new(ip, port);
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    Ok(match host {
        Host::Ip(ip) => (vec![at(ip)], false),
        Host::Loopback if listen => (vec![at(v4)], false),
        Host::Loopback => (vec![at(v4), at(v6)], false),
        Host::Any => (vec![at(Ipv6Addr::UNSPECIFIED.into()), at(Ipv4Addr::UNSPECIFIED.into())], true),
        Host::Name(name) => (lookup_host((name, port)).await?.collect(), false),
    })
}

fn socket(to: SocketAddr, options: &Options) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let raw = SockRef::from(&socket);
    // Before connecting or listening, so that the window scale can follow.
    if let Some(bytes) = options.kernel_send_buffer {
        raw.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.kernel_recv_buffer {
        raw.set_recv_buffer_size(bytes)?;
    }
    Ok(socket)
}

fn listen(at: SocketAddr, any: bool, options: &Options) -> io::Result<TcpListener> {
    let socket = socket(at, options)?;
    // On Windows the option means that others may take the port over.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    if at.is_ipv6() {
        SockRef::from(&socket).set_only_v6(!any)?;
    }
    socket.bind(at)?;
    socket.listen(options.listen_backlog)
}

async fn dial_one(to: SocketAddr, options: &Options) -> io::Result<TcpStream> {
    // The system would go on asking for two minutes, more and more rarely, where nothing answers.
    let connecting = timeout(options.handshake_timeout, socket(to, options)?.connect(to));
    let stream = connecting.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "nothing answers there"))??;
    // Dialling a free port of our own range can meet itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens: the connection met itself"));
    }
    shape(&stream, options)?;
    Ok(stream)
}

/// There is no TCP_USER_TIMEOUT: it would also end the connection to a peer that lives but does not read.
fn shape(stream: &TcpStream, options: &Options) -> io::Result<()> {
    let raw = SockRef::from(stream);
    raw.set_tcp_nodelay(options.nodelay)?;
    if let Some(after) = options.keepalive {
        // The kernel counts whole seconds, and refuses none.
        let least = Duration::from_secs(1);
        let keepalive = TcpKeepalive::new().with_time(after.max(least)).with_interval((after / 4).max(least));
        raw.set_tcp_keepalive(&keepalive)?;
    }
    Ok(())
}

impl Kind for Tcp {
    type Read = OwnedReadHalf;
    type Write = OwnedWriteHalf;

    fn driven(socket: Socket) -> io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
        TcpStream::from_std(socket.into()).map(TcpStream::into_split)
    }

    fn bare(read: OwnedReadHalf, write: OwnedWriteHalf) -> io::Result<Socket> {
        let whole = read.reunite(write).map_err(io::Error::other)?;
        whole.into_std().map(Socket::from)
    }
}

impl AsSocket for OwnedReadHalf {
    fn socket(&self) -> SockRef<'_> {
        SockRef::from(self.as_ref())
    }
}

fn opened(stream: TcpStream) -> Opening {
    let (read, write) = stream.into_split();
    let (read, write) = halves::<Tcp>(read, write);
    Connection::stream(read, write).open()
}

pub(super) fn connected(scheme: &str, peer: SocketAddr, opening: Opening) -> Connected {
    let ip = peer.ip().to_canonical();
    let address = format!("{scheme}://{}", SocketAddr::new(ip, peer.port()));
    Connected { opening, address, from: (!ip.is_loopback()).then_some(ip) }
}

struct Accepting(TcpListener);

impl Listener for Accepting {
    fn accept<'a>(&'a mut self, options: &'a Options) -> Boxed<'a, io::Result<Connected>> {
        Box::pin(async move {
            let (stream, peer) = accept(&self.0, options).await?;
            Ok(connected("tcp", peer, opened(stream)))
        })
    }
}

/// The next connection. An error of kind `ConnectionAborted` says nothing of the next one.
pub(super) async fn accept(listener: &TcpListener, options: &Options) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = listener.accept().await?;
    match shape(&stream, options) {
        Ok(()) => Ok((stream, peer)),
        Err(error) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, format!("{peer}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, listen: bool, plaintext: bool) -> Result<(), AddressError> {
        let options = Options { danger_plaintext: plaintext, ..Options::default() };
        Address::parse(text, listen, &options).map(drop)
    }

    #[test]
    fn plain_text_stays_on_the_machine_unless_told_otherwise() {
        for inside in
            ["tcp://127.0.0.1:1", "tcp://127.9.9.9:1", "tcp://[::1]:1", "tcp://localhost:1", "tcp://LocalHost:1"]
        {
            assert_eq!(check(inside, true, false), Ok(()), "{inside}");
            assert_eq!(check(inside, false, false), Ok(()), "{inside}");
        }
        for outside in
            ["tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://10.0.0.1:1", "tcp://host.example:1", "tcp://localhost.:1"]
        {
            assert!(matches!(check(outside, true, false), Err(AddressError::Plaintext { .. })), "{outside}");
            assert_eq!(check(outside, true, true), Ok(()), "{outside}");
        }
        assert!(matches!(check("tcp://*:1", true, false), Err(AddressError::Plaintext { .. })));
        assert_eq!(check("tcp://*:1", true, true), Ok(()));
    }

    #[test]
    fn what_is_no_address_is_named() {
        for (text, listen) in [
            ("tcp://127.0.0.1", true),
            ("tcp://:7000", true),
            ("tcp://127.0.0.1:70000", true),
            ("tcp://[::1:7000", true),
            ("tcp://::1:7000", true),
            ("tcp://a/b:1", true),
            ("tcp://*:7000", false),
            ("tcp://127.0.0.1:0", false),
        ] {
            assert!(matches!(check(text, listen, true), Err(AddressError::Malformed { .. })), "{text}");
        }
        assert!(matches!(check("127.0.0.1:7000", true, true), Err(AddressError::NoScheme { .. })));
        assert!(matches!(check("udp://127.0.0.1:7000", true, true), Err(AddressError::UnknownScheme { .. })));
    }
}
