//! Confirmed delivery: senders and receivers joined by links that die, and nothing is lost, doubled or settled unseen.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;
use ropewalk_patterns::{
    Message, Misbehaved, Pattern, Peer, Tally,
    delivery::{Confirms, MessageId, Rules},
    extension::delivery::{Ack, Attach, Header, Verdict, What},
    ranges::Ranges,
    zmtp::Command,
};

use crate::{
    delivery_receiver::{Receiver, Take, reject},
    delivery_sender::{Sender, Told, message},
    net::{Bounds, schedules},
};

#[derive(Debug, Clone)]
enum Step {
    /// The source has one more message, of this size, whose seq is so many beyond the next.
    Make(u8, usize, u64),
    Feed(u8, usize),
    /// What was to come later comes.
    Again(u8, usize),
    /// What is dead is kept elsewhere.
    Rescue(u8, usize),
    Link(u8, u8, Bounds),
    /// The sender notices that a link is dead; so much of what was under way still arrives.
    SenderLeaves(u8, usize, usize),
    /// The receiver notices; so many of its commands still arrive.
    ReceiverLeaves(u8, usize),
    Write(u8, usize),
    /// All that is under way on a link arrives, for a while.
    Flow(u8),
    /// Commands arrive at the receiver.
    Down(u8, usize),
    /// Commands arrive at the sender.
    Up(u8, usize),
    Take(u8, Take),
    Grant(u8),
    /// The link of the receiver writes what it owes.
    Owed(u8),
    Ack(u8, usize),
    GiveUp(u8, usize, What),
    Extend(u8, usize, u64),
    Tick(u8, u64),
    RestartReceiver(u8, bool),
    RestartSender(u8, usize),
    Lie(u8, Lie),
}

#[derive(Debug, Clone, Copy)]
enum Lie {
    /// The first so many that it has, and one that it never had.
    Ack(u64),
    Verdict,
    AttachTwice,
    BadHeader,
    NoHeader,
}

/// A step out of one number: thousands of these are drawn for each schedule, and drawing is what takes the time.
fn step(mut number: u64) -> Step {
    let mut roll = |sides: u64| {
        let rolled = number % sides;
        number /= sides;
        rolled
    };
    let (kind, who) = (roll(200), roll(256) as u8);
    let mut count = |sides| roll(sides) as usize;
    match kind {
        0..18 => Step::Make(who, count(200), count(3) as u64),
        18..33 => Step::Feed(who, 1 + count(5)),
        33..37 => Step::Again(who, count(9)),
        37..41 => Step::Rescue(who, count(9)),
        41..43 => Step::RestartSender(who, count(4)),
        43..53 => Step::Link(who, count(256) as u8, bounds(roll)),
        53..56 => Step::SenderLeaves(who, count(5), count(5)),
        56..59 => Step::ReceiverLeaves(who, count(5)),
        59..74 => Step::Write(who, 1 + count(5)),
        74..89 => Step::Down(who, 1 + count(5)),
        89..104 => Step::Up(who, 1 + count(5)),
        104..118 => Step::Flow(who),
        118..128 => Step::Grant(who),
        128..140 => Step::Owed(who),
        140..142 => {
            let first = count(4) as u64;
            let lies = [Lie::Ack(first), Lie::Verdict, Lie::AttachTwice, Lie::BadHeader, Lie::NoHeader];
            Step::Lie(who, lies[count(5)])
        }
        142..174 => Step::Take(who, [Take::Settle, Take::Hold(count(12) as u64)][count(2)]),
        174..184 => Step::Ack(who, count(9)),
        184..191 => {
            let release = |millis| What::Release { millis };
            Step::GiveUp(who, count(9), [release(0), release(7), release(0), reject()][count(4)].clone())
        }
        191..193 => Step::Extend(who, count(9), count(6) as u64),
        193..198 => Step::Tick(who, 1 + count(3) as u64),
        _ => Step::RestartReceiver(who, count(2) == 0),
    }
}

/// Bounds so tight that every schedule meets them, or none.
fn bounds(mut roll: impl FnMut(u64) -> u64) -> Bounds {
    if roll(2) == 0 {
        return Bounds::WIDE;
    }
    let mut tally = || Tally::new(1 + roll(4), 64 + roll(536));
    let (hwm, window) = (tally(), tally());
    Bounds { hwm, window, largest: if roll(4) == 0 { 30 + roll(170) } else { 1 << 20 } }
}

/// One link; each end notices by itself that it is dead.
struct Wire {
    sender: usize,
    receiver: usize,
    /// The life of the sender that made it.
    life: u64,
    near: Option<Peer>,
    far: Option<Peer>,
    down: VecDeque<Command>,
    up: VecDeque<Command>,
    /// What still arrives of a sender that is gone.
    tail: VecDeque<Message>,
}

struct World {
    senders: Vec<Sender>,
    receivers: Vec<Receiver>,
    wires: Vec<Wire>,
    verbs: bool,
    /// What any receiver was ever done with.
    done: BTreeSet<MessageId>,
}

fn pick(who: u8, of: usize) -> usize {
    usize::from(who) % of.max(1)
}

impl World {
    fn new(senders: u8, receivers: usize, verbs: bool, strict: bool, rules: Rules) -> Self {
        Self {
            senders: (0..senders).map(|number| Sender::new([number; 16], verbs, rules)).collect(),
            receivers: (0..receivers).map(|_| Receiver::new(strict)).collect(),
            wires: Vec::new(),
            verbs,
            done: BTreeSet::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Make(..) | Step::Feed(..) | Step::Again(..) | Step::Rescue(..) | Step::RestartSender(..) => {
                self.source(step);
            }
            Step::Ack(..) | Step::GiveUp(..) | Step::Extend(..) | Step::Tick(..) | Step::RestartReceiver(..) => {
                self.application(step);
            }
            Step::Link(sender, receiver, bounds) => {
                let (sender, receiver) = (pick(sender, self.senders.len()), pick(receiver, self.receivers.len()));
                if self.wires.len() < 8 {
                    self.link(sender, receiver, bounds);
                }
            }
            _ if self.wires.is_empty() => {}
            Step::SenderLeaves(who, data, told) => self.sender_leaves(self.wire(who), data, told),
            Step::ReceiverLeaves(who, told) => self.receiver_leaves(self.wire(who), told),
            Step::Write(who, count) => self.write(self.wire(who), count),
            Step::Flow(who) => self.flow(self.wire(who)),
            Step::Down(who, count) => (0..count).for_each(|_| self.down(self.wire(who))),
            Step::Up(who, count) => (0..count).for_each(|_| self.up(self.wire(who))),
            Step::Take(who, how) => drop(self.take(self.wire(who), how)),
            Step::Grant(who) => self.grant(self.wire(who)),
            Step::Owed(who) => drop(self.owed(self.wire(who))),
            Step::Lie(who, lie) => self.lie(self.wire(who), lie),
        }
        self.wires.retain(|wire| wire.near.is_some() || wire.far.is_some());
        for sender in 0..self.senders.len() {
            self.follow_sender(sender);
        }
    }

    fn wire(&self, who: u8) -> usize {
        pick(who, self.wires.len())
    }

    fn source(&mut self, step: Step) {
        let (Step::Make(who, ..)
        | Step::Feed(who, ..)
        | Step::Again(who, ..)
        | Step::Rescue(who, ..)
        | Step::RestartSender(who, ..)) = step
        else {
            return;
        };
        let number = pick(who, self.senders.len());
        let sender = &mut self.senders[number];
        match step {
            Step::Make(_, size, gap) => sender.make(size, gap),
            Step::Feed(_, count) => sender.feed(count),
            Step::Again(_, which) => sender.again(which),
            Step::Rescue(_, which) => sender.rescue(which),
            Step::RestartSender(_, forgotten) if !self.verbs => {
                let mine = self.wires.iter_mut().filter(|wire| wire.sender == number);
                for wire in mine {
                    let Some(peer) = wire.near.take() else { continue };
                    wire.up.clear();
                    while let Some(item) = sender.hub.take(peer) {
                        wire.tail.push_back(message(item));
                    }
                }
                sender.restart(forgotten);
            }
            _ => {}
        }
    }

    fn application(&mut self, step: Step) {
        let (Step::Ack(who, ..)
        | Step::GiveUp(who, ..)
        | Step::Extend(who, ..)
        | Step::Tick(who, ..)
        | Step::RestartReceiver(who, ..)) = step
        else {
            return;
        };
        let number = pick(who, self.receivers.len());
        let receiver = &mut self.receivers[number];
        match step {
            Step::Ack(_, which) => self.done.extend(receiver.ack(which)),
            Step::GiveUp(_, which, what) => receiver.give_up(which, what),
            Step::Extend(_, which, ticks) => receiver.extend(which, ticks),
            Step::Tick(_, ticks) => receiver.tick(ticks),
            Step::RestartReceiver(_, keeps) => {
                receiver.restart(keeps);
                self.wires.iter_mut().filter(|wire| wire.receiver == number).for_each(|wire| wire.far = None);
            }
            _ => {}
        }
        let told = self.receivers[number].follow();
        self.upwards(number, told);
    }

    fn link(&mut self, sender: usize, receiver: usize, bounds: Bounds) {
        let near = self.senders[sender].join(bounds);
        let far = self.receivers[receiver].hub.join(bounds, true);
        let life = self.senders[sender].incarnation();
        let (down, up, tail) = Default::default();
        self.wires.push(Wire { sender, receiver, life, near: Some(near), far: Some(far), down, up, tail });
        self.follow_sender(sender);
    }

    fn follow_sender(&mut self, sender: usize) {
        self.senders[sender].try_line();
        let told = self.senders[sender].follow(&self.done);
        self.downwards(sender, told);
    }

    fn downwards(&mut self, sender: usize, told: Told) {
        for (peer, command) in told {
            let is_it = |wire: &&mut Wire| wire.sender == sender && wire.near == Some(peer);
            self.wires.iter_mut().find(is_it).expect("a linked peer").down.push_back(command);
        }
    }

    fn upwards(&mut self, receiver: usize, told: Told) {
        for (peer, command) in told {
            let is_it = |wire: &&mut Wire| wire.receiver == receiver && wire.far == Some(peer);
            self.wires.iter_mut().find(is_it).expect("a linked peer").up.push_back(command);
        }
    }

    fn sender_leaves(&mut self, wire: usize, data: usize, told: usize) {
        let Wire { sender, ref mut near, ref mut down, ref mut up, ref mut tail, .. } = self.wires[wire];
        let Some(peer) = near.take() else { return };
        tail.extend(self.senders[sender].leave(peer).into_iter().take(data));
        // One stream brings both: what was told last is lost with the messages.
        down.truncate(if data == 0 { 0 } else { told });
        up.clear();
        self.follow_sender(sender);
    }

    fn receiver_leaves(&mut self, wire: usize, told: usize) {
        let Wire { receiver, ref mut far, ref mut up, ref mut tail, .. } = self.wires[wire];
        let Some(peer) = far.take() else { return };
        up.truncate(told);
        tail.clear();
        self.receivers[receiver].leave(peer);
        let told = self.receivers[receiver].follow();
        assert!(told.is_empty());
    }

    fn write(&mut self, wire: usize, count: usize) {
        let Wire { sender, near, .. } = self.wires[wire];
        if let Some(peer) = near {
            self.senders[sender].hub.write(peer, count);
        }
    }

    fn down(&mut self, wire: usize) {
        let Wire { receiver, far, ref mut down, .. } = self.wires[wire];
        if let (Some(peer), Some(command)) = (far, down.pop_front()) {
            let told = self.receivers[receiver].hear(peer, command);
            self.upwards(receiver, told);
        }
    }

    fn up(&mut self, wire: usize) {
        let Wire { sender, near, ref mut up, .. } = self.wires[wire];
        if let (Some(peer), Some(command)) = (near, up.pop_front()) {
            let told = self.senders[sender].hear(peer, command, &self.done);
            self.downwards(sender, told);
        }
    }

    fn flow(&mut self, wire: usize) {
        for _ in 0..2 {
            (0..self.wires[wire].down.len()).for_each(|_| self.down(wire));
            self.write(wire, usize::MAX);
            (0..self.wires[wire].up.len()).for_each(|_| self.up(wire));
        }
    }

    /// The application of the receiver takes what is next on this wire. Whether there was something.
    fn take(&mut self, wire: usize, how: Take) -> bool {
        let Wire { sender, receiver, life, near, far, ref mut tail, .. } = self.wires[wire];
        let Some(to) = far else { return false };
        let next = match near {
            Some(peer) => self.senders[sender].hub.take(peer).map(message),
            None => tail.pop_front(),
        };
        let Some(next) = next else { return false };
        let taken = self.receivers[receiver].take(to, &self.senders[sender], life, next, how);
        self.done.extend(taken);
        let told = self.receivers[receiver].follow();
        self.upwards(receiver, told);
        true
    }

    fn grant(&mut self, wire: usize) {
        let Wire { sender, near, .. } = self.wires[wire];
        if let Some(peer) = near {
            self.senders[sender].hub.grant(peer);
        }
    }

    fn owed(&mut self, wire: usize) -> bool {
        let Wire { receiver, far, ref mut up, .. } = self.wires[wire];
        let owed = far.and_then(|peer| self.receivers[receiver].owed(peer));
        let some = owed.is_some();
        up.extend(owed);
        some
    }

    /// One end lies, is found out and shut out; nobody else notices.
    fn lie(&mut self, wire: usize, lie: Lie) {
        let Wire { sender, receiver, life, near, far, .. } = self.wires[wire];
        let places = |count: u64| {
            let mut places = Ranges::default();
            places.insert(0..count);
            places.insert(1000..1001);
            Command::Ack(Ack { places })
        };
        let to_sender = match lie {
            Lie::Ack(count) => Some(places(count)),
            Lie::Verdict => Some(Command::Verdict(Verdict { place: 1000, what: reject() })),
            _ => None,
        };
        if let (Some(command), Some(peer)) = (&to_sender, near) {
            let hub = &mut self.senders[sender].hub;
            let refused = hub.pattern.on_command(peer, command.clone(), &mut hub.net);
            assert_eq!(refused, Err(Misbehaved::ImpossibleCount));
            return self.sender_leaves(wire, 9, 0);
        }
        let (None, Some(peer)) = (to_sender, far) else { return };
        let hub = &mut self.receivers[receiver].hub;
        // What comes of a life that is over is not even read.
        if !hub.pattern.inbound().confirms(peer) || life != self.senders[sender].incarnation() {
            return;
        }
        let header = Header { seq: 1 << 62, incarnation: life, attempt: 1 }.to_bytes();
        let (refused, lie) = match lie {
            Lie::AttachTwice => {
                let attach = Command::Attach(Attach { stream: [9; 16], incarnation: 1, floor: 0 });
                let heard = hub.pattern.on_command(peer, attach, &mut hub.net);
                (heard.map(|()| None), Misbehaved::AttachedTwice)
            }
            Lie::NoHeader => (hub.pattern.on_message(peer, Message::from("bare"), &mut hub.net), Misbehaved::BadHeader),
            _ => {
                let message = Message::from_parts([header.to_vec(), b"body".to_vec()]);
                (hub.pattern.on_message(peer, message, &mut hub.net), Misbehaved::BadHeader)
            }
        };
        assert_eq!(refused, Err(lie));
        self.receiver_leaves(wire, 9);
    }

    /// All links are new and whole, all that is held is done, and everything comes to its end.
    fn finish(mut self) {
        self.relink();
        for receiver in 0..self.receivers.len() {
            while let Some(id) = self.receivers[receiver].ack(0) {
                self.done.insert(id);
            }
            let told = self.receivers[receiver].follow();
            self.upwards(receiver, told);
        }
        let mut turns = 0;
        while !self.senders.iter().all(Sender::is_done) {
            turns += 1;
            let left: Vec<_> = self.senders.iter().map(Sender::left_over).collect();
            assert!(turns < 2000, "does not come to an end: {left:?}");
            self.turn();
        }
        for sender in &mut self.senders {
            let deliveries = sender.hub.pattern.deliveries().unwrap();
            assert_eq!((deliveries.unsettled(), deliveries.floor()), (Tally::ZERO, deliveries.next()));
            assert!(sender.forked.is_empty(), "no life was copied");
        }
        self.relink();
        (0..self.wires.len()).for_each(|wire| self.down(wire));
        for wire in &self.wires {
            let Some(Command::Resume(resume)) = wire.up.front() else { panic!("{:?}", wire.up) };
            assert_eq!(resume.done, [], "what is below the floor is remembered");
        }
    }

    fn relink(&mut self) {
        for wire in 0..self.wires.len() {
            self.sender_leaves(wire, 0, 0);
            self.receiver_leaves(wire, 0);
        }
        self.wires.clear();
        for sender in 0..self.senders.len() {
            for receiver in 0..self.receivers.len() {
                self.link(sender, receiver, Bounds::WIDE);
            }
        }
    }

    fn turn(&mut self) {
        for wire in 0..self.wires.len() {
            (0..self.wires[wire].down.len()).for_each(|_| self.down(wire));
            self.write(wire, usize::MAX);
            while self.take(wire, Take::Settle) {}
            self.grant(wire);
            while self.owed(wire) {}
            (0..self.wires[wire].up.len()).for_each(|_| self.up(wire));
        }
        for sender in 0..self.senders.len() {
            let who = sender.try_into().unwrap();
            self.step(Step::Again(who, 0));
            self.step(Step::Rescue(who, 0));
            self.step(Step::Feed(who, 3));
        }
    }
}

fn rules() -> impl Strategy<Value = Rules> {
    let tally = || (1u64..6, 64u64..900).prop_map(|(messages, bytes)| Tally::new(messages, bytes));
    let budget = prop_oneof![Just(u64::MAX), 64u64..900];
    (tally(), tally(), budget, 1u32..5).prop_map(|(waiting, under_way, budget, attempts)| Rules {
        waiting,
        under_way,
        budget,
        attempts,
    })
}

proptest! {
    #![proptest_config(schedules(2500))]

    #[test]
    fn everything_is_settled_by_who_was_done_with_it_or_dead_with_a_reason(
        steps in prop::collection::vec(any::<u64>().prop_map(step), 0..400),
        senders in 1u8..3,
        receivers in 1usize..4,
        (verbs, strict) in (prop::bool::weighted(0.25), prop::bool::weighted(0.25)),
        rules in rules(),
    ) {
        let mut world = World::new(senders, receivers, verbs, strict, rules);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}
