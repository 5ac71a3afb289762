//! Taking messages that are to be settled, for every socket that receives.

use std::sync::Arc;

use ropewalk_patterns::{Message, delivery::Confirms};
use tokio::time::{MissedTickBehavior, interval};

use super::Socket;
use crate::{
    delivery::{Delivery, Kept, Open, Receives, TICKS},
    error::{AckError, Closed, TryRecvError},
    events::{Event, PeerInfo},
    hub::{Hub, Phase, Undone},
};

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
