//! Opening a log: what is there, what of it counts, and where to go on.
//!
//! Nothing is ever appended to a segment of an earlier opening. Records that no later frame proves to be synced are
//! copied into the new segment and synced before anybody sees them; then its head is written, and says where the one
//! before ends. Until that is synced, recovering again finds what this one found. How that is written stands in
//! [`begin`](super::begin).

use std::{collections::VecDeque, io, ops::Range, time::Instant};

use super::{
    begin::begin,
    cursors::Cursors,
    error::{Damage, OpenError},
    options::{OnDamage, SpoolOptions},
    prepare,
    record::Kind,
    rescue,
    segment::{self, BODY, Found, Orphan, Segment, SegmentHead, Step, Walk, any_frame},
    storage::{File, Storage, read_up_to},
    tidy,
    writer::Log,
};

/// What was found when a spool was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The last opening was closed in order, or there was none.
    pub clean: bool,
    /// Bytes behind the last record that were not wholly written. Nothing that was [durable](super::Durability::Always)
    /// was in them, unless the disk has lost the very last group. In a file that was used before, bytes count from where
    /// a group that is whole at its beginning was begun: others are told from old ones by nothing.
    pub torn_bytes: u64,
    /// Records that were perhaps not synced, and are now.
    pub copied: u64,
    /// What had been synced and is lost; only with [`OnDamage::Skip`] is a spool opened then.
    pub damage: Vec<Damage>,
    /// The next record has this seq. After an opening that was not closed in order it is larger than it need be, because
    /// no seq is given twice, also not those of records that a power cut took.
    pub next_seq: u64,
}

/// All that a writer needs.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) log: Log,
    pub(super) stream: [u8; 16],
    pub(super) incarnation: u64,
    pub(super) cursors: Cursors,
    pub(super) report: RecoveryReport,
}

/// Waits for the lock of the directory.
pub(super) fn lock(storage: &mut dyn Storage, options: &SpoolOptions) -> Result<Box<dyn Send>, OpenError> {
    let began = Instant::now();
    loop {
        let lock = storage.lock().map_err(|error| OpenError::Io { directory: storage.place(), error })?;
        if let Some(lock) = lock {
            return Ok(lock);
        }
        if began.elapsed() >= options.lock_timeout {
            return Err(OpenError::InUse { directory: storage.place() });
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Finds the log of a directory that is locked, and begins a new segment.
pub(super) fn recover(mut storage: Box<dyn Storage>, options: &SpoolOptions) -> Result<Recovered, OpenError> {
    let directory = storage.place();
    match find(&mut *storage).and_then(|found| match found {
        Looked::Version(version) => Ok(Err(OpenError::Version { directory: directory.clone(), version })),
        Looked::At(found) if options.on_damage == OnDamage::Refuse && !found.damage.is_empty() => {
            Ok(Err(OpenError::Damaged { directory: directory.clone(), damage: found.damage }))
        }
        Looked::At(found) => begin(storage, options, found).map(Ok),
    }) {
        Ok(result) => result,
        Err(error) => Err(OpenError::Io { directory, error }),
    }
}

enum Looked {
    At(Box<Past>),
    Version(u32),
}

/// The log as it was left.
#[derive(Debug, Default)]
pub(super) struct Past {
    pub(super) segments: VecDeque<Segment>,
    pub(super) seq_limit: u64,
    pub(super) cursors: Cursors,
    pub(super) damage: Vec<Damage>,
    /// Files that never counted: their heads were not synced, or a rewriting has left them.
    pub(super) unborn: Vec<String>,
    /// Files that do not count any more once the new head is there, or that a later head passes over.
    pub(super) void: Vec<String>,
    /// What the new segment must be behind.
    pub(super) newest: u64,
    /// Up to this number segments went when the log had no room to say so.
    gone_to: u64,
    pub(super) tail: Tail,
}

/// What no later frame proves to be synced: whole frames of the last segment.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) frames: VecDeque<Whole>,
    /// Behind all records.
    pub(super) end_seq: u64,
    /// No head says more.
    pub(super) seen_seq: u64,
    pub(super) seen_ms: u64,
    pub(super) torn_bytes: u64,
    pub(super) sealed: bool,
    /// Nothing in the segment is needed once the tail is copied: no record in it is proven to be synced.
    pub(super) needless: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Whole {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) first_seq: u64,
    pub(super) end_seq: u64,
    pub(super) kind: Kind,
    pub(super) appended_ms: u64,
}

/// A file that should be a segment. It is opened when it is needed: a log may have more of them than a process may have
/// open.
#[derive(Debug)]
struct Candidate {
    number: u64,
    len: u64,
    head: Option<SegmentHead>,
    /// What its first frame takes, when that is a checkpoint.
    book: u64,
}

impl Candidate {
    fn read(storage: &mut dyn Storage, number: u64) -> io::Result<Result<Self, u32>> {
        let file = storage.open(&segment::name(number))?;
        let len = file.len()?;
        let head = match SegmentHead::read(&*file)? {
            Found::Version(version) => return Ok(Err(version)),
            Found::Head(head) => Some(head).filter(|head| head.number == number),
            Found::Nothing => None,
        };
        let book = match &head {
            Some(head) => segment::book(&*file, head)?,
            None => 0,
        };
        Ok(Ok(Self { number, len, head, book }))
    }

    fn open(&self, storage: &mut dyn Storage) -> io::Result<Box<dyn File>> {
        storage.open(&segment::name(self.number))
    }
}

fn find(storage: &mut dyn Storage) -> io::Result<Looked> {
    let names = storage.list()?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment::number(name)).collect();
    numbers.sort_unstable();
    let mut past =
        Past { gone_to: names.iter().filter_map(|name| tidy::gone_to(name)).max().unwrap_or(0), ..Past::default() };
    for name in names {
        if rescue::is_unfinished(&name) || prepare::is_prepared(&name) {
            past.unborn.push(name);
        } else if tidy::gone_to(&name).is_some() {
            past.void.push(name);
        }
    }
    let mut candidates = Vec::with_capacity(numbers.len());
    for number in numbers {
        match Candidate::read(storage, number)? {
            Ok(candidate) => candidates.push(candidate),
            Err(version) => return Ok(Looked::Version(version)),
        }
    }
    past.newest = candidates.last().map_or(0, |newest| newest.number);
    while let Some(newest) = candidates.pop_if(|newest| newest.head.is_none()) {
        let heads = candidates.iter().filter_map(|candidate| candidate.head);
        let bases = heads.map(|head| head.base_lsn).max().unwrap_or(0)..u64::MAX;
        if was_born(storage, &newest, &bases)? {
            candidates.push(newest);
            break;
        }
        past.unborn.push(segment::name(newest.number));
    }
    past.pass_over(&mut candidates);
    let mut before: Option<&Candidate> = None;
    let heads = candidates.iter().skip(1).map(|candidate| candidate.head).chain([None]);
    for (candidate, after) in candidates.iter().zip(heads) {
        let segment = past.chain(storage, before, candidate, after)?;
        past.segments.push_back(segment);
        before = Some(candidate);
    }
    past.replay(storage, &candidates)?;
    past.miss_front(candidates.first());
    Ok(Looked::At(Box::new(past)))
}

/// Whether the head of this file had been synced: frames say so that came later.
fn was_born(storage: &mut dyn Storage, candidate: &Candidate, bases: &Range<u64>) -> io::Result<bool> {
    let file = candidate.open(storage)?;
    let Some(found) = any_frame(&*file, candidate.len, bases)? else { return Ok(false) };
    let segment = found.segment(candidate.number);
    let mut walk = Walk::new(&*file, &segment, BODY, candidate.len);
    loop {
        match walk.next()? {
            Step::Frame(_) => {}
            Step::Bad if walk.resync()? => {}
            Step::Bad | Step::End => return Ok(walk.proven > segment.base_lsn),
        }
    }
}

impl Past {
    /// Leaves out the files that a later head says do not count.
    fn pass_over(&mut self, candidates: &mut Vec<Candidate>) {
        let mut prev = u64::MAX;
        let mut counts: Vec<bool> = Vec::new();
        for candidate in candidates.iter().rev() {
            counts.push(candidate.number <= prev);
            match candidate.head {
                _ if candidate.number > prev => self.void.push(segment::name(candidate.number)),
                Some(head) => prev = head.prev_number,
                None => prev = u64::MAX,
            }
        }
        candidates.retain(|_| counts.pop() == Some(true));
    }

    /// Checks that this file follows the last segment, whose end its head knows.
    fn chain(
        &mut self,
        storage: &mut dyn Storage,
        before: Option<&Candidate>,
        candidate: &Candidate,
        after: Option<SegmentHead>,
    ) -> io::Result<Segment> {
        let &Candidate { number, len, head, book } = candidate;
        let Some(head) = head else { return self.chain_headless(storage, before, candidate, after) };
        self.seq_limit = head.seq_limit;
        let SegmentHead { base_lsn, base_seq, .. } = head;
        let segment = Segment { len, book, ..Segment::of(&head) };
        let Some(last) = self.segments.back().copied() else { return Ok(segment) };
        let follows = last.number == head.prev_number && last.base_lsn + head.prev_len == base_lsn;
        if !follows || last.stream.is_some_and(|stream| stream != head.prev_stream) {
            let end_seq = self.end_of_last(storage, before)?;
            self.damage.push(Damage { segment: number, at: 0, seqs: end_seq..base_seq.max(end_seq) });
            return Ok(segment);
        }
        let whole = if last.kept_len > 0 { last.kept_len } else { head.prev_len };
        if last.len < whole {
            // It was cut, perhaps between two frames.
            let end_seq = self.end_of_last(storage, before)?;
            let seqs = end_seq..head.prev_end_seq.max(end_seq);
            self.damage.push(Damage { segment: last.number, at: last.len, seqs });
        }
        if let Some(last) = self.segments.back_mut() {
            last.slack = last.len.saturating_sub(whole);
            (last.len, last.end_seq) = (last.len.min(whole), head.prev_end_seq.max(last.base_seq));
        }
        Ok(segment)
    }

    /// Segments go from the front only when the log says, synced, that all in them was settled or dropped.
    fn miss_front(&mut self, first: Option<&Candidate>) {
        let (Some(first), Some(front)) = (first, self.segments.front()) else { return };
        let missing = first.head.map_or(front.number.saturating_sub(1), |head| head.prev_number);
        if missing <= self.gone_to {
            return;
        }
        let wanted = self.cursors.unsettled(0..front.base_seq);
        let last = wanted.iter().last().map_or(0, |range| range.end);
        if let Some(first) = wanted.iter().next() {
            self.damage.insert(0, Damage { segment: missing, at: 0, seqs: first.start..last });
        }
    }

    /// A segment whose head is lost: the head behind it says where it is in the log, or else its frames.
    fn chain_headless(
        &mut self,
        storage: &mut dyn Storage,
        before: Option<&Candidate>,
        candidate: &Candidate,
        after: Option<SegmentHead>,
    ) -> io::Result<Segment> {
        let &Candidate { number, len, .. } = candidate;
        let end_seq = self.end_of_last(storage, before)?;
        let file = candidate.open(storage)?;
        let end_lsn = self.segments.back().map_or(0, |last| last.base_lsn + last.len);
        let nothing = Orphan { base_lsn: end_lsn, incarnation: 0, salt: 0, first_seq: end_seq };
        let known = after.filter(|after| after.prev_number == number);
        let bases = match known.and_then(|after| after.base_lsn.checked_sub(after.prev_len)) {
            Some(base) => base..base + 1,
            None => self.segments.back().map_or(0, |last| last.base_lsn)..u64::MAX,
        };
        let found = any_frame(&*file, len, &bases)?.unwrap_or(nothing);
        let base_seq = if before.is_some() { end_seq } else { found.first_seq };
        self.damage.push(Damage { segment: number, at: 0, seqs: base_seq..base_seq });
        self.seq_limit = u64::MAX;
        let since_ms = self.segments.back().map_or(0, |last| last.since_ms);
        Ok(Segment { base_seq, end_seq: base_seq, len, since_ms, ..found.segment(number) })
    }

    /// Finds where the last segment ends, when no head says it. One past its last seq.
    fn end_of_last(&mut self, storage: &mut dyn Storage, file: Option<&Candidate>) -> io::Result<u64> {
        let (Some(last), Some(file)) = (self.segments.back_mut(), file) else { return Ok(0) };
        let file = file.open(storage)?;
        let mut walk = Walk::new(&*file, last, BODY, last.len);
        loop {
            match walk.next()? {
                Step::Frame(frame) => last.end_seq = last.end_seq.max(frame.head.end_seq()),
                Step::Bad if walk.resync()? => {}
                Step::Bad | Step::End => return Ok(last.end_seq),
            }
        }
    }

    /// Follows what cursors did since the last checkpoint, and looks at every frame of the last segment.
    fn replay(&mut self, storage: &mut dyn Storage, candidates: &[Candidate]) -> io::Result<()> {
        let mut both: Vec<(&Candidate, Segment)> = candidates.iter().zip(self.segments.iter().copied()).collect();
        let Some((last, last_segment)) = both.pop() else { return Ok(()) };
        let mut from = both.len();
        let (last, reused) = (last.open(storage)?, last.head.is_some_and(|head| head.reused_len > 0));
        let mut checkpoint = begins_with_checkpoint(&*last, &last_segment)?;
        while !checkpoint && from > 0 {
            from -= 1;
            if let Some((candidate, segment)) = both.get(from) {
                checkpoint = begins_with_checkpoint(&*candidate.open(storage)?, segment)?;
            }
        }
        for (candidate, segment) in both.iter().skip(from) {
            let file = candidate.open(storage)?;
            let mut walk = Walk::new(&*file, segment, BODY, segment.len);
            loop {
                match walk.next()? {
                    Step::Frame(frame) => self.follow(frame.head.kind, &frame.body),
                    Step::Bad if walk.resync()? => {}
                    Step::Bad | Step::End => break,
                }
            }
        }
        self.scan(&*last, last_segment, reused)?;
        self.pass_over_gone(storage, candidates)
    }

    /// What a rewriting left out, all had settled, whether or not the log still says so.
    fn pass_over_gone(&mut self, storage: &mut dyn Storage, candidates: &[Candidate]) -> io::Result<()> {
        for (candidate, segment) in candidates.iter().zip(&self.segments).filter(|(_, segment)| segment.kept_len > 0) {
            match rescue::gone(&*candidate.open(storage)?, segment)? {
                Some(gone) => gone.iter().for_each(|seqs| self.cursors.absent(seqs)),
                // A cursor may wait for what is gone.
                None => {
                    self.damage.push(Damage { segment: segment.number, at: BODY, seqs: 0..0 });
                }
            }
        }
        Ok(())
    }

    fn follow(&mut self, kind: Kind, body: &[u8]) {
        match kind {
            Kind::Settled => {
                let _as_far_as_it_goes = self.cursors.apply(body);
            }
            Kind::Checkpoint => self.cursors = Cursors::take(body).unwrap_or_else(|| std::mem::take(&mut self.cursors)),
            Kind::Data | Kind::Copied | Kind::Seal | Kind::Gone => {}
        }
    }

    /// What was synced stays where it is; what else is whole, up to the first place that is not, is the tail.
    fn scan(&mut self, file: &dyn File, segment: Segment, reused: bool) -> io::Result<()> {
        let mut walk = Walk::new(file, &segment, BODY, segment.len);
        let mut frames: VecDeque<Whole> = VecDeque::new();
        // Where no frame is, and the seq before that.
        let mut bad: VecDeque<(u64, u64)> = VecDeque::new();
        let (mut seq, mut proven_end, mut proven_seq) = (segment.base_seq, BODY, segment.base_seq);
        loop {
            let step = walk.next()?;
            let proven = walk.proven.saturating_sub(segment.base_lsn).min(segment.len);
            match step {
                Step::Frame(frame) => {
                    let head = &frame.head;
                    self.follow(head.kind, &frame.body);
                    let end_seq = head.end_seq().max(seq);
                    let len = head.frame_len();
                    let (at, first_seq, kind, appended_ms) = (frame.at, head.first_seq, head.kind, head.appended_ms);
                    frames.push_back(Whole { at, len, first_seq, end_seq, kind, appended_ms });
                    seq = end_seq;
                }
                Step::Bad => {
                    bad.push_back((walk.at, seq));
                    if !walk.resync()? {
                        walk.at = segment.len;
                    }
                }
                Step::End => break,
            }
            while let Some(&whole) = frames.front().filter(|whole| whole.at < proven) {
                while let Some((at, before)) = pop_before(&mut bad, whole.at) {
                    let seqs = before..whole.first_seq.max(before);
                    self.damage.push(Damage { segment: segment.number, at, seqs });
                }
                (proven_end, proven_seq) = (whole.at + whole.len, whole.end_seq);
                frames.pop_front();
            }
        }
        let proven = walk.proven.saturating_sub(segment.base_lsn).min(segment.len);
        while let Some((at, before)) = pop_before(&mut bad, proven) {
            let after = frames.front().map_or(before, |whole| whole.first_seq.max(before));
            self.damage.push(Damage { segment: segment.number, at, seqs: before..after });
            proven_seq = proven_seq.max(after);
        }
        if let Some(&(torn, _)) = bad.front() {
            // Of what another segment has left nothing tells the end of ours but the heads of its own frames.
            let end = if reused { walk.begun.max(torn) } else { end_of_bytes(file, torn, segment.len)? };
            self.tail.torn_bytes = end - torn;
            frames.retain(|whole| whole.at < torn);
        }
        self.tail.sealed = frames.back().is_some_and(|whole| whole.kind == Kind::Seal);
        self.tail.end_seq = frames.back().map_or(proven_seq, |whole| whole.end_seq);
        self.tail.seen_seq = walk.seen_seq.max(self.tail.end_seq);
        self.tail.seen_ms = walk.seen_ms.max(segment.since_ms);
        frames.retain(|whole| whole.kind.has_records());
        self.tail.frames = frames;
        if let Some(last) = self.segments.back_mut() {
            (last.len, last.end_seq) = (proven_end.max(proven), proven_seq);
            last.slack = segment.len - last.len;
            self.tail.needless = proven_seq == last.base_seq;
        }
        Ok(())
    }
}

fn pop_before(bad: &mut VecDeque<(u64, u64)>, place: u64) -> Option<(u64, u64)> {
    bad.front().filter(|(at, _)| *at < place)?;
    bad.pop_front()
}

/// Where the last byte between these places is that is not zero: what was [made ready](super::ready) is nothing unfinished.
fn end_of_bytes(file: &dyn File, from: u64, to: u64) -> io::Result<u64> {
    const AT_ONCE: u64 = 64 << 10;
    let mut end = to;
    while end > from {
        let begin = end.saturating_sub(AT_ONCE).max(from);
        let bytes = read_up_to(file, (end - begin) as usize, begin)?;
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            return Ok(begin + last as u64 + 1);
        }
        end = begin;
    }
    Ok(from)
}

fn begins_with_checkpoint(file: &dyn File, segment: &Segment) -> io::Result<bool> {
    let step = Walk::new(file, segment, BODY, segment.len).next()?;
    Ok(matches!(step, Step::Frame(frame) if frame.head.kind == Kind::Checkpoint))
}
