//! Who has settled what, and what is not there any more.

use std::{collections::BTreeMap, ops::Range};

use ropewalk_patterns::ranges::Ranges;

use super::{
    error::CursorError,
    notes::Notes,
    record::{Take, put_varint},
};

/// More cursors are refused.
const CURSORS: usize = 1024;
/// A longer name is refused.
const NAME: usize = 255;
/// The ranges of all cursors together: so a checkpoint stays small. Who settles every other record reaches it.
const RANGES: usize = 1 << 16;
/// So many any cursor may have, whatever the others have.
const SHARE: usize = RANGES / CURSORS;
/// So many ranges of dropped records are remembered, the newest.
const STRETCHES: usize = 1 << 12;

#[derive(Debug, Clone, Default)]
struct Cursor {
    id: u64,
    settled: Ranges,
    /// What of it is not yet in the log.
    fresh: Ranges,
    notes: Notes,
    /// How many records were dropped that it had not settled.
    missed: u64,
    /// How many of those whoever reads for it was told of.
    told: u64,
}

/// All cursors, and which seqs have no record.
#[derive(Debug, Clone, Default)]
pub(super) struct Cursors {
    by_name: BTreeMap<String, Cursor>,
    next_id: u64,
    /// All of those seqs, why ever.
    holes: Ranges,
    /// Those whose records were dropped before all had settled them.
    dropped: Ranges,
    /// All below was dropped, or had gone before.
    dropped_to: u64,
    fresh: bool,
    /// How often something was settled.
    changes: u64,
    /// How often until something changed that only a checkpoint says.
    whole: u64,
}

/// What cursors have done, to be compared with what the log has of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Marks {
    pub(super) changes: u64,
    /// Of those, up to here a checkpoint must say them.
    pub(super) whole: u64,
}

/// How far one cursor is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CursorStats {
    /// The first record that it has not settled.
    pub settled: u64,
    /// How many accepted records it has not settled.
    pub unsettled: u64,
    /// How many records were dropped before it had settled them, ever.
    pub missed: u64,
    /// When the first record that it has not settled was appended, in milliseconds since 1970, or earlier: it is known
    /// as exactly as the segments are long. `None` when it has settled all.
    pub oldest_ms: Option<u64>,
}

impl Cursors {
    /// A cursor that has everything before it; one that is there stays as it is. Says whether it is new.
    pub(super) fn add(&mut self, name: &str) -> Result<bool, CursorError> {
        if name.is_empty() || name.len() > NAME {
            return Err(CursorError::Name);
        }
        if self.by_name.contains_key(name) {
            return Ok(false);
        }
        if self.by_name.len() >= CURSORS {
            return Err(CursorError::TooMany);
        }
        let cursor = Cursor { id: self.next_id, settled: self.holes.clone(), ..Cursor::default() };
        self.next_id += 1;
        self.by_name.insert(name.into(), cursor);
        Ok(true)
    }

    pub(super) fn forget(&mut self, name: &str) -> bool {
        self.changes += 1;
        self.whole = self.changes;
        self.by_name.remove(name).is_some()
    }

    /// Says whether this is the first that is not yet in the log.
    pub(super) fn settle(&mut self, name: &str, seqs: Range<u64>) -> Result<bool, CursorError> {
        let all = |cursors: &Self| cursors.by_name.values().map(|cursor| cursor.settled.len()).sum::<usize>();
        let cursor = self.by_name.get(name).ok_or(CursorError::Unknown)?;
        if seqs.is_empty() || cursor.settled.contains_all(seqs.clone()) {
            return Ok(false);
        }
        // One that fills a gap, or goes on where another ended, makes them no more.
        let beside = |seq| cursor.settled.range_of(seq).is_some();
        let more = !beside(seqs.start.saturating_sub(1)) && !beside(seqs.end);
        if more && cursor.settled.len() >= SHARE && all(self) >= RANGES {
            return Err(CursorError::TooScattered);
        }
        let cursor = self.by_name.get_mut(name).ok_or(CursorError::Unknown)?;
        cursor.settled.insert(seqs.clone());
        cursor.notes.forget(seqs.clone());
        cursor.fresh.insert(seqs);
        self.changes += 1;
        Ok(!std::mem::replace(&mut self.fresh, true))
    }

    /// Remembers this of a record that is not settled. Says whether this is the first that is not yet in the log.
    pub(super) fn note(&mut self, name: &str, seq: u64, attempts: u32) -> Result<bool, CursorError> {
        let cursor = self.by_name.get_mut(name).ok_or(CursorError::Unknown)?;
        let changed = cursor.settled.range_of(seq).is_none() && cursor.notes.set(seq, attempts);
        Ok(changed && !std::mem::replace(&mut self.fresh, true))
    }

    pub(super) fn noted(&self, name: &str, seq: u64) -> Option<u32> {
        Some(self.by_name.get(name)?.notes.get(seq))
    }

    /// Nothing is there of these: everybody is done with them.
    pub(super) fn absent(&mut self, seqs: Range<u64>) {
        self.holes.insert(seqs.clone());
        for cursor in self.by_name.values_mut() {
            cursor.settled.insert(seqs.clone());
            cursor.notes.forget(seqs.clone());
        }
    }

    /// All seqs that have no record.
    pub(super) fn holes(&self) -> &Ranges {
        &self.holes
    }

    /// The same, of what is gone from the midst of the log.
    pub(super) fn absent_within(&mut self, seqs: Range<u64>) {
        self.absent(seqs);
        self.only_a_checkpoint_says_it(true);
    }

    /// The records of these, which are the first there are, go, whoever has not settled them.
    pub(super) fn drop_records(&mut self, seqs: Range<u64>) {
        for cursor in self.by_name.values_mut() {
            cursor.missed += count_without(&cursor.settled, seqs.clone());
        }
        let wanted = self.unsettled(seqs.clone());
        self.dropped.extend(&wanted);
        while self.dropped.len() > STRETCHES {
            let oldest = self.dropped.iter().next().map_or(0, |oldest| oldest.end);
            self.dropped.remove_below(oldest);
        }
        self.dropped_to = seqs.end;
        self.absent(seqs);
    }

    /// How many of the records that this one has missed nobody was told of; from now on somebody was.
    pub(super) fn take_missed(&mut self, name: &str) -> u64 {
        let Some(cursor) = self.by_name.get_mut(name) else { return 0 };
        let untold = cursor.missed.saturating_sub(cursor.told);
        cursor.told = cursor.missed;
        self.only_a_checkpoint_says_it(untold > 0);
        untold
    }

    /// Whoever reads for this one was told of so many.
    pub(super) fn tell_missed(&mut self, name: &str, records: u64) {
        if let Some(cursor) = self.by_name.get_mut(name) {
            let told = cursor.told.saturating_add(records).min(cursor.missed);
            let more = std::mem::replace(&mut cursor.told, told) < told;
            self.only_a_checkpoint_says_it(more);
        }
    }

    fn only_a_checkpoint_says_it(&mut self, changed: bool) {
        if changed {
            self.changes += 1;
            self.whole = self.changes;
        }
    }

    /// Whether these are among those that were dropped.
    pub(super) fn were_dropped(&self, seqs: Range<u64>) -> bool {
        !seqs.is_empty() && seqs.end <= self.dropped_to
    }

    /// From where to where of these records were dropped that not all had settled, and how many.
    pub(super) fn missed(&self, seqs: Range<u64>) -> Option<(Range<u64>, u64)> {
        self.dropped.within(seqs).fold(None, |before: Option<(Range<u64>, u64)>, range| {
            let (start, records) = before.map_or((range.start, 0), |(seqs, records)| (seqs.start, records));
            Some((start..range.end, records + (range.end - range.start)))
        })
    }

    /// Tells whether something was settled since it was asked before.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn marks(&self) -> Marks {
        Marks { changes: self.changes, whole: self.whole }
    }

    /// Tells whether a cursor was added since it was asked before.
    pub(super) fn added(&self) -> u64 {
        self.next_id
    }

    /// How many records there may be of these seqs, and how many of them somebody has not settled.
    pub(super) fn live(&self, seqs: Range<u64>) -> (u64, u64) {
        let records = count_without(&self.holes, seqs.clone());
        let wanted = self.unsettled(seqs).iter().map(|range| range.end - range.start).sum();
        (records, wanted)
    }

    /// Which of these somebody has not settled. Without a cursor everything is wanted: somebody may come.
    pub(super) fn unsettled(&self, seqs: Range<u64>) -> Ranges {
        let mut wanted = Ranges::default();
        let nobody = self.by_name.is_empty().then_some(&self.holes);
        for settled in self.by_name.values().map(|cursor| &cursor.settled).chain(nobody) {
            let mut at = seqs.start;
            for range in settled.within(seqs.clone()) {
                wanted.insert(at..range.start);
                at = range.end;
            }
            wanted.insert(at..seqs.end);
        }
        wanted
    }

    pub(super) fn stats(&self, accepted: u64, time_of: impl Fn(u64) -> u64) -> BTreeMap<String, CursorStats> {
        let of = |cursor: &Cursor| {
            let settled = cursor.settled.range_of(0).map_or(0, |range| range.end);
            let unsettled = count_without(&cursor.settled, 0..accepted);
            let oldest_ms = (unsettled > 0).then(|| time_of(settled));
            CursorStats { settled, unsettled, missed: cursor.missed, oldest_ms }
        };
        self.by_name.iter().map(|(name, cursor)| (name.clone(), of(cursor))).collect()
    }

    /// How many of these this one has not settled.
    pub(super) fn unsettled_of(&self, name: &str, seqs: Range<u64>) -> u64 {
        self.by_name.get(name).map_or(0, |cursor| count_without(&cursor.settled, seqs))
    }

    /// The first seq that this one has not settled.
    pub(super) fn floor(&self, name: &str) -> Option<u64> {
        let settled = &self.by_name.get(name)?.settled;
        Some(settled.range_of(0).map_or(0, |range| range.end))
    }

    pub(super) fn is_settled(&self, name: &str, seq: u64) -> Option<bool> {
        Some(self.by_name.get(name)?.settled.contains_all(seq..seq + 1))
    }

    /// Whether nobody wants these any more. Without a cursor everything is wanted: somebody may come.
    pub(super) fn all_settled(&self, seqs: &Range<u64>) -> bool {
        !self.by_name.is_empty() && self.by_name.values().all(|cursor| cursor.settled.contains_all(seqs.clone()))
    }

    /// The body of a SETTLED frame with what is not yet in the log.
    pub(super) fn take_fresh(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.fresh) {
            return None;
        }
        let mut body = Vec::new();
        let has_fresh = |cursor: &&mut Cursor| !cursor.fresh.is_empty() || cursor.notes.has_fresh();
        for cursor in self.by_name.values_mut().filter(has_fresh) {
            put_varint(&mut body, cursor.id);
            put_ranges(&mut body, &std::mem::take(&mut cursor.fresh));
            cursor.notes.put_fresh(&mut body);
        }
        (!body.is_empty()).then_some(body)
    }

    /// Does what a SETTLED frame says; of a cursor that was forgotten it says nothing.
    pub(super) fn apply(&mut self, body: &[u8]) -> Option<()> {
        let mut take = Take(body);
        while !take.0.is_empty() {
            let id = take.varint()?;
            let settled = take_ranges(&mut take)?;
            let mut forgotten = Cursor::default();
            let cursor = self.by_name.values_mut().find(|cursor| cursor.id == id).unwrap_or(&mut forgotten);
            cursor.settled.extend(&settled);
            settled.iter().for_each(|seqs| cursor.notes.forget(seqs));
            let Cursor { settled, notes, .. } = cursor;
            notes.take(&mut take, |seq| settled.range_of(seq).is_some())?;
        }
        Some(())
    }

    /// The body of a CHECKPOINT frame.
    pub(super) fn put(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put_varint(&mut body, self.next_id);
        put_varint(&mut body, self.dropped_to);
        put_ranges(&mut body, &self.holes);
        put_ranges(&mut body, &self.dropped);
        for (name, cursor) in &self.by_name {
            put_varint(&mut body, cursor.id);
            put_varint(&mut body, name.len() as u64);
            body.extend_from_slice(name.as_bytes());
            put_ranges(&mut body, &cursor.settled);
            put_varint(&mut body, cursor.missed);
            put_varint(&mut body, cursor.told);
            cursor.notes.put(&mut body);
        }
        body
    }

    pub(super) fn take(body: &[u8]) -> Option<Self> {
        let mut take = Take(body);
        let (next_id, dropped_to) = (take.varint()?, take.varint()?);
        let (holes, dropped) = (take_ranges(&mut take)?, take_ranges(&mut take)?);
        let mut cursors = Self { next_id, dropped_to, holes, dropped, ..Self::default() };
        while !take.0.is_empty() {
            let id = take.varint()?;
            let len = usize::try_from(take.varint()?).ok()?;
            let name = std::str::from_utf8(take.bytes(len)?).ok()?.to_owned();
            let (settled, missed, told) = (take_ranges(&mut take)?, take.varint()?, take.varint()?);
            let mut cursor = Cursor { id, settled, missed, told, ..Cursor::default() };
            cursor.notes.take(&mut take, |_| false)?;
            cursors.by_name.insert(name, cursor);
        }
        Some(cursors)
    }
}

/// How many of these seqs are not in there.
fn count_without(ranges: &Ranges, seqs: Range<u64>) -> u64 {
    let inside: u64 = ranges.within(seqs.clone()).map(|range| range.end - range.start).sum();
    seqs.end.saturating_sub(seqs.start).saturating_sub(inside)
}

pub(super) fn put_ranges(out: &mut Vec<u8>, ranges: &Ranges) {
    put_varint(out, ranges.len() as u64);
    let mut at = 0;
    for range in ranges.iter() {
        put_varint(out, range.start - at);
        put_varint(out, range.end - range.start);
        at = range.end;
    }
}

pub(super) fn take_ranges(take: &mut Take<'_>) -> Option<Ranges> {
    let mut ranges = Ranges::default();
    let mut at = 0_u64;
    for _ in 0..take.varint()? {
        let start = at.checked_add(take.varint()?)?;
        at = start.checked_add(take.varint()?).filter(|&end| end < 1 << 63)?;
        ranges.insert(start..at);
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_and_what_was_settled_since_are_read_as_they_are_written() {
        let mut cursors = Cursors::default();
        cursors.absent(10..20);
        assert!(cursors.add("a").unwrap() && cursors.add("b").unwrap() && !cursors.add("a").unwrap());
        let mut copy = Cursors::take(&cursors.put()).unwrap();
        assert!(cursors.settle("a", 0..10).unwrap());
        assert!(!cursors.settle("b", 3..5).unwrap(), "only the first says that there is something to write");
        copy.apply(&cursors.take_fresh().unwrap()).unwrap();
        assert_eq!(cursors.take_fresh(), None);
        assert_eq!((copy.floor("a"), copy.floor("b"), copy.floor("c")), (Some(20), Some(0), None));
        assert_eq!(copy.put(), cursors.put());
        assert!(cursors.note("b", 2, 7).unwrap() && !cursors.note("b", 4, 1).unwrap());
        copy.apply(&cursors.take_fresh().unwrap()).unwrap();
        assert_eq!((copy.noted("b", 2), copy.noted("b", 4), copy.noted("c", 2)), (Some(7), Some(0), None));
        assert_eq!(Cursors::take(&copy.put()).unwrap().put(), cursors.put());
        assert!(copy.all_settled(&(3..5)) && copy.all_settled(&(12..18)) && !copy.all_settled(&(4..6)));
        assert!(copy.forget("b") && copy.all_settled(&(0..20)));
        assert!(copy.forget("a") && !copy.all_settled(&(0..1)));
    }

    #[test]
    fn what_is_dropped_is_counted_for_each() {
        let mut cursors = Cursors::default();
        cursors.absent(5..10);
        cursors.add("a").unwrap();
        cursors.add("b").unwrap();
        cursors.settle("a", 0..3).unwrap();
        cursors.settle("b", 11..12).unwrap();
        assert_eq!(cursors.live(0..20), (15, 15));
        assert!(cursors.unsettled(0..4).iter().eq(std::iter::once(0..4)));
        cursors.drop_records(0..12);
        let stats = cursors.stats(20, |seq| seq);
        assert_eq!((stats["a"].missed, stats["a"].settled, stats["a"].unsettled), (4, 12, 8));
        assert_eq!((stats["b"].missed, stats["b"].settled, stats["b"].oldest_ms), (6, 12, Some(12)));
        assert_eq!(cursors.missed(0..20), Some((0..12, 7)));
        assert_eq!(cursors.missed(4..11), Some((4..11, 2)));
        assert_eq!(cursors.missed(5..10), None, "there was nothing");
        assert!(cursors.were_dropped(3..12) && !cursors.were_dropped(3..13));
        cursors.settle("a", 14..16).unwrap();
        cursors.settle("b", 13..15).unwrap();
        cursors.drop_records(12..20);
        assert_eq!(cursors.missed(0..20), Some((0..20, 14)), "what all had settled was not missed");
        assert_eq!(Cursors::take(&cursors.put()).unwrap().put(), cursors.put());
    }

    #[test]
    fn ranges_names_and_cursors_are_bounded() {
        let mut cursors = Cursors::default();
        assert_eq!(cursors.add(""), Err(CursorError::Name));
        assert_eq!(cursors.add(&"x".repeat(NAME + 1)), Err(CursorError::Name));
        cursors.add("a").unwrap();
        assert_eq!(cursors.settle("b", 0..1), Err(CursorError::Unknown));
        for range in 0..RANGES as u64 {
            cursors.settle("a", 2 * range..2 * range + 1).unwrap();
        }
        assert_eq!(cursors.settle("a", 1 << 40..1 << 41), Err(CursorError::TooScattered));
        cursors.settle("a", 1..2).unwrap();
        for number in 1..CURSORS {
            cursors.add(&number.to_string()).unwrap();
        }
        // One cursor takes nothing from the others that they need to go on.
        for range in 0..SHARE as u64 {
            cursors.settle("1", 2 * range..2 * range + 1).unwrap();
        }
        assert_eq!(cursors.settle("1", 1 << 40..1 << 41), Err(CursorError::TooScattered));
        assert_eq!(cursors.add("one more"), Err(CursorError::TooMany));
    }
}
