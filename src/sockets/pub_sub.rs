//! The verbs of PUB and SUB.

use std::sync::Arc;

use bytes::Bytes;
use ropewalk_patterns::{
    Body, Head, Message, Outgoing, Why,
    pub_sub::{self, Heard, Overflow, Publish, Subscription},
};

use super::{Before, Pub, Received, Sub, owned, within};
use crate::{
    error::{
        BindError, Closed, ConnectError, SendError, SubRecvError, SubTryRecvError, SubscribeError, TryRecvError,
        TrySendError,
    },
    events::PeerInfo,
    hub::Undone,
    options::Builder,
};

impl Builder<pub_sub::Pub> {
    /// What is done about a subscriber that does not keep up: [`Overflow::DropNewest`] unless told otherwise.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.options.overflow = overflow;
        self
    }
}

impl Pub {
    /// A socket that is not all defaults.
    pub fn builder() -> Builder<pub_sub::Pub> {
        Builder::new(|options| pub_sub::Pub::new(options.overflow, options.limits))
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

    /// Publishes a message of two parts, topic and payload, to every peer that subscribed to a prefix of the topic.
    ///
    /// It waits for subscribers only if the overflow policy is to block; otherwise it at most lets its links write once
    /// before a subscriber that has just become full misses the message. `Ok` says that every matching subscriber has
    /// it in its queue or will be told that it missed it; with no subscriber nobody gets it, and that is no error.
    ///
    /// # Errors
    /// The message is given back, and nobody got it.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is done, nobody got the message. Giving it to the subscribers is the last step.
    pub async fn publish(&self, topic: impl AsRef<[u8]>, payload: impl Into<Body<'_>>) -> Result<(), SendError> {
        let topic = topic.as_ref();
        let body = payload.into();
        let limits = &self.hub().options.limits;
        let head = Head::Topic(topic);
        if topic.len() > limits.topic || !within(limits, Before::topic(topic), &body) {
            return Err(SendError::TooLarge(Outgoing { head, body }.to_message()));
        }
        self.give(Outgoing { head, body }).await
    }

    /// Publishes a message whose first part is its topic, like [`publish`](Self::publish).
    ///
    /// # Errors
    /// The message is given back, and nobody got it.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is done, nobody got the message.
    pub async fn send(&self, message: impl Into<Body<'_>>) -> Result<(), SendError> {
        let body = message.into();
        if !within(&self.hub().options.limits, Before::NONE, &body) {
            return Err(SendError::TooLarge(owned(body)));
        }
        self.give(body.into()).await
    }

    /// Publishes without waiting. Only a publisher that blocks can be full; the others drop as their policy says.
    ///
    /// # Errors
    /// The message is given back, and nobody got it.
    pub fn try_publish(&self, topic: impl AsRef<[u8]>, payload: impl Into<Body<'static>>) -> Result<(), TrySendError> {
        let topic = topic.as_ref();
        let body = payload.into();
        let limits = &self.hub().options.limits;
        let message = Outgoing { head: Head::Topic(topic), body };
        if topic.len() > limits.topic || !within(limits, Before::topic(topic), &message.body) {
            return Err(TrySendError::TooLarge(message.to_message()));
        }
        self.hub().try_verb(Publish { message, patient: false }).map_err(|(verb, undone)| {
            let message = verb.message.to_message();
            match undone {
                Undone::Closed => TrySendError::Closed(message),
                Undone::Why(Why::Full) => TrySendError::Full(message),
                Undone::Why(_) => TrySendError::TooLarge(message),
            }
        })
    }

    async fn give(&self, message: Outgoing<'_>) -> Result<(), SendError> {
        let mut undone = match self.hub().try_verb(Publish { message, patient: true }) {
            Ok(()) => return Ok(()),
            Err(undone) => undone,
        };
        if undone.1 == Undone::Why(Why::Full) {
            let mut verb = undone.0;
            if self.hub().options.overflow != Overflow::Block {
                tokio::task::yield_now().await;
                verb.patient = false;
            }
            undone = match self.hub().verb(verb).await {
                Ok(()) => return Ok(()),
                Err(undone) => undone,
            };
        }
        let (verb, why) = undone;
        let message = verb.message.to_message();
        Err(if why == Undone::Closed { SendError::Closed(message) } else { SendError::TooLarge(message) })
    }

    /// Waits until so many peers at once would get a message of this topic.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: it only waits.
    pub async fn subscribers(&self, topic: impl AsRef<[u8]>, at_least: usize) -> Result<(), Closed> {
        let topic = topic.as_ref();
        self.hub().wait_until(|hub| hub.ask(|pattern| pattern.subscribers(topic)) >= at_least).await
    }

    /// How many peers would get a message of this topic now.
    pub fn subscriber_count(&self, topic: impl AsRef<[u8]>) -> usize {
        self.hub().ask(|pattern| pattern.subscribers(topic.as_ref()))
    }
}

impl Sub {
    /// A socket that is not all defaults.
    pub fn builder() -> Builder<pub_sub::Sub> {
        Builder::new(|options| pub_sub::Sub::new(options.limits))
    }

    /// A socket that listens on this address, subscribed to nothing yet.
    ///
    /// # Errors
    /// When it cannot listen there.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind(address: impl AsRef<str>) -> Result<Self, BindError> {
        Self::builder().bind(address).await
    }

    /// A socket that dials this address in the background, for ever; subscribed to nothing yet.
    ///
    /// # Errors
    /// When the address is not one, or must not be dialled.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(address: impl AsRef<str>) -> Result<Self, ConnectError> {
        Self::builder().connect(address).await
    }

    /// From now on messages whose topic begins with this prefix are taken; the empty prefix takes all. Publishers are
    /// told now, and again whenever a link is made. What was subscribed twice must be unsubscribed twice.
    ///
    /// # Errors
    /// When publishers would close the link for it: it is too long, or one too many.
    ///
    /// # Cancel safety
    /// There is nothing to cancel: it is done when first polled.
    pub async fn subscribe(&self, prefix: impl AsRef<[u8]>) -> Result<(), SubscribeError> {
        self.tell(Subscription::Subscribe(Bytes::copy_from_slice(prefix.as_ref())))
    }

    /// Messages of this prefix are no longer taken, unless another subscription takes them. One that was not subscribed
    /// is passed over.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// There is nothing to cancel: it is done when first polled.
    pub async fn unsubscribe(&self, prefix: impl AsRef<[u8]>) -> Result<(), SubscribeError> {
        self.tell(Subscription::Unsubscribe(Bytes::copy_from_slice(prefix.as_ref())))
    }

    fn tell(&self, subscription: Subscription) -> Result<(), SubscribeError> {
        self.hub().try_verb(subscription).map_err(|(_, undone)| match undone {
            Undone::Closed => SubscribeError::Closed,
            Undone::Why(_) => SubscribeError::TooLarge,
        })
    }

    /// The next message; its first part is its topic.
    ///
    /// # Errors
    /// [`SubRecvError::Lagged`] once, at the place where messages were missed; the next call goes on behind them.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is ready, nothing was taken. Those who wait are served in the order they came.
    pub async fn recv(&self) -> Result<Message, SubRecvError> {
        match self.hub().next().await {
            Ok(Heard::Message(message)) => Ok(message),
            Ok(Heard::Lagged(missed)) => Err(SubRecvError::Lagged(missed)),
            Err(_) => Err(SubRecvError::Closed),
        }
    }

    /// The next message and who published it; otherwise like [`recv`](Self::recv). Where the transport proves who that
    /// is, [`PeerInfo::id`] says it.
    ///
    /// # Errors
    /// When messages were missed here, or the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe, like [`recv`](Self::recv).
    pub async fn recv_from(&self) -> Result<(Message, Arc<PeerInfo>), SubRecvError> {
        match self.hub().next_from().await {
            Ok((Heard::Message(message), peer)) => Ok((message, peer)),
            Ok((Heard::Lagged(missed), _)) => Err(SubRecvError::Lagged(missed)),
            Err(_) => Err(SubRecvError::Closed),
        }
    }

    /// The next message, if it is there and nobody waits for it.
    ///
    /// # Errors
    /// When nothing is there, messages were missed here, or the socket is closed.
    pub fn try_recv(&self) -> Result<Message, SubTryRecvError> {
        match self.try_next() {
            Ok(Heard::Message(message)) => Ok(message),
            Ok(Heard::Lagged(missed)) => Err(SubTryRecvError::Lagged(missed)),
            Err(TryRecvError::Closed) => Err(SubTryRecvError::Closed),
            Err(_) => Err(SubTryRecvError::Empty),
        }
    }

    /// Waits for a message and takes as many as are there, gaps among them, at most `limit`, adding them to `into`.
    /// How many; at least one, unless `limit` is 0.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is ready, nothing was taken.
    pub async fn recv_many(&self, into: &mut Vec<Heard>, limit: usize) -> Result<usize, Closed> {
        self.many(into, limit).await
    }

    /// A [`Stream`](futures_core::Stream) of what is heard. It ends when the socket is closed.
    pub fn stream(&self) -> Received<pub_sub::Sub> {
        Received::new(self.clone(), None)
    }
}
