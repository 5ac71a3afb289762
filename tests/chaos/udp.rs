//! A bad network for datagrams: it loses, doubles, spoils and delays them, each by another time, so they overtake each
//! other.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::Notify,
    task::{JoinHandle, JoinSet},
};

use crate::common::Random;

/// What happens to datagrams, in per cent of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) spoilt: u64,
    /// Each takes so many milliseconds at most.
    pub(crate) delay: u64,
}

impl Faults {
    pub(crate) const NONE: Self = Self { lost: 0, doubled: 0, spoilt: 0, delay: 0 };
}

/// How many it happened to.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) passed: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) doubled: AtomicU64,
    pub(crate) spoilt: AtomicU64,
    /// What has come back to where the dialler is seen now.
    pub(crate) returned: AtomicU64,
    /// How often it has moved.
    pub(crate) moves: AtomicU64,
}

/// Stands before a listener. Its datagrams end when it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) counts: Arc<Counts>,
    move_on: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub(crate) async fn before(listener: SocketAddr, faults: Faults) -> Self {
        let front = local().await;
        let address = front.local_addr().expect("an address");
        let (counts, move_on) = (Arc::<Counts>::default(), Arc::<Notify>::default());
        let task = tokio::spawn(pass(front, listener, faults, Arc::clone(&counts), Arc::clone(&move_on)));
        Self { address, counts, move_on, task }
    }

    /// From now on the listener sees the dialler at another port, as behind a router that has forgotten it.
    pub(crate) fn move_on(&self) {
        self.move_on.notify_one();
    }
}

async fn local() -> Arc<UdpSocket> {
    Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a UDP socket"))
}

async fn pass(front: Arc<UdpSocket>, listener: SocketAddr, faults: Faults, counts: Arc<Counts>, move_on: Arc<Notify>) {
    let mut back = local().await;
    let mut dialler = None;
    let (mut out, mut home) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut flights = Flights { faults, counts, random: Random::new(1), all: JoinSet::new() };
    loop {
        // Datagrams to where nobody is come back as errors, which say nothing here.
        tokio::select! {
            came = front.recv_from(&mut out) => if let Ok((len, from)) = came {
                dialler = Some(from);
                flights.send(&back, listener, &out[..len]);
            },
            came = back.recv_from(&mut home) => if let (Ok((len, _)), Some(dialler)) = (came, dialler) {
                flights.counts.returned.fetch_add(1, Relaxed);
                flights.send(&front, dialler, &home[..len]);
            },
            () = move_on.notified() => {
                back = local().await;
                flights.counts.returned.store(0, Relaxed);
                flights.counts.moves.fetch_add(1, Relaxed);
            }
            Some(_) = flights.all.join_next() => {}
        }
    }
}

/// Datagrams that are under way.
struct Flights {
    faults: Faults,
    counts: Arc<Counts>,
    random: Random,
    all: JoinSet<()>,
}

impl Flights {
    fn send(&mut self, from: &Arc<UdpSocket>, to: SocketAddr, datagram: &[u8]) {
        let Faults { lost, doubled, spoilt, delay } = self.faults;
        // As in any router, there is room for so many.
        if self.random.below(100) < lost || self.all.len() > 2_000 {
            self.counts.lost.fetch_add(1, Relaxed);
            return;
        }
        let twice = self.random.below(100) < doubled;
        self.counts.doubled.fetch_add(u64::from(twice), Relaxed);
        for _ in 0..=u64::from(twice) {
            let mut datagram = datagram.to_vec();
            if self.random.below(100) < spoilt {
                let at = self.random.below(datagram.len() as u64) as usize;
                datagram[at] ^= 1 << self.random.below(8);
                self.counts.spoilt.fetch_add(1, Relaxed);
            }
            self.counts.passed.fetch_add(1, Relaxed);
            let (from, delay) = (Arc::clone(from), Duration::from_millis(self.random.below(delay + 1)));
            self.all.spawn(async move {
                tokio::time::sleep(delay).await;
                let _nobody_there = from.send_to(&datagram, to).await;
            });
        }
    }
}
