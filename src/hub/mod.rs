//! One socket: its pattern, its peers' queues, its inbox, under one lock.
//!
//! Verbs of the application come from above and are done at once, or wait in line. Links come from below through the
//! [`Port`], once per batch. What must happen outside the lock (waking, telling, writing) is collected and done when it
//! is given back.
//!
//! Whoever is at hand does the work. One who sends a lone message writes it by itself, one who waits alone reads by itself
//! ([`lease`]), and as long as nothing else happens, small messages come and go with nothing else done for each
//! ([`run`]), nor for each of the peers that they are all for ([`fan`]).

mod batch;
mod budget;
mod core;
mod fan;
mod futures;
mod incoming;
mod lane;
mod lease;
mod outbox;
mod peer;
mod port;
mod run;
mod state;
mod take;
mod turn;
mod verbs;
pub(crate) mod waiters;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use ropewalk_patterns::{Meets, Pattern, Tally, Why};
use tokio::sync::{Notify, watch};

use self::{
    batch::BATCH_BYTES,
    core::{Core, Effects, Signal},
    state::State,
    waiters::Waiters,
};
pub(crate) use self::{
    batch::Batch,
    core::Phase,
    futures::{NextFuture, VerbFuture, Waits},
    incoming::Chunk,
    lane::Segment,
    lease::Inline,
    peer::Signals,
    port::{Joining, Next, Port, Tick},
    take::Place,
    waiters::Ticket,
};
use crate::{
    events::{EventLog, PeerInfo},
    options::Options,
    stats::{CloseReport, Stats},
};

/// Who has written within this time leaves the next to the link's task, so that a stream of small messages goes out in
/// batches. A lone message is written where it is sent.
const PAUSE: Duration = Duration::from_micros(5);

/// Who writes what there is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// The link's task.
    InTask,
    /// The caller.
    Here,
    /// The caller, which reads, if there is one link and little waits for it: more is written while the caller goes on.
    HereIfLittle,
    /// The caller, unless something was written just now.
    HereAfterAPause,
}

/// Why a verb was given back undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undone {
    Why(Why),
    Closed,
}

/// What the application gets, and whose it is.
pub(crate) type From<P> = (<P as Pattern>::Event, Arc<PeerInfo>);

pub(crate) struct Hub<P: Pattern> {
    state: Mutex<State<P>>,
    pub(crate) options: Arc<Options>,
    pub(crate) log: EventLog,
    /// Something that others than verbs wait for has changed: peers, subscriptions.
    changed: Notify,
    phase: watch::Sender<Phase>,
    on_event: Option<OnEvent<P>>,
}

/// Whom events go to as soon as the lock is given back, where they do not wait to be fetched.
pub(crate) type OnEvent<P> = Box<dyn Fn(<P as Pattern>::Event) + Send + Sync>;

impl<P: Pattern> Hub<P> {
    pub(crate) fn new(options: Options, pattern: P, on_event: Option<OnEvent<P>>) -> Self {
        let (options, keeps) = (Arc::new(options), pattern.keeps());
        let mut core = Core::new(Arc::clone(&options), on_event.is_some(), P::MEETS == Meets::AtArrival, keeps);
        core.one_by_one = P::IN_RUN.is_none() || P::MEETS == Meets::AtArrival;
        Self {
            state: Mutex::new(State { pattern, core }),
            log: EventLog::new(options.events),
            options,
            changed: Notify::new(),
            phase: watch::Sender::new(Phase::Open),
            on_event,
        }
    }

    /// More is done about each message than handing it out.
    pub(crate) fn one_by_one(&self) {
        self.lock().core.one_by_one = true;
    }

    /// Does something under the lock and then what follows from it.
    fn with<R>(&self, act: impl FnOnce(&mut State<P>) -> R) -> R {
        self.with_and(Writes::InTask, act)
    }

    #[inline(always)]
    fn with_and<R>(&self, writes: Writes, act: impl FnOnce(&mut State<P>) -> R) -> R {
        self.within(self.lock(), writes, act)
    }

    #[inline(always)]
    fn within<R>(
        &self,
        mut state: MutexGuard<'_, State<P>>,
        writes: Writes,
        act: impl FnOnce(&mut State<P>) -> R,
    ) -> R {
        state.core.promised = 0;
        state.core.interrupt();
        let result = act(&mut state);
        state.tell_of_room();
        if !state.core.effects.is_empty() {
            self.give_effect(state, writes);
        }
        result
    }

    #[inline(never)]
    fn give_effect(&self, mut state: MutexGuard<'_, State<P>>, writes: Writes) {
        let effects = std::mem::take(&mut state.core.effects);
        // One who has many to write to leaves that to their tasks, and so does one who writes one message after another.
        let lone = effects.signals.iter().filter(|(_, signal)| matches!(signal, Signal::Write)).count() == 1;
        let here = match writes {
            Writes::InTask => false,
            Writes::Here => lone,
            Writes::HereIfLittle => lone && state.core.live == 1 && state.core.queued <= BATCH_BYTES as u64,
            Writes::HereAfterAPause => lone && state.core.written_at.is_none_or(|at| at.elapsed() >= PAUSE),
        };
        drop(state);
        self.follow(effects, here);
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, State<P>> {
        if let Some(authorize) = &self.options.authorize {
            // It would wait for itself.
            assert!(!authorize.is_asked(), "what `authorize` was given uses the socket that asks it");
        }
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `here`: what is to be written is written by the caller, as far as that goes without waiting.
    fn follow(&self, effects: Effects<P::Event>, here: bool) {
        effects.events.into_iter().for_each(|event| self.log.tell(event));
        for (signals, signal) in effects.signals {
            match (signal, &signals.inline) {
                (Signal::Write, Some(inline)) if here && inline.write_now(self, signals.peer) => {}
                (Signal::Write, _) => signals.write.notify_one(),
                (Signal::Control, _) => signals.control.notify_one(),
                (Signal::Read, _) => signals.read.notify_one(),
                (Signal::Tick, _) => signals.tick.notify_one(),
                (Signal::Stop(reason), _) => signals.end(reason),
            }
        }
        if let Some(on_event) = &self.on_event {
            effects.delivered.into_iter().for_each(on_event);
        }
        effects.wakers.into_iter().for_each(Waker::wake);
    }

    /// Asks the pattern.
    pub(crate) fn ask<R>(&self, question: impl FnOnce(&P) -> R) -> R {
        question(&self.lock().pattern)
    }

    pub(crate) fn live_peers(&self) -> usize {
        self.lock().core.live
    }

    /// Waits until `done` says so; it is asked again whenever peers or their subscriptions have changed.
    pub(crate) async fn wait_until(&self, mut done: impl FnMut(&Self) -> bool) -> Result<(), crate::error::Closed> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.is_closed() {
                return Err(crate::error::Closed);
            }
            if done(self) {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Waits until no peer is linked and nothing waits for one.
    pub(crate) async fn drained(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            // Under one lock: what waits for a peer becomes what waits at one in a single step.
            let drained = {
                let state = self.lock();
                state.core.live == 0 && state.pattern.held().is_zero()
            };
            if drained {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether nothing new is accepted.
    pub(crate) fn is_closed(&self) -> bool {
        self.phase() > Phase::Open
    }

    pub(crate) fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// One more endpoint is dialled, or one fewer.
    pub(crate) fn dialled(&self, more: bool) {
        self.with(|state| {
            state.core.dialled = if more { state.core.dialled + 1 } else { state.core.dialled.saturating_sub(1) };
            ropewalk_patterns::Turn::ready(&mut state.core);
        });
    }

    /// Goes on to this phase, and everybody hears of it.
    pub(crate) fn enter(&self, phase: Phase) {
        self.with(|state| {
            if state.core.phase < phase {
                state.core.phase = phase;
                state.core.give_back();
                state.pattern.on_close(&mut state.core);
                let Core { senders, takers, effects, .. } = &mut state.core;
                senders.wake_all(&mut effects.wakers);
                takers.wake_all(&mut effects.wakers);
                state.core.wake_all_links(&Signal::Write);
            }
        });
        self.phase.send_if_modified(|current| {
            let changed = *current < phase;
            *current = (*current).max(phase);
            changed
        });
        self.changed.notify_waiters();
    }

    /// Whether the socket was open until now, which it no longer is.
    pub(crate) fn begin_close(&self) -> bool {
        let first = !std::mem::replace(&mut self.lock().core.closing, true);
        if first {
            self.enter(Phase::Closing);
        }
        first
    }

    /// Ends the links of accepted peers that are no longer allowed.
    #[cfg(feature = "secure")]
    pub(crate) fn end_the_unallowed(&self) {
        self.with(|state| {
            let allowed = &state.core.options.allowed;
            let live = state.core.slots.iter().filter(|(_, slot)| slot.live && slot.accepted);
            let unallowed: Vec<_> = live
                .filter_map(|(peer, slot)| slot.info.id.filter(|id| !allowed.admits(id)).map(|id| (peer, id)))
                .collect();
            for (peer, id) in unallowed {
                state.core.end_link(peer, crate::events::DownReason::NotAllowed { id });
            }
        });
    }

    /// What waits in the pattern itself.
    pub(crate) fn held(&self) -> Tally {
        self.lock().pattern.held()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.with(|state| {
            let core = &state.core;
            let peers: Vec<_> = core.slots.iter().filter(|(_, slot)| slot.live).map(|(_, slot)| slot.stats()).collect();
            Stats {
                sent: core.totals.sent + peers.iter().map(|peer| peer.sent).sum::<u64>(),
                received: core.totals.received + peers.iter().map(|peer| peer.received).sum::<u64>(),
                dropped: core.totals.dropped + peers.iter().map(|peer| peer.dropped).sum::<u64>(),
                lost: core.totals.lost,
                denied: core.totals.denied + peers.iter().map(|peer| peer.denied).sum::<u64>(),
                denied_by: core.totals.denied_by + peers.iter().map(|peer| peer.denied_by).sum::<u64>(),
                in_doubt: core.totals.in_doubt,
                unlinked: state.pattern.held(),
                recv_reserved: core.reserved,
                send_queued: core.queued,
                peers,
            }
        })
    }

    /// What became of everything, once closed.
    pub(crate) fn report(&self) -> CloseReport {
        self.with(|state| {
            let totals = &state.core.totals;
            let mut report = CloseReport {
                delivered: totals.delivered,
                in_doubt: totals.in_doubt,
                unsent: totals.lost + state.pattern.held().messages,
                dropped: totals.dropped,
                spooled: 0,
                dead: 0,
            };
            // Links that did not end by themselves: their runtime has ended before.
            for (_, slot) in state.core.slots.iter().filter(|(_, slot)| slot.live) {
                report.delivered += slot.out.delivered();
                report.in_doubt += slot.out.in_doubt();
                report.unsent += slot.out.queued().messages;
                report.dropped += slot.out.dropped;
            }
            report
        })
    }
}

fn wait(waiters: &mut Waiters, ticket: &mut Option<Ticket>, line: u64, waker: &Waker) {
    match ticket {
        Some(ticket) => waiters.keep(*ticket, waker),
        None => *ticket = Some(waiters.join(line, waker.clone())),
    }
}
