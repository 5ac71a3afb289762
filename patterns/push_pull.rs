//! Each message to one worker.
//!
//! ```text
//!            +--------> PULL            PUSH gives each message to the next peer with room, in turn.
//!   PUSH ----+--------> PULL            PULL takes from all its peers, in turn.
//!            +--------> PULL            Nothing goes back but credit.
//! ```
//!
//! When a link dies, the messages that were not wholly written go first, in their order, to the next peer. While no
//! peer is linked, messages wait for a dialled endpoint; a socket that only listens has nobody to wait for, and its
//! senders wait themselves. Source: RFC 30 (PIPELINE), with that better keeping of what was not written.

use alloc::vec::Vec;
use core::convert::Infallible;

use crate::{
    backlog::Backlog,
    credit::Tally,
    message::{Body, Message, Outgoing},
    misbehaved::Misbehaved,
    pattern::{Meets, Pattern, Peer, Role, Why},
    ring::Ring,
    turn::{Action, Turn},
    zmtp::Ready,
};

/// The deciding half of a socket that pushes.
#[derive(Debug, Default)]
pub struct Push {
    ring: Ring,
    backlog: Backlog,
}

impl Push {
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

impl Pattern for Push {
    const ROLE: Role = Role::PUSH;
    /// Only to refuse what comes: it must not wait for an application that never takes.
    const MEETS: Meets = Meets::AtArrival;
    type Verb<'a> = Body<'a>;
    type Event = Infallible;

    #[inline]
    fn single<'v>(body: &'v Body<'_>) -> Option<&'v [u8]> {
        body.single()
    }

    fn held(&self) -> Tally {
        self.backlog.held()
    }

    fn accepts(role: &Role) -> bool {
        *role == Role::PULL || role.is_unsaid()
    }

    fn on_join<T: Turn<Event = Infallible>>(&mut self, peer: Peer, _: &Ready, turn: &mut T) {
        self.ring.join(peer);
        self.drain(turn);
    }

    fn on_leave<T: Turn<Event = Infallible>>(&mut self, peer: Peer, unsent: Vec<Message>, turn: &mut T) {
        self.ring.leave(peer);
        self.backlog.give_back(unsent);
        self.drain(turn);
    }

    #[inline]
    fn on_verb<'a, T: Turn<Event = Infallible>>(
        &mut self,
        body: Self::Verb<'a>,
        turn: &mut T,
    ) -> Result<(), (Self::Verb<'a>, Why)> {
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

    fn on_room<T: Turn<Event = Infallible>>(&mut self, peer: Peer, turn: &mut T) {
        self.ring.reopen(peer);
        self.drain(turn);
    }

    fn on_message<T: Turn<Event = Infallible>>(
        &mut self,
        _: Peer,
        _: Message,
        _: &mut T,
    ) -> Result<Option<Infallible>, Misbehaved> {
        Err(Misbehaved::UnexpectedMessage)
    }
}

/// The deciding half of a socket that pulls: every message is for the application, unless it does not want it of that peer.
#[derive(Debug, Default)]
pub struct Pull;

impl Pattern for Pull {
    const ROLE: Role = Role::PULL;
    type Verb<'a> = Infallible;
    type Event = Message;

    fn accepts(role: &Role) -> bool {
        *role == Role::PUSH || role.is_unsaid()
    }

    fn asks_by(message: &Message) -> Option<Action<'_>> {
        Some(Action::Publish(message))
    }

    fn on_join<T: Turn<Event = Message>>(&mut self, _: Peer, _: &Ready, _: &mut T) {}

    fn on_leave<T: Turn<Event = Message>>(&mut self, _: Peer, _: Vec<Message>, _: &mut T) {}

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
        _: Peer,
        message: Message,
        _: &mut T,
    ) -> Result<Option<Message>, Misbehaved> {
        Ok(Some(message))
    }
}
