//! The two waits every socket has, as futures.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use ropewalk_patterns::Pattern;

use super::{Hub, Place, Ticket, Undone};

/// A verb that waits for its turn. Dropped before it is done, it was not done.
pub(crate) struct VerbFuture<'h, 'a, P: Pattern> {
    pub(super) hub: &'h Hub<P>,
    pub(super) verb: Option<P::Verb<'a>>,
    pub(super) ticket: Option<Ticket>,
}

/// The verb is moved, never pinned.
impl<P: Pattern> Unpin for VerbFuture<'_, '_, P> {}

impl<'a, P: Pattern> Future for VerbFuture<'_, 'a, P> {
    type Output = Result<(), (P::Verb<'a>, Undone)>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // After it is done it stays pending, as every future may.
        let Some(verb) = this.verb.take() else { return Poll::Pending };
        match this.hub.poll_verb(cx, &mut this.ticket, verb) {
            Ok(done) => Poll::Ready(done),
            Err(verb) => {
                this.verb = Some(verb);
                Poll::Pending
            }
        }
    }
}

impl<P: Pattern> Drop for VerbFuture<'_, '_, P> {
    #[inline]
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.hub.leave_senders(self.ticket.take());
        }
    }
}

/// Waits for what the application gets next. Dropped before it is ready, it took nothing.
pub(crate) struct NextFuture<'h, P: Pattern>(pub(super) Waits<'h, P>);

impl<P: Pattern> Future for NextFuture<'_, P> {
    type Output = Result<P::Event, Undone>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self(waits) = &mut *self;
        waits.hub.poll_next(cx, &mut waits.place)
    }
}

/// A place in the line of those who take; given up when dropped.
pub(crate) struct Waits<'h, P: Pattern> {
    pub(crate) hub: &'h Hub<P>,
    pub(crate) place: Place,
}

impl<'h, P: Pattern> Waits<'h, P> {
    #[inline]
    pub(crate) fn new(hub: &'h Hub<P>) -> Self {
        Self { hub, place: Place::default() }
    }
}

impl<P: Pattern> Drop for Waits<'_, P> {
    #[inline]
    fn drop(&mut self) {
        if self.place.is_taken() {
            self.hub.leave_takers(&mut self.place);
        }
    }
}
