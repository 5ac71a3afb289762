//! Requests that are kept in a directory until they are answered, as their callers see them.

use ropewalk_patterns::{
    Body, Message,
    delivery::{MessageId, TAGGED},
};
use tokio::time::Instant;

use super::{Before, Req, RequestBuilder, deadline, owned, within};
use crate::{
    delivery::{Answered, Requests},
    error::{Closed, RequestError},
    hub::Phase,
};

/// What stands before a request that says which it is.
const ENVELOPE: Before = Before { parts: 2, bytes: TAGGED };

impl Req {
    /// The next answer that nobody waits for: of a request that an earlier life of the socket left in its
    /// [directory](crate::Builder::spool), of one whose caller has gone or timed out, or an [`Answered`] that was dropped.
    ///
    /// Whoever makes requests with a directory should call this, too: what nobody takes stays in the directory until that is
    /// full. Twice as many answers as may be [outstanding](crate::Builder::outstanding), but no more bytes than
    /// `recv_hwm_bytes`, wait for it; what an earlier life left beyond that is not asked until some are taken, and of those
    /// whose callers have gone further ones are asked again then. A socket without a directory has none: this waits until it
    /// is closed.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is ready, no answer was taken. Those who wait are served in the order they came.
    pub async fn recover(&self) -> Result<Answered, Closed> {
        if let Some(requests) = &self.inner.kept.requests {
            return requests.recover().await;
        }
        let mut phase = self.hub().watch_phase();
        // An error is the end, too.
        let _closed = phase.wait_for(|phase| *phase > Phase::Open).await;
        Err(Closed)
    }
}

impl<'r> RequestBuilder<'r> {
    /// Waits for the answer and gives it with what was asked, to be [acknowledged](Answered::ack) when the application is done
    /// with it: until then a socket with a directory keeps the request, and after a crash it is asked again.
    ///
    /// # Errors
    /// As of [`Req::request`].
    ///
    /// # Cancel safety
    /// As of [`Req::request`].
    pub async fn answered(self) -> Result<Answered, RequestError> {
        if self.socket.inner.kept.requests.is_some() {
            let answered = self.ask_kept().await?;
            // What is refused for good is done with.
            return if answered.answer().is_ok() { Ok(answered) } else { Err(answered.refused()) };
        }
        let Self { socket, body, timeout, retries } = self;
        let request = owned(body);
        let answer = RequestBuilder { socket, body: Body::from(&request), timeout, retries }.ask().await?;
        Ok(Answered::plain(request, answer))
    }

    /// Returns when the request is in the directory, which every crash leaves there from then on. It is asked until it is
    /// answered, and its answer is for [`recover`](Req::recover), by this id.
    ///
    /// # Errors
    /// When the directory takes it not, or not in time; when the socket has none.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the request may have been accepted, and is asked then.
    pub async fn keep(self) -> Result<MessageId, RequestError> {
        let (requests, message, until) = self.for_the_directory()?;
        requests.request_later(message, until).await
    }

    /// Asks a request that is kept until it is answered.
    pub(super) async fn ask_kept(self) -> Result<Answered, RequestError> {
        let (requests, message, until) = self.for_the_directory()?;
        requests.request(message, until).await
    }

    fn for_the_directory(self) -> Result<(&'r Requests, Message, Instant), RequestError> {
        let Self { socket, body, timeout, .. } = self;
        let Some(requests) = &socket.inner.kept.requests else {
            return Err(RequestError::NoDirectory(owned(body)));
        };
        if socket.hub().is_closed() {
            return Err(RequestError::Closed);
        }
        if !within(&socket.hub().options.limits, ENVELOPE, &body) {
            return Err(RequestError::TooLarge(owned(body)));
        }
        Ok((requests, owned(body), deadline(timeout)))
    }
}
