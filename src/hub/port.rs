//! What a link sees of the hub: once per batch, whatever the pattern is.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ropewalk_patterns::{
    Meets, Misbehaved, Pattern, Peer, Role, Tally, Turn,
    credit::{Granted, Grants},
    extension::{DELIVERY, Hello, Refusal, RefusalReason},
    zmtp::{self, Command, Ready, Version},
};
use tokio::sync::watch;

use super::{
    Batch, Chunk, Hub, Inline, Phase, Signals, Writes,
    core::Signal,
    incoming::Incoming,
    outbox::{Control, Outbox},
    peer::{Slot, is_told},
};
use crate::{
    events::{Denial, DownReason, Event, EventLog, PeerInfo},
    identity::PeerId,
    options::Options,
};

/// What a link brings when its handshake is done.
pub(crate) struct Joining {
    pub(crate) ready: Ready,
    pub(crate) version: Version,
    pub(crate) endpoint: String,
    pub(crate) address: String,
    /// What the application may do I/O with. None: the peer is in this process and is given messages as they are.
    pub(crate) inline: Option<Arc<dyn Inline>>,
    /// Who it is, where the transport proves that.
    pub(crate) id: Option<PeerId>,
    pub(crate) accepted: bool,
    /// The window our hello opened.
    pub(crate) window: Tally,
}

/// What a link does after it asked for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Write the batch.
    Write,
    /// Nothing to write.
    Sleep,
    /// All goodbyes are said and answered.
    Parted,
}

/// When a link is to look again after what was put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tick {
    /// When it is told to.
    Rest,
    /// In some milliseconds.
    Soon,
    /// Only to see whether the application still looks after its stream.
    Later,
}

/// The hub without its type.
pub(crate) trait Port: Send + Sync {
    fn options(&self) -> &Arc<Options>;
    fn log(&self) -> &EventLog;
    fn watch_phase(&self) -> watch::Receiver<Phase>;
    fn role(&self) -> Role;
    fn accepts(&self, role: &Role) -> bool;
    /// Whether messages wait for a peer to link.
    fn wants_peers(&self) -> bool;
    /// The hello of a new link, whose window is reserved: give it back with `close_window` if the link does not join.
    fn open_window(&self) -> Hello;
    fn close_window(&self, window: Tally);
    fn join(&self, joining: Joining) -> Result<(Peer, Arc<Signals>), DownReason>;
    /// False: there is no room for it in the socket's budget; the link waits with it until `admit` says yes, and takes
    /// in nothing else meanwhile.
    fn arrive(&self, peer: Peer, chunk: Chunk, tally: Tally) -> Result<bool, Misbehaved>;
    fn admit(&self, peer: Peer) -> bool;
    /// True: the peer has said goodbye, and nothing more comes from it.
    fn command(&self, peer: Peer, command: Command) -> Result<bool, Misbehaved>;
    fn read_room(&self, peer: Peer) -> Option<zmtp::Room>;
    fn reader_stops(&self, peer: Peer);
    fn reader_goes_on(&self, peer: Peer);
    fn gather(&self, peer: Peer, bytes: u64) -> bool;
    fn take_batch(&self, peer: Peer, batch: &mut Batch) -> Next;
    /// Puts into the buffer the commands for the stream that is for them only. From the first call on they go there.
    fn take_control(&self, peer: Peer, buffer: &mut BytesMut);
    /// There is no such stream any more: they go ahead of messages again.
    fn control_ends(&self, peer: Peer);
    /// Looks after what was put off. `polled`: the application has read since the last time; `idle`: that was long ago.
    fn tick(&self, peer: Peer, polled: bool, idle: bool) -> Tick;
    fn written(&self, peer: Peer);
    fn ping(&self, peer: Peer, ttl: u16);
    /// The application no longer reads the stream by itself.
    fn give_back(&self, peer: Peer);
    /// Nothing has come for a while: what a burst has left of buffers is let go.
    fn rest(&self, peer: Peer);
    fn unasked_pong(&self, peer: Peer);
    /// The end of the peer's stream. True: it was due.
    fn ended(&self, peer: Peer) -> bool;
    /// No more messages for this peer; say goodbye.
    fn part(&self, peer: Peer);
    fn leave(&self, peer: Peer, reason: DownReason, batch: &mut Batch);
}

impl<P: Pattern> Port for Hub<P> {
    fn options(&self) -> &Arc<Options> {
        &self.options
    }

    fn log(&self) -> &EventLog {
        &self.log
    }

    fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.watch_phase()
    }

    fn role(&self) -> Role {
        P::ROLE
    }

    fn accepts(&self, role: &Role) -> bool {
        P::accepts(role)
    }

    fn wants_peers(&self) -> bool {
        !self.held().is_zero()
    }

    fn open_window(&self) -> Hello {
        self.with(|state| {
            let core = &mut state.core;
            Hello::new(core.open_window(), core.options.limits.message).keeping(core.keeps)
        })
    }

    fn close_window(&self, window: Tally) {
        self.with(|state| state.core.close_window(window));
    }

    fn join(&self, joining: Joining) -> Result<(Peer, Arc<Signals>), DownReason> {
        let joined = self.with(|state| {
            let keeps = state.pattern.keeps();
            let core = &mut state.core;
            if core.phase == Phase::Ending || (core.phase == Phase::Closing && state.pattern.held().is_zero()) {
                return Err(DownReason::Closed);
            }
            if joining.accepted && core.accepted >= core.options.accepted_peers {
                return Err(DownReason::TooManyPeers);
            }
            let Joining { ready, version, endpoint, address, inline, id, accepted, window } = joining;
            // Here, and not only in the transport's handshake: who is taken off the list is looked for under this lock.
            #[cfg(feature = "secure")]
            if let Some(id) = id.filter(|id| accepted && !core.options.allowed.admits(id)) {
                return Err(DownReason::NotAllowed { id });
            }
            let hello: Option<Hello> = ready.hello;
            if keeps && hello.is_none_or(|hello| hello.features & DELIVERY == 0) {
                return Err(DownReason::NotConfirming);
            }
            let memory = inline.is_none();
            let peer = core.slots.insert(|peer| {
                let info = PeerInfo {
                    number: peer.number(),
                    endpoint,
                    address,
                    role: ready.role.clone(),
                    ropewalk: hello.is_some(),
                    id,
                };
                let granted = hello.map(|hello| Granted::new(hello.window()));
                let largest = hello.map_or(u64::MAX, |hello| hello.largest);
                let legacy = version == Version::V3_0;
                Slot {
                    info: Arc::new(info),
                    signals: Arc::new(Signals::new(peer, inline)),
                    live: true,
                    accepted,
                    blocked: false,
                    dropping: false,
                    dropped_told: 0,
                    ticking: false,
                    denied: 0,
                    denied_by: 0,
                    closing: false,
                    one_by_one: false,
                    owing: false,
                    out: Outbox::new(memory, legacy, largest, granted),
                    incoming: Incoming::new(hello.map(|_| Grants::new(window)), window.bytes),
                }
            });
            core.live += 1;
            core.accepted += usize::from(accepted);
            core.joined(peer, hello.is_some_and(|hello| hello.keeps()));
            state.pattern.on_join(peer, &ready, &mut state.core);
            state.look_for_the_end();
            // It is there: nobody else takes peers away.
            let signals = state.core.slots.get(peer).map(|slot| Arc::clone(&slot.signals));
            Ok((peer, signals.ok_or(DownReason::Closed)?))
        });
        if joined.is_ok() {
            self.changed.notify_waiters();
        }
        joined
    }

    fn arrive(&self, peer: Peer, chunk: Chunk, tally: Tally) -> Result<bool, Misbehaved> {
        let arrived = self.with(|state| {
            let arrived = state.core.arrive(peer, chunk, tally)?;
            state.arrived(arrived);
            Ok(arrived)
        })?;
        if P::MEETS == Meets::AtArrival {
            self.changed.notify_waiters();
        }
        Ok(arrived)
    }

    fn admit(&self, peer: Peer) -> bool {
        self.with(|state| {
            let admitted = state.core.admit(peer);
            state.arrived(admitted);
            admitted
        })
    }

    fn command(&self, peer: Peer, command: Command) -> Result<bool, Misbehaved> {
        let for_pattern = matches!(command, Command::Subscribe(_) | Command::Cancel(_));
        // Only what credit lets go: other answers can wait for company.
        let writes = if matches!(command, Command::Credit(_)) { Writes::HereIfLittle } else { Writes::InTask };
        let parted = self.with_and(writes, |state| {
            let core = &mut state.core;
            let Some(slot) = core.slots.live(peer) else { return Ok(false) };
            match command {
                Command::Ping { context, .. } => {
                    slot.out.pong(context);
                    core.wake_control(peer);
                    return Ok(false);
                }
                Command::Pong { context } => {
                    slot.out.ponged(&context);
                    return Ok(false);
                }
                Command::Credit(credit) => {
                    slot.out.credit(&credit)?;
                    core.freed(peer, 0);
                }
                Command::Goodbye(goodbye) if slot.out.speaks_extension() => {
                    slot.closing |= slot.out.goodbye(&goodbye);
                    core.wake_writer(peer);
                    return Ok(true);
                }
                Command::Gap(gap) if slot.out.speaks_extension() => {
                    let arrived = core.arrive(peer, Chunk::Gap(gap.missed), Tally::ZERO)?;
                    state.arrived(arrived);
                    return Ok(false);
                }
                Command::Subscribe(_) | Command::Cancel(_) | Command::Refusal(_) => {
                    if let Command::Refusal(Refusal { reason: RefusalReason::Denied, id }) = &command {
                        core.denied_by(peer, &P::ROLE, id);
                    }
                    state.pattern.on_command(peer, command, core)?;
                    return Ok(false);
                }
                Command::Attach(_)
                | Command::Resume(_)
                | Command::Ack(_)
                | Command::Verdict(_)
                | Command::Floor(_)
                | Command::Fence(_)
                    if slot.out.speaks_extension() =>
                {
                    state.pattern.on_command(peer, command, core)?;
                    state.look_for_the_end();
                    return Ok(false);
                }
                _ => return Ok(false),
            }
            core.wake_writer(peer);
            Ok(false)
        })?;
        if for_pattern || self.is_closed() {
            self.changed.notify_waiters();
        }
        Ok(parted)
    }

    fn read_room(&self, peer: Peer) -> Option<zmtp::Room> {
        self.with(|state| state.core.read_room(peer))
    }

    fn reader_stops(&self, peer: Peer) {
        self.with(|state| state.core.reader_stops(peer));
    }

    fn reader_goes_on(&self, peer: Peer) {
        self.with(|state| state.core.goes_on(peer));
    }

    fn gather(&self, peer: Peer, bytes: u64) -> bool {
        self.with(|state| state.core.gather(peer, bytes))
    }

    fn take_batch(&self, peer: Peer, batch: &mut Batch) -> Next {
        batch.clear();
        self.with(|state| {
            state.pay(peer);
            state.core.take_batch(peer, batch, state.pattern.is_done());
            if !batch.is_empty() || batch.last {
                return Next::Write;
            }
            if state.core.slots.live(peer).is_some_and(|slot| slot.out.has_parted()) {
                return Next::Parted;
            }
            Next::Sleep
        })
    }

    fn take_control(&self, peer: Peer, buffer: &mut BytesMut) {
        self.with(|state| state.core.take_control(peer, buffer));
    }

    fn control_ends(&self, peer: Peer) {
        self.with(|state| {
            if let Some(slot) = state.core.slots.live(peer) {
                slot.out.control = Control::Ahead;
            }
            state.core.wake_writer(peer);
        });
    }

    fn tick(&self, peer: Peer, polled: bool, idle: bool) -> Tick {
        self.with(|state| state.core.tick(peer, polled, idle))
    }

    fn written(&self, peer: Peer) {
        self.with(|state| state.core.written(peer));
    }

    fn ping(&self, peer: Peer, ttl: u16) {
        self.with(|state| {
            if let Some(slot) = state.core.slots.live(peer) {
                slot.out.ping(ttl);
            }
            state.core.wake_control(peer);
        });
    }

    fn give_back(&self, peer: Peer) {
        self.with(|state| {
            if state.core.leased == Some(peer) {
                state.core.give_back();
            }
        });
    }

    fn rest(&self, peer: Peer) {
        self.with(|state| {
            if let Some(slot) = state.core.slots.live(peer) {
                slot.out.rest();
            }
        });
    }

    fn unasked_pong(&self, peer: Peer) {
        self.with(|state| {
            if let Some(slot) = state.core.slots.live(peer) {
                slot.out.pong(Bytes::new());
            }
            state.core.wake_control(peer);
        });
    }

    fn ended(&self, peer: Peer) -> bool {
        self.with(|state| {
            let Some(slot) = state.core.slots.live(peer) else { return true };
            slot.out.ended();
            slot.closing || slot.out.heard_goodbye() || state.core.phase > Phase::Open
        })
    }

    fn part(&self, peer: Peer) {
        self.with(|state| {
            if let Some(slot) = state.core.slots.live(peer) {
                slot.closing = true;
            }
            state.core.wake_writer(peer);
            Turn::ready(&mut state.core);
        });
    }

    fn leave(&self, peer: Peer, reason: DownReason, batch: &mut Batch) {
        self.with(|state| {
            let Some((unsent, event)) = state.core.left(peer, reason, batch) else { return };
            state.core.effects.events.push(event);
            state.pattern.on_leave(peer, unsent, &mut state.core);
            // Others may wait for what the pattern holds now, to say goodbye after it.
            if state.core.phase > Phase::Open {
                state.core.wake_all_links(&Signal::Write);
            }
        });
        self.changed.notify_waiters();
    }
}

impl<E> super::core::Core<E> {
    /// A peer says that it does not let us do something; what that can be, our role tells.
    fn denied_by(&mut self, peer: Peer, ours: &Role, id: &Bytes) {
        let denial = match ours {
            role if *role == Role::SUB => Denial::Subscribe(id.slice(..id.len().min(self.options.limits.topic))),
            role if *role == Role::REQ => Denial::Request,
            role if *role == Role::PUSH || *role == Role::PUB => Denial::Publish,
            _ => return,
        };
        let Some(slot) = self.slots.live(peer).filter(|slot| slot.out.speaks_extension()) else { return };
        slot.denied_by += 1;
        let times = slot.denied_by;
        if is_told(times) {
            let peer = PeerInfo::clone(&slot.info);
            self.effects.events.push(Event::DeniedBy { peer, denial, times });
        }
    }

    fn joined(&mut self, peer: Peer, keeps: bool) {
        self.widen_now(peer);
        let in_vain = self.options.asks_for_what_is_kept() && !keeps;
        if let Some(slot) = self.slots.live(peer) {
            let peer = PeerInfo::clone(&slot.info);
            self.effects.events.push(Event::PeerUp { peer: peer.clone() });
            if in_vain {
                self.effects.events.push(Event::KeepsNothing { peer });
            }
        }
    }
}
