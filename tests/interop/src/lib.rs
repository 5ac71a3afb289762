//! What the tests in `tests/` share: a real libzmq socket as the other end, and the table of ways to reach it.
//!
//! libzmq blocks, Ropewalk does not. [`Peer`] blocks in place, which the multi-thread runtime of [`everywhere!`]
//! allows, so a test reads from top to bottom whichever side acts. Every wait ends after [`LONG`].

use std::{
    cell::Cell,
    future::Future,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use ropewalk::{Builder, Event, Events, Message, Socket, patterns::Pattern};
use tempfile::TempDir;
use tokio::task::block_in_place;
pub use zmq::{SocketEvent, SocketType};

/// No test waits longer than this for anything.
pub const LONG: Duration = Duration::from_secs(20);

/// The parts of a message as plain bytes, which is how libzmq has them.
pub type Parts = Vec<Vec<u8>>;

/// Waits for this, but not for ever.
///
/// # Panics
/// When it takes longer than [`LONG`].
pub async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LONG, wait).await {
        Ok(done) => done,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

/// Runs a whole test, but not for ever.
///
/// # Panics
/// When it takes longer than three times [`LONG`].
pub async fn to_the_end(test: impl Future<Output = ()>) {
    tokio::time::timeout(3 * LONG, test).await.expect("the test does not end");
}

/// Asks again and again until it is so.
///
/// # Panics
/// When it is not so after [`LONG`].
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let asking = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within(what, asking).await;
}

/// The parts of a message.
pub fn parts(message: &Message) -> Parts {
    message.parts().iter().map(|part| part.to_vec()).collect()
}

/// `size` bytes that are not all the same, so that a shift of one is seen.
pub fn filled(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index % 251) as u8).collect()
}

/// Part sizes at which the wire changes its form, and one far larger than any buffer.
pub const SIZES: [usize; 6] = [0, 1, 255, 256, 65_536, 16 << 20];

/// A builder that takes the largest of [`SIZES`], several in one message.
pub fn roomy<P: Pattern>(builder: Builder<P>) -> Builder<P> {
    let bytes = 64 << 20;
    builder.max_message(bytes).send_hwm_bytes(bytes).recv_hwm_bytes(bytes)
}

// ---- the table ----------------------------------------------------------------------------------------------------

/// How the two ends meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `tcp://` on loopback.
    Tcp,
    /// `ipc://` in a directory of its own.
    Ipc,
}

/// One line of the table: a scheme, and who binds.
#[derive(Debug)]
pub struct Case {
    /// The scheme.
    pub scheme: Scheme,
    /// Whether Ropewalk binds and libzmq connects, or the other way round.
    pub ropewalk_binds: bool,
    directory: TempDir,
    names: Cell<u32>,
}

impl Case {
    /// A line of the table.
    ///
    /// # Panics
    /// When there is no room for a directory.
    pub fn new(scheme: Scheme, ropewalk_binds: bool) -> Self {
        Self { scheme, ropewalk_binds, directory: tempfile::tempdir().unwrap(), names: Cell::new(0) }
    }

    fn path(&self) -> PathBuf {
        self.names.set(self.names.get() + 1);
        self.directory.path().join(self.names.get().to_string())
    }

    /// An address that Ropewalk can bind and nobody else has.
    pub fn for_ropewalk(&self) -> String {
        match self.scheme {
            Scheme::Tcp => "tcp://127.0.0.1:0".into(),
            Scheme::Ipc => format!("ipc://{}", self.path().display()),
        }
    }

    /// An address that libzmq can bind and nobody else has.
    pub fn for_zmq(&self) -> String {
        match self.scheme {
            Scheme::Tcp => "tcp://127.0.0.1:*".into(),
            Scheme::Ipc => format!("ipc://{}", self.path().display()),
        }
    }

    /// Links a socket to a libzmq peer the way this line says.
    ///
    /// # Panics
    /// When that does not work.
    pub async fn link<P: Pattern>(&self, builder: Builder<P>, peer: &Peer) -> Socket<P> {
        let socket = builder.build();
        self.attach(&socket, peer).await;
        within("the first peer", socket.ready()).await.unwrap();
        socket
    }

    /// Makes one end bind and the other connect. Returns the address.
    ///
    /// # Panics
    /// When that does not work.
    pub async fn attach<P: Pattern>(&self, socket: &Socket<P>, peer: &Peer) -> String {
        if self.ropewalk_binds {
            let address = socket.bind_to(self.for_ropewalk()).await.unwrap().to_string();
            peer.connect(&address);
            address
        } else {
            let address = peer.bind(&self.for_zmq());
            socket.connect_to(&address).await.unwrap();
            address
        }
    }
}

/// Runs each promise over tcp and ipc, with either side binding: four tests a promise.
#[macro_export]
macro_rules! everywhere {
    ($($promise:ident),+ $(,)?) => { $(
        mod $promise {
            use $crate::{Case, Scheme};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn tcp_ropewalk_binds() {
                $crate::to_the_end(super::$promise(Case::new(Scheme::Tcp, true))).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn tcp_libzmq_binds() {
                $crate::to_the_end(super::$promise(Case::new(Scheme::Tcp, false))).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn ipc_ropewalk_binds() {
                $crate::to_the_end(super::$promise(Case::new(Scheme::Ipc, true))).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn ipc_libzmq_binds() {
                $crate::to_the_end(super::$promise(Case::new(Scheme::Ipc, false))).await;
            }
        }
    )+ };
}

// ---- libzmq -------------------------------------------------------------------------------------------------------

/// A libzmq socket in a context of its own. Its sends and receives give up after [`LONG`]; closing it discards what
/// it has not sent, unless told otherwise by `set_linger`.
pub struct Peer {
    // Dropped in this order: the context waits for its sockets.
    monitor: zmq::Socket,
    socket: zmq::Socket,
    _context: zmq::Context,
}

impl Peer {
    /// A socket with libzmq's defaults.
    ///
    /// # Panics
    /// When libzmq refuses.
    pub fn new(kind: SocketType) -> Self {
        Self::with(kind, |_| {})
    }

    /// A socket that is set up before anything connects.
    ///
    /// # Panics
    /// When libzmq refuses.
    pub fn with(kind: SocketType, set: impl FnOnce(&zmq::Socket)) -> Self {
        static MONITORS: AtomicU64 = AtomicU64::new(0);
        let context = zmq::Context::new();
        let socket = context.socket(kind).unwrap();
        let patience = i32::try_from(LONG.as_millis()).unwrap();
        socket.set_linger(0).unwrap();
        socket.set_rcvtimeo(patience).unwrap();
        socket.set_sndtimeo(patience).unwrap();
        let address = format!("inproc://monitor-{}", MONITORS.fetch_add(1, Relaxed));
        socket.monitor(&address, i32::from(SocketEvent::ALL.to_raw())).unwrap();
        let monitor = context.socket(SocketType::PAIR).unwrap();
        monitor.connect(&address).unwrap();
        set(&socket);
        Self { monitor, socket, _context: context }
    }

    /// libzmq's own handle, for its options.
    pub fn raw(&self) -> &zmq::Socket {
        &self.socket
    }

    /// Binds, and says where.
    ///
    /// # Panics
    /// When libzmq refuses.
    pub fn bind(&self, address: &str) -> String {
        self.socket.bind(address).unwrap();
        self.socket.get_last_endpoint().unwrap().unwrap()
    }

    /// Connects.
    ///
    /// # Panics
    /// When libzmq refuses.
    pub fn connect(&self, address: &str) {
        self.socket.connect(address).unwrap();
    }

    /// Lets libzmq do what it does only while the application is inside one of its functions. A bound SUB, for one,
    /// tells a publisher that has connected its subscriptions no earlier. Always true, to be asked in a condition.
    ///
    /// # Panics
    /// When libzmq fails.
    pub fn lives(&self) -> bool {
        self.socket.get_events().unwrap();
        true
    }

    /// Sends, waiting for room.
    ///
    /// # Panics
    /// When there was none for [`LONG`].
    pub fn send<T: AsRef<[u8]>>(&self, parts: impl IntoIterator<Item = T>) {
        let parts: Parts = parts.into_iter().map(|part| part.as_ref().to_vec()).collect();
        block_in_place(|| self.socket.send_multipart(parts, 0)).unwrap();
    }

    /// Sends if there is room now.
    ///
    /// # Panics
    /// When it fails for any other reason.
    pub fn try_send(&self, part: &[u8]) -> bool {
        match self.socket.send(part, zmq::DONTWAIT) {
            Ok(()) => true,
            Err(zmq::Error::EAGAIN) => false,
            Err(error) => panic!("libzmq does not send: {error}"),
        }
    }

    /// Receives, waiting.
    ///
    /// # Panics
    /// When nothing came for [`LONG`].
    pub fn recv(&self) -> Parts {
        block_in_place(|| self.socket.recv_multipart(0)).unwrap()
    }

    /// Receives, and lets other things be waited for meanwhile.
    ///
    /// # Panics
    /// When libzmq fails.
    pub async fn received(&self) -> Parts {
        loop {
            if let Some(parts) = self.recv_within(Duration::from_millis(10)) {
                return parts;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Receives a message of one part that is text.
    ///
    /// # Panics
    /// When nothing came for [`LONG`], or something else.
    pub fn recv_text(&self) -> String {
        let [part] = <[Vec<u8>; 1]>::try_from(self.recv()).unwrap();
        String::from_utf8(part).unwrap()
    }

    /// Receives if something comes within this time.
    ///
    /// # Panics
    /// When libzmq fails.
    pub fn recv_within(&self, time: Duration) -> Option<Parts> {
        let millis = i64::try_from(time.as_millis()).unwrap();
        let ready = block_in_place(|| self.socket.poll(zmq::POLLIN, millis)).unwrap();
        (ready > 0).then(|| self.socket.recv_multipart(zmq::DONTWAIT).unwrap())
    }

    /// The next thing that happened to the socket, if it happens within this time.
    ///
    /// # Panics
    /// When libzmq tells it otherwise than it says it does.
    pub fn event(&self, time: Duration) -> Option<SocketEvent> {
        let millis = i64::try_from(time.as_millis()).unwrap();
        let ready = block_in_place(|| self.monitor.poll(zmq::POLLIN, millis)).unwrap();
        (ready > 0).then(|| {
            let told = self.monitor.recv_multipart(zmq::DONTWAIT).unwrap();
            SocketEvent::from_raw(u16::from_ne_bytes(told[0][..2].try_into().unwrap()))
        })
    }

    /// Waits until this happens to the socket.
    ///
    /// # Panics
    /// When it does not within [`LONG`].
    pub fn wait_for(&self, wanted: SocketEvent) {
        let end = Instant::now() + LONG;
        while let Some(event) = self.event(end.saturating_duration_since(Instant::now())) {
            if event == wanted {
                return;
            }
        }
        panic!("libzmq did not say {wanted:?}");
    }

    /// Everything that happened so far.
    pub fn events_so_far(&self) -> Vec<SocketEvent> {
        std::iter::from_fn(|| self.event(Duration::ZERO)).collect()
    }
}

// ---- events -------------------------------------------------------------------------------------------------------

/// Waits for the event that `pick` picks.
///
/// # Panics
/// When it does not come within [`LONG`].
pub async fn wait_for<T>(what: &str, events: &mut Events, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
    within(what, async {
        loop {
            let event = events.next().await.unwrap_or_else(|| panic!("the socket closed before: {what}"));
            if let Some(picked) = pick(&event) {
                return picked;
            }
        }
    })
    .await
}

/// Waits for this while no peer may go down.
///
/// # Panics
/// When one does, or when it takes longer than [`LONG`].
pub async fn alive<T>(events: &mut Events, peer: &Peer, what: &str, wait: impl Future<Output = T>) -> T {
    let down = async {
        loop {
            let event = events.next().await;
            if matches!(event, Some(Event::PeerDown { .. }) | None) {
                return event;
            }
        }
    };
    tokio::select! {
        biased;
        done = within(what, wait) => done,
        event = down => panic!("waiting for {what}: {event:?}, libzmq {:?}", peer.events_so_far()),
    }
}

/// Looks on for this time: no peer may go down at either end.
///
/// # Panics
/// When one does.
pub async fn nobody_dies(events: &mut Events, peer: &Peer, time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while let Ok(event) = tokio::time::timeout_at(end, events.next()).await {
        assert!(!matches!(event, Some(Event::PeerDown { .. }) | None), "{event:?}");
    }
    let told = peer.events_so_far();
    assert!(!told.contains(&SocketEvent::DISCONNECTED), "{told:?}");
}
