//! Who has settled what.

use std::{collections::BTreeMap, ops::Range};

use ropewalk_patterns::ranges::Ranges;

use super::{
    error::CursorError,
    record::{Take, put_varint},
};

/// More cursors are refused.
const CURSORS: usize = 1024;
/// A longer name is refused.
const NAME: usize = 255;
/// The ranges of all cursors together: so a checkpoint stays small. Who settles every other record reaches it.
const RANGES: usize = 1 << 16;

#[derive(Debug, Clone, Default)]
struct Cursor {
    id: u64,
    settled: Ranges,
    /// What of it is not yet in the log.
    fresh: Ranges,
}

/// All cursors, and the seqs that were never given.
#[derive(Debug, Clone, Default)]
pub(super) struct Cursors {
    by_name: BTreeMap<String, Cursor>,
    next_id: u64,
    holes: Ranges,
    fresh: bool,
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
        let cursor = Cursor { id: self.next_id, settled: self.holes.clone(), fresh: Ranges::default() };
        self.next_id += 1;
        self.by_name.insert(name.into(), cursor);
        Ok(true)
    }

    pub(super) fn forget(&mut self, name: &str) -> bool {
        self.by_name.remove(name).is_some()
    }

    /// Says whether this is the first that is not yet in the log.
    pub(super) fn settle(&mut self, name: &str, seqs: Range<u64>) -> Result<bool, CursorError> {
        let ranges: usize = self.by_name.values().map(|cursor| cursor.settled.len()).sum();
        let cursor = self.by_name.get_mut(name).ok_or(CursorError::Unknown)?;
        if seqs.is_empty() || cursor.settled.contains_all(seqs.clone()) {
            return Ok(false);
        }
        // One that fills a gap, or goes on where another ended, makes them no more.
        let beside = |seq| cursor.settled.range_of(seq).is_some();
        if ranges >= RANGES && !beside(seqs.start.saturating_sub(1)) && !beside(seqs.end) {
            return Err(CursorError::TooScattered);
        }
        cursor.settled.insert(seqs.clone());
        cursor.fresh.insert(seqs);
        Ok(!std::mem::replace(&mut self.fresh, true))
    }

    /// Nothing is there of these: everybody is done with them.
    pub(super) fn absent(&mut self, seqs: Range<u64>) {
        self.holes.insert(seqs.clone());
        self.by_name.values_mut().for_each(|cursor| cursor.settled.insert(seqs.clone()));
    }

    /// The first seq that this one has not settled.
    pub(super) fn floor(&self, name: &str) -> Option<u64> {
        let settled = &self.by_name.get(name)?.settled;
        Some(settled.range_of(0).map_or(0, |range| range.end))
    }

    pub(super) fn floors(&self) -> BTreeMap<String, u64> {
        self.by_name.keys().filter_map(|name| Some((name.clone(), self.floor(name)?))).collect()
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
        for cursor in self.by_name.values_mut().filter(|cursor| !cursor.fresh.is_empty()) {
            put_varint(&mut body, cursor.id);
            put_ranges(&mut body, &std::mem::take(&mut cursor.fresh));
        }
        (!body.is_empty()).then_some(body)
    }

    /// Does what a SETTLED frame says; of a cursor that was forgotten it says nothing.
    pub(super) fn apply(&mut self, body: &[u8]) -> Option<()> {
        let mut take = Take(body);
        while !take.0.is_empty() {
            let id = take.varint()?;
            let settled = take_ranges(&mut take)?;
            if let Some(cursor) = self.by_name.values_mut().find(|cursor| cursor.id == id) {
                cursor.settled.extend(&settled);
            }
        }
        Some(())
    }

    /// The body of a CHECKPOINT frame.
    pub(super) fn put(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put_varint(&mut body, self.next_id);
        put_ranges(&mut body, &self.holes);
        for (name, cursor) in &self.by_name {
            put_varint(&mut body, cursor.id);
            put_varint(&mut body, name.len() as u64);
            body.extend_from_slice(name.as_bytes());
            put_ranges(&mut body, &cursor.settled);
        }
        body
    }

    pub(super) fn take(body: &[u8]) -> Option<Self> {
        let mut take = Take(body);
        let mut cursors = Self { next_id: take.varint()?, holes: take_ranges(&mut take)?, ..Self::default() };
        while !take.0.is_empty() {
            let id = take.varint()?;
            let len = usize::try_from(take.varint()?).ok()?;
            let name = std::str::from_utf8(take.bytes(len)?).ok()?.to_owned();
            let settled = take_ranges(&mut take)?;
            cursors.by_name.insert(name, Cursor { id, settled, fresh: Ranges::default() });
        }
        Some(cursors)
    }
}

fn put_ranges(out: &mut Vec<u8>, ranges: &Ranges) {
    put_varint(out, ranges.len() as u64);
    let mut at = 0;
    for range in ranges.iter() {
        put_varint(out, range.start - at);
        put_varint(out, range.end - range.start);
        at = range.end;
    }
}

fn take_ranges(take: &mut Take<'_>) -> Option<Ranges> {
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
        assert!(copy.all_settled(&(3..5)) && copy.all_settled(&(12..18)) && !copy.all_settled(&(4..6)));
        assert!(copy.forget("b") && copy.all_settled(&(0..20)));
        assert!(copy.forget("a") && !copy.all_settled(&(0..1)));
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
        assert_eq!(cursors.add("one more"), Err(CursorError::TooMany));
    }
}
