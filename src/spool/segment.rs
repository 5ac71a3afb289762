//! One file of the log: its head, and walking over its frames.
//!
//! ```text
//! 0      head, 4 KiB: magic, version, salt, stream, incarnation, number, where it begins (seq, lsn), how the one before ended
//! 4096   CHECKPOINT: all cursors
//! ...    frames
//!        zeros, where room was made ready, or what another segment has left, whose file this was
//! ```
//! A segment belongs to one incarnation: what was written before a crash is never appended to. Its name is its number,
//! not its first seq: so the next one can be made, and its name be durable, before it is known where it will begin.

use std::{io, ops::Range};

use bytes::Bytes;

use super::{
    record::{HEAD, Head, Kind, Take},
    storage::{File, read_up_to},
};

/// Where the first frame stands.
pub(super) const BODY: u64 = 4096;
/// No segment is made larger, and no body is believed to be.
pub(super) const LARGEST: u64 = 256 << 20;
/// What is read at once.
const WINDOW: usize = 256 << 10;

const MAGIC: &[u8; 8] = b"Ropewalk";
const VERSION: u32 = 1;

pub(super) fn name(number: u64) -> String {
    format!("{number:020}.seg")
}

pub(super) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 20)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The head of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHead {
    /// Makes its frames its own: see [`record`](super::record).
    pub(super) salt: u32,
    pub(super) stream: [u8; 16],
    pub(super) incarnation: u64,
    pub(super) number: u64,
    pub(super) base_seq: u64,
    /// No seq in here reaches it. An opening that was not closed in order is followed by one that begins there: what a
    /// crash took had perhaps been seen already, and a seq is never given twice.
    pub(super) seq_limit: u64,
    pub(super) base_lsn: u64,
    /// The segment before; files between the two do not count.
    pub(super) prev_number: u64,
    /// How long it is; what stands behind that in its file does not count.
    pub(super) prev_len: u64,
    pub(super) prev_end_seq: u64,
    /// No record in here was appended before.
    pub(super) since_ms: u64,
    /// The stream of the segment before: another one when the log was forked in between.
    pub(super) prev_stream: [u8; 16],
    /// How long the file is when the segment was [rewritten](super::rescue), else 0.
    pub(super) kept_len: u64,
    /// How long the file was when it was [used again](super::prepare) for this segment, else 0.
    pub(super) reused_len: u64,
}

impl SegmentHead {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.salt.to_le_bytes());
        bytes.extend_from_slice(&self.stream);
        for number in [
            self.incarnation,
            self.number,
            self.base_seq,
            self.seq_limit,
            self.base_lsn,
            self.prev_number,
            self.prev_len,
            self.prev_end_seq,
            self.since_ms,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.prev_stream);
        bytes.extend_from_slice(&self.kept_len.to_le_bytes());
        bytes.extend_from_slice(&self.reused_len.to_le_bytes());
        bytes.resize(BODY as usize - 4, 0);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Found> {
        let (body, crc) = bytes.split_at_checked(BODY as usize - 4)?;
        let mut take = Take(body);
        if take.bytes(8)? != MAGIC || Take(crc).u32()? != crc32c::crc32c(body) {
            return None;
        }
        let version = take.u32()?;
        if version != VERSION {
            return Some(Found::Version(version));
        }
        let head = Self {
            salt: take.u32()?,
            stream: take.bytes(16)?.try_into().ok()?,
            incarnation: take.u64()?,
            number: take.u64()?,
            base_seq: take.u64()?,
            seq_limit: take.u64()?,
            base_lsn: take.u64()?,
            prev_number: take.u64()?,
            prev_len: take.u64()?,
            prev_end_seq: take.u64()?,
            since_ms: take.u64()?,
            prev_stream: take.bytes(16)?.try_into().ok()?,
            kept_len: take.u64()?,
            reused_len: take.u64()?,
        };
        let places = [head.base_lsn, head.prev_len, head.kept_len, head.reused_len];
        let seqs = [head.base_seq, head.seq_limit, head.prev_end_seq];
        let sane = places.into_iter().chain(seqs).chain([head.since_ms]).all(|number| number < 1 << 62);
        sane.then_some(Found::Head(head))
    }

    pub(super) fn read(file: &dyn File) -> io::Result<Found> {
        Ok(Self::parse(&read_up_to(file, BODY as usize, 0)?).unwrap_or(Found::Nothing))
    }
}

/// What stands at the beginning of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Head(SegmentHead),
    /// A head of a version that is not known here.
    Version(u32),
    /// None that is whole.
    Nothing,
}

/// A segment of the log, as it is known without reading it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) stream: Option<[u8; 16]>,
    pub(super) base_lsn: u64,
    pub(super) incarnation: u64,
    pub(super) salt: u32,
    pub(super) base_seq: u64,
    pub(super) end_seq: u64,
    pub(super) len: u64,
    pub(super) since_ms: u64,
    /// As in its head: tells a segment from itself before it was rewritten.
    pub(super) kept_len: u64,
    /// What the checkpoint at its beginning takes: bytes that no record has to answer for.
    pub(super) book: u64,
    /// Bytes of its file that do not count any more, and are there all the same.
    pub(super) slack: u64,
}

impl Segment {
    /// The segment that this head begins, without anything in it.
    pub(super) fn of(head: &SegmentHead) -> Self {
        Self {
            number: head.number,
            stream: Some(head.stream),
            base_lsn: head.base_lsn,
            incarnation: head.incarnation,
            salt: head.salt,
            base_seq: head.base_seq,
            end_seq: head.base_seq,
            len: BODY,
            since_ms: head.since_ms,
            kept_len: head.kept_len,
            book: 0,
            slack: 0,
        }
    }

    /// What it takes of the disk.
    pub(super) fn on_disk(&self) -> u64 {
        self.len + self.slack
    }

    pub(super) fn name(&self) -> String {
        name(self.number)
    }
}

/// A frame that is whole.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) at: u64,
    pub(super) head: Head,
    pub(super) body: Bytes,
}

#[derive(Debug)]
pub(super) enum Step {
    Frame(Frame),
    /// Here should be a frame and is none that is whole.
    Bad,
    End,
}

/// Walks over the frames of a segment.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    file: &'a dyn File,
    base_lsn: u64,
    incarnation: u64,
    salt: u32,
    pub(super) at: u64,
    end: u64,
    window: Bytes,
    window_at: u64,
    /// What the heads seen so far say was synced.
    pub(super) proven: u64,
    /// Where the last frame ends of which a head was seen.
    pub(super) begun: u64,
    /// No seq in the heads seen so far reaches it.
    pub(super) seen_seq: u64,
    /// No record of the frames seen so far was appended after it.
    pub(super) seen_ms: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(file: &'a dyn File, segment: &Segment, at: u64, end: u64) -> Self {
        let &Segment { base_lsn, incarnation, salt, .. } = segment;
        let (window, window_at) = (Bytes::new(), 0);
        Self {
            file,
            base_lsn,
            incarnation,
            salt,
            at,
            end,
            window,
            window_at,
            proven: 0,
            begun: 0,
            seen_seq: 0,
            seen_ms: 0,
        }
    }

    /// The frame here, and on to the next.
    pub(super) fn next(&mut self) -> io::Result<Step> {
        if self.at >= self.end {
            return Ok(Step::End);
        }
        let Some(frame) = self.frame()? else { return Ok(Step::Bad) };
        self.at += frame.head.frame_len();
        Ok(Step::Frame(frame))
    }

    /// On over the frames that `unwanted` does not want, of which only the heads are looked at. The head of the first
    /// that is wanted; none when there is none, or no head where one should be.
    pub(super) fn skip(&mut self, mut unwanted: impl FnMut(&Head) -> bool) -> io::Result<Option<Head>> {
        while self.at < self.end
            && let Some(head) = self.head()?
        {
            if !unwanted(&head) {
                return Ok(Some(head));
            }
            self.at += head.frame_len();
        }
        Ok(None)
    }

    /// On to the next place behind this one where a whole frame begins; whether there is one.
    pub(super) fn resync(&mut self) -> io::Result<bool> {
        loop {
            self.at = (self.at + 8).next_multiple_of(8);
            if self.at >= self.end {
                return Ok(false);
            }
            if self.head()?.is_some() && self.frame()?.is_some() {
                return Ok(true);
            }
        }
    }

    fn frame(&mut self) -> io::Result<Option<Frame>> {
        let Some(head) = self.head()? else { return Ok(None) };
        let whole = self.look(self.at, head.frame_len() as usize)?;
        let body_end = HEAD + head.body_len as usize;
        if whole.len() < body_end {
            return Ok(None);
        }
        let body = whole.slice(HEAD..body_end);
        let found = crc32c::crc32c(&body) == head.body_crc;
        Ok(found.then_some(Frame { at: self.at, head, body }))
    }

    fn head(&mut self) -> io::Result<Option<Head>> {
        let head = Head::read(&self.look(self.at, HEAD)?, self.salt);
        let ours = |head: &Head| head.lsn == self.base_lsn + self.at && head.incarnation == self.incarnation;
        let Some(head) = head.filter(ours) else { return Ok(None) };
        // Also a head whose body is not whole tells the truth.
        self.proven = self.proven.max(head.synced_lsn);
        self.begun = self.begun.max((self.at + head.frame_len()).min(self.end));
        self.seen_seq = self.seen_seq.max(head.end_seq());
        self.seen_ms = self.seen_ms.max(head.appended_ms);
        let fits = u64::from(head.body_len) <= LARGEST && self.at + head.frame_len() <= self.end;
        Ok(fits.then_some(head))
    }

    /// These bytes, or as many as there are.
    fn look(&mut self, at: u64, len: usize) -> io::Result<Bytes> {
        let inside = |window: &Bytes, window_at: u64| {
            let from = usize::try_from(at.checked_sub(window_at)?).ok()?;
            (from + len <= window.len()).then(|| window.slice(from..from + len))
        };
        if let Some(bytes) = inside(&self.window, self.window_at) {
            return Ok(bytes);
        }
        let rest = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX);
        self.window = read_up_to(self.file, WINDOW.max(len).min(rest), at)?.into();
        self.window_at = at;
        Ok(self.window.slice(..len.min(self.window.len())))
    }
}

/// What the first frame takes, when that is a checkpoint.
pub(super) fn book(file: &dyn File, head: &SegmentHead) -> io::Result<u64> {
    let segment = Segment::of(head);
    let first = Walk::new(file, &segment, BODY, BODY + HEAD as u64).look(BODY, HEAD)?;
    let first = Head::read(&first, head.salt)
        .filter(|first| first.kind == Kind::Checkpoint && first.lsn == head.base_lsn + BODY);
    Ok(first.map_or(0, |first| first.frame_len()))
}

/// What a frame in a file whose own head is lost says of that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Orphan {
    pub(super) base_lsn: u64,
    pub(super) incarnation: u64,
    pub(super) salt: u32,
    pub(super) first_seq: u64,
}

impl Orphan {
    /// The segment it is of, as far as it says.
    pub(super) fn segment(&self, number: u64) -> Segment {
        let &Self { base_lsn, incarnation, salt, .. } = self;
        let (base_seq, end_seq, len, since_ms, kept_len, book, slack) = (0, 0, 0, 0, 0, 0, 0);
        Segment {
            number,
            stream: None,
            base_lsn,
            incarnation,
            salt,
            base_seq,
            end_seq,
            len,
            since_ms,
            kept_len,
            book,
            slack,
        }
    }
}

/// The first frame of a file whose own head is lost, and with it the salt; where the segment begins in the log is one of
/// `bases`, and so frames do not count that are left of a segment whose file this was before. Without the salt any bytes
/// can be a head; so its body must be whole. No message stands before the first frame; only when that is damaged, too,
/// bytes of a message could be taken for one, and then what is there is lost, whatever they say.
pub(super) fn any_frame(file: &dyn File, len: u64, bases: &Range<u64>) -> io::Result<Option<Orphan>> {
    // A message full of heads is not read once for each of them.
    let (mut at, mut left) = (BODY, 4 * len);
    while at < len {
        let bytes = read_up_to(file, WINDOW + HEAD, at)?;
        for offset in (0..bytes.len().min(WINDOW)).step_by(8) {
            let place = at + offset as u64;
            let salted = bytes.get(offset..).and_then(Head::salted);
            let Some((head, salt)) = salted else { continue };
            let Head { lsn, incarnation, first_seq, .. } = head;
            let Some(base_lsn) = lsn.checked_sub(place).filter(|base| bases.contains(base)) else { continue };
            let Some(rest) = left.checked_sub(head.frame_len().min(len)) else { return Ok(None) };
            left = rest;
            let found = Orphan { base_lsn, incarnation, salt, first_seq };
            if Walk::new(file, &found.segment(0), place, len).frame()?.is_some() {
                return Ok(Some(found));
            }
        }
        at += WINDOW as u64;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_written() {
        let head = SegmentHead {
            salt: 11,
            stream: [7; 16],
            incarnation: 1 << 32,
            number: 3,
            base_seq: 4,
            seq_limit: 5,
            base_lsn: 6,
            prev_number: 2,
            prev_len: 7,
            prev_end_seq: 8,
            since_ms: 9,
            prev_stream: [8; 16],
            kept_len: 10,
            reused_len: 11,
        };
        let mut bytes = head.to_bytes();
        assert_eq!(SegmentHead::parse(&bytes), Some(Found::Head(head)));
        bytes[4000] ^= 1;
        assert_eq!(SegmentHead::parse(&bytes), None);
    }

    #[test]
    fn a_name_is_read_as_it_is_written() {
        assert_eq!(number(&name(42)), Some(42));
        for other in ["LOCK", "42.seg", "0000000000000000004x.seg", "00000000000000000042.bad"] {
            assert_eq!(number(other), None);
        }
    }
}
