//! The verbs of PUB and SUB.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use ropewalk_patterns::{
    Body, Head, Message, Outgoing, Why,
    delivery::{Inbox, LONGEST_NAME, Start},
    pub_sub::{self, Heard, Overflow, Publish, Subscription},
};

use super::{Before, Pub, Received, Sub, delivery::receives, owned, within};
use crate::{
    delivery::{Delivery, Kept, Receives},
    error::{
        BindError, Closed, ConnectError, SendError, SubRecvError, SubTryRecvError, SubscribeError, TryRecvError,
        TrySendError,
    },
    events::PeerInfo,
    hub::Undone,
    options::{Builder, Made, Options},
};

impl<D> Builder<pub_sub::Pub, D> {
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
    /// Of a publisher with a directory it says that the message is there, as durable as the policy says.
    ///
    /// # Errors
    /// The message is given back, and nobody got it; after [`SendError::SpoolFailed`] nobody knows whether it is in the
    /// directory.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is done, nobody got the message. Giving it to the subscribers is the last step. A
    /// publisher with a directory waits for the disk when the message was accepted: dropped then, it goes its way, once.
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
    /// As of [`publish`](Self::publish).
    ///
    /// # Cancel safety
    /// As of [`publish`](Self::publish).
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
        #[cfg(feature = "spool")]
        if self.inner.kept.on_disk().is_some() {
            return Err(TrySendError::Spooled(message.to_message()));
        }
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
        #[cfg(feature = "spool")]
        if let Some(disk) = self.inner.kept.on_disk() {
            let message = message.to_message();
            return match self.hub().is_closed() {
                true => Err(SendError::Closed(message)),
                false => Box::pin(disk.append(message)).await,
            };
        }
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

    /// Forgets a subscriber that will not come back: nothing is kept for it any more. Of a publisher with a directory.
    ///
    /// # Errors
    /// When there is none of this name, or the directory is closed or has failed.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it may have been forgotten.
    #[cfg(feature = "spool")]
    pub async fn forget(&self, name: &str) -> Result<(), crate::spool::CursorError> {
        match self.inner.kept.on_disk() {
            Some(disk) => disk.spool.forget(name).await,
            None => Err(crate::spool::CursorError::Unknown),
        }
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
        self.hub().wait_until(|_| self.subscriber_count(topic) >= at_least).await
    }

    /// How many peers would get a message of this topic now.
    pub fn subscriber_count(&self, topic: impl AsRef<[u8]>) -> usize {
        let peers = self.hub().ask(|pattern| pattern.subscribers(topic.as_ref()));
        #[cfg(feature = "spool")]
        if let Some(followers) = self.inner.kept.keeper.as_ref().and_then(|keeper| keeper.followers.as_ref()) {
            return followers.known(&peers);
        }
        peers.len()
    }
}

/// From where on a subscriber wants what a publisher has kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Replay {
    /// From the oldest message there is.
    Earliest,
    /// From the message with this number in the publisher's stream ([`MessageId::seq`](crate::delivery::MessageId)).
    Seq(u64),
    /// From the first message that was accepted then or later, by the publisher's clock.
    Time(SystemTime),
}

impl From<Replay> for Start {
    fn from(replay: Replay) -> Self {
        match replay {
            Replay::Earliest => Self::Earliest,
            Replay::Seq(seq) => Self::Seq(seq),
            Replay::Time(time) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                Self::Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }
        }
    }
}

impl<D> Builder<pub_sub::Sub, D> {
    /// Takes messages whose topic begins with this prefix, as [`Sub::subscribe`] does, and one more with each call. One that
    /// publishers would refuse is an error of `bind` and `connect`.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use ropewalk::Sub;
    ///
    /// let sub = Sub::builder().subscribe("weather.").subscribe("traffic.").connect("tcp://127.0.0.1:7000").await?;
    /// # sub.close().await; Ok(()) }
    /// ```
    pub fn subscribe(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.options.subscriptions.push(Bytes::copy_from_slice(prefix.as_ref()));
        self
    }

    /// The name under which publishers with a directory keep how far this subscriber is: it goes on where it was, however
    /// long it was away, within what they keep. At most 255 bytes, the rest is cut. Two of one name take the messages from
    /// each other: the later one is linked, and the other hears why it is not, if
    /// that can be told ([`Misbehaved::Refused`](crate::Misbehaved::Refused)), and comes again more and more rarely.
    ///
    /// A publisher without a directory keeps nothing for it, and is told of as
    /// [`Event::KeepsNothing`](crate::Event::KeepsNothing).
    ///
    /// What waits for it begins to come with the first subscription, and what nothing subscribes to by then is passed over
    /// for good. So it subscribes before it is linked: [`subscribe`](Self::subscribe).
    pub fn name(mut self, name: impl AsRef<str>) -> Self {
        let name = name.as_ref();
        let end = (0..=LONGEST_NAME.min(name.len())).rev().find(|&end| name.is_char_boundary(end));
        self.options.name = Bytes::copy_from_slice(end.and_then(|end| name.get(..end)).unwrap_or_default().as_bytes());
        self
    }

    /// Begins with what publishers with a directory have kept from there on, when it first links to each; after that it goes
    /// on where it was. One with a [name](Self::name) begins there only when the publisher does not know the name yet: a
    /// program that is started again says the same and gets what it has not settled.
    ///
    /// What is kept is what some named subscriber has not settled, and what
    /// [`SpoolOptions::retain`](crate::spool::SpoolOptions::retain) keeps beyond that; where there is no named subscriber,
    /// all up to the quota.
    pub fn replay(mut self, from: Replay) -> Self {
        self.options.start = from.into();
        self
    }
}

pub(super) fn following(options: &Options, inbox: Inbox, receives: Option<Receives>) -> Made<pub_sub::Sub> {
    let new = || pub_sub::Sub::new(options.limits);
    let subscribed = new().subscribed(options.subscriptions.iter().cloned());
    let refused = subscribed.is_err().then_some(SubscribeError::TooLarge);
    let pattern = subscribed.unwrap_or_else(|_| new()).following(options.name.clone(), options.start, inbox);
    Made { kept: Kept::receiving(receives), refused, ..Made::from(pattern) }
}

/// A message, or that some were missed.
#[inline]
fn message(heard: Heard) -> Result<Message, SubRecvError> {
    match heard {
        Heard::Message(message) => Ok(message),
        Heard::Lagged(missed) => Err(SubRecvError::Lagged(missed)),
    }
}

impl Sub {
    /// A socket that is not all defaults.
    pub fn builder() -> Builder<pub_sub::Sub> {
        Builder::new(|options| following(options, Inbox::default(), receives(options)))
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
    #[inline]
    pub async fn recv(&self) -> Result<Message, SubRecvError> {
        // Where more is done about each, none is in a run; and gaps are never.
        match self.hub().next_in_run() {
            Some(heard) => message(heard),
            None => self.recv_anew().await,
        }
    }

    /// The next message that no other has opened the way for.
    #[cold]
    async fn recv_anew(&self) -> Result<Message, SubRecvError> {
        if self.receives().is_some() {
            let (heard, _) = Box::pin(self.next_settled()).await.map_err(|_| SubRecvError::Closed)?;
            return message(heard);
        }
        message(self.hub().next().await.map_err(|_| SubRecvError::Closed)?)
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
        let next = match self.receives() {
            Some(_) => Box::pin(self.next_settled()).await,
            None => self.hub().next_from().await.map_err(|_| Closed),
        };
        let (heard, peer) = next.map_err(|_| SubRecvError::Closed)?;
        Ok((message(heard)?, peer))
    }

    /// The next message, which is not settled by being handed out: a publisher with a directory keeps it until
    /// [`ack`](Delivery::ack), and gives it again if this subscriber is lost, or drops it, or keeps it longer than its
    /// [`lease`](Builder::lease).
    ///
    /// # Errors
    /// As of [`recv`](Self::recv).
    ///
    /// # Cancel safety
    /// Cancel-safe, like [`recv`](Self::recv).
    pub async fn recv_delivery(&self) -> Result<Delivery, SubRecvError> {
        let (heard, peer, open) = self.next_open().await.map_err(|_| SubRecvError::Closed)?;
        Ok(Delivery { message: message(heard)?, peer, open })
    }

    /// The next message, if it is there and nobody waits for it.
    ///
    /// # Errors
    /// When nothing is there, messages were missed here, or the socket is closed.
    #[inline]
    pub fn try_recv(&self) -> Result<Message, SubTryRecvError> {
        match self.hub().next_in_run().map_or_else(|| self.try_next_settled(), Ok) {
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
        if self.receives().is_some() && limit > 0 {
            // One by one each has its turn.
            into.push(Box::pin(self.next_settled()).await?.0);
            return Ok(1);
        }
        self.many(into, limit).await
    }

    /// A [`Stream`](futures_core::Stream) of what is heard. It ends when the socket is closed.
    pub fn stream(&self) -> Received<pub_sub::Sub> {
        Received::new(self.clone(), self.receives().is_some().then_some(|socket| Box::pin(settled(socket))))
    }
}

/// What a socket hears next that does more about each message than handing it out.
async fn settled(socket: Sub) -> Option<Heard> {
    socket.next_settled().await.ok().map(|(heard, _)| heard)
}
