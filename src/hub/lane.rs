//! Messages that wait for one peer, in order: frames one behind the other, as a stream takes them. A peer in memory gets
//! the same buffers instead of their bytes, and large messages as they are.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use ropewalk_patterns::{
    Message, Outgoing, Part, Tally,
    extension::{Gap, Goodbye},
    zmtp::{Command, Header, Limits, encode_part, take_message},
};

use super::batch::{BATCH_BYTES, Batch};

/// Parts from this size on are not copied into the buffer but written from where they are, if they are counted.
pub(super) const SHARE_FROM: usize = 8 << 10;

/// Frames of many messages from this size on, that several peers get alike.
const SHARE_RUN_FROM: usize = 2 << 10;

/// One thing in a lane, in its order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// What it takes of the segments.
    pub(super) len: usize,
    /// What the message costs; 0 for a gap.
    pub(super) cost: u64,
}

/// A piece of a lane. Only a stream's may divide a message, between its parts.
#[derive(Debug)]
pub(crate) enum Segment {
    Frames(Bytes),
    /// For a peer in memory.
    Message(Message),
    Gap(u64),
    Goodbye(Goodbye),
}

/// Messages and gaps in order, each remembered by its length and cost.
#[derive(Debug)]
pub(crate) struct Lane {
    /// For a peer in memory.
    memory: bool,
    sealed: VecDeque<Segment>,
    /// Frames behind the sealed ones. Small parts are copied to here.
    tail: Vec<u8>,
    marks: VecDeque<Mark>,
    tally: Tally,
}

impl Lane {
    pub(crate) fn new(memory: bool) -> Self {
        let (sealed, tail, marks) = (VecDeque::new(), Vec::new(), VecDeque::new());
        Self { memory, sealed, tail, marks, tally: Tally::ZERO }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    #[inline]
    pub(crate) fn push(&mut self, message: &Outgoing<'_>, cost: u64) {
        let len = if self.memory && message.bytes() >= SHARE_FROM as u64 {
            self.seal(Segment::Message(message.to_message()))
        } else {
            self.encode(message)
        };
        self.mark(len, cost);
    }

    /// Like [`push`](Self::push) of one part that is small enough to be copied.
    #[inline]
    pub(crate) fn push_small(&mut self, part: &[u8], cost: u64) {
        let before = self.tail.len();
        encode_part(&mut self.tail, false, part.len());
        self.tail.extend_from_slice(part);
        self.mark(self.tail.len() - before, cost);
    }

    /// Like [`push`](Self::push), with the frames already encoded for several peers.
    pub(crate) fn push_copy(&mut self, frames: &Bytes, cost: u64) {
        self.put(Part::Shared(frames));
        self.mark(frames.len(), cost);
    }

    /// Puts many messages behind the last: these frames, which are marked so and are not copied for each peer unless they
    /// are few.
    pub(super) fn push_run(&mut self, frames: &Bytes, marks: &[Mark], tally: Tally) {
        if frames.len() < SHARE_RUN_FROM {
            self.tail.extend_from_slice(frames);
        } else {
            self.seal(Segment::Frames(frames.clone()));
        }
        self.marks.extend(marks);
        self.tally = self.tally.plus(tally);
    }

    /// Says at this place that messages were left out. Only a peer that speaks the extension is told.
    pub(crate) fn push_gap(&mut self, missed: u64) {
        let len = if self.memory {
            self.seal(Segment::Gap(missed))
        } else {
            let mut frame = BytesMut::new();
            Command::Gap(Gap { missed }).encode(false, &mut frame);
            self.tail.extend_from_slice(&frame);
            frame.len()
        };
        self.marks.push_back(Mark { len, cost: 0 });
    }

    #[inline]
    fn mark(&mut self, len: usize, cost: u64) {
        self.marks.push_back(Mark { len, cost });
        self.tally.add(cost);
    }

    #[inline]
    fn encode(&mut self, message: &Outgoing<'_>) -> usize {
        let mut len = 0;
        message.for_each_part(|part, more| {
            let before = self.tail.len();
            let body = part.bytes().len();
            encode_part(&mut self.tail, more, body);
            len += self.tail.len() - before + body;
            self.put(part);
        });
        len
    }

    #[inline]
    fn put(&mut self, part: Part<'_>) {
        match part {
            Part::Shared(bytes) if bytes.len() >= SHARE_FROM => {
                self.seal(Segment::Frames(bytes.clone()));
            }
            part => self.tail.extend_from_slice(part.bytes()),
        }
    }

    /// Puts something behind the tail. Its length.
    fn seal(&mut self, segment: Segment) -> usize {
        if !self.tail.is_empty() {
            // What is given away in memory does not come back.
            let next = if self.memory { Vec::with_capacity(self.tail.len()) } else { Vec::new() };
            self.sealed.push_back(Segment::Frames(std::mem::replace(&mut self.tail, next).into()));
        }
        let len = segment.len();
        self.sealed.push_back(segment);
        len
    }

    /// Takes so much from the front.
    fn take(&mut self, mut len: usize, mut sink: impl FnMut(Segment)) {
        while len > 0 {
            if self.sealed.is_empty() && !self.tail.is_empty() {
                self.sealed.push_back(Segment::Frames(std::mem::take(&mut self.tail).into()));
            }
            let Some(mut segment) = self.sealed.pop_front() else { return };
            if let Segment::Frames(frames) = &mut segment
                && frames.len() > len
            {
                self.sealed.push_front(Segment::Frames(frames.split_off(len)));
            }
            len = len.saturating_sub(segment.len());
            sink(segment);
        }
    }

    /// Moves what `covers` says yes to, from the front, to the end of another lane. It is asked for the cost of each.
    pub(crate) fn move_while(&mut self, into: &mut Self, mut covers: impl FnMut(u64) -> bool) {
        let mut len = 0;
        while let Some(&mark) = self.marks.front() {
            if mark.cost > 0 {
                if !covers(mark.cost) {
                    break;
                }
                self.tally.remove(mark.cost);
                into.tally.add(mark.cost);
            }
            self.marks.pop_front();
            into.marks.push_back(mark);
            len += mark.len;
        }
        self.take(len, |segment| match segment {
            Segment::Frames(frames) => into.put(Part::Shared(&frames)),
            segment => {
                into.seal(segment);
            }
        });
    }

    /// What the oldest message costs.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.marks.iter().find(|mark| mark.cost > 0).map(|mark| mark.cost)
    }

    /// Takes the oldest message away and the gaps before it. What those said was missed, or `None` if there is no
    /// message.
    pub(crate) fn drop_oldest(&mut self) -> Option<u64> {
        let index = self.marks.iter().position(|mark| mark.cost > 0)?;
        let gaps: usize = self.marks.drain(..index).map(|mark| mark.len).sum();
        let mark = self.marks.pop_front()?;
        self.tally.remove(mark.cost);
        let mut missed = 0;
        self.take(gaps, |segment| {
            missed += match segment {
                Segment::Frames(frames) => missed_in(frames),
                Segment::Gap(missed) => missed,
                Segment::Message(_) | Segment::Goodbye(_) => 0,
            }
        });
        self.take(mark.len, drop);
        Some(missed)
    }

    /// Moves about [`BATCH_BYTES`] from the front into the batch.
    pub(crate) fn take_batch(&mut self, batch: &mut Batch) {
        if self.tally.bytes <= BATCH_BYTES as u64 && batch.marks.is_empty() {
            return self.take_all(batch);
        }
        let mut len = 0;
        let mut cost = 0;
        while cost < BATCH_BYTES as u64
            && let Some(mark) = self.marks.pop_front()
        {
            if mark.cost > 0 {
                self.tally.remove(mark.cost);
                batch.tally.add(mark.cost);
            }
            len += mark.len;
            cost += mark.cost;
            batch.marks.push_back(mark);
        }
        self.take(len, |segment| batch.data.push_back(segment));
    }

    /// Changes places with an empty batch.
    fn take_all(&mut self, batch: &mut Batch) {
        std::mem::swap(&mut self.marks, &mut batch.marks);
        std::mem::swap(&mut self.sealed, &mut batch.data);
        batch.tally = std::mem::take(&mut self.tally);
        if !self.tail.is_empty() {
            let next = if self.memory { Vec::with_capacity(self.tail.len()) } else { std::mem::take(&mut batch.spare) };
            batch.data.push_back(Segment::Frames(std::mem::replace(&mut self.tail, next).into()));
        }
    }

    /// Lets go of empty buffers.
    pub(crate) fn rest(&mut self) {
        if self.is_empty() {
            *self = Self::new(self.memory);
        }
    }

    /// All messages, oldest first; the lane is empty then.
    pub(crate) fn drain(&mut self) -> Vec<Message> {
        let tail = Segment::Frames(std::mem::take(&mut self.tail).into());
        let messages = messages_of(self.sealed.drain(..).chain([tail]), 0);
        self.marks.clear();
        self.tally = Tally::ZERO;
        messages
    }
}

impl Segment {
    /// What it takes of a lane: its bytes, or 1 if it has none.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Frames(frames) => frames.len(),
            Self::Message(_) | Self::Gap(_) | Self::Goodbye(_) => 1,
        }
    }
}

/// The messages in segments, behind so much of them.
pub(super) fn messages_of(segments: impl Iterator<Item = Segment>, mut skip: usize) -> Vec<Message> {
    let (mut messages, mut frames) = (Vec::new(), BytesMut::new());
    for segment in segments {
        let skipped = skip.min(segment.len());
        skip -= skipped;
        match segment {
            Segment::Frames(mut part) => frames.extend_from_slice(&part.split_off(skipped)),
            Segment::Message(message) if skipped == 0 => {
                messages.extend(messages_in(frames.split().freeze()));
                messages.push(message);
            }
            Segment::Message(_) | Segment::Gap(_) | Segment::Goodbye(_) => {}
        }
    }
    messages.extend(messages_in(frames.freeze()));
    messages
}

/// What the gaps in these frames say was missed. They are our own.
fn missed_in(mut frames: Bytes) -> u64 {
    let mut missed = 0;
    while let Ok(Some(header)) = Header::read(&frames) {
        let mut frame = frames.split_to(frames.len().min(header.total() as usize));
        if let Ok(Command::Gap(gap)) = Command::decode(frame.split_off(header.len()), &Limits::default()) {
            missed += gap.missed;
        }
    }
    missed
}

/// The messages in encoded frames; commands between them are left out.
pub(crate) fn messages_in(mut bytes: Bytes) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        if let Some(message) = take_message(&mut bytes) {
            messages.push(message);
            continue;
        }
        match Header::read(&bytes) {
            Ok(Some(header)) if header.command && header.total() <= bytes.len() as u64 => {
                let _command = bytes.split_to(header.total() as usize);
            }
            _ => return messages,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(lane: &mut Lane, text: &str) {
        let message = Outgoing::from(Message::from(text));
        lane.push(&message, message.cost());
    }

    fn texts(messages: &[Message]) -> Vec<&str> {
        messages.iter().map(|message| message.text().unwrap()).collect()
    }

    fn bytes_of(batch: &Batch) -> Bytes {
        let frames =
            |segment: &Segment| if let Segment::Frames(frames) = segment { frames.clone() } else { Bytes::new() };
        batch.data.iter().flat_map(frames).collect()
    }

    #[test]
    fn both_kinds_keep_order_and_count() {
        for mut lane in [Lane::new(false), Lane::new(true)] {
            let large = "x".repeat(SHARE_FROM);
            for text in ["one", &large, "three"] {
                push(&mut lane, text);
            }
            lane.push_gap(7);
            push(&mut lane, "five");
            assert_eq!(lane.tally(), Tally::new(4, 4 * 64 + 12 + SHARE_FROM as u64));
            let mut other = Lane::new(lane.memory);
            let mut left = 2;
            lane.move_while(&mut other, |_| {
                left -= 1;
                left >= 0
            });
            assert_eq!((other.tally().messages, lane.tally().messages), (2, 2));
            assert_eq!(texts(&other.drain()), ["one", &large]);
            assert_eq!(texts(&lane.drain()), ["three", "five"]);
            assert!(lane.is_empty() && lane.tally().is_zero());
        }
    }

    #[test]
    fn the_oldest_message_goes_with_the_gaps_before_it() {
        for mut lane in [Lane::new(false), Lane::new(true)] {
            lane.push_gap(1);
            lane.push_gap(300);
            push(&mut lane, "one");
            push(&mut lane, "two");
            assert_eq!((lane.oldest(), lane.drop_oldest()), (Some(67), Some(301)));
            push(&mut lane, "three");
            assert_eq!(lane.drop_oldest(), Some(0));
            assert_eq!(lane.tally(), Tally::new(1, 69));
            assert_eq!(texts(&lane.drain()), ["three"]);
            assert_eq!((lane.oldest(), lane.drop_oldest()), (None, None));
        }
    }

    #[test]
    fn frames_encoded_once_are_the_same_frames() {
        let message = Outgoing::from(Message::from(["topic", "payload"]));
        let mut alone = Lane::new(false);
        alone.push(&message, message.cost());
        let mut batch = Batch::default();
        alone.take_batch(&mut batch);
        let frames = bytes_of(&batch);
        let mut copied = Lane::new(false);
        copied.push_copy(&frames, message.cost());
        let mut batch = Batch::default();
        copied.take_batch(&mut batch);
        assert_eq!(bytes_of(&batch), frames);
    }
}
