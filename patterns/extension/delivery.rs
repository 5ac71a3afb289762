//! What is said about messages that are kept until they are confirmed.
//!
//! ```text
//!   ROPEATTACH   stream(16)  incarnation  floor      sender -> receiver, before the first message
//!   ROPERESUME   name  start(2)  *(incarnation  ranges)   sender <- receiver, in answer: messages may come
//!   ROPEACK      ranges                              sender <- receiver: places that are done with
//!   ROPEVERDICT  place  what  millis  reason         sender <- receiver: 0 again later, 1 never again
//!   ROPEFLOOR    seq                                 sender -> receiver: nothing below comes again
//!   ROPEFENCE    incarnation                         sender <- receiver: the stream goes on elsewhere
//!
//!   ranges = count  *(distance from the end of the one before  length)
//! ```
//!
//! A message of such a stream begins with a part of its own, the [`Header`]. Its *place* is not sent: the first message
//! after ROPEATTACH has place 0, the next 1. Numbers are varints and bytes have their length before them, as everywhere in
//! the extension; the stream and the header are of fixed width.

use alloc::vec::Vec;
use core::ops::Range;

use bytes::{BufMut, Bytes};

use super::{decode, encode};
use crate::{misbehaved::Misbehaved, ranges::Ranges};

pub(crate) const ATTACH: &[u8] = b"ROPEATTACH";
pub(crate) const RESUME: &[u8] = b"ROPERESUME";
pub(crate) const ACK: &[u8] = b"ROPEACK";
pub(crate) const VERDICT: &[u8] = b"ROPEVERDICT";
pub(crate) const FLOOR: &[u8] = b"ROPEFLOOR";
pub(crate) const FENCE: &[u8] = b"ROPEFENCE";

/// The longest name of a subscriber, and the longest reason for a rejection, in bytes.
pub const LONGEST_NAME: usize = 255;

/// One command names at most so many ranges: what is more goes into the next.
pub(crate) const RANGES_AT_ONCE: usize = 1024;

/// A stream of messages: who sent it, once and for all.
pub type StreamId = [u8; 16];

/// The messages that follow on this link are kept until they are confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    /// Whose they are.
    pub stream: StreamId,
    /// Which life of that stream.
    pub incarnation: u64,
    /// No message with a seq below comes again.
    pub floor: u64,
}

/// What the receiver has done already, and from where on it wants messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The name under which a publisher keeps its cursor, in UTF-8; empty for none.
    pub name: Bytes,
    /// Where to begin.
    pub start: Start,
    /// What it is done with, as far as it knows, by incarnation.
    pub done: Vec<(u64, Ranges)>,
}

/// From where on a subscriber wants messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Start {
    /// Where its cursor stands; one that is new, or has no name, begins with what is published next.
    #[default]
    Cursor,
    /// With the oldest message there is.
    Earliest,
    /// With this seq.
    Seq(u64),
    /// With the first message accepted then or later, in milliseconds since 1970.
    Time(u64),
}

/// The messages at these places are done with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ack {
    /// Their places.
    pub places: Ranges,
}

/// Something else than done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The place of the message.
    pub place: u64,
    /// What is to become of it.
    pub what: What,
}

/// What is to become of a message that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// It is to be given to somebody again, after so many milliseconds.
    Release {
        /// How long to wait.
        millis: u64,
    },
    /// It is not to be given to anybody again.
    Reject {
        /// Why; at most [`LONGEST_NAME`] bytes.
        reason: Bytes,
    },
}

impl What {
    /// Why it is rejected, if it is.
    pub fn reason(&self) -> &[u8] {
        match self {
            Self::Reject { reason } => reason,
            Self::Release { .. } => &[],
        }
    }
}

/// No message with a seq below comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// The seq.
    pub seq: u64,
}

/// The receiver knows of a later life of this stream, or of another of the same age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// That one.
    pub incarnation: u64,
}

/// The first part of every message of the stream.
///
/// ```text
///   seq(8)  incarnation(8)  attempt(4)      little-endian; more may follow
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The number of the message in its stream.
    pub seq: u64,
    /// The life of the stream that accepted it.
    pub incarnation: u64,
    /// The how-manieth delivery this is, from 1.
    pub attempt: u32,
}

impl Header {
    /// Its bytes.
    pub const LEN: usize = 20;

    /// As it stands on the wire.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut rest = &mut bytes[..];
        rest.put_u64_le(self.seq);
        rest.put_u64_le(self.incarnation);
        rest.put_u32_le(self.attempt);
        bytes
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Misbehaved> {
        let read = || {
            let (seq, rest) = bytes.split_first_chunk()?;
            let (incarnation, rest) = rest.split_first_chunk()?;
            let (attempt, _) = rest.split_first_chunk()?;
            let header = Self {
                seq: u64::from_le_bytes(*seq),
                incarnation: u64::from_le_bytes(*incarnation),
                attempt: u32::from_le_bytes(*attempt),
            };
            // Seqs are added to elsewhere; no true one comes near the end of 64 bits.
            (header.seq < SEQS && header.attempt > 0).then_some(header)
        };
        read().ok_or(Misbehaved::BadHeader)
    }
}

/// Seqs and places are below this.
const SEQS: u64 = 1 << 62;

impl Attach {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.stream.to_vec();
        put(&mut out, &(self.incarnation, self.floor));
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Misbehaved> {
        let (stream, rest) = bytes.split_first_chunk().ok_or(Misbehaved::BadCommand)?;
        let (incarnation, floor) = decode(rest)?;
        Ok(Self { stream: *stream, incarnation, floor })
    }
}

impl Resume {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, at) = match self.start {
            Start::Cursor => (0_u32, 0),
            Start::Earliest => (1, 0),
            Start::Seq(seq) => (2, seq),
            Start::Time(millis) => (3, millis),
        };
        let mut out = encode(&(&self.name[..], kind, at, self.done.len() as u64));
        for (incarnation, ranges) in &self.done {
            put(&mut out, incarnation);
            put_ranges(&mut out, ranges);
        }
        out
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, Misbehaved> {
        let (name, kind, at, count): (&[u8], u32, u64, u64) = take(&mut bytes)?;
        // A name that is no text cannot be shown to anybody, nor can two be told apart that are shown alike.
        if name.len() > LONGEST_NAME || core::str::from_utf8(name).is_err() {
            return Err(Misbehaved::BadCommand);
        }
        let start = match kind {
            1 => Start::Earliest,
            2 => Start::Seq(at),
            3 => Start::Time(at),
            _ => Start::Cursor,
        };
        let mut done = Vec::new();
        for _ in 0..count {
            done.push((take(&mut bytes)?, take_ranges(&mut bytes)?));
        }
        Ok(Self { name: Bytes::copy_from_slice(name), start, done })
    }
}

impl Ack {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_ranges(&mut out, &self.places);
        out
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, Misbehaved> {
        Ok(Self { places: take_ranges(&mut bytes)? })
    }
}

impl Verdict {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (what, millis, reason): (u32, u64, &[u8]) = match &self.what {
            What::Release { millis } => (0, *millis, &[]),
            What::Reject { reason } => (1, 0, reason.get(..LONGEST_NAME).unwrap_or(reason)),
        };
        encode(&(self.place, what, millis, reason))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Misbehaved> {
        let (place, what, millis, reason): (u64, u32, u64, &[u8]) = decode(bytes)?;
        let what = match what {
            1 => {
                let reason = Bytes::copy_from_slice(reason.get(..LONGEST_NAME).unwrap_or(reason));
                What::Reject { reason }
            }
            // What is not understood is at least not done.
            _ => What::Release { millis },
        };
        Ok(Self { place, what })
    }
}

impl Floor {
    pub(crate) fn encode(self) -> Vec<u8> {
        encode(&self.seq)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Misbehaved> {
        Ok(Self { seq: decode(bytes)? })
    }
}

impl Fence {
    pub(crate) fn encode(self) -> Vec<u8> {
        encode(&self.incarnation)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Misbehaved> {
        Ok(Self { incarnation: decode(bytes)? })
    }
}

pub(crate) fn put<T: serde::Serialize>(out: &mut Vec<u8>, value: &T) {
    out.extend(encode(value));
}

pub(crate) fn put_ranges(out: &mut Vec<u8>, ranges: &Ranges) {
    put(out, &(ranges.len() as u64));
    let mut at = 0;
    for Range { start, end } in ranges.iter() {
        put(out, &(start - at, end - start));
        at = end;
    }
}

pub(crate) fn take<'a, T: serde::Deserialize<'a>>(bytes: &mut &'a [u8]) -> Result<T, Misbehaved> {
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(|_| Misbehaved::BadCommand)?;
    *bytes = rest;
    Ok(value)
}

/// Takes memory only for ranges that are there, whatever their number is said to be.
pub(crate) fn take_ranges(bytes: &mut &[u8]) -> Result<Ranges, Misbehaved> {
    let count: u64 = take(bytes)?;
    let (mut ranges, mut at) = (Ranges::default(), 0_u64);
    for _ in 0..count {
        let (distance, length): (u64, u64) = take(bytes)?;
        let start = at.checked_add(distance);
        let end = start.and_then(|start| start.checked_add(length)).filter(|&end| end < SEQS);
        let (Some(start), Some(end)) = (start, end) else { return Err(Misbehaved::BadCommand) };
        ranges.insert(start..end);
        at = end;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(all: &[Range<u64>]) -> Ranges {
        let mut ranges = Ranges::default();
        all.iter().for_each(|range| ranges.insert(range.clone()));
        ranges
    }

    /// The bytes of version 0.1.0. They never change; a later version adds its own below.
    #[test]
    fn the_bytes_of_0_1_0_stay() {
        let attach = Attach { stream: *b"0123456789abcdef", incarnation: 300, floor: 7 };
        assert_eq!(attach.encode(), b"0123456789abcdef\xac\x02\x07");
        assert_eq!(Attach::decode(b"0123456789abcdef\xac\x02\x07 and more"), Ok(attach));

        let done = [(5, ranges(&[0..3, 10..11])), (6, Ranges::default())].into();
        let resume = Resume { name: Bytes::from("bill"), start: Start::Seq(9), done };
        let golden = b"\x04bill\x02\x09\x02\x05\x02\x00\x03\x07\x01\x06\x00";
        assert_eq!(resume.encode(), golden);
        assert_eq!(Resume::decode(golden), Ok(resume));

        let ack = Ack { places: ranges(&[1..2, 200..400]) };
        assert_eq!(ack.encode(), b"\x02\x01\x01\xc6\x01\xc8\x01");
        assert_eq!(Ack::decode(b"\x02\x01\x01\xc6\x01\xc8\x01"), Ok(ack));

        let reject = Verdict { place: 4, what: What::Reject { reason: Bytes::from("bad") } };
        for (verdict, golden) in [
            (reject, &b"\x04\x01\x00\x03bad"[..]),
            (Verdict { place: 5, what: What::Release { millis: 1000 } }, b"\x05\x00\xe8\x07\x00"),
        ] {
            assert_eq!(verdict.encode(), golden);
            assert_eq!(Verdict::decode(golden), Ok(verdict));
        }
        assert_eq!(
            (Floor { seq: 128 }.encode(), Floor::decode(b"\x80\x01")),
            (b"\x80\x01".into(), Ok(Floor { seq: 128 }))
        );
        assert_eq!(Fence { incarnation: 1 }.encode(), b"\x01");

        let header = Header { seq: 1, incarnation: 1 << 32, attempt: 2 };
        let golden = b"\x01\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0";
        assert_eq!(&header.to_bytes(), golden);
        assert_eq!(Header::read(golden), Ok(header));
    }

    #[test]
    fn lies_take_no_memory_and_are_named() {
        // So many ranges are not there.
        assert_eq!(Ack::decode(b"\xff\xff\xff\xff\x0f\x01\x01"), Err(Misbehaved::BadCommand));
        // An end beyond all numbers.
        assert_eq!(Ack::decode(b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01"), Err(Misbehaved::BadCommand));
        assert_eq!(Attach::decode(b"short"), Err(Misbehaved::BadCommand));
        assert_eq!(Resume::decode(&encode(&(&[b'n'; 256][..], 0_u32, 0_u64, 0_u64))), Err(Misbehaved::BadCommand));
        assert_eq!(Resume::decode(&encode(&(&b"\xff"[..], 0_u32, 0_u64, 0_u64))), Err(Misbehaved::BadCommand));
        assert_eq!(Header::read(&[1; 19]), Err(Misbehaved::BadHeader));
        assert_eq!(Header::read(&Header { seq: 1, incarnation: 0, attempt: 0 }.to_bytes()), Err(Misbehaved::BadHeader));
        assert_eq!(Header::read(&[0xff; 20]), Err(Misbehaved::BadHeader));
    }
}
