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
    /// Where more is done about each than taking it: how, and what is under way.
    slow: Option<Slow<P>>,
    next: Option<Next<P>>,
}

type Next<P> = Pin<Box<dyn Future<Output = Option<<P as Pattern>::Event>> + Send>>;

/// Takes the next in its own way.
pub(super) type Slow<P> = fn(Socket<P>) -> Next<P>;

impl<P: Pattern> Received<P> {
    pub(super) fn new(socket: Socket<P>, slow: Option<Slow<P>>) -> Self {
        Self { socket, place: Place::default(), slow, next: None }
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
        if let Some(slow) = this.slow {
            let next = this.next.get_or_insert_with(|| slow(this.socket.clone()));
            let event = ready!(next.as_mut().poll(cx));
            this.next = None;
            return Poll::Ready(event);
        }
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
///
/// Of a socket with a directory, what was flushed is as durable as its policy says.
pub struct Sending {
    socket: Push,
    held: Option<Message>,
    ticket: Option<Ticket>,
    /// What is on its way into the directory, and what is to reach the disk.
    entering: Option<Entering>,
    to_reach: Option<Durably>,
}

/// Takes a message into the directory; what is left is to wait until the disk has it.
pub(super) type Entering = Pin<Box<dyn Future<Output = Result<Durably, SendError>> + Send>>;

/// Waits until the disk has a message, and so all before it.
pub(super) type Durably = Pin<Box<dyn Future<Output = Result<(), SendError>> + Send>>;

impl Sending {
    pub(super) fn new(socket: Push) -> Self {
        Self { socket, held: None, ticket: None, entering: None, to_reach: None }
    }

    /// The socket.
    pub fn socket(&self) -> &Push {
        &self.socket
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        if let Some(entering) = &mut self.entering {
            let entered = ready!(entering.as_mut().poll(cx));
            self.entering = None;
            self.to_reach = Some(entered?);
        }
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
            Err(TrySendError::Spooled(message)) => {
                self.entering = self.socket.enter(message);
                Ok(())
            }
            Err(error) => Err(match error {
                TrySendError::Closed(message) => SendError::Closed(message),
                error => SendError::TooLarge(error.into_message()),
            }),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        ready!(self.poll_held(cx))?;
        if let Some(durably) = &mut self.to_reach {
            let reached = ready!(durably.as_mut().poll(cx));
            self.to_reach = None;
            reached?;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives what is held to the socket. It does not close the socket.
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_flush(cx)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.socket.inner.hub.leave_senders(self.ticket.take());
        if self.held.is_some() || self.entering.is_some() {
            tracing::warn!("a sink was dropped before it was flushed; it held a message");
        }
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("socket", &self.socket).finish_non_exhaustive()
    }
}
