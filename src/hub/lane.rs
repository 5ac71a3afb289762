//! What waits to be written to one peer: encoded frames for a stream, whole messages for a peer in memory.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{BufMut, Bytes, BytesMut};
use ropewalk_patterns::{
    Message, Outgoing, Part, Tally,
    extension::{Gap, Goodbye},
    zmtp::{Command, Header, Limits, encode_part, take_message},
};

/// Parts from this size on are not copied into the buffer but written from where they are, if they are counted.
pub(super) const SHARE_FROM: usize = 8 << 10;

/// A batch ends when it has so many bytes, so that control frames get their turn.
pub(crate) const BATCH_BYTES: usize = 256 << 10;

/// One thing in a lane, in its order.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Encoded bytes; 0 where nothing is encoded.
    len: usize,
    /// What the message costs; 0 for a gap.
    cost: u64,
}

/// What goes to a peer in memory.
#[derive(Debug)]
pub(crate) enum Item {
    Message(Message),
    Gap(u64),
    Goodbye(Goodbye),
}

/// Messages and gaps in order, each remembered by its length and cost.
#[derive(Debug)]
pub(crate) struct Lane {
    store: Store,
    marks: VecDeque<Mark>,
    tally: Tally,
}

#[derive(Debug)]
enum Store {
    Encoded(Encoded),
    Whole(VecDeque<Item>),
}

/// Frames one behind the other: small ones copied together, large ones as they are.
#[derive(Debug, Default)]
struct Encoded {
    sealed: VecDeque<Bytes>,
    tail: Vec<u8>,
}

/// What the link writes next, and what it knows of it.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Control frames, before everything.
    pub(crate) control: Bytes,
    /// Commands for a peer in memory, before everything.
    pub(crate) commands: Vec<Command>,
    /// Encoded data.
    pub(crate) data: VecDeque<Bytes>,
    /// Data for a peer in memory.
    pub(crate) items: VecDeque<Item>,
    marks: VecDeque<Mark>,
    tally: Tally,
    /// A buffer that is written and may be filled again.
    spare: Vec<u8>,
    /// Bytes of control and data that are written.
    written: usize,
    /// No data follows.
    pub(crate) last: bool,
    /// The peer does not know goodbyes: the end of the stream must say it.
    pub(crate) plain_end: bool,
}

impl Lane {
    pub(crate) fn encoded() -> Self {
        Self { store: Store::Encoded(Encoded::default()), marks: VecDeque::new(), tally: Tally::ZERO }
    }

    pub(crate) fn whole() -> Self {
        Self { store: Store::Whole(VecDeque::new()), marks: VecDeque::new(), tally: Tally::ZERO }
    }

    /// An empty lane of the same kind.
    pub(crate) fn alike(&self) -> Self {
        match self.store {
            Store::Encoded(_) => Self::encoded(),
            Store::Whole(_) => Self::whole(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    #[inline]
    pub(crate) fn push(&mut self, message: &Outgoing<'_>, cost: u64) {
        let len = match &mut self.store {
            Store::Encoded(encoded) => encoded.put(message),
            Store::Whole(items) => {
                items.push_back(Item::Message(message.to_message()));
                0
            }
        };
        self.marks.push_back(Mark { len, cost });
        self.tally.add(cost);
    }

    /// Like [`push`](Self::push) of one part that is small enough to be copied. False: it is not for this lane.
    #[inline]
    pub(crate) fn push_small(&mut self, part: &[u8], cost: u64) -> bool {
        let Store::Encoded(encoded) = &mut self.store else { return false };
        let before = encoded.tail.len();
        encode_part(&mut encoded.tail, false, part.len());
        encoded.tail.extend_from_slice(part);
        self.marks.push_back(Mark { len: encoded.tail.len() - before, cost });
        self.tally.add(cost);
        true
    }

    /// Like [`push`](Self::push), with the frames already encoded for several peers.
    pub(crate) fn push_copy(&mut self, frames: &Bytes, message: &Outgoing<'_>, cost: u64) {
        let Store::Encoded(encoded) = &mut self.store else { return self.push(message, cost) };
        encoded.put_bytes(Part::Shared(frames));
        self.marks.push_back(Mark { len: frames.len(), cost });
        self.tally.add(cost);
    }

    /// Says at this place that messages were left out. Only a peer that speaks the extension is told.
    pub(crate) fn push_gap(&mut self, missed: u64) {
        let len = match &mut self.store {
            Store::Encoded(encoded) => {
                let before = encoded.tail.len();
                let mut frame = BytesMut::new();
                Command::Gap(Gap { missed }).encode(false, &mut frame);
                encoded.tail.extend_from_slice(&frame);
                encoded.tail.len() - before
            }
            Store::Whole(items) => {
                items.push_back(Item::Gap(missed));
                0
            }
        };
        self.marks.push_back(Mark { len, cost: 0 });
    }

    /// Moves what `covers` says yes to, from the front, to the end of another lane. It is asked for the cost of each.
    pub(crate) fn move_while(&mut self, into: &mut Self, mut covers: impl FnMut(u64) -> bool) {
        let mut bytes = 0;
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
            bytes += mark.len;
            if let (Store::Whole(from), Store::Whole(to)) = (&mut self.store, &mut into.store) {
                to.extend(from.pop_front());
            }
        }
        if let (Store::Encoded(from), Store::Encoded(to)) = (&mut self.store, &mut into.store) {
            from.take(bytes, |segment| to.put_bytes(Part::Shared(&segment)));
        }
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
        match &mut self.store {
            Store::Encoded(encoded) => {
                let mut frames = BytesMut::new();
                encoded.take(gaps, |segment| frames.put(segment));
                missed = missed_in(frames.freeze());
                encoded.take(mark.len, drop);
            }
            Store::Whole(items) => {
                for item in items.drain(..=index) {
                    missed += if let Item::Gap(missed) = item { missed } else { 0 };
                }
            }
        }
        Some(missed)
    }

    /// Moves about [`BATCH_BYTES`] from the front into the batch.
    pub(crate) fn take_batch(&mut self, batch: &mut Batch) {
        if self.tally.bytes <= BATCH_BYTES as u64 && batch.marks.is_empty() {
            return self.take_all(batch);
        }
        let mut bytes = 0;
        let mut cost = 0;
        while cost < BATCH_BYTES as u64
            && let Some(mark) = self.marks.pop_front()
        {
            if mark.cost > 0 {
                self.tally.remove(mark.cost);
                batch.tally.add(mark.cost);
            }
            bytes += mark.len;
            cost += mark.cost;
            batch.marks.push_back(mark);
            if let Store::Whole(items) = &mut self.store {
                batch.items.extend(items.pop_front());
            }
        }
        if let Store::Encoded(encoded) = &mut self.store {
            encoded.take(bytes, |segment| batch.data.push_back(segment));
        }
    }

    /// Changes places with an empty batch.
    fn take_all(&mut self, batch: &mut Batch) {
        std::mem::swap(&mut self.marks, &mut batch.marks);
        batch.tally = std::mem::take(&mut self.tally);
        match &mut self.store {
            Store::Whole(items) => std::mem::swap(items, &mut batch.items),
            Store::Encoded(encoded) => {
                encoded.take(usize::MAX, |segment| batch.data.push_back(segment));
                encoded.tail = std::mem::take(&mut batch.spare);
            }
        }
    }

    /// Lets go of empty buffers.
    pub(crate) fn rest(&mut self) {
        if self.is_empty() {
            *self = self.alike();
        }
    }

    /// All messages, oldest first; the lane is empty then.
    pub(crate) fn drain(&mut self) -> Vec<Message> {
        let messages = match &mut self.store {
            Store::Encoded(encoded) => {
                let mut bytes = BytesMut::new();
                encoded.take(usize::MAX, |segment| bytes.put(segment));
                messages_in(bytes.freeze())
            }
            Store::Whole(items) => items.drain(..).filter_map(Item::into_message).collect(),
        };
        self.marks.clear();
        self.tally = Tally::ZERO;
        messages
    }
}

impl Item {
    fn into_message(self) -> Option<Message> {
        match self {
            Self::Message(message) => Some(message),
            Self::Gap(_) | Self::Goodbye(_) => None,
        }
    }
}

impl Encoded {
    #[inline]
    fn put(&mut self, message: &Outgoing<'_>) -> usize {
        let mut len = 0;
        message.for_each_part(|part, more| {
            let before = self.tail.len();
            let body = part.bytes().len();
            encode_part(&mut self.tail, more, body);
            len += self.tail.len() - before + body;
            self.put_bytes(part);
        });
        len
    }

    #[inline]
    fn put_bytes(&mut self, part: Part<'_>) {
        match part {
            Part::Shared(bytes) if bytes.len() >= SHARE_FROM => {
                self.seal();
                self.sealed.push_back(bytes.clone());
            }
            part => self.tail.extend_from_slice(part.bytes()),
        }
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.sealed.push_back(std::mem::take(&mut self.tail).into());
        }
    }

    /// Takes so many bytes from the front, or all there are.
    fn take(&mut self, mut bytes: usize, mut sink: impl FnMut(Bytes)) {
        while bytes > 0 {
            if self.sealed.is_empty() {
                self.seal();
            }
            let Some(mut segment) = self.sealed.pop_front() else { return };
            if segment.len() > bytes {
                let rest = segment.split_off(bytes);
                self.sealed.push_front(rest);
            }
            bytes -= segment.len();
            sink(segment);
        }
    }
}

impl Batch {
    /// Empty, ready to be filled again.
    pub(crate) fn clear(&mut self) {
        self.control.clear();
        self.commands.clear();
        self.keep_spare();
        self.data.clear();
        self.items.clear();
        self.marks.clear();
        self.tally = Tally::ZERO;
        self.written = 0;
        self.last = false;
        self.plain_end = false;
    }

    /// The buffer that small messages are copied into goes round and round, unless it has become large.
    fn keep_spare(&mut self) {
        if self.data.len() == 1
            && let Some(written) = self.data.pop_front()
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
        self.control.is_empty() && self.commands.is_empty() && self.data.is_empty() && self.items.is_empty()
    }

    /// The messages in it.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Appends a goodbye behind the data, the last there will be.
    pub(crate) fn finish(&mut self, goodbye: Goodbye, encoded: bool) {
        if encoded {
            let mut frame = BytesMut::new();
            Command::Goodbye(goodbye).encode(false, &mut frame);
            self.data.push_back(frame.freeze());
        } else {
            self.items.push_back(Item::Goodbye(goodbye));
        }
    }

    /// What goes to a peer in memory; it is written then.
    pub(crate) fn hand_over(&mut self) -> (Vec<Command>, VecDeque<Item>) {
        (std::mem::take(&mut self.commands), std::mem::take(&mut self.items))
    }

    /// What is not written yet, in slices. How many there are.
    pub(crate) fn unwritten<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let (mut skip, mut count) = (self.written, 0);
        for segment in std::iter::once(&self.control).chain(&self.data) {
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

    /// So many bytes more are written.
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.written += bytes;
    }

    /// The link broke: the messages that were wholly written, and those that were not.
    pub(crate) fn break_off(&mut self) -> (Tally, Vec<Message>) {
        let written = self.written.saturating_sub(self.control.len());
        let (mut done, mut end) = (Tally::ZERO, 0);
        for mark in &self.marks {
            if mark.len == 0 || end + mark.len > written {
                break;
            }
            end += mark.len;
            if mark.cost > 0 {
                done.add(mark.cost);
            }
        }
        let mut rest = BytesMut::new();
        self.data.iter().for_each(|segment| rest.put_slice(segment));
        let mut unsent = messages_in(rest.freeze().split_off(end));
        unsent.extend(self.items.drain(..).filter_map(Item::into_message));
        self.clear();
        (done, unsent)
    }
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

    #[test]
    fn both_kinds_keep_order_and_count() {
        for mut lane in [Lane::encoded(), Lane::whole()] {
            let large = "x".repeat(SHARE_FROM);
            for text in ["one", &large, "three"] {
                push(&mut lane, text);
            }
            lane.push_gap(7);
            push(&mut lane, "five");
            assert_eq!(lane.tally(), Tally::new(4, 4 * 64 + 12 + SHARE_FROM as u64));
            let mut other = lane.alike();
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
        for mut lane in [Lane::encoded(), Lane::whole()] {
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

    /// Wherever the link breaks: what was wholly written is counted, the rest comes back, and nothing is both.
    #[test]
    fn a_broken_batch_gives_back_what_was_not_wholly_written() {
        let all = ["one", "two", "three"];
        for cut in 0..=(5 + 5 + 4 + 7) {
            let mut lane = Lane::encoded();
            push(&mut lane, all[0]);
            push(&mut lane, all[1]);
            push(&mut lane, all[2]);
            let mut batch = Batch { control: Bytes::from_static(b"ctrl"), ..Batch::default() };
            lane.take_batch(&mut batch);
            written(&mut batch, cut);
            let (done, unsent) = batch.break_off();
            let whole = [9, 14, 21].iter().filter(|&&end| end <= cut).count();
            assert_eq!(done.messages as usize, whole, "cut at {cut}");
            assert_eq!(texts(&unsent), all[whole..], "cut at {cut}");
            assert!(batch.is_empty());
        }
    }

    #[test]
    fn frames_encoded_once_are_the_same_frames() {
        let message = Outgoing::from(Message::from(["topic", "payload"]));
        let mut alone = Lane::encoded();
        alone.push(&message, message.cost());
        let mut batch = Batch::default();
        alone.take_batch(&mut batch);
        let frames: Vec<u8> = batch.data.iter().flatten().copied().collect();
        let mut copied = Lane::encoded();
        copied.push_copy(&frames.clone().into(), &message, message.cost());
        let mut batch = Batch::default();
        copied.take_batch(&mut batch);
        assert_eq!(batch.data.iter().flatten().copied().collect::<Vec<u8>>(), frames);
    }
}
