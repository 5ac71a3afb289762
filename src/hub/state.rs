//! What the lock of a socket keeps: its pattern and everything else.

use std::sync::Arc;

use ropewalk_patterns::{Meets, Message, Pattern, Peer, Turn as _, Why, zmtp::Span};

use super::{
    From, Phase, Undone,
    core::{Core, Signal},
    incoming::Taken,
};
use crate::events::PeerInfo;

pub(super) struct State<P: Pattern> {
    pub(super) pattern: P,
    pub(super) core: Core<P::Event>,
}

impl<P: Pattern> State<P> {
    pub(super) fn closed(&self) -> Option<Undone> {
        (self.core.phase > Phase::Open).then_some(Undone::Closed)
    }

    #[inline]
    pub(super) fn verb<'a>(&mut self, verb: P::Verb<'a>) -> Result<(), (P::Verb<'a>, Undone)> {
        self.unless_closed(verb, |pattern, core, verb| pattern.on_verb(verb, core))
    }

    #[inline]
    pub(super) fn unless_closed<V, R>(
        &mut self,
        verb: V,
        act: impl FnOnce(&mut P, &mut Core<P::Event>, V) -> Result<R, (V, Why)>,
    ) -> Result<R, (V, Undone)> {
        if let Some(closed) = self.closed() {
            return Err((verb, closed));
        }
        act(&mut self.pattern, &mut self.core, verb).map_err(|(verb, why)| (verb, Undone::Why(why)))
    }

    /// Sends a message behind the last, to the same peers, if that is all that this verb does.
    #[inline]
    pub(super) fn follows(&mut self, verb: &P::Verb<'_>) -> bool {
        self.core.fan.is_open()
            && self.pattern.fanned(verb).is_some_and(|(peers, message)| self.core.push_in_fan(peers, message))
    }

    /// Says to this peer what the pattern owes it.
    pub(super) fn pay(&mut self, peer: Peer) {
        if !self.core.slots.live(peer).is_some_and(|slot| std::mem::take(&mut slot.owing)) {
            return;
        }
        while let Some(command) = self.pattern.owed(peer) {
            self.core.tell(peer, command);
        }
    }

    /// Where the socket closes and the pattern is done, links may say goodbye.
    pub(super) fn look_for_the_end(&mut self) {
        if self.core.phase > Phase::Open && self.pattern.is_done() {
            self.core.wake_all_links(&Signal::Write);
        }
    }

    /// Tells the pattern of the peers that have room again.
    #[inline]
    pub(super) fn tell_of_room(&mut self) {
        while let Some(peer) = self.core.next_roomy() {
            self.pattern.on_room(peer, &mut self.core);
            // That may have been the last that was held.
            self.look_for_the_end();
        }
    }

    pub(super) fn has_something(&self) -> bool {
        !self.core.delivered.is_empty() || (P::MEETS == Meets::WhenTaken && self.core.has_something())
    }

    #[inline]
    pub(super) fn next(&mut self) -> Option<P::Event> {
        loop {
            if let Some(event) = self.core.delivered.pop_front() {
                if P::MEETS == Meets::AtArrival {
                    self.pump();
                }
                return Some(event);
            }
            if P::MEETS == Meets::AtArrival {
                return None;
            }
            if let Some(event) = self.meet()? {
                return Some(event);
            }
        }
    }

    /// Like [`next`](Self::next) of a pattern that meets messages when they are taken, and whose it is.
    pub(super) fn next_from(&mut self) -> Option<From<P>> {
        loop {
            let whose = self.core.whose_next()?;
            if let Some(event) = self.meet()? {
                return Some((event, whose));
            }
        }
    }

    /// Lets the pattern meet the next thing that came; `None` if nothing did.
    #[inline]
    pub(super) fn meet(&mut self) -> Option<Option<P::Event>> {
        let Self { pattern, core } = self;
        if let Some(event) = P::IN_RUN
            && let Some((_, span)) = core.run.next()
        {
            let passes = pattern.passes(core.run.first(span));
            return Some(passes.then(|| event(core.run.message(span))));
        }
        core.end_run();
        // Before it is taken: with its last message a peer that is gone goes for good.
        let whose = if core.asks { core.whose_next() } else { None };
        let (peer, taken) = core.take()?;
        Some(match taken {
            Taken::Message(message) if whose.is_some_and(|whose| !self.permits(peer, whose, &message)) => None,
            Taken::Message(message) => match self.pattern.on_message(peer, message, &mut self.core) {
                Ok(event) => event,
                Err(misbehaved) => {
                    self.core.end_link(peer, misbehaved.into());
                    None
                }
            },
            Taken::Gap(missed) => self.pattern.on_gap(peer, missed, &mut self.core),
        })
    }

    /// Takes what is left of the open run, at most so many. How many.
    pub(super) fn rest_of_run(&mut self, limit: usize, into: &mut Vec<P::Event>) -> usize {
        let Some(event) = P::IN_RUN else { return 0 };
        let before = into.len();
        if self.core.run.whose().is_some() {
            into.reserve(limit.min(64));
        }
        while into.len() - before + 1 < limit {
            // Two at a time: what is made is not moved at once, see `Hub::in_run`.
            let Some((_, first)) = self.next_in_run() else { break };
            let first = self.core.run.message(first);
            let Some((_, second)) = self.next_in_run() else {
                into.push(event(first));
                break;
            };
            let second = self.core.run.message(second);
            into.push(event(first));
            into.push(event(second));
        }
        into.len() - before
    }

    /// Where the next message stands that passes, as long as the open run goes, and whose it is.
    #[inline(always)]
    pub(super) fn next_in_run(&mut self) -> Option<(Peer, Span)> {
        loop {
            let (peer, span) = self.core.run.next()?;
            if self.pattern.passes(self.core.run.first(span)) {
                return Some((peer, span));
            }
        }
    }

    /// Whether the application lets the peer do what it asks for by this message alone.
    #[cold]
    fn permits(&mut self, peer: Peer, whose: Arc<PeerInfo>, message: &Message) -> bool {
        self.pattern.asks_by(peer, message).is_none_or(|action| self.core.ask(peer, whose, action, &[]))
    }

    /// Something may be there to be taken that was not before.
    #[inline]
    pub(super) fn arrived(&mut self, arrived: bool) {
        if P::MEETS == Meets::AtArrival {
            self.pump();
        } else if arrived {
            self.core.effects.wakers.extend(self.core.takers.wake_first(0));
        }
    }

    /// Patterns that meet messages at arrival meet them now, as long as the application fetches what comes of it.
    pub(super) fn pump(&mut self) {
        let bound = self.core.options.recv_hwm.messages as usize;
        while self.core.delivered.len() < bound
            && let Some(met) = self.meet()
        {
            if let Some(event) = met {
                ropewalk_patterns::Turn::deliver(&mut self.core, event);
            }
        }
        self.core.nothing_left();
    }
}
