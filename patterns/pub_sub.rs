//! Each message to everyone who asked for it.
//!
//! ```text
//!            +--- "weather.oslo" ---> SUB "weather."      PUB gives each message to every peer that subscribed
//!   PUB -----+                                            to a prefix of its first part, the topic.
//!            +--- "weather.oslo" ---> SUB "weather.oslo"  SUB tells every peer its subscriptions, again
//!            <--- SUBSCRIBE prefix ---                    whenever one links anew.
//! ```
//!
//! A publisher that keeps what it publishes has [`Deliveries`] for each subscriber, fed by whoever reads what is kept; see
//! [`delivery`](crate::delivery). The rest of this is about one that does not.
//!
//! A publisher does not wait for a subscriber that does not keep up unless it is told to ([`Overflow`]); what a
//! subscriber misses is counted and told to it at that place of its stream. Subscriptions are state, not messages: no
//! queue's bound drops one. Source: RFC 29 (PUBSUB).

use alloc::{boxed::Box, vec::Vec};

use bytes::Bytes;

use crate::{
    credit::Tally,
    delivery::{Confirms, Deliveries, Followed, Inbound, Inbox, Keeps, Lanes, Rules, Start, StreamId},
    message::{Body, Head, Message, Outgoing},
    misbehaved::Misbehaved,
    pattern::{Meets, Pattern, Peer, Role, Why},
    topics::Topics,
    turn::{Action, Room, Turn},
    zmtp::{Command, Limits, Ready},
};

/// What a publisher does about a subscriber whose queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overflow {
    /// The newest message is left out for that subscriber.
    #[default]
    DropNewest,
    /// The oldest waiting message is left out for that subscriber.
    DropOldest,
    /// The publisher waits until every matching subscriber has room, then gives the message to all in one step.
    Block,
    /// The subscriber's link is closed.
    Disconnect,
}

/// What an application asks of a publisher.
#[derive(Debug)]
pub struct Publish<'a> {
    /// The message, its topic first.
    pub message: Outgoing<'a>,
    /// Whether to be told, before anything is done, that a subscriber has just become full; so that the publisher may
    /// let its links write once before it drops. Only of what is tried now: it would wait for that subscriber.
    pub patient: bool,
}

impl<'a> From<Body<'a>> for Publish<'a> {
    fn from(body: Body<'a>) -> Self {
        Self { message: body.into(), patient: false }
    }
}

/// The deciding half of a socket that publishes.
#[derive(Debug)]
pub struct Pub {
    overflow: Overflow,
    limits: Limits,
    topics: Topics,
    /// Peers that were found full and have not had room since.
    full: Vec<Peer>,
    /// The peers the message at hand is for, and the room they have; kept for their memory.
    matching: Vec<Peer>,
    rooms: Vec<Room>,
    kept: Option<Box<Lanes>>,
}

impl Pub {
    /// A publisher with this policy; `limits` bound what one peer may subscribe to.
    pub fn new(overflow: Overflow, limits: Limits) -> Self {
        Self {
            overflow,
            limits,
            topics: Topics::new(),
            full: Vec::new(),
            matching: Vec::new(),
            rooms: Vec::new(),
            kept: None,
        }
    }

    /// A publisher that keeps what it publishes until each subscriber has confirmed it.
    pub fn keeping(stream: StreamId, incarnation: u64, rules: Rules, limits: Limits) -> Self {
        Self { kept: Some(Box::new(Lanes::new(stream, incarnation, rules))), ..Self::new(Overflow::default(), limits) }
    }

    /// The peers that would get a message of this topic.
    pub fn subscribers(&self, topic: &[u8]) -> Vec<Peer> {
        let mut matching = Vec::new();
        self.topics.matching(topic, &mut matching);
        matching
    }

    fn topic_matches(&mut self, message: &Outgoing<'_>) {
        let topic: &[u8] = match (message.head, &message.body) {
            (Head::Topic(topic), _) => topic,
            (_, Body::Slice(topic)) => topic,
            (_, Body::Message(message)) => message.topic(),
        };
        self.topics.matching(topic, &mut self.matching);
    }

    /// Asks for the room of all matching peers, each once. Whether the publisher is to wait.
    fn look_around<T: Turn>(&mut self, verb: &Publish<'_>, turn: &mut T) -> bool {
        let blocks = self.overflow == Overflow::Block;
        let mut wait = false;
        self.rooms.clear();
        for &peer in &self.matching {
            let room = turn.room(peer, &verb.message);
            let lacks_room = matches!(room, Room::Full | Room::TooLittle | Room::Spent);
            wait |= lacks_room && (blocks || (verb.patient && !self.full.contains(&peer)));
            self.rooms.push(room);
        }
        wait
    }

    /// Takes those without room out of `matching`, doing to each what the policy says.
    fn make_room<T: Turn>(&mut self, message: &Outgoing<'_>, turn: &mut T) {
        let (overflow, full, mut rooms) = (self.overflow, &mut self.full, self.rooms.iter());
        self.matching.retain(|&peer| {
            let mut room = rooms.next().copied().unwrap_or(Room::Gone);
            loop {
                match room {
                    Room::Fits => return true,
                    Room::Gone => return false,
                    Room::Never => {
                        turn.miss(peer, 1);
                        return false;
                    }
                    Room::Full | Room::TooLittle | Room::Spent => {}
                }
                if !full.contains(&peer) {
                    full.push(peer);
                }
                match overflow {
                    Overflow::DropOldest if turn.drop_oldest(peer) => {
                        room = turn.room(peer, message);
                        continue;
                    }
                    // If it is others who do not keep up, this one is not to blame.
                    Overflow::Disconnect if room != Room::Spent => {
                        turn.miss(peer, 1);
                        turn.disconnect(peer);
                    }
                    _ => turn.miss(peer, 1),
                }
                return false;
            }
        });
    }

    fn on_subscription<T: Turn<Event = Followed>>(
        &mut self,
        peer: Peer,
        command: Command,
        turn: &mut T,
    ) -> Result<(), Misbehaved> {
        match command {
            Command::Subscribe(prefix) => {
                if !turn.may(peer, Action::Subscribe(&prefix), &prefix) {
                    return Ok(());
                }
                self.topics.subscribe(peer, prefix, &self.limits)?;
                if let Some(kept) = &mut self.kept {
                    kept.on_subscription(peer, turn);
                }
            }
            Command::Cancel(prefix) => {
                self.topics.cancel(peer, &prefix);
            }
            _ => return Ok(()),
        }
        // One who waits for room may wait for it no longer.
        turn.ready();
        Ok(())
    }
}

impl Pattern for Pub {
    const ROLE: Role = Role::PUB;
    const MEETS: Meets = Meets::AtArrival;
    type Verb<'a> = Publish<'a>;
    type Event = Followed;

    fn accepts(role: &Role) -> bool {
        *role == Role::SUB || *role == Role::XSUB || role.is_unsaid()
    }

    fn keeps(&self) -> bool {
        self.kept.is_some()
    }

    #[inline]
    fn fanned<'s, 'v>(&'s mut self, verb: &'s Self::Verb<'v>) -> Option<(&'s [Peer], &'s Outgoing<'v>)> {
        self.topic_matches(&verb.message);
        Some((&self.matching, &verb.message))
    }

    fn held(&self) -> Tally {
        self.kept.as_ref().map_or(Tally::ZERO, |kept| kept.unsettled())
    }

    fn on_join<T: Turn<Event = Followed>>(&mut self, peer: Peer, _: &Ready, turn: &mut T) {
        if let Some(kept) = &mut self.kept {
            kept.on_join(peer, turn);
        }
    }

    fn on_close<T: Turn<Event = Followed>>(&mut self, _: &mut T) {
        if let Some(kept) = &mut self.kept {
            kept.close();
        }
    }

    fn on_leave<T: Turn<Event = Followed>>(&mut self, peer: Peer, unsent: Vec<Message>, turn: &mut T) {
        self.topics.leave(peer);
        self.full.retain(|&other| other != peer);
        turn.ready();
        match &mut self.kept {
            Some(kept) => kept.on_leave(peer, unsent.len(), turn),
            None => turn.lose(unsent.len() as u64),
        }
    }

    fn on_verb<'a, T: Turn<Event = Followed>>(
        &mut self,
        verb: Self::Verb<'a>,
        turn: &mut T,
    ) -> Result<(), (Self::Verb<'a>, Why)> {
        let message = &verb.message;
        self.topic_matches(message);
        if self.look_around(&verb, turn) {
            return Err((verb, Why::Full));
        }
        let all_have_room = self.rooms.iter().all(|&room| room == Room::Fits);
        if !all_have_room {
            self.make_room(message, turn);
        }
        turn.send_all(&self.matching, message);
        if all_have_room {
            turn.keep_to_all(&self.matching);
        }
        Ok(())
    }

    fn on_room<T: Turn<Event = Followed>>(&mut self, peer: Peer, turn: &mut T) {
        self.full.retain(|&other| other != peer);
        turn.ready();
        if let Some(kept) = &mut self.kept {
            kept.give(peer, turn);
        }
    }

    /// Subscribers of ZMTP 3.0 subscribe by messages; what else an XSUB may send has no taker here.
    fn on_message<T: Turn<Event = Followed>>(
        &mut self,
        peer: Peer,
        message: Message,
        turn: &mut T,
    ) -> Result<Option<Followed>, Misbehaved> {
        if message.len() == 1
            && let Some(command) = Command::from_legacy(message.payload(), &self.limits)?
        {
            self.on_subscription(peer, command, turn)?;
        }
        Ok(None)
    }

    fn on_command<T: Turn<Event = Followed>>(
        &mut self,
        peer: Peer,
        command: Command,
        turn: &mut T,
    ) -> Result<(), Misbehaved> {
        match command {
            Command::Subscribe(_) | Command::Cancel(_) => self.on_subscription(peer, command, turn),
            _ => self.kept.as_mut().map_or(Ok(()), |kept| kept.on_command(peer, command, turn)),
        }
    }
}

impl Keeps for Pub {
    fn deliver<T: Turn<Event = Followed>, R: Default>(
        &mut self,
        only: Option<Peer>,
        turn: &mut T,
        act: impl FnOnce(&mut Deliveries, &mut T) -> R,
    ) -> R {
        let (Some(peer), Some(kept)) = (only, &mut self.kept) else { return R::default() };
        kept.deliver(peer, turn, act)
    }

    fn rename<T: Turn<Event = Followed>>(&mut self, stream: StreamId, turn: &mut T) {
        if let Some(kept) = &mut self.kept {
            kept.rename(stream, turn);
        }
    }

    fn is_for(&mut self, only: Option<Peer>, message: &Message) -> bool {
        let Some(peer) = only.filter(|&peer| self.kept.as_ref().is_some_and(|kept| kept.has(peer))) else {
            // It is gone, and its subscriptions with it: what was for it is not known any more, and is not decided here.
            return true;
        };
        self.topics.matching(message.topic(), &mut self.matching);
        self.matching.contains(&peer)
    }
}

/// What an application asks of a subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscription {
    /// Messages whose topic begins so, please.
    Subscribe(Bytes),
    /// No longer.
    Unsubscribe(Bytes),
}

/// What a subscriber hands to the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A message.
    Message(Message),
    /// So many messages were left out here, because this subscriber did not keep up.
    Lagged(u64),
}

/// The deciding half of a socket that subscribes.
#[derive(Debug)]
pub struct Sub {
    limits: Limits,
    /// What was asked for. Messages are held against it: a publisher may send more.
    wanted: Topics,
    peers: Vec<Peer>,
    inbound: Inbound,
}

/// In [`Sub::wanted`] there is only one subscriber: ourselves.
const MYSELF: Peer = Peer { slot: 0, generation: 0 };

impl Sub {
    /// A subscriber to nothing yet. `limits` bound what it may subscribe to, as they bound it at the publisher.
    pub fn new(limits: Limits) -> Self {
        Self { limits, wanted: Topics::new(), peers: Vec::new(), inbound: Inbound::default() }
    }

    /// A subscriber that publishers know by this name, if it has one, that begins there, and is done with these messages
    /// already.
    #[must_use]
    pub fn following(mut self, name: Bytes, start: Start, inbox: Inbox) -> Self {
        self.inbound = Inbound::new(name, start, inbox);
        self
    }

    /// Subscribed to these from the beginning.
    ///
    /// # Errors
    /// When publishers would close the link for one: it is too long, or one too many.
    pub fn subscribed(mut self, prefixes: impl IntoIterator<Item = Bytes>) -> Result<Self, Why> {
        prefixes.into_iter().try_for_each(|prefix| self.want(&prefix).map(drop))?;
        Ok(self)
    }

    /// Whether publishers have to be told: one subscription counts however often the application asks for it.
    fn want(&mut self, prefix: &Bytes) -> Result<bool, Why> {
        if prefix.len() > self.limits.topic {
            return Err(Why::TooLarge);
        }
        self.wanted.subscribe(MYSELF, prefix.clone(), &self.limits).map_err(|_| Why::TooLarge)
    }

    fn tell_all<T: Turn>(&self, command: &Command, turn: &mut T) {
        for &peer in &self.peers {
            turn.tell(peer, command.clone());
        }
    }
}

impl Pattern for Sub {
    const ROLE: Role = Role::SUB;
    const IN_RUN: Option<fn(Message) -> Heard> = Some(Heard::Message);
    type Verb<'a> = Subscription;
    type Event = Heard;

    fn accepts(role: &Role) -> bool {
        *role == Role::PUB || *role == Role::XPUB || role.is_unsaid()
    }

    fn asks_by<'m>(&self, peer: Peer, message: &'m Message) -> Option<Action<'m>> {
        (!self.inbound.confirms(peer)).then_some(Action::Publish(message))
    }

    fn owed(&mut self, peer: Peer) -> Option<Command> {
        self.inbound.owed(peer)
    }

    fn is_done(&self) -> bool {
        self.inbound.is_done()
    }

    fn on_join<T: Turn<Event = Heard>>(&mut self, peer: Peer, _: &Ready, turn: &mut T) {
        self.peers.push(peer);
        for prefix in self.wanted.prefixes() {
            turn.tell(peer, Command::Subscribe(prefix));
        }
    }

    fn on_leave<T: Turn<Event = Heard>>(&mut self, peer: Peer, _: Vec<Message>, turn: &mut T) {
        self.peers.retain(|&other| other != peer);
        self.inbound.on_leave(peer, turn);
    }

    fn on_verb<'a, T: Turn<Event = Heard>>(
        &mut self,
        verb: Self::Verb<'a>,
        turn: &mut T,
    ) -> Result<(), (Self::Verb<'a>, Why)> {
        match verb {
            Subscription::Subscribe(prefix) => match self.want(&prefix) {
                Ok(true) => self.tell_all(&Command::Subscribe(prefix), turn),
                Ok(false) => {}
                Err(why) => return Err((Subscription::Subscribe(prefix), why)),
            },
            Subscription::Unsubscribe(prefix) => {
                if self.wanted.cancel(MYSELF, &prefix) {
                    self.tell_all(&Command::Cancel(prefix), turn);
                }
            }
        }
        Ok(())
    }

    fn on_message<T: Turn<Event = Heard>>(
        &mut self,
        peer: Peer,
        message: Message,
        turn: &mut T,
    ) -> Result<Option<Heard>, Misbehaved> {
        let message = match self.inbound.is_empty() {
            true => message,
            false => match self.inbound.on_message(peer, message, turn)? {
                Some(message) => message,
                None => return Ok(None),
            },
        };
        Ok(if self.passes(message.topic()) { Some(Heard::Message(message)) } else { None })
    }

    #[inline]
    fn passes(&self, topic: &[u8]) -> bool {
        self.wanted.is_wanted(topic)
    }

    fn on_gap<T: Turn<Event = Heard>>(&mut self, _: Peer, missed: u64, _: &mut T) -> Option<Heard> {
        // A gap is nothing to hold; nor is what stood before it.
        self.inbound.settle_last();
        Some(Heard::Lagged(missed))
    }

    fn on_command<T: Turn<Event = Heard>>(
        &mut self,
        peer: Peer,
        command: Command,
        turn: &mut T,
    ) -> Result<(), Misbehaved> {
        self.inbound.on_command(peer, &command, turn)
    }
}

impl Confirms for Sub {
    fn inbound(&mut self) -> &mut Inbound {
        &mut self.inbound
    }
}
