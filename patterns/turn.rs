//! What a pattern may ask for while something happens.

use crate::{
    credit::Tally,
    message::{Message, Outgoing},
    pattern::Peer,
    zmtp::Command,
};

/// The sink for what a pattern wants done.
///
/// The hub's own Turn does each thing as it is said: it encodes (or, in memory, moves) into the peer's queue at once.
/// The tests' Turn keeps a list.
pub trait Turn {
    /// What the pattern hands to the application.
    type Event;

    /// Whether this peer's queue takes this message now. [`Room::Fits`] is a promise as long as the same thing happens:
    /// what one peer was promised, another is not. After [`Room::Full`] or [`Room::TooLittle`] the pattern's
    /// `on_room` is called once there is room again.
    fn room(&mut self, peer: Peer, message: &Outgoing<'_>) -> Room;

    /// Puts the message into the peer's queue. Ask for [`room`](Self::room) before: without it the message is dropped
    /// and counted.
    fn send(&mut self, peer: Peer, message: &Outgoing<'_>);

    /// Puts one message into the queues of all these peers; cheaper than one by one.
    fn send_all(&mut self, peers: &[Peer], message: &Outgoing<'_>) {
        for &peer in peers {
            self.send(peer, message);
        }
    }

    /// As long as nothing else happens, messages like the one that was just sent go the same way, to this peer, while it
    /// has room: what would be decided anyway need not be asked each time. Which messages are like it,
    /// [`Pattern::single`](crate::Pattern::single) tells.
    fn keep_to(&mut self, peer: Peer) {
        let _ = peer;
    }

    /// The same for the message that all these peers were just sent. Which messages go to whom,
    /// [`Pattern::fanned`](crate::Pattern::fanned) tells.
    fn keep_to_all(&mut self, peers: &[Peer]) {
        let _ = peers;
    }

    /// Sends a command ahead of the messages. Never dropped.
    fn tell(&mut self, peer: Peer, command: Command);

    /// There is something to say to this peer that [`Pattern::owed`](crate::Pattern::owed) knows when the link writes:
    /// at once if it is `urgent`, else within milliseconds, or when the application waits for more.
    fn owe(&mut self, peer: Peer, urgent: bool);

    /// From now on each message of this peer is met by itself.
    fn one_by_one(&mut self, peer: Peer) {
        let _ = peer;
    }

    /// What came from this peer, which is gone, and was not taken is let go.
    fn forget(&mut self, peer: Peer);

    /// This peer will not get so many messages: counted, and told to it at this place of its stream.
    fn miss(&mut self, peer: Peer, messages: u64);

    /// Takes the oldest message that waits for this peer away, so that it misses that one: counted, and told to it at
    /// that place of its stream. False if none can be taken away any more.
    fn drop_oldest(&mut self, peer: Peer) -> bool;

    /// Closes the link to a peer that does not keep up.
    fn disconnect(&mut self, peer: Peer);

    /// Closes the link to a peer whose answer nobody waits for any more, so that it cannot be taken for another's.
    fn abandon(&mut self, peer: Peer);

    /// Closes the link to a peer in whose place another has come.
    fn supersede(&mut self, peer: Peer);

    /// Closes the link to a peer, which is to be made anew.
    fn relink(&mut self, peer: Peer);

    /// A message that was accepted goes nowhere: counted, and an event says so.
    fn lose(&mut self, messages: u64);

    /// Whether the application lets this peer do that. If not, the peer has been told so, with `about` to know it by, and
    /// so has the application: there is nothing left to do but to pass it over.
    fn may(&mut self, peer: Peer, action: Action<'_>, about: &[u8]) -> bool {
        let _ = (peer, action, about);
        true
    }

    /// Hands something to the application.
    fn deliver(&mut self, event: Self::Event);

    /// A verb that could not be done may be tried again.
    fn ready(&mut self);

    /// How much may wait here while no peer is linked: the queues of all dialled endpoints together.
    fn unlinked_limit(&self) -> Tally;
}

/// What a peer wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action<'a> {
    /// To be linked.
    Connect,
    /// To get messages whose topic begins so.
    Subscribe(&'a [u8]),
    /// To go on under this name: to get what a publisher keeps for it, and to settle that.
    Follow(&'a [u8]),
    /// To give this message to the application, without an answer: one that was pushed, or published.
    Publish(&'a Message),
    /// To be answered this.
    Request(&'a Message),
}

/// Whether a message fits into a peer's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It fits.
    Fits,
    /// It does not fit now; a smaller one might.
    TooLittle,
    /// Nothing fits now.
    Full,
    /// Nothing fits now, for this peer or any other: what all peers together may hold is spent.
    Spent,
    /// The peer does not accept messages of that size.
    Never,
    /// The peer is gone or going.
    Gone,
}
