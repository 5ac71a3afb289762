//! Opening a log: what is there, what of it counts, and where to go on.
//!
//! Nothing is ever appended to a segment of an earlier opening. Records that no later frame proves to be synced are
//! copied into the new segment and synced before anybody sees them; then its head is written, and says where the one
//! before ends. Until that is synced, recovering again finds what this one found.

use std::{collections::VecDeque, io, time::Instant};

use super::{
    batch::{Planned, Stamp},
    cursors::Cursors,
    error::{Damage, OpenError},
    options::{OnDamage, SpoolOptions},
    read::origin,
    record::Kind,
    rescue,
    segment::{self, BODY, Found, LARGEST, Segment, SegmentHead, Step, Walk, any_head},
    storage::{File, Storage, write_all},
    writer::{Active, Log, new_stream, now_ms, random},
};

/// What was found when a spool was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The last opening was closed in order, or there was none.
    pub clean: bool,
    /// Bytes behind the last record that were not wholly written. Nothing that was [durable](super::Durability::Always)
    /// was in them, unless the disk has lost the very last group.
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
struct Past {
    segments: VecDeque<Segment>,
    seq_limit: u64,
    cursors: Cursors,
    damage: Vec<Damage>,
    /// Files that do not count: their heads were never synced, or a later head passes them over.
    void: Vec<u64>,
    /// Files that a rewriting has left.
    unfinished: Vec<String>,
    /// What the new segment must be behind.
    newest: u64,
    tail: Tail,
}

/// What no later frame proves to be synced: whole frames of the last segment.
#[derive(Debug, Default)]
struct Tail {
    frames: VecDeque<Whole>,
    /// Behind all records.
    end_seq: u64,
    /// No head says more.
    seen_seq: u64,
    seen_ms: u64,
    torn_bytes: u64,
    sealed: bool,
    /// Nothing proves that the segment's own head was synced.
    unproven: bool,
}

#[derive(Debug, Clone, Copy)]
struct Whole {
    at: u64,
    len: u64,
    first_seq: u64,
    end_seq: u64,
    kind: Kind,
    appended_ms: u64,
}

/// A file that should be a segment.
#[derive(Debug)]
struct Candidate {
    number: u64,
    len: u64,
    file: Box<dyn File>,
    head: Option<SegmentHead>,
}

fn find(storage: &mut dyn Storage) -> io::Result<Looked> {
    let names = storage.list()?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment::number(name)).collect();
    numbers.sort_unstable();
    let unfinished = names.into_iter().filter(|name| rescue::is_unfinished(name)).collect();
    let mut past = Past { unfinished, ..Past::default() };
    let mut candidates = Vec::with_capacity(numbers.len());
    for number in numbers {
        let file = storage.open(&segment::name(number))?;
        let len = file.len()?;
        let head = match SegmentHead::read(&*file)? {
            Found::Version(version) => return Ok(Looked::Version(version)),
            Found::Head(head) => Some(head).filter(|head| head.number == number),
            Found::Nothing => None,
        };
        candidates.push(Candidate { number, len, file, head });
    }
    past.newest = candidates.last().map_or(0, |newest| newest.number);
    while let Some(newest) = candidates.pop_if(|newest| newest.head.is_none()) {
        if was_born(&newest)? {
            candidates.push(newest);
            break;
        }
        past.void.push(newest.number);
    }
    past.pass_over(&mut candidates);
    let mut before: Option<&Candidate> = None;
    for candidate in &candidates {
        let segment = past.chain(before, candidate)?;
        past.segments.push_back(segment);
        before = Some(candidate);
    }
    past.replay(&candidates)?;
    Ok(Looked::At(Box::new(past)))
}

/// Whether the head of this file had been synced: frames say so that came later.
fn was_born(candidate: &Candidate) -> io::Result<bool> {
    let Some((at, head)) = any_head(&*candidate.file, candidate.len)? else { return Ok(false) };
    let segment = orphan(candidate.number, head.lsn - at, head.incarnation);
    let mut walk = Walk::new(&*candidate.file, &segment, BODY, candidate.len);
    loop {
        match walk.next()? {
            Step::Frame(_) => {}
            Step::Bad if walk.resync()? => {}
            Step::Bad | Step::End => return Ok(walk.proven > segment.base_lsn),
        }
    }
}

fn orphan(number: u64, base_lsn: u64, incarnation: u64) -> Segment {
    let (stream, base_seq, end_seq, len, since_ms, kept_len) = (None, 0, 0, 0, 0, 0);
    Segment { number, stream, base_lsn, incarnation, base_seq, end_seq, len, since_ms, kept_len }
}

impl Past {
    /// Leaves out the files that a later head says do not count.
    fn pass_over(&mut self, candidates: &mut Vec<Candidate>) {
        let mut prev = u64::MAX;
        let mut counts: Vec<bool> = Vec::new();
        for candidate in candidates.iter().rev() {
            counts.push(candidate.number <= prev);
            match candidate.head {
                _ if candidate.number > prev => self.void.push(candidate.number),
                Some(head) => prev = head.prev_number,
                None => prev = u64::MAX,
            }
        }
        candidates.retain(|_| counts.pop() == Some(true));
    }

    /// Checks that this file follows the last segment, whose end its head knows.
    fn chain(&mut self, before: Option<&Candidate>, candidate: &Candidate) -> io::Result<Segment> {
        let &Candidate { number, len, head, .. } = candidate;
        let Some(head) = head else { return self.chain_headless(before, candidate) };
        self.seq_limit = head.seq_limit;
        let SegmentHead { base_lsn, base_seq, .. } = head;
        let segment = Segment { len, ..Segment::of(&head) };
        let Some(last) = self.segments.back().copied() else { return Ok(segment) };
        let follows = last.number == head.prev_number && last.base_lsn + head.prev_len == base_lsn;
        if !follows || last.stream.is_some_and(|stream| stream != head.prev_stream) {
            let end_seq = self.end_of_last(before)?;
            self.damage.push(Damage { segment: number, at: 0, seqs: end_seq..base_seq.max(end_seq) });
        } else if let Some(last) = self.segments.back_mut() {
            let whole = if last.kept_len > 0 { last.kept_len } else { head.prev_len };
            if last.len < whole {
                let seqs = head.prev_end_seq..head.prev_end_seq;
                self.damage.push(Damage { segment: last.number, at: last.len, seqs });
            }
            (last.len, last.end_seq) = (last.len.min(whole), head.prev_end_seq.max(last.base_seq));
        }
        Ok(segment)
    }

    /// A segment whose head is lost: its frames say where it is in the log.
    fn chain_headless(&mut self, before: Option<&Candidate>, candidate: &Candidate) -> io::Result<Segment> {
        let &Candidate { number, len, ref file, .. } = candidate;
        let end_seq = self.end_of_last(before)?;
        let end_lsn = self.segments.back().map_or(0, |last| last.base_lsn + last.len);
        let (base_lsn, incarnation, first_seq) = match any_head(&**file, len)? {
            Some((at, head)) => (head.lsn - at, head.incarnation, head.first_seq),
            None => (end_lsn, 0, end_seq),
        };
        let base_seq = if before.is_some() { end_seq } else { first_seq };
        self.damage.push(Damage { segment: number, at: 0, seqs: base_seq..base_seq });
        self.seq_limit = u64::MAX;
        let since_ms = self.segments.back().map_or(0, |last| last.since_ms);
        Ok(Segment { base_seq, end_seq: base_seq, len, since_ms, ..orphan(number, base_lsn, incarnation) })
    }

    /// Finds where the last segment ends, when no head says it. One past its last seq.
    fn end_of_last(&mut self, file: Option<&Candidate>) -> io::Result<u64> {
        let (Some(last), Some(file)) = (self.segments.back_mut(), file) else { return Ok(0) };
        let mut walk = Walk::new(&*file.file, last, BODY, last.len);
        loop {
            match walk.next()? {
                Step::Frame(frame) => last.end_seq = last.end_seq.max(frame.head.end_seq()),
                Step::Bad if walk.resync()? => {}
                Step::Bad | Step::End => return Ok(last.end_seq),
            }
        }
    }

    /// Follows what cursors did since the last checkpoint, and looks at every frame of the last segment.
    fn replay(&mut self, candidates: &[Candidate]) -> io::Result<()> {
        let mut both: Vec<(&Candidate, Segment)> = candidates.iter().zip(self.segments.iter().copied()).collect();
        let Some((last, last_segment)) = both.pop() else { return Ok(()) };
        let mut from = both.len();
        let mut checkpoint = begins_with_checkpoint(&*last.file, &last_segment)?;
        while !checkpoint && from > 0 {
            from -= 1;
            if let Some((candidate, segment)) = both.get(from) {
                checkpoint = begins_with_checkpoint(&*candidate.file, segment)?;
            }
        }
        for (candidate, segment) in both.iter().skip(from) {
            let mut walk = Walk::new(&*candidate.file, segment, BODY, segment.len);
            loop {
                match walk.next()? {
                    Step::Frame(frame) => self.follow(frame.head.kind, &frame.body),
                    Step::Bad if walk.resync()? => {}
                    Step::Bad | Step::End => break,
                }
            }
        }
        self.scan(&*last.file, last_segment)?;
        self.pass_over_gone(candidates)
    }

    /// What a rewriting left out, all had settled, whether or not the log still says so.
    fn pass_over_gone(&mut self, candidates: &[Candidate]) -> io::Result<()> {
        for (candidate, segment) in candidates.iter().zip(&self.segments).filter(|(_, segment)| segment.kept_len > 0) {
            match rescue::gone(&*candidate.file, segment)? {
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
    fn scan(&mut self, file: &dyn File, segment: Segment) -> io::Result<()> {
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
            self.tail.torn_bytes = segment.len - torn;
            frames.retain(|whole| whole.at < torn);
        }
        self.tail.sealed = frames.back().is_some_and(|whole| whole.kind == Kind::Seal);
        self.tail.end_seq = frames.back().map_or(proven_seq, |whole| whole.end_seq);
        self.tail.seen_seq = walk.seen_seq.max(self.tail.end_seq);
        self.tail.seen_ms = walk.seen_ms.max(segment.since_ms);
        frames.retain(|whole| whole.kind.has_records());
        self.tail.frames = frames;
        self.tail.unproven = proven == 0;
        if let Some(last) = self.segments.back_mut() {
            (last.len, last.end_seq) = (proven_end.max(proven), proven_seq);
        }
        Ok(())
    }
}

fn pop_before(bad: &mut VecDeque<(u64, u64)>, place: u64) -> Option<(u64, u64)> {
    bad.front().filter(|(at, _)| *at < place)?;
    bad.pop_front()
}

fn begins_with_checkpoint(file: &dyn File, segment: &Segment) -> io::Result<bool> {
    let step = Walk::new(file, segment, BODY, segment.len).next()?;
    Ok(matches!(step, Step::Frame(frame) if frame.head.kind == Kind::Checkpoint))
}

/// Begins the new segment.
fn begin(mut storage: Box<dyn Storage>, options: &SpoolOptions, past: Box<Past>) -> io::Result<Recovered> {
    let Past { mut segments, seq_limit, mut cursors, damage, mut void, unfinished, newest, tail } = *past;
    let tail_of = segments.back().copied();
    let clean = tail_of.is_none() || tail.sealed;
    // After damage an earlier segment may have gone further than the last.
    let end_seq = segments.iter().map(|segment| segment.end_seq).fold(tail.end_seq, u64::max);
    let next_seq = match (clean, seq_limit) {
        (true, _) => end_seq,
        // The limit is lost with the head that said it. No segment is larger.
        (false, u64::MAX) => end_seq.max(tail.seen_seq) + LARGEST,
        (false, limit) => limit.max(tail.seen_seq).max(end_seq),
    };
    let end_lsn = segments.iter().map(|segment| segment.base_lsn + segment.len).max().unwrap_or(0);
    if newest.max(next_seq).max(end_lsn) >= 1 << 61 {
        // Nothing true comes near the end of 64 bits, and what would be written next could not be read again.
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the numbers of the log have come to their end"));
    }
    cursors.absent(end_seq..next_seq);
    // What was said to be dropped goes, also when the crash came between.
    while let [front, _, ..] = *segments.make_contiguous()
        && cursors.were_dropped(front.base_seq..front.end_seq)
    {
        void.push(front.number);
        segments.pop_front();
    }
    cursors.absent(0..segments.front().map_or(0, |front| front.base_seq));
    // When the newest head is lost, so is the name of the stream that it may have begun: better a new stream than one
    // that lives elsewhere.
    let stream = tail_of.and_then(|last| last.stream).unwrap_or_else(new_stream);
    let opening = segments.iter().map(|segment| segment.incarnation >> 32).max().unwrap_or(0);
    if tail.unproven {
        // All of it is copied, and then it is as if it had never been: a power cut may still take its head.
        void.extend(segments.pop_back().map(|segment| segment.number));
    }
    let last = segments.back().copied();
    let now_ms = now_ms().max(tail.seen_ms);
    let head = SegmentHead {
        stream,
        incarnation: ((opening + 1) << 32) | (random() >> 32),
        number: newest + 1,
        base_seq: tail.frames.front().map_or(next_seq, |first| first.first_seq),
        seq_limit: next_seq + options.segment,
        base_lsn: last.map_or(0, |last| last.base_lsn + last.len),
        prev_number: last.map_or(0, |last| last.number),
        prev_len: last.map_or(0, |last| last.len),
        prev_end_seq: last.map_or(0, |last| last.end_seq),
        since_ms: tail.frames.front().map_or(now_ms, |first| first.appended_ms),
        prev_stream: last.and_then(|last| last.stream).unwrap_or(stream),
        kept_len: 0,
    };
    let file = storage.create(&segment::name(head.number))?;
    storage.sync_directory()?;
    let len = match tail_of {
        Some(old) => write_tail(&*file, &head, &cursors, &*storage.open(&old.name())?, &old, &tail)?,
        None => write_checkpoint(&*file, &head, &cursors)?,
    };
    file.sync_data()?;
    // Only now may it count.
    write_all(&*file, &head.to_bytes(), 0)?;
    file.sync_data()?;
    let leftovers: Vec<String> = void.into_iter().map(segment::name).chain(unfinished).collect();
    for name in &leftovers {
        storage.remove(name)?;
    }
    if !leftovers.is_empty() {
        storage.sync_directory()?;
    }

    let copied = tail.frames.iter().map(|whole| whole.end_seq - whole.first_seq).fold(0, u64::saturating_add);
    let SegmentHead { incarnation, seq_limit, stream, .. } = head;
    segments.push_back(Segment { end_seq: next_seq, len, ..Segment::of(&head) });
    let active = Active { file, seq_limit, fresh: tail.frames.is_empty() };
    let report = RecoveryReport { clean, torn_bytes: tail.torn_bytes, copied, damage, next_seq };
    Ok(Recovered { log: Log { storage, segments, active, now_ms }, stream, incarnation, cursors, report })
}

fn write_checkpoint(file: &dyn File, head: &SegmentHead, cursors: &Cursors) -> io::Result<u64> {
    let checkpoint = Planned::new(Kind::Checkpoint, head.base_seq, 0, &cursors.put());
    write_frame(file, head, BODY, checkpoint, head.since_ms)
}

/// Where the next frame goes.
fn write_frame(file: &dyn File, head: &SegmentHead, at: u64, mut frame: Planned, appended_ms: u64) -> io::Result<u64> {
    let &SegmentHead { base_lsn, incarnation, .. } = head;
    let bytes = frame.stamp(&Stamp { lsn: base_lsn + at, synced_lsn: base_lsn, incarnation, appended_ms });
    write_all(file, bytes, at)?;
    Ok(at + bytes.len() as u64)
}

/// Copies the frames of the tail, one at a time. Where the new segment ends then.
fn write_tail(
    file: &dyn File,
    head: &SegmentHead,
    cursors: &Cursors,
    old_file: &dyn File,
    old: &Segment,
    tail: &Tail,
) -> io::Result<u64> {
    let mut at = write_checkpoint(file, head, cursors)?;
    for whole in &tail.frames {
        let mut walk = Walk::new(old_file, old, whole.at, whole.at + whole.len);
        let Step::Frame(frame) = walk.next()? else {
            // It was whole a moment ago.
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a record changed while it was copied"));
        };
        let Some((incarnation, records)) = origin(&frame) else { continue };
        let mut body = incarnation.to_le_bytes().to_vec();
        body.extend_from_slice(&records);
        let copy = Planned::new(Kind::Copied, frame.head.first_seq, frame.head.count, &body);
        at = write_frame(file, head, at, copy, frame.head.appended_ms)?;
    }
    Ok(at)
}
