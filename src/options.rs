//! What a socket may be told, and what it does when it is not told.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use ropewalk_patterns::{Action, Pattern, Tally, delivery::Start, pub_sub::Overflow, zmtp::Limits};

use crate::{
    authorize::Authorize,
    delivery::{Guarantee, Kept},
    error::{BindError, ConnectError, SubscribeError},
    events::PeerInfo,
    hub::{Hub, OnEvent},
    sockets::Socket,
};

/// Everything that bounds, times or shapes a socket. Set through a [`Builder`].
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) send_hwm: Tally,
    pub(crate) recv_hwm: Tally,
    pub(crate) send_budget: u64,
    pub(crate) recv_budget: u64,
    pub(crate) limits: Limits,
    pub(crate) heartbeat: Option<Duration>,
    pub(crate) dead_after: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) handshakes: usize,
    pub(crate) handshakes_per_address: usize,
    pub(crate) accepted_peers: usize,
    pub(crate) reconnect: (Duration, Duration),
    pub(crate) linger: Duration,
    pub(crate) danger_plaintext: bool,
    #[cfg(feature = "secure")]
    pub(crate) key: Option<crate::secret_key::SecretKey>,
    #[cfg(feature = "secure")]
    pub(crate) allowed: crate::allowed::Allowed,
    pub(crate) authorize: Option<Authorize>,
    pub(crate) nodelay: bool,
    pub(crate) busy_poll: Duration,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) kernel_send_buffer: Option<usize>,
    pub(crate) kernel_recv_buffer: Option<usize>,
    pub(crate) listen_backlog: u32,
    pub(crate) identity: Bytes,
    pub(crate) events: usize,
    pub(crate) overflow: Overflow,
    pub(crate) correlate: bool,
    pub(crate) outstanding: usize,
    pub(crate) timeout: Duration,
    pub(crate) retries: u32,
    pub(crate) guarantee: Guarantee,
    pub(crate) under_way: u64,
    pub(crate) attempts: u32,
    pub(crate) lease: Duration,
    pub(crate) rate: Option<f64>,
    pub(crate) subscriptions: Vec<Bytes>,
    pub(crate) name: Bytes,
    pub(crate) start: Start,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            send_hwm: Tally::new(1000, 8 << 20),
            recv_hwm: Tally::new(1000, 8 << 20),
            send_budget: 256 << 20,
            recv_budget: 256 << 20,
            limits: Limits::default(),
            heartbeat: Some(Duration::from_secs(5)),
            dead_after: Duration::from_secs(15),
            handshake_timeout: Duration::from_secs(5),
            handshakes: 256,
            handshakes_per_address: 16,
            accepted_peers: 10_000,
            reconnect: (Duration::from_millis(100), Duration::from_secs(5)),
            linger: Duration::from_secs(5),
            danger_plaintext: false,
            #[cfg(feature = "secure")]
            key: None,
            #[cfg(feature = "secure")]
            allowed: crate::allowed::Allowed::default(),
            authorize: None,
            nodelay: true,
            busy_poll: Duration::from_micros(50),
            keepalive: Some(Duration::from_secs(60)),
            kernel_send_buffer: None,
            kernel_recv_buffer: None,
            listen_backlog: 1024,
            identity: Bytes::new(),
            events: 1024,
            overflow: Overflow::default(),
            correlate: true,
            outstanding: 256,
            timeout: Duration::from_secs(30),
            retries: 0,
            guarantee: Guarantee::default(),
            under_way: 1024,
            attempts: 16,
            lease: Duration::from_secs(30),
            rate: None,
            subscriptions: Vec::new(),
            name: Bytes::new(),
            start: Start::default(),
        }
    }
}

impl Options {
    /// Whether it subscribes to what was published while it was away.
    pub(crate) fn asks_for_what_is_kept(&self) -> bool {
        !self.name.is_empty() || self.start != Start::Cursor
    }
}

/// Makes a socket that is not all defaults.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use ropewalk::Push;
///
/// let push = Push::builder().send_hwm(10_000).linger(std::time::Duration::from_secs(1)).build();
/// push.bind_to("tcp://127.0.0.1:0").await?;
/// # push.close().await; Ok(()) }
/// ```
#[must_use = "a builder does nothing until `build`, `bind` or `connect`"]
pub struct Builder<P: Pattern, D = ()> {
    pub(crate) options: Options,
    pub(crate) make: Make<P>,
    /// Where the socket keeps messages, if it does.
    #[cfg_attr(not(feature = "spool"), expect(dead_code, reason = "there are no directories"))]
    pub(crate) directory: D,
}

pub(crate) type Make<P> = Box<dyn FnOnce(&Options) -> Made<P> + Send>;

/// What a socket is made of.
pub(crate) struct Made<P: Pattern> {
    pub(crate) pattern: P,
    pub(crate) on_event: Option<OnEvent<P>>,
    pub(crate) kept: Kept,
    pub(crate) begin: Option<Begin<P>>,
    /// It was told to subscribe to what publishers would refuse: it is never linked.
    pub(crate) refused: Option<SubscribeError>,
}

/// Begins what runs beside a socket. On the socket's runtime.
pub(crate) type Begin<P> = Box<dyn FnOnce(&Arc<Hub<P>>, &Kept) + Send>;

impl<P: Pattern> From<P> for Made<P> {
    fn from(pattern: P) -> Self {
        Self { pattern, on_event: None, kept: Kept::default(), begin: None, refused: None }
    }
}

impl<P: Pattern> Builder<P> {
    pub(crate) fn new<M: Into<Made<P>>>(make: impl FnOnce(&Options) -> M + Send + 'static) -> Self {
        Self { options: Options::default(), make: Box::new(|options| make(options).into()), directory: () }
    }

    /// The socket, with no endpoint yet.
    ///
    /// # Panics
    /// Outside a tokio runtime: the socket's tasks run on the runtime it was made on.
    pub fn build(self) -> Socket<P> {
        Socket::start(self)
    }

    /// The socket, listening on this address.
    ///
    /// # Errors
    /// When it cannot listen there.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind(self, address: impl AsRef<str>) -> Result<Socket<P>, BindError> {
        let socket = self.build();
        socket.bind_to(address).await?;
        Ok(socket)
    }

    /// The socket, dialling this address in the background for ever.
    ///
    /// # Errors
    /// When the address is not one, or must not be dialled. That nobody answers there yet is no error.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(self, address: impl AsRef<str>) -> Result<Socket<P>, ConnectError> {
        let socket = self.build();
        socket.connect_to(address).await?;
        Ok(socket)
    }
}

impl<P: Pattern, D> Builder<P, D> {
    fn set(mut self, set: impl FnOnce(&mut Options)) -> Self {
        set(&mut self.options);
        self
    }

    /// How many messages may wait for one peer that gives no credit for them: 1,000. At least 1.
    pub fn send_hwm(self, messages: u64) -> Self {
        self.set(|options| options.send_hwm.messages = messages.max(1))
    }

    /// How many bytes those may be: 8 MiB. A message counts its bytes plus 64; one that is alone may be larger.
    pub fn send_hwm_bytes(self, bytes: u64) -> Self {
        self.set(|options| options.send_hwm.bytes = bytes)
    }

    /// How many messages one peer may have on their way to us or in our inbox: 1,000. At least 1.
    pub fn recv_hwm(self, messages: u64) -> Self {
        self.set(|options| options.recv_hwm.messages = messages.max(1))
    }

    /// How many bytes those may be: 8 MiB. A message counts its bytes plus 64; one that is alone may be larger.
    pub fn recv_hwm_bytes(self, bytes: u64) -> Self {
        self.set(|options| options.recv_hwm.bytes = bytes.max(1))
    }

    /// How many bytes may wait for all peers together: 256 MiB. Only when nothing waits may one message be larger, or be
    /// published to more subscribers than that holds.
    pub fn send_budget(self, bytes: u64) -> Self {
        self.set(|options| options.send_budget = bytes)
    }

    /// How many bytes all peers together may have on their way to us or in our inbox: 256 MiB. Each link has a buffer of
    /// 16 to 256 KiB besides to read into. A single message larger than the whole budget still comes, alone.
    pub fn recv_budget(self, bytes: u64) -> Self {
        self.set(|options| options.recv_budget = bytes)
    }

    /// The largest message that is sent or accepted, in bytes of all its parts: 4 MiB.
    pub fn max_message(self, bytes: u64) -> Self {
        self.set(|options| options.limits.message = bytes)
    }

    /// The most parts a message may have: 64.
    pub fn max_parts(self, parts: usize) -> Self {
        self.set(|options| options.limits.parts = parts.max(1))
    }

    /// The longest topic that is subscribed to or accepted, in bytes: 1 KiB.
    pub fn max_topic(self, bytes: usize) -> Self {
        self.set(|options| options.limits.topic = bytes)
    }

    /// How many prefixes one peer may subscribe to, and how many bytes they may have together: 4,096 and 256 KiB.
    pub fn max_subscriptions(self, subscriptions: usize, bytes: usize) -> Self {
        self.set(|options| {
            options.limits.subscriptions = subscriptions;
            options.limits.subscribed_bytes = bytes;
        })
    }

    /// A peer that was silent for `every` is asked whether it is there, and taken for dead when it was silent for
    /// `dead_after`: 5 s and 15 s.
    pub fn heartbeat(self, every: Duration, dead_after: Duration) -> Self {
        self.set(|options| {
            options.heartbeat = Some(every.max(Duration::from_millis(1)));
            options.dead_after = dead_after;
        })
    }

    /// Peers are never asked whether they are there. Only the kernel's keepalive tells then.
    pub fn no_heartbeat(self) -> Self {
        self.set(|options| options.heartbeat = None)
    }

    /// How long a handshake may take, and before it a TCP connection to be made, to each address of a name: 5 s.
    pub fn handshake_timeout(self, timeout: Duration) -> Self {
        self.set(|options| options.handshake_timeout = timeout)
    }

    /// How many accepted links may be in the handshake, in all and from one address: 256 and 16. Loopback and `ipc` do
    /// not count by address. At a cap the oldest unfinished one makes room for the newest.
    pub fn max_handshakes(self, all: usize, per_address: usize) -> Self {
        self.set(|options| {
            options.handshakes = all.max(1);
            options.handshakes_per_address = per_address.max(1);
        })
    }

    /// How many accepted peers may be linked at once: 10,000.
    pub fn max_peers(self, peers: usize) -> Self {
        self.set(|options| options.accepted_peers = peers)
    }

    /// How long to wait before dialling again: at random up to `first`, doubling up to `longest`: 100 ms and 5 s.
    pub fn reconnect(self, first: Duration, longest: Duration) -> Self {
        self.set(|options| options.reconnect = (first, longest.max(first)))
    }

    /// How long `close` waits for peers to take what was accepted: 5 s.
    pub fn linger(self, linger: Duration) -> Self {
        self.set(|options| options.linger = linger)
    }

    /// Who this socket is on transports that prove it: none by default, and those refuse to listen or dial without one.
    #[cfg(feature = "secure")]
    pub fn key(self, key: crate::SecretKey) -> Self {
        self.set(|options| options.key = Some(key))
    }

    /// Lets these peers link, where peers prove who they are. More of them, and fewer, while the socket lives:
    /// [`Socket::allow`], [`Socket::allow_only`].
    #[cfg(feature = "secure")]
    pub fn allow(self, peers: impl IntoIterator<Item = crate::PeerId>) -> Self {
        self.set(|options| options.allowed.allow(peers))
    }

    /// Lets anybody link who has a key, whatever it is. The link is encrypted, and events say whose it is.
    #[cfg(feature = "secure")]
    pub fn allow_any_peer(self) -> Self {
        self.set(|options| options.allowed.anybody())
    }

    /// Asks `decides` before a peer may do something: be linked, subscribe, have its message or request taken. Everything
    /// is permitted unless it says no. A peer that may not be linked hears it by an ERROR, any other denial by a refusal
    /// ([`Event::DeniedBy`](crate::Event::DeniedBy), a request ends with
    /// [`RefusalReason::Denied`](crate::RefusalReason::Denied)); one that does not speak Ropewalk's extension cannot be
    /// told, and its link is closed; over `inproc://` one that may not be linked only sees the end. Here [`Event::Denied`](crate::Event::Denied) says so.
    ///
    /// Decide by [`PeerInfo::id`], which the transport has proven, not by what messages claim. (Whoever is not linked yet
    /// has no [`number`](PeerInfo::number): it is 0.) It may be asked under the socket's lock: it must be quick.
    ///
    /// ```
    /// use ropewalk::{Action, Pub, SecretKey};
    ///
    /// let (key, auditor) = (SecretKey::generate(), SecretKey::generate().id());
    /// // A shorter prefix gets these topics, too.
    /// let audited = |prefix: &[u8]| prefix.starts_with(b"audit.") || b"audit.".starts_with(prefix);
    /// let news = Pub::builder().key(key).allow_any_peer().authorize(move |peer, action| match action {
    ///     Action::Subscribe(prefix) => !audited(prefix) || peer.id == Some(auditor),
    ///     _ => true,
    /// });
    /// # let _ = news;
    /// ```
    ///
    /// A panic in `decides` is a no, and logged. Using the socket itself in there panics.
    pub fn authorize(self, decides: impl Fn(&PeerInfo, Action<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.set(|options| options.authorize = Some(Authorize::new(decides)))
    }

    /// Plain text may leave this machine: `tcp://` addresses that are not loopback are allowed. Anyone on the way can
    /// read and change what is sent, and anyone who reaches the port is a peer.
    pub fn danger_plaintext(self) -> Self {
        self.set(|options| options.danger_plaintext = true)
    }

    /// Whether small writes go out at once (TCP_NODELAY): yes.
    pub fn nodelay(self, nodelay: bool) -> Self {
        self.set(|options| options.nodelay = nodelay)
    }

    /// How long who waits for a message, a request or an answer goes on looking for it, before it sleeps and has to be
    /// woken: 50 us, at most a second; zero: not at all. Waking is most of what a short round trip takes, so where peers
    /// answer within that time, it takes a third.
    ///
    /// Whoever looks keeps a processor busy, but other tasks have their turns meanwhile (on a runtime of several threads
    /// every 10 us; a task that waits for several sockets at once looks at one after the other there), and where nothing
    /// is found it is done more and more seldom. It is done only where the waiting task reads by itself, while the socket
    /// has one link and one who waits: over `tcp` and `ipc`, and over `tls` and `quic` on a runtime of one thread.
    pub fn busy_poll(self, at_most: Duration) -> Self {
        self.set(|options| options.busy_poll = at_most.min(Duration::from_secs(1)))
    }

    /// After how much silence the kernel probes a TCP connection: 60 s. `None`: never.
    pub fn keepalive(self, after: Option<Duration>) -> Self {
        self.set(|options| options.keepalive = after)
    }

    /// The size of the kernel's buffers of a TCP connection, in bytes (SO_SNDBUF, SO_RCVBUF). `None`: its own choice.
    pub fn kernel_buffers(self, send: Option<usize>, recv: Option<usize>) -> Self {
        self.set(|options| {
            options.kernel_send_buffer = send;
            options.kernel_recv_buffer = recv;
        })
    }

    /// How many connections may wait to be accepted by a listener: 1,024.
    pub fn listen_backlog(self, connections: u32) -> Self {
        self.set(|options| options.listen_backlog = connections)
    }

    /// The routing label that a ROUTER of another ZeroMQ library knows us by; at most 255 bytes, the rest is cut. It
    /// proves nothing.
    pub fn identity(self, label: impl AsRef<[u8]>) -> Self {
        let label = label.as_ref();
        self.set(|options| options.identity = Bytes::copy_from_slice(label.get(..255).unwrap_or(label)))
    }

    /// How many events are kept for a stream of events that is not read: 1,024. The oldest go first, and are counted.
    pub fn event_capacity(self, events: usize) -> Self {
        self.set(|options| options.events = events.max(1))
    }
}

impl<P: Pattern, D> fmt::Debug for Builder<P, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("role", &P::ROLE).field("options", &self.options).finish_non_exhaustive()
    }
}
