//! The verbs of REQ and REP.

use std::{
    fmt,
    future::IntoFuture,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use ropewalk_patterns::{
    Body, Message, Pattern as _, Why,
    delivery::{MessageId, RequestTag},
    extension::RefusalReason,
    req_rep::{self, Answer, Ask, Question, Reply, Unanswered},
};
use tokio::{sync::oneshot, task::JoinSet, time::timeout_at};

use super::{Before, Socket, deadline, owned, within};
use crate::{
    delivery::Kept,
    error::{BindError, Closed, ConnectError, ReplyError, RequestError, TryRecvError},
    events::PeerInfo,
    hub::{Hub, OnEvent, Undone},
    options::{Builder, Made, Options},
    random,
};

/// What stands before a request: its number and an empty part.
const ENVELOPE: Before = Before { parts: 2, bytes: 4 };

/// Whom an answer is for.
#[derive(Debug)]
pub struct Asker(oneshot::Sender<Result<Message, Unanswered>>);

/// Asks one of its peers, in turn, and waits for the answer; any number at once. See [`Req::request`].
pub type Req = Socket<Requester>;

/// The deciding half of [`Req`].
pub(crate) type Requester = req_rep::Req<Asker>;

/// Answers its peers; any number at once, in any order. See [`Rep::recv`].
pub type Rep = Socket<req_rep::Rep>;

/// Numbers of requests; shared by all sockets, for they need only differ while they are outstanding. They begin anywhere:
/// a process that takes the place of another is not to take the other's late answers for its own.
static IDS: LazyLock<AtomicU32> = LazyLock::new(|| {
    #[allow(clippy::cast_possible_truncation, reason = "any 32 bits of it will do")]
    AtomicU32::new(random::number() as u32)
});

impl<D> Builder<Requester, D> {
    /// Whether requests carry an id, by which answers find them: yes. Without it one request at a time goes to each
    /// peer, and one that is given up closes the link, so that its answer is not taken for the next one's. For peers
    /// that do not send the id back; nor can a request that is kept say then which it is. It does not help against a libzmq
    /// ROUTER that has dialled us: that keeps its answers for the next link.
    pub fn correlate(mut self, correlate: bool) -> Self {
        self.options.correlate = correlate;
        self
    }

    /// How many requests may be without an answer at once: 256. Further ones wait. Of a socket with a directory so many that
    /// earlier lives have left besides; one that no peer answers keeps its place until it is
    /// [given up](Self::max_attempts), which may be hours.
    pub fn outstanding(mut self, requests: usize) -> Self {
        self.options.outstanding = requests.max(1);
        self
    }

    /// How long a request waits for its answer unless it says otherwise: 30 s. Of a socket with a directory it is also how long
    /// the first peer that is asked has for its answer; each time that is too little, the next has twice that, up to an hour.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// How often a request that timed out or whose peer was lost is asked again, unless it says otherwise: never,
    /// because what was lost may have been done.
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = retries;
        self
    }
}

/// Answers go to whoever waits for them.
pub(super) fn requesting(options: &Options, kept: Kept) -> Made<Requester> {
    // What was found in a directory and what comes are asked side by side.
    let sides = if kept.spooled().is_some() { 2 } else { 1 };
    let pattern = req_rep::Req::new(options.outstanding.saturating_mul(sides)).correlate(options.correlate);
    let answer: OnEvent<Requester> = Box::new(|Answer { asker: Asker(asker), result }| {
        // Who no longer waits needs no answer.
        let _unwanted = asker.send(result);
    });
    Made { on_event: Some(answer), kept, ..Made::from(pattern) }
}

impl Req {
    /// A socket that is not all defaults.
    pub fn builder() -> Builder<Requester> {
        Builder::new(|options| requesting(options, Kept::default()))
    }

    /// A socket that listens on this address.
    ///
    /// # Errors
    /// When it cannot listen there.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind(address: impl AsRef<str>) -> Result<Self, BindError> {
        Self::builder().bind(address).await
    }

    /// A socket that dials this address in the background, for ever.
    ///
    /// # Errors
    /// When the address is not one, or must not be dialled.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(address: impl AsRef<str>) -> Result<Self, ConnectError> {
        Self::builder().connect(address).await
    }

    /// Asks the next peer that has room, and waits for its answer. Any number of requests may be under way at once.
    ///
    /// ```no_run
    /// # async fn example(req: ropewalk::Req) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// let answer = req.request("how far?").await?;
    /// let answer = req.request("and now?").timeout(Duration::from_secs(1)).retries(3).await?;
    /// # Ok(()) }
    /// ```
    /// In `join!` and `select!`, which want a future and not what becomes one: `req.request(..).into_future()`.
    ///
    /// Of a socket with a [directory](Builder::spool) the request is written there first, and is asked again and again until
    /// it is answered, whoever crashes. It is settled when its answer is handed out; with
    /// [`answered`](RequestBuilder::answered) when the application says so. The [`timeout`](RequestBuilder::timeout) is how
    /// long this waits then, not how long the request is kept, and retries need not be asked for.
    ///
    /// # Errors
    /// When no answer came. Unless the error says otherwise, the peer may have done what it was asked to. Of a socket with a
    /// directory a request that has [no answer yet](RequestError::NotYet) is there, and one that found the socket
    /// [closed](RequestError::Closed) may be: they are asked on, see [`recover`](Self::recover), and not to be made again.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped, the request is forgotten, and its answer goes nowhere. If it was sent already, the peer may
    /// do what it was asked to. Of a socket with a directory it may have been accepted, and is asked all the same: its answer
    /// is for [`recover`](Self::recover).
    pub fn request<'a>(&'a self, message: impl Into<Body<'a>>) -> RequestBuilder<'a> {
        let options = &self.hub().options;
        RequestBuilder { socket: self, body: message.into(), timeout: options.timeout, retries: options.retries }
    }
}

/// A request that is being put together; awaiting it sends it.
#[must_use = "a request is sent when it is awaited"]
#[derive(Debug)]
pub struct RequestBuilder<'a> {
    pub(super) socket: &'a Req,
    pub(super) body: Body<'a>,
    pub(super) timeout: Duration,
    pub(super) retries: u32,
}

impl<'a> RequestBuilder<'a> {
    /// How long each try may take, waiting for room included; of a socket with a directory how long to wait in all.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How often to ask again when it timed out or the peer was lost. What is asked twice may be done twice. Of a socket with a
    /// directory [`max_attempts`](Builder::max_attempts) says that.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    pub(super) async fn ask(self) -> Result<Message, RequestError> {
        #[cfg(feature = "spool")]
        if self.socket.inner.kept.requests.is_some() {
            // In a box: else every request would carry the room that this takes.
            return Box::pin(self.ask_kept()).await?.take();
        }
        let Self { socket, body, timeout, retries } = self;
        if !within(&socket.hub().options.limits, ENVELOPE, &body) {
            return Err(RequestError::TooLarge(owned(body)));
        }
        if retries == 0 {
            return once(socket.hub(), body, timeout).await;
        }
        let (message, mut asked) = (owned(body), false);
        for _ in 0..retries {
            match once(socket.hub(), Body::from(&message), timeout).await {
                Err(RequestError::TimedOut | RequestError::PeerLost) => asked = true,
                Err(RequestError::NotAsked) => {}
                done => return done,
            }
        }
        match once(socket.hub(), message.into(), timeout).await {
            // Not this time.
            Err(RequestError::NotAsked) if asked => Err(RequestError::TimedOut),
            done => done,
        }
    }
}

impl<'a> IntoFuture for RequestBuilder<'a> {
    type Output = Result<Message, RequestError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.ask())
    }
}

/// Asks one peer, once.
async fn once(hub: &Hub<Requester>, body: Body<'_>, timeout: Duration) -> Result<Message, RequestError> {
    let deadline = deadline(timeout);
    let Ok(asked) = timeout_at(deadline, Asked::begin(hub, body, None)).await else {
        return Err(RequestError::NotAsked);
    };
    let mut asked = asked?;
    match timeout_at(deadline, asked.answer()).await {
        Ok(result) => result.map_err(RequestError::from),
        Err(_) if asked.forget() => Err(RequestError::NotAsked),
        Err(_) => Err(RequestError::TimedOut),
    }
}

/// A request that a peer is asked, or that waits for one. Dropped before it is answered, it is forgotten.
pub(crate) struct Asked<'h> {
    hub: &'h Hub<Requester>,
    id: u32,
    /// None once it has come.
    answer: Option<oneshot::Receiver<Result<Message, Unanswered>>>,
}

impl<'h> Asked<'h> {
    /// Gives it to a peer, or to the queue of an endpoint that is being dialled; waits for room.
    pub(crate) async fn begin(
        hub: &'h Hub<Requester>,
        body: Body<'_>,
        tag: Option<RequestTag>,
    ) -> Result<Self, RequestError> {
        let id = IDS.fetch_add(1, Relaxed);
        let (sender, answer) = oneshot::channel();
        let tag = tag.map(|tag| tag.part(id));
        match hub.verb(Ask::Request { id, asker: Asker(sender), tag: tag.as_ref(), body }).await {
            Ok(()) => Ok(Self { hub, id, answer: Some(answer) }),
            Err((Ask::Request { body, .. }, Undone::Why(_))) => Err(RequestError::TooLarge(owned(body))),
            Err(_) => Err(RequestError::Closed),
        }
    }

    /// Waits for its answer.
    pub(crate) async fn answer(&mut self) -> Result<Message, Unanswered> {
        let Some(answer) = &mut self.answer else { return Err(Unanswered::Closed) };
        let result = self.hub.attend(answer).await;
        self.answer = None;
        result.unwrap_or(Err(Unanswered::Closed))
    }

    /// Forgets it. Whether nobody was asked.
    fn forget(mut self) -> bool {
        self.answer = None;
        let id = self.id;
        self.hub.act(|pattern, core| {
            let waits = pattern.waits_for_a_peer(id);
            // A closed socket has forgotten everything already.
            let _closed = pattern.on_verb(Ask::Forget { id }, core);
            waits
        })
    }

    /// Whether nobody was asked yet.
    #[cfg(feature = "spool")]
    pub(crate) fn waits_for_a_peer(&self) -> bool {
        self.hub.ask(|pattern| pattern.waits_for_a_peer(self.id))
    }
}

impl From<Unanswered> for RequestError {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::PeerLost => Self::PeerLost,
            Unanswered::Refused(reason) => Self::Refused(reason),
            Unanswered::TooLarge => Self::Refused(RefusalReason::TooLarge),
            _ => Self::Closed,
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.answer.is_some() {
            // A closed socket has forgotten everything already.
            let _closed = self.hub.try_verb(Ask::Forget { id: self.id });
        }
    }
}

impl Rep {
    /// A socket that is not all defaults.
    pub fn builder() -> Builder<req_rep::Rep> {
        Builder::new(|_| req_rep::Rep::default())
    }

    /// A socket that listens on this address.
    ///
    /// # Errors
    /// When it cannot listen there.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind(address: impl AsRef<str>) -> Result<Self, BindError> {
        Self::builder().bind(address).await
    }

    /// A socket that dials this address in the background, for ever.
    ///
    /// # Errors
    /// When the address is not one, or must not be dialled.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(address: impl AsRef<str>) -> Result<Self, ConnectError> {
        Self::builder().connect(address).await
    }

    /// The next request: of each peer one in turn. Any number may be held at once and answered in any order.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is ready, no request was taken. Those who wait are served in the order they came.
    pub async fn recv(&self) -> Result<Request, Closed> {
        loop {
            let (question, peer) = self.hub().next_from().await.map_err(|_| Closed)?;
            if let Some(request) = self.new_request(question, peer) {
                return Ok(request);
            }
        }
    }

    /// The next request, if it is there and nobody waits for it.
    ///
    /// # Errors
    /// When nothing is there, or the socket is closed.
    pub fn try_recv(&self) -> Result<Request, TryRecvError> {
        loop {
            let (question, peer) = self.try_next_from()?;
            if let Some(request) = self.new_request(question, peer) {
                return Ok(request);
            }
        }
    }

    fn new_request(&self, question: Question, peer: Arc<PeerInfo>) -> Option<Request> {
        #[cfg(feature = "spool")]
        let question = self.come(question, &peer)?;
        Some(Request { socket: self.clone(), question, peer, answered: false })
    }

    /// Answers every request with what `answer` makes of it, many at once (at most `concurrent`), until the socket is
    /// closed. A request whose answer panics is refused, and the others go on; a panic of `answer` itself, before it
    /// has made a future, is the caller's and ends this.
    ///
    /// # Cancel safety
    /// Dropped, what is being answered is given up and refused.
    pub async fn serve<F, A, R>(&self, concurrent: usize, answer: F)
    where
        F: Fn(Message) -> A,
        A: Future<Output = R> + Send + 'static,
        R: Into<Message> + Send + 'static,
    {
        let mut answering = JoinSet::new();
        loop {
            let request = tokio::select! {
                request = self.recv(), if answering.len() < concurrent.max(1) => request,
                Some(ended) = answering.join_next(), if !answering.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!("the answer to a request panicked");
                    }
                    continue;
                }
            };
            let Ok(request) = request else { break };
            let made = answer(request.message().clone());
            answering.spawn(async move {
                if let Err(error) = request.reply(made.await.into()).await {
                    tracing::debug!(%error, "a reply was not accepted");
                }
            });
        }
        while answering.join_next().await.is_some() {}
    }
}

/// A request to be answered. Dropped without an answer it is refused: a Ropewalk requester is told so at once, any other
/// sees its own timeout.
pub struct Request {
    pub(super) socket: Rep,
    pub(super) question: Question,
    peer: Arc<PeerInfo>,
    pub(super) answered: bool,
}

impl Request {
    /// What was asked.
    pub fn message(&self) -> &Message {
        &self.question.message
    }

    /// Who asked. Where the transport proves that, [`id`](PeerInfo::id) says it; what stands in the envelope of a request
    /// proves nothing, and the answer goes back over the link that it came by, whatever stands there.
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    /// Which request it is, however often and of whomever it is asked, if its requester keeps it until it is answered. Kept
    /// with its answer, in one transaction with what the request does, it makes sure that that is done once: one that comes
    /// again is given the same answer.
    ///
    /// It is what the requester says, and proven by nothing: where requesters do not trust each other, keep it together with
    /// the key in [`peer`](Self::peer). A socket with a directory does so.
    pub fn id(&self) -> Option<MessageId> {
        self.question.tag.map(|tag| tag.id)
    }

    /// No request of the same stream with a smaller seq is asked any more: what is kept of them may go. Keep the highest floor
    /// of each stream instead: a request below it is an old copy of one that has its answer, and not to be done, nor
    /// answered. 0 if nothing is said of that. It is proven by nothing, as the [`id`](Self::id).
    pub fn floor(&self) -> u64 {
        self.question.tag.map_or(0, |tag| tag.floor)
    }

    /// Answers; waits while the requester has no room for it.
    ///
    /// `Ok` says that the answer is in the requester's queue. It dies with the link. Of a socket with a
    /// [directory](Builder::spool) it says of an answer to a request with an [`id`](Self::id) that it is there, as durable as
    /// the policy says: when the request comes again, it is given again.
    ///
    /// # Errors
    /// The answer is given back, and nobody got it. A directory may have it, and gives it when the request comes again.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the request is refused as if it had been dropped itself. If a directory has the answer
    /// already nobody is told, and it is given when the request comes again.
    pub async fn reply(mut self, message: impl Into<Body<'_>>) -> Result<(), ReplyError> {
        let body = message.into();
        let hub = self.socket.hub();
        let envelope = self.question.envelope();
        let before = Before { parts: envelope.len(), bytes: envelope.iter().map(|part| part.len()).sum() };
        let undone = if within(&hub.options.limits, before, &body) {
            #[cfg(feature = "spool")]
            if self.is_kept() {
                // In a box: else every reply would carry the room that this takes.
                return Box::pin(self.reply_kept(body)).await;
            }
            match hub.verb(Reply::Answer { question: &self.question, body }).await {
                Ok(()) => {
                    self.answered = true;
                    return Ok(());
                }
                Err(undone) => undone,
            }
        } else {
            (Reply::Answer { question: &self.question, body }, Undone::Why(Why::TooLarge))
        };
        let message = match undone.0 {
            Reply::Answer { body, .. } => owned(body),
            Reply::Refuse { .. } => Message::default(),
        };
        Err(match undone.1 {
            Undone::Closed => ReplyError::Closed(message),
            Undone::Why(Why::TooLarge) => {
                self.refuse(RefusalReason::TooLarge);
                ReplyError::TooLarge(message)
            }
            Undone::Why(_) => ReplyError::PeerLost(message),
        })
    }

    pub(super) fn refuse(&mut self, reason: RefusalReason) {
        if !std::mem::replace(&mut self.answered, true) {
            #[cfg(feature = "spool")]
            self.let_go(reason);
            // A requester that is gone, or a socket that is closed, has nobody to be told.
            let _gone = self.socket.hub().try_verb(Reply::Refuse { question: &self.question, reason });
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.refuse(RefusalReason::Dropped);
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("peer", self.peer()).field("message", self.message()).finish_non_exhaustive()
    }
}
