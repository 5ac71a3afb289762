//! What the tests share: the table of transports, waiters with a deadline, a peer that speaks ZMTP by hand.

#![allow(dead_code, reason = "each test program uses its own part of it")]

pub(crate) mod raw;
pub(crate) mod tls;

use std::{
    fmt,
    pin::Pin,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use ropewalk::{
    DownReason, Event, Events, Message, Misbehaved, Pull, Push, SecretKey, Socket, TryRecvError, TrySendError,
    patterns::Pattern,
};
use tempfile::TempDir;

/// Nothing that is waited for takes longer on a busy machine; what does has failed.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// How long something that must not happen is watched for.
pub(crate) const A_WHILE: Duration = Duration::from_millis(30);

/// The transports. A new one is one line here.
#[macro_export]
macro_rules! transports {
    ($with:ident $args:tt) => {
        $with! { $args
            tcp: "tcp://127.0.0.1:0",
            tls: "tls://127.0.0.1:0",
            quic: "quic://127.0.0.1:0",
            ipc: "ipc://DIRECTORY/NUMBER",
            inproc: "inproc://promises-NUMBER",
        }
    };
}

/// Makes of each function here one test over each transport.
#[macro_export]
macro_rules! over_every_transport {
    ([$promise:ident] $($name:ident: $address:literal,)*) => {
        mod $promise {
            $(#[test]
            fn $name() {
                $crate::common::run(super::$promise($crate::common::Place::new($address)));
            })*
        }
    };
    ($($promise:ident),* $(,)?) => {
        $($crate::transports! { over_every_transport [$promise] })*
    };
}

/// Gives a socket what it needs where peers prove who they are: all sockets of the tests are one peer, by one key.
pub(crate) static KEY: LazyLock<SecretKey> = LazyLock::new(SecretKey::generate);

pub(crate) fn keyed<P: Pattern, D>(builder: ropewalk::Builder<P, D>) -> ropewalk::Builder<P, D> {
    builder.key(KEY.clone()).allow([KEY.id()])
}

/// Makes addresses of one transport that nobody uses.
pub(crate) struct Place {
    pattern: &'static str,
    directory: TempDir,
}

impl Place {
    pub(crate) fn new(pattern: &'static str) -> Self {
        Self { pattern, directory: TempDir::new().expect("a directory for sockets") }
    }

    pub(crate) fn address(&self) -> String {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Relaxed).to_string();
        let directory = self.directory.path().to_str().expect("a path in UTF-8");
        self.pattern.replace("DIRECTORY", directory).replace("NUMBER", &number)
    }

    /// Where nobody listens.
    pub(crate) fn nowhere(&self) -> String {
        let address = self.address().replace(":0", ":1");
        match address.split_once("://") {
            Some((scheme @ ("tls" | "quic"), rest)) => format!("{scheme}://{}@{rest}", KEY.id()),
            _ => address,
        }
    }

    pub(crate) fn is(&self, scheme: &str) -> bool {
        self.pattern.starts_with(&format!("{scheme}://"))
    }

    /// A pair of linked sockets: the second listens.
    pub(crate) async fn link<A: Pattern, B: Pattern>(
        &self,
        dials: ropewalk::Builder<A>,
        listens: ropewalk::Builder<B>,
    ) -> (Socket<A>, Socket<B>) {
        let listens = listens.bind(self.address()).await.expect("bind");
        let dials = dials.connect(address_of(&listens)).await.expect("connect");
        soon("both to be linked", async {
            dials.ready().await.expect("dials");
            listens.ready().await.expect("listens");
        })
        .await;
        (dials, listens)
    }
}

/// Where a socket listens.
pub(crate) fn address_of<P: Pattern>(socket: &Socket<P>) -> String {
    socket.address().expect("a socket that listens").to_string()
}

/// Runs a test on two threads, as `#[tokio::main]` would, and never for ever.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(3 * LONG, test).await.expect("the test to end");
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

pub(crate) fn one_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The outcome of something that is to happen soon.
#[track_caller]
pub(crate) fn soon<F: Future>(what: impl fmt::Display, future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(LONG, future).await {
            Ok(output) => output,
            Err(_) => panic!("waited in vain for {what}, at {caller}"),
        }
    }
}

/// Asks again and again until it is so.
#[track_caller]
pub(crate) fn until(what: impl fmt::Display, mut so: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + LONG;
        while !so() {
            assert!(Instant::now() < deadline, "waited in vain for {what}, at {caller}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Sees that something stays so for a while.
pub(crate) async fn stays(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + A_WHILE;
    while Instant::now() < end {
        assert!(so(), "{what} did not stay so");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A future that was polled once and has to wait: it stands in line.
pub(crate) async fn standing<F: Future>(future: F) -> Pin<Box<F>> {
    let mut future = Box::pin(future);
    assert!(futures::poll!(&mut future).is_pending(), "it should have to wait");
    future
}

/// The next event that `wanted` makes something of; the others are passed over.
pub(crate) async fn event<T>(events: &mut Events, what: &str, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    soon(format!("the event {what}"), async {
        loop {
            let event = events.next().await.expect("an event before the socket ends");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    })
    .await
}

/// The next way in which a peer misbehaved, in its handshake or as a link.
pub(crate) async fn misbehaved(events: &mut Events) -> Misbehaved {
    event(events, "that a peer misbehaved", |event| match event {
        Event::HandshakeFailed { reason: DownReason::Misbehaved(misbehaved), .. }
        | Event::PeerDown { reason: DownReason::Misbehaved(misbehaved), .. } => Some(misbehaved),
        _ => None,
    })
    .await
}

/// Why the next handshake fails.
pub(crate) async fn refused(events: &mut Events) -> DownReason {
    event(events, "of a handshake that failed", |event| match event {
        Event::HandshakeFailed { reason, .. } => Some(reason),
        _ => None,
    })
    .await
}

/// What the process holds in memory, in bytes; 0 where the system does not tell.
pub(crate) fn memory() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).map_or(0, |pages: u64| pages * 4096)
}

/// The next reason for which a link ended.
pub(crate) async fn down(events: &mut Events) -> (DownReason, u64) {
    event(events, "that a peer is gone", |event| match event {
        Event::PeerDown { reason, in_doubt, .. } => Some((reason, in_doubt)),
        _ => None,
    })
    .await
}

/// Sends until nobody has room for a message of this number of bytes; how many were accepted.
pub(crate) fn fill(push: &Push, bytes: usize) -> u64 {
    let mut sent = 0;
    loop {
        match push.try_send(vec![b'x'; bytes]) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full(_)) => return sent,
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 10_000_000, "a queue without a bound");
    }
}

/// The number a message stands for.
pub(crate) fn number(message: &Message) -> u64 {
    message.text().expect("text").parse().expect("a number")
}

/// Takes so many messages, which are numbers.
pub(crate) async fn numbers(pull: &Pull, count: usize) -> Vec<u64> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let so_far = taken.len();
        let message = soon(format!("message {so_far} of {count}"), pull.recv()).await.expect("a message");
        taken.push(number(&message));
    }
    taken
}

/// Takes what is there, and what comes while something still comes.
pub(crate) async fn rest(pull: &Pull) -> Vec<u64> {
    let mut taken = Vec::new();
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < A_WHILE {
        match pull.try_recv() {
            Ok(message) => {
                taken.push(number(&message));
                quiet_since = Instant::now();
            }
            Err(TryRecvError::Empty) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => panic!("{error}"),
        }
    }
    taken
}

/// Numbers that look random and are the same in every run. xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}
