//! A link to a peer in this process: messages are handed over as they are.

use ropewalk_patterns::{
    Misbehaved, Peer, Tally,
    zmtp::{Command, Ready},
};
use tokio::sync::mpsc;

use super::{Ours, next_batch};
use crate::{
    events::DownReason,
    hub::{Batch, Chunk, Port, Segment, Signals},
};

/// What one end hands to the other at once.
#[derive(Debug)]
enum Parcel {
    Ready(Box<Ready>),
    Traffic { commands: Vec<Command>, segments: Vec<(Segment, Tally)> },
}

/// One end of a connection in memory.
#[derive(Debug)]
pub(crate) struct Pipe {
    to: mpsc::Sender<Parcel>,
    from: mpsc::Receiver<Parcel>,
}

impl Pipe {
    /// Both ends. Credit bounds what is under way, so few parcels need to fit.
    pub(crate) fn pair() -> (Self, Self) {
        let ((to_a, from_a), (to_b, from_b)) = (mpsc::channel(2), mpsc::channel(2));
        (Self { to: to_b, from: from_a }, Self { to: to_a, from: from_b })
    }
}

pub(super) async fn handshake(ours: &Ours<'_>, pipe: &mut Pipe) -> Result<Ready, DownReason> {
    let say = || Parcel::Ready(Box::new(ours.ready.clone()));
    if !ours.hears_first {
        pipe.to.send(say()).await.map_err(|_| DownReason::Ended)?;
    }
    let theirs = hear_ready(ours.port, pipe).await?;
    if !(ours.admits)(&theirs) {
        return Err(DownReason::NotAuthorized);
    }
    if ours.hears_first {
        pipe.to.send(say()).await.map_err(|_| DownReason::Ended)?;
    }
    Ok(theirs)
}

async fn hear_ready(port: &dyn Port, pipe: &mut Pipe) -> Result<Ready, DownReason> {
    match pipe.from.recv().await {
        Some(Parcel::Ready(theirs)) if port.accepts(&theirs.role) => Ok(*theirs),
        Some(Parcel::Ready(theirs)) => Err(Misbehaved::WrongRole { ours: port.role(), theirs: theirs.role }.into()),
        Some(Parcel::Traffic { .. }) => Err(Misbehaved::HandshakeExpected.into()),
        None => Err(DownReason::Ended),
    }
}

pub(super) async fn run(port: &dyn Port, peer: Peer, signals: &Signals, pipe: Pipe, batch: &mut Batch) -> DownReason {
    let Pipe { to, mut from } = pipe;
    let reader = async {
        loop {
            let Some(parcel) = from.recv().await else {
                return if port.ended(peer) { DownReason::Goodbye } else { DownReason::Ended };
            };
            if let Err(reason) = unpack(port, peer, signals, &to, parcel).await {
                return reason;
            }
        }
    };
    let writer = async {
        loop {
            if next_batch(port, peer, signals, batch).await.is_none() {
                return DownReason::Goodbye;
            }
            // Nothing is taken from the batch before there is room for all of it.
            let Ok(room) = to.reserve().await else { return std::future::pending().await };
            let (commands, segments) = batch.hand_over();
            room.send(Parcel::Traffic { commands, segments });
            port.written(peer);
            batch.clear();
        }
    };
    tokio::select! {
        reason = reader => reason,
        reason = writer => reason,
    }
}

async fn unpack(
    port: &dyn Port,
    peer: Peer,
    signals: &Signals,
    to: &mpsc::Sender<Parcel>,
    parcel: Parcel,
) -> Result<(), DownReason> {
    let Parcel::Traffic { commands, segments } = parcel else { return Err(Misbehaved::UnexpectedCommand.into()) };
    for command in commands {
        port.command(peer, command)?;
    }
    for (segment, tally) in segments {
        let chunk = match segment {
            Segment::Frames(frames) => Chunk::Encoded(frames),
            Segment::Message(message) => Chunk::Message(message),
            Segment::Gap(missed) => Chunk::Gap(missed),
            Segment::Goodbye(goodbye) => {
                port.command(peer, Command::Goodbye(goodbye))?;
                continue;
            }
        };
        if !port.arrive(peer, chunk, tally)? {
            while !port.admit(peer) {
                tokio::select! {
                    () = signals.read.notified() => {}
                    () = to.closed() => return Err(DownReason::Ended),
                }
            }
        }
    }
    Ok(())
}
