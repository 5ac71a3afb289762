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
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{oneshot, watch};

use super::{
    batch::Batch,
    error::SpoolError,
    options::Durability,
    read,
    record::Kind,
    segment::{self, BODY, Segment, SegmentHead},
    shared::{Request, Shared, Work},
    storage::{File, Storage, is_full, write_all},
};

/// How long to wait before a full disk is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// The segment that is written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) file: Box<dyn File>,
    pub(super) seq_limit: u64,
    /// There is nothing in it but its checkpoint: whatever comes, fits.
    pub(super) fresh: bool,
}

/// The log as recovery leaves it: everything in it is synced, and the last segment is new.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) storage: Box<dyn Storage>,
    pub(super) segments: VecDeque<Segment>,
    pub(super) active: Active,
}

pub(super) struct Writer {
    storage: Box<dyn Storage>,
    shared: Arc<Shared>,
    accepted: watch::Sender<u64>,
    /// All of the log; the one that is written last.
    segments: VecDeque<Segment>,
    active: Active,
    /// The file of the next segment, whose name is durable already.
    prepared: Option<Box<dyn File>>,
    outbox: Batch,
    /// All below was synced, as places and as seqs.
    synced_lsn: u64,
    durable: u64,
    unsynced_since: Option<Instant>,
    /// How long to wait for more records to sync together: a small part of what a sync takes.
    patience: Duration,
    full: bool,
    checkpoints: Vec<oneshot::Sender<()>>,
    syncs: Vec<oneshot::Sender<()>>,
    /// Given back last of all.
    _lock: Box<dyn Send>,
}

impl Writer {
    pub(super) fn new(log: Log, lock: Box<dyn Send>, shared: Arc<Shared>, accepted: watch::Sender<u64>) -> Self {
        let Log { storage, segments, active } = log;
        let mut writer = Self {
            storage,
            shared,
            accepted,
            segments,
            active,
            prepared: None,
            outbox: Batch::default(),
            synced_lsn: 0,
            durable: 0,
            unsynced_since: None,
            patience: Duration::ZERO,
            full: false,
            checkpoints: Vec::new(),
            syncs: Vec::new(),
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
            let Work { batch, requests, closing, pressed } =
                shared.wait(self.outbox.is_empty(), self.deadline(), self.patience);
            if let Some(batch) = batch {
                self.outbox = batch;
            }
            let (closers, requests): (Vec<_>, Vec<_>) =
                requests.into_iter().partition(|request| matches!(request, Request::Close(_)));
            let result = self.turn(requests, pressed).and_then(|()| if closing { self.seal() } else { Ok(()) });
            if let Err(error) = result {
                tracing::debug!(%error, "the spool has failed");
                drop(self);
                shared.end(Some(error));
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

    fn turn(&mut self, requests: Vec<Request>, pressed: bool) -> io::Result<()> {
        let mut reads = Vec::new();
        for request in requests {
            match request {
                Request::Checkpoint(reply) => {
                    let table = self.shared.lock().cursors.put();
                    self.outbox.push_frame(Kind::Checkpoint, self.coming(), 0, &table);
                    self.checkpoints.push(reply);
                }
                Request::Sync(reply) => self.syncs.push(reply),
                Request::Read { from, place, reply } => reads.push((from, place, reply)),
                Request::Close(_) => {}
            }
        }
        self.full = false;
        self.write_out().or_else(|error| self.wait_if_full(error))?;
        if self.sync_is_due() {
            let began = Instant::now();
            self.sync()?;
            self.patience = began.elapsed() / 8;
        }
        self.publish();
        for (from, place, reply) in reads {
            // Whoever asked may be gone.
            let _gone = reply.send(self.read(from, place));
        }
        self.tidy_up(pressed).or_else(|error| self.wait_if_full(error))?;
        self.publish();
        Ok(())
    }

    /// A full disk is not a failure: what could not be written waits, and so do those who append.
    fn wait_if_full(&mut self, error: io::Error) -> io::Result<()> {
        self.full = is_full(&error);
        if self.full { Ok(()) } else { Err(error) }
    }

    fn deadline(&self) -> Option<Instant> {
        let retry = self.full.then(|| Instant::now() + RETRY);
        let sync = match self.shared.options.durability {
            Durability::Every(every) => self.unsynced_since.and_then(|since| since.checked_add(every)),
            Durability::Always | Durability::Os => None,
        };
        retry.into_iter().chain(sync).min()
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
    fn write_out(&mut self) -> io::Result<()> {
        while let Some(next) = self.outbox.front().copied() {
            let options = &self.shared.options;
            let Some(segment) = self.segments.back_mut() else { return Ok(()) };
            let (at, seq_limit, fresh) = (segment.len, self.active.seq_limit, self.active.fresh);
            let (frames, count) =
                self.outbox.stamp(segment.base_lsn + at, self.synced_lsn, segment.incarnation, |ahead, frame| {
                    let room = at + ahead + frame.len() <= options.segment;
                    (room || (fresh && ahead == 0)) && frame.end_seq() <= seq_limit
                });
            if count == 0 {
                self.rotate(next.first_seq)?;
                continue;
            }
            write_all(&*self.active.file, frames, at)?;
            segment.len += frames.len() as u64;
            if let Some(last) = self.outbox.written(count) {
                segment.end_seq = segment.end_seq.max(last.end_seq());
            }
            self.active.fresh = false;
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// Ends the segment and begins the next. What was written is synced before a head says that it is there.
    fn rotate(&mut self, next_seq: u64) -> io::Result<()> {
        self.sync()?;
        let Some(&last) = self.segments.back() else { return Ok(()) };
        let number = last.number + 1;
        let file = match self.prepared.take() {
            Some(file) => file,
            None => self.make(number)?,
        };
        let base_lsn = last.base_lsn + last.len;
        let head = SegmentHead {
            stream: self.shared.stream,
            incarnation: self.shared.incarnation,
            number,
            base_seq: next_seq,
            seq_limit: next_seq + self.shared.options.segment,
            base_lsn,
            prev_number: last.number,
            prev_len: last.len,
            prev_end_seq: last.end_seq,
            created_ms: now_ms(),
        };
        let mut checkpoint = Batch::default();
        checkpoint.push_frame(Kind::Checkpoint, next_seq, 0, &self.shared.lock().cursors.put());
        let mut bytes = head.to_bytes();
        bytes.extend_from_slice(checkpoint.stamp(base_lsn + BODY, base_lsn, head.incarnation, |_, _| true).0);
        let written = write_all(&*file, &bytes, 0);
        if let Err(error) = written {
            // When it was for want of room, it is written anew.
            self.prepared = Some(file);
            return Err(error);
        }
        file.sync_data()?;
        self.active = Active { file, seq_limit: head.seq_limit, fresh: true };
        let len = bytes.len() as u64;
        let incarnation = head.incarnation;
        self.segments.push_back(Segment { number, base_lsn, incarnation, base_seq: next_seq, end_seq: next_seq, len });
        self.synced_lsn = self.end_lsn();
        Ok(())
    }

    fn make(&mut self, number: u64) -> io::Result<Box<dyn File>> {
        let file = self.storage.create(&segment::name(number))?;
        self.storage.sync_directory()?;
        Ok(file)
    }

    /// After an error nothing is synced again: the writer ends, and with it the file.
    fn sync(&mut self) -> io::Result<()> {
        if self.synced_lsn < self.end_lsn() {
            // A disk that is full only now has taken bytes that it does not have: that is no reason to wait, either.
            self.active.file.sync_data().map_err(|error| io::Error::other(error.to_string()))?;
        }
        (self.synced_lsn, self.durable) = (self.end_lsn(), self.written());
        self.unsynced_since = None;
        Ok(())
    }

    fn publish(&mut self) {
        let accepted = match self.shared.options.durability {
            Durability::Always => self.durable,
            Durability::Every(_) | Durability::Os => self.written(),
        };
        let bytes = self.segments.iter().map(|segment| segment.len).sum::<u64>() + self.outbox.len();
        self.shared.publish(|state| {
            state.accepted = state.accepted.max(accepted);
            state.durable = state.durable.max(self.durable);
            state.held = bytes;
            state.full = self.full;
            state.segments = self.segments.len();
            state.first_seq = self.segments.front().map_or(0, |first| first.base_seq);
        });
        self.accepted.send_if_modified(|told| std::mem::replace(told, accepted.max(*told)) < accepted);
        if self.outbox.is_empty() && self.synced_lsn == self.end_lsn() {
            self.checkpoints.drain(..).chain(self.syncs.drain(..)).for_each(|reply| {
                let _gone = reply.send(());
            });
        }
    }

    fn read(&mut self, from: u64, place: Option<read::Place>) -> io::Result<read::Chunk> {
        let storage = &mut self.storage;
        read::read(&self.segments, from, place, |segment| storage.open(&segment.name()))
    }

    /// Removes what nobody wants any more, and prepares the next segment when this one is half full.
    ///
    /// Segments go from the front only, and each is gone for good before the next goes. So what is missing at the
    /// front was settled, whether or not it says so anywhere else: freeing room needs no room.
    fn tidy_up(&mut self, pressed: bool) -> io::Result<()> {
        let all_settled = |writer: &Self, segment: &Segment| {
            writer.shared.lock().cursors.all_settled(&(segment.base_seq..segment.end_seq))
        };
        if let [only] = self.segments.make_contiguous()
            && pressed
            && !self.active.fresh
        {
            let only = *only;
            if all_settled(self, &only) && self.outbox.is_empty() {
                self.rotate(self.coming())?;
            }
        }
        while let [front, next, ..] = *self.segments.make_contiguous()
            && all_settled(self, &front)
        {
            self.storage.remove(&front.name())?;
            self.storage.sync_directory()?;
            self.segments.pop_front();
            self.shared.lock().cursors.absent(0..next.base_seq);
        }
        if self.prepared.is_none()
            && let Some(&last) = self.segments.back()
            && last.len > self.shared.options.segment / 2
        {
            self.prepared = Some(self.make(last.number + 1)?);
        }
        Ok(())
    }

    /// Ends the log so that the next opening knows that nothing is missing.
    fn seal(&mut self) -> io::Result<()> {
        if !self.outbox.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.sync()?;
        self.outbox.push_frame(Kind::Seal, self.coming(), 0, &[]);
        self.write_out()?;
        self.sync()
    }

    fn end_lsn(&self) -> u64 {
        self.segments.back().map_or(0, |last| last.base_lsn + last.len)
    }

    /// One past the last seq that was written.
    fn written(&self) -> u64 {
        self.segments.back().map_or(0, |last| last.end_seq)
    }

    /// The seq that the next record in the log has: behind all that is on its way there.
    fn coming(&self) -> u64 {
        self.outbox.back().map_or(self.written(), |last| last.end_seq().max(self.written()))
    }
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
