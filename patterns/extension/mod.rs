//! What only Ropewalk peers say to each other.
//!
//! A Ropewalk socket adds the property `X-Ropewalk` to READY; its value is a [`Hello`]. Only a peer that sent one is
//! sent the commands below. They are ordinary ZMTP commands whose data is the struct in postcard's format: every
//! number is a varint of seven bits a byte, least significant first, bit 7 set on all but the last byte; bytes are a
//! varint length and the bytes.
//!
//! ```text
//!   X-Ropewalk   version  features  window-messages  window-bytes  largest-message
//!                   01       00        e8 07            80 80 80 04   80 80 80 02
//!
//!   ROPECREDIT   taken  messages  bytes          sender <- receiver, ahead of messages
//!   ROPEREFUSAL  why  id                         who asked for something <- who does not do it, ahead of messages
//!   ROPEGAP      missed                          at its place between messages
//!   ROPEGOODBYE  sent  received  taken  answer   at the end of messages; answered by another
//! ```
//!
//! What confirmed delivery adds stands in [`delivery`].
//!
//! Bodies grow only at their end and bytes behind the known ones are passed over, so a newer peer may say more. A
//! command this version does not know is passed over as a whole. What needs both sides is a bit in `features` of both.

pub mod delivery;

use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) use self::delivery::{ACK, ATTACH, FENCE, FLOOR, RESUME, VERDICT};
use crate::{credit::Tally, misbehaved::Misbehaved};

pub(crate) const CREDIT: &[u8] = b"ROPECREDIT";
pub(crate) const REFUSAL: &[u8] = b"ROPEREFUSAL";
pub(crate) const GAP: &[u8] = b"ROPEGAP";
pub(crate) const GOODBYE: &[u8] = b"ROPEGOODBYE";

/// The version of the extension this crate speaks.
pub const VERSION: u32 = 1;

/// In [`Hello::features`]: the peer understands [confirmed delivery](delivery).
pub const DELIVERY: u64 = 1;

/// In [`Hello::features`]: the peer keeps what it sends until it is confirmed.
pub const KEEPS: u64 = 2;

/// The value of `X-Ropewalk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The highest version of the extension the peer speaks.
    pub version: u32,
    /// One bit per thing that the other side should know of, as [`DELIVERY`] and [`KEEPS`].
    pub features: u64,
    /// How many messages the peer lets us have in flight.
    pub window_messages: u64,
    /// What they may cost.
    pub window_bytes: u64,
    /// The largest message it accepts, in bytes of its parts.
    pub largest: u64,
}

impl Hello {
    /// Our hello with this window.
    pub fn new(window: Tally, largest: u64) -> Self {
        Self {
            version: VERSION,
            features: DELIVERY,
            window_messages: window.messages,
            window_bytes: window.bytes,
            largest,
        }
    }

    /// The same of one that keeps what it sends, if it does.
    #[must_use]
    pub fn keeping(mut self, keeps: bool) -> Self {
        self.features |= if keeps { KEEPS } else { 0 };
        self
    }

    /// Whether the peer keeps what it sends until it is confirmed.
    pub fn keeps(&self) -> bool {
        self.features & KEEPS != 0
    }

    /// The window it opens.
    pub fn window(&self) -> Tally {
        Tally::new(self.window_messages, self.window_bytes)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Misbehaved> {
        decode(bytes).map_err(|_| Misbehaved::BadMetadata)
    }
}

/// What the receiver took so far, and what it allows in all: counts since the link began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// Messages its application has taken.
    pub taken: u64,
    /// Messages that may have been sent.
    pub messages: u64,
    /// What they may have cost.
    pub bytes: u64,
}

/// Why a request will not be answered, or something else was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalReason {
    /// The application let it go without a reply.
    Dropped,
    /// The reply is larger than we accept.
    TooLarge,
    /// The application does not let us do that.
    Denied,
    /// A reason this version does not know.
    Other(u32),
}

/// A request will not be answered, or something else was not done that we asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: RefusalReason,
    /// The first part of the request's envelope; of a subscription its topic; of a message nothing.
    pub id: Bytes,
}

/// Messages were left out here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// How many.
    pub missed: u64,
}

/// The sender of this will send nothing more on this link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// Messages it sent on this link.
    pub sent: u64,
    /// Messages it received on this link.
    pub received: u64,
    /// Messages its application took.
    pub taken: u64,
    /// Whether this answers the other side's goodbye.
    pub answer: bool,
}

impl Refusal {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let reason = match self.reason {
            RefusalReason::Dropped => 0,
            RefusalReason::TooLarge => 1,
            RefusalReason::Denied => 2,
            RefusalReason::Other(number) => number,
        };
        encode(&(reason, &self.id[..]))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Misbehaved> {
        let (reason, id): (u32, &[u8]) = decode(bytes)?;
        let reason = match reason {
            0 => RefusalReason::Dropped,
            1 => RefusalReason::TooLarge,
            2 => RefusalReason::Denied,
            number => RefusalReason::Other(number),
        };
        Ok(Self { reason, id: Bytes::copy_from_slice(id) })
    }
}

macro_rules! body {
    ($($name:ident),*) => {$(
        impl $name {
            pub(crate) fn encode(&self) -> Vec<u8> {
                encode(self)
            }

            pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Misbehaved> {
                decode(bytes)
            }
        }
    )*};
}

body!(Credit, Gap, Goodbye);

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Structs of numbers and bytes always serialize into memory.
    postcard::to_allocvec(value).unwrap_or_default()
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Misbehaved> {
    postcard::take_from_bytes(bytes).map(|(value, _)| value).map_err(|_| Misbehaved::BadCommand)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of version 0.1.0. They never change; a later version adds its own below.
    #[test]
    fn the_bytes_of_0_1_0_stay() {
        let hello = Hello { version: 1, features: 0, window_messages: 1000, window_bytes: 8 << 20, largest: 4 << 20 };
        let golden = b"\x01\x00\xe8\x07\x80\x80\x80\x04\x80\x80\x80\x02";
        assert_eq!(hello.encode(), golden);
        assert_eq!(Hello::decode(golden), Ok(hello));

        let credit = Credit { taken: 1, messages: 300, bytes: 70_000 };
        assert_eq!(credit.encode(), b"\x01\xac\x02\xf0\xa2\x04");
        let refusal = Refusal { reason: RefusalReason::Dropped, id: Bytes::from_static(b"\0\0\0\x07") };
        assert_eq!(refusal.encode(), b"\x00\x04\0\0\0\x07");
        assert_eq!(Refusal::decode(b"\x00\x04\0\0\0\x07"), Ok(refusal));
        let denied = Refusal { reason: RefusalReason::Denied, id: Bytes::from_static(b"news") };
        assert_eq!(denied.encode(), b"\x02\x04news");
        assert_eq!(Refusal::decode(b"\x02\x04news"), Ok(denied));
        assert_eq!(Gap { missed: 128 }.encode(), b"\x80\x01");
        let goodbye = Goodbye { sent: 2, received: 3, taken: 4, answer: true };
        assert_eq!(goodbye.encode(), b"\x02\x03\x04\x01");
    }

    #[test]
    fn more_bytes_at_the_end_are_passed_over_and_fewer_are_a_fault() {
        assert_eq!(Gap::decode(b"\x05and more"), Ok(Gap { missed: 5 }));
        assert_eq!(Credit::decode(b"\x01\x02"), Err(Misbehaved::BadCommand));
        assert_eq!(Hello::decode(b"\x01"), Err(Misbehaved::BadMetadata));
        let newer = Refusal::decode(b"\x63\x00").unwrap();
        assert_eq!(newer.reason, RefusalReason::Other(99));
        // A claimed length takes no memory.
        assert_eq!(Refusal::decode(b"\x00\xff\xff\xff\xff\x0f"), Err(Misbehaved::BadCommand));
    }
}
