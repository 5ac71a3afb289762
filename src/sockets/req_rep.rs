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
    Body, Message, Why,
    delivery::{MessageId, RequestTag, TAGGED},
    extension::RefusalReason,
    req_rep::{self, Answer, Ask, Question, Reply, Unanswered},
};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{error::Elapsed, timeout_at},
};

use super::{Before, Socket, deadline, owned, within};
#[cfg(feature = "spool")]
use crate::{delivery::Answered, hub::Phase};
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

/// The same of one that says which it is.
#[cfg(feature = "spool")]
const TAGGED_ENVELOPE: Before = Before { parts: 2, bytes: TAGGED };

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
    /// that do not send the id back. It does not help against a libzmq ROUTER that has dialled us: that keeps its
    /// answers for the next link.
    pub fn correlate(mut self, correlate: bool) -> Self {
        self.options.correlate = correlate;
        self
    }

    /// How many requests may be without an answer at once: 256. Further ones wait.
    pub fn outstanding(mut self, requests: usize) -> Self {
        self.options.outstanding = requests.max(1);
        self
    }

    /// How long a request waits for its answer unless it says otherwise: 30 s. Of a socket with a directory it is also after
    /// how long without an answer a request is asked again.
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
    let pattern = req_rep::Req::new(options.outstanding).correlate(options.correlate);
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
    /// [`answered`](RequestBuilder::answered) when the application says so. Retries need not be asked for.
    ///
    /// # Errors
    /// When no answer came. Unless the error says otherwise, the peer may have done what it was asked to. Of a socket with a
    /// directory a request that [timed out](RequestError::TimedOut), or found the socket [closed](RequestError::Closed), may
    /// be in the directory, and then stays there: see [`recover`](Self::recover).
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped, the request is forgotten, and its answer goes nowhere. If it was sent already, the peer may
    /// do what it was asked to. Of a socket with a directory it may have been accepted, and is asked all the same: its answer
    /// is for [`recover`](Self::recover).
    pub fn request<'a>(&'a self, message: impl Into<Body<'a>>) -> RequestBuilder<'a> {
        let options = &self.hub().options;
        RequestBuilder { socket: self, body: message.into(), timeout: options.timeout, retries: options.retries }
    }

    /// The next answer that nobody waits for: of a request that an earlier life of the socket left in its
    /// [directory](Builder::spool), of one whose caller has gone or timed out, or an [`Answered`] that was dropped.
    ///
    /// So many answers as may be [outstanding](Builder::outstanding) are fetched before they are taken; what an earlier life
    /// left beyond that is not asked until they are, and of those whose callers have gone some are asked again after the
    /// next opening. A socket without a directory has none: this waits until it is closed.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is ready, no answer was taken.
    #[cfg(feature = "spool")]
    pub async fn recover(&self) -> Result<Answered, Closed> {
        if let Some(requests) = &self.inner.kept.requests {
            return requests.recover().await;
        }
        let mut phase = self.hub().watch_phase();
        // An error is the end, too.
        let _closed = phase.wait_for(|phase| *phase > Phase::Open).await;
        Err(Closed)
    }
}

/// A request that is being put together; awaiting it sends it.
#[must_use = "a request is sent when it is awaited"]
#[derive(Debug)]
pub struct RequestBuilder<'a> {
    socket: &'a Req,
    body: Body<'a>,
    timeout: Duration,
    retries: u32,
}

impl<'a> RequestBuilder<'a> {
    /// How long each try may take, waiting for room included.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How often to ask again when it timed out or the peer was lost. What is asked twice may be done twice.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Waits for the answer and gives it with what was asked, to be [acknowledged](Answered::ack) when the application is done
    /// with it: until then a socket with a directory keeps the request, and after a crash it is asked again.
    ///
    /// # Errors
    /// As of [`Req::request`].
    ///
    /// # Cancel safety
    /// As of [`Req::request`].
    #[cfg(feature = "spool")]
    pub async fn answered(self) -> Result<Answered, RequestError> {
        if self.socket.inner.kept.requests.is_some() {
            let answered = self.ask_kept().await?;
            // What is refused for good is done with.
            return if answered.answer().is_ok() { Ok(answered) } else { Err(answered.refused()) };
        }
        let Self { socket, body, timeout, retries } = self;
        let request = owned(body);
        let answer = RequestBuilder { socket, body: Body::from(&request), timeout, retries }.ask().await?;
        Ok(Answered::plain(request, answer))
    }

    /// Asks a request that is kept until it is answered.
    #[cfg(feature = "spool")]
    async fn ask_kept(self) -> Result<Answered, RequestError> {
        let Self { socket, body, timeout, .. } = self;
        let Some(requests) = &socket.inner.kept.requests else { return Err(RequestError::Closed) };
        if !within(&socket.hub().options.limits, TAGGED_ENVELOPE, &body) {
            return Err(RequestError::TooLarge(owned(body)));
        }
        timeout_at(deadline(timeout), requests.request(owned(body))).await.unwrap_or(Err(RequestError::TimedOut))
    }

    async fn ask(self) -> Result<Message, RequestError> {
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
            return ask_once(socket.hub(), body, None, timeout).await;
        }
        let message = owned(body);
        for _ in 0..retries {
            match ask_once(socket.hub(), Body::from(&message), None, timeout).await {
                Err(RequestError::TimedOut | RequestError::PeerLost) => {}
                done => return done,
            }
        }
        ask_once(socket.hub(), message.into(), None, timeout).await
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
pub(crate) async fn ask_once(
    hub: &Hub<Requester>,
    body: Body<'_>,
    tag: Option<RequestTag>,
    timeout: Duration,
) -> Result<Message, RequestError> {
    let deadline = deadline(timeout);
    let id = IDS.fetch_add(1, Relaxed);
    let tag = tag.map(|tag| tag.part(id));
    let (sender, answer) = oneshot::channel();
    let asked =
        timeout_at(deadline, hub.verb(Ask::Request { id, asker: Asker(sender), tag: tag.as_ref(), body })).await;
    match asked {
        Ok(Ok(())) => {}
        Ok(Err((Ask::Request { body, .. }, Undone::Why(_)))) => return Err(RequestError::TooLarge(owned(body))),
        Ok(Err(_)) => return Err(RequestError::Closed),
        Err(Elapsed { .. }) => return Err(RequestError::TimedOut),
    }
    let mut forget = Forget { hub, id, armed: true };
    let result = match timeout_at(deadline, hub.attend(answer)).await {
        Err(Elapsed { .. }) => return Err(RequestError::TimedOut),
        Ok(result) => result,
    };
    forget.armed = false;
    match result {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(Unanswered::PeerLost)) => Err(RequestError::PeerLost),
        Ok(Err(Unanswered::Refused(reason))) => Err(RequestError::Refused(reason)),
        Ok(Err(Unanswered::TooLarge)) => Err(RequestError::Refused(RefusalReason::TooLarge)),
        Ok(Err(_)) | Err(_) => Err(RequestError::Closed),
    }
}

/// Tells the pattern that nobody waits for an answer any more.
struct Forget<'h> {
    hub: &'h Hub<Requester>,
    id: u32,
    armed: bool,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if self.armed {
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
        let (question, peer) = self.hub().next_from().await.map_err(|_| Closed)?;
        Ok(Request { socket: self.clone(), question, peer, answered: false })
    }

    /// The next request, if it is there and nobody waits for it.
    ///
    /// # Errors
    /// When nothing is there, or the socket is closed.
    pub fn try_recv(&self) -> Result<Request, TryRecvError> {
        let (question, peer) = self.try_next_from()?;
        Ok(Request { socket: self.clone(), question, peer, answered: false })
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
    socket: Rep,
    question: Question,
    peer: Arc<PeerInfo>,
    answered: bool,
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

    /// Which request it is, however often and of whomever it is asked, if its requester keeps it until it is answered; what the
    /// requester says, proven by nothing. Kept in one transaction with what the request does and its answer, it makes sure
    /// that that is done once: one that comes again is given the same answer.
    pub fn id(&self) -> Option<MessageId> {
        self.question.tag.map(|tag| tag.id)
    }

    /// No request of the same stream with a smaller seq comes again: their identities and answers need not be kept any
    /// longer. 0 if nothing is said of that.
    pub fn floor(&self) -> u64 {
        self.question.tag.map_or(0, |tag| tag.floor)
    }

    /// Answers; waits while the requester has no room for it.
    ///
    /// `Ok` says that the answer is in the requester's queue. It dies with the link.
    ///
    /// # Errors
    /// The answer is given back, and nobody got it.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the request is refused as if it had been dropped itself.
    pub async fn reply(mut self, message: impl Into<Body<'_>>) -> Result<(), ReplyError> {
        let body = message.into();
        let hub = self.socket.hub();
        let envelope = self.question.envelope();
        let before = Before { parts: envelope.len(), bytes: envelope.iter().map(|part| part.len()).sum() };
        let undone = if within(&hub.options.limits, before, &body) {
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

    fn refuse(&mut self, reason: RefusalReason) {
        if !std::mem::replace(&mut self.answered, true) {
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
