//! Frames and the records in them, byte by byte.
//!
//! A frame is what is written at once: the records of one group commit, or what was settled. It stands at a multiple of
//! 8 bytes; all numbers are little-endian.
//!
//! ```text
//!  0 u32 magic             4 u32 CRC-32C of 8..64, xor the segment's salt
//!  8 u32 length of the body                         12 u32 CRC-32C of the body
//! 16 u64 lsn: its own place in the log              24 u64 synced_lsn: all below was synced when it was written
//! 32 u64 first seq        40 u64 incarnation        48 u32 records              52 u8 kind   53 three zeros
//! 56 u64 appended_ms: when its records were appended, by the wall clock in ms, and never less than in a frame before
//! 64 body, then zeros up to a multiple of 8
//!
//! record = 0, length, bytes                                one part
//!        | 1, parts, length of each, bytes of all          several
//! ```
//! The salt is a random number that only the head of the segment has: recovery looks for frames also in the midst of
//! what is torn, and a message that has frames in it shall not be able to forge one.
//!
//! Lengths are varints: 7 bits a byte, the lowest first. An incarnation has 64 bits here as in the segment's head (the
//! two widths of an earlier draft would have needed a rule for what the frame leaves out).

use bytes::Bytes;
use ropewalk_patterns::Message;

pub(super) const HEAD: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"RwFr");

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Records of this incarnation.
    Data,
    /// Records of an earlier one, whose number is the first 8 bytes of the body.
    Copied,
    /// What cursors settled since the last such frame.
    Settled,
    /// All cursors.
    Checkpoint,
    /// The end of an opening that was closed in order.
    Seal,
    /// Which seqs are not in a segment any more that was rewritten.
    Gone,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        let kinds = [Self::Data, Self::Copied, Self::Settled, Self::Checkpoint, Self::Seal, Self::Gone];
        kinds.into_iter().find(|kind| kind.to_byte() == byte)
    }

    fn to_byte(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Copied => 2,
            Self::Settled => 3,
            Self::Checkpoint => 4,
            Self::Seal => 5,
            Self::Gone => 6,
        }
    }

    /// Whether there are records in it.
    pub(super) fn has_records(self) -> bool {
        matches!(self, Self::Data | Self::Copied)
    }
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) body_len: u32,
    pub(super) body_crc: u32,
    pub(super) lsn: u64,
    pub(super) synced_lsn: u64,
    pub(super) first_seq: u64,
    pub(super) incarnation: u64,
    pub(super) count: u32,
    pub(super) kind: Kind,
    pub(super) appended_ms: u64,
}

impl Head {
    pub(super) fn to_bytes(self, salt: u32) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            if let Some(room) = bytes.get_mut(at..at + field.len()) {
                room.copy_from_slice(field);
            }
            at += field.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&[0; 4]);
        put(&self.body_len.to_le_bytes());
        put(&self.body_crc.to_le_bytes());
        for number in [self.lsn, self.synced_lsn, self.first_seq, self.incarnation] {
            put(&number.to_le_bytes());
        }
        put(&self.count.to_le_bytes());
        put(&[self.kind.to_byte(), 0, 0, 0]);
        put(&self.appended_ms.to_le_bytes());
        let crc = crc32c::crc32c(bytes.get(8..).unwrap_or_default()) ^ salt;
        if let Some(room) = bytes.get_mut(4..8) {
            room.copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    /// The head at the beginning of these bytes, if one is there that is whole.
    pub(super) fn read(bytes: &[u8], salt: u32) -> Option<Self> {
        Self::salted(bytes).filter(|(_, found)| *found == salt).map(|(head, _)| head)
    }

    /// The same where the salt is lost, and the salt that makes it whole. Any bytes behind the magic have one.
    pub(super) fn salted(bytes: &[u8]) -> Option<(Self, u32)> {
        let mut take = Take(bytes.get(..HEAD)?);
        if take.u32()? != MAGIC {
            return None;
        }
        let salt = take.u32()? ^ crc32c::crc32c(bytes.get(8..HEAD)?);
        let head = Self {
            body_len: take.u32()?,
            body_crc: take.u32()?,
            lsn: take.u64()?,
            synced_lsn: take.u64()?,
            first_seq: take.u64()?,
            incarnation: take.u64()?,
            count: take.u32()?,
            kind: Kind::from_byte(take.u8()?)?,
            appended_ms: {
                take.bytes(3)?;
                take.u64()?
            },
        };
        // Seqs and places are added to elsewhere; nothing true comes near the end of 64 bits.
        let numbers = [head.lsn, head.synced_lsn, head.first_seq, head.appended_ms];
        let sane = numbers.into_iter().all(|number| number < 1 << 62);
        sane.then_some((head, salt))
    }

    /// How many bytes the frame takes.
    pub(super) fn frame_len(&self) -> u64 {
        padded(HEAD as u64 + u64::from(self.body_len))
    }

    /// One past the last seq in it.
    pub(super) fn end_seq(&self) -> u64 {
        self.first_seq + u64::from(self.count)
    }
}

/// The next multiple of 8.
pub(super) fn padded(len: u64) -> u64 {
    len.next_multiple_of(8)
}

/// Numbers at the front of a slice.
#[derive(Debug)]
pub(super) struct Take<'a>(pub(super) &'a [u8]);

impl<'a> Take<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }
}

/// Numbers below 2^63.
pub(super) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[inline]
pub(super) fn put_record(out: &mut Vec<u8>, message: &Message) {
    let parts = message.parts();
    if let [part] = parts {
        out.push(0);
        put_varint(out, part.len() as u64);
    } else {
        out.push(1);
        put_varint(out, parts.len() as u64);
        parts.iter().for_each(|part| put_varint(out, part.len() as u64));
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// No record of this message is longer.
pub(super) fn longest_record(message: &Message) -> u64 {
    11 + 10 * message.len() as u64 + message.bytes()
}

/// The records of a body, one after the other; `None` in place of one that is not whole, and the end.
#[derive(Debug, Clone)]
pub(super) struct Records {
    body: Bytes,
    at: usize,
}

impl Records {
    pub(super) fn new(body: Bytes) -> Self {
        Self { body, at: 0 }
    }

    /// Where the next one begins.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    #[inline]
    pub(super) fn next(&mut self) -> Option<Message> {
        let rest = self.body.get(self.at..)?;
        let mut take = Take(rest);
        if take.u8()? != 0 {
            return self.next_of_parts();
        }
        let len = usize::try_from(take.varint()?).ok()?;
        let from = self.at + (rest.len() - take.0.len());
        take.bytes(len)?;
        self.at = from + len;
        Some(Message::from(self.body.slice(from..self.at)))
    }

    fn next_of_parts(&mut self) -> Option<Message> {
        let rest = self.body.get(self.at..)?;
        let mut take = Take(rest);
        if take.u8()? != 1 {
            return None;
        }
        // The lengths come first; each takes a byte at least, so that no more are kept than there are bytes.
        let parts = usize::try_from(take.varint()?).ok().filter(|&parts| parts <= take.0.len())?;
        let mut lengths = Vec::with_capacity(parts);
        for _ in 0..parts {
            lengths.push(usize::try_from(take.varint()?).ok()?);
        }
        let mut at = self.at + (rest.len() - take.0.len());
        let mut message = Vec::with_capacity(parts);
        for length in lengths {
            take.bytes(length)?;
            message.push(self.body.slice(at..at + length));
            at += length;
        }
        self.at = at;
        Some(Message::from_parts(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_written_and_any_changed_bit_is_seen() {
        let head = Head {
            body_len: 5,
            body_crc: 6,
            lsn: 4096,
            synced_lsn: 4000,
            first_seq: 17,
            incarnation: 1 << 33,
            count: 3,
            kind: Kind::Copied,
            appended_ms: 1 << 40,
        };
        let bytes = head.to_bytes(77);
        assert_eq!((bytes.len(), Head::read(&bytes, 77)), (HEAD, Some(head)));
        assert_eq!((Head::read(&bytes, 78), Head::salted(&bytes)), (None, Some((head, 77))));
        for bit in 0..HEAD * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::read(&bytes, 77), None, "bit {bit}");
        }
    }

    #[test]
    fn records_are_read_as_they_are_written() {
        let messages = [
            Message::from(""),
            Message::from("one"),
            Message::from(["a", ""]),
            Message::from(vec![7; 300]),
            Message::from(["a", "b", "c"]),
        ];
        let mut body = Vec::new();
        for message in &messages {
            let before = body.len();
            put_record(&mut body, message);
            assert!((body.len() - before) as u64 <= longest_record(message));
        }
        let mut records = Records::new(body.into());
        for message in &messages {
            assert_eq!(records.next().as_ref(), Some(message));
        }
        assert_eq!(records.next(), None);
    }

    #[test]
    fn varints_are_read_as_they_are_written() {
        for number in [0, 1, 127, 128, 300, 1 << 32, (1 << 63) - 1] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, number);
            assert_eq!(Take(&bytes).varint(), Some(number));
        }
        assert_eq!(Take(&[0xff; 20]).varint(), None);
    }
}
