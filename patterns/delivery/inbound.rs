//! The receiver's half: which messages come, which come again, and what is said about them.

use alloc::{collections::BTreeMap, vec::Vec};

use bytes::Bytes;

use super::{Claim, Inbox, MessageId, Start, StreamId};
use crate::{
    extension::delivery::{Ack, Attach, Fence, Floor, Header, RANGES_AT_ONCE, Resume, Verdict, What},
    message::Message,
    misbehaved::Misbehaved,
    pattern::Peer,
    ranges::Ranges,
    turn::{Action, Turn},
    zmtp::Command,
};

/// What comes of streams that are confirmed, from all peers.
///
/// What is handed out is done with, unless it is [held](Self::hold) before anything else happens.
#[derive(Debug, Default)]
pub struct Inbound {
    name: Bytes,
    start: Start,
    links: BTreeMap<Peer, Link>,
    inbox: Inbox,
    /// What the application has and is not done with.
    held: BTreeMap<MessageId, Kept>,
    /// How many of those are being written down.
    finishing: usize,
    last: Option<(Held, Place)>,
    now: u64,
    /// One past the newest that came of a stream, where it matters where to begin again; of so many streams.
    came: BTreeMap<StreamId, u64>,
}

/// More streams begin where they began at first.
const STREAMS: usize = 64;

/// A message that the application has.
#[derive(Debug, Clone, Copy)]
struct Kept {
    at: Place,
    /// Which attempt it was that was handed out.
    attempt: u32,
    /// The last tick at which it may have it.
    until: u64,
    /// It is done with it, which is being written down.
    finishing: bool,
}

#[derive(Debug)]
struct Link {
    stream: StreamId,
    /// The life of the stream that sends here.
    incarnation: u64,
    /// Below this seq nothing of it comes again.
    floor: u64,
    /// A later life is known: what comes of this one is passed over.
    fenced: bool,
    /// The place of its next message.
    next: u64,
    /// Places that are done with, of which the sender was not told.
    acks: Ranges,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    peer: Peer,
    place: u64,
}

/// A message that the application has, and is to say what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Which it is.
    pub id: MessageId,
    /// The how-manieth delivery this is, from 1.
    pub attempt: u32,
    /// No message of its stream with a seq below comes again.
    pub floor: u64,
}

impl Inbound {
    /// Nothing has come. `name` and `start` are told to publishers; `inbox` is what was done before.
    pub fn new(name: Bytes, start: Start, inbox: Inbox) -> Self {
        Self { name, start, inbox, ..Self::default() }
    }

    /// Whether no peer sends what is to be confirmed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Whether what this peer sends is to be confirmed.
    pub fn confirms(&self, peer: Peer) -> bool {
        self.links.contains_key(&peer)
    }

    /// What is done with.
    pub fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// A command came.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn on_command<T: Turn>(&mut self, peer: Peer, command: &Command, turn: &mut T) -> Result<(), Misbehaved> {
        self.settle_last();
        match command {
            Command::Attach(attach) => self.on_attach(peer, attach, turn),
            Command::Floor(Floor { seq }) => {
                if let Some(link) = self.links.get_mut(&peer).filter(|link| !link.fenced) {
                    link.floor = link.floor.max(*seq);
                    self.inbox.forget_below(&link.stream, *seq);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn on_attach<T: Turn>(&mut self, peer: Peer, attach: &Attach, turn: &mut T) -> Result<(), Misbehaved> {
        let &Attach { stream, incarnation, floor } = attach;
        if self.links.contains_key(&peer) {
            return Err(Misbehaved::AttachedTwice);
        }
        let mut link = Link { stream, incarnation, floor, fenced: false, next: 0, acks: Ranges::default() };
        turn.one_by_one(peer);
        if let Err(incarnation) = self.inbox.heard_of(&stream, incarnation) {
            turn.tell(peer, Command::Fence(Fence { incarnation }));
            link.fenced = true;
            self.links.insert(peer, link);
            return Ok(());
        }
        // What still comes of an earlier life comes again from this one, if it is its successor and not its copy.
        let earlier = |link: &Link| link.stream == stream && link.incarnation != incarnation && !link.fenced;
        for (&other, link) in self.links.iter_mut().filter(|(_, link)| earlier(link)) {
            link.fenced = true;
            turn.tell(other, Command::Fence(Fence { incarnation }));
        }
        self.inbox.forget_below(&stream, floor);
        self.links.insert(peer, link);
        let done = self.inbox.done(&stream, RANGES_AT_ONCE);
        turn.tell(peer, Command::Resume(Resume { name: self.name.clone(), start: self.start_of(&stream), done }));
        Ok(())
    }

    /// Where to begin: where we were told to, and after that where we were, or with a name where our cursor is.
    fn start_of(&self, stream: &StreamId) -> Start {
        match self.came.get(stream) {
            Some(_) if !self.name.is_empty() => Start::Cursor,
            Some(&next) => Start::Seq(next),
            None => self.start,
        }
    }

    /// A message came; `None` if it was done with before, or the application still has it.
    ///
    /// # Errors
    /// The peer broke the protocol.
    #[inline(never)]
    pub fn on_message<T: Turn>(
        &mut self,
        peer: Peer,
        message: Message,
        turn: &mut T,
    ) -> Result<Option<Message>, Misbehaved> {
        self.settle_last();
        let Some(link) = self.links.get_mut(&peer) else { return Ok(Some(message)) };
        if link.fenced {
            return Ok(None);
        }
        let (header, message) = message.split_first().ok_or(Misbehaved::BadHeader)?;
        let Header { seq, incarnation, attempt } = Header::read(&header)?;
        if incarnation > link.incarnation {
            // Accepted by a life that is still to come.
            return Err(Misbehaved::BadHeader);
        }
        let id = MessageId { stream: link.stream, incarnation, seq };
        let place = Place { peer, place: link.next };
        link.next += 1;
        if self.start != Start::Cursor && (self.came.len() < STREAMS || self.came.contains_key(&id.stream)) {
            let came = self.came.entry(id.stream).or_default();
            *came = (*came).max(seq + 1);
        }
        if self.inbox.is_done(&id) {
            link.acks.insert(place.place..place.place + 1);
            turn.owe(peer, false);
            return Ok(None);
        }
        if let Some(held) = self.held.get_mut(&id) {
            // Its first link has died: what is said about it now is said here.
            held.at = place;
            return Ok(None);
        }
        if !turn.may(peer, Action::Publish(&message), &[]) {
            let reason = Bytes::from_static(b"not authorized");
            turn.tell(peer, Command::Verdict(Verdict { place: place.place, what: What::Reject { reason } }));
            return Ok(None);
        }
        self.inbox.has_room(&id.stream)?;
        self.last = Some((Held { id, attempt, floor: link.floor }, place));
        turn.owe(peer, false);
        Ok(Some(message))
    }

    /// What was handed out last is not done with: the application says within so many [ticks](Self::tick) what becomes of
    /// it. `None` if nobody is to be told.
    pub fn hold(&mut self, ticks: u64) -> Option<Held> {
        let (held, at) = self.last.take()?;
        let until = self.now.saturating_add(ticks);
        let before = self.held.insert(held.id, Kept { at, attempt: held.attempt, until, finishing: false });
        self.finishing -= usize::from(before.is_some_and(|before| before.finishing));
        Some(held)
    }

    /// What was handed out last, and is not held, is done with.
    pub fn settle_last(&mut self) {
        if let Some((held, place)) = self.last.take() {
            self.done(held.id, place);
        }
    }

    fn done(&mut self, id: MessageId, Place { peer, place }: Place) -> bool {
        let _fresh: Claim = self.inbox.claim(id);
        match self.links.get_mut(&peer) {
            Some(link) => link.acks.insert(place..place + 1),
            None => return false,
        }
        true
    }

    /// The application is done with this message. False if it has it no longer: it was taken back. If its link is gone the
    /// sender hears of it when the message comes again.
    pub fn ack<T: Turn>(&mut self, held: &Held, turn: &mut T) -> bool {
        self.settle_last();
        let Some(at) = self.let_go(held) else { return false };
        if self.done(held.id, at) {
            turn.owe(at.peer, true);
        }
        true
    }

    /// The application gives this message up. False if it has it no longer. If its link is gone the sender gives it to
    /// somebody again by itself.
    pub fn give_up<T: Turn>(&mut self, held: &Held, what: What, turn: &mut T) -> bool {
        self.settle_last();
        let Some(at) = self.let_go(held) else { return false };
        self.tell(at, what, turn);
        true
    }

    fn tell<T: Turn>(&self, Place { peer, place }: Place, what: What, turn: &mut T) {
        if self.links.contains_key(&peer) {
            turn.tell(peer, Command::Verdict(Verdict { place, what }));
        }
    }

    /// Where this is to be settled, if it was not taken back: then it may be there again, as another attempt.
    fn let_go(&mut self, held: &Held) -> Option<Place> {
        self.held.get(&held.id).filter(|kept| kept.attempt == held.attempt)?;
        let kept = self.held.remove(&held.id)?;
        self.finishing -= usize::from(kept.finishing);
        Some(kept.at)
    }

    /// The application is done with this message, which is being written down until it is acknowledged or given up: it is
    /// not taken back any more. False if it has it no longer.
    pub fn finish(&mut self, held: &Held) -> bool {
        let Some(kept) = self.held.get_mut(&held.id).filter(|kept| kept.attempt == held.attempt) else { return false };
        kept.until = u64::MAX;
        self.finishing += usize::from(!core::mem::replace(&mut kept.finishing, true));
        true
    }

    /// Whether nothing is being written down: senders hear of all that the application is done with.
    pub fn is_done(&self) -> bool {
        self.finishing == 0
    }

    /// The application keeps this message for so many ticks from now. False if it has it no longer.
    pub fn extend(&mut self, held: &Held, ticks: u64) -> bool {
        let Some(kept) = self.held.get_mut(&held.id).filter(|kept| kept.attempt == held.attempt) else { return false };
        kept.until = self.now.saturating_add(ticks);
        true
    }

    /// So many ticks have passed since the first. What the application has kept too long is taken back, to be given to
    /// another.
    pub fn tick<T: Turn>(&mut self, now: u64, turn: &mut T) {
        self.now = now;
        let over: Vec<MessageId> = self.held.iter().filter(|(_, kept)| kept.until < now).map(|(id, _)| *id).collect();
        for kept in over.iter().filter_map(|id| self.held.remove(id)).collect::<Vec<_>>() {
            self.tell(kept.at, What::Release { millis: 0 }, turn);
        }
    }

    /// What is to be told to this peer.
    pub fn owed(&mut self, peer: Peer) -> Option<Command> {
        self.settle_last();
        let places = self.links.get_mut(&peer)?.acks.take_first(RANGES_AT_ONCE);
        (!places.is_empty()).then_some(Command::Ack(Ack { places }))
    }

    /// A link is gone. What came on it and was not handed out goes elsewhere, or comes again.
    pub fn on_leave<T: Turn>(&mut self, peer: Peer, turn: &mut T) {
        self.settle_last();
        if self.links.remove(&peer).is_some() {
            turn.forget(peer);
        }
    }
}
