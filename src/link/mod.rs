//! One connection: handshake, then reading and writing side by side until it ends.
//!
//! ```text
//!   greeting, READY  ->  join the hub  ->  reader: stream to inbox          -> leave the hub
//!   both ways            (PeerUp)          writer: peer's queue to stream      (PeerDown, the unsent go elsewhere)
//!                                          pulse:  is the peer still there?
//! ```
//!
//! The three run in one task and never wait for each other. What was begun to be written belongs to the link, not to a
//! future, so it can be ended anywhere.

mod memory;
mod pulse;
mod stream;

use std::{sync::Arc, time::Duration};

use ropewalk_patterns::{
    Peer,
    extension::Hello,
    zmtp::{Ready, Version},
};
use tokio::sync::{Notify, watch};

pub(crate) use self::memory::Pipe;
use self::pulse::Vitals;
use crate::{
    events::{DownReason, Event},
    hub::{Batch, Joining, Next, Phase, Port, Signals},
    transport::{Connected, Connection},
};

/// How long both ends may take to see each other's end of the stream after their goodbyes.
const PARTING: Duration = Duration::from_secs(1);

/// Credit waits for company at most so long.
const SOON: Duration = Duration::from_millis(1);

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
    mut connected: Connected,
    evicted: Arc<Notify>,
    shaken: G,
) -> Result<Ended, ()> {
    let port = Arc::clone(&context.port);
    let mut phase = port.watch_phase();
    let window = port.open_window();
    let address = connected.address.clone();
    let ready = Ready {
        role: port.role(),
        identity: port.options().identity.clone(),
        hello: Some(Hello::new(window, port.options().limits.message)),
    };
    let shake = tokio::time::timeout(port.options().handshake_timeout, handshake(&*port, &ready, &mut connected));
    let shook = tokio::select! {
        shook = shake => shook.unwrap_or(Err(DownReason::HandshakeTimeout)),
        () = evicted.notified() => Err(DownReason::TooManyHandshakes),
        () = over(&mut phase, &*port) => Err(DownReason::Closed),
        _ = given_up_beyond(&mut context.given_up, GivenUp::No) => Err(DownReason::Closed),
    };
    drop(shaken);
    let memory = matches!(connected.connection, Connection::Memory(_));
    let vitals = Vitals::new(port.options().dead_after, !matches!(shook, Ok((_, Version::V3_0))));
    let joined = shook.and_then(|(ready, version)| {
        let (endpoint, accepted) = (context.endpoint.clone(), context.accepted);
        port.join(Joining { ready, version, endpoint, address: address.clone(), memory, accepted, window })
    });
    match joined {
        Ok((peer, signals)) => {
            let mut batch = Batch::default();
            let reason = traffic(&mut context, connected, peer, &signals, &vitals, &mut phase, &mut batch).await;
            port.leave(peer, reason, &mut batch);
            Ok(Ended)
        }
        Err(reason) => {
            port.close_window(window);
            port.log().tell(Event::HandshakeFailed { address, reason });
            Err(())
        }
    }
}

async fn handshake(port: &dyn Port, ready: &Ready, connected: &mut Connected) -> Result<(Ready, Version), DownReason> {
    match &mut connected.connection {
        Connection::Stream { read, write } => stream::handshake(port, ready, read, write, &mut connected.buffer).await,
        Connection::Memory(pipe) => memory::handshake(port, ready, pipe).await.map(|ready| (ready, Version::V3_1)),
    }
}

async fn traffic(
    context: &mut Context,
    connected: Connected,
    peer: Peer,
    signals: &Signals,
    vitals: &Vitals,
    phase: &mut watch::Receiver<Phase>,
    batch: &mut Batch,
) -> DownReason {
    let port = &*context.port;
    let work = async {
        match connected.connection {
            Connection::Stream { read, write } => {
                let reader = stream::Reader::new(port, peer, signals, vitals, read, connected.buffer);
                let writer = stream::Writer { port, peer, signals, vitals, batch, write };
                let (reader, writer) = (reader.run(), writer.run());
                let pulse = pulse::watch(port, peer, vitals);
                tokio::pin!(reader, writer, pulse);
                tokio::select! {
                    reason = &mut reader => reason,
                    reason = &mut writer => reason,
                    reason = &mut pulse => reason,
                }
            }
            Connection::Memory(pipe) => memory::run(port, peer, signals, pipe, batch).await,
        }
    };
    tokio::pin!(work);
    let mut given_up = GivenUp::No;
    loop {
        tokio::select! {
            reason = &mut work => return signals.stopping().unwrap_or(reason),
            () = signals.stop.notified() => return signals.stopping().unwrap_or(DownReason::Closed),
            () = ending(phase) => return DownReason::Closed,
            now = given_up_beyond(&mut context.given_up, given_up) => {
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
    let mut soon = false;
    loop {
        match port.take_batch(peer, batch, soon) {
            Next::Write => return Some(()),
            Next::Parted => return None,
            Next::Sleep { soon: true } => {
                soon = tokio::time::timeout(SOON, signals.write.notified()).await.is_err();
            }
            Next::Sleep { soon: false } => {
                signals.write.notified().await;
                soon = false;
            }
        }
    }
}
