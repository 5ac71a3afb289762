//! The verbs of PUSH and PULL.

use std::{future::poll_fn, sync::Arc, task::Poll};

use ropewalk_patterns::{Body, Message, Why, delivery::Deliveries, extension::delivery::Header, push_pull};
use tokio::sync::oneshot;

use super::{
    Before, Pull, Push, Received, Sending,
    delivery::{receives, rules},
    owned,
    stream::Entering,
    within,
};
#[cfg(feature = "spool")]
use crate::delivery::disk::{OnDisk, OnItsWay};
use crate::{
    delivery::{Delivery, Fate, Guarantee, Keeper, Kept, Receives},
    error::{BindError, Closed, ConnectError, DeliverError, SendError, TryRecvError, TrySendError},
    events::PeerInfo,
    hub::{Hub, Ticket, Undone},
    options::{Builder, Made},
    random,
};

/// What stands before a message that is kept until it is confirmed.
const HEADER: Before = Before { parts: 1, bytes: Header::LEN };

impl<D> Builder<push_pull::Push, D> {
    /// What is done about messages whose receiver is lost: they are in doubt, and counted. With
    /// [`Guarantee::AtLeastOnce`] they are kept until they are confirmed, in memory; with a directory they always are.
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.options.guarantee = guarantee;
        self
    }
}

pub(super) fn keeping(deliveries: Deliveries, keeper: Keeper) -> Made<push_pull::Push> {
    let keeper = Arc::new(keeper);
    let (hears, runs) = (Arc::clone(&keeper), Arc::clone(&keeper));
    Made {
        pattern: push_pull::Push::keeping(deliveries, !keeper.is_on_disk()),
        on_event: Some(Box::new(move |outcome| hears.heard(outcome))),
        kept: Kept::sending(keeper),
        begin: Some(Box::new(|hub, kept| kept.tasks.own(tokio::spawn(runs.run(Arc::clone(hub)))))),
        refused: None,
    }
}

impl Push {
    /// A socket that is not all defaults.
    pub fn builder() -> Builder<push_pull::Push> {
        Builder::new(|options| match options.guarantee {
            Guarantee::AtMostOnce => Made::from(push_pull::Push::default()),
            Guarantee::AtLeastOnce => {
                let incarnation = 1 << 32 | random::number() >> 32;
                let deliveries = Deliveries::new(random::stream(), incarnation, 0, rules(options));
                keeping(deliveries, Keeper::in_memory())
            }
        })
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
    /// [`PeerDown`](crate::Event::PeerDown) how many are in doubt when a link dies. Of a socket with a directory it says that
    /// the message is there, as durable as the policy says.
    ///
    /// # Errors
    /// The message is given back, and nobody got it; after [`SendError::SpoolFailed`] nobody knows whether it is in the
    /// directory.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is done, the message was not accepted. Accepting is the last step; there is no
    /// await behind it. Those who wait are served in the order they came. A socket with a directory waits for the disk when
    /// the message was accepted: dropped then, it goes its way, once; to send it again would double it.
    #[inline]
    pub async fn send(&self, message: impl Into<Body<'_>>) -> Result<(), SendError> {
        let body = message.into();
        // Most messages follow the last one: they are not moved once more to find that out. What is kept never does.
        if within(&self.hub().options.limits, Before::NONE, &body) && self.hub().verb_in_stretch(&body) {
            return Ok(());
        }
        self.send_anew(body).await
    }

    /// Sends a message that does not follow another.
    async fn send_anew(&self, body: Body<'_>) -> Result<(), SendError> {
        if self.inner.kept.keeper.is_some() {
            // In a box: else every send would carry the room that this takes.
            return Box::pin(self.send_kept(body)).await;
        }
        if !within(&self.hub().options.limits, Before::NONE, &body) {
            return Err(SendError::TooLarge(owned(body)));
        }
        self.hub().verb(body).await.map_err(|(body, undone)| refused(body, undone))
    }

    /// Sends a message that is kept until it is confirmed.
    async fn send_kept(&self, body: Body<'_>) -> Result<(), SendError> {
        #[cfg(feature = "spool")]
        if let Some(disk) = self.on_disk() {
            let (taken, ()) = self.take(disk, owned(body), |_| ()).await?;
            return disk.reached(taken).await;
        }
        if !within(&self.hub().options.limits, HEADER, &body) {
            return Err(SendError::TooLarge(owned(body)));
        }
        self.hub().verb(body).await.map_err(|(body, undone)| refused(body, undone))
    }

    #[cfg(feature = "spool")]
    fn on_disk(&self) -> Option<&Arc<OnDisk>> {
        self.inner.kept.on_disk()
    }

    /// Takes a message into the socket's directory; `numbered` is told its seq before anybody can read it.
    #[cfg(feature = "spool")]
    async fn take<R>(
        &self,
        disk: &OnDisk,
        message: Message,
        numbered: impl FnOnce(u64) -> R,
    ) -> Result<(OnItsWay, R), SendError> {
        if !within(&self.hub().options.limits, HEADER, &Body::from(&message)) {
            return Err(SendError::TooLarge(message));
        }
        if self.hub().is_closed() {
            return Err(SendError::Closed(message));
        }
        disk.take(message, numbered).await
    }

    /// Takes these into the socket's directory, and then waits until the disk has them all.
    #[cfg(feature = "spool")]
    async fn take_all(&self, disk: &OnDisk, messages: impl Iterator<Item = Message>) -> Result<u64, SendError> {
        let (mut count, mut last, mut refused) = (0, None, None);
        for message in messages {
            // While there is room for all of them, nothing else would make this give way.
            tokio::task::consume_budget().await;
            match self.take(disk, message, |_| ()).await {
                Ok((taken, ())) => (count, last) = (count + 1, Some(taken)),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        // Those before one that is refused are accepted, and so for good.
        let reached = match last {
            Some(taken) => disk.reached(taken).await,
            None => Ok(()),
        };
        taken_all(count, reached, refused)
    }

    /// Sends a message and waits until a receiver has confirmed it: its application has taken it with
    /// [`recv`](Pull::recv), or has said so with [`ack`](crate::Delivery::ack). For a socket that keeps its messages: one
    /// with a directory ([`spool`](Builder::spool)), or with [`Guarantee::AtLeastOnce`].
    ///
    /// # Errors
    /// Says whether the message was accepted at all, and if it was, what became of it.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the message may have been accepted, and then goes its way; it is not accepted twice.
    pub async fn deliver(&self, message: impl Into<Body<'_>>) -> Result<(), DeliverError> {
        let body = message.into();
        let Some(keeper) = &self.inner.kept.keeper else { return Err(DeliverError::NotConfirming(owned(body))) };
        if !within(&self.hub().options.limits, HEADER, &body) {
            return Err(DeliverError::NotAccepted(SendError::TooLarge(owned(body))));
        }
        let accepted = self.accept(keeper, body).await.map_err(DeliverError::NotAccepted)?;
        match accepted.await {
            Ok(Fate::Confirmed) => Ok(()),
            Ok(Fate::Rejected(reason)) => Err(DeliverError::Rejected(String::from_utf8_lossy(&reason).into_owned())),
            Ok(Fate::Exhausted) => Err(DeliverError::Exhausted),
            Ok(Fate::TooLarge) => Err(DeliverError::Refused),
            #[cfg(feature = "spool")]
            Ok(Fate::Dropped) => Err(DeliverError::Dropped),
            Err(_) => Err(DeliverError::Closed),
        }
    }

    /// Accepts a message, and says what to wait for.
    async fn accept(&self, keeper: &Arc<Keeper>, body: Body<'_>) -> Result<oneshot::Receiver<Fate>, SendError> {
        #[cfg(feature = "spool")]
        if let Some(disk) = &keeper.disk {
            // Before anybody can read it: on a busy machine it may be confirmed before this task goes on.
            let (taken, fate) = self.take(disk, owned(body), |seq| keeper.wait_for(seq)).await?;
            disk.reached(taken).await?;
            return Ok(fate);
        }
        let mut place = InLine { hub: self.hub(), ticket: None };
        let mut body = Some(body);
        let accepted = poll_fn(|cx| {
            let Some(verb) = body.take() else { return Poll::Pending };
            let polled = place.hub.poll_in_line(cx, &mut place.ticket, 0, verb, |pattern, core, body| {
                pattern.accept(body, core, |seq| keeper.wait_for(seq))
            });
            match polled {
                Ok(done) => Poll::Ready(done),
                Err(verb) => {
                    body = Some(verb);
                    Poll::Pending
                }
            }
        });
        accepted.await.map_err(|(body, undone)| refused(body, undone))
    }

    /// For a sink: takes a message into the socket's directory, if it has one, in two steps.
    pub(super) fn enter(&self, message: Message) -> Option<Entering> {
        #[cfg(feature = "spool")]
        if let Some(disk) = self.on_disk().cloned() {
            let socket = self.clone();
            return Some(Box::pin(async move {
                let (taken, ()) = socket.take(&disk, message, |_| ()).await?;
                Ok(Box::pin(async move { disk.reached(taken).await }) as super::stream::Durably)
            }));
        }
        let _no_directory = message;
        None
    }

    /// Sends a message if somebody has room for it now.
    ///
    /// # Errors
    /// The message is given back, and nobody got it. [`TrySendError::Full`] also while others wait to send.
    #[inline]
    pub fn try_send(&self, message: impl Into<Body<'static>>) -> Result<(), TrySendError> {
        let body = message.into();
        let before = match &self.inner.kept.keeper {
            None => Before::NONE,
            Some(keeper) if keeper.is_on_disk() => return Err(TrySendError::Spooled(owned(body))),
            Some(_) => HEADER,
        };
        if !within(&self.hub().options.limits, before, &body) {
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
    /// A socket with a directory takes them all in, and waits once until the disk has them; [`send`](Self::send) waits for
    /// each.
    ///
    /// # Errors
    /// Says why one was not accepted. Those before it were, those after it were not looked at. When the disk fails, it is
    /// the last that was looked at, and nobody knows which of those before it are on the disk.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the first so many were accepted and the others were not; how many is not known.
    pub async fn send_all<M: Into<Message>>(&self, messages: impl IntoIterator<Item = M>) -> Result<u64, SendError> {
        #[cfg(feature = "spool")]
        if let Some(disk) = self.on_disk() {
            return self.take_all(disk, messages.into_iter().map(Into::into)).await;
        }
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

/// What came of so many that were taken, of waiting until the disk has them, and of the one behind them that was not taken.
/// The message that is given back is that one.
#[cfg(feature = "spool")]
fn taken_all(count: u64, reached: Result<(), SendError>, refused: Option<SendError>) -> Result<u64, SendError> {
    match (reached, refused) {
        (Ok(()), None) => Ok(count),
        (Err(error), None) | (Ok(()), Some(error)) => Err(error),
        (Err(SendError::SpoolFailed(_, why)), Some(refused)) => {
            Err(SendError::SpoolFailed(refused.into_message(), why))
        }
        (Err(_), Some(refused)) => Err(refused),
    }
}

/// Why a message was not accepted that could wait.
pub(super) fn refused(body: Body<'_>, undone: Undone) -> SendError {
    match undone {
        Undone::Closed => SendError::Closed(owned(body)),
        Undone::Why(_) => SendError::TooLarge(owned(body)),
    }
}

/// A place in the line of those who send.
struct InLine<'h> {
    hub: &'h Hub<push_pull::Push>,
    ticket: Option<Ticket>,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.hub.leave_senders(self.ticket.take());
    }
}

pub(super) fn pulling(pattern: push_pull::Pull, receives: Option<Receives>) -> Made<push_pull::Pull> {
    Made { kept: Kept::receiving(receives), ..Made::from(pattern) }
}

impl Pull {
    /// A socket that is not all defaults.
    pub fn builder() -> Builder<push_pull::Pull> {
        Builder::new(|options| pulling(push_pull::Pull::default(), receives(options)))
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

    /// The next message: of each peer one in turn, of one peer in the order they were sent. It is settled: where the sender
    /// wants to have it confirmed, this confirms it.
    ///
    /// # Errors
    /// When the socket is closed, or its [`inbox`](Builder::inbox) has failed, which an event says.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is ready, no message was taken. Those who wait are served in the order they came.
    #[inline]
    pub async fn recv(&self) -> Result<Message, Closed> {
        // Where more is done about each, none is in a run.
        match self.hub().next_in_run() {
            Some(message) => Ok(message),
            None => self.recv_anew().await,
        }
    }

    /// The next message that no other has opened the way for.
    #[cold]
    async fn recv_anew(&self) -> Result<Message, Closed> {
        if self.receives().is_some() {
            // In a box: else everybody who receives would carry the room that this takes.
            return Box::pin(self.next_settled()).await.map(|(message, _)| message);
        }
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
        if self.receives().is_some() {
            return Box::pin(self.next_settled()).await;
        }
        self.hub().next_from().await.map_err(|_| Closed)
    }

    /// The next message, which is not settled by being handed out: its sender keeps it until
    /// [`ack`](Delivery::ack), and gives it to another if this receiver is lost, or drops it, or keeps it longer than its
    /// [`lease`](Builder::lease).
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is ready, no message was taken. Those who wait are served in the order they came.
    pub async fn recv_delivery(&self) -> Result<Delivery, Closed> {
        let (message, peer, open) = self.next_open().await.map_err(|_| Closed)?;
        Ok(Delivery { message, peer, open })
    }

    /// Waits for a message and takes as many as are there, at most `limit`, adding them to `into`, none of them settled.
    /// How many; at least one, unless `limit` is 0.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is ready, no message was taken.
    pub async fn recv_deliveries(&self, into: &mut Vec<Delivery>, limit: usize) -> Result<usize, Closed> {
        if limit == 0 {
            return Ok(0);
        }
        let each = |message, peer, open| into.push(Delivery { message, peer, open });
        self.many_open(limit, each).await.map_err(|_| Closed)
    }

    /// The next message, if it is there and nobody waits for it.
    ///
    /// # Errors
    /// When nothing is there, or the socket is closed.
    #[inline]
    pub fn try_recv(&self) -> Result<Message, TryRecvError> {
        match self.hub().next_in_run() {
            Some(message) => Ok(message),
            None => self.try_next_settled(),
        }
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
        if self.receives().is_some() && limit > 0 {
            // One by one each has its turn.
            into.push(self.recv().await?);
            return Ok(1);
        }
        self.many(into, limit).await
    }

    /// A [`Stream`](futures_core::Stream) of messages. It ends when the socket is closed.
    pub fn stream(&self) -> Received<push_pull::Pull> {
        Received::new(self.clone(), self.receives().is_some().then_some(|socket| Box::pin(settled(socket))))
    }
}

/// The next message of a socket that does more about each than handing it out.
async fn settled(socket: Pull) -> Option<Message> {
    socket.recv().await.ok()
}

#[cfg(all(test, feature = "spool"))]
mod tests {
    use super::*;

    #[test]
    fn of_many_the_one_that_was_not_taken_comes_back_also_when_the_disk_fails() {
        let failed = || SendError::SpoolFailed(Message::from("last"), "why".into());
        let too_large = || Some(SendError::TooLarge(Message::from("refused")));
        assert_eq!(taken_all(3, Ok(()), None).unwrap(), 3);
        assert_eq!(taken_all(3, Err(failed()), None).unwrap_err().into_message(), "last");
        for reached in [Ok(()), Err(failed()), Err(SendError::Closed(Message::from("last")))] {
            assert_eq!(taken_all(3, reached, too_large()).unwrap_err().into_message(), "refused");
        }
        // Why those before it are in doubt counts for more than why it was refused.
        let both = taken_all(3, Err(failed()), too_large()).unwrap_err();
        assert!(matches!(both, SendError::SpoolFailed(..)), "{both}");
    }
}
