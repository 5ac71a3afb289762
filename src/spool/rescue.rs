//! Getting at the room of what is settled between what is not.
//!
//! Segments go from the front only; so one record that nobody settles, or one slow cursor, would keep everything behind
//! it. A segment that is written no more, and has little in it that anybody still wants, is therefore rewritten with
//! only that:
//!
//! ```text
//!   before  | head | CHECKPOINT | 1 2 3 | 4 5 6 | settled | 7 8 9 |            7.seg
//!   after   | head' | GONE 1..5, 6..8 | 5 | 8 9 |                              7.new, synced, then renamed to 7.seg
//! ```
//! The records stay where they are in the order of seqs, and keep their seqs, incarnations and times: appending them
//! again at the end of the log would have been simpler to write, but then a reader that goes by seqs would have to look
//! for them in two places, and every one of them would be written again and again while it waits. `head'` is the old
//! head, and says how long the file is now ([`SegmentHead::kept_len`]); the chain of heads goes on as if nothing had
//! happened, for the next head says where the segment ended in the log, not in its file. What is gone stands in the
//! file itself: so whichever of the two files a crash leaves, it says the truth. A reader in the midst of the segment
//! sees that it is another file, and begins with it anew, behind what it has.
//!
//! It is done in small pieces between the other work of the writer.

use std::{io, time::Instant};

use bytes::Bytes;
use ropewalk_patterns::ranges::Ranges;

use super::{
    batch::{Planned, Stamp},
    cursors::{put_ranges, take_ranges},
    record::{Kind, Records, Take},
    segment::{self, BODY, Found, Frame, Segment, SegmentHead, Step, Walk},
    storage::{File, passes, write_all},
    writer::Writer,
};

/// So many bytes are read before the writer looks for other work.
const PIECE: u64 = 512 << 10;
/// After looking for a segment, that many times what it took pass before looking again.
const REST: u32 = 20;

/// A segment that is being rewritten.
#[derive(Debug)]
pub(super) struct Rescue {
    old: Segment,
    head: SegmentHead,
    file: Box<dyn File>,
    wanted: Ranges,
    gone: Ranges,
    /// How far it is, in the old file and in the new.
    from: u64,
    to: u64,
}

/// When a segment was last looked for.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// What was settled then, and whether somebody waited for room.
    at: Option<(u64, bool)>,
    rest: Option<Instant>,
    /// One that could not be rewritten: it is damaged, or there was no room. It is left alone.
    unfit: Vec<u64>,
}

impl Writer {
    /// Goes on with a segment, or looks for one. What goes wrong with the new file leaves the old one as it is.
    pub(super) fn rescue(&mut self) -> io::Result<()> {
        if self.rescue.is_none() {
            let Some(segment) = self.look_for_one() else { return Ok(()) };
            self.rescue = self.begin_rescue(&segment)?;
            if self.rescue.is_none() {
                self.looked.unfit.push(segment.number);
            }
        }
        let Some(mut rescue) = self.rescue.take() else { return Ok(()) };
        let is_there = self.segments.iter().any(|segment| segment.number == rescue.old.number);
        let result = if is_there { self.copy_piece(&mut rescue) } else { Ok(Copied::Cannot) };
        match result {
            Ok(Copied::Some) => self.rescue = Some(rescue),
            Ok(Copied::All) => self.finish_rescue(rescue)?,
            Ok(Copied::Cannot) => self.give_up(&rescue)?,
            Err(error) if passes(&error) => self.give_up(&rescue)?,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The segment whose rewriting frees most, if one is worth it: a tenth or less of it is wanted, or a half when
    /// somebody waits for room.
    fn look_for_one(&mut self) -> Option<Segment> {
        let began = Instant::now();
        let short = self.is_short();
        let settled = self.shared.lock().cursors.changes();
        if self.looked.at == Some((settled, short)) {
            return None;
        }
        if let Some(rest) = self.looked.rest.filter(|rest| !short && began < *rest) {
            self.wake_at(rest);
            return None;
        }
        self.looked.at = Some((settled, short));
        let front = self.segments.front().map_or(0, |front| front.number);
        self.looked.unfit.retain(|number| *number >= front);
        let mut best: Option<(u64, Segment)> = None;
        for index in 0..self.segments.len().saturating_sub(1) {
            let Some(&segment) = self.segments.get(index) else { break };
            // What goes anyway is not worth it.
            let goes = self.goes(segment.number);
            if goes || self.looked.unfit.contains(&segment.number) || (!short && self.is_retained(index)) {
                continue;
            }
            let (records, wanted) = self.live(&segment);
            if wanted.saturating_mul(if short { 2 } else { 10 }) > records || (!short && self.is_passing(index)) {
                continue;
            }
            // Each record may have a frame for itself then.
            let share = u128::from(segment.len.saturating_sub(BODY)) * u128::from(wanted) / u128::from(records.max(1));
            let will_have = BODY + 256 + wanted.min(1 << 40) * 96 + share as u64;
            let gain = segment.on_disk().saturating_sub(will_have);
            if gain > segment.len / 4 && best.is_none_or(|(most, _)| gain > most) {
                best = Some((gain, segment));
            }
        }
        self.looked.rest = Some(Instant::now() + began.elapsed() * REST);
        Some(best?.1)
    }

    /// Of how many records, and how many of them somebody wants.
    fn live(&self, segment: &Segment) -> (u64, u64) {
        self.shared.lock().cursors.live(segment.base_seq..segment.end_seq)
    }

    /// Whether a reader is just passing here, that will soon have settled all of this segment: most of the next is wanted,
    /// or that is the one that is written.
    fn is_passing(&self, index: usize) -> bool {
        let Some(next) = self.segments.get(index + 1) else { return true };
        let (records, wanted) = self.live(next);
        index + 2 >= self.segments.len() || wanted.saturating_mul(2) > records
    }

    fn begin_rescue(&mut self, segment: &Segment) -> io::Result<Option<Rescue>> {
        let old = self.storage.open(&segment.name())?;
        let Found::Head(head) = SegmentHead::read(&*old)? else { return Ok(None) };
        let seqs = segment.base_seq..segment.end_seq;
        let wanted = self.shared.lock().cursors.unsettled(seqs.clone());
        let (mut gone, mut at) = (Ranges::default(), seqs.start);
        for range in wanted.iter() {
            gone.insert(at..range.start);
            at = range.end;
        }
        gone.insert(at..seqs.end);
        let file = match self.storage.create(&new_name(segment.number)) {
            Err(error) if passes(&error) => return Ok(None),
            file => file?,
        };
        let mut rescue = Rescue { old: *segment, head, file, wanted, gone, from: BODY, to: BODY };
        let mut body = Vec::new();
        put_ranges(&mut body, &rescue.gone);
        let mut bytes = Vec::new();
        rescue.put(Planned::new(Kind::Gone, segment.base_seq, 0, &body), head.since_ms, &mut bytes);
        match write_all(&*rescue.file, &bytes, BODY) {
            Ok(()) => Ok(Some(rescue)),
            Err(error) if passes(&error) => self.give_up(&rescue).map(|()| None),
            Err(error) => Err(error),
        }
    }

    fn copy_piece(&mut self, rescue: &mut Rescue) -> io::Result<Copied> {
        let (old, place) = (self.storage.open(&rescue.old.name())?, rescue.to);
        let mut walk = Walk::new(&*old, &rescue.old, rescue.from, rescue.old.len);
        let mut bytes = Vec::new();
        let end = loop {
            if walk.at - rescue.from >= PIECE {
                break Copied::Some;
            }
            match walk.next()? {
                Step::Frame(frame) if frame.head.kind.has_records() => {
                    if rescue.copy_frame(&frame, &mut bytes).is_none() {
                        return Ok(Copied::Cannot);
                    }
                }
                Step::Frame(_) => {}
                Step::Bad => return Ok(Copied::Cannot),
                Step::End => break Copied::All,
            }
        };
        rescue.from = walk.at;
        write_all(&*rescue.file, &bytes, place)?;
        Ok(end)
    }

    /// From the renaming on the new file counts. Until that is synced, a crash may bring back the old one, which has
    /// the same and more.
    fn finish_rescue(&mut self, mut rescue: Rescue) -> io::Result<()> {
        rescue.head.kept_len = rescue.to;
        write_all(&*rescue.file, &rescue.head.to_bytes(), 0)?;
        rescue.file.sync_data()?;
        let number = rescue.old.number;
        self.storage.rename(&new_name(number), &segment::name(number))?;
        self.storage.sync_directory()?;
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == number) {
            (segment.len, segment.kept_len) = (rescue.to, rescue.to);
            (segment.book, segment.slack) = (0, 0);
        }
        {
            let mut state = self.shared.lock();
            rescue.gone.iter().for_each(|seqs| state.cursors.absent_within(seqs));
        }
        // There may be another.
        (self.looked.at, self.looked.rest) = (None, None);
        self.publish();
        Ok(())
    }

    pub(super) fn give_up(&mut self, rescue: &Rescue) -> io::Result<()> {
        self.looked.unfit.push(rescue.old.number);
        self.storage.remove(&new_name(rescue.old.number))
    }
}

/// What was copied of a segment.
#[derive(Debug)]
enum Copied {
    Some,
    All,
    /// It is damaged, or not there any more.
    Cannot,
}

impl Rescue {
    /// Adds the runs of wanted records in this frame. `None` when it is not what its head says.
    fn copy_frame(&mut self, frame: &Frame, bytes: &mut Vec<u8>) -> Option<()> {
        // Records that were copied before have their incarnation before them.
        let prefix = if frame.head.kind == Kind::Copied { 8 } else { 0 };
        let records = frame.body.get(prefix..).map(|_| frame.body.slice(prefix..))?;
        let mut all = Records::new(records.clone());
        // Seqs, and bytes.
        let mut run = (frame.head.first_seq, 0..0);
        for seq in frame.head.first_seq..frame.head.end_seq() {
            let from = all.at();
            all.next()?;
            if self.wanted.range_of(seq).is_some() {
                if run.1.end != from || run.1.is_empty() {
                    self.put_run(frame, prefix, (run.0, seq), &records, run.1, bytes);
                    run = (seq, from..from);
                }
                run.1.end = all.at();
            } else {
                self.put_run(frame, prefix, (run.0, seq), &records, std::mem::take(&mut run.1), bytes);
            }
        }
        self.put_run(frame, prefix, (run.0, frame.head.end_seq()), &records, run.1, bytes);
        Some(())
    }

    fn put_run(
        &mut self,
        frame: &Frame,
        prefix: usize,
        (first_seq, end_seq): (u64, u64),
        records: &Bytes,
        run: std::ops::Range<usize>,
        bytes: &mut Vec<u8>,
    ) {
        let Some(run) = records.get(run).filter(|run| !run.is_empty()) else { return };
        let body = [frame.body.get(..prefix).unwrap_or_default(), run].concat();
        let copy = Planned::new(frame.head.kind, first_seq, (end_seq - first_seq) as u32, &body);
        self.put(copy, frame.head.appended_ms, bytes);
    }

    fn put(&mut self, mut frame: Planned, appended_ms: u64, bytes: &mut Vec<u8>) {
        let Segment { base_lsn, incarnation, salt, .. } = self.old;
        let stamp = Stamp { lsn: base_lsn + self.to, synced_lsn: base_lsn, incarnation, salt, appended_ms };
        bytes.extend_from_slice(frame.stamp(&stamp));
        self.to += frame.len();
    }
}

/// What is gone from a segment that was rewritten. `None` when it does not say so.
pub(super) fn gone(file: &dyn File, segment: &Segment) -> io::Result<Option<Ranges>> {
    let step = Walk::new(file, segment, BODY, segment.len).next()?;
    let Step::Frame(frame) = step else { return Ok(None) };
    Ok(take_ranges(&mut Take(&frame.body)).filter(|_| frame.head.kind == Kind::Gone))
}

fn new_name(number: u64) -> String {
    format!("{number:020}.new")
}

/// Whether this file is one that was not finished.
pub(super) fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(".new").is_some_and(|number| segment::number(&format!("{number}.seg")).is_some())
}
