//! The protocol of [ropewalk](https://docs.rs/ropewalk), without I/O and without a clock: what a socket decides, and
//! what stands on the wire. It is `no_std`, so the compiler keeps it that way.
//!
//! # What a pattern is
//! A [`Pattern`] is one side of one conversation: PUSH, or SUB, or REP. It is told what happened (a peer joined, the
//! application asks for something, a message came) and says at once, through a [`Turn`], what it wants done (send this
//! to that peer, hand that to the application). It never waits. The hub of the `ropewalk` crate drives it under one
//! lock, and its Turn does each thing as it is said; the tests drive it with a Turn that keeps a list.
//!
//! # The life of a message
//! ```text
//!   application          Verb              Turn::send
//!      send  ----------> on_verb --------> encode into the peer's queue ----> the link writes
//!
//!      recv  <---------- on_message <----- cut a message off a chunk   <----- the link reads
//!            Event                         zmtp::take_message                 zmtp::Decoder
//! ```
//!
//! # Your own pattern
//! Implement [`Pattern`] for a type of yours and hand it to `ropewalk::Socket::with_pattern`. It needs a [`Role`] of its
//! own, what its application may ask for (`Verb`) and gets (`Event`), and a few decisions. The example `own_pattern` of
//! the `ropewalk` crate is a round, in which each word goes to the next player. In the signature of
//! [`on_verb`](Pattern::on_verb) write `Self::Verb<'a>`, not the type it stands for: the compiler tells them apart.
//!
//! # Where things are
//! | file | what |
//! |---|---|
//! | [`push_pull`], [`pub_sub`], [`req_rep`] | the patterns, both sides of a conversation in one file |
//! | [`message`] | what users send |
//! | [`zmtp`] | greeting, handshake, frames, commands, byte by byte |
//! | [`extension`] | what only Ropewalk peers say to each other |
//! | [`credit`], [`ring`], [`backlog`], [`topics`], [`ranges`] | flow control, turns, messages without a peer, subscriptions, sets of numbers |
//! | [`delivery`] | messages that are kept until they are confirmed |
//! | [`misbehaved`] | one variant per way a peer can break the protocol |

#![no_std]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod backlog;
pub mod credit;
pub mod delivery;
pub mod extension;
pub mod message;
pub mod misbehaved;
mod pattern;
pub mod pub_sub;
pub mod push_pull;
pub mod ranges;
pub mod req_rep;
pub mod ring;
pub mod topics;
mod turn;
pub mod zmtp;

pub use credit::Tally;
pub use message::{Body, DecodeError, EncodeError, Head, IntoPart, MESSAGE_OVERHEAD, Message, Outgoing, Part};
pub use misbehaved::Misbehaved;
pub use pattern::{Meets, Pattern, Peer, Role, Why};
pub use turn::{Action, Room, Turn};
