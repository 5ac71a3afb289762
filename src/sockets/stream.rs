//! Sockets as streams and sinks.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use futures_sink::Sink;
use ropewalk_patterns::{Message, Pattern};

use super::{Push, Socket, push_pull::refused};
use crate::{
    error::{Closed, SendError, TrySendError},
    hub::{Place, Ticket, Waits},
};

/// What a socket receives, as a stream. It ends when the socket is closed. Dropping it loses nothing.
///
/// Once polled it stands in the line of those who receive from the socket, until it is given something or dropped. Where
/// several receive, poll it on or drop it: one that is kept and not polled holds up those behind it.
pub struct Received<P: Pattern> {
    socket: Socket<P>,
    place: Place,
}

impl<P: Pattern> Received<P> {
    pub(super) fn new(socket: Socket<P>) -> Self {
        Self { socket, place: Place::default() }
    }

    /// The socket.
    pub fn socket(&self) -> &Socket<P> {
        &self.socket
    }
}

impl<P: Pattern> Stream for Received<P> {
    type Item = P::Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<P::Event>> {
        let this = &mut *self;
        this.socket.inner.hub.poll_next(cx, &mut this.place).map(Result::ok)
    }
}

/// Neither is ever pinned by what it holds.
impl<P: Pattern> Unpin for Received<P> {}

impl<P: Pattern> Drop for Received<P> {
    fn drop(&mut self) {
        self.socket.inner.hub.leave_takers(&mut self.place);
    }
}

impl<P: Pattern> fmt::Debug for Received<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl<P: Pattern> Socket<P> {
    pub(super) async fn many(&self, into: &mut Vec<P::Event>, limit: usize) -> Result<usize, Closed> {
        if limit == 0 {
            return Ok(0);
        }
        let mut waits = Waits::new(self.hub());
        let taken = std::future::poll_fn(|cx| waits.hub.poll_many(cx, &mut waits.place, limit, into));
        taken.await.map_err(|_| Closed)
    }
}

/// A sink of messages into a [`Push`]. It holds one message while the socket has no room for it, and with it a place in
/// the line of those who send: poll it on or drop it, for one that is kept and not polled holds up those behind it.
#[derive(Debug)]
pub struct Sending {
    socket: Push,
    held: Option<Message>,
    ticket: Option<Ticket>,
}

impl Sending {
    pub(super) fn new(socket: Push) -> Self {
        Self { socket, held: None, ticket: None }
    }

    /// The socket.
    pub fn socket(&self) -> &Push {
        &self.socket
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Some(message) = self.held.take() else { return Poll::Ready(Ok(())) };
        match self.socket.inner.hub.poll_verb(cx, &mut self.ticket, message.into()) {
            Ok(done) => Poll::Ready(done.map_err(|(body, undone)| refused(body, undone))),
            Err(body) => {
                self.held = Some(body.into_message());
                Poll::Pending
            }
        }
    }
}

impl Sink<Message> for Sending {
    type Error = SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_held(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), SendError> {
        match self.socket.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => {
                self.held = Some(message);
                Ok(())
            }
            Err(error) => Err(match error {
                TrySendError::Closed(message) => SendError::Closed(message),
                error => SendError::TooLarge(error.into_message()),
            }),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_held(cx)
    }

    /// Gives what is held to the socket. It does not close the socket.
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        ready!(self.poll_held(cx))?;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.socket.inner.hub.leave_senders(self.ticket.take());
        if self.held.is_some() {
            tracing::warn!("a sink was dropped before it was flushed; it held a message");
        }
    }
}
