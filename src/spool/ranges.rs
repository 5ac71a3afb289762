//! Sets of seqs.

use std::{collections::BTreeMap, ops::Range};

use super::record::{Take, put_varint};

/// A set of numbers, kept as ranges that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    by_start: BTreeMap<u64, u64>,
}

impl Ranges {
    pub(super) fn insert(&mut self, added: Range<u64>) {
        if added.is_empty() {
            return;
        }
        let Range { mut start, mut end } = added;
        while let Some((&first, &last)) = self.by_start.range(..=end).next_back() {
            if last < start {
                break;
            }
            self.by_start.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.by_start.insert(start, end);
    }

    pub(super) fn extend(&mut self, other: &Self) {
        other.iter().for_each(|range| self.insert(range));
    }

    pub(super) fn contains_all(&self, range: Range<u64>) -> bool {
        range.is_empty() || self.range_of(range.start).is_some_and(|found| found.end >= range.end)
    }

    /// The range that this number is in.
    pub(super) fn range_of(&self, number: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.by_start.range(..=number).next_back()?;
        (number < end).then_some(start..end)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.by_start.iter().map(|(&start, &end)| start..end)
    }

    pub(super) fn len(&self) -> usize {
        self.by_start.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.len() as u64);
        let mut at = 0;
        for range in self.iter() {
            put_varint(out, range.start - at);
            put_varint(out, range.end - range.start);
            at = range.end;
        }
    }

    pub(super) fn take(take: &mut Take<'_>) -> Option<Self> {
        let mut ranges = Self::default();
        let mut at = 0_u64;
        for _ in 0..take.varint()? {
            let start = at.checked_add(take.varint()?)?;
            at = start.checked_add(take.varint()?).filter(|&end| end < 1 << 63)?;
            ranges.insert(start..at);
        }
        Some(ranges)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn like_a_set(inserts in prop::collection::vec((0u64..60, 0u64..8), 0..20)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (start, len) in inserts {
                ranges.insert(start..start + len);
                set.extend(start..start + len);
            }
            prop_assert_eq!(ranges.iter().flatten().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            for number in 0..70 {
                prop_assert_eq!(ranges.contains_all(number..number + 1), set.contains(&number));
            }
            let (mut out, all) = (Vec::new(), ranges.clone());
            ranges.put(&mut out);
            prop_assert_eq!(Ranges::take(&mut Take(&out)), Some(all));
            let mut last = None;
            for range in ranges.iter() {
                prop_assert!(range.start < range.end && last.is_none_or(|last| last < range.start));
                last = Some(range.end);
            }
        }
    }
}
