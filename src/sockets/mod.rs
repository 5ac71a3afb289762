//! What users hold, and what all of it shares.

#[cfg(feature = "spool")]
mod answers;
mod delivery;
#[cfg(feature = "spool")]
mod directory;
mod pub_sub;
mod push_pull;
mod req_rep;
#[cfg(feature = "spool")]
mod requests;
mod stream;

use std::{
    fmt,
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ropewalk_patterns::{
    Body, Message, Pattern, Why, pub_sub as rules_pub_sub, push_pull as rules_push_pull, zmtp::Limits,
};
use tokio::{runtime::Handle, sync::watch, time::Instant};

#[cfg(feature = "spool")]
pub use self::directory::Directory;
#[cfg(feature = "spool")]
pub(crate) use self::req_rep::{Asked, Requester};
pub use self::{
    pub_sub::Replay,
    req_rep::{Asker, Rep, Req, Request, RequestBuilder},
    stream::{Received, Sending},
};
use crate::{
    delivery::Kept,
    endpoint::{Endpoint, Handshakes},
    error::{BindError, Closed, ConnectError, NoSuchEndpoint, SubscribeError, TryRecvError},
    events::{Events, PeerInfo},
    hub::{Hub, Phase, Undone},
    options::{Builder, Made},
    stats::{CloseReport, Stats},
    transport::Address,
};

/// Gives each message to one of its peers, in turn. See [`Push::send`].
pub type Push = Socket<rules_push_pull::Push>;

/// Takes messages from all its peers, in turn. See [`Pull::recv`].
pub type Pull = Socket<rules_push_pull::Pull>;

/// Gives each message to every peer that subscribed to its topic. See [`Pub::publish`].
pub type Pub = Socket<rules_pub_sub::Pub>;

/// Takes the messages it subscribed to. See [`Sub::subscribe`].
pub type Sub = Socket<rules_pub_sub::Sub>;

/// A handle of a socket. Cheap to clone; all clones are the same socket, and all methods take `&self`.
///
/// The socket lives on the tokio runtime it was made on; its handles may be used from any. [`close`](Self::close) ends
/// it for all clones and tells what became of what was accepted. Dropping the last handle closes it in the background,
/// as long as the runtime lives.
pub struct Socket<P: Pattern> {
    inner: Arc<Inner<P>>,
}

struct Inner<P: Pattern> {
    hub: Arc<Hub<P>>,
    endpoints: Mutex<Vec<Endpoint>>,
    kept: Arc<Kept>,
    handshakes: Arc<Handshakes>,
    runtime: Handle,
    /// Why it does not listen or dial.
    refused: Option<SubscribeError>,
    /// What `close` found, once it is done.
    closed: watch::Sender<Option<CloseReport>>,
}

impl<P: Pattern> Socket<P> {
    /// A socket of your own pattern. It speaks to the application through [`verb`](Self::verb) and
    /// [`next`](Self::next).
    pub fn with_pattern(pattern: P) -> Builder<P> {
        Builder::new(|_| pattern)
    }

    pub(crate) fn start(builder: Builder<P>) -> Self {
        let Builder { options, make, .. } = builder;
        let Made { pattern, on_event, kept, begin, refused } = make(&options);
        let hub = Arc::new(Hub::new(options, pattern, on_event));
        if let Some(begin) = begin {
            begin(&hub, &kept);
        }
        if kept.receives.is_some() {
            hub.one_by_one();
        }
        let inner = Inner {
            hub,
            endpoints: Mutex::default(),
            kept: Arc::new(kept),
            handshakes: Arc::default(),
            runtime: Handle::current(),
            refused,
            closed: watch::Sender::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn hub(&self) -> &Hub<P> {
        &self.inner.hub
    }

    // ---- endpoints ------------------------------------------------------------------------------------------------

    /// Listens on one more address. Returns once it listens, with the real address: port 0 takes a free one.
    ///
    /// # Errors
    /// When it cannot listen there. The socket is as it was before.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the socket does not listen there.
    pub async fn bind_to(&self, address: impl AsRef<str>) -> Result<Address, BindError> {
        let asked = address.as_ref();
        let hub = &self.inner.hub;
        if hub.is_closed() {
            return Err(BindError::Closed);
        }
        if let Some(refused) = self.inner.refused {
            return Err(refused.into());
        }
        let address = Address::parse(asked, true, &hub.options)?;
        let mut binding = Box::pin(address.bind(&hub.options));
        let bound = poll_fn(|context| {
            // The listener lives on the socket's runtime; who asks may be on another, or on none.
            let _guard = self.inner.runtime.enter();
            binding.as_mut().poll(context)
        });
        let bound = bound.await?;
        let address = bound.address.clone();
        let endpoint =
            Endpoint::listen(&self.inner.runtime, hub.clone(), self.inner.handshakes.clone(), asked.into(), bound);
        if self.inner.add(endpoint) { Ok(address) } else { Err(BindError::Closed) }
    }

    /// Dials one more address in the background, again and again until there is a link, and again when that ends.
    ///
    /// It never waits for the peer; [`ready`](Self::ready) does.
    ///
    /// # Errors
    /// When the address is not one, or must not be dialled. The socket is as it was before.
    ///
    /// # Cancel safety
    /// There is nothing to cancel: it is done when first polled.
    pub async fn connect_to(&self, address: impl AsRef<str>) -> Result<(), ConnectError> {
        let asked = address.as_ref();
        let hub = &self.inner.hub;
        if hub.is_closed() {
            return Err(ConnectError::Closed);
        }
        if let Some(refused) = self.inner.refused {
            return Err(refused.into());
        }
        let address = Address::parse(asked, false, &hub.options)?;
        hub.dialled(true);
        let endpoint = Endpoint::dial(&self.inner.runtime, hub.clone(), asked.into(), address);
        if self.inner.add(endpoint) { Ok(()) } else { Err(ConnectError::Closed) }
    }

    /// Lets these peers link, too, from now on. Where anybody may, nothing changes.
    #[cfg(feature = "secure")]
    pub fn allow(&self, peers: impl IntoIterator<Item = crate::PeerId>) {
        self.hub().options.allowed.allow(peers);
    }

    /// Lets these peers link and no others, from now on. The links of all others that were accepted end at once; what
    /// they had not been sent goes to other peers, as when a peer is lost.
    #[cfg(feature = "secure")]
    pub fn allow_only(&self, peers: impl IntoIterator<Item = crate::PeerId>) {
        self.hub().options.allowed.only(peers);
        self.hub().end_the_unallowed();
    }

    /// No longer listens on this address, as it was given or as it is. The links accepted there end: what waits for
    /// them is written within the linger, or goes to other peers.
    ///
    /// # Errors
    /// When the socket does not listen there.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the endpoint still goes, in the background.
    pub async fn unbind(&self, address: impl AsRef<str>) -> Result<(), NoSuchEndpoint> {
        self.give_up(address.as_ref(), true).await
    }

    /// No longer dials this address. The link to it ends: what waits for it is written within the linger, or goes to
    /// other peers.
    ///
    /// # Errors
    /// When the socket does not dial it.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the endpoint still goes, in the background.
    pub async fn disconnect(&self, address: impl AsRef<str>) -> Result<(), NoSuchEndpoint> {
        self.give_up(address.as_ref(), false).await
    }

    async fn give_up(&self, address: &str, listens: bool) -> Result<(), NoSuchEndpoint> {
        let mut endpoint = {
            let mut endpoints = self.inner.endpoints();
            let found = endpoints.iter().position(|endpoint| {
                endpoint.listens == listens && (endpoint.asked == address || endpoint.address.to_string() == address)
            });
            let Some(index) = found else { return Err(NoSuchEndpoint { address: address.into() }) };
            endpoints.swap_remove(index)
        };
        if !listens {
            self.hub().dialled(false);
        }
        endpoint.give_up();
        let linger = self.hub().options.linger;
        let ended = self.inner.runtime.spawn(async move {
            if tokio::time::timeout(linger, endpoint.join()).await.is_err() {
                endpoint.abort().await;
            }
        });
        if let Err(error) = ended.await
            && error.is_panic()
        {
            tracing::error!("ending an endpoint panicked");
        }
        Ok(())
    }

    /// The first address that is listened on.
    pub fn address(&self) -> Option<Address> {
        self.inner.endpoints().iter().find(|endpoint| endpoint.listens).map(|endpoint| endpoint.address.clone())
    }

    /// All addresses that are listened on or dialled.
    pub fn endpoints(&self) -> Vec<Address> {
        self.inner.endpoints().iter().map(|endpoint| endpoint.address.clone()).collect()
    }

    /// Waits until at least one peer is linked.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: it only waits.
    pub async fn ready(&self) -> Result<(), Closed> {
        self.ready_with(1).await
    }

    /// Waits until so many peers are linked at once.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: it only waits.
    pub async fn ready_with(&self, peers: usize) -> Result<(), Closed> {
        self.hub().wait_until(|hub| hub.live_peers() >= peers).await
    }

    // ---- seeing what happens --------------------------------------------------------------------------------------

    /// What happens to the socket from now on. To miss nothing, `build` it, take its events, and let it listen or dial then:
    /// [`bind_to`](Self::bind_to), [`connect_to`](Self::connect_to).
    pub fn events(&self) -> Events {
        self.hub().log.subscribe()
    }

    /// What the socket has done and holds.
    pub fn stats(&self) -> Stats {
        self.hub().stats()
    }

    // ---- a pattern of your own ------------------------------------------------------------------------------------

    /// Asks the pattern for something, and waits as long as it says [`Why::Full`].
    ///
    /// # Errors
    /// The verb is given back undone.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is done, nothing was done. Those who wait are served in the order they came.
    pub async fn verb<'a>(&self, verb: P::Verb<'a>) -> Result<(), VerbError<P::Verb<'a>>> {
        self.hub().verb(verb).await.map_err(VerbError::from)
    }

    /// Asks the pattern for something now.
    ///
    /// # Errors
    /// The verb is given back undone.
    pub fn try_verb<'a>(&self, verb: P::Verb<'a>) -> Result<(), VerbError<P::Verb<'a>>> {
        self.hub().try_verb(verb).map_err(VerbError::from)
    }

    /// What the pattern hands out next.
    ///
    /// # Errors
    /// When the socket is closed.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped before it is ready, nothing was taken. Those who wait are served in the order they came.
    pub async fn next(&self) -> Result<P::Event, Closed> {
        self.hub().next().await.map_err(|_| Closed)
    }

    /// What the pattern hands out next, if it is there.
    ///
    /// # Errors
    /// When nothing is there, or the socket is closed.
    pub fn try_next(&self) -> Result<P::Event, TryRecvError> {
        match self.hub().try_next() {
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(TryRecvError::Empty),
            Err(_) => Err(TryRecvError::Closed),
        }
    }

    /// What the pattern hands out next, and whose it is, if it is there.
    fn try_next_from(&self) -> Result<(P::Event, Arc<PeerInfo>), TryRecvError> {
        match self.hub().try_next_from() {
            Ok(Some(next)) => Ok(next),
            Ok(None) => Err(TryRecvError::Empty),
            Err(_) => Err(TryRecvError::Closed),
        }
    }

    // ---- the end --------------------------------------------------------------------------------------------------

    /// Closes the socket for all its clones: nothing new is accepted, all who wait get `Closed`, and what was accepted
    /// goes out for at most the linger. Tells what became of everything the socket ever accepted. Called again, it
    /// waits for the same end.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the socket still closes, in the background.
    pub async fn close(&self) -> CloseReport {
        let mut closed = self.inner.closed.subscribe();
        if self.hub().begin_close() {
            let closing = Closing(Arc::clone(&self.inner));
            self.inner.runtime.spawn(async move {
                let endpoints = std::mem::take(&mut *closing.0.endpoints());
                close(&closing.0.hub, &closing.0.kept, endpoints).await;
            });
        }
        let report = closed.wait_for(Option::is_some).await;
        report.ok().and_then(|report| *report).unwrap_or_else(|| report_of(self.hub(), &self.inner.kept))
    }
}

/// Tells what became of everything when the socket has closed, or when its runtime ended before.
struct Closing<P: Pattern>(Arc<Inner<P>>);

impl<P: Pattern> Drop for Closing<P> {
    fn drop(&mut self) {
        let Inner { hub, kept, closed, .. } = &*self.0;
        hub.log.close();
        closed.send_replace(Some(report_of(hub, kept)));
    }
}

/// What became of everything. What is on disk is not lost.
fn report_of<P: Pattern>(hub: &Hub<P>, kept: &Kept) -> CloseReport {
    let mut report = hub.report();
    if let Some(keeper) = &kept.keeper {
        report.delivered = keeper.confirmed();
        report.dead = if keeper.is_on_disk() { keeper.dead() } else { 0 };
    }
    if let Some(spooled) = kept.spooled() {
        report.unsent = report.unsent.saturating_sub(hub.held().messages);
        report.spooled = spooled;
    }
    if kept.asks() {
        // Whatever became of them on their links, they are in the directory until they are answered.
        (report.in_doubt, report.unsent) = (0, 0);
    }
    report
}

async fn close<P: Pattern>(hub: &Hub<P>, kept: &Kept, endpoints: Vec<Endpoint>) -> CloseReport {
    let _in_time = tokio::time::timeout_at(deadline(hub.options.linger), hub.drained()).await;
    hub.enter(Phase::Ending);
    for mut endpoint in endpoints {
        endpoint.join().await;
    }
    kept.end().await;
    hub.log.close();
    report_of(hub, kept)
}

impl<P: Pattern> Inner<P> {
    fn endpoints(&self) -> std::sync::MutexGuard<'_, Vec<Endpoint>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an endpoint; false if the socket was closed meanwhile.
    fn add(&self, endpoint: Endpoint) -> bool {
        let mut endpoints = self.endpoints();
        if self.hub.is_closed() {
            endpoint.give_up();
            return false;
        }
        endpoints.push(endpoint);
        true
    }
}

impl<P: Pattern> Drop for Inner<P> {
    fn drop(&mut self) {
        if !self.hub.begin_close() {
            return;
        }
        let (hub, kept) = (Arc::clone(&self.hub), Arc::clone(&self.kept));
        let endpoints = std::mem::take(self.endpoints.get_mut().unwrap_or_else(PoisonError::into_inner));
        let unfinished = Unfinished(Some((Arc::clone(&self.hub), Arc::clone(&self.kept))));
        self.runtime.spawn(async move {
            let report = close(&hub, &kept, endpoints).await;
            unfinished.finish();
            if report.unsent > 0 || report.in_doubt > 0 {
                let CloseReport { unsent, in_doubt, .. } = report;
                tracing::warn!(role = %P::ROLE, unsent, in_doubt, "a dropped socket could not get rid of its messages");
            }
        });
    }
}

/// Warns when a socket's runtime ends before the socket has.
struct Unfinished<P: Pattern>(Option<(Arc<Hub<P>>, Arc<Kept>)>);

impl<P: Pattern> Unfinished<P> {
    fn finish(mut self) {
        self.0 = None;
    }
}

impl<P: Pattern> Drop for Unfinished<P> {
    fn drop(&mut self) {
        let Some((hub, kept)) = &self.0 else { return };
        let stats = hub.stats();
        let queued: u64 = stats.peers.iter().map(|peer| peer.queued.messages).sum();
        let unsent = queued + stats.unlinked.messages;
        if unsent > 0 && kept.spooled().is_none() {
            tracing::warn!(role = %P::ROLE, unsent, "the runtime of a dropped socket ended before its messages were sent");
        }
    }
}

impl<P: Pattern> Clone for Socket<P> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<P: Pattern> fmt::Debug for Socket<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("role", &P::ROLE).field("endpoints", &self.endpoints()).finish_non_exhaustive()
    }
}

/// A verb was not done. It is given back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerbError<V> {
    /// The pattern did not do it.
    Undone(V, Why),
    /// The socket is closed.
    Closed(V),
}

impl<V> From<(V, Undone)> for VerbError<V> {
    fn from((verb, undone): (V, Undone)) -> Self {
        match undone {
            Undone::Why(why) => Self::Undone(verb, why),
            Undone::Closed => Self::Closed(verb),
        }
    }
}

impl<V> fmt::Display for VerbError<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Undone(_, Why::Full) => "nobody has room now",
            Self::Undone(_, Why::TooLarge) => "it is larger than is accepted",
            Self::Undone(..) => "the peer is gone",
            Self::Closed(_) => "the socket is closed",
        })
    }
}

impl<V: fmt::Debug> std::error::Error for VerbError<V> {}

/// What a pattern puts before a message.
#[derive(Debug, Clone, Copy)]
struct Before {
    parts: usize,
    bytes: usize,
}

impl Before {
    const NONE: Self = Self { parts: 0, bytes: 0 };

    fn topic(topic: &[u8]) -> Self {
        Self { parts: 1, bytes: topic.len() }
    }
}

/// Whether a message keeps our own limits. Peers that do not say theirs are taken to have the same.
#[inline]
fn within(limits: &Limits, before: Before, body: &Body<'_>) -> bool {
    let (bytes, parts) = match body {
        Body::Slice(slice) => (slice.len() as u64, 1),
        Body::Message(message) => (message.bytes(), message.len()),
    };
    bytes.saturating_add(before.bytes as u64) <= limits.message && parts.saturating_add(before.parts) <= limits.parts
}

/// So long after that, or as long after as there are instants.
pub(crate) fn after(from: Instant, time: Duration) -> Instant {
    from.checked_add(time).unwrap_or(from + Duration::from_secs(86_400 * 365 * 30))
}

/// How long a `Duration` from now is, as an instant that exists.
pub(crate) fn deadline(timeout: Duration) -> Instant {
    after(Instant::now(), timeout)
}

/// What `Message` and everything it can be made of is sent as.
fn owned(body: Body<'_>) -> Message {
    body.into_message()
}
