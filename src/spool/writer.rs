//! The one thread that writes the log.
//!
//! ```text
//! loop { take what has come; give it places and checksums; write; sync if the policy says so; tell; read; tidy up }
//! ```
//! What comes while it writes and syncs is the next group: nobody waits for a timer.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{oneshot, watch};

use super::{
    batch::{Batch, Planned, Stamp},
    cursors::Marks,
    error::SpoolError,
    options::Durability,
    prepare::Prepared,
    read::Unread,
    record::Kind,
    rescue::{Looked, Rescue},
    segment::Segment,
    shared::Shared,
    storage::{File, Storage, is_full, passes, write_all},
    tidy::Going,
    work::{Request, Work},
};
use crate::random;

/// The system is told to write each time that so much has come since, in whole pages.
const WRITEBACK: u64 = 4 << 20;
const PAGE: u64 = 4096;

/// How long to wait before a full disk is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// The segment that is written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) file: Box<dyn File>,
    pub(super) seq_limit: u64,
    /// There is nothing in it but its checkpoint: whatever comes, fits.
    pub(super) fresh: bool,
    /// Where its file ends, as far as it was [made ready](super::ready), or was [used before](super::prepare).
    pub(super) ready: u64,
    /// Up to here the system has begun to bring it to the disk.
    pub(super) begun: u64,
}

/// The log as recovery leaves it: everything in it is synced, and the last segment is new.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) storage: Box<dyn Storage>,
    pub(super) segments: VecDeque<Segment>,
    pub(super) active: Active,
    /// No record was appended later.
    pub(super) now_ms: u64,
}

pub(super) struct Writer {
    pub(super) storage: Box<dyn Storage>,
    pub(super) shared: Arc<Shared>,
    accepted: watch::Sender<u64>,
    /// All of the log; the one that is written last.
    pub(super) segments: VecDeque<Segment>,
    pub(super) active: Active,
    pub(super) prepared: Option<Prepared>,
    pub(super) outbox: Batch,
    /// What is written and not yet accepted, and what it takes of memory.
    unread: Vec<(Unread, usize)>,
    /// The wall clock, as far as it goes forward.
    pub(super) now_ms: u64,
    /// All below was synced, as places and as seqs.
    pub(super) synced_lsn: u64,
    durable: u64,
    unsynced_since: Option<Instant>,
    /// How long to wait for more records to sync together: a small part of what a sync takes.
    patience: Duration,
    pub(super) full: bool,
    /// Something failed that will pass, for want of room or not.
    waits: bool,
    /// The directory could not be synced for the file of the next segment.
    pub(super) half_made: bool,
    /// A head of the next segment may be on the disk, which says where this one ends: nothing comes behind that.
    pub(super) ended: bool,
    /// What cursors did that was taken to be written, that is synced, and that the last whole checkpoint has.
    taken: Marks,
    pub(super) logged: u64,
    pub(super) checkpointed: u64,
    /// Segments at the front that may go.
    pub(super) going: Option<Going>,
    /// Up to this number segments went that the log has had no room to say of that they were settled.
    pub(super) gone_to: Option<u64>,
    checkpoints: Vec<oneshot::Sender<()>>,
    syncs: Vec<oneshot::Sender<()>>,
    forks: Vec<oneshot::Sender<()>>,
    pub(super) stream: [u8; 16],
    /// When to tidy up again, though nothing else is to be done.
    pub(super) tidy_at: Option<Instant>,
    pub(super) rescue: Option<Rescue>,
    pub(super) looked: Looked,
    /// Given back last of all.
    _lock: Box<dyn Send>,
}

impl Writer {
    pub(super) fn new(log: Log, lock: Box<dyn Send>, shared: Arc<Shared>, accepted: watch::Sender<u64>) -> Self {
        let Log { storage, segments, active, now_ms } = log;
        let stream = shared.lock().stream;
        let mut writer = Self {
            storage,
            shared,
            accepted,
            segments,
            active,
            prepared: None,
            outbox: Batch::default(),
            unread: Vec::new(),
            now_ms,
            synced_lsn: 0,
            durable: 0,
            unsynced_since: None,
            patience: Duration::ZERO,
            full: false,
            waits: false,
            half_made: false,
            ended: false,
            taken: Marks::default(),
            logged: 0,
            checkpointed: 0,
            going: None,
            gone_to: None,
            checkpoints: Vec::new(),
            syncs: Vec::new(),
            forks: Vec::new(),
            stream,
            tidy_at: None,
            rescue: None,
            looked: Looked::default(),
            _lock: lock,
        };
        (writer.synced_lsn, writer.durable) = (writer.end_lsn(), writer.written());
        writer.publish();
        writer
    }

    /// Writes until the spool is closed or fails.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _at_last = EndsAnyway(Arc::clone(&shared));
        loop {
            let Work { batch, requests, closing } = shared.wait(self.outbox.is_empty(), self.deadline(), self.patience);
            if let Some((batch, marks)) = batch {
                (self.outbox, self.taken) = (batch, marks);
            }
            let (closers, requests): (Vec<_>, Vec<_>) =
                requests.into_iter().partition(|request| matches!(request, Request::Close(_)));
            let result = self.turn(requests).and_then(|()| if closing { self.seal() } else { Ok(()) });
            if let Err(error) = result {
                tracing::debug!(%error, "the spool has failed");
                // The directory is free before it is told, and readers hear that there is no more when they can ask why.
                let readers = self.accepted.clone();
                drop(self);
                shared.end(Some(error));
                drop(readers);
                let failed = || shared.lock().usable();
                answer_closers(closers, failed);
                return;
            }
            if closing {
                drop(self);
                shared.end(None);
                answer_closers(closers, || Ok(()));
                return;
            }
        }
    }

    fn turn(&mut self, requests: Vec<Request>) -> io::Result<()> {
        let mut reads = Vec::new();
        for request in requests {
            match request {
                Request::Checkpoint(reply) => {
                    self.plan_checkpoint();
                    self.checkpoints.push(reply);
                }
                Request::Fork(reply) => self.forks.push(reply),
                Request::Sync(reply) => self.syncs.push(reply),
                Request::Read { from, place, reply } => reads.push((from, place, reply)),
                Request::SeqAt(time_ms, reply) => {
                    // Whoever asked may be gone.
                    let _gone = reply.send(self.seq_at(time_ms));
                }
                Request::Close(_) => {}
            }
        }
        (self.full, self.waits) = (false, false);
        self.write_out().and_then(|()| self.fork()).or_else(|error| self.wait_if_it_passes(error))?;
        if self.sync_is_due() {
            let began = Instant::now();
            self.make_ready()?;
            self.sync()?;
            // Only who syncs each group has reason to wait for it to be complete.
            let always = self.shared.options.durability == Durability::Always;
            self.patience = if always { began.elapsed() / 8 } else { Duration::ZERO };
        }
        self.publish();
        for (from, place, reply) in reads {
            // Whoever asked may be gone.
            let _gone = reply.send(self.read(from, place));
        }
        self.tidy_up().or_else(|error| self.wait_if_it_passes(error))?;
        self.publish();
        Ok(())
    }

    /// A full disk is not a failure: what could not be written waits, and so do those who append.
    fn wait_if_it_passes(&mut self, error: io::Error) -> io::Result<()> {
        self.full |= is_full(&error);
        self.waits = passes(&error);
        if self.waits { Ok(()) } else { Err(error) }
    }

    fn deadline(&self) -> Option<Instant> {
        // What could not be written is tried again: at once, when something was removed for it. A rescue goes on.
        let left = self.waits || !self.outbox.is_empty() || self.rescue.is_some();
        let retry = left.then(|| Instant::now() + if self.waits { RETRY } else { Duration::ZERO });
        let sync = match self.shared.options.durability {
            Durability::Every(every) => self.unsynced_since.and_then(|since| since.checked_add(every)),
            Durability::Always | Durability::Os => None,
        };
        retry.into_iter().chain(sync).chain(self.tidy_at).min()
    }

    fn sync_is_due(&self) -> bool {
        let asked = self.outbox.is_empty() && !(self.syncs.is_empty() && self.checkpoints.is_empty());
        let due = match self.shared.options.durability {
            // What was only settled waits for a record to be synced with.
            Durability::Always => self.durable < self.written(),
            Durability::Every(every) => self.unsynced_since.is_some_and(|since| since.elapsed() >= every),
            Durability::Os => false,
        };
        (asked || due) && self.synced_lsn < self.end_lsn()
    }

    /// Writes what is in the outbox, into as many segments as it takes.
    pub(super) fn write_out(&mut self) -> io::Result<()> {
        self.now_ms = self.now_ms.max(now_ms());
        while let Some(frame) = self.outbox.front() {
            let Some(segment) = self.segments.back_mut() else { return Ok(()) };
            let (at, len, first_seq, kind) = (segment.len, frame.len(), frame.first_seq, frame.kind);
            let room = at + len <= self.shared.options.segment + segment.book || self.active.fresh;
            if self.ended || !room || frame.end_seq() > self.active.seq_limit {
                self.rotate(first_seq)?;
                if kind == Kind::Checkpoint {
                    // The new segment begins with one that says the same, or more.
                    self.outbox.pop();
                }
                continue;
            }
            let &mut Segment { base_lsn, incarnation, salt, .. } = segment;
            let (lsn, synced_lsn, appended_ms) = (base_lsn + at, self.synced_lsn, self.now_ms);
            let bytes = frame.stamp(&Stamp { lsn, synced_lsn, incarnation, salt, appended_ms });
            write_all(&*self.active.file, bytes, at)?;
            segment.len += len;
            segment.end_seq = segment.end_seq.max(frame.end_seq());
            let seqs = first_seq..frame.end_seq();
            if let Some(frame) = self.outbox.pop()
                && kind.has_records()
            {
                let cost = frame.room() + size_of::<Unread>();
                let what = (incarnation, appended_ms, frame.into_body());
                self.unread.push((Unread::new(segment, (at, len), seqs, what), cost));
            }
            self.active.fresh = false;
            self.begin_writeback();
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// What waits for a sync is on its way to the disk meanwhile, so that the end of a segment has less to wait for.
    fn begin_writeback(&mut self) {
        // A page that is being written may not be written to.
        let (begun, end) = (self.active.begun, self.segments.back().map_or(0, |last| last.len) / PAGE * PAGE);
        if end >= begun + WRITEBACK {
            self.active.file.begin_writeback(begun..end);
            self.active.begun = end;
        }
    }

    /// After an error nothing is synced again: the writer ends, and with it the file.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.synced_lsn < self.end_lsn() {
            self.active.file.sync_data().map_err(for_good)?;
        }
        (self.synced_lsn, self.durable) = (self.end_lsn(), self.written());
        self.active.begun = self.segments.back().map_or(0, |last| last.len);
        if self.outbox.is_empty() && self.taken.whole <= self.checkpointed {
            self.logged = self.logged.max(self.taken.changes);
        }
        self.unsynced_since = None;
        Ok(())
    }

    pub(super) fn publish(&mut self) {
        let accepted = match self.shared.options.durability {
            Durability::Always => self.durable,
            Durability::Every(_) | Durability::Os => self.written(),
        };
        let bytes = self.held();
        let book = self.segments.iter().map(|segment| segment.book).sum();
        let readable = self.unread.last().is_some_and(|(last, _)| last.end_seq <= accepted);
        let wakers = self.shared.publish(|state| {
            if readable {
                // Under the same lock: who hears that it is accepted finds it, and who finds it can settle it.
                self.shared.tail.push(self.unread.drain(..));
            }
            state.accepted = state.accepted.max(accepted);
            state.durable = state.durable.max(self.durable);
            (state.held, state.book) = (bytes, book);
            state.full = self.full;
            let begins = |segment: &Segment| (segment.base_seq, segment.since_ms);
            let ends = |segments: &VecDeque<Segment>| {
                (segments.len(), segments.front().map(begins), segments.back().map(begins))
            };
            // They come at the end and go from the front only.
            if (state.segments.len(), state.segments.first().copied(), state.segments.last().copied())
                != ends(&self.segments)
            {
                state.segments.clear();
                state.segments.extend(self.segments.iter().map(begins));
            }
        });
        // Each is a system call, and the message goes on with those who read.
        self.accepted.send_if_modified(|told| std::mem::replace(told, accepted.max(*told)) < accepted);
        wakers.into_iter().for_each(Waker::wake);
        if self.outbox.is_empty() && self.synced_lsn == self.end_lsn() {
            self.checkpoints.drain(..).chain(self.syncs.drain(..)).for_each(|reply| {
                let _gone = reply.send(());
            });
        }
    }

    /// Begins a segment of another stream.
    fn fork(&mut self) -> io::Result<()> {
        if self.forks.is_empty() {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.stream, random::stream());
        if let Err(error) = self.rotate(self.coming()) {
            self.stream = before;
            return Err(error);
        }
        self.shared.lock().stream = self.stream;
        self.forks.drain(..).for_each(|reply| {
            let _gone = reply.send(());
        });
        Ok(())
    }

    pub(super) fn plan_checkpoint(&mut self) {
        let (table, marks) = self.table();
        self.outbox.push(Planned::new(Kind::Checkpoint, self.coming(), 0, &table));
        (self.taken, self.checkpointed) = (marks, marks.changes);
    }

    /// All cursors, and what that includes.
    pub(super) fn table(&self) -> (Vec<u8>, Marks) {
        let cursors = &self.shared.lock().cursors;
        (cursors.put(), cursors.marks())
    }

    /// Puts what cursors did until now into the log, and syncs it.
    pub(super) fn log_settled(&mut self) -> io::Result<()> {
        // With what waits for room already, no more is laid behind it each time.
        self.write_out()?;
        // Not behind the records that came meanwhile, which are written later.
        let (settled, marks) = self.shared.lock().take_settled(self.coming());
        if marks.whole > self.checkpointed {
            self.plan_checkpoint();
        } else {
            self.outbox.extend(settled);
            self.taken = marks;
        }
        self.write_out()?;
        self.sync()
    }

    /// Ends the log so that the next opening knows that nothing is missing.
    fn seal(&mut self) -> io::Result<()> {
        if !self.outbox.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Some(rescue) = self.rescue.take() {
            self.give_up(&rescue)?;
        }
        self.sync()?;
        if self.taken.whole > self.checkpointed {
            self.plan_checkpoint();
        }
        self.outbox.push(Planned::new(Kind::Seal, self.coming(), 0, &[]));
        self.write_out()?;
        self.sync()?;
        // The next opening would do it as well.
        let _gone = self.give_back_prepared();
        Ok(())
    }

    /// What the log takes of the disk, with what is on its way there.
    pub(super) fn held(&self) -> u64 {
        self.segments.iter().map(Segment::on_disk).sum::<u64>() + self.outbox.len()
    }

    pub(super) fn end_lsn(&self) -> u64 {
        self.segments.back().map_or(0, |last| last.base_lsn + last.len)
    }

    /// One past the last seq that was written.
    pub(super) fn written(&self) -> u64 {
        self.segments.back().map_or(0, |last| last.end_seq)
    }

    /// The seq that the next record in the log has: behind all that is on its way there.
    pub(super) fn coming(&self) -> u64 {
        self.outbox.back().map_or(self.written(), |last| last.end_seq().max(self.written()))
    }
}

/// A sync that has failed is not waited for, whatever the reason: a disk that is full only then has taken bytes that it
/// does not have.
pub(super) fn for_good(error: io::Error) -> io::Error {
    io::Error::other(error.to_string())
}

/// What is to go and is not there is gone.
pub(super) fn if_it_is_gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Nobody waits for ever for a writer that has panicked, in a [`Storage`] that is not ours.
struct EndsAnyway(Arc<Shared>);

impl Drop for EndsAnyway {
    fn drop(&mut self) {
        self.0.end(Some(io::Error::other("the thread of the spool has panicked")));
    }
}

fn answer_closers(closers: Vec<Request>, result: impl Fn() -> Result<(), SpoolError>) {
    for closer in closers {
        if let Request::Close(reply) = closer {
            let _gone = reply.send(result());
        }
    }
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
