//! A link over a stream of bytes.

use std::{io, io::IoSlice, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use ropewalk_patterns::{
    Misbehaved, Peer,
    zmtp::{
        Command, Decoder, GREETING_LEN, Handshake, Ready, Room, Step, Version, encode_error, greeting, read_greeting,
        read_handshake,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{PARTING, Vitals, next_batch};
use crate::{
    events::DownReason,
    hub::{Batch, Chunk, Port, Signals},
    transport::{Read, Write},
};

/// The read buffer grows from the first to the second as reads fill it.
const READ_AT_LEAST: usize = 16 << 10;
const READ_AT_MOST: usize = 256 << 10;

/// A message beyond this size is announced to the hub before it is gathered.
const LARGE: usize = 64 << 10;

/// While the reader is stopped a peer hears this often that we are alive.
const UNASKED_PONG: Duration = Duration::from_millis(100);

/// Frames given to the kernel in one call.
const SLICES: usize = 64;

/// Greeting and READY both ways. What the peer sent beyond them stays in the buffer.
pub(super) async fn handshake(
    port: &dyn Port,
    ready: &Ready,
    read: &mut Read,
    write: &mut Write,
    buffer: &mut BytesMut,
) -> Result<(Ready, Version), DownReason> {
    let (greeting, ready) = (greeting(), ready.encode());
    let ((), version) = tokio::try_join!(say(write, &greeting), hear_greeting(port, read, buffer))?;
    // Not before: libzmq closes when it reads a READY that does not fit, without a word unless it has said its own.
    let said = tokio::try_join!(say(write, &ready), hear_ready(port, read, buffer));
    // Only a peer that has understood our greeting can understand an ERROR; one that sent its READY has.
    if let Err(DownReason::Misbehaved(misbehaved @ Misbehaved::WrongRole { .. })) = &said {
        let _refused = write.write_all(&encode_error(&misbehaved.to_string())).await;
        let _closed = write.shutdown().await;
    }
    said.map(|((), theirs)| (theirs, version))
}

async fn say(write: &mut Write, bytes: &[u8]) -> Result<(), DownReason> {
    write.write_all(bytes).await.map_err(hung_up)
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

/// Reads messages into the inbox and acts on commands.
pub(super) struct Reader<'l> {
    port: &'l dyn Port,
    peer: Peer,
    signals: &'l Signals,
    vitals: &'l Vitals,
    read: Read,
    buffer: BytesMut,
    decoder: Decoder,
    chunk: usize,
    /// It waited for room and has not gone on yet.
    stopped: bool,
    /// What was taken out of the stream last waits for room in the socket's budget.
    overdue: bool,
}

impl<'l> Reader<'l> {
    pub(super) fn new(
        port: &'l dyn Port,
        peer: Peer,
        signals: &'l Signals,
        vitals: &'l Vitals,
        read: Read,
        buffer: BytesMut,
    ) -> Self {
        let decoder = Decoder::new(port.options().limits);
        Self {
            port,
            peer,
            signals,
            vitals,
            read,
            buffer,
            decoder,
            chunk: READ_AT_LEAST,
            stopped: false,
            overdue: false,
        }
    }

    pub(super) async fn run(mut self) -> DownReason {
        loop {
            let needed = match self.decode() {
                Ok(Some(needed)) => needed,
                Ok(None) => {
                    self.wait_for_room().await;
                    continue;
                }
                Err(misbehaved) => return misbehaved.into(),
            };
            match self.read(needed).await {
                Ok(0) if self.port.ended(self.peer) => return DownReason::Goodbye,
                Ok(0) => return DownReason::Ended,
                Ok(_) => self.vitals.hear(),
                Err(error) => return error.into(),
            }
        }
    }

    /// Takes all that is whole out of the buffer. How many bytes are needed next; `None` if there is no room for them.
    fn decode(&mut self) -> Result<Option<usize>, Misbehaved> {
        if self.overdue && !self.port.admit(self.peer) {
            return Ok(None);
        }
        self.overdue = false;
        let mut told = false;
        loop {
            let Some(room) = self.port.read_room(self.peer) else { return Ok(Some(1)) };
            self.vitals.always_reads.store(room == Room::UNBOUNDED, Relaxed);
            match self.decoder.next(&mut self.buffer, room)? {
                Step::Messages { bytes, tally } => {
                    let bytes = self.settle(bytes);
                    if !self.port.arrive(self.peer, Chunk::Encoded(bytes), tally)? {
                        self.overdue = true;
                        return Ok(None);
                    }
                }
                Step::Command(command) => {
                    match &command {
                        Command::Ping { ttl, .. } => self.vitals.time_to_live(*ttl),
                        Command::Pong { context } => self.vitals.answer(context),
                        _ => {}
                    }
                    self.port.command(self.peer, command)?;
                }
                Step::NeedBytes(bytes) => {
                    let may = self.may_gather(bytes);
                    if may && std::mem::take(&mut self.stopped) {
                        self.port.reader_goes_on(self.peer);
                    }
                    return Ok(may.then_some(bytes));
                }
                // Room that came free since it was asked for says nothing to a link that had not stopped yet.
                Step::NoRoom if !told => {
                    self.port.reader_stops(self.peer);
                    told = true;
                }
                Step::NoRoom => return Ok(None),
            }
        }
    }

    /// What is small beside the buffer it came in does not keep that alive, for nobody counts the buffer.
    fn settle(&self, bytes: Bytes) -> Bytes {
        if bytes.len() < self.chunk / 4 { Bytes::copy_from_slice(&bytes) } else { bytes }
    }

    /// Announces a large message to the hub before it is gathered: all of it at once, so that no two links ever wait for
    /// each other with half a message each. One of unknown size may become as large as any.
    fn may_gather(&self, bytes: usize) -> bool {
        let message = bytes + self.buffer.len();
        if message <= LARGE {
            return true;
        }
        let open_ended = self.decoder.is_open_ended(&self.buffer);
        let bytes = if open_ended { self.port.options().limits.message } else { message as u64 };
        self.port.gather(self.peer, bytes.saturating_add(ropewalk_patterns::MESSAGE_OVERHEAD))
    }

    async fn read(&mut self, needed: usize) -> io::Result<usize> {
        // Room is made as bytes come, never because a length claims them.
        self.buffer.reserve(needed.clamp(1, READ_AT_MOST).max(self.chunk));
        let spare = self.buffer.capacity() - self.buffer.len();
        let read = self.read.read_buf(&mut self.buffer).await?;
        if read == spare {
            self.chunk = (self.chunk * 2).min(READ_AT_MOST);
        } else if read < self.chunk / 8 {
            self.chunk = (self.chunk / 2).max(READ_AT_LEAST);
        }
        Ok(read)
    }

    /// Waits for room in the inbox, letting the peer know meanwhile that we are alive.
    async fn wait_for_room(&mut self) {
        self.stopped = true;
        self.vitals.deaf.store(true, Relaxed);
        if tokio::time::timeout(UNASKED_PONG, self.signals.read.notified()).await.is_err() && self.vitals.answers {
            self.port.unasked_pong(self.peer);
        }
        self.vitals.deaf.store(false, Relaxed);
    }
}

/// Writes what the hub has for the peer.
pub(super) struct Writer<'l> {
    pub(super) port: &'l dyn Port,
    pub(super) peer: Peer,
    pub(super) signals: &'l Signals,
    pub(super) vitals: &'l Vitals,
    pub(super) batch: &'l mut Batch,
    pub(super) write: Write,
}

impl Writer<'_> {
    pub(super) async fn run(mut self) -> DownReason {
        loop {
            if next_batch(self.port, self.peer, self.signals, self.batch).await.is_none() {
                return self.part().await;
            }
            if !self.vitals.always_reads.load(Relaxed) {
                self.vitals.begin(self.batch.tally().messages);
            }
            if let Err(error) = self.write_batch().await {
                return error.into();
            }
            self.port.written(self.peer);
            let plain = self.batch.plain_end;
            self.batch.clear();
            if plain {
                return self.part().await;
            }
        }
    }

    async fn write_batch(&mut self) -> io::Result<()> {
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.batch.unwritten(&mut slices);
            if count == 0 {
                return self.write.flush().await;
            }
            match self.write.write_vectored(slices.get(..count).unwrap_or_default()).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => self.batch.advance(written),
            }
        }
    }

    /// Ends our side of the stream and leaves it to the reader to see the other side's end.
    async fn part(&mut self) -> DownReason {
        if let Err(error) = self.write.shutdown().await {
            return error.into();
        }
        if self.vitals.always_reads.load(Relaxed) {
            tokio::time::sleep(PARTING).await;
            return DownReason::Goodbye;
        }
        // A plain peer has the whole linger to read what was sent to it.
        std::future::pending().await
    }
}
