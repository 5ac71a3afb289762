//! Messages that are kept until the far application has confirmed them.
//!
//! ```text
//!   sender                                              receiver
//!     ATTACH stream, incarnation, floor   ----------->
//!                                         <-----------  RESUME name, start, what is done already
//!     message [header] ...                ----------->  handed to the application, once
//!                                         <-----------  ACK places         done with, for good
//!                                         <-----------  VERDICT place      again later, or never again
//!     FLOOR seq                           ----------->  what is below need not be remembered
//! ```
//!
//! *Who a message is* ([`MessageId`]) never changes: the stream it was sent in, which life of that stream accepted it, and
//! its seq. *Which delivery* it is, is its place on a link and its attempt. When a link dies, all that was sent on it and
//! is not confirmed goes to another peer, or to the same when it is back. The receiver remembers what it is done with, and
//! passes over what comes again; it may forget what is below the sender's *floor*, under which nothing comes again. There
//! is no clock in this: a receiver that was away for a year still knows.
//!
//! How long an application may keep a message without a word is the receiver's business, for only the receiver knows when
//! it was handed out: what is kept too long it [takes back](Inbound::tick) and releases.
//!
//! [`Deliveries`] is the sender's half, [`Inbound`] the receiver's; [`Inbox`] is what the receiver remembers. Sources: the
//! verbs are those of Kafka's share groups (KIP-932), the compact map of what is settled is AMQP 1.0's, the separation of
//! place and identity QUIC's packet numbers.

mod deliveries;
mod inbound;
mod inbox;
mod known;
mod lanes;
mod request_tag;

use core::fmt;

pub use self::{
    deliveries::{Deliveries, Flight, Of, Outcome, Rules, Why},
    inbound::{Held, Inbound},
    inbox::{Claim, Inbox},
    known::{Come, KnownRequests, Whose},
    lanes::{Followed, Following, Lanes},
    request_tag::{RequestTag, TAGGED},
};
pub use crate::extension::delivery::{LONGEST_NAME, Start, StreamId};
use crate::{
    message::Message,
    pattern::{Pattern, Peer},
    turn::Turn,
};

/// A pattern that can keep what it sends until it is confirmed: all of it together, or for each peer by itself.
pub trait Keeps: Pattern<Event: From<Of>> {
    /// Does something with the deliveries (of this peer, where each has its own), and gives peers what follows from it.
    /// Nothing is done, and the result is that of `R::default`, where there are none.
    fn deliver<T: Turn<Event = Self::Event>, R: Default>(
        &mut self,
        only: Option<Peer>,
        turn: &mut T,
        act: impl FnOnce(&mut Deliveries, &mut T) -> R,
    ) -> R;

    /// From now on the stream that is kept has this name.
    fn rename<T: Turn<Event = Self::Event>>(&mut self, stream: StreamId, turn: &mut T);

    /// Whether this message is for this peer.
    fn is_for(&mut self, only: Option<Peer>, message: &Message) -> bool {
        let _ = (only, message);
        true
    }
}

/// A pattern that can take what is to be confirmed.
pub trait Confirms: Pattern {
    /// What comes of streams that are confirmed.
    fn inbound(&mut self) -> &mut Inbound;
}

/// Which message this is, for ever and everywhere. Two messages never have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// The stream it was sent in: 16 random bytes, chosen when the sender's directory, or without one the socket, was new.
    pub stream: StreamId,
    /// Which life of that stream accepted it: a count of openings in the upper half, a random number in the lower.
    pub incarnation: u64,
    /// Its number in the stream.
    pub seq: u64,
}

/// The stream in hexadecimal, the incarnation, the seq: `0a…1f/4294967296/17`.
impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "/{}/{}", self.incarnation, self.seq)
    }
}
