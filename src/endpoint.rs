//! Keep listening; keep dialling. Each endpoint is one task that owns the tasks of its links.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use crate::{
    events::{DownReason, Event},
    hub::{Phase, Port},
    link::{self, Context, GivenUp, given_up_beyond, over},
    transport::{Address, Bound, Connected, Listener},
};

/// After an accept that failed (no more files, for one) the listener rests so long.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// An address that is listened on or dialled.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    /// What the user wrote; port 0 and names are not what [`address`](Self::address) says.
    pub(crate) asked: String,
    pub(crate) listens: bool,
    give_up: watch::Sender<GivenUp>,
    task: JoinHandle<()>,
}

impl Endpoint {
    pub(crate) fn listen(
        runtime: &Handle,
        port: Arc<dyn Port>,
        handshakes: Arc<Handshakes>,
        asked: String,
        bound: Bound,
    ) -> Self {
        let (give_up, given_up) = watch::channel(GivenUp::No);
        let Bound { address, listener } = bound;
        port.log().tell(Event::Listening { address: address.to_string() });
        let listening = Listening { port, endpoint: address.to_string(), given_up, handshakes, links: JoinSet::new() };
        let task = runtime.spawn(listening.run(listener));
        Self { address, asked, listens: true, give_up, task }
    }

    pub(crate) fn dial(runtime: &Handle, port: Arc<dyn Port>, asked: String, address: Address) -> Self {
        let (give_up, given_up) = watch::channel(GivenUp::No);
        let back_off = BackOff::new(port.options().reconnect);
        let dialling = Dialling { port, address: address.clone(), given_up, back_off, turn: 0 };
        let task = runtime.spawn(dialling.run());
        Self { address, asked, listens: false, give_up, task }
    }

    /// Says goodbye to the peers of this endpoint and takes no more.
    pub(crate) fn give_up(&self) {
        self.give_up.send_replace(GivenUp::Gently);
    }

    /// Ends its links now. What they had not written goes to other peers.
    pub(crate) async fn abort(&mut self) {
        self.give_up.send_replace(GivenUp::Now);
        self.join().await;
    }

    /// Waits for its task and all of its links.
    pub(crate) async fn join(&mut self) {
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            tracing::error!(address = %self.address, "the task of an endpoint panicked");
        }
    }
}

struct Listening {
    port: Arc<dyn Port>,
    endpoint: String,
    given_up: watch::Receiver<GivenUp>,
    handshakes: Arc<Handshakes>,
    links: JoinSet<()>,
}

impl Listening {
    async fn run(mut self, mut listener: Box<dyn Listener>) {
        let options = Arc::clone(self.port.options());
        let mut phase = self.port.watch_phase();
        let mut given_up = self.given_up.clone();
        let port = Arc::clone(&self.port);
        loop {
            tokio::select! {
                accepted = listener.accept(&options) => match accepted {
                    Ok(connected) => self.accept(connected),
                    Err(error) => self.rest(error).await,
                },
                Some(_) = self.links.join_next(), if !self.links.is_empty() => {}
                _ = given_up_beyond(&mut given_up, GivenUp::No) => break,
                // What waits for a peer may still find one here.
                () = over(&mut phase, &*port) => break,
            }
        }
        let freed = listener.stop();
        self.port.log().tell(Event::StoppedListening { address: self.endpoint.clone() });
        while self.links.join_next().await.is_some() {}
        freed.await;
    }

    fn accept(&mut self, connected: Connected) {
        let options = self.port.options();
        let evicted = Arc::<Notify>::default();
        let place = Handshakes::enter(
            &self.handshakes,
            connected.from,
            Arc::clone(&evicted),
            options.handshakes,
            options.handshakes_per_address,
        );
        let context = Context {
            port: Arc::clone(&self.port),
            endpoint: self.endpoint.clone(),
            accepted: true,
            given_up: self.given_up.clone(),
        };
        self.links.spawn(async move {
            // A failed handshake is told as an event.
            let _outcome = link::run(context, connected, evicted, place).await;
        });
    }

    async fn rest(&self, error: io::Error) {
        let address = self.endpoint.clone();
        let of_one_connection =
            matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
        self.port.log().tell(Event::AcceptFailed { address, error: Arc::new(error) });
        if !of_one_connection {
            tokio::time::sleep(ACCEPT_REST).await;
        }
    }
}

/// The accepted links of one socket whose handshake is not done, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    unfinished: Mutex<(u64, BTreeMap<u64, Unfinished>)>,
}

#[derive(Debug)]
struct Unfinished {
    from: Option<IpAddr>,
    evicted: Arc<Notify>,
}

/// A place among the unfinished; dropped when the handshake is done, or has failed and the peer knows why.
struct Place {
    of: Arc<Handshakes>,
    number: u64,
}

impl Handshakes {
    /// Takes a place; at a cap the oldest loses its own.
    fn enter(this: &Arc<Self>, from: Option<IpAddr>, evicted: Arc<Notify>, all: usize, per_address: usize) -> Place {
        let mut guard = this.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        let (numbers, unfinished) = &mut *guard;
        let of_address = unfinished.iter().filter(|(_, other)| from.is_some() && other.from == from);
        let oldest = if of_address.clone().count() >= per_address {
            of_address.map(|(number, _)| *number).next()
        } else if unfinished.len() >= all {
            unfinished.first_key_value().map(|(number, _)| *number)
        } else {
            None
        };
        if let Some(oldest) = oldest.and_then(|number| unfinished.remove(&number)) {
            oldest.evicted.notify_one();
        }
        *numbers += 1;
        let number = *numbers;
        unfinished.insert(number, Unfinished { from, evicted });
        Place { of: Arc::clone(this), number }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.unfinished.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.number);
    }
}

struct Dialling {
    port: Arc<dyn Port>,
    address: Address,
    given_up: watch::Receiver<GivenUp>,
    back_off: BackOff,
    /// Counts the attempts that came to no link.
    turn: usize,
}

impl Dialling {
    async fn run(mut self) {
        let options = Arc::clone(self.port.options());
        while !self.should_end() {
            let mut give_up = self.given_up.clone();
            let mut phase = self.port.watch_phase();
            let port = Arc::clone(&self.port);
            let ending = async {
                tokio::select! {
                    _ = given_up_beyond(&mut give_up, GivenUp::No) => {}
                    () = over(&mut phase, &*port) => {}
                }
            };
            tokio::pin!(ending);
            let dialled = tokio::select! {
                dialled = self.address.dial(&options, self.turn) => dialled,
                () = &mut ending => return,
            };
            let delay = match dialled {
                Ok(connected) => self.link(connected).await,
                Err(error) => {
                    let retry_in = self.back_off.delay();
                    let address = self.address.to_string();
                    self.port.log().tell(Event::DialFailed { address, error: Arc::new(error), retry_in });
                    retry_in
                }
            };
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = &mut ending => return,
            }
        }
    }

    /// Runs one link to its end; how long to wait before the next.
    async fn link(&mut self, connected: Connected) -> Duration {
        let context = Context {
            port: Arc::clone(&self.port),
            endpoint: self.address.to_string(),
            accepted: false,
            given_up: self.given_up.clone(),
        };
        let began = Instant::now();
        match link::run(context, connected, Arc::default(), ()).await {
            Ok(link::Ended(reason)) => self.back_off.after_link(&reason, began.elapsed()),
            Err(_) => self.turn = self.turn.wrapping_add(1),
        }
        self.back_off.delay()
    }

    fn should_end(&self) -> bool {
        let phase = *self.port.watch_phase().borrow();
        *self.given_up.borrow() > GivenUp::No
            || phase == Phase::Ending
            || (phase > Phase::Open && !self.port.wants_peers())
    }
}

/// How long to wait before what failed is tried again, as the next dial: at random up to the first delay, twice that after the next failure, and so on to
/// the longest: full jitter, so that a thousand peers of a restarted listener do not all come at once.
/// Source: M. Brooker, "Exponential Backoff And Jitter", 2015.
pub(crate) struct BackOff {
    first: Duration,
    longest: Duration,
    /// Dials in a row that did not lead to a link, or to none that lasted.
    failures: u32,
    random: RandomState,
}

impl BackOff {
    pub(crate) fn new((first, longest): (Duration, Duration)) -> Self {
        Self { first, longest, failures: 0, random: RandomState::new() }
    }

    /// A link has ended that had lasted so long.
    fn after_link(&mut self, reason: &DownReason, lasted: Duration) {
        // A peer may find out that it does not want us when we are linked already.
        if lasted >= self.longest || !reason.is_refusal() {
            self.failures = 0;
        }
    }

    /// No delay is longer than this now.
    fn most(&self) -> Duration {
        self.first.saturating_mul(1 << self.failures.min(20)).min(self.longest)
    }

    pub(crate) fn delay(&mut self) -> Duration {
        let most = u64::try_from(self.most().as_nanos()).unwrap_or(u64::MAX);
        self.failures = self.failures.saturating_add(1);
        let mut hasher = self.random.build_hasher();
        hasher.write_u32(self.failures);
        // The state is taken anew so that the same count of failures does not wait the same time again.
        self.random = RandomState::new();
        Duration::from_nanos(hasher.finish().checked_rem(most).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    /// The longest that each of so many delays may be, where links end for this reason, after so long.
    fn delays(reason: Option<&DownReason>, lasted: Duration) -> [u128; 8] {
        let mut back_off = BackOff::new((FIRST, LONGEST));
        std::array::from_fn(|_| {
            if let Some(reason) = reason {
                back_off.after_link(reason, lasted);
            }
            let most = back_off.most();
            assert!(back_off.delay() < most);
            most.as_millis()
        })
    }

    #[test]
    fn who_finds_nobody_or_is_refused_comes_more_and_more_rarely() {
        let rarely = [100, 200, 400, 800, 1600, 3200, 5000, 5000];
        assert_eq!(delays(None, Duration::ZERO), rarely);
        // Of two subscribers of one name each ends the link of the other.
        for reason in [DownReason::Superseded, DownReason::Denied] {
            assert_eq!(delays(Some(&reason), Duration::from_millis(1)), rarely, "{reason}");
            assert_eq!(delays(Some(&reason), LONGEST), [100; 8], "{reason}");
        }
        assert_eq!(delays(Some(&DownReason::Closed), Duration::from_millis(1)), [100; 8]);
    }

    #[test]
    fn no_delay_at_all_is_none() {
        assert_eq!(BackOff::new((Duration::ZERO, Duration::ZERO)).delay(), Duration::ZERO);
    }
}
