//! One connection: handshake, then reading and writing side by side until it ends.
//!
//! ```text
//!   greeting, READY  ->  join the hub  ->  reader: stream to inbox          -> leave the hub
//!   both ways            (PeerUp)          writer: peer's queue to stream      (PeerDown, the unsent go elsewhere)
//!                                          control: the same for commands, if there is a stream for them
//!                                          pulse:  is the peer still there?
//! ```
//!
//! These run in one task and never wait for each other. What was begun to be written belongs to the link, not to a
//! future, so it can be ended anywhere. Of a stream both halves are also within reach of the application, which reads and
//! writes by itself where that saves a wake-up: see [`wire`].

mod control;
mod memory;
mod patience;
mod pulse;
mod stream;
mod wire;

use std::{
    convert::Infallible,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::BytesMut;
use ropewalk_patterns::{
    Action, Misbehaved, Peer,
    zmtp::{Ready, Version},
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::Instant,
};

pub(crate) use self::memory::Pipe;
use self::{
    pulse::Vitals,
    wire::{Side, Wire},
};
use crate::{
    events::{DownReason, Event, PeerInfo},
    hub::{Batch, Inline, Joining, Next, Phase, Port, Signals, Tick},
    identity::PeerId,
    transport::{Boxed, Connected, Connection, Control, Failed, Opening, Read, Write},
};

/// How long both ends may take to see each other's end of the stream after their goodbyes.
const PARTING: Duration = Duration::from_secs(1);

/// So many that were linked hear at once why they are not any more; others only see the end.
static HEARING: Semaphore = Semaphore::const_new(64);

/// What was put off is looked after this soon, and less often as long as there is always more of it: a timer that is due
/// before the kernel's own tick costs as much as a system call.
const SOON: Duration = Duration::from_millis(1);
const LATER: Duration = Duration::from_millis(16);

/// Who waits for a stream that is silent for so long leaves it to the link's task: it may be kept without being polled.
const IDLE: Duration = Duration::from_millis(100);

/// What a link is told by whoever made it.
pub(crate) struct Context {
    pub(crate) port: Arc<dyn Port>,
    /// The endpoint it belongs to.
    pub(crate) endpoint: String,
    pub(crate) accepted: bool,
    pub(crate) given_up: watch::Receiver<GivenUp>,
}

/// Whether an endpoint was given up by the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GivenUp {
    No,
    /// Write what waits, say goodbye.
    Gently,
    /// End.
    Now,
}

/// Why a link ended whose handshake was done.
pub(crate) struct Ended(pub(crate) DownReason);

/// Runs a link to its end. `evicted` ends it while it is in the handshake; `shaken` is dropped when that is done.
///
/// # Errors
/// When it did not come to be a link.
pub(crate) async fn run<G>(
    mut context: Context,
    connected: Connected,
    evicted: Arc<Notify>,
    shaken: G,
) -> Result<Ended, ()> {
    let port = Arc::clone(&context.port);
    let (mut phase, mut given_up) = (port.watch_phase(), context.given_up.clone());
    let hello = port.open_window();
    let window = hello.window();
    let ready = Ready { role: port.role(), identity: port.options().identity.clone(), hello: Some(hello) };
    let shake = shake(&context, &connected.address, &ready, connected.opening);
    let shake = tokio::time::timeout(port.options().handshake_timeout, shake);
    let shook = tokio::select! {
        shook = shake => shook.unwrap_or(Err(DownReason::HandshakeTimeout.into())),
        () = evicted.notified() => Err(DownReason::TooManyHandshakes.into()),
        () = over(&mut phase, &*port) => Err(DownReason::Closed.into()),
        _ = given_up_beyond(&mut given_up, GivenUp::No) => Err(DownReason::Closed.into()),
    };
    let joined = shook.and_then(|Shaken { connection, buffer, id, ready, version }| {
        // A plain peer's PONG says what it has read of the first stream, so it must come in that.
        let beside = ready.hello.is_some();
        let line = Line::new(connection, buffer, &*port, version != Version::V3_0, beside);
        let (endpoint, accepted) = (context.endpoint.clone(), context.accepted);
        let (address, inline) = (connected.address.clone(), line.inline());
        let joining = Joining { ready, version, endpoint, address, inline, id, accepted, window };
        match port.join(joining) {
            Ok(joined) => Ok((joined, line)),
            Err(reason) => Err(refused(reason, line.streams())),
        }
    });
    match joined {
        Ok(((peer, signals), line)) => {
            drop(shaken);
            let (reason, mut batch, streams) = traffic(&mut context, line, peer, &signals, &mut phase).await;
            port.leave(peer, reason.clone(), &mut batch);
            let Failed { reason, parting } = refused(reason, streams);
            if let Some(parting) = parting
                && let Ok(_one) = HEARING.try_acquire()
            {
                tokio::select! {
                    () = parting => {}
                    () = over(&mut phase, &*port) => {}
                    _ = given_up_beyond(&mut context.given_up, GivenUp::No) => {}
                }
            }
            Ok(Ended(reason))
        }
        Err(Failed { reason, parting }) => {
            port.close_window(window);
            port.log().tell(Event::HandshakeFailed { address: connected.address, reason });
            // It counts as one in the handshake until it has heard why, or another needs the place.
            if let Some(parting) = parting {
                tokio::select! {
                    () = parting => {}
                    () = evicted.notified() => {}
                    () = over(&mut phase, &*port) => {}
                }
            }
            Err(())
        }
    }
}

/// What is known when all handshakes are done.
struct Shaken {
    connection: Connection,
    /// What the peer sent beyond them.
    buffer: BytesMut,
    id: Option<PeerId>,
    ready: Ready,
    version: Version,
}

/// What we say of ourselves in a handshake, and whom we let in.
struct Ours<'h> {
    port: &'h dyn Port,
    ready: &'h Ready,
    /// Whether the application lets in one who says this of itself.
    admits: &'h (dyn Fn(&Ready) -> bool + Sync),
    /// Who has to be let in is not told before that we are ready, so that it sends nothing that nobody takes. Only one
    /// side may wait for the other.
    hears_first: bool,
}

/// The transport's handshake, then ours.
async fn shake(context: &Context, address: &str, ready: &Ready, opening: Opening) -> Result<Shaken, Failed> {
    let (mut connection, id) = opening.await?;
    let mut buffer = BytesMut::new();
    let authorize = context.port.options().authorize.as_ref();
    let admits = |theirs: &Ready| {
        let peer = || PeerInfo {
            number: 0,
            endpoint: context.endpoint.clone(),
            address: address.into(),
            role: theirs.role.clone(),
            ropewalk: theirs.hello.is_some(),
            id,
        };
        authorize.is_none_or(|authorize| authorize.permits(&peer(), Action::Connect))
    };
    let hears_first = context.accepted && authorize.is_some();
    let ours = Ours { port: &*context.port, ready, admits: &admits, hears_first };
    let theirs = match &mut connection {
        Connection::Stream { read, write, .. } => stream::handshake(&ours, read, write, &mut buffer).await,
        Connection::Memory(pipe) => memory::handshake(&ours, pipe).await.map(|ready| (ready, Version::V3_1)),
    };
    match (theirs, connection) {
        (Ok((ready, version)), connection) => Ok(Shaken { connection, buffer, id, ready, version }),
        (Err(reason), Connection::Stream { read, write, .. }) => Err(refused(reason, Some((read, write)))),
        (Err(reason), Connection::Memory(_)) => Err(reason.into()),
    }
}

/// A peer is not let in, or not kept, and hears why, if that is for it to know.
fn refused(reason: DownReason, streams: Option<(Read, Write)>) -> Failed {
    let why = match &reason {
        DownReason::Misbehaved(misbehaved @ Misbehaved::WrongRole { .. }) => misbehaved.to_string(),
        DownReason::NotAuthorized => "not authorized".into(),
        DownReason::TooManyPeers => "too many peers are linked".into(),
        DownReason::Superseded => reason.to_string(),
        _ => return reason.into(),
    };
    let parting = streams.map(|(read, write)| -> Boxed<'static, ()> {
        Box::pin(async move {
            let _late = tokio::time::timeout(PARTING, stream::refuse(read, write, &why)).await;
        })
    });
    Failed { reason, parting }
}

/// What a link runs over, once the handshake is done.
enum Line {
    Stream { wire: Arc<Wire>, control: Option<Control> },
    Memory(Pipe),
}

impl Line {
    fn new(connection: Connection, buffer: BytesMut, port: &dyn Port, answers: bool, beside: bool) -> Self {
        match connection {
            Connection::Stream { read, write, control } => {
                let vitals = Vitals::new(port.options().dead_after, answers);
                let wire = Wire::new(read, write, buffer, port.options().limits, vitals);
                Self::Stream { wire: Arc::new(wire), control: control.filter(|_| beside) }
            }
            Connection::Memory(pipe) => Self::Memory(pipe),
        }
    }

    /// Both halves of the stream, of a link that is not to be.
    fn streams(&self) -> Option<(Read, Write)> {
        match self {
            Self::Stream { wire, .. } => wire.take(),
            Self::Memory(_) => None,
        }
    }

    /// What the application may do I/O with by itself.
    fn inline(&self) -> Option<Arc<dyn Inline>> {
        match self {
            Self::Stream { wire, .. } => Some(Arc::clone(wire) as Arc<dyn Inline>),
            Self::Memory(_) => None,
        }
    }
}

/// Closes a stream when dropped.
struct EndsWire<'w>(&'w Wire);

impl Drop for EndsWire<'_> {
    fn drop(&mut self) {
        // What was not written is lost with the runtime, or was taken before.
        let _unwritten = self.0.end();
    }
}

/// Runs until the link ends. Why it did, what was not wholly written, and the stream, if the peer is to hear why.
async fn traffic(
    context: &mut Context,
    line: Line,
    peer: Peer,
    signals: &Signals,
    phase: &mut watch::Receiver<Phase>,
) -> (DownReason, Batch, Option<(Read, Write)>) {
    let port = &*context.port;
    match line {
        Line::Stream { wire, control } => {
            let side = Side { port, peer };
            let work = async {
                tokio::select! {
                    reason = stream::read(side, &wire, signals) => reason,
                    reason = stream::write(side, &wire, signals) => reason,
                    reason = control::run(side, control, &wire.vitals, signals) => reason,
                    reason = pulse::watch(port, peer, &wire) => reason,
                    never = tick(port, peer, signals, Some(&wire)) => match never {},
                }
            };
            // The hub knows the stream, too: it must not outlive its link, however that ends.
            let _ends = EndsWire(&wire);
            let reason = until_told(work, &mut context.given_up, port, peer, signals, phase).await;
            let streams = if matches!(reason, DownReason::Superseded) { wire.take_whole() } else { None };
            (reason, wire.end(), streams)
        }
        Line::Memory(pipe) => {
            let mut batch = Batch::default();
            let work = async {
                tokio::select! {
                    reason = memory::run(port, peer, signals, pipe, &mut batch) => reason,
                    never = tick(port, peer, signals, None) => match never {},
                }
            };
            let reason = until_told(work, &mut context.given_up, port, peer, signals, phase).await;
            (reason, batch, None)
        }
    }
}

/// What is not worth a wake-up each time it comes up, but one for many: credit of which there is little,
/// and a stream that the application has begun to read by itself and does not read on.
async fn tick(port: &dyn Port, peer: Peer, signals: &Signals, wire: Option<&Wire>) -> Infallible {
    let (mut next, mut pace, mut last) = (Tick::Rest, SOON, Instant::now());
    loop {
        let idle = match next {
            Tick::Rest => {
                signals.tick.notified().await;
                false
            }
            Tick::Soon => false,
            Tick::Later => tokio::time::timeout(IDLE, signals.tick.notified()).await.is_err(),
        };
        if !idle {
            pace = if last.elapsed() < 2 * pace { LATER.min(2 * pace) } else { SOON };
            tokio::time::sleep(pace).await;
        }
        last = Instant::now();
        next = port.tick(peer, wire.is_some_and(Wire::was_polled), idle);
    }
}

/// Runs a link until it ends or is told to.
async fn until_told(
    work: impl Future<Output = DownReason>,
    gives_up: &mut watch::Receiver<GivenUp>,
    port: &dyn Port,
    peer: Peer,
    signals: &Signals,
    phase: &mut watch::Receiver<Phase>,
) -> DownReason {
    let work = caught(work);
    tokio::pin!(work);
    let mut given_up = GivenUp::No;
    loop {
        tokio::select! {
            reason = &mut work => return signals.stopping().unwrap_or(reason),
            () = signals.stop.notified() => return signals.stopping().unwrap_or(DownReason::Closed),
            () = ending(phase) => return DownReason::Closed,
            now = given_up_beyond(gives_up, given_up) => {
                if now == GivenUp::Now {
                    return DownReason::Closed;
                }
                given_up = now;
                port.part(peer);
            }
        }
    }
}

/// Ends where a pattern of the application's panics, so that its link does and no more.
async fn caught(work: impl Future<Output = DownReason>) -> DownReason {
    let mut work = pin!(work);
    // What it leaves half done is the link's, which ends.
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx)));
        polled.unwrap_or(Poll::Ready(DownReason::Panicked))
    })
    .await
}

/// Waits until the socket ends everything.
async fn ending(phase: &mut watch::Receiver<Phase>) {
    // The hub outlives its links, so there is no other end of this.
    let _ended = phase.wait_for(|phase| *phase == Phase::Ending).await.is_ok();
}

/// Waits until the socket needs no new link: it closes, and nothing waits for a peer.
pub(crate) async fn over(phase: &mut watch::Receiver<Phase>, port: &dyn Port) {
    let needless = |phase: &Phase| *phase == Phase::Ending || (*phase > Phase::Open && !port.wants_peers());
    let _ended = phase.wait_for(needless).await.is_ok();
}

/// Waits until the endpoint is given up more than is known.
pub(crate) async fn given_up_beyond(watched: &mut watch::Receiver<GivenUp>, known: GivenUp) -> GivenUp {
    let now = watched.wait_for(|now| *now > known).await.map(|now| *now);
    match now {
        Ok(now) => now,
        // Whoever could give it up is gone without doing so; the socket's phase tells the rest.
        Err(_) => std::future::pending().await,
    }
}

/// Waits until there is a batch to write. `None`: all goodbyes are said and answered.
async fn next_batch(port: &dyn Port, peer: Peer, signals: &Signals, batch: &mut Batch) -> Option<()> {
    loop {
        match port.take_batch(peer, batch) {
            Next::Write => return Some(()),
            Next::Parted => return None,
            Next::Sleep => signals.write.notified().await,
        }
    }
}
