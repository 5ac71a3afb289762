//! What a receiver is done with.

use alloc::{collections::BTreeMap, vec::Vec};

use super::{MessageId, StreamId};
use crate::{extension::delivery, misbehaved::Misbehaved, ranges::Ranges};

/// What is done of one stream is kept as at most so many ranges. A sender has no more messages than that between its floor
/// and what it sent last.
const RANGES: usize = 1 << 16;

/// So many streams are remembered; of those that are not in use the one that was used longest ago goes first.
const STREAMS: usize = 1024;

/// Which messages were done with, by their identity. It grows with what is done out of order, and shrinks when the sender
/// says below which seq nothing comes again.
///
/// A socket keeps one by itself. One of your own stands beside the effects of messages, in the same transaction, so that
/// an effect and the word that it was made are kept or lost together:
///
/// ```
/// use ropewalk_patterns::delivery::{Claim, Inbox, MessageId};
///
/// let mut inbox = Inbox::default();
/// let id = MessageId { stream: [7; 16], incarnation: 1, seq: 40 };
/// assert_eq!(inbox.claim(id), Claim::Fresh); // do it, and keep `inbox.to_bytes()` with what was done
/// assert_eq!(inbox.claim(id), Claim::Seen); // it came again
/// let mut restored = Inbox::from_bytes(&inbox.to_bytes()).unwrap();
/// assert_eq!(restored.claim(id), Claim::Seen);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Inbox {
    streams: BTreeMap<StreamId, Stream>,
    uses: u64,
}

/// Whether a message is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is, and from now on it is not.
    Fresh,
    /// It was done with before.
    Seen,
}

#[derive(Debug, Clone, Default)]
struct Stream {
    floor: u64,
    /// The life that said so. Of messages that later ones accepted it says nothing: a stream that was put back from a copy
    /// goes on with a lower floor.
    told_by: u64,
    /// The latest incarnation that was heard of.
    incarnation: u64,
    done: BTreeMap<u64, Ranges>,
    used: u64,
}

impl PartialEq for Inbox {
    /// When its streams were used last makes no difference.
    fn eq(&self, other: &Self) -> bool {
        self.streams == other.streams
    }
}

impl Eq for Inbox {}

impl PartialEq for Stream {
    fn eq(&self, other: &Self) -> bool {
        let all = |stream: &Self| (stream.floor, stream.told_by, stream.incarnation);
        all(self) == all(other) && self.done == other.done
    }
}

impl Eq for Stream {}

impl Inbox {
    /// Whether this message was done with before. From now on it was.
    pub fn claim(&mut self, id: MessageId) -> Claim {
        if self.is_done(&id) {
            return Claim::Seen;
        }
        let stream = self.stream(id.stream);
        stream.done.entry(id.incarnation).or_default().insert(id.seq..id.seq.saturating_add(1));
        Claim::Fresh
    }

    /// Whether this message was done with before.
    pub fn is_done(&self, id: &MessageId) -> bool {
        self.streams.get(&id.stream).is_some_and(|stream| {
            let done = |ranges: &Ranges| ranges.range_of(id.seq).is_some();
            let below = id.seq < stream.floor && id.incarnation <= stream.told_by;
            below || stream.done.get(&id.incarnation).is_some_and(done)
        })
    }

    /// What either is done with.
    pub fn merge(&mut self, other: &Self) {
        for (id, theirs) in &other.streams {
            let ours = self.stream(*id);
            ours.incarnation = ours.incarnation.max(theirs.incarnation);
            for (&incarnation, ranges) in &theirs.done {
                ours.done.entry(incarnation).or_default().extend(ranges);
            }
            // The higher floor stays that of the life that told it.
            let (floor, told_by) = (ours.floor, ours.told_by).max((theirs.floor, theirs.told_by));
            (ours.floor, ours.told_by) = (floor, told_by);
            ours.done.retain(|&incarnation, ranges| {
                if incarnation <= told_by {
                    ranges.remove_below(floor);
                }
                !ranges.is_empty()
            });
        }
    }

    /// Nothing with a seq below comes again in this stream, of its lives that are known: it need not be remembered one by
    /// one.
    pub fn forget_below(&mut self, stream: &StreamId, floor: u64) {
        let stream = self.stream(*stream);
        if floor >= stream.floor {
            let claimed = stream.done.last_key_value().map_or(0, |(&incarnation, _)| incarnation);
            stream.told_by = stream.told_by.max(stream.incarnation).max(claimed);
            stream.floor = floor;
            stream.done.retain(|_, ranges| {
                ranges.remove_below(floor);
                !ranges.is_empty()
            });
        }
    }

    /// A life of this stream was heard of. `Err`: a later one is known, or another of the same age.
    pub(super) fn heard_of(&mut self, stream: &StreamId, incarnation: u64) -> Result<(), u64> {
        let stream = self.stream(*stream);
        let age = |incarnation: u64| incarnation >> 32;
        if stream.incarnation != incarnation && age(incarnation) <= age(stream.incarnation) {
            return Err(stream.incarnation);
        }
        stream.incarnation = incarnation;
        Ok(())
    }

    /// Whether more of this stream can be remembered.
    pub(super) fn has_room(&self, stream: &StreamId) -> Result<(), Misbehaved> {
        let ranges = |stream: &Stream| stream.done.values().map(Ranges::len).sum::<usize>();
        match self.streams.get(stream).map_or(0, ranges) < RANGES {
            true => Ok(()),
            false => Err(Misbehaved::TooScattered { limit: RANGES }),
        }
    }

    /// What is done of this stream above its floor, by incarnation; the first so many ranges of it.
    pub(super) fn done(&self, stream: &StreamId, mut at_most: usize) -> Vec<(u64, Ranges)> {
        let mut done = Vec::new();
        for (&incarnation, ranges) in self.streams.get(stream).iter().flat_map(|stream| &stream.done) {
            let mut some = Ranges::default();
            ranges.iter().take(at_most).for_each(|range| some.insert(range));
            at_most -= some.len();
            if some.is_empty() {
                break;
            }
            done.push((incarnation, some));
        }
        done
    }

    fn stream(&mut self, id: StreamId) -> &mut Stream {
        self.uses += 1;
        if self.streams.len() >= STREAMS && !self.streams.contains_key(&id) {
            let oldest = self.streams.iter().min_by_key(|(_, stream)| stream.used).map(|(&id, _)| id);
            oldest.map(|oldest| self.streams.remove(&oldest));
        }
        let stream = self.streams.entry(id).or_default();
        stream.used = self.uses;
        stream
    }

    /// All of it as bytes, to be kept and [read](Self::from_bytes) again.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (id, stream) in &self.streams {
            out.extend_from_slice(id);
            delivery::put(&mut out, &(stream.floor, stream.told_by, stream.incarnation, stream.done.len() as u64));
            for (incarnation, ranges) in &stream.done {
                delivery::put(&mut out, incarnation);
                delivery::put_ranges(&mut out, ranges);
            }
        }
        out
    }

    /// What [`to_bytes`](Self::to_bytes) gave; `None` for any other bytes.
    pub fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let mut inbox = Self::default();
        while !bytes.is_empty() {
            let (id, rest) = bytes.split_first_chunk()?;
            bytes = rest;
            let (floor, told_by, incarnation, count): (u64, u64, u64, u64) = delivery::take(&mut bytes).ok()?;
            let mut done = BTreeMap::new();
            for _ in 0..count {
                let of = delivery::take(&mut bytes).ok()?;
                done.insert(of, delivery::take_ranges(&mut bytes).ok()?);
            }
            inbox.uses += 1;
            inbox.streams.insert(*id, Stream { floor, told_by, incarnation, done, used: inbox.uses });
        }
        Some(inbox)
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn id(stream: u8, incarnation: u64, seq: u64) -> MessageId {
        MessageId { stream: [stream; 16], incarnation, seq }
    }

    proptest! {
        #[test]
        fn like_a_set_of_identities(
            claims in prop::collection::vec((0u8..3, 1u64..3, 0u64..20, 0u8..6), 1..200),
        ) {
            let (mut inbox, mut set, mut floors) = (Inbox::default(), BTreeSet::new(), [(0, 0, 0); 3]);
            for (stream, incarnation, seq, what) in claims {
                let (floor, told_by, newest): &mut (u64, u64, u64) = &mut floors[usize::from(stream)];
                if what == 0 {
                    (*floor, *told_by) = if seq >= *floor { (seq, *newest) } else { (*floor, *told_by) };
                    inbox.forget_below(&[stream; 16], seq);
                } else {
                    let below = seq < *floor && incarnation <= *told_by;
                    let fresh = set.insert((stream, incarnation, seq)) && !below;
                    *newest = incarnation.max(*newest);
                    prop_assert_eq!(inbox.claim(id(stream, incarnation, seq)) == Claim::Fresh, fresh);
                }
                let read = Inbox::from_bytes(&inbox.to_bytes());
                prop_assert_eq!(read.as_ref(), Some(&inbox));
                let mut merged = Inbox::default();
                merged.merge(&inbox);
                prop_assert_eq!(&merged, &inbox);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _read = Inbox::from_bytes(&bytes);
        }
    }

    #[test]
    fn what_is_remembered_stays_bounded() {
        let mut inbox = Inbox::default();
        for number in 0..=STREAMS as u64 {
            let mut stream = [0; 16];
            stream[..8].copy_from_slice(&number.to_le_bytes());
            inbox.claim(MessageId { stream, incarnation: 1, seq: 1 });
        }
        assert_eq!(inbox.streams.len(), STREAMS);
        assert_eq!(inbox.claim(id(0, 1, 1)), Claim::Fresh, "the oldest was forgotten");
        (0..RANGES as u64).for_each(|seq| {
            assert_eq!(inbox.has_room(&[7; 16]), Ok(()));
            inbox.claim(id(7, 1, 2 * seq));
        });
        assert_eq!(inbox.has_room(&[7; 16]), Err(Misbehaved::TooScattered { limit: RANGES }));
    }

    #[test]
    fn a_life_of_a_stream_that_is_not_newer_is_not_its_successor() {
        let mut inbox = Inbox::default();
        let life = |age: u64, chance: u64| age << 32 | chance;
        assert_eq!(inbox.heard_of(&[1; 16], life(2, 5)), Ok(()));
        assert_eq!(inbox.heard_of(&[1; 16], life(2, 5)), Ok(()));
        assert_eq!(inbox.heard_of(&[1; 16], life(2, 6)), Err(life(2, 5)));
        assert_eq!(inbox.heard_of(&[1; 16], life(1, 9)), Err(life(2, 5)));
        assert_eq!(inbox.heard_of(&[1; 16], life(3, 0)), Ok(()));
    }

    #[test]
    fn the_floor_of_an_earlier_life_is_not_merged_into_a_later_one() {
        let (mut early, mut late) = (Inbox::default(), Inbox::default());
        early.claim(id(1, 1, 899));
        early.forget_below(&[1; 16], 900);
        late.claim(id(1, 2, 600));
        late.forget_below(&[1; 16], 500);
        for (mut one, other) in [(early.clone(), late.clone()), (late, early)] {
            one.merge(&other);
            assert_eq!(one.claim(id(1, 1, 899)), Claim::Seen);
            assert_eq!(one.claim(id(1, 2, 600)), Claim::Seen);
            assert_eq!(one.claim(id(1, 2, 700)), Claim::Fresh);
        }
    }
}
