//! What happens to a socket, told as it happens.

use std::{
    collections::VecDeque,
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use ropewalk_patterns::{Misbehaved, Role, delivery::Why};

use crate::identity::PeerId;

/// Something happened to a socket.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// It listens.
    Listening {
        /// Where, with the real port.
        address: String,
    },
    /// It no longer listens.
    StoppedListening {
        /// Where.
        address: String,
    },
    /// A dial failed; the next follows.
    DialFailed {
        /// What was dialled.
        address: String,
        /// Why.
        error: Arc<io::Error>,
        /// How long until the next.
        retry_in: Duration,
    },
    /// An accept failed; the listener goes on.
    AcceptFailed {
        /// Where.
        address: String,
        /// Why.
        error: Arc<io::Error>,
    },
    /// A connection did not become a link.
    HandshakeFailed {
        /// The other end.
        address: String,
        /// Why.
        reason: DownReason,
    },
    /// A peer is linked.
    PeerUp {
        /// Who.
        peer: PeerInfo,
    },
    /// A peer is gone.
    PeerDown {
        /// Who.
        peer: PeerInfo,
        /// Why.
        reason: DownReason,
        /// Messages written to it of which nothing says that they arrived.
        in_doubt: u64,
    },
    /// A peer did not keep up, or does not accept messages of that size, and messages for it were dropped. Told at the
    /// first, and with the number of the others once the peer has room again or is gone.
    Dropped {
        /// Who.
        peer: PeerInfo,
        /// How many.
        messages: u64,
    },
    /// A peer wanted something that [`authorize`](crate::Builder::authorize) says no to, and was told so. One that does
    /// not speak Ropewalk's extension cannot be told, and its link is closed.
    Denied {
        /// Who.
        peer: PeerInfo,
        /// What it wanted.
        denial: Denial,
        /// How many of its wishes were denied so far. Told of the first 16, then when their number has doubled.
        times: u64,
    },
    /// A peer does not let us do what we asked of it.
    DeniedBy {
        /// Who.
        peer: PeerInfo,
        /// What.
        denial: Denial,
        /// How many wishes it has denied so far. Told of the first 16, then when their number has doubled.
        times: u64,
    },
    /// Accepted messages went nowhere: they were for a peer that is gone, no peer accepts them, or they are not in the
    /// socket's directory any more, because they had to make room or the disk has lost them.
    Lost {
        /// How many.
        messages: u64,
    },
    /// A message is given to nobody any more. Where there is a directory it is kept there, with the dead letters; else it
    /// is lost, and counts as such.
    DeadLetter {
        /// Its number among the dead letters, where there is a directory: by that it is sent again, or purged.
        number: Option<u64>,
        /// The message's number in the stream of this socket.
        seq: u64,
        /// How often it was delivered.
        attempts: u32,
        /// Why.
        reason: DeadReason,
    },
    /// A message that is given to nobody any more cannot be put to the dead letters: there is no room
    /// ([purge](crate::delivery::DeadLetters::purge) some), or the disk fails. It is tried again each second.
    #[cfg(feature = "spool")]
    DeadLetterNotKept {
        /// Its number in the stream of this socket.
        seq: u64,
        /// Why.
        error: String,
    },
    /// The socket's directory has failed: nothing is accepted, and nothing that waits there goes out, until it is opened
    /// again.
    #[cfg(feature = "spool")]
    SpoolFailed {
        /// Why.
        error: String,
    },
    /// Nothing can be kept for a subscriber of this name: there are too many names, or the disk cannot be read. Its link is
    /// closed.
    #[cfg(feature = "spool")]
    SubscriberNotKept {
        /// Its name.
        name: String,
        /// Why.
        error: String,
    },
    /// This subscriber has a [name](crate::Builder::name), or [asked](crate::Builder::replay) for what was kept, and this
    /// publisher keeps nothing: it was given no directory, or speaks plain ZeroMQ. What it publishes while this subscriber
    /// is away never comes.
    KeepsNothing {
        /// Which.
        peer: PeerInfo,
    },
    /// What the disk had confirmed is not there any more, and what is lost with it. Of what was sent, [`Lost`](Self::Lost)
    /// says how many had not been confirmed yet; named subscribers hear it as a gap.
    #[cfg(feature = "spool")]
    SpoolDamaged {
        /// Where, and which messages.
        damage: crate::spool::Damage,
    },
    /// The disk cannot be read; it is tried again.
    #[cfg(feature = "spool")]
    SpoolUnreadable {
        /// Why.
        error: Arc<io::Error>,
    },
    /// What the application is done with cannot be written down any more: nothing is handed out until the socket is made
    /// anew.
    InboxFailed {
        /// Why.
        error: String,
    },
    /// The directory was copied: a receiver knows of messages of this stream that it does not have. From now on this
    /// socket's stream has another name.
    SpoolForked,
    /// This reader of events was too slow; so many are missing here.
    Missed {
        /// How many.
        events: u64,
    },
}

impl Event {
    /// Whether messages are lost with it, or will be, or the socket's directory is not as it should be: somebody should
    /// look.
    pub fn is_loss(&self) -> bool {
        #[cfg(feature = "spool")]
        if let Self::DeadLetterNotKept { .. }
        | Self::SpoolFailed { .. }
        | Self::SpoolDamaged { .. }
        | Self::SpoolUnreadable { .. }
        | Self::SubscriberNotKept { .. } = self
        {
            return true;
        }
        matches!(self, Self::Lost { .. } | Self::InboxFailed { .. } | Self::SpoolForked | Self::KeepsNothing { .. })
    }

    fn is_the_same_publisher(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::KeepsNothing { peer }, Self::KeepsNothing { peer: other }) => {
                (&peer.endpoint, peer.id) == (&other.endpoint, other.id)
            }
            _ => false,
        }
    }
}

/// Why a message is given to nobody any more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeadReason {
    /// It was delivered as often as it may be.
    Attempts,
    /// A receiver rejected it, with these words.
    Rejected(String),
    /// All receivers refuse messages of its size.
    TooLarge,
}

impl From<&Why> for DeadReason {
    fn from(why: &Why) -> Self {
        match why {
            Why::Rejected(reason) => Self::Rejected(String::from_utf8_lossy(reason).into_owned()),
            Why::TooLarge => Self::TooLarge,
            _ => Self::Attempts,
        }
    }
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attempts => f.write_str("it was delivered as often as it may be"),
            Self::Rejected(reason) => write!(f, "it was rejected: {reason}"),
            Self::TooLarge => f.write_str("no receiver accepts a message of this size"),
        }
    }
}

/// What somebody was not let do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denial {
    /// To get messages whose topic begins so.
    Subscribe(Bytes),
    /// To get, and to settle, what is kept for a subscriber of this name. (The one who wanted it hears of a subscription.)
    Follow(Bytes),
    /// To give a message to the other's application, which does not get it.
    Publish,
    /// To be answered a request.
    Request,
}

/// Who is at the other end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerInfo {
    /// A number that no other peer of this socket has or had.
    pub number: u64,
    /// The endpoint the link belongs to: what was dialled, or where it was accepted.
    pub endpoint: String,
    /// The other end's address.
    pub address: String,
    /// What it plays.
    pub role: Role,
    /// Whether it speaks Ropewalk's extension.
    pub ropewalk: bool,
    /// Who it is, where the transport proves that.
    pub id: Option<PeerId>,
}

impl fmt::Display for PeerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.address)?;
        self.id.map_or(Ok(()), |id| write!(f, " ({id})"))
    }
}

/// Why a link ended or did not begin.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum DownReason {
    /// The peer closed in order.
    Goodbye,
    /// We closed.
    Closed,
    /// The stream ended without a goodbye.
    Ended,
    /// The connection failed.
    Io(Arc<io::Error>),
    /// Nothing came for too long.
    Dead {
        /// For how long.
        silent: Duration,
    },
    /// It broke the protocol.
    Misbehaved(Misbehaved),
    /// It did not keep up, and the overflow policy is to disconnect.
    TooSlow,
    /// Nobody waits for its answer any more, and without ids its answer could be taken for another's.
    Abandoned,
    /// The peer ended the connection in the handshake without a reason. libzmq does when the security mechanisms or the
    /// types of the sockets do not fit.
    HungUp,
    /// The handshake took too long.
    HandshakeTimeout,
    /// There were too many links in the handshake, and it was the oldest.
    TooManyHandshakes,
    /// As many peers as may be are linked.
    TooManyPeers,
    /// Another has linked under its name, and goes on in its place.
    Superseded,
    /// It cannot confirm what it gets, and this socket keeps its messages until they are confirmed.
    NotConfirming,
    /// [`authorize`](crate::Builder::authorize) says no to it.
    NotAuthorized,
    /// Its key is not among those that are allowed, or is no longer.
    NotAllowed {
        /// Who it is.
        id: PeerId,
    },
    /// The peer does not take our key: it is not among those that the peer allows, or not the one that it dialled.
    Denied,
    /// It has another key than the one that was dialled.
    OtherKey {
        /// Whose key it has.
        id: PeerId,
    },
    /// The two did not agree on a secure connection.
    Insecure(String),
    /// It does not take what we tell it: subscriptions or refusals waited for it beyond their bound.
    ControlOverflow,
    /// The pattern of this socket panicked. The panic itself has said where; the others go on.
    Panicked,
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goodbye => f.write_str("the peer closed"),
            Self::Closed => f.write_str("closed here"),
            Self::Ended => f.write_str("the connection ended without a goodbye"),
            Self::Io(error) => error.fmt(f),
            Self::Dead { silent } => write!(f, "nothing was heard for {:.1} s", silent.as_secs_f64()),
            Self::Misbehaved(misbehaved) => misbehaved.fmt(f),
            Self::TooSlow => f.write_str("the peer did not keep up"),
            Self::Abandoned => f.write_str("a request without an id was given up"),
            Self::HungUp => f.write_str(
                "the peer ended the connection in the handshake; perhaps the types of the sockets do not fit, or it \
                 wants another security mechanism",
            ),
            Self::HandshakeTimeout => f.write_str("the handshake took too long: nobody answers there, or not in time"),
            Self::TooManyHandshakes => f.write_str("too many links were in the handshake"),
            Self::TooManyPeers => f.write_str("too many peers are linked"),
            Self::Superseded => f.write_str("another subscriber has come under its name"),
            Self::NotConfirming => {
                f.write_str(
                "the peer is not Ropewalk and cannot confirm messages, which this socket keeps until they are confirmed; \
                 serve it by a socket without a directory",
            )
            }
            Self::NotAuthorized => f.write_str("it is not authorized"),
            Self::NotAllowed { id } => write!(f, "its key is not allowed here: {id}"),
            Self::Denied => f.write_str("the peer does not take our key: it does not allow it, or has dialled another"),
            Self::OtherKey { id } => write!(f, "the peer has another key than was dialled: {id}"),
            Self::Insecure(why) => write!(f, "no secure connection: {why}"),
            Self::ControlOverflow => f.write_str("the peer did not take what it was told"),
            Self::Panicked => f.write_str("the pattern of this socket panicked"),
        }
    }
}

impl DownReason {
    /// Whether one of both does not want the other: it would be the same if they linked again at once.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied | Self::Superseded | Self::Misbehaved(Misbehaved::Refused { .. }))
    }
}

impl From<Misbehaved> for DownReason {
    fn from(misbehaved: Misbehaved) -> Self {
        Self::Misbehaved(misbehaved)
    }
}

impl From<io::Error> for DownReason {
    fn from(error: io::Error) -> Self {
        #[cfg(feature = "secure")]
        if let Some(reason) = crate::transport::secure::reason_in(&error) {
            return reason;
        }
        Self::Io(Arc::new(error))
    }
}

/// The events of one socket from the moment this was made. A stream that ends when the socket has closed. The first that is
/// made begins with what had been [lost](Event::is_loss) before, up to 64 of these.
///
/// It keeps a bounded number of events (`event_capacity`); when they are not read the oldest go, and
/// [`Event::Missed`] says how many.
#[derive(Debug)]
pub struct Events {
    kept: Arc<Mutex<Kept>>,
}

impl Events {
    /// The next event; `None` when the socket has closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: an event is taken in the step that returns it.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut kept = lock(&self.kept);
        if kept.missed > 0 {
            let events = std::mem::take(&mut kept.missed);
            return Poll::Ready(Some(Event::Missed { events }));
        }
        if let Some(event) = kept.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if kept.closed {
            return Poll::Ready(None);
        }
        kept.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll(cx)
    }
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    missed: u64,
    waker: Option<Waker>,
    closed: bool,
}

/// So many losses are remembered for the first who reads events.
const EARLY: usize = 64;

/// Gives each event to everyone who reads them.
#[derive(Debug)]
pub(crate) struct EventLog {
    capacity: usize,
    readers: Mutex<Readers>,
}

#[derive(Debug, Default)]
struct Readers {
    all: Vec<Weak<Mutex<Kept>>>,
    /// Somebody has read events.
    any: bool,
    /// What was lost before: a socket looks into its directory before anybody can ask it for events.
    early: VecDeque<Event>,
    /// Nothing more will be told.
    closed: bool,
}

impl EventLog {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, readers: Mutex::default() }
    }

    pub(crate) fn subscribe(&self) -> Events {
        let mut readers = lock(&self.readers);
        let (events, closed) = (std::mem::take(&mut readers.early), readers.closed);
        let kept = Arc::new(Mutex::new(Kept { events, closed, ..Kept::default() }));
        readers.any = true;
        if readers.all.len() == readers.all.capacity() {
            readers.all.retain(|reader| reader.strong_count() > 0);
        }
        readers.all.push(Arc::downgrade(&kept));
        Events { kept }
    }

    pub(crate) fn tell(&self, event: Event) {
        tracing::debug!(?event, "socket event");
        if event.is_loss() {
            let mut readers = lock(&self.readers);
            if !readers.any && readers.early.len() < EARLY.min(self.capacity) {
                // It comes again with each link, and takes no other's place.
                if !readers.early.iter().any(|early| early.is_the_same_publisher(&event)) {
                    readers.early.push_back(event);
                }
                return;
            }
        }
        self.for_each(|kept| {
            if kept.events.len() == self.capacity {
                kept.events.pop_front();
                kept.missed += 1;
            }
            kept.events.push_back(event.clone());
        });
    }

    pub(crate) fn close(&self) {
        lock(&self.readers).closed = true;
        self.for_each(|kept| kept.closed = true);
    }

    fn for_each(&self, mut each: impl FnMut(&mut Kept)) {
        let mut wakers = Vec::new();
        lock(&self.readers).all.retain(|reader| {
            let Some(reader) = reader.upgrade() else { return false };
            let mut kept = lock(&reader);
            each(&mut kept);
            wakers.extend(kept.waker.take());
            true
        });
        wakers.into_iter().for_each(Waker::wake);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
