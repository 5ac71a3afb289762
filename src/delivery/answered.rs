//! What a request has come to, until the application is done with it.

use std::{fmt, sync::Arc};

use ropewalk_patterns::{Message, delivery::MessageId};

use super::Requests;
use crate::{
    error::{AckError, RequestError},
    spool::CursorError,
};

/// What a request has come to, until the application has [acknowledged](Self::ack) it. Dropped before that, it is given
/// back: [`recover`](crate::Req::recover) hands it out again, or another that it asks for anew, in this life of the socket or
/// in the next.
///
/// Of a socket without a directory it is acknowledged already.
pub struct Answered {
    pub(super) id: Option<MessageId>,
    pub(super) request: Message,
    pub(super) result: Result<Message, RequestError>,
    /// None when it is acknowledged, or waits to be recovered.
    pub(super) of: Option<Arc<Requests>>,
}

impl Answered {
    /// Of a socket that has no directory.
    pub(crate) fn plain(request: Message, answer: Message) -> Self {
        Self { id: None, request, result: Ok(answer), of: None }
    }

    /// Which request it was, however often it was asked; `None` of a socket without a directory. Whoever answered it knows
    /// it by the same: [`Request::id`](crate::Request::id).
    pub fn id(&self) -> Option<MessageId> {
        self.id
    }

    /// What was asked.
    pub fn request(&self) -> &Message {
        &self.request
    }

    /// The answer.
    ///
    /// # Errors
    /// When there will be none: it was refused, or no peer that it was asked of lived to answer it, so often that it is
    /// given up.
    pub fn answer(&self) -> Result<&Message, &RequestError> {
        self.result.as_ref()
    }

    /// The application is done with it: the request goes from the directory, and is not asked again. A crash in the next
    /// moments may undo that.
    ///
    /// # Errors
    /// When the directory is closed or has failed, or there are too many gaps between what it has settled: it is asked
    /// again after the next opening.
    pub fn ack(mut self) -> Result<(), AckError> {
        self.settle().map_err(|error| AckError::Spool(error.to_string()))
    }

    /// Why there will be no answer, which is acknowledged with that.
    pub(crate) fn refused(self) -> RequestError {
        self.take().err().unwrap_or(RequestError::Closed)
    }

    /// The answer, which is acknowledged with that.
    pub(crate) fn take(mut self) -> Result<Message, RequestError> {
        // It is handed out in any case. If it was not settled it is asked again after the next opening.
        let _asked_again = self.settle();
        std::mem::replace(&mut self.result, Err(RequestError::Closed))
    }

    /// What it costs to keep it.
    pub(super) fn cost(&self) -> u64 {
        self.request.cost() + self.result.as_ref().map_or(0, Message::cost)
    }

    fn settle(&mut self) -> Result<(), CursorError> {
        match (self.of.take(), self.id) {
            (Some(of), Some(id)) => of.settle(id.seq..id.seq + 1),
            _ => Ok(()),
        }
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        let Some(of) = self.of.take() else { return };
        let result = std::mem::replace(&mut self.result, Err(RequestError::Closed));
        of.keep(Self { id: self.id, request: std::mem::take(&mut self.request), result, of: None });
    }
}

impl fmt::Debug for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answered").field("id", &self.id).field("result", &self.result).finish_non_exhaustive()
    }
}
