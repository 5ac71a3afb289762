//! Each message to one worker.
//!
//! ```text
//!            +--------> PULL            PUSH gives each message to the next peer with room, in turn.
//!   PUSH ----+--------> PULL            PULL takes from all its peers, in turn.
//!            +--------> PULL            Nothing goes back but credit.
//! ```
//!
//! With [`Deliveries`] PUSH keeps what it sends until the far application has confirmed it, and gives it to another peer
//! when the first is lost; see [`delivery`](crate::delivery).
//!
//! When a link dies, the messages that were not wholly written go first, in their order, to the next peer. While no
//! peer is linked, messages wait for a dialled endpoint; a socket that only listens has nobody to wait for, and its
//! senders wait themselves. Source: RFC 30 (PIPELINE), with that better keeping of what was not written.

use alloc::{boxed::Box, vec::Vec};
use core::convert::Infallible;

use bytes::Bytes;

use crate::{
    backlog::Backlog,
    credit::Tally,
    delivery::{Confirms, Deliveries, Flight, Inbound, Inbox, Keeps, Outcome, Start, StreamId},
    message::{Body, Message, Outgoing},
    misbehaved::Misbehaved,
    pattern::{Meets, Pattern, Peer, Role, Why},
    ring::Ring,
    turn::{Action, Turn},
    zmtp::{Command, Ready},
};

/// The deciding half of a socket that pushes.
#[derive(Debug, Default)]
pub struct Push {
    ring: Ring,
    backlog: Backlog,
    kept: Option<Box<Kept>>,
}

/// What is kept until it is confirmed.
#[derive(Debug)]
struct Kept {
    deliveries: Deliveries,
    /// The application's verbs are the source, and are numbered here.
    verbs: bool,
}

impl Push {
    /// One that keeps what it sends until it is confirmed. The source of its messages [feeds](Deliveries::feed) it, or, where
    /// that is `verbs`, what the application sends.
    pub fn keeping(deliveries: Deliveries, verbs: bool) -> Self {
        Self { kept: Some(Box::new(Kept { deliveries, verbs })), ..Self::default() }
    }

    /// What is kept until it is confirmed.
    pub fn deliveries(&mut self) -> Option<&mut Deliveries> {
        self.kept.as_mut().map(|kept| &mut kept.deliveries)
    }

    /// Accepts a message to be kept until it is confirmed, if there is room for it. `numbered` is told its seq before
    /// anybody gets it.
    ///
    /// # Errors
    /// The message, and why it was not accepted.
    pub fn accept<'a, T: Turn<Event = Outcome>, R>(
        &mut self,
        body: Body<'a>,
        turn: &mut T,
        numbered: impl FnOnce(u64) -> R,
    ) -> Result<R, (Body<'a>, Why)> {
        let Some(Kept { deliveries, verbs: true, .. }) = self.kept.as_deref_mut() else {
            return Err((body, Why::Full));
        };
        let message = Outgoing::from(body);
        let room = deliveries.room();
        if room.messages == 0 || message.cost() > room.bytes {
            return Err((message.body, Why::Full));
        }
        let (seq, incarnation) = (deliveries.next(), deliveries.incarnation());
        let result = numbered(seq);
        deliveries.feed([Flight::new(seq, incarnation, 1, message.body.into_message())]);
        self.give(turn);
        Ok(result)
    }

    /// Gives peers what waits and they have room for.
    fn give<T: Turn<Event = Outcome>>(&mut self, turn: &mut T) {
        let Some(Kept { deliveries, verbs, .. }) = self.kept.as_deref_mut() else { return };
        while let Some(outgoing) = deliveries.front() {
            let cost = outgoing.cost();
            match self.ring.next(&outgoing, turn, |peer| deliveries.takes(peer, cost, 0)) {
                Ok(peer) => {
                    turn.send(peer, &outgoing);
                    deliveries.sent(peer);
                }
                Err(Why::TooLarge) => deliveries.refused(turn),
                Err(_) => break,
            }
        }
        if *verbs {
            turn.ready();
        } else {
            deliveries.want(turn);
        }
    }

    fn drain<T: Turn>(&mut self, turn: &mut T) {
        while let Some(message) = self.backlog.pop() {
            let outgoing = Outgoing::from(message);
            match self.ring.next(&outgoing, turn, |_| true) {
                Ok(peer) => turn.send(peer, &outgoing),
                // It was accepted while nobody was there to say that it is too large.
                Err(Why::TooLarge) => turn.lose(1),
                Err(_) => {
                    self.backlog.unpop(outgoing.body.into_message());
                    break;
                }
            }
        }
        // Verbs go behind the backlog: while nobody is linked into it, else when it is gone.
        if self.ring.is_empty() || self.backlog.is_empty() {
            turn.ready();
        }
    }
}

impl Keeps for Push {
    fn deliver<T: Turn<Event = Outcome>, R: Default>(
        &mut self,
        _: Option<Peer>,
        turn: &mut T,
        act: impl FnOnce(&mut Deliveries, &mut T) -> R,
    ) -> R {
        let Some(kept) = &mut self.kept else { return R::default() };
        let result = act(&mut kept.deliveries, turn);
        self.give(turn);
        result
    }

    fn rename<T: Turn<Event = Outcome>>(&mut self, stream: StreamId, turn: &mut T) {
        if let Some(kept) = &mut self.kept {
            kept.deliveries.rename(stream, turn);
        }
    }
}

impl Pattern for Push {
    const ROLE: Role = Role::PUSH;
    /// Only to refuse what comes: it must not wait for an application that never takes.
    const MEETS: Meets = Meets::AtArrival;
    type Verb<'a> = Body<'a>;
    type Event = Outcome;

    #[inline]
    fn single<'v>(body: &'v Body<'_>) -> Option<&'v [u8]> {
        body.single()
    }

    fn held(&self) -> Tally {
        let kept = self.kept.as_ref().map_or(Tally::ZERO, |kept| kept.deliveries.unsettled());
        self.backlog.held().plus(kept)
    }

    fn keeps(&self) -> bool {
        self.kept.is_some()
    }

    fn accepts(role: &Role) -> bool {
        *role == Role::PULL || role.is_unsaid()
    }

    fn on_join<T: Turn<Event = Outcome>>(&mut self, peer: Peer, _: &Ready, turn: &mut T) {
        if let Some(kept) = &mut self.kept {
            return kept.deliveries.on_join(peer, turn);
        }
        self.ring.join(peer);
        self.drain(turn);
    }

    fn on_leave<T: Turn<Event = Outcome>>(&mut self, peer: Peer, unsent: Vec<Message>, turn: &mut T) {
        self.ring.leave(peer);
        if let Some(kept) = &mut self.kept {
            kept.deliveries.on_leave(peer, unsent.len(), turn);
            return self.give(turn);
        }
        self.backlog.give_back(unsent);
        self.drain(turn);
    }

    #[inline]
    fn on_verb<'a, T: Turn<Event = Outcome>>(
        &mut self,
        body: Self::Verb<'a>,
        turn: &mut T,
    ) -> Result<(), (Self::Verb<'a>, Why)> {
        if self.kept.is_some() {
            return self.accept(body, turn, |_| ());
        }
        let message = Outgoing::from(body);
        let decided = if self.ring.is_empty() {
            self.backlog.admit(message.cost(), turn).map(|()| None)
        } else if self.backlog.is_empty() {
            self.ring.next(&message, turn, |_| true).map(Some)
        } else {
            Err(Why::Full)
        };
        match decided {
            Ok(Some(peer)) => {
                turn.send(peer, &message);
                if self.ring.is_one() {
                    turn.keep_to(peer);
                }
            }
            Ok(None) => self.backlog.push(message.body.into_message()),
            Err(why) => return Err((message.body, why)),
        }
        Ok(())
    }

    fn on_room<T: Turn<Event = Outcome>>(&mut self, peer: Peer, turn: &mut T) {
        self.ring.reopen(peer);
        if self.kept.is_some() {
            return self.give(turn);
        }
        self.drain(turn);
    }

    fn on_close<T: Turn<Event = Outcome>>(&mut self, _: &mut T) {
        if let Some(Kept { deliveries, verbs: false }) = self.kept.as_deref_mut() {
            // The source says when there is no more.
            deliveries.has_more(true);
        }
    }

    fn on_message<T: Turn<Event = Outcome>>(
        &mut self,
        _: Peer,
        _: Message,
        _: &mut T,
    ) -> Result<Option<Outcome>, Misbehaved> {
        Err(Misbehaved::UnexpectedMessage)
    }

    fn on_command<T: Turn<Event = Outcome>>(
        &mut self,
        peer: Peer,
        command: Command,
        turn: &mut T,
    ) -> Result<(), Misbehaved> {
        let Some(Kept { deliveries, .. }) = self.kept.as_deref_mut() else { return Ok(()) };
        match command {
            Command::Resume(resume) => {
                if deliveries.on_resume(peer, &resume, turn) {
                    self.ring.join(peer);
                }
            }
            Command::Ack(ack) => deliveries.on_ack(peer, &ack, turn)?,
            Command::Verdict(verdict) => deliveries.on_verdict(peer, &verdict, turn)?,
            Command::Fence(fence) => return deliveries.on_fence(peer, &fence, turn),
            _ => return Ok(()),
        }
        self.give(turn);
        Ok(())
    }
}

/// The deciding half of a socket that pulls: every message is for the application, unless it does not want it of that peer.
#[derive(Debug, Default)]
pub struct Pull {
    inbound: Inbound,
}

impl Pull {
    /// One that is done with these messages already.
    pub fn with_inbox(inbox: Inbox) -> Self {
        Self { inbound: Inbound::new(Bytes::new(), Start::default(), inbox) }
    }
}

impl Confirms for Pull {
    fn inbound(&mut self) -> &mut Inbound {
        &mut self.inbound
    }
}

impl Pattern for Pull {
    const ROLE: Role = Role::PULL;
    const IN_RUN: Option<fn(Message) -> Message> = Some(core::convert::identity);
    type Verb<'a> = Infallible;
    type Event = Message;

    fn accepts(role: &Role) -> bool {
        *role == Role::PUSH || role.is_unsaid()
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

    fn on_join<T: Turn<Event = Message>>(&mut self, _: Peer, _: &Ready, _: &mut T) {}

    fn on_leave<T: Turn<Event = Message>>(&mut self, peer: Peer, _: Vec<Message>, turn: &mut T) {
        self.inbound.on_leave(peer, turn);
    }

    fn on_verb<'a, T: Turn<Event = Message>>(
        &mut self,
        verb: Self::Verb<'a>,
        _: &mut T,
    ) -> Result<(), (Self::Verb<'a>, Why)> {
        match verb {}
    }

    #[inline]
    fn on_message<T: Turn<Event = Message>>(
        &mut self,
        peer: Peer,
        message: Message,
        turn: &mut T,
    ) -> Result<Option<Message>, Misbehaved> {
        if self.inbound.is_empty() {
            return Ok(Some(message));
        }
        self.inbound.on_message(peer, message, turn)
    }

    fn on_command<T: Turn<Event = Message>>(
        &mut self,
        peer: Peer,
        command: Command,
        turn: &mut T,
    ) -> Result<(), Misbehaved> {
        self.inbound.on_command(peer, &command, turn)
    }
}
