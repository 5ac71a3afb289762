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
mod pulse;
mod stream;
mod wire;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::BytesMut;
use ropewalk_patterns::{
    Peer,
    extension::Hello,
    zmtp::{Ready, Version},
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

pub(crate) use self::memory::Pipe;
use self::{
    pulse::Vitals,
    wire::{Side, Wire},
};
use crate::{
    events::{DownReason, Event},
    hub::{Batch, Inline, Joining, Next, Phase, Port, Signals, Tick},
    identity::PeerId,
    transport::{Connected, Connection, Control, Failed, Opening},
};

/// How long both ends may take to see each other's end of the stream after their goodbyes.
const PARTING: Duration = Duration::from_secs(1);

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
pub(crate) struct Ended;

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
    let mut phase = port.watch_phase();
    let window = port.open_window();
    let ready = Ready {
        role: port.role(),
        identity: port.options().identity.clone(),
        hello: Some(Hello::new(window, port.options().limits.message)),
    };
    let shake = tokio::time::timeout(port.options().handshake_timeout, shake(&*port, &ready, connected.opening));
    let shook = tokio::select! {
        shook = shake => shook.unwrap_or(Err(DownReason::HandshakeTimeout.into())),
        () = evicted.notified() => Err(DownReason::TooManyHandshakes.into()),
        () = over(&mut phase, &*port) => Err(DownReason::Closed.into()),
        _ = given_up_beyond(&mut context.given_up, GivenUp::No) => Err(DownReason::Closed.into()),
    };
    let joined = shook.and_then(|Shaken { connection, buffer, id, ready, version }| {
        let line = Line::new(connection, buffer, &*port, version != Version::V3_0);
        let (endpoint, accepted) = (context.endpoint.clone(), context.accepted);
        let (address, inline) = (connected.address.clone(), line.inline());
        let joining = Joining { ready, version, endpoint, address, inline, id, accepted, window };
        Ok((port.join(joining)?, line))
    });
    match joined {
        Ok(((peer, signals), line)) => {
            drop(shaken);
            let (reason, mut batch) = traffic(&mut context, line, peer, &signals, &mut phase).await;
            port.leave(peer, reason, &mut batch);
            Ok(Ended)
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

/// The transport's handshake, then ours.
async fn shake(port: &dyn Port, ready: &Ready, opening: Opening) -> Result<Shaken, Failed> {
    let (mut connection, id) = opening.await?;
    let mut buffer = BytesMut::new();
    let (ready, version) = handshake(port, ready, &mut connection, &mut buffer).await?;
    Ok(Shaken { connection, buffer, id, ready, version })
}

async fn handshake(
    port: &dyn Port,
    ready: &Ready,
    connection: &mut Connection,
    buffer: &mut BytesMut,
) -> Result<(Ready, Version), DownReason> {
    match connection {
        Connection::Stream { read, write, .. } => stream::handshake(port, ready, read, write, buffer).await,
        Connection::Memory(pipe) => memory::handshake(port, ready, pipe).await.map(|ready| (ready, Version::V3_1)),
    }
}

/// What a link runs over, once the handshake is done.
enum Line {
    Stream { wire: Arc<Wire>, control: Option<Control> },
    Memory(Pipe),
}

impl Line {
    fn new(connection: Connection, buffer: BytesMut, port: &dyn Port, answers: bool) -> Self {
        match connection {
            Connection::Stream { read, write, control } => {
                let vitals = Vitals::new(port.options().dead_after, answers);
                let wire = Wire::new(read, write, buffer, port.options().limits, vitals);
                Self::Stream { wire: Arc::new(wire), control }
            }
            Connection::Memory(pipe) => Self::Memory(pipe),
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

/// Runs until the link ends. Why it did, and what was not wholly written.
async fn traffic(
    context: &mut Context,
    line: Line,
    peer: Peer,
    signals: &Signals,
    phase: &mut watch::Receiver<Phase>,
) -> (DownReason, Batch) {
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
            (reason, wire.end())
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
            (reason, batch)
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
