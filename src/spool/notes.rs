//! What a cursor remembers of records that it has not settled.

use std::{collections::BTreeMap, ops::Range};

use super::record::{Take, put_varint};

/// More are not kept.
pub(super) const NOTES: usize = 1 << 16;

#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    attempts: BTreeMap<u64, u32>,
    /// What of it is not yet in the log; 0 is a note that is gone.
    fresh: BTreeMap<u64, u32>,
}

impl Notes {
    pub(super) fn get(&self, seq: u64) -> u32 {
        self.attempts.get(&seq).copied().unwrap_or(0)
    }

    /// Whether there is something to write.
    pub(super) fn set(&mut self, seq: u64, attempts: u32) -> bool {
        let changed = self.read(seq, attempts);
        // Of notes that come and go faster than they are written, some are not.
        if changed && (self.fresh.len() < 2 * NOTES || self.fresh.contains_key(&seq)) {
            self.fresh.insert(seq, attempts);
        }
        changed
    }

    fn read(&mut self, seq: u64, attempts: u32) -> bool {
        if attempts == 0 {
            return self.attempts.remove(&seq).is_some();
        }
        let room = self.attempts.len() < NOTES || self.attempts.contains_key(&seq);
        room && self.attempts.insert(seq, attempts) != Some(attempts)
    }

    /// These are settled: that they are is written, and nothing else need be.
    pub(super) fn forget(&mut self, seqs: Range<u64>) {
        for notes in [&mut self.attempts, &mut self.fresh] {
            while let Some((&seq, _)) = notes.range(seqs.clone()).next() {
                notes.remove(&seq);
            }
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put(out, &self.attempts);
    }

    pub(super) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    pub(super) fn put_fresh(&mut self, out: &mut Vec<u8>) {
        put(out, &std::mem::take(&mut self.fresh));
    }

    /// Adds what was written by one of the two above, leaving out what `unwanted` says.
    pub(super) fn take(&mut self, take: &mut Take<'_>, unwanted: impl Fn(u64) -> bool) -> Option<()> {
        let mut at = 0_u64;
        for _ in 0..take.varint()? {
            at = at.checked_add(take.varint()?).filter(|&at| at < 1 << 63)?;
            let attempts = u32::try_from(take.varint()?).ok()?;
            if !unwanted(at) {
                self.read(at, attempts);
            }
        }
        Some(())
    }
}

fn put(out: &mut Vec<u8>, notes: &BTreeMap<u64, u32>) {
    put_varint(out, notes.len() as u64);
    let mut at = 0;
    for (&seq, &attempts) in notes {
        put_varint(out, seq - at);
        put_varint(out, attempts.into());
        at = seq;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_they_are_written_and_bounded() {
        let (mut notes, mut copy, mut body) = (Notes::default(), Notes::default(), Vec::new());
        assert!(notes.set(3, 1) && notes.set(9, 2) && notes.set(3, 5) && !notes.set(3, 5) && !notes.set(4, 0));
        notes.put_fresh(&mut body);
        assert!(!notes.has_fresh());
        assert!(notes.set(9, 0) && notes.set(7, 1));
        notes.put_fresh(&mut body);
        let mut both = Take(&body);
        copy.take(&mut both, |_| false).unwrap();
        assert_eq!((copy.get(3), copy.get(9)), (5, 2));
        copy.take(&mut both, |seq| seq == 7).unwrap();
        assert_eq!((copy.get(3), copy.get(7), copy.get(9), both.0.len()), (5, 0, 0, 0));
        notes.forget(0..4);
        assert_eq!((notes.get(3), notes.get(7)), (0, 1));
        for seq in 0..2 * NOTES as u64 {
            notes.set(seq, 1);
        }
        assert_eq!(notes.attempts.len(), NOTES);
        assert!(notes.set(7, 2), "those that are there go on");
    }
}
