//! The wire: ZMTP 3.1, and 3.0 for peers that speak only that. Source: the ZeroMQ RFC 37 (3.1) and RFC 23 (3.0).
//!
//! ```text
//!   connection = greeting handshake traffic
//!
//!   greeting    64 bytes each way                                   greeting.rs
//!   handshake   READY each way, with metadata; ERROR refuses        ready.rs
//!   traffic     *(command | message)                                command.rs, frame.rs
//! ```
//!
//! A frame is a header and a body:
//!
//! ```text
//!        0         1                          short: body of at most 255 bytes
//!   +---------+---------+----------------
//!   |  flags  | length  |  body ...
//!   +---------+---------+----------------
//!        0         1 .............. 8         long: any length below 2^63, big-endian
//!   +---------+------------------------+---
//!   |  flags  |  length                | body ...
//!   +---------+------------------------+---
//!
//!   flags   bit 0  MORE     another part of this message follows
//!           bit 1  LONG     the length has eight bytes
//!           bit 2  COMMAND  a command, never with MORE
//!           bits 3 to 7     must be 0
//! ```
//!
//! The security mechanism is NULL: what needs protection runs inside TLS or QUIC.

mod command;
mod frame;
mod greeting;
mod ready;
mod span;

pub use command::{Command, MAX_PING_CONTEXT};
pub use frame::{Decoder, Header, Room, Step, encode_part, whole_messages};
pub use greeting::{GREETING_LEN, Version, greeting, read_greeting};
pub use ready::{Handshake, Ready, encode_error, read_handshake};
pub use span::{Span, take_message};

/// What a peer may send at most. Every length on the wire is held against these before anything is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all parts of one message.
    pub message: u64,
    /// Parts of one message.
    pub parts: usize,
    /// Bytes of a command after the handshake.
    pub command: u64,
    /// Bytes of a topic.
    pub topic: usize,
    /// Bytes of the handshake, greeting and READY together.
    pub handshake: usize,
    /// Subscriptions of one peer.
    pub subscriptions: usize,
    /// Bytes of all topics one peer subscribes to.
    pub subscribed_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message: 4 << 20,
            parts: 64,
            command: 64 << 10,
            topic: 1 << 10,
            handshake: 4 << 10,
            subscriptions: 4_096,
            subscribed_bytes: 256 << 10,
        }
    }
}
