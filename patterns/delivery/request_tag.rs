//! Which request this is, of those that are kept until they are answered.
//!
//! ```text
//!   number(4)  stream(16)  incarnation(8)  seq(8)  floor(8)      the first part of the request's envelope
//! ```
//!
//! The number is that of every request, in network byte order; the others are little-endian, as in the
//! [`Header`](crate::extension::delivery::Header). Every REP, and every ROUTER that keeps the envelope, sends it back as it
//! came, so requests that are kept go to any of them; only a Ropewalk REP can tell one that comes again.

use super::MessageId;

/// How long the part is that has all of it, in bytes.
pub const TAGGED: usize = 44;

/// Which request this is, for ever and everywhere, and what its requester says of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestTag {
    /// Its identity: the same whenever it is asked again, of whomever.
    pub id: MessageId,
    /// No request of its stream with a seq below comes again.
    pub floor: u64,
}

impl RequestTag {
    /// The first part of the envelope of a request that has this number now.
    pub fn part(&self, number: u32) -> [u8; TAGGED] {
        let mut part = [0; TAGGED];
        let fields: [&[u8]; 5] = [
            &number.to_be_bytes(),
            &self.id.stream,
            &self.id.incarnation.to_le_bytes(),
            &self.id.seq.to_le_bytes(),
            &self.floor.to_le_bytes(),
        ];
        for (to, from) in part.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        part
    }

    /// What stands in the first part of an envelope, if it is of a request that is kept.
    pub fn of_part(part: &[u8]) -> Option<Self> {
        let part: &[u8; TAGGED] = part.try_into().ok()?;
        let (_number, rest) = part.split_first_chunk::<4>()?;
        let (stream, rest) = rest.split_first_chunk::<16>()?;
        let (incarnation, rest) = rest.split_first_chunk::<8>()?;
        let (seq, floor) = rest.split_first_chunk::<8>()?;
        let id =
            MessageId { stream: *stream, incarnation: u64::from_le_bytes(*incarnation), seq: u64::from_le_bytes(*seq) };
        Some(Self { id, floor: u64::from_le_bytes(floor.try_into().ok()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_as_it_was_written() {
        let id = MessageId { stream: *b"sixteen bytes!!!", incarnation: 0x0102_0304_0506_0708, seq: 9 };
        let tag = RequestTag { id, floor: 7 };
        let part = tag.part(0x0a0b_0c0d);
        let golden =
            b"\x0a\x0b\x0c\x0dsixteen bytes!!!\x08\x07\x06\x05\x04\x03\x02\x01\x09\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0";
        assert_eq!(part, *golden);
        assert_eq!(RequestTag::of_part(&part), Some(tag));
        assert_eq!(RequestTag::of_part(&part[..43]), None);
        assert_eq!(RequestTag::of_part(&part[..4]), None, "a request that is not kept");
    }
}
