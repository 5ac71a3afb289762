//! The spool: a log of messages in a directory, that survives crashes and says so when a disk does not.
//!
//! ```
//! use ropewalk::spool::{Durability, Spool};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! let (spool, report) = Spool::open(directory.path().join("orders"), Durability::Always).await?;
//! assert!(report.clean);
//! spool.cursor("billing").await?;
//!
//! let seqs = spool.append(["one coat", "two hats"]).await?; // it is on the disk now
//!
//! let mut reader = spool.read_from(spool.settled("billing").unwrap());
//! let record = reader.next().await?;
//! assert_eq!((record.seq, record.message.text()?), (seqs.start, "one coat"));
//! spool.settle("billing", record.seq..record.seq + 1)?; // done with for good
//! spool.close().await?;
//! # Ok(()) }
//! ```
//!
//! # The log
//! ```text
//!      1.seg                      2.seg                      3.seg                        4.seg
//!   +------+------+-----+----+ +------+------+-----+----+ +------+------+-----+------   +- - -
//!   | head | chkp | data| .. | | head | chkp | data| .. | | head | chkp | data| settl   | prepared
//!   +------+------+-----+----+ +------+------+-----+----+ +------+------+-----+------   +- - -
//!   goes when all in it         a head says how the one      written; a frame says how
//!   is settled                  before it ended              far the log had been synced
//! ```
//! *Segments* are files; each is synced before the head of the next is written. A *frame* is what one group commit wrote:
//! its records under one checksum (CRC-32C), its own place in the log, and `synced_lsn`, up to where the log had been
//! synced when the frame was made. A *cursor* is a named reader's account of what it has settled; it is kept in the same
//! log, as ranges between records and as a whole at the beginning of each segment.
//!
//! # The life of a record
//! 1. [`Spool::append`] waits for room (in memory, and within the quota), gives the record its seq, and puts it into the
//!    open batch.
//! 2. The writer, a thread of its own, takes the batch, whatever came while it was busy, writes it, and syncs it when the
//!    [`Durability`] says so. Then the senders of the whole group go on.
//! 3. [`Reader`]s get it: those that keep up from memory, where the newest records stay; the others from the disk.
//! 4. Every cursor [settles](Spool::settle) it. That is written with the next records, and never synced for itself: a
//!    crash may bring a record again, but loses none.
//! 5. When all records of the first segment are settled by all cursors, and nothing [retains](Retain) it, its file is
//!    removed, or becomes that of the next segment: where readers keep up the log goes round in a few files, which is
//!    faster than making new ones. (Its old bytes stand there until others take their place.) A segment further behind, of which little is still wanted, is rewritten with only that: a slow cursor
//!    keeps what it has not settled, and not everything since. What [`WhenFull`] says may be dropped is named to
//!    everybody who has not got it.
//!
//! # Recovery
//! Every opening begins a new segment; nothing is appended to what a crash left. At a place without a whole frame, a
//! later frame decides: if one says that the log had been synced beyond that place, the disk has lost something, and this
//! is [damage](Damage), named and never passed over in silence; if none does, it is the torn end of what nobody was told
//! to be synced. Whole frames that nothing proves to be synced are copied into the new segment and synced before anybody
//! sees them. No seq is ever given twice, also not those that only a reader of an unsynced log has seen.
//!
//! What cannot be seen here: a disk that lost the very last group it had confirmed, with nothing behind it. It looks like
//! a torn end, and mostly the report says so ([`RecoveryReport::torn_bytes`]).
//!
//! # When the disk fails
//! A failed write or sync ends the spool: nobody can know what the disk has. [`SpoolError::Failed`] says so until it is
//! opened again. A full disk is not a failure: appending waits until there is room, and reading and settling go on.

mod answers;
mod batch;
mod begin;
mod cursors;
mod error;
mod notes;
mod options;
mod prepare;
mod read;
mod reader;
mod ready;
mod record;
mod recover;
mod rescue;
mod segment;
mod shared;
mod stats;
mod storage;
mod tail;
mod tidy;
mod work;
mod writer;

use std::{
    fmt,
    ops::Range,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use ropewalk_patterns::{Message, ranges::Ranges};
use tokio::sync::{oneshot, watch};

pub use self::{
    cursors::CursorStats,
    error::{CursorError, Damage, OpenError, ReadError, SpoolError},
    options::{Durability, OnDamage, Retain, SpoolOptions, WhenFull},
    read::Record,
    reader::Reader,
    recover::RecoveryReport,
    stats::{SpoolStats, Verified},
    storage::{Disk, File, Storage},
};
use self::{read::Item, shared::Shared, work::Request, writer::Writer};

/// A log of messages in a directory. A handle: clone it and share it; see the [module](self) for how it works.
///
/// When the last handle and the last [`Reader`] are dropped it is closed in the background.
#[derive(Clone)]
pub struct Spool {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    accepted: watch::Receiver<u64>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Spool {
    /// Opens the log in this directory, or begins one.
    ///
    /// It waits up to [`lock_timeout`](SpoolOptions::lock_timeout) for another owner to go away.
    ///
    /// # Cancel safety
    /// Dropping the future closes the spool again as soon as it is open.
    ///
    /// # Errors
    /// When another has it open, the log is damaged, or the system refuses.
    pub async fn open(
        directory: impl AsRef<Path>,
        options: impl Into<SpoolOptions>,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        Self::open_on(Disk::new(directory.as_ref()), options).await
    }

    /// The same on another [`Storage`].
    ///
    /// # Errors
    /// When another has it open, the log is damaged, or the storage refuses.
    pub async fn open_on(
        storage: impl Storage + 'static,
        options: impl Into<SpoolOptions>,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let (options, directory) = (options.into(), storage.place());
        let (reply, answer) = oneshot::channel();
        let thread = std::thread::Builder::new().name("ropewalk spool".into());
        let begun = thread.spawn(move || run(Box::new(storage), options, reply));
        begun.map_err(|error| OpenError::Io { directory: directory.clone(), error })?;
        let gone =
            |_| OpenError::Io { directory, error: std::io::Error::other("the thread of the spool has panicked") };
        answer.await.map_err(gone)?
    }

    /// Which stream of messages this is: chosen when the log was begun, or [forked](Self::fork).
    pub fn stream(&self) -> [u8; 16] {
        self.shared().lock().stream
    }

    /// Makes the log another stream, when it has a twin elsewhere, because one of the two directories is a copy of the
    /// other: messages of both would be taken for each other. All records count as of the new stream from now on, also
    /// those that are there already; their seqs and incarnations stay.
    ///
    /// # Cancel safety
    /// Dropping the future may have made it another stream.
    ///
    /// # Errors
    /// When the spool is closed or the disk fails. Then it may be the one or the other.
    pub async fn fork(&self) -> Result<(), SpoolError> {
        self.shared().ask(Request::Fork).await
    }

    /// Which opening this is: a count in the upper half, a random number in the lower.
    pub fn incarnation(&self) -> u64 {
        self.handle.shared.incarnation
    }

    /// Adds messages to the log, and returns their seqs when they are as durable as the policy says.
    ///
    /// It waits while the quota is used up or the disk is full. Messages given together stand together, but a crash in
    /// the midst of it may leave the first of them.
    ///
    /// # Cancel safety
    /// Dropping the future may have added all of the messages, or none.
    ///
    /// # Errors
    /// When a message is too large, the spool is closed, or the disk fails. Then the messages may be in the log or not.
    pub async fn append<M: Into<Message>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<Range<u64>, SpoolError> {
        let messages: Vec<Message> = messages.into_iter().map(Into::into).collect();
        if messages.is_empty() {
            let state = self.shared().lock();
            return state.usable().map(|()| state.next_seq..state.next_seq);
        }
        let (seqs, ()) = self.shared().accept(&messages, |_| ()).await?;
        self.shared().reached(seqs.end).await?;
        Ok(seqs)
    }

    /// The first half of [`append`](Self::append): takes the messages in, once there is room.
    ///
    /// `numbered` is told their seqs before anybody can read them. It must be short, and not ask the spool anything.
    pub(crate) async fn accept<R>(
        &self,
        messages: &[Message],
        numbered: impl FnOnce(Range<u64>) -> R,
    ) -> Result<(Range<u64>, R), SpoolError> {
        self.shared().accept(messages, numbered).await
    }

    /// The second half: returns when all below this seq is as durable as the policy says.
    pub(crate) async fn reached(&self, end: u64) -> Result<(), SpoolError> {
        self.shared().reached(end).await
    }

    /// Returns when all that was accepted before has been synced, whatever the policy.
    ///
    /// # Errors
    /// When the spool is closed or the disk fails.
    pub async fn sync(&self) -> Result<(), SpoolError> {
        self.shared().ask(Request::Sync).await
    }

    /// The seq that the next record will have.
    pub fn next_seq(&self) -> u64 {
        self.shared().lock().next_seq
    }

    /// All records below this seq are as durable as the policy says.
    pub fn accepted(&self) -> u64 {
        self.shared().lock().accepted
    }

    /// All records below this seq have been synced.
    pub fn durable(&self) -> u64 {
        self.shared().lock().durable
    }

    /// Reads the records from this seq on, in their order, and then those that come. Records that all cursors have
    /// settled may be left out.
    pub fn read_from(&self, seq: u64) -> Reader {
        Reader::new(self.clone(), seq, self.handle.accepted.clone())
    }

    /// The first seq that was appended at this time or later; if none was, the next to be accepted. It goes by
    /// [`Record::appended_ms`], and reads the heads of a segment's frames for it.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    ///
    /// # Errors
    /// When the disk fails or the spool is closed.
    pub async fn seq_at(&self, time: SystemTime) -> Result<u64, ReadError> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Rounded up: what was appended before in the same millisecond is not meant.
        let time_ms = u64::try_from(since.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        self.read(|reply| Request::SeqAt(time_ms, reply)).await
    }

    /// Makes a cursor that has settled nothing of what is in the log; one that is there stays as it is. It returns when
    /// that has been synced: from then on nothing is removed that this cursor has not settled.
    ///
    /// # Cancel safety
    /// Dropping the future may have made it.
    ///
    /// # Errors
    /// When the name is none, there are too many cursors, or the spool is closed or fails.
    pub async fn cursor(&self, name: &str) -> Result<(), CursorError> {
        let new = {
            let mut state = self.shared().lock();
            state.usable().map_err(|_| CursorError::Closed)?;
            state.cursors.add(name)?
        };
        if new {
            return self.checkpoint().await;
        }
        // Another may be just making it.
        self.sync().await.map_err(|_| CursorError::Closed)
    }

    /// Forgets a cursor: nothing is kept for it any more.
    ///
    /// # Cancel safety
    /// Dropping the future may have forgotten it.
    ///
    /// # Errors
    /// When there is none of this name, or the spool is closed or fails.
    pub async fn forget(&self, name: &str) -> Result<(), CursorError> {
        {
            let mut state = self.shared().lock();
            state.usable().map_err(|_| CursorError::Closed)?;
            if !state.cursors.forget(name) {
                return Err(CursorError::Unknown);
            }
        }
        self.checkpoint().await
    }

    async fn checkpoint(&self) -> Result<(), CursorError> {
        self.shared().ask(Request::Checkpoint).await.map_err(|_| CursorError::Closed)
    }

    /// This cursor is done with these records, whatever their order. Seqs that were not accepted yet are left out.
    ///
    /// It never waits. A crash may undo it.
    ///
    /// # Errors
    /// When there is no such cursor, what it has settled has too many gaps, or the spool is closed.
    pub fn settle(&self, cursor: &str, seqs: Range<u64>) -> Result<(), CursorError> {
        self.shared().settle(cursor, [seqs])
    }

    /// The same for many at once.
    ///
    /// # Errors
    /// As of [`settle`](Self::settle); those before the first that failed are settled.
    pub fn settle_many(&self, cursor: &str, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<(), CursorError> {
        self.shared().settle(cursor, ranges)
    }

    /// Remembers for this cursor how many attempts a record has had, until it settles the record. 0 is no note.
    ///
    /// It never waits. A crash may undo it. Of a record that is settled or not accepted yet, and beyond 65,536 notes of
    /// a cursor, nothing is remembered.
    ///
    /// # Errors
    /// When there is no such cursor, or the spool is closed.
    pub fn note(&self, cursor: &str, seq: u64, attempts: u32) -> Result<(), CursorError> {
        self.shared().note(cursor, [(seq, attempts)])
    }

    /// The same for many at once: seqs and attempts.
    ///
    /// # Errors
    /// When there is no such cursor, or the spool is closed.
    pub fn note_many(&self, cursor: &str, notes: impl IntoIterator<Item = (u64, u32)>) -> Result<(), CursorError> {
        self.shared().note(cursor, notes)
    }

    /// How many attempts were [noted](Self::note) for this record: 0, unless there is a note.
    pub fn noted(&self, cursor: &str, seq: u64) -> u32 {
        self.shared().lock().cursors.noted(cursor, seq).unwrap_or(0)
    }

    /// How many records this cursor has missed that nobody was told of yet; from now on somebody was. It stands in the log
    /// with the next segment, or the end: after a crash the same may be told again.
    pub(crate) fn take_missed(&self, cursor: &str) -> u64 {
        self.shared().lock().cursors.take_missed(cursor)
    }

    /// All seqs that have no record now.
    pub(crate) fn holes(&self) -> Ranges {
        self.shared().lock().cursors.holes().clone()
    }

    /// Whoever reads for this cursor was told of so many.
    pub(crate) fn tell_missed(&self, cursor: &str, records: u64) {
        self.shared().lock().cursors.tell_missed(cursor, records);
    }

    /// How many of these records this cursor has not settled.
    pub(crate) fn unsettled_of(&self, cursor: &str, seqs: Range<u64>) -> u64 {
        self.shared().lock().cursors.unsettled_of(cursor, seqs)
    }

    /// The first seq that this cursor has not settled.
    pub fn settled(&self, cursor: &str) -> Option<u64> {
        self.shared().lock().cursors.floor(cursor)
    }

    /// Whether this cursor has settled this record.
    pub fn is_settled(&self, cursor: &str, seq: u64) -> Option<bool> {
        self.shared().lock().cursors.is_settled(cursor, seq)
    }

    /// The spool as it is now.
    pub fn stats(&self) -> SpoolStats {
        let state = self.shared().lock();
        let time_of = |seq| {
            let index = state.segments.partition_point(|(base_seq, _)| *base_seq <= seq);
            state.segments.get(index.saturating_sub(1)).map_or(0, |(_, since_ms)| *since_ms)
        };
        SpoolStats {
            seqs: state.segments.first().map_or(0, |(base_seq, _)| *base_seq)..state.next_seq,
            accepted: state.accepted,
            durable: state.durable,
            bytes: state.held,
            segments: state.segments.len(),
            full: state.full,
            cursors: state.cursors.stats(state.accepted, time_of),
        }
    }

    /// Whether a write or sync has failed: nothing is accepted any more.
    pub fn is_failed(&self) -> bool {
        self.shared().lock().failed.is_some()
    }

    /// Returns when the spool has failed or was closed, and says which.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn failed(&self) -> SpoolError {
        let mut ended = self.shared().ended.subscribe();
        // The sender is in what this handle shares.
        let _gone = ended.wait_for(|ended| *ended).await;
        self.shared().lock().usable().err().unwrap_or(SpoolError::Closed)
    }

    /// Reads the whole log and checks it. Appending goes on meanwhile.
    ///
    /// # Errors
    /// When the disk fails or the spool is closed. Damage is no error here but what is looked for.
    pub async fn verify(&self) -> Result<Verified, ReadError> {
        self.verify_with(|_| ()).await
    }

    /// The same, saying after each piece how much was found so far.
    ///
    /// # Errors
    /// When the disk fails or the spool is closed.
    pub async fn verify_with(&self, mut found: impl FnMut(&Verified)) -> Result<Verified, ReadError> {
        let (mut verified, mut place) = (Verified::default(), None);
        loop {
            let chunk = self.read(|reply| Request::Read { from: 0, place, reply }).await?;
            for item in chunk.items {
                match item {
                    Item::Records(mut unread) => {
                        while let Some(record) = unread.next(0) {
                            match record {
                                Ok(record) => {
                                    verified.records += 1;
                                    verified.bytes += record.message.bytes();
                                }
                                Err(damage) => verified.damage.push(damage),
                            }
                        }
                    }
                    Item::Damaged(damage) => verified.damage.push(damage),
                    Item::Missed(..) => {}
                }
            }
            found(&verified);
            if chunk.end {
                return Ok(verified);
            }
            place = chunk.next;
        }
    }

    async fn read<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<std::io::Result<T>>) -> Request,
    ) -> Result<T, ReadError> {
        self.shared().ask(request).await.map_err(|_| ReadError::Closed)?.map_err(ReadError::Io)
    }

    /// Closes the spool for all its handles, once what was accepted is written and synced. The directory is free then.
    ///
    /// # Cancel safety
    /// Dropping the future lets it go on in the background.
    ///
    /// # Errors
    /// When it was closed before, or the disk fails.
    pub async fn close(&self) -> Result<(), SpoolError> {
        self.shared().ask(Request::Close).await?
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

type Opened = Result<(Spool, RecoveryReport), OpenError>;

/// The life of the spool's thread: recover, tell, write.
fn run(mut storage: Box<dyn Storage>, options: SpoolOptions, reply: oneshot::Sender<Opened>) {
    let opened = recover::lock(&mut *storage, &options).and_then(|lock| {
        let recovered = recover::recover(storage, &options)?;
        Ok((lock, recovered))
    });
    let (lock, recovered) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let _gone = reply.send(Err(error));
            return;
        }
    };
    let recover::Recovered { log, stream, incarnation, cursors, report } = recovered;
    let shared = Arc::new(Shared::new(options, stream, incarnation, cursors, report.next_seq));
    let (tell, accepted) = watch::channel(report.next_seq);
    let writer = Writer::new(log, lock, Arc::clone(&shared), tell);
    let spool = Spool { handle: Arc::new(Handle { shared, accepted }) };
    // If nobody waits for it any more, this drops the only handle, and so closes it.
    let _gone = reply.send(Ok((spool, report)));
    writer.run();
}
