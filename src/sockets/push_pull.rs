//! The verbs of PUSH and PULL.

use std::sync::Arc;

use ropewalk_patterns::{Body, Message, Why, push_pull};

use super::{Before, Pull, Push, Received, Sending, owned, within};
use crate::{
    error::{BindError, Closed, ConnectError, SendError, TryRecvError, TrySendError},
    events::PeerInfo,
    hub::Undone,
    options::Builder,
};

impl Push {
    /// A socket that is not all defaults.
    pub fn builder() -> Builder<push_pull::Push> {
        Builder::new(|_| push_pull::Push::default())
    }

    /// A socket that listens on this address.
    ///
    /// # Errors
    /// When it cannot listen there.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind(address: impl AsRef<str>) -> Result<Self, BindError> {
        Self::builder().bind(address).await
    }

    /// A socket that dials this address in the background, for ever. Messages may be sent at once; they wait for the
    /// peer up to `send_hwm`.
    ///
    /// # Errors
    /// When the address is not one, or must not be dialled.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(address: impl AsRef<str>) -> Result<Self, ConnectError> {
        Self::builder().connect(address).await
    }

    /// Sends a message to the next peer that has room, and waits while none has. A slice is copied to where it waits to
    /// be written, with no allocation by the caller.
    ///
    /// `Ok` says that the message is in the queue of a peer, or of an endpoint that is being dialled. It does not say
    /// that it was written, arrived or was taken: [`close`](Self::close) tells in the end, and
    /// [`PeerDown`](crate::Event::PeerDown) how many are in doubt when a link dies.
    ///
    /// # Errors
    /// The message is given back, and nobody got it.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is done, the message was not accepted. Accepting is the last step; there is no
    /// await behind it. Those who wait are served in the order they came.
    #[inline]
    pub async fn send(&self, message: impl Into<Body<'_>>) -> Result<(), SendError> {
        let body = message.into();
        if !within(&self.hub().options.limits, Before::NONE, &body) {
            return Err(SendError::TooLarge(owned(body)));
        }
        // Most messages follow the last one: they are not moved once more to find that out.
        if self.hub().verb_in_stretch(&body) {
            return Ok(());
        }
        self.hub().verb(body).await.map_err(|(body, undone)| refused(body, undone))
    }

    /// Sends a message if somebody has room for it now.
    ///
    /// # Errors
    /// The message is given back, and nobody got it. [`TrySendError::Full`] also while others wait to send.
    #[inline]
    pub fn try_send(&self, message: impl Into<Body<'static>>) -> Result<(), TrySendError> {
        let body = message.into();
        if !within(&self.hub().options.limits, Before::NONE, &body) {
            return Err(TrySendError::TooLarge(owned(body)));
        }
        self.hub().try_verb(body).map_err(|(body, undone)| match undone {
            Undone::Closed => TrySendError::Closed(owned(body)),
            Undone::Why(Why::Full) => TrySendError::Full(owned(body)),
            Undone::Why(_) => TrySendError::TooLarge(owned(body)),
        })
    }

    /// Sends these messages in their order, waiting for room wherever there is none. How many were sent.
    ///
    /// # Errors
    /// Says why one was not accepted. Those before it were, those after it were not looked at.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the first so many were accepted and the others were not; how many is not known.
    pub async fn send_all<M: Into<Message>>(&self, messages: impl IntoIterator<Item = M>) -> Result<u64, SendError> {
        let mut sent = 0;
        for message in messages {
            self.send(message.into()).await?;
            sent += 1;
        }
        Ok(sent)
    }

    /// A [`Sink`](futures_sink::Sink) of messages. It holds at most one message that the socket has no room for yet.
    pub fn sink(&self) -> Sending {
        Sending::new(self.clone())
    }
}

/// Why a message was not accepted that could wait.
pub(super) fn refused(body: Body<'_>, undone: Undone) -> SendError {
    match undone {
        Undone::Closed => SendError::Closed(owned(body)),
        Undone::Why(_) => SendError::TooLarge(owned(body)),
    }
}

impl Pull {
    /// A socket that is not all defaults.
    pub fn builder() -> Builder<push_pull::Pull> {
        Builder::new(|_| push_pull::Pull::default())
    }

    /// A socket that listens on this address.
    ///
    /// # Errors
    /// When it cannot listen there.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind(address: impl AsRef<str>) -> Result<Self, BindError> {
        Self::builder().bind(address).await
    }

    /// A socket that dials this address in the background, for ever.
    ///
    /// # Errors
    /// When the address is not one, or must not be dialled.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(address: impl AsRef<str>) -> Result<Self, ConnectError> {
        Self::builder().connect(address).await
    }

    /// The next message: of each peer one in turn, of one peer in the order they were sent.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is ready, no message was taken. Those who wait are served in the order they came.
    #[inline]
    pub async fn recv(&self) -> Result<Message, Closed> {
        self.hub().next().await.map_err(|_| Closed)
    }

    /// The next message and who sent it; otherwise like [`recv`](Self::recv). Where the transport proves who that is,
    /// [`PeerInfo::id`] says it.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe, like [`recv`](Self::recv).
    pub async fn recv_from(&self) -> Result<(Message, Arc<PeerInfo>), Closed> {
        self.hub().next_from().await.map_err(|_| Closed)
    }

    /// The next message, if it is there and nobody waits for it.
    ///
    /// # Errors
    /// When nothing is there, or the socket is closed.
    #[inline]
    pub fn try_recv(&self) -> Result<Message, TryRecvError> {
        self.try_next()
    }

    /// Waits for a message and takes as many as are there, at most `limit`, adding them to `into`. How many; at least
    /// one, unless `limit` is 0.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is ready, no message was taken.
    pub async fn recv_many(&self, into: &mut Vec<Message>, limit: usize) -> Result<usize, Closed> {
        self.many(into, limit).await
    }

    /// A [`Stream`](futures_core::Stream) of messages. It ends when the socket is closed.
    pub fn stream(&self) -> Received<push_pull::Pull> {
        Received::new(self.clone())
    }
}
