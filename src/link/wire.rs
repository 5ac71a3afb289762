//! The stream of a link, read and written by whoever gets to it first: the application that sends or waits, or the
//! link's task. Each hop from task to task that this saves is a wake-up saved, and often a thread's.
//!
//! What is half read or half written is kept here, never in a future. Who reads takes the lock of the reading half, and
//! what came is in the inbox before the lock is given back; likewise for writing.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use ropewalk_patterns::{
    MESSAGE_OVERHEAD, Misbehaved, Peer,
    zmtp::{Decoder, Limits, Room, Step},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::coop::{has_budget_remaining, poll_proceed},
};

use super::{
    Vitals,
    patience::{Look, MUCH, Patience, Then, after_the_others},
};
use crate::{
    events::DownReason,
    hub::{Batch, Chunk, Inline, Next, Port, Signals},
    transport::{Read, ReadHalf, Write},
};

/// The read buffer grows from the first to the second as reads fill it.
const READ_AT_LEAST: usize = 16 << 10;
const READ_AT_MOST: usize = 256 << 10;

/// A message beyond this size is announced to the hub before it is gathered.
const LARGE: usize = 64 << 10;

/// Frames given to the kernel in one call.
const SLICES: usize = 64;

/// Both halves of a stream, and what is known of the peer's life.
pub(super) struct Wire {
    pub(super) vitals: Vitals,
    /// The application reads, and the task does not. Looked at under the reader's lock, so that only one of them is the
    /// one who is woken when something comes.
    leased: AtomicBool,
    /// The application has read since somebody last looked.
    polled: AtomicBool,
    reader: Mutex<Reader>,
    writer: Mutex<Writer>,
}

/// What a half needs to act on what it finds.
#[derive(Clone, Copy)]
pub(super) struct Side<'l> {
    pub(super) port: &'l dyn Port,
    pub(super) peer: Peer,
}

/// What the task found when it read.
#[derive(Debug)]
pub(super) enum Came {
    /// Something that the hub knows of by now.
    Something,
    /// There is no room for what is at hand.
    NoRoom,
    /// The end of the stream.
    End,
    /// The application reads.
    Leased,
}

/// What came of writing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrote {
    /// There is nothing more to write, and who adds something is told so.
    All,
    /// All goodbyes are said, and answered if they can be.
    Parted,
}

struct Reader {
    /// None once the link has ended.
    stream: Option<Read>,
    buffer: BytesMut,
    decoder: Decoder,
    chunk: usize,
    /// Bytes to read before there is anything new to decode; `None` if there is something.
    needed: Option<usize>,
    /// There is nothing more to read: the stream has ended, or cannot be followed.
    over: bool,
    /// It waited for room and has not gone on yet.
    stopped: bool,
    /// What was taken out of the stream last waits for room in the socket's budget.
    overdue: bool,
    patience: Patience,
}

struct Writer {
    /// None once the link has ended.
    stream: Option<Write>,
    batch: Batch,
    /// The batch is not wholly written.
    writing: bool,
    parted: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire {
    pub(super) fn new(read: Read, write: Write, buffer: BytesMut, limits: Limits, vitals: Vitals) -> Self {
        let reader = Reader {
            stream: Some(read),
            buffer,
            decoder: Decoder::new(limits),
            chunk: READ_AT_LEAST,
            needed: None,
            over: false,
            stopped: false,
            overdue: false,
            patience: Patience::default(),
        };
        let writer = Writer { stream: Some(write), batch: Batch::default(), writing: false, parted: false };
        Self {
            vitals,
            leased: AtomicBool::new(false),
            polled: AtomicBool::new(false),
            reader: Mutex::new(reader),
            writer: Mutex::new(writer),
        }
    }

    /// Reads for the task, unless the application does.
    pub(super) fn poll_read(&self, side: Side<'_>, cx: &mut Context<'_>) -> Poll<Result<Came, DownReason>> {
        let mut reader = lock(&self.reader);
        if reader.over {
            // The application has met the end; the link is told to stop.
            return Poll::Pending;
        }
        if self.leased.load(Acquire) {
            return Poll::Ready(Ok(Came::Leased));
        }
        reader.patience.sleep();
        reader.poll(side, &self.vitals, false, cx)
    }

    /// Writes for the task.
    pub(super) fn poll_write(&self, side: Side<'_>, cx: &mut Context<'_>) -> Poll<io::Result<Wrote>> {
        lock(&self.writer).poll(side, &self.vitals, cx, usize::MAX)
    }

    /// Ends our side of the stream.
    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut lock(&self.writer).stream {
            Some(stream) => pin!(stream.shutdown()).poll(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Whether the application reads.
    pub(super) fn is_leased(&self) -> bool {
        self.leased.load(Relaxed)
    }

    /// Whether the application has read since this was last asked.
    pub(super) fn was_polled(&self) -> bool {
        self.polled.swap(false, Relaxed)
    }

    /// Nothing has come for a while: what a burst has left of buffers is let go.
    pub(super) fn rest(&self) {
        let mut reader = lock(&self.reader);
        if reader.buffer.is_empty() {
            reader.buffer = BytesMut::new();
            reader.chunk = READ_AT_LEAST;
        }
        drop(reader);
        lock(&self.writer).batch.rest();
    }

    /// Both halves of the stream, of a link that is not to be.
    pub(super) fn take(&self) -> Option<(Read, Write)> {
        let read = lock(&self.reader).stream.take();
        read.zip(lock(&self.writer).stream.take())
    }

    /// The same, of a link that has ended, if nothing is half written: whoever would write has nothing to write to then.
    pub(super) fn take_whole(&self) -> Option<(Read, Write)> {
        let write = {
            let mut writer = lock(&self.writer);
            if writer.writing && writer.batch.is_begun() { None } else { writer.stream.take() }
        };
        lock(&self.reader).stream.take().zip(write)
    }

    /// The link has ended: nothing is read or written any more. What was not wholly written.
    pub(super) fn end(&self) -> Batch {
        let mut reader = lock(&self.reader);
        reader.stream = None;
        reader.buffer = BytesMut::new();
        drop(reader);
        let mut writer = lock(&self.writer);
        writer.stream = None;
        writer.writing = false;
        std::mem::take(&mut writer.batch)
    }
}

impl Inline for Wire {
    fn write_now(&self, port: &dyn Port, peer: Peer) -> bool {
        let Ok(mut writer) = self.writer.try_lock() else { return false };
        // What was begun is finished by the task: it may wait for the stream, and must stay the one who is woken.
        if writer.writing {
            return false;
        }
        // What the kernel does not take is left to the task, which meets an error again, too.
        let mut nobody = Context::from_waker(Waker::noop());
        matches!(writer.poll(Side { port, peer }, &self.vitals, &mut nobody, 1), Poll::Ready(Ok(Wrote::All)))
    }

    fn read_now(&self, port: &dyn Port, signals: &Signals, cx: &mut Context<'_>) -> bool {
        let side = Side { port, peer: signals.peer };
        let (mut reader, polled) = loop {
            // The task holds it no longer than one read takes, and what that lets it write without waiting.
            let mut reader = lock(&self.reader);
            if reader.stream.is_none() || reader.over || !self.leased.load(Acquire) {
                return false;
            }
            self.polled.store(true, Relaxed);
            let polled = reader.poll(side, &self.vitals, true, cx);
            if polled.is_ready() {
                break (reader, polled);
            }
            // Who sleeps is woken by the driver, and by nobody else.
            let asked = reader.patience.next() == Look::Driver;
            let then = reader.patience.found_nothing(port.options().busy_poll);
            let turn_is_over = then == Then::LookAfterTheOthers || !has_budget_remaining();
            if turn_is_over || (then == Then::Sleep && asked) {
                drop(reader);
                if turn_is_over {
                    after_the_others(cx);
                }
                return false;
            }
        };
        match polled {
            Poll::Pending => {}
            Poll::Ready(Ok(Came::Something)) => return true,
            Poll::Ready(Ok(Came::NoRoom | Came::Leased)) => {
                self.leased.store(false, Release);
                signals.read.notify_one();
            }
            Poll::Ready(Ok(Came::End)) => {
                reader.over = true;
                signals.end(if port.ended(side.peer) { DownReason::Goodbye } else { DownReason::Ended });
            }
            Poll::Ready(Err(reason)) => {
                reader.over = true;
                signals.end(reason);
            }
        }
        false
    }

    fn lease(&self, leased: bool) {
        self.leased.store(leased, Release);
    }
}

impl Reader {
    /// Reads and takes in what came, until there was something. Who looks has to ask the patience what comes next.
    fn poll(
        &mut self,
        side: Side<'_>,
        vitals: &Vitals,
        looks: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Came, DownReason>> {
        loop {
            if let Some(needed) = self.needed {
                match ready!(self.poll_fill(needed, looks, cx))? {
                    0 => return Poll::Ready(Ok(Came::End)),
                    _ => vitals.hear(),
                }
                self.needed = None;
            }
            let mut came = false;
            self.needed = self.decode(side, vitals, &mut came)?;
            if self.needed.is_none() {
                self.stopped = true;
                return Poll::Ready(Ok(Came::NoRoom));
            }
            if came {
                return Poll::Ready(Ok(Came::Something));
            }
        }
    }

    fn poll_fill(&mut self, needed: usize, looks: bool, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(0)) };
        make_room(&mut self.buffer, needed.clamp(1, READ_AT_MOST), self.chunk);
        let spare = self.buffer.capacity() - self.buffer.len();
        let at = self.patience.next();
        let read = match at {
            Look::Driver => pin!(stream.read_buf(&mut self.buffer)).poll(cx), // the future keeps nothing between polls
            Look::Socket => {
                let turn = ready!(poll_proceed(cx));
                let looked = look(stream.as_mut(), &mut self.buffer, spare.min(MUCH));
                if looked.is_ready() {
                    turn.made_progress();
                }
                looked
            }
            Look::AfterTheOthers => Poll::Pending,
        };
        let read = match ready!(read) {
            // The end of an encrypted stream that nobody has signed; the goodbyes say whether it was meant.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            read => read?,
        };
        if looks {
            // What the driver knows to have more gives that at once, and a large message is better read to where it stays.
            let left = at == Look::Driver && read == spare;
            let may_ask = stream.is_plain() && !left && needed <= MUCH / 4;
            self.patience.came(read, may_ask);
        }
        if read == spare {
            self.chunk = (self.chunk * 2).min(READ_AT_MOST);
        } else if read < self.chunk / 8 {
            self.chunk = (self.chunk / 2).max(READ_AT_LEAST);
        }
        Poll::Ready(Ok(read))
    }

    /// Takes all that is whole out of the buffer; sets `came` if that was anything. How many bytes are needed next;
    /// `None` if there is no room for them.
    fn decode(&mut self, side: Side<'_>, vitals: &Vitals, came: &mut bool) -> Result<Option<usize>, Misbehaved> {
        let Side { port, peer } = side;
        if self.overdue && !port.admit(peer) {
            return Ok(None);
        }
        *came |= std::mem::take(&mut self.overdue);
        let mut told = false;
        loop {
            let Some(room) = port.read_room(peer) else { return Ok(Some(1)) };
            vitals.always_reads.store(room == Room::UNBOUNDED, Relaxed);
            match self.decoder.next(&mut self.buffer, room)? {
                Step::Messages { bytes, tally } => {
                    *came = true;
                    if !port.arrive(peer, Chunk::Encoded(self.kept(bytes)), tally)? {
                        self.overdue = true;
                        return Ok(None);
                    }
                }
                Step::Command(command) => {
                    *came = true;
                    vitals.learn(&command);
                    port.command(peer, command)?;
                }
                Step::NeedBytes(bytes) => {
                    let may = self.may_gather(side, bytes);
                    if may && std::mem::take(&mut self.stopped) {
                        port.reader_goes_on(peer);
                    }
                    return Ok(may.then_some(bytes));
                }
                // Room that came free since it was asked for says nothing to a link that had not stopped yet.
                Step::NoRoom if !told => {
                    port.reader_stops(peer);
                    told = true;
                }
                Step::NoRoom => return Ok(None),
            }
        }
    }

    /// What is small beside the buffer it came in does not keep that alive, for nobody counts the buffer.
    fn kept(&self, bytes: Bytes) -> Bytes {
        if bytes.len() < self.chunk / 4 { Bytes::copy_from_slice(&bytes) } else { bytes }
    }

    /// Announces a large message to the hub before it is gathered: all of it at once, so that no two links ever wait for
    /// each other with half a message each. One of unknown size may become as large as any.
    fn may_gather(&self, side: Side<'_>, bytes: usize) -> bool {
        let message = bytes + self.decoder.aside() + self.buffer.len();
        if message <= LARGE {
            return true;
        }
        let open_ended = self.decoder.is_open_ended(&self.buffer);
        // A limit of all 64 bits is none, and sums stay within them.
        let bytes = if open_ended { side.port.options().limits.message.min(u64::MAX / 4) } else { message as u64 };
        side.port.gather(side.peer, bytes.saturating_add(MESSAGE_OVERHEAD))
    }
}

thread_local! {
    /// What is read into has to have been written to, and most looks find nothing. Each thread that looks keeps one.
    static WRITTEN: RefCell<Box<[u8]>> = RefCell::new(vec![0; MUCH].into());
}

/// Reads what the socket has, though the driver has not said that there is anything.
fn look(stream: &mut dyn ReadHalf, buffer: &mut BytesMut, at_most: usize) -> Poll<io::Result<usize>> {
    let read = WRITTEN.try_with(|written| -> io::Result<usize> {
        let mut written = written.borrow_mut();
        let read = stream.look(written.get_mut(..at_most).unwrap_or_default())?;
        buffer.extend_from_slice(written.get(..read).unwrap_or_default());
        Ok(read)
    });
    match read {
        Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Poll::Pending
        }
        Ok(read) => Poll::Ready(read),
        // The thread is ending.
        Err(_) => Poll::Pending,
    }
}

/// Room for what is needed next, and for a chunk if that is more. It is made as bytes come, never because a length claims
/// them. What a large message has left of its memory goes: nobody counts it, and a small one would keep all of it.
fn make_room(buffer: &mut BytesMut, needed: usize, chunk: usize) {
    let room = needed.max(chunk);
    buffer.reserve(room);
    if buffer.capacity() > 4 * READ_AT_MOST && buffer.len() + room <= READ_AT_MOST {
        let mut fresh = BytesMut::with_capacity(buffer.len() + room);
        fresh.extend_from_slice(buffer);
        *buffer = fresh;
    }
}

impl Writer {
    /// Writes batch after batch until the hub has none, or so many; if there is another then, it is pending.
    fn poll(
        &mut self,
        side: Side<'_>,
        vitals: &Vitals,
        cx: &mut Context<'_>,
        mut batches: usize,
    ) -> Poll<io::Result<Wrote>> {
        loop {
            if self.parted {
                return Poll::Ready(Ok(Wrote::Parted));
            }
            let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(Wrote::All)) };
            if !self.writing {
                match side.port.take_batch(side.peer, &mut self.batch) {
                    Next::Write => self.writing = true,
                    Next::Sleep => return Poll::Ready(Ok(Wrote::All)),
                    Next::Parted => self.parted = true,
                }
                if self.writing && !vitals.always_reads.load(Relaxed) {
                    vitals.begin(self.batch.tally().messages);
                }
                continue;
            }
            if batches == 0 {
                return Poll::Pending;
            }
            batches -= 1;
            ready!(poll_batch(stream, &mut self.batch, cx))?;
            self.writing = false;
            side.port.written(side.peer);
            self.parted = self.batch.plain_end;
            self.batch.clear();
        }
    }
}

fn poll_batch(stream: &mut Write, batch: &mut Batch, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    loop {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = batch.unwritten(&mut slices);
        if count == 0 {
            return pin!(stream.flush()).poll(cx);
        }
        // The future keeps nothing between polls.
        match ready!(pin!(stream.write_vectored(slices.get(..count).unwrap_or_default())).poll(cx))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => batch.advance(written),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_lets_go_of_what_a_large_message_took() {
        let mut buffer = BytesMut::new();
        for _ in 0..64 {
            make_room(&mut buffer, READ_AT_MOST, READ_AT_LEAST);
            buffer.resize(buffer.len() + READ_AT_MOST, 7);
        }
        let large = buffer.split().freeze();
        // While it is gathered, all of it is needed.
        assert_eq!(large.len(), 64 * READ_AT_MOST);
        drop(large);
        buffer.extend_from_slice(b"begun");
        make_room(&mut buffer, 1, READ_AT_LEAST);
        assert!(buffer.capacity() < 2 * READ_AT_LEAST && buffer == b"begun"[..], "{}", buffer.capacity());
    }
}
