//! What a link writes next.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Bytes, BytesMut};
use ropewalk_patterns::{Message, Tally, extension::Goodbye, zmtp::Command};

use super::lane::{Mark, Segment, messages_of};

/// A batch ends when it has so many bytes, so that control frames get their turn.
pub(crate) const BATCH_BYTES: usize = 256 << 10;

/// What the link writes next, and what it knows of it.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Control frames, before everything.
    pub(crate) control: Bytes,
    /// Commands for a peer in memory, before everything.
    pub(crate) commands: Vec<Command>,
    pub(super) data: VecDeque<Segment>,
    pub(super) marks: VecDeque<Mark>,
    pub(super) tally: Tally,
    /// A buffer that is written and may be filled again.
    pub(super) spare: Vec<u8>,
    /// Bytes of control and data that are written.
    written: usize,
    /// No data follows.
    pub(crate) last: bool,
    /// The peer does not know goodbyes: the end of the stream must say it.
    pub(crate) plain_end: bool,
}

impl Batch {
    /// Empty, ready to be filled again.
    pub(crate) fn clear(&mut self) {
        self.control.clear();
        self.commands.clear();
        self.keep_spare();
        self.data.clear();
        self.marks.clear();
        self.tally = Tally::ZERO;
        self.written = 0;
        self.last = false;
        self.plain_end = false;
    }

    /// The buffer that small messages are copied into goes round and round, unless it has become large.
    fn keep_spare(&mut self) {
        if self.data.len() == 1
            && let Some(Segment::Frames(written)) = self.data.pop_front()
            && written.len() <= BATCH_BYTES
            && written.is_unique()
        {
            let mut spare = Vec::from(written);
            if spare.capacity() <= BATCH_BYTES {
                spare.clear();
                self.spare = spare;
            }
        }
    }

    /// Lets go of empty buffers.
    pub(crate) fn rest(&mut self) {
        self.spare = Vec::new();
        if self.marks.is_empty() {
            self.marks = VecDeque::new();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.commands.is_empty() && self.data.is_empty()
    }

    /// The messages in it.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Appends a goodbye behind the data, the last there will be.
    pub(crate) fn finish(&mut self, goodbye: Goodbye, encoded: bool) {
        self.data.push_back(if encoded {
            let mut frame = BytesMut::new();
            Command::Goodbye(goodbye).encode(false, &mut frame);
            Segment::Frames(frame.freeze())
        } else {
            Segment::Goodbye(goodbye)
        });
    }

    /// What goes to a peer in memory, each piece with the messages in it; it is written then.
    pub(crate) fn hand_over(&mut self) -> (Vec<Command>, Vec<(Segment, Tally)>) {
        let mut marks = self.marks.drain(..);
        let counted = self.data.drain(..).map(|segment| {
            let (mut tally, mut len) = (Tally::ZERO, 0);
            while len < segment.len()
                && let Some(mark) = marks.next()
            {
                len += mark.len;
                if mark.cost > 0 {
                    tally.add(mark.cost);
                }
            }
            (segment, tally)
        });
        (std::mem::take(&mut self.commands), counted.collect())
    }

    /// What is not written yet, in slices. How many there are.
    pub(crate) fn unwritten<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let (mut skip, mut count) = (self.written, 0);
        let data = self.data.iter().filter_map(|segment| match segment {
            Segment::Frames(frames) => Some(frames),
            _ => None,
        });
        for segment in std::iter::once(&self.control).chain(data) {
            if skip >= segment.len() {
                skip -= segment.len();
                continue;
            }
            let Some(place) = into.get_mut(count) else { break };
            *place = IoSlice::new(&segment[skip..]);
            (skip, count) = (0, count + 1);
        }
        count
    }

    /// Whether some of it is written.
    pub(crate) fn is_begun(&self) -> bool {
        self.written > 0
    }

    /// So many bytes more are written.
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.written += bytes;
    }

    /// The link broke: the messages that were wholly written, and those that were not.
    pub(crate) fn break_off(&mut self) -> (Tally, Vec<Message>) {
        let written = self.written.saturating_sub(self.control.len());
        let (mut done, mut end) = (Tally::ZERO, 0);
        for mark in &self.marks {
            if end + mark.len > written {
                break;
            }
            end += mark.len;
            if mark.cost > 0 {
                done.add(mark.cost);
            }
        }
        let unsent = messages_of(self.data.drain(..), end);
        self.clear();
        (done, unsent)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::lane::Lane, *};

    fn written(batch: &mut Batch, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            let mut slices = [IoSlice::new(&[]); 4];
            let count = batch.unwritten(&mut slices);
            let step = slices[..count].iter().map(|slice| slice.len()).sum::<usize>().min(left);
            batch.advance(step);
            left -= step;
        }
    }

    /// Wherever the link breaks: what was wholly written is counted, the rest comes back, and nothing is both.
    #[test]
    fn a_broken_batch_gives_back_what_was_not_wholly_written() {
        let all = ["one", "two", "three"];
        for cut in 0..=(5 + 5 + 4 + 7) {
            let mut lane = Lane::new(false);
            for text in all {
                lane.push_small(text.as_bytes(), 64 + text.len() as u64);
            }
            let mut batch = Batch { control: Bytes::from_static(b"ctrl"), ..Batch::default() };
            lane.take_batch(&mut batch);
            written(&mut batch, cut);
            let (done, unsent) = batch.break_off();
            let whole = [9, 14, 21].iter().filter(|&&end| end <= cut).count();
            assert_eq!(done.messages as usize, whole, "cut at {cut}");
            assert!(
                unsent.iter().map(Message::payload).eq(all[whole..].iter().map(|text| text.as_bytes())),
                "cut at {cut}"
            );
            assert!(batch.is_empty());
        }
    }

    /// What is handed over in memory says of each piece how much is in it.
    #[test]
    fn each_piece_that_is_handed_over_is_counted() {
        let large = Message::from(vec![7; 9000]);
        let mut lane = Lane::new(true);
        for small in [b"one", b"two"] {
            lane.push_small(small, 67);
        }
        lane.push_gap(5);
        lane.push(&large.clone().into(), large.cost());
        lane.push_small(b"three", 69);
        let mut batch = Batch::default();
        lane.take_batch(&mut batch);
        assert_eq!(batch.tally(), Tally::new(4, 67 + 67 + 9064 + 69));
        let (_, pieces) = batch.hand_over();
        let tallies: Vec<(u64, u64)> = pieces.iter().map(|(_, tally)| (tally.messages, tally.bytes)).collect();
        assert_eq!(tallies, [(2, 134), (0, 0), (1, 9064), (1, 69)]);
        assert!(matches!(&pieces[2].0, Segment::Message(message) if *message == large));
        assert!(batch.is_empty());
    }
}
