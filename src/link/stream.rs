//! A link over a stream of bytes.

use std::{future::poll_fn, io, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::{Buf, BytesMut};
use ropewalk_patterns::{
    Misbehaved,
    zmtp::{GREETING_LEN, Handshake, Ready, Version, encode_error, greeting, read_greeting, read_handshake},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Ours, PARTING, Vitals,
    wire::{Came, Side, Wire, Wrote},
};
use crate::{
    events::DownReason,
    hub::{Port, Signals},
    transport::{Read, Write},
};

/// While the reader is stopped a peer hears this often that we are alive.
const UNASKED_PONG: Duration = Duration::from_millis(50);

/// So much is still read of a peer that is refused.
const REFUSED_BYTES: u64 = 64 << 10;

/// Greeting and READY both ways. What the peer sent beyond them stays in the buffer.
pub(super) async fn handshake(
    ours: &Ours<'_>,
    read: &mut Read,
    write: &mut Write,
    buffer: &mut BytesMut,
) -> Result<(Ready, Version), DownReason> {
    let (port, greeting, ready) = (ours.port, greeting(), ours.ready.encode());
    let ((), version) = tokio::try_join!(say(write, &greeting), hear_greeting(port, read, buffer))?;
    // Not before: libzmq closes when it reads a READY that does not fit, without a word unless it has said its own.
    let said = async { if ours.hears_first { Ok(()) } else { say(write, &ready).await } };
    let ((), theirs) = tokio::try_join!(said, hear_ready(port, read, buffer))?;
    if !(ours.admits)(&theirs) {
        return Err(DownReason::NotAuthorized);
    }
    if ours.hears_first {
        say(write, &ready).await?;
    }
    Ok((theirs, version))
}

async fn say(write: &mut Write, bytes: &[u8]) -> Result<(), DownReason> {
    write.write_all(bytes).await.map_err(hung_up)?;
    // TLS may keep what it has taken.
    write.flush().await.map_err(hung_up)
}

/// A peer that closes what it has not read leaves an error instead of an end.
fn hung_up(error: io::Error) -> DownReason {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
            DownReason::HungUp
        }
        _ => error.into(),
    }
}

async fn hear_greeting(port: &dyn Port, read: &mut Read, buffer: &mut BytesMut) -> Result<Version, DownReason> {
    loop {
        if let Some(version) = read_greeting(buffer.get(..GREETING_LEN).unwrap_or(buffer))? {
            buffer.advance(GREETING_LEN);
            return Ok(version);
        }
        read_some(port, read, buffer).await?;
    }
}

async fn hear_ready(port: &dyn Port, read: &mut Read, buffer: &mut BytesMut) -> Result<Ready, DownReason> {
    loop {
        if let Handshake::Ready(theirs) = read_handshake(buffer, &port.options().limits)? {
            if port.accepts(&theirs.role) {
                return Ok(theirs);
            }
            return Err(Misbehaved::WrongRole { ours: port.role(), theirs: theirs.role }.into());
        }
        read_some(port, read, buffer).await?;
    }
}

async fn read_some(port: &dyn Port, read: &mut Read, buffer: &mut BytesMut) -> Result<(), DownReason> {
    let limit = port.options().limits.handshake;
    buffer.reserve(1024.min(limit));
    match read.read_buf(buffer).await.map_err(hung_up)? {
        0 => Err(DownReason::HungUp),
        _ => Ok(()),
    }
}

/// Says ERROR, which one who has sent its READY understands, and waits until the peer has gone: were the stream dropped
/// with bytes unread, it might be reset before the peer has read that.
pub(super) async fn refuse(mut read: Read, mut write: Write, why: &str) {
    let refused = async {
        write.write_all(&encode_error(why)).await?;
        write.shutdown().await?;
        tokio::io::copy(&mut (&mut read).take(REFUSED_BYTES), &mut tokio::io::sink()).await
    };
    // A peer that is gone already need not hear it.
    let _gone: io::Result<u64> = refused.await;
}

/// Reads messages into the inbox and acts on commands, as long as the application does not do it itself.
pub(super) async fn read(side: Side<'_>, wire: &Wire, signals: &Signals) -> DownReason {
    loop {
        // One that waits for the stream is told, too, when that is given back: by then the stream wakes somebody else.
        let came = tokio::select! {
            biased;
            () = signals.read.notified() => continue,
            came = poll_fn(|cx| wire.poll_read(side, cx)) => came,
        };
        match came {
            Ok(Came::Something) => {}
            Ok(Came::Leased) => signals.read.notified().await,
            Ok(Came::NoRoom) => wait_for_room(side, &wire.vitals, signals).await,
            Ok(Came::End) if side.port.ended(side.peer) => return DownReason::Goodbye,
            Ok(Came::End) => return DownReason::Ended,
            Err(reason) => return reason,
        }
    }
}

/// Waits for room in the inbox, letting the peer know meanwhile that we are alive.
async fn wait_for_room(side: Side<'_>, vitals: &Vitals, signals: &Signals) {
    vitals.deaf.store(true, Relaxed);
    if tokio::time::timeout(UNASKED_PONG, signals.read.notified()).await.is_err() && vitals.answers {
        side.port.unasked_pong(side.peer);
    }
    vitals.deaf.store(false, Relaxed);
}

/// Writes what the hub has for the peer and nobody else writes.
pub(super) async fn write(side: Side<'_>, wire: &Wire, signals: &Signals) -> DownReason {
    loop {
        match poll_fn(|cx| wire.poll_write(side, cx)).await {
            Ok(Wrote::All) => signals.write.notified().await,
            Ok(Wrote::Parted) => return part(wire).await,
            Err(error) => {
                // A plain peer that has closed is not written to any more. What it wrote before is still there to be read, for
                // a reader that has stopped for want of room; when that finds the end, so does the link. Of another the
                // goodbyes say what is in doubt.
                let unread = || wire.vitals.deaf.load(Relaxed) || wire.is_leased();
                while !wire.vitals.always_reads.load(Relaxed) && unread() {
                    tokio::time::sleep(UNASKED_PONG).await;
                }
                return error.into();
            }
        }
    }
}

/// Ends our side of the stream and leaves it to the reader to see the other side's end.
async fn part(wire: &Wire) -> DownReason {
    if let Err(error) = poll_fn(|cx| wire.poll_shutdown(cx)).await {
        return error.into();
    }
    if wire.vitals.always_reads.load(Relaxed) {
        tokio::time::sleep(PARTING).await;
        return DownReason::Goodbye;
    }
    // A plain peer has the whole linger to read what was sent to it.
    std::future::pending().await
}
