//! Everything in a socket but its pattern: peers, bounds, waiters; and what comes in.

use std::{collections::VecDeque, sync::Arc, task::Waker, time::Instant};

use bytes::BytesMut;
use ropewalk_patterns::{Peer, Tally, credit::Grants, extension::Credit};

use super::{
    fan::Fan,
    incoming::{Chunk, Owed, Taken},
    outbox::Control,
    peer::{Signals, Table},
    run::{Run, Stretch},
    waiters::Waiters,
};
use crate::{
    events::{DownReason, Event, PeerInfo},
    options::Options,
};

/// How far a socket is in closing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// In use.
    Open,
    /// Nothing new is accepted; what was accepted goes out.
    Closing,
    /// Everything ends now.
    Ending,
}

/// What must happen once the lock is given back.
#[derive(Debug)]
pub(crate) struct Effects<E> {
    pub(crate) wakers: Vec<Waker>,
    pub(crate) signals: Vec<(Arc<Signals>, Signal)>,
    pub(crate) events: Vec<Event>,
    pub(crate) delivered: Vec<E>,
}

#[derive(Debug, Clone)]
pub(crate) enum Signal {
    Write,
    Control,
    Read,
    Tick,
    Stop(DownReason),
}

impl<E> Default for Effects<E> {
    fn default() -> Self {
        Self { wakers: Vec::new(), signals: Vec::new(), events: Vec::new(), delivered: Vec::new() }
    }
}

impl<E> Effects<E> {
    /// Whether a link has something to write.
    pub(crate) fn writes(&self) -> bool {
        self.signals.iter().any(|(_, signal)| matches!(signal, Signal::Write | Signal::Control))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty() && self.signals.is_empty() && self.events.is_empty() && self.delivered.is_empty()
    }
}

/// Life totals of peers that are gone.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) dropped: u64,
    pub(crate) delivered: u64,
    pub(crate) in_doubt: u64,
    pub(crate) lost: u64,
    pub(crate) denied: u64,
    pub(crate) denied_by: u64,
}

#[derive(Debug)]
pub(crate) struct Core<E> {
    pub(crate) options: Arc<Options>,
    /// The application is asked what peers may do.
    pub(super) asks: bool,
    /// More is done about each message than handing it out.
    pub(super) one_by_one: bool,
    pub(crate) slots: Table,
    pub(crate) live: usize,
    pub(crate) accepted: usize,
    /// Peers with something to take, in the order of their turns.
    pub(super) turns: VecDeque<Peer>,
    /// Bytes in flight to us, in the inbox or promised, of all peers.
    pub(crate) reserved: u64,
    /// Bytes of it that are the windows of links and of those in the handshake.
    pub(super) windows: u64,
    /// Links that read nothing until there is room for them in `recv_budget`.
    pub(super) starving: VecDeque<Peer>,
    /// Links that have no window until there is something left for one.
    pub(super) windowless: VecDeque<Peer>,
    /// Bytes that wait to be written, of all peers.
    pub(crate) queued: u64,
    /// From so many on, one who sends lets links write first.
    pub(super) gives_way_at: u64,
    /// Bytes that were promised while one thing happens and are not queued yet.
    pub(super) promised: u64,
    /// `send_budget`, not a peer's own bound, was what somebody ran into.
    pub(super) budget_blocked: bool,
    /// Peers that have room again, of which the pattern is to be told.
    pub(super) roomy: VecDeque<Peer>,
    /// What is handed out one by one.
    pub(super) run: Run,
    /// What may follow the last message that was sent.
    pub(super) stretch: Stretch,
    /// What may follow the last message that was sent to several peers.
    pub(super) fan: Fan,
    /// Peers of which something was taken since they were last told.
    owing: Vec<Peer>,
    /// Peers to which the pattern has something to say that can wait for company.
    pub(super) debts: Vec<Peer>,
    /// What is sent is kept until it is confirmed.
    pub(super) keeps: bool,
    /// What the pattern handed out and the application has not fetched.
    pub(crate) delivered: VecDeque<E>,
    pub(crate) senders: Waiters,
    pub(crate) takers: Waiters,
    pub(crate) effects: Effects<E>,
    pub(crate) totals: Totals,
    pub(crate) phase: Phase,
    /// Somebody has begun to close.
    pub(crate) closing: bool,
    /// Events go to whom they are for as soon as the lock is given back.
    pub(crate) direct: bool,
    /// The pattern meets what comes at once, so nothing waits for the application.
    pub(super) at_arrival: bool,
    pub(crate) dialled: u64,
    /// The link whose stream the application reads by itself.
    pub(super) leased: Option<Peer>,
    /// Those who wait for something that arrives and are not in the line of takers.
    pub(super) attending: usize,
    /// When something was written last.
    pub(super) written_at: Option<Instant>,
    pub(super) scratch: BytesMut,
}

impl<E> Core<E> {
    pub(crate) fn new(options: Arc<Options>, direct: bool, at_arrival: bool, keeps: bool) -> Self {
        Self {
            asks: options.authorize.is_some(),
            one_by_one: false,
            options,
            slots: Table::default(),
            live: 0,
            accepted: 0,
            turns: VecDeque::new(),
            reserved: 0,
            windows: 0,
            starving: VecDeque::new(),
            windowless: VecDeque::new(),
            queued: 0,
            gives_way_at: super::turn::CACHED,
            promised: 0,
            budget_blocked: false,
            roomy: VecDeque::new(),
            run: Run::default(),
            stretch: Stretch::default(),
            fan: Fan::default(),
            owing: Vec::new(),
            debts: Vec::new(),
            keeps,
            delivered: VecDeque::new(),
            senders: Waiters::default(),
            takers: Waiters::default(),
            effects: Effects::default(),
            totals: Totals::default(),
            phase: Phase::Open,
            closing: false,
            direct,
            at_arrival,
            dialled: 0,
            leased: None,
            attending: 0,
            written_at: None,
            scratch: BytesMut::new(),
        }
    }

    /// One peer's credited messages may not take more than this of `send_budget`, whatever window it claims.
    pub(super) fn clamp(&self) -> u64 {
        self.options.send_budget / 4
    }

    /// Lets the link of this peer know, if it sleeps.
    pub(super) fn wake_writer(&mut self, peer: Peer) {
        if let Some(slot) = self.slots.get(peer)
            && std::mem::take(&mut slot.out.asleep)
        {
            self.effects.signals.push((Arc::clone(&slot.signals), Signal::Write));
        }
    }

    /// Lets the link of this peer know that there is a PING, PONG or credit to write.
    pub(super) fn wake_control(&mut self, peer: Peer) {
        let Some(slot) = self.slots.live(peer) else { return };
        match &mut slot.out.control {
            Control::Ahead => self.wake_writer(peer),
            Control::Beside { asleep } => {
                if std::mem::take(asleep) {
                    self.effects.signals.push((Arc::clone(&slot.signals), Signal::Control));
                }
            }
        }
    }

    pub(crate) fn wake_all_links(&mut self, signal: &Signal) {
        for (_, slot) in self.slots.iter_mut().filter(|(_, slot)| slot.live) {
            slot.out.asleep = false;
            self.effects.signals.push((Arc::clone(&slot.signals), signal.clone()));
        }
    }

    pub(crate) fn end_link(&mut self, peer: Peer, reason: DownReason) {
        if let Some(slot) = self.slots.live(peer) {
            slot.closing = true;
            self.effects.signals.push((Arc::clone(&slot.signals), Signal::Stop(reason)));
        }
    }

    // ---- receiving ------------------------------------------------------------------------------------------------

    pub(super) fn owe(&mut self, peer: Peer, owed: Owed) {
        if let Some(slot) = self.slots.live(peer)
            && slot.incoming.owed < owed
        {
            slot.incoming.owed = owed;
            self.owes_more(peer);
        }
    }

    /// Credit for this peer is due, or due sooner than before.
    fn owes_more(&mut self, peer: Peer) {
        match self.slots.live(peer).map(|slot| slot.incoming.owed) {
            Some(Owed::Now) => self.wake_control(peer),
            Some(Owed::Soon) => self.tick_soon(peer),
            Some(Owed::No) | None => {}
        }
    }

    /// What came from a peer. False: there is no room for it in `recv_budget` yet, and the link waits with it until
    /// [`admit`](Self::admit) says yes.
    pub(crate) fn arrive(&mut self, peer: Peer, chunk: Chunk, tally: Tally) -> Result<bool, crate::Misbehaved> {
        let Some(slot) = self.slots.live(peer) else { return Ok(true) };
        slot.incoming.arrive(chunk, tally)?;
        Ok(self.admit(peer))
    }

    /// Takes in what came before, if there is room for it now.
    pub(crate) fn admit(&mut self, peer: Peer) -> bool {
        let Some(slot) = self.slots.live(peer) else { return true };
        let lacks = slot.incoming.lacks();
        if !self.at_arrival && !self.afford(peer, lacks) {
            return false;
        }
        let Some(slot) = self.slots.live(peer) else { return true };
        let incoming = &mut slot.incoming;
        incoming.reader_waits = false;
        if incoming.admit() && !std::mem::replace(&mut incoming.queued, true) {
            self.turns.push_back(peer);
        }
        // The application may have taken the last it wants for now before these came, which took the last credit.
        let soon = incoming.owes_soon();
        self.rebalance(peer);
        if soon {
            self.owe(peer, Owed::Soon);
        }
        self.goes_on(peer);
        true
    }

    /// Whether anything is there to take.
    pub(crate) fn has_something(&self) -> bool {
        !self.turns.is_empty()
    }

    /// The next thing of the next peer in turn.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<(Peer, Taken)> {
        loop {
            let peer = self.turns.pop_front()?;
            let Some(slot) = self.slots.get(peer) else { continue };
            let incoming = &mut slot.incoming;
            let owed = incoming.owed;
            let taken = incoming.take();
            incoming.queued = !incoming.is_empty();
            if incoming.queued {
                self.turns.push_back(peer);
            }
            let more = incoming.queued;
            self.took(peer, owed);
            if let Some(taken) = taken {
                if more {
                    self.open_run(peer);
                }
                return Some((peer, taken));
            }
        }
    }

    /// Whose the next thing is that will be met.
    pub(super) fn whose_next(&mut self) -> Option<Arc<PeerInfo>> {
        let of_run = self.run.whose();
        if of_run.is_none() {
            self.end_run();
        }
        loop {
            let peer = of_run.or_else(|| self.turns.front().copied())?;
            if let Some(slot) = self.slots.get(peer) {
                return Some(Arc::clone(&slot.info));
            }
            self.turns.pop_front();
        }
    }

    /// Something of this peer was taken, to which so much credit was owed before.
    #[inline]
    pub(super) fn took(&mut self, peer: Peer, owed: Owed) {
        let hwm = self.options.recv_hwm;
        let Some(slot) = self.slots.get(peer) else { return };
        let (live, empty) = (slot.live, slot.incoming.is_empty());
        let held = slot.incoming.held;
        if slot.incoming.reader_waits && held.messages <= hwm.messages / 2 && held.bytes <= hwm.bytes / 2 {
            slot.incoming.reader_waits = false;
            self.effects.signals.push((Arc::clone(&slot.signals), Signal::Read));
        }
        if slot.incoming.owed > owed {
            self.owes_more(peer);
        } else if live && owed == Owed::No && self.owing.last() != Some(&peer) && self.owing.len() < 64 {
            self.owing.push(peer);
        }
        self.rebalance(peer);
        if !live && empty {
            self.slots.remove(peer);
        }
    }

    /// The application waits and nothing is there: those it took from hear of it soon.
    pub(crate) fn nothing_left(&mut self) {
        for peer in std::mem::take(&mut self.debts) {
            if self.slots.live(peer).is_some_and(|slot| slot.owing) {
                self.wake_writer(peer);
            }
        }
        if self.owing.len() < 64 {
            for peer in std::mem::take(&mut self.owing) {
                if self.slots.live(peer).is_some_and(|slot| slot.incoming.owes()) {
                    self.owe(peer, Owed::Soon);
                }
            }
            return;
        }
        self.owing.clear();
        let owing: Vec<Peer> =
            self.slots.iter().filter(|(_, slot)| slot.live && slot.incoming.owes()).map(|(peer, _)| peer).collect();
        owing.into_iter().for_each(|peer| self.owe(peer, Owed::Soon));
    }

    /// The credit this peer should be told now.
    pub(super) fn credit_due(&mut self, peer: Peer) -> Option<Credit> {
        if self.slots.live(peer)?.incoming.owed != Owed::Now {
            return None;
        }
        self.widen(peer);
        let incoming = &mut self.slots.live(peer)?.incoming;
        incoming.owed = Owed::No;
        let credit = incoming.grants.as_mut().map(Grants::grant);
        self.starve(peer);
        credit
    }
}
