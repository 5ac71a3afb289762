//! The receiver of confirmed delivery and its application, and what must be true of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use bytes::Bytes;
use ropewalk_patterns::{
    Action, Message, Pattern, Peer, Tally,
    delivery::{Confirms, Held, Inbox, MessageId, StreamId},
    extension::delivery::{Verdict, What},
    push_pull::Pull,
    zmtp::Command,
};

use crate::{
    delivery_sender::{Sender, Told, header, through},
    net::{Did, Hub, number},
};

/// What a receiver knows, as its model has it.
#[derive(Debug, Clone, Default)]
struct Memory {
    done: BTreeSet<MessageId>,
    lives: BTreeMap<StreamId, u64>,
}

/// A link and a place on it.
type At = (Peer, u64);

/// A pull and its application.
pub(crate) struct Receiver {
    pub(crate) hub: Hub<Pull>,
    memory: Memory,
    /// What it wrote at its last acknowledgement.
    recorded: (Vec<u8>, Memory),
    /// What the application has, until when, and where it came last.
    held: BTreeMap<MessageId, (Held, u64, At)>,
    /// The next place of each link, and the places that it is to be told of.
    places: BTreeMap<Peer, (u64, BTreeSet<u64>)>,
    now: u64,
    lets: fn(Action<'_>) -> bool,
}

/// What the application does with a message.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Take {
    Settle,
    Hold(u64),
}

/// Who is not let in.
pub(crate) fn lets(action: Action<'_>) -> bool {
    !matches!(action, Action::Publish(message) if number(message) % 7 == 3)
}

impl Receiver {
    pub(crate) fn new(strict: bool) -> Self {
        let lets: fn(Action<'_>) -> bool = if strict { lets } else { |_| true };
        let mut receiver = Self {
            hub: Hub::new(Pull::default(), Tally::ZERO),
            memory: Memory::default(),
            recorded: Default::default(),
            held: BTreeMap::new(),
            places: BTreeMap::new(),
            now: 0,
            lets,
        };
        receiver.hub.net.lets = lets;
        receiver
    }

    /// It dies and is back, with what it had written or with nothing.
    pub(crate) fn restart(&mut self, keeps: bool) {
        if !keeps {
            self.recorded = Default::default();
        }
        let inbox = Inbox::from_bytes(&self.recorded.0).expect("what it wrote");
        self.hub = Hub::new(Pull::with_inbox(inbox), Tally::ZERO);
        self.hub.net.lets = self.lets;
        self.memory = self.recorded.1.clone();
        (self.held, self.places, self.now) = (BTreeMap::new(), BTreeMap::new(), 0);
    }

    /// A sender says something; what is answered.
    pub(crate) fn hear(&mut self, peer: Peer, command: Command) -> Told {
        let attach = if let Command::Attach(attach) = &command { Some(*attach) } else { None };
        self.hub.pattern.on_command(peer, command, &mut self.hub.net).expect("an honest peer");
        let told = self.follow();
        if let Some(attach) = attach {
            let newest = self.memory.lives.entry(attach.stream).or_default();
            let answers: Vec<&Command> = told.iter().filter(|(to, _)| *to == peer).map(|(_, told)| told).collect();
            match &answers[..] {
                [Command::Resume(_)] => {
                    assert!(attach.incarnation >= *newest, "an older life is let in");
                    self.places.insert(peer, (0, BTreeSet::new()));
                }
                [Command::Fence(fence)] => assert!(fence.incarnation == *newest && attach.incarnation < *newest),
                other => panic!("{other:?}"),
            }
            *newest = attach.incarnation.max(*newest);
        }
        told
    }

    /// What the pull told its peers.
    pub(crate) fn follow(&mut self) -> Told {
        let told = |did| match did {
            Did::Told(peer, command) => (peer, through(&command)),
            other => panic!("a pull does not do {other:?}"),
        };
        self.hub.take_did().into_iter().map(told).collect()
    }

    /// The application takes a message that came from this life of its sender.
    pub(crate) fn take(
        &mut self,
        peer: Peer,
        from: &Sender,
        life: u64,
        message: Message,
        how: Take,
    ) -> Option<MessageId> {
        let (seq, incarnation, attempt) = header(&message);
        let id = MessageId { stream: from.stream, incarnation, seq };
        let zombie = self.memory.lives.get(&id.stream).is_some_and(|newest| life < *newest);
        let body = Message::from_parts(message.parts()[1..].iter().cloned());
        let denied = !(self.lets)(Action::Publish(&body));
        let known = self.memory.done.contains(&id) || self.hub.pattern.inbound().inbox().is_done(&id);
        let taken = self.hub.pattern.on_message(peer, message, &mut self.hub.net).expect("an honest peer");
        let has = known || self.held.contains_key(&id);
        let at = (peer, if zombie { 0 } else { self.next_place(peer) });
        let Some(taken) = taken else {
            assert!(has || denied || zombie, "{id} is new, and was passed over");
            assert!(!known || self.memory.done.contains(&id) || from.is_over(&id), "{id} is not done");
            match () {
                () if zombie => {}
                () if known => self.owe(at),
                () if has => self.held.get_mut(&id).unwrap().2 = at,
                () => self.expect_verdict(at, What::Reject { reason: Bytes::from_static(b"not authorized") }),
            }
            return None;
        };
        assert!(!has, "{id} is handed out again");
        assert!(!denied, "{id} is not authorized");
        assert!(!zombie, "{id} comes from a life that is over");
        assert_eq!(taken, body);
        match how {
            Take::Settle => {
                self.memory.done.insert(id);
                self.owe(at);
                Some(id)
            }
            Take::Hold(ticks) => {
                let held = self.hub.pattern.inbound().hold(ticks).expect("somebody to tell");
                assert_eq!((held.id, held.attempt), (id, attempt));
                assert!(held.floor <= seq, "what is handed out is not below the floor");
                self.held.insert(id, (held, self.now + ticks, at));
                None
            }
        }
    }

    fn next_place(&mut self, peer: Peer) -> u64 {
        let (next, _) = self.places.get_mut(&peer).expect("a peer that was let in");
        *next += 1;
        *next - 1
    }

    /// The sender is to hear that this place is done, if it is still there.
    fn owe(&mut self, (peer, place): At) {
        if let Some((_, owed)) = self.places.get_mut(&peer) {
            owed.insert(place);
        }
    }

    fn expect_verdict(&self, (peer, place): At, what: What) {
        let verdict = Did::Told(peer, Command::Verdict(Verdict { place, what }));
        assert_eq!(self.hub.net.did.contains(&verdict), self.places.contains_key(&peer), "{verdict:?}");
    }

    pub(crate) fn leave(&mut self, peer: Peer) {
        self.hub.leave(peer);
        self.places.remove(&peer);
    }

    fn pick(&self, which: usize) -> Option<Held> {
        self.held.values().nth(which % self.held.len().max(1)).map(|(held, ..)| *held)
    }

    /// The application is done with one that it has, and the inbox is written with it.
    pub(crate) fn ack(&mut self, which: usize) -> Option<MessageId> {
        let held = self.pick(which)?;
        let id = held.id;
        assert!(self.hub.pattern.inbound().ack(&held, &mut self.hub.net));
        assert!(!self.hub.pattern.inbound().ack(&held, &mut self.hub.net), "twice");
        let (.., at) = self.held.remove(&id).unwrap();
        self.memory.done.insert(id);
        self.owe(at);
        self.recorded = (self.hub.pattern.inbound().inbox().to_bytes(), self.memory.clone());
        Some(id)
    }

    pub(crate) fn give_up(&mut self, which: usize, what: What) {
        if let Some(held) = self.pick(which) {
            assert!(self.hub.pattern.inbound().give_up(&held, what.clone(), &mut self.hub.net));
            let (.., at) = self.held.remove(&held.id).unwrap();
            self.expect_verdict(at, what);
        }
    }

    pub(crate) fn extend(&mut self, which: usize, ticks: u64) {
        if let Some(held) = self.pick(which) {
            assert!(self.hub.pattern.inbound().extend(&held, ticks));
            self.held.get_mut(&held.id).unwrap().1 = self.now + ticks;
        }
    }

    /// What is kept too long is taken back.
    pub(crate) fn tick(&mut self, ticks: u64) {
        self.now += ticks;
        self.hub.pattern.inbound().tick(self.now, &mut self.hub.net);
        let now = self.now;
        let (kept, over) = mem::take(&mut self.held).into_iter().partition(|(_, (_, until, _))| *until >= now);
        self.held = kept;
        let over: BTreeMap<MessageId, (Held, u64, At)> = over;
        for (id, (held, _, at)) in over {
            self.expect_verdict(at, What::Release { millis: 0 });
            assert!(!self.hub.pattern.inbound().ack(&held, &mut self.hub.net), "{id} was taken back");
        }
    }

    /// What this peer is to be told besides.
    pub(crate) fn owed(&mut self, peer: Peer) -> Option<Command> {
        let owed = self.hub.pattern.owed(peer).map(|command| through(&command));
        let said = match &owed {
            Some(Command::Ack(ack)) => ack.places.iter().flatten().collect(),
            Some(other) => panic!("{other:?} is not owed"),
            None => BTreeSet::new(),
        };
        let due = self.places.get_mut(&peer).map(|(_, due)| mem::take(due)).unwrap_or_default();
        assert_eq!(said, due, "these places are done");
        owed
    }
}

/// What a rejection says.
pub(crate) fn reject() -> What {
    What::Reject { reason: Bytes::from_static(b"bad") }
}
