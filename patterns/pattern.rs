//! The trait every pattern implements, and the small types it speaks in.

use alloc::{borrow::Cow, vec::Vec};
use core::fmt;

use crate::{
    credit::Tally,
    message::{Message, Outgoing},
    misbehaved::Misbehaved,
    turn::{Action, Turn},
    zmtp::{Command, Ready},
};

/// One side of one conversation.
///
/// It decides; it never waits, never reads a clock, never touches a socket. Everything that happens comes in as an
/// argument, everything it wants goes out through `turn`, at once and in that order.
///
/// A method whose name begins with `on_` says that something happened; the methods of [`Turn`] ask for something.
/// The hub that drives a pattern promises: `on_join` comes before anything else of that peer and `on_leave` after it,
/// and no two methods run at once.
pub trait Pattern: Send + Sized + 'static {
    /// The ZMTP socket type we play; the first thing a peer is told.
    const ROLE: Role;

    /// When `on_message` is called.
    const MEETS: Meets = Meets::WhenTaken;

    /// What a message is to the application whose pattern does nothing else about it, if that can be said without the
    /// pattern. Such messages are handed out one after another, in a run, and [`passes`](Self::passes) is asked of them
    /// instead of `on_message`; but not those of peers whose messages are to be met [one by one](Turn::one_by_one), nor of
    /// a pattern that meets them [at arrival](Meets::AtArrival).
    const IN_RUN: Option<fn(Message) -> Self::Event> = None;

    /// What the application asks for. It may borrow what it sends.
    type Verb<'a>: Send;

    /// What the application gets.
    type Event: Send;

    /// Whether we can talk with a peer that plays `role`.
    fn accepts(role: &Role) -> bool;

    /// Which line a verb waits in when it cannot be done now. Verbs of one line are done in the order they came; those
    /// of different lines do not wait for each other. One line for all, unless a verb is bound to a peer.
    fn line(verb: &Self::Verb<'_>) -> u64 {
        let _ = verb;
        0
    }

    /// The one part that this verb sends, if that is all it does: for verbs that follow one after which the pattern told
    /// to [keep to](Turn::keep_to) its peer.
    fn single<'v>(verb: &'v Self::Verb<'_>) -> Option<&'v [u8]> {
        let _ = verb;
        None
    }

    /// To whom this verb sends which message, if that is all it does wherever each of them has room: for verbs that follow
    /// one after which the pattern told to [keep to them all](Turn::keep_to_all). Asked only then.
    fn fanned<'s, 'v>(&'s mut self, verb: &'s Self::Verb<'v>) -> Option<(&'s [Peer], &'s Outgoing<'v>)> {
        let _ = verb;
        None
    }

    /// What a peer asks for by this message alone, if that is all there is to decide about it: the hub asks whether it
    /// [may](Turn::may) before it calls `on_message`, and only where the application is asked at all.
    fn asks_by<'m>(&self, peer: Peer, message: &'m Message) -> Option<Action<'m>> {
        let _ = (peer, message);
        None
    }

    /// What waits in the pattern itself for a peer to link. A socket that closes tries to get rid of it.
    fn held(&self) -> Tally {
        Tally::ZERO
    }

    /// Whether links may say goodbye when the socket closes: it holds nothing, and has nothing more to tell them.
    fn is_done(&self) -> bool {
        self.held().is_zero()
    }

    /// Whether what is sent is kept until the peer has confirmed it. Then nothing is in doubt when a link dies, and only
    /// peers are linked that can [confirm](crate::delivery).
    fn keeps(&self) -> bool {
        false
    }

    /// What was [owed](Turn::owe) to this peer, now that its link writes; asked again until there is nothing.
    fn owed(&mut self, peer: Peer) -> Option<Command> {
        let _ = peer;
        None
    }

    /// A peer has finished its handshake.
    fn on_join<T: Turn<Event = Self::Event>>(&mut self, peer: Peer, ready: &Ready, turn: &mut T);

    /// A peer is gone. `unsent` are the messages given to it that were not wholly written, oldest first: nobody has
    /// seen them, they may go elsewhere.
    fn on_leave<T: Turn<Event = Self::Event>>(&mut self, peer: Peer, unsent: Vec<Message>, turn: &mut T);

    /// The application asks.
    ///
    /// # Errors
    /// The verb is handed back undone, with the reason. After [`Why::Full`] it is tried again once somebody has room.
    fn on_verb<'a, T: Turn<Event = Self::Event>>(
        &mut self,
        verb: Self::Verb<'a>,
        turn: &mut T,
    ) -> Result<(), (Self::Verb<'a>, Why)>;

    /// A peer that [`Turn::room`] had found without room has some again.
    fn on_room<T: Turn<Event = Self::Event>>(&mut self, peer: Peer, turn: &mut T) {
        let _ = (peer, turn);
    }

    /// A message of this peer is due, either because the application wants one ([`Meets::WhenTaken`]) or because it has
    /// arrived ([`Meets::AtArrival`]). `None`: it is not for the application.
    ///
    /// # Errors
    /// The peer broke the protocol.
    fn on_message<T: Turn<Event = Self::Event>>(
        &mut self,
        peer: Peer,
        message: Message,
        turn: &mut T,
    ) -> Result<Option<Self::Event>, Misbehaved>;

    /// Whether a message whose first part this is is for the application; asked of those [in a run](Self::IN_RUN).
    #[inline]
    fn passes(&self, first: &[u8]) -> bool {
        let _ = first;
        true
    }

    /// At this place of the peer's stream, `missed` messages were left out for us. Called in order with `on_message`.
    fn on_gap<T: Turn<Event = Self::Event>>(&mut self, peer: Peer, missed: u64, turn: &mut T) -> Option<Self::Event> {
        let _ = (peer, missed, turn);
        None
    }

    /// The application has closed the socket: it asks for nothing more and waits for nothing. What was accepted still
    /// goes out for a while.
    fn on_close<T: Turn<Event = Self::Event>>(&mut self, turn: &mut T) {
        let _ = turn;
    }

    /// A command came that is not the link's own business (subscriptions, refusals).
    ///
    /// # Errors
    /// The peer broke the protocol.
    fn on_command<T: Turn<Event = Self::Event>>(
        &mut self,
        peer: Peer,
        command: Command,
        turn: &mut T,
    ) -> Result<(), Misbehaved> {
        let _ = (peer, command, turn);
        Ok(())
    }
}

/// When a pattern meets the messages of its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meets {
    /// When the application takes one: until then they lie in the inbox undivided, at the expense of the peer's credit.
    WhenTaken,
    /// As they arrive: each is for somebody who waits for just that one. The pattern itself must bound what it keeps.
    AtArrival,
}

/// Why a verb was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// Nobody who could take it has room now.
    Full,
    /// It is larger than those who could take it accept.
    TooLarge,
    /// The peer it is for is gone.
    Gone,
}

/// The handle of one linked peer inside one socket. Never used again for another peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// The place in the hub's table.
    pub slot: u32,
    /// How many peers had that place before.
    pub generation: u32,
}

impl Peer {
    /// The handle as one number.
    pub fn number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

/// What a socket plays in a conversation: the ZMTP socket type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Role(Cow<'static, str>);

impl Role {
    /// Gives each message to one of its peers.
    pub const PUSH: Self = Self::new("PUSH");
    /// Takes messages from all its peers.
    pub const PULL: Self = Self::new("PULL");
    /// Gives each message to every peer that subscribed.
    pub const PUB: Self = Self::new("PUB");
    /// Takes the messages it subscribed to.
    pub const SUB: Self = Self::new("SUB");
    /// A PUB that shows subscriptions.
    pub const XPUB: Self = Self::new("XPUB");
    /// A SUB that sends subscriptions as messages.
    pub const XSUB: Self = Self::new("XSUB");
    /// Asks.
    pub const REQ: Self = Self::new("REQ");
    /// Answers.
    pub const REP: Self = Self::new("REP");
    /// Asks and answers many at once.
    pub const DEALER: Self = Self::new("DEALER");
    /// Asks and answers whom it names.
    pub const ROUTER: Self = Self::new("ROUTER");

    /// A role of this name; for a pattern of your own.
    pub const fn new(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// The name on the wire.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// A peer's role; it may have left it out, which is allowed and says nothing.
    pub(crate) fn of_peer(name: &str) -> Self {
        Self(Cow::Owned(name.into()))
    }

    /// Whether the peer did not say what it plays.
    pub fn is_unsaid(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_unsaid() { "(unnamed)" } else { &self.0 })
    }
}
