//! Taking messages that are to be settled, for every socket that receives.

use std::{sync::Arc, time::Duration};

#[cfg(feature = "spool")]
use ropewalk_patterns::req_rep;
use ropewalk_patterns::{
    Message, Pattern, Tally,
    delivery::{Confirms, Held, Keeps, Rules},
    pub_sub, push_pull,
};
use tokio::time::{MissedTickBehavior, interval};

use super::{Socket, req_rep::Requester};
use crate::{
    delivery::{Delivery, Kept, Open, Pacer, Receives, TICKS, Turn},
    error::{AckError, Closed, TryRecvError},
    events::{Event, PeerInfo},
    hub::{Hub, Phase, Undone},
    options::{Builder, Options},
};

impl<P: Keeps, D> Builder<P, D> {
    /// Of a socket that keeps its messages: how many of them one peer may have that it has not confirmed. 1,024; their bytes
    /// stay within `send_hwm_bytes`.
    pub fn under_way(mut self, messages: u64) -> Self {
        self.options.under_way = messages.max(1);
        self
    }
}

/// A pattern whose sockets can keep what they send, until somebody is done with it.
pub(crate) trait TriesAgain: Pattern {}

impl TriesAgain for push_pull::Push {}
impl TriesAgain for pub_sub::Pub {}
impl TriesAgain for Requester {}

/// A pattern whose sockets can keep what they send.
#[cfg(feature = "spool")]
pub(crate) trait Retains: Pattern {}

#[cfg(feature = "spool")]
impl<P: TriesAgain> Retains for P {}
#[cfg(feature = "spool")]
impl Retains for req_rep::Rep {}

#[allow(private_bounds, reason = "these are `Push`, `Pub` and `Req`")]
impl<P: TriesAgain, D> Builder<P, D> {
    /// How often a message is delivered before it is put to the dead letters: 16 times. When a link dies, all that was
    /// written on it counts as delivered, also what the far application had not been handed out.
    ///
    /// A message of which the link died half as often as this, and twice at least, is sent alone from then on, to a peer that
    /// has nothing else, and those behind it wait until there is one: so a message that no receiver survives takes no other
    /// with it. A receiver that gathers several before it confirms any must not wait for more then.
    ///
    /// Of a request that is kept in a directory: how often it may be asked in vain, because the peer was lost, dropped it, did
    /// not answer in time or takes none so large, before that is its answer. None is asked alone.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.attempts = attempts.max(1);
        self
    }
}

impl<P: Confirms, D> Builder<P, D> {
    /// How long the application may keep a [`Delivery`] without a word: 30 s. Then it is taken back, and goes to another
    /// receiver, or comes again. [`extend`](Delivery::extend) asks for more.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.options.lease = lease.max(Duration::from_millis(8));
        self
    }

    /// Hands out at most so many messages in a second, evenly. What comes faster waits at the senders: in their queues, or
    /// in their directories; a publisher without a directory does what its overflow policy says.
    ///
    /// # Panics
    /// When it is not a number above zero.
    pub fn rate(mut self, per_second: f64) -> Self {
        assert!(per_second > 0.0, "a rate is a number above zero, not {per_second}");
        self.options.rate = Some(per_second);
        self
    }
}

/// What bounds deliveries.
pub(super) fn rules(options: &Options) -> Rules {
    let under_way = Tally::new(options.under_way, options.send_hwm.bytes);
    Rules { waiting: options.send_hwm, under_way, budget: options.send_budget, attempts: options.attempts }
}

/// What is done about each message besides handing it out.
pub(super) fn receives(options: &Options) -> Option<Receives> {
    #[allow(clippy::needless_update, reason = "without directories there is nothing else")]
    options.rate.map(|rate| Receives { pacer: Some(Pacer::new(rate)), ..Receives::default() })
}

#[cfg(feature = "spool")]
#[allow(private_bounds, reason = "these are `Push`, `Pub`, `Req` and `Rep`")]
impl<P: Retains> Socket<P> {
    /// What was found when the socket's directory was opened; `None` if it has none.
    pub fn recovery(&self) -> Option<&crate::spool::RecoveryReport> {
        self.inner.kept.log().map(|(_, report)| report)
    }

    /// The spool of this socket, if it has a directory: how full it is, how far its receivers are, or its answers.
    pub fn spool_stats(&self) -> Option<crate::spool::SpoolStats> {
        self.inner.kept.log().map(|(spool, _)| spool.stats())
    }
}

#[cfg(feature = "spool")]
impl<P: Keeps> Socket<P> {
    /// The dead letters of this socket, if it has a directory.
    pub fn dead_letters(&self) -> Option<Arc<crate::delivery::DeadLetters>> {
        self.inner.kept.on_disk().map(|disk| Arc::clone(&disk.dead))
    }
}

impl<P: Confirms> Socket<P> {
    /// What was found when the socket's [inbox](Builder::inbox) was opened; `None` if it has none.
    #[cfg(feature = "spool")]
    pub fn inbox_recovery(&self) -> Option<&crate::spool::RecoveryReport> {
        self.receives()?.inbox.as_ref().map(|inbox| &inbox.report)
    }

    /// What is done about each message besides handing it out.
    #[inline]
    pub(super) fn receives(&self) -> Option<&Receives> {
        self.inner.kept.receives.as_deref()
    }

    /// The next event, whose it is, and what is to be settled of it.
    pub(super) async fn next_open(&self) -> Result<(P::Event, Arc<PeerInfo>, Option<Open>), Undone> {
        let turn = self.turn().await;
        let (event, peer, held) = self.inner.hub.next_held(u64::from(TICKS)).await?;
        turn.take();
        Ok((event, peer, held.map(|held| self.open(held))))
    }

    /// Waits until it is time for one more, where there is a rate.
    async fn turn(&self) -> Turn<'_> {
        match self.receives().and_then(|receives| receives.pacer.as_ref()) {
            Some(pacer) => pacer.turn().await,
            None => Turn::default(),
        }
    }

    /// Whether what the application is done with is written down.
    fn has_inbox(&self) -> bool {
        #[cfg(feature = "spool")]
        return self.receives().is_some_and(|receives| receives.inbox.is_some());
        #[cfg(not(feature = "spool"))]
        false
    }

    /// The next and whatever else is there at once; where each has its turn, one alone. How many.
    pub(super) async fn many_open(
        &self,
        limit: usize,
        mut give: impl FnMut(P::Event, Arc<PeerInfo>, Option<Open>),
    ) -> Result<usize, Undone> {
        if self.receives().is_some_and(|receives| receives.pacer.is_some()) {
            let (event, peer, open) = self.next_open().await?;
            give(event, peer, open);
            return Ok(1);
        }
        let each = |event, peer, held: Option<Held>| give(event, peer, held.map(|held| self.open(held)));
        self.inner.hub.many_held(u64::from(TICKS), limit, each).await
    }

    fn open(&self, held: Held) -> Open {
        self.watch_leases();
        let hub = &self.inner.hub;
        Open {
            held,
            settles: Arc::<Hub<P>>::clone(hub),
            #[cfg(feature = "spool")]
            inbox: self.receives().and_then(|receives| receives.inbox.clone()),
            tick: hub.options.lease / TICKS,
        }
    }

    /// From the first delivery on, those that are kept too long are taken back.
    fn watch_leases(&self) {
        let Kept { watches, .. } = &*self.inner.kept;
        watches.call_once(|| {
            let (hub, mut phase) = (Arc::clone(&self.inner.hub), self.inner.hub.watch_phase());
            let task = self.inner.runtime.spawn(async move {
                let mut ticks = interval(hub.options.lease / TICKS);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
                let mut now = 0;
                loop {
                    tokio::select! {
                        _ = ticks.tick() => {}
                        // An error is the end, too.
                        _ = phase.wait_for(|phase| *phase == Phase::Ending) => return,
                    }
                    now += 1;
                    hub.act(|pattern, core| pattern.inbound().tick(now, core));
                }
            });
            self.inner.kept.tasks.own(task);
        });
    }

    /// The next event, where more is done about each than handing it out. It is settled. Where that is written down, it is
    /// afterwards, for nothing that happens now can keep it from the application; its sender hears of it then.
    pub(super) async fn next_settled(&self) -> Result<(P::Event, Arc<PeerInfo>), Closed> {
        if self.inner.kept.has_failed() {
            return Err(Closed);
        }
        if !self.has_inbox() {
            let turn = self.turn().await;
            let next = self.hub().next_from().await.map_err(|_| Closed)?;
            turn.take();
            return Ok(next);
        }
        let (event, peer, open) = self.next_open().await.map_err(|_| Closed)?;
        if open.is_some() {
            self.settle(Delivery { message: Message::default(), peer: Arc::clone(&peer), open });
        }
        Ok((event, peer))
    }

    fn settle(&self, delivery: Delivery) {
        if let Some(Open { held, settles, .. }) = &delivery.open {
            // From now on: a socket that closes waits for it. If it was taken back, `ack` says so.
            let _taken_back = settles.finish(held);
        }
        let (hub, kept) = (Arc::clone(&self.inner.hub), Arc::clone(&self.inner.kept));
        self.inner.kept.tasks.own(self.inner.runtime.spawn(async move {
            // Whoever takes it back gives it to another, and the application has done it as well.
            if let Err(AckError::Inbox(error)) = delivery.ack().await
                && kept.fail()
            {
                hub.log.tell(Event::InboxFailed { error });
            }
        }));
    }

    /// The next event, if it is there, and it is time for it.
    pub(super) fn try_next_settled(&self) -> Result<P::Event, TryRecvError> {
        let Some(receives) = self.receives() else { return self.try_next() };
        if self.inner.kept.has_failed() {
            return Err(TryRecvError::Closed);
        }
        let turn = match &receives.pacer {
            Some(pacer) => pacer.try_turn().ok_or(TryRecvError::Empty)?,
            None => Turn::default(),
        };
        if !self.has_inbox() {
            return self.try_next().inspect(|_| turn.take());
        }
        let next = self.hub().try_next_held(u64::from(TICKS)).map_err(|_| TryRecvError::Closed)?;
        let (event, peer, held) = next.ok_or(TryRecvError::Empty)?;
        turn.take();
        if let Some(held) = held {
            self.settle(Delivery { message: Message::default(), peer, open: Some(self.open(held)) });
        }
        Ok(event)
    }
}
