//! Doing what the application wants done, at once or in its turn.

use std::task::Context;

use ropewalk_patterns::{Pattern, Why};

use super::{Core, Hub, Phase, Ticket, Undone, VerbFuture, Writes, wait};

impl<P: Pattern> Hub<P> {
    /// Does a verb now, or gives it back. Those who wait go first.
    pub(crate) fn try_verb<'a>(&self, verb: P::Verb<'a>) -> Result<(), (P::Verb<'a>, Undone)> {
        if self.verb_in_stretch(&verb) {
            return Ok(());
        }
        let mut state = self.lock();
        if state.follows(&verb) {
            return Ok(());
        }
        self.within(state, Writes::HereAfterAPause, |state| {
            if state.core.senders.any_in(P::line(&verb)) {
                return Err((verb, state.closed().unwrap_or(Undone::Why(Why::Full))));
            }
            state.verb(verb)
        })
    }

    /// Does a verb as soon as it can be done.
    pub(crate) fn verb<'a>(&self, verb: P::Verb<'a>) -> VerbFuture<'_, 'a, P> {
        VerbFuture { hub: self, verb: Some(verb), ticket: None }
    }

    /// Does a verb if it is its turn and it can be done; otherwise it is given back and waits in its line.
    #[inline]
    #[allow(clippy::type_complexity, reason = "what on_verb gives, or the verb again")]
    pub(crate) fn poll_verb<'a>(
        &self,
        cx: &mut Context<'_>,
        ticket: &mut Option<Ticket>,
        verb: P::Verb<'a>,
    ) -> Result<Result<(), (P::Verb<'a>, Undone)>, P::Verb<'a>> {
        let line = P::line(&verb);
        self.poll_in_line(cx, ticket, line, verb, |pattern, core, verb| pattern.on_verb(verb, core))
    }

    /// Does something with the pattern as a verb is done: in its turn, and when it can be done.
    #[inline]
    #[allow(clippy::type_complexity, reason = "what it comes to, or what it is done with again")]
    pub(crate) fn poll_in_line<V, R>(
        &self,
        cx: &mut Context<'_>,
        ticket: &mut Option<Ticket>,
        line: u64,
        verb: V,
        act: impl FnOnce(&mut P, &mut Core<P::Event>, V) -> Result<R, (V, Why)>,
    ) -> Result<Result<R, (V, Undone)>, V> {
        self.with_and(Writes::HereAfterAPause, |state| {
            let senders = &mut state.core.senders;
            let mine = match ticket {
                Some(ticket) => senders.is_first(*ticket),
                None => !senders.any_in(line),
            };
            if !mine && state.closed().is_none() {
                // What it waits for may have to be read.
                state.core.give_back();
                wait(&mut state.core.senders, ticket, line, cx.waker());
                return Err(verb);
            }
            if ticket.is_none() && state.core.gives_way() {
                // There is room, so it stands in no line; it only has its turn after others.
                state.core.effects.wakers.push(cx.waker().clone());
                return Err(verb);
            }
            match state.unless_closed(verb, act) {
                Err((verb, Undone::Why(Why::Full))) => {
                    state.core.give_back();
                    wait(&mut state.core.senders, ticket, line, cx.waker());
                    Err(verb)
                }
                done => {
                    if let Some(ticket) = ticket.take() {
                        let next = state.core.senders.leave(ticket);
                        state.core.effects.wakers.extend(next);
                    }
                    Ok(done)
                }
            }
        })
    }

    /// Does a verb that sends one small part behind the last message, if the pattern would do just that.
    #[inline]
    pub(crate) fn verb_in_stretch(&self, verb: &P::Verb<'_>) -> bool {
        P::single(verb).is_some_and(|part| self.lock().core.push_in_stretch(part))
    }

    /// Leaves the line of those who wait for a verb to be done.
    pub(crate) fn leave_senders(&self, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            self.with(|state| {
                let next = state.core.senders.leave(ticket);
                state.core.effects.wakers.extend(next);
            });
        }
    }

    /// Does something with the pattern, and what follows from it.
    pub(crate) fn act<R>(&self, act: impl FnOnce(&mut P, &mut Core<P::Event>) -> R) -> R {
        let (result, closing) = self.with_and(Writes::HereAfterAPause, |state| {
            let result = act(&mut state.pattern, &mut state.core);
            state.look_for_the_end();
            (result, state.core.phase > Phase::Open)
        });
        if closing {
            self.changed.notify_waiters();
        }
        result
    }
}
