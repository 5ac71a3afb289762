//! Taking what came in, and waiting for it. Who waits alone for one link reads that link's stream by itself.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use ropewalk_patterns::{
    Message, Pattern, Peer,
    delivery::{Confirms, Held},
};

use super::{From, Hub, NextFuture, Signals, State, Ticket, Undone, Waits, Writes, core::Core, lease::Gate, wait};
use crate::events::PeerInfo;

/// What one who waits keeps between polls: its place in the line.
#[derive(Debug, Default)]
pub(crate) struct Place(Option<Ticket>);

impl Place {
    #[inline]
    pub(super) fn is_taken(&self) -> bool {
        self.0.is_some()
    }
}

impl<P: Pattern> Hub<P> {
    /// What the application gets next, if it is there and nobody waits for it already.
    pub(crate) fn try_next(&self) -> Result<Option<P::Event>, Undone> {
        self.next_in_run().map_or_else(|| self.take_now(State::next), |event| Ok(Some(event)))
    }

    /// Like [`try_next`](Self::try_next), and whose it is.
    pub(crate) fn try_next_from(&self) -> Result<Option<From<P>>, Undone> {
        self.next_in_run_from().map_or_else(|| self.take_now(State::next_from), |next| Ok(Some(next)))
    }

    fn take_now<R>(&self, take: impl FnOnce(&mut State<P>) -> Option<R>) -> Result<Option<R>, Undone> {
        self.with_and(Writes::Here, |state| {
            if let Some(closed) = state.closed() {
                return Err(closed);
            }
            if !state.core.takers.is_empty() {
                return Ok(None);
            }
            let next = take(state);
            if next.is_none() {
                // One who asks again and again gives credit back like one who waits.
                state.core.nothing_left();
            }
            Ok(next)
        })
    }

    /// What the application gets next.
    pub(crate) fn next(&self) -> NextFuture<'_, P> {
        NextFuture(Waits::new(self))
    }

    /// What the application gets next, and whose it is.
    pub(crate) async fn next_from(&self) -> Result<From<P>, Undone> {
        let mut waits = Waits::new(self);
        poll_fn(|cx| self.poll_next_from(cx, &mut waits.place)).await
    }

    /// What the application gets next.
    #[inline]
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>, place: &mut Place) -> Poll<Result<P::Event, Undone>> {
        // Where it has a place in the line, no run is open.
        if let Some(event) = self.next_in_run() {
            return Poll::Ready(Ok(event));
        }
        self.poll_take(cx, place, State::next)
    }

    /// What the application gets next, and whose it is.
    #[inline]
    pub(crate) fn poll_next_from(&self, cx: &mut Context<'_>, place: &mut Place) -> Poll<Result<From<P>, Undone>> {
        if let Some(next) = self.next_in_run_from() {
            return Poll::Ready(Ok(next));
        }
        self.poll_take(cx, place, State::next_from)
    }

    /// Like [`try_next`](Self::try_next), with what is to be settled of it within so many ticks.
    #[allow(clippy::type_complexity, reason = "an event, whose it is, and what is to be settled of it")]
    pub(crate) fn try_next_held(&self, ticks: u64) -> Result<Option<(P::Event, Arc<PeerInfo>, Option<Held>)>, Undone>
    where
        P: Confirms,
    {
        self.take_now(|state| {
            let (event, peer) = state.next_from()?;
            Some((event, peer, state.pattern.inbound().hold(ticks)))
        })
    }

    /// What the application gets next, whose it is, and what is to be settled of it within so many ticks.
    pub(crate) async fn next_held(&self, ticks: u64) -> Result<(P::Event, Arc<PeerInfo>, Option<Held>), Undone>
    where
        P: Confirms,
    {
        let mut waits = Waits::new(self);
        let mut take = |state: &mut State<P>| {
            let (event, peer) = state.next_from()?;
            Some((event, peer, state.pattern.inbound().hold(ticks)))
        };
        poll_fn(|cx| self.poll_take(cx, &mut waits.place, &mut take)).await
    }

    /// The same, and whatever else is there at once, up to `limit` in all, but at least one. How many.
    pub(crate) async fn many_held(
        &self,
        ticks: u64,
        limit: usize,
        mut give: impl FnMut(P::Event, Arc<PeerInfo>, Option<Held>),
    ) -> Result<usize, Undone>
    where
        P: Confirms,
    {
        let mut waits = Waits::new(self);
        let mut take = |state: &mut State<P>| {
            let mut count = 0;
            while count < limit.max(1) && (count == 0 || !state.core.effects.writes()) {
                let Some((event, peer)) = state.next_from() else { break };
                give(event, peer, state.pattern.inbound().hold(ticks));
                count += 1;
            }
            (count > 0).then_some(count)
        };
        poll_fn(|cx| self.poll_take(cx, &mut waits.place, &mut take)).await
    }

    /// The next in the run that is open, if there is one. Whoever joins a line, or closes the socket, has settled it.
    #[inline]
    pub(crate) fn next_in_run(&self) -> Option<P::Event> {
        self.in_run(|_, _| ())
    }

    /// The same, and whose it is.
    #[inline]
    pub(crate) fn next_in_run_from(&self) -> Option<From<P>> {
        let mut whose = None;
        let event = self.in_run(|core, peer| whose = core.slots.get(peer).map(|slot| Arc::clone(&slot.info)))?;
        // A peer keeps its place as long as something of it is to be taken.
        Some((event, whose?))
    }

    #[inline]
    fn in_run(&self, look: impl FnOnce(&mut Core<P::Event>, Peer)) -> Option<P::Event> {
        let event = P::IN_RUN?;
        let mut state = self.lock();
        let (peer, span) = state.next_in_run()?;
        let core = &mut state.core;
        look(core, peer);
        // What is made is moved when the lock was given back, and not at once: to read what was just written, in pieces of
        // another size, waits for memory, half as long as making it takes.
        if let Some(part) = core.run.small(span) {
            let part = Bytes::copy_from_slice(part);
            drop(state);
            return Some(event(Message::from(part)));
        }
        let message = core.run.message(span);
        drop(state);
        Some(event(message))
    }

    /// The next and whatever else is there at once, up to `limit` in all, but at least one. Credit that has come due is
    /// not held up by more taking.
    pub(crate) fn poll_many(
        &self,
        cx: &mut Context<'_>,
        place: &mut Place,
        limit: usize,
        into: &mut Vec<P::Event>,
    ) -> Poll<Result<usize, Undone>> {
        self.poll_take(cx, place, |state| {
            into.push(state.next()?);
            let mut count = 1 + state.rest_of_run(limit - 1, into);
            while count < limit
                && !state.core.effects.writes()
                && let Some(event) = state.next()
            {
                into.push(event);
                count += 1;
                count += state.rest_of_run(limit - count, into);
            }
            Some(count)
        })
    }

    /// Takes if it is our turn and something is there; otherwise waits in line. Who leaves something wakes the next.
    #[inline]
    fn poll_take<R>(
        &self,
        cx: &mut Context<'_>,
        place: &mut Place,
        mut take: impl FnMut(&mut State<P>) -> Option<R>,
    ) -> Poll<Result<R, Undone>> {
        loop {
            let mut reads = None;
            let polled = self.take_or_wait(cx, place, &mut take, &mut reads);
            let Some(reads) = reads else { return polled };
            if !reads.read(self, cx) {
                return Poll::Pending;
            }
        }
    }

    #[inline]
    fn take_or_wait<R>(
        &self,
        cx: &mut Context<'_>,
        Place(ticket): &mut Place,
        take: &mut impl FnMut(&mut State<P>) -> Option<R>,
        reads: &mut Option<Reads>,
    ) -> Poll<Result<R, Undone>> {
        self.with_and(Writes::Here, |state| {
            if let Some(closed) = state.closed() {
                *ticket = None;
                return Poll::Ready(Err(closed));
            }
            let first = match ticket {
                Some(ticket) => state.core.takers.is_first(*ticket),
                None => state.core.takers.is_empty(),
            };
            if first {
                if let Some(taken) = take(state) {
                    if let Some(ticket) = ticket.take() {
                        state.core.takers.leave(ticket);
                    }
                    if !state.core.takers.is_empty() && state.has_something() {
                        state.core.effects.wakers.extend(state.core.takers.wake_first(0));
                    }
                    state.core.waits_no_longer();
                    return Poll::Ready(Ok(taken));
                }
                state.core.nothing_left();
                let others = state.core.takers.len() - usize::from(ticket.is_some()) + state.core.attending;
                *reads = state.core.lease(others).map(|signals| Reads::new(signals, cx));
            } else {
                // Nobody reads for others.
                state.core.give_back();
            }
            match reads {
                Some(reads) => wait(&mut state.core.takers, ticket, 0, &Waker::from(Arc::clone(&reads.gate))),
                None => wait(&mut state.core.takers, ticket, 0, cx.waker()),
            }
            Poll::Pending
        })
    }

    /// Leaves the line of those who wait for something to take.
    pub(crate) fn leave_takers(&self, place: &mut Place) {
        if let Some(ticket) = place.0.take() {
            self.with(|state| {
                let next = state.core.takers.leave(ticket);
                state.core.effects.wakers.extend(next);
                state.core.waits_no_longer();
            });
        }
    }

    /// Waits for something that comes of what arrives, and reads for it if nobody else does.
    pub(crate) async fn attend<F: Future + Unpin>(&self, mut future: F) -> F::Output {
        let _attends = Attends::new(self);
        poll_fn(|cx| {
            loop {
                let lease = self.with(|state| {
                    let others = state.core.attending - 1 + state.core.takers.len();
                    state.core.lease(others)
                });
                let Some(reads) = lease.map(|signals| Reads::new(signals, cx)) else {
                    return Pin::new(&mut future).poll(cx);
                };
                let gate = Waker::from(Arc::clone(&reads.gate));
                if let Poll::Ready(output) = Pin::new(&mut future).poll(&mut Context::from_waker(&gate)) {
                    return Poll::Ready(output);
                }
                if !reads.read(self, cx) {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

/// One who reads the stream of a link, and is not woken for what it reads.
struct Reads {
    from: Arc<Signals>,
    gate: Arc<Gate>,
}

impl Reads {
    fn new(from: Arc<Signals>, cx: &Context<'_>) -> Self {
        Self { from, gate: Gate::shut(cx.waker()) }
    }

    /// Whether there is something to look at again. If not, whatever comes wakes the task of this context; what came
    /// meanwhile does so at once, for there is no going round here where tokio wants to have its turn.
    #[inline]
    fn read<P: Pattern>(self, hub: &Hub<P>, cx: &mut Context<'_>) -> bool {
        let Self { from, gate } = self;
        let came = from.inline.as_ref().is_some_and(|inline| inline.read_now(hub, &from, cx));
        if !came && gate.open() {
            cx.waker().wake_by_ref();
        }
        came
    }
}

/// One who waits for something that arrives and stands in no line, for as long as this lives.
struct Attends<'h, P: Pattern>(&'h Hub<P>);

impl<'h, P: Pattern> Attends<'h, P> {
    fn new(hub: &'h Hub<P>) -> Self {
        hub.lock().core.attending += 1;
        Self(hub)
    }
}

impl<P: Pattern> Drop for Attends<'_, P> {
    fn drop(&mut self) {
        self.0.with(|state| {
            state.core.attending -= 1;
            state.core.waits_no_longer();
        });
    }
}
