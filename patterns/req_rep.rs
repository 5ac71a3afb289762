//! A question to one, an answer back.
//!
//! ```text
//!   REQ ---- id  ""  question ------> REP     REQ gives each request to the next peer with room, in turn, any number
//!   REQ <--- id  ""  answer --------- REP     at once; REP answers each to the peer that asked, in any order.
//! ```
//!
//! What stands before the message is the envelope: parts up to and with an empty one, the delimiter. REP sends it back
//! as it came, and so does every ROUTER that keeps it, so the four-byte id finds the request its answer belongs to.
//! [`Req::correlate`] leaves the id out for peers that do not send it back: then one request at a time goes to each
//! peer, and a request that is given up closes the link, because its answer could not be told from the next one's.
//!
//! A request that is kept until it is answered says behind its id which it is ([`RequestTag`]), so that whoever is asked can
//! tell one that comes again.
//!
//! An answer counts only from the peer that was asked; everything else is passed over. Source: RFC 28 (REQREP), whose
//! lock-step of one request at a time per socket is not kept.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use bytes::Bytes;

use crate::{
    backlog::Backlog,
    credit::Tally,
    delivery::{RequestTag, TAGGED},
    extension::{Refusal, RefusalReason},
    message::{Body, Head, Message, Outgoing},
    misbehaved::Misbehaved,
    pattern::{Meets, Pattern, Peer, Role, Why},
    ring::Ring,
    turn::{Action, Room, Turn},
    zmtp::{Command, Ready},
};

/// What an application asks of a requester. `K` is whom to tell the answer.
#[derive(Debug)]
pub enum Ask<'a, K> {
    /// A request, please.
    Request {
        /// Its number: the id on the wire. It must not be used again while answers to it may come.
        id: u32,
        /// Whom to tell the answer.
        asker: K,
        /// The [part](RequestTag::part) that has the number and says which request it is, if it is kept until it is answered.
        tag: Option<&'a [u8; TAGGED]>,
        /// The question.
        body: Body<'a>,
    },
    /// Nobody waits for the answer of this request any more.
    Forget {
        /// Its number.
        id: u32,
    },
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<K> {
    /// Who asked.
    pub asker: K,
    /// The answer, or why there is none.
    pub result: Result<Message, Unanswered>,
}

/// Why a request got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unanswered {
    /// The link to the peer that was asked died; it may have done what it was asked to.
    PeerLost,
    /// The peer said that it will not answer.
    Refused(RefusalReason),
    /// No peer accepts a request of that size.
    TooLarge,
    /// The socket was closed.
    Closed,
}

/// The deciding half of a socket that requests.
#[derive(Debug)]
pub struct Req<K> {
    correlate: bool,
    outstanding: usize,
    ring: Ring,
    /// Requests in the form of the wire with their id, also if we do not send it.
    backlog: Backlog,
    pending: BTreeMap<u32, Pending<K>>,
    /// Without ids: what each peer was asked.
    asked: BTreeMap<Peer, u32>,
}

#[derive(Debug)]
struct Pending<K> {
    asker: K,
    /// The peer that was asked; none while the request waits for one.
    whom: Option<Peer>,
}

impl<K> Req<K> {
    /// A requester that may have so many requests outstanding at once.
    pub fn new(outstanding: usize) -> Self {
        Self {
            correlate: true,
            outstanding,
            ring: Ring::new(),
            backlog: Backlog::new(),
            pending: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    /// Whether requests carry an id; they do unless told otherwise.
    pub fn correlate(mut self, correlate: bool) -> Self {
        self.correlate = correlate;
        self
    }

    /// How many requests have no answer yet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether this request waits for a peer that could be asked.
    pub fn waits_for_a_peer(&self, id: u32) -> bool {
        self.pending.get(&id).is_some_and(|pending| pending.whom.is_none())
    }

    /// The next peer for this request, marked as asked.
    fn choose<T: Turn>(&mut self, id: u32, message: &Outgoing<'_>, turn: &mut T) -> Result<Peer, Why> {
        let (correlate, asked) = (self.correlate, &self.asked);
        let peer = self.ring.next(message, turn, |peer| correlate || !asked.contains_key(&peer))?;
        if !correlate {
            self.asked.insert(peer, id);
        }
        Ok(peer)
    }

    fn end(&mut self, id: u32, result: Result<Message, Unanswered>) -> Option<Answer<K>> {
        let Pending { asker, whom } = self.pending.remove(&id)?;
        if let Some(peer) = whom {
            self.asked.remove(&peer);
        }
        Some(Answer { asker, result })
    }

    /// The request that an answer or refusal of this peer with this id is for.
    fn asked_of(&self, peer: Peer, id: &[u8]) -> Option<u32> {
        let id = if self.correlate { number_of(id)? } else { *self.asked.get(&peer)? };
        (self.pending.get(&id)?.whom == Some(peer)).then_some(id)
    }
}

impl<K: Send + 'static> Req<K> {
    fn drain<T: Turn<Event = Answer<K>>>(&mut self, turn: &mut T) {
        while let Some(stored) = self.backlog.pop() {
            let Some(id) = stored_id(&stored) else { continue };
            let outgoing = if self.correlate { stored.clone().into() } else { without_id(&stored) };
            match self.choose(id, &outgoing, turn) {
                Ok(peer) => {
                    turn.send(peer, &outgoing);
                    if let Some(pending) = self.pending.get_mut(&id) {
                        pending.whom = Some(peer);
                    }
                }
                Err(Why::TooLarge) => {
                    if let Some(answer) = self.end(id, Err(Unanswered::TooLarge)) {
                        turn.deliver(answer);
                    }
                }
                Err(_) => {
                    self.backlog.unpop(stored);
                    break;
                }
            }
        }
        // Verbs go behind the backlog: while nobody is linked into it, else when it is gone.
        if self.ring.is_empty() || self.backlog.is_empty() {
            turn.ready();
        }
    }

    fn forget<T: Turn<Event = Answer<K>>>(&mut self, id: u32, turn: &mut T) {
        let whom = self.pending.get(&id).map(|pending| pending.whom);
        match whom {
            None => return,
            Some(None) => self.backlog.retain(|stored| stored_id(stored) != Some(id)),
            Some(Some(peer)) if !self.correlate => turn.abandon(peer),
            Some(Some(_)) => {}
        }
        // The peer stays marked as asked until its link is closed.
        self.pending.remove(&id);
        self.drain(turn);
    }
}

/// The parts before the application's in the stored form.
const STORED_HEAD: usize = 2;

fn stored_id(message: &Message) -> Option<u32> {
    number_of(message.part(0)?)
}

/// The number of the request whose envelope begins with this part.
fn number_of(part: &[u8]) -> Option<u32> {
    let (number, tag) = part.split_first_chunk()?;
    (tag.is_empty() || part.len() == TAGGED).then_some(u32::from_be_bytes(*number))
}

fn without_id(stored: &Message) -> Outgoing<'static> {
    let body = Message::from_parts(stored.parts().iter().skip(STORED_HEAD).cloned());
    Outgoing { head: Head::Delimiter, body: Body::Message(body) }
}

fn with_id(id: u32, sent: &Message) -> Message {
    let id = Bytes::copy_from_slice(&id.to_be_bytes());
    Message::from_parts([id].into_iter().chain(sent.parts().iter().cloned()))
}

impl<K: Send + 'static> Pattern for Req<K> {
    const ROLE: Role = Role::REQ;
    const MEETS: Meets = Meets::AtArrival;
    type Verb<'a> = Ask<'a, K>;
    type Event = Answer<K>;

    fn held(&self) -> Tally {
        self.backlog.held()
    }

    /// To forget need not wait.
    fn line(verb: &Ask<'_, K>) -> u64 {
        u64::from(matches!(verb, Ask::Forget { .. }))
    }

    fn accepts(role: &Role) -> bool {
        *role == Role::REP || *role == Role::ROUTER || role.is_unsaid()
    }

    fn on_join<T: Turn<Event = Answer<K>>>(&mut self, peer: Peer, _: &Ready, turn: &mut T) {
        self.ring.join(peer);
        self.drain(turn);
    }

    fn on_leave<T: Turn<Event = Answer<K>>>(&mut self, peer: Peer, unsent: Vec<Message>, turn: &mut T) {
        self.ring.leave(peer);
        let asked = self.asked.remove(&peer);
        // What nobody has seen goes to another peer, if somebody still waits for its answer.
        let mut again = Vec::new();
        for message in unsent {
            let id = if self.correlate { stored_id(&message) } else { asked };
            let Some(id) = id else { continue };
            if let Some(pending) = self.pending.get_mut(&id) {
                pending.whom = None;
                again.push(if self.correlate { message } else { with_id(id, &message) });
            }
        }
        let lost: Vec<u32> =
            self.pending.iter().filter(|(_, pending)| pending.whom == Some(peer)).map(|(id, _)| *id).collect();
        for id in lost {
            if let Some(answer) = self.end(id, Err(Unanswered::PeerLost)) {
                turn.deliver(answer);
            }
        }
        self.backlog.give_back(again);
        self.drain(turn);
    }

    fn on_verb<'a, T: Turn<Event = Answer<K>>>(
        &mut self,
        verb: Self::Verb<'a>,
        turn: &mut T,
    ) -> Result<(), (Self::Verb<'a>, Why)> {
        let (id, asker, tag, body) = match verb {
            Ask::Request { id, asker, tag, body } => (id, asker, tag, body),
            Ask::Forget { id } => {
                self.forget(id, turn);
                return Ok(());
            }
        };
        // Without ids there is nothing it could stand behind.
        let head = tag.filter(|_| self.correlate).map_or(Head::Id(id.to_be_bytes()), Head::Tagged);
        let mut message = Outgoing { head, body };
        let decided = if self.pending.len() >= self.outstanding || self.pending.contains_key(&id) {
            Err(Why::Full)
        } else if self.ring.is_empty() {
            self.backlog.admit(message.cost(), turn).map(|()| None)
        } else if self.backlog.is_empty() {
            if !self.correlate {
                message.head = Head::Delimiter;
            }
            self.choose(id, &message, turn).map(Some)
        } else {
            Err(Why::Full)
        };
        let whom = match decided {
            Ok(whom) => whom,
            Err(why) => return Err((Ask::Request { id, asker, tag, body: message.body }, why)),
        };
        self.pending.insert(id, Pending { asker, whom });
        match whom {
            Some(peer) => turn.send(peer, &message),
            None => self.backlog.push(message.to_message()),
        }
        Ok(())
    }

    fn on_room<T: Turn<Event = Answer<K>>>(&mut self, peer: Peer, turn: &mut T) {
        self.ring.reopen(peer);
        self.drain(turn);
    }

    fn on_message<T: Turn<Event = Answer<K>>>(
        &mut self,
        peer: Peer,
        message: Message,
        turn: &mut T,
    ) -> Result<Option<Answer<K>>, Misbehaved> {
        let head = if self.correlate { STORED_HEAD } else { STORED_HEAD - 1 };
        let (envelope, body) = message.parts().split_at_checked(head).unwrap_or((message.parts(), &[]));
        let whole = !body.is_empty() && envelope.last().is_some_and(Bytes::is_empty);
        let id = if whole { self.asked_of(peer, message.topic()) } else { None };
        let Some(id) = id else { return Ok(None) };
        let answer = self.end(id, Ok(Message::from_parts(body.iter().cloned())));
        self.drain(turn);
        Ok(answer)
    }

    fn on_command<T: Turn<Event = Answer<K>>>(
        &mut self,
        peer: Peer,
        command: Command,
        turn: &mut T,
    ) -> Result<(), Misbehaved> {
        if let Command::Refusal(Refusal { reason, id }) = command
            && let Some(id) = self.asked_of(peer, &id)
            && let Some(answer) = self.end(id, Err(Unanswered::Refused(reason)))
        {
            turn.deliver(answer);
            self.drain(turn);
        }
        Ok(())
    }

    fn on_close<T: Turn<Event = Answer<K>>>(&mut self, turn: &mut T) {
        self.backlog = Backlog::new();
        while let Some((&id, _)) = self.pending.first_key_value() {
            if let Some(answer) = self.end(id, Err(Unanswered::Closed)) {
                turn.deliver(answer);
            }
        }
    }
}

/// A request as it came: what was asked, by whom, and the envelope its answer goes back in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Who asked.
    pub peer: Peer,
    /// What it asked.
    pub message: Message,
    /// Which request it is, as its requester says, if that keeps it until it is answered and speaks the extension.
    pub tag: Option<RequestTag>,
    whole: Message,
    envelope: usize,
}

impl Question {
    /// The parts up to and with the delimiter.
    pub fn envelope(&self) -> &[Bytes] {
        self.whole.parts().get(..self.envelope).unwrap_or_default()
    }
}

/// What an application asks of a replier.
#[derive(Debug)]
pub enum Reply<'a> {
    /// This answers the question.
    Answer {
        /// The question.
        question: &'a Question,
        /// The answer.
        body: Body<'a>,
    },
    /// The question will not be answered: a Ropewalk peer is told so, any other sees its own timeout.
    Refuse {
        /// The question.
        question: &'a Question,
        /// Why.
        reason: RefusalReason,
    },
}

impl Reply<'_> {
    fn peer(&self) -> Peer {
        match self {
            Self::Answer { question, .. } | Self::Refuse { question, .. } => question.peer,
        }
    }
}

/// The deciding half of a socket that replies. What a peer asked and what was answered to it dies with its link.
#[derive(Debug, Default)]
pub struct Rep {
    /// Linked peers that play REQ or DEALER, and whether they speak the extension.
    peers: BTreeMap<Peer, bool>,
    full: BTreeSet<Peer>,
}

impl Pattern for Rep {
    const ROLE: Role = Role::REP;
    type Verb<'a> = Reply<'a>;
    type Event = Question;

    fn accepts(role: &Role) -> bool {
        *role == Role::REQ || *role == Role::DEALER || role.is_unsaid()
    }

    /// A reply waits for its own requester only, a refusal for nobody.
    fn line(verb: &Reply<'_>) -> u64 {
        match verb {
            Reply::Answer { question, .. } => question.peer.number(),
            Reply::Refuse { .. } => u64::MAX,
        }
    }

    fn on_join<T: Turn<Event = Question>>(&mut self, peer: Peer, ready: &Ready, _: &mut T) {
        self.peers.insert(peer, ready.hello.is_some());
    }

    fn on_leave<T: Turn<Event = Question>>(&mut self, peer: Peer, unsent: Vec<Message>, turn: &mut T) {
        self.peers.remove(&peer);
        self.full.remove(&peer);
        turn.lose(unsent.len() as u64);
        turn.ready();
    }

    fn on_verb<'a, T: Turn<Event = Question>>(
        &mut self,
        verb: Self::Verb<'a>,
        turn: &mut T,
    ) -> Result<(), (Self::Verb<'a>, Why)> {
        let peer = verb.peer();
        let Some(&speaks_extension) = self.peers.get(&peer) else { return Err((verb, Why::Gone)) };
        let (question, body) = match verb {
            Reply::Answer { question, body } => (question, body),
            Reply::Refuse { question, reason } => {
                if speaks_extension {
                    let id = question.envelope().first().cloned().unwrap_or_default();
                    turn.tell(peer, Command::Refusal(Refusal { reason, id }));
                }
                return Ok(());
            }
        };
        let message = Outgoing { head: Head::Envelope(question.envelope()), body };
        let why = match turn.room(peer, &message) {
            Room::Fits => {
                turn.send(peer, &message);
                return Ok(());
            }
            Room::Full | Room::TooLittle | Room::Spent => {
                self.full.insert(peer);
                Why::Full
            }
            Room::Never => Why::TooLarge,
            Room::Gone => Why::Gone,
        };
        Err((Reply::Answer { question, body: message.body }, why))
    }

    fn on_room<T: Turn<Event = Question>>(&mut self, peer: Peer, turn: &mut T) {
        if self.full.remove(&peer) {
            turn.ready();
        }
    }

    /// Without a delimiter, or with nothing behind it, there is nothing to answer.
    fn on_message<T: Turn<Event = Question>>(
        &mut self,
        peer: Peer,
        message: Message,
        turn: &mut T,
    ) -> Result<Option<Question>, Misbehaved> {
        let delimiter = message.parts().iter().position(Bytes::is_empty);
        let Some(envelope) = delimiter.map(|index| index + 1) else { return Ok(None) };
        let Some(&speaks_extension) = self.peers.get(&peer) else { return Ok(None) };
        if envelope >= message.len() {
            return Ok(None);
        }
        let body = Message::from_parts(message.parts().iter().skip(envelope).cloned());
        if !turn.may(peer, Action::Request(&body), message.topic()) {
            return Ok(None);
        }
        // An envelope of more parts has come through others.
        let tag = if speaks_extension && envelope == STORED_HEAD { RequestTag::of_part(message.topic()) } else { None };
        Ok(Some(Question { peer, message: body, tag, whole: message, envelope }))
    }
}
