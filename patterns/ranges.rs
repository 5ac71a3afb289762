//! Sets of seqs.

use alloc::collections::BTreeMap;
use core::ops::Range;

/// A set of numbers, kept as ranges that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    by_start: BTreeMap<u64, u64>,
}

impl From<Range<u64>> for Ranges {
    fn from(range: Range<u64>) -> Self {
        let mut ranges = Self::default();
        ranges.insert(range);
        ranges
    }
}

impl Ranges {
    /// Adds these.
    pub fn insert(&mut self, added: Range<u64>) {
        if added.is_empty() {
            return;
        }
        let Range { mut start, mut end } = added;
        // What comes in order makes the last range longer.
        if let Some(mut last) = self.by_start.last_entry()
            && (*last.key()..=*last.get()).contains(&start)
        {
            let longer = end.max(*last.get());
            last.insert(longer);
            return;
        }
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

    /// Takes the first so many ranges out of it.
    pub fn take_first(&mut self, count: usize) -> Self {
        if self.len() <= count {
            return core::mem::take(self);
        }
        let mut first = Self::default();
        first.by_start.extend(core::iter::from_fn(|| self.by_start.pop_first()).take(count));
        first
    }

    /// Takes away all below this number.
    pub fn remove_below(&mut self, floor: u64) {
        let mut kept = self.by_start.split_off(&floor);
        if let Some((_, &end)) = self.by_start.last_key_value()
            && end > floor
        {
            kept.insert(floor, end);
        }
        self.by_start = kept;
    }

    /// Adds all that are in the other.
    pub fn extend(&mut self, other: &Self) {
        other.iter().for_each(|range| self.insert(range));
    }

    /// Whether all of these are in it.
    pub fn contains_all(&self, range: Range<u64>) -> bool {
        range.is_empty() || self.range_of(range.start).is_some_and(|found| found.end >= range.end)
    }

    /// The range that this number is in.
    pub fn range_of(&self, number: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.by_start.range(..=number).next_back()?;
        (number < end).then_some(start..end)
    }

    /// What of it is in this range, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.range_of(range.start).map_or(range.start, |found| found.start);
        let ranges = self.by_start.range(first..range.end.max(first));
        ranges.map(move |(&start, &end)| start.max(range.start)..end.min(range.end))
    }

    /// Its ranges, in their order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.by_start.iter().map(|(&start, &end)| start..end)
    }

    /// How many ranges it is kept as: what it takes of memory.
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn like_a_set(inserts in prop::collection::vec((0u64..60, 0u64..8), 0..20), floor in 0u64..70) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (start, len) in inserts {
                ranges.insert(start..start + len);
                set.extend(start..start + len);
            }
            prop_assert_eq!(ranges.iter().flatten().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            for number in 0..70 {
                prop_assert_eq!(ranges.contains_all(number..number + 1), set.contains(&number));
            }
            let mut last = None;
            for range in ranges.iter() {
                prop_assert!(range.start < range.end && last.is_none_or(|last| last < range.start));
                last = Some(range.end);
            }
            let mut rest = ranges.clone();
            let first = rest.take_first(2);
            prop_assert_eq!(first.iter().chain(rest.iter()).collect::<Vec<_>>(), ranges.iter().collect::<Vec<_>>());
            prop_assert!(first.len() == ranges.len().min(2));
            let within: Vec<u64> = ranges.within(floor..floor + 10).flatten().collect();
            prop_assert_eq!(within, set.range(floor..floor + 10).copied().collect::<Vec<_>>());
            prop_assert_eq!(ranges.within(floor..floor).flatten().count(), 0);
            ranges.remove_below(floor);
            set.retain(|number| *number >= floor);
            prop_assert_eq!(ranges.iter().flatten().collect::<Vec<_>>(), set.into_iter().collect::<Vec<_>>());
        }
    }
}
