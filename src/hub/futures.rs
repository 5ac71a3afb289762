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
pub(crate) struct NextFuture<'h, P: Pattern> {
    pub(super) hub: &'h Hub<P>,
    pub(super) place: Place,
}

impl<P: Pattern> Future for NextFuture<'_, P> {
    type Output = Result<P::Event, Undone>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.hub.poll_next(cx, &mut this.place)
    }
}

impl<P: Pattern> Drop for NextFuture<'_, P> {
    #[inline]
    fn drop(&mut self) {
        if self.place.is_taken() {
            self.hub.leave_takers(&mut self.place);
        }
    }
}
