//! Who reads a stream: the link's task, or the application while it waits for what comes. And what is put off until the
//! link's next tick.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicU8,
            Ordering::{AcqRel, Acquire},
        },
    },
    task::{Context, Wake, Waker},
};

use ropewalk_patterns::Peer;

use super::{
    core::{Core, Signal},
    incoming::Owed,
    peer::Signals,
    port::{Port, Tick},
};

/// A stream that the application reads and writes by itself, instead of waking the link's task to do it.
pub(crate) trait Inline: Send + Sync {
    /// Writes what there is for the peer. False: there is more, and the task is to be woken for it.
    fn write_now(&self, port: &dyn Port, peer: Peer) -> bool;

    /// The application reads from now on, or no longer. Only told under the hub's lock, so both agree on it.
    fn lease(&self, leased: bool);

    /// Reads what there is and takes it in, if the stream is leased to the application. Whether something came that the
    /// hub knows of by now; if not, whoever is to read next will be woken for it.
    fn read_now(&self, port: &dyn Port, signals: &Signals, cx: &mut Context<'_>) -> bool;
}

/// Wakes one who waits and reads by itself, but not for what it reads: it looks for that anyway.
pub(super) struct Gate {
    waker: Waker,
    state: AtomicU8,
}

impl Gate {
    const OPEN: u8 = 0;
    const SHUT: u8 = 1;
    /// Somebody came while it was shut.
    const MISSED: u8 = 2;

    pub(super) fn shut(waker: &Waker) -> Arc<Self> {
        Arc::new(Self { waker: waker.clone(), state: AtomicU8::new(Self::SHUT) })
    }

    /// Wakers come through from now on. Whether one came before.
    pub(super) fn open(&self) -> bool {
        self.state.swap(Self::OPEN, AcqRel) == Self::MISSED
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let missed = self.state.fetch_update(AcqRel, Acquire, |state| (state != Self::OPEN).then_some(Self::MISSED));
        if missed.is_err() {
            self.waker.wake_by_ref();
        }
    }
}

impl<E> Core<E> {
    /// The link of this peer looks within milliseconds after what was put off.
    pub(super) fn tick_soon(&mut self, peer: Peer) {
        if let Some(slot) = self.slots.live(peer)
            && !std::mem::replace(&mut slot.ticking, true)
        {
            self.effects.signals.push((Arc::clone(&slot.signals), Signal::Tick));
        }
    }

    /// A link looks after what was put off. The application keeps its stream as long as it reads it, or waits for it and
    /// has not done so for long: what waits may be kept by somebody who does not poll it.
    pub(super) fn tick(&mut self, peer: Peer, polled: bool, idle: bool) -> Tick {
        let Some(slot) = self.slots.live(peer) else { return Tick::Rest };
        slot.ticking = false;
        if slot.incoming.owed == Owed::Soon {
            slot.incoming.owed = Owed::Now;
            self.wake_control(peer);
        }
        if self.slots.live(peer).is_some_and(|slot| slot.owing) {
            self.wake_writer(peer);
        }
        if self.leased != Some(peer) {
            return Tick::Rest;
        }
        let waits = !self.takers.is_empty() || self.attending > 0;
        match (waits, polled) {
            (true, true) => Tick::Later,
            (false, true) => Tick::Soon,
            (true, false) if !idle => Tick::Later,
            _ => {
                self.give_back();
                Tick::Rest
            }
        }
    }

    /// Whoever waits for something may read for it by itself: if no others wait, and there is only one link.
    pub(super) fn lease(&mut self, others: usize) -> Option<Arc<Signals>> {
        if self.live != 1 || others > 0 {
            self.give_back();
            return None;
        }
        let peer = match self.leased {
            Some(peer) => peer,
            None => self.slots.iter().find(|(_, slot)| slot.live)?.0,
        };
        let signals = self.slots.live(peer).map(|slot| Arc::clone(&slot.signals))?;
        signals.inline.as_ref()?.lease(true);
        self.leased = Some(peer);
        self.tick_soon(peer);
        Some(signals)
    }

    /// Whoever waited has what it waited for, or waits no longer. It may come back at once; others may not wait for that.
    pub(super) fn waits_no_longer(&mut self) {
        if let Some(peer) = self.leased {
            if self.takers.is_empty() && self.attending == 0 { self.tick_soon(peer) } else { self.give_back() }
        }
    }

    /// The link's task reads again.
    pub(super) fn give_back(&mut self) {
        if let Some(slot) = self.leased.take().and_then(|peer| self.slots.live(peer))
            && let Some(inline) = &slot.signals.inline
        {
            inline.lease(false);
            self.effects.signals.push((Arc::clone(&slot.signals), Signal::Read));
        }
    }
}
