//! Taking messages that are to be settled, for every socket that receives.

use std::sync::Arc;

#[cfg(feature = "spool")]
use ropewalk_patterns::delivery::Keeps;
use ropewalk_patterns::{
    Message, Tally,
    delivery::{Confirms, Rules},
};
use tokio::time::{MissedTickBehavior, interval};

use super::Socket;
use crate::{
    delivery::{Delivery, Kept, Open, Pacer, Receives, TICKS},
    error::{AckError, Closed, TryRecvError},
    events::{Event, PeerInfo},
    hub::{Hub, Phase, Undone},
    options::Options,
};

/// What bounds deliveries.
pub(super) fn rules(options: &Options) -> Rules {
    let under_way = Tally::new(options.under_way, options.send_hwm.bytes);
    Rules { waiting: options.send_hwm, under_way, attempts: options.attempts }
}

/// What is done about each message besides handing it out.
pub(super) fn receives(options: &Options) -> Option<Receives> {
    #[allow(clippy::needless_update, reason = "without directories there is nothing else")]
    options.rate.map(|rate| Receives { pacer: Some(Pacer::new(rate)), ..Receives::default() })
}

#[cfg(feature = "spool")]
impl<P: Keeps> Socket<P> {
    /// What was found when the socket's directory was opened; `None` if it has none.
    pub fn recovery(&self) -> Option<&crate::spool::RecoveryReport> {
        self.inner.kept.on_disk().map(|disk| &disk.report)
    }

    /// The spool of this socket, if it has a directory: how full it is, how far its receivers are.
    pub fn spool_stats(&self) -> Option<crate::spool::SpoolStats> {
        self.inner.kept.on_disk().map(|disk| disk.spool.stats())
    }

    /// The dead letters of this socket, if it has a directory.
    pub fn dead_letters(&self) -> Option<Arc<crate::delivery::DeadLetters>> {
        self.inner.kept.on_disk().map(|disk| Arc::clone(&disk.dead))
    }
}

impl<P: Confirms> Socket<P> {
    /// What is done about each message besides handing it out.
    #[inline]
    pub(super) fn receives(&self) -> Option<&Receives> {
        self.inner.kept.receives.as_deref()
    }

    /// The next event, whose it is, and what is to be settled of it.
    pub(super) async fn next_open(&self) -> Result<(P::Event, Arc<PeerInfo>, Option<Open>), Undone> {
        let turn = match self.receives().and_then(|receives| receives.pacer.as_ref()) {
            Some(pacer) => Some(pacer.turn().await),
            None => None,
        };
        let hub = &self.inner.hub;
        let tick = hub.options.lease / TICKS;
        let (event, peer, held) = hub.next_held(u64::from(TICKS)).await?;
        if let Some(turn) = turn {
            turn.take();
        }
        let open = held.map(|held| {
            self.watch_leases();
            Open {
                held,
                settles: Arc::<Hub<P>>::clone(hub),
                #[cfg(feature = "spool")]
                inbox: self.receives().and_then(|receives| receives.inbox.clone()),
                tick,
            }
        });
        Ok((event, peer, open))
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
            self.inner.kept.own(task);
        });
    }

    /// The next event, settled, where more is done about each than handing it out.
    pub(super) async fn next_settled(&self) -> Result<(P::Event, Arc<PeerInfo>), Closed> {
        loop {
            let (event, peer, open) = self.next_open().await.map_err(|_| Closed)?;
            let delivery = Delivery { message: Message::default(), peer: Arc::clone(&peer), open };
            match delivery.ack().await {
                Ok(()) => return Ok((event, peer)),
                // It goes to another.
                Err(AckError::TakenBack) => {}
                Err(AckError::Inbox(error)) => {
                    self.hub().log.tell(Event::InboxFailed { error });
                    return Err(Closed);
                }
            }
        }
    }

    /// The next event, if it is there, and it is time for it.
    pub(super) fn try_next_settled(&self) -> Result<P::Event, TryRecvError> {
        let Some(receives) = self.receives() else { return self.try_next() };
        #[cfg(feature = "spool")]
        if receives.inbox.is_some() {
            return Err(TryRecvError::Inbox);
        }
        let turn = match &receives.pacer {
            Some(pacer) => Some(pacer.try_turn().ok_or(TryRecvError::Empty)?),
            None => None,
        };
        let event = self.try_next()?;
        if let Some(turn) = turn {
            turn.take();
        }
        Ok(event)
    }
}
