//! The second stream of a link, where its transport has one: PING, PONG and credit only. They get through however long a
//! large message takes, and when the first stream waits for bytes that were lost on the way.
//!
//! Until the stream is there (the side that listens has it with the first command of the other) these commands go ahead of messages in the first one, as they do where there is no other.
//! Credit that was told in the first may come after newer credit here; it is known by its counts.

use std::convert::Infallible;

use bytes::BytesMut;
use ropewalk_patterns::{
    Misbehaved, Tally,
    zmtp::{Command, Decoder, Room, Step},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Vitals, wire::Side};
use crate::{
    events::DownReason,
    hub::Signals,
    transport::{Control, Read, Write},
};

/// Commands are small and few.
const READ: usize = 1 << 10;

/// Reads and writes commands. Ends only when the peer misbehaves: that the link has ended shows in its first stream.
pub(super) async fn run(side: Side<'_>, control: Option<Control>, vitals: &Vitals, signals: &Signals) -> DownReason {
    let streams = match control {
        Some(control) => control.await.ok(),
        None => None,
    };
    let Some((read, write)) = streams else { return std::future::pending().await };
    tokio::select! {
        // What answers the first command goes this way already.
        biased;
        never = say(side, write, signals) => match never {},
        misbehaved = hear(side, read, vitals) => misbehaved.into(),
    }
}

async fn hear(side: Side<'_>, mut read: Read, vitals: &Vitals) -> Misbehaved {
    let mut decoder = Decoder::new(side.port.options().limits);
    let mut buffer = BytesMut::new();
    loop {
        match next(&mut decoder, &mut buffer, &mut read, vitals).await {
            Ok(command) => {
                vitals.learn(&command);
                if let Err(misbehaved) = side.port.command(side.peer, command) {
                    return misbehaved;
                }
            }
            Err(Some(misbehaved)) => return misbehaved,
            Err(None) => return std::future::pending().await,
        }
    }
}

/// The next command. None: there are no more.
async fn next(
    decoder: &mut Decoder,
    buffer: &mut BytesMut,
    read: &mut Read,
    vitals: &Vitals,
) -> Result<Command, Option<Misbehaved>> {
    loop {
        // No message has room here.
        match decoder.next(buffer, Room { tally: Tally::ZERO, any_first: false })? {
            Step::Command(command @ (Command::Ping { .. } | Command::Pong { .. } | Command::Credit(_))) => {
                return Ok(command);
            }
            Step::Command(Command::Unknown) => {}
            Step::NeedBytes(_) => {
                buffer.reserve(READ);
                if read.read_buf(buffer).await.unwrap_or(0) == 0 {
                    return Err(None);
                }
                vitals.hear();
            }
            _ => return Err(Some(Misbehaved::OutOfPlace)),
        }
    }
}

async fn say(side: Side<'_>, mut write: Write, signals: &Signals) -> Infallible {
    let mut buffer = BytesMut::new();
    loop {
        side.port.take_control(side.peer, &mut buffer);
        if buffer.is_empty() {
            signals.control.notified().await;
        }
        if write.write_all_buf(&mut buffer).await.is_err() {
            // The peer does not read it any more, or the link ends.
            side.port.control_ends(side.peer);
            return std::future::pending().await;
        }
    }
}
