//! A bad network for streams: bytes come one by one, stop for a while, or end in a reset.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{JoinHandle, JoinSet},
};

use crate::common::Random;

/// What happens to streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Each byte goes by itself.
    Slices,
    /// Now and then nothing goes on for this many milliseconds at most.
    Stalls(u64),
    /// So many connections are reset, each after another number of bytes.
    Resets(u64),
}

/// Stands before a listener. Its streams end when it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) resets: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub(crate) async fn before(listener: SocketAddr, fault: Fault) -> Self {
        let front = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = front.local_addr().expect("an address");
        let resets = Arc::<AtomicU64>::default();
        let task = tokio::spawn(accept(front, listener, fault, Arc::clone(&resets)));
        Self { address, resets, task }
    }
}

async fn accept(front: TcpListener, listener: SocketAddr, fault: Fault, resets: Arc<AtomicU64>) {
    let mut streams = JoinSet::new();
    let mut random = Random::new(2);
    loop {
        let Ok((dialler, _)) = front.accept().await else { continue };
        let Ok(listener) = TcpStream::connect(listener).await else { continue };
        let fault = match fault {
            Fault::Resets(most) if resets.load(Relaxed) < most => Some(Fault::Resets(1 + random.below(100_000))),
            Fault::Resets(_) => None,
            other => Some(other),
        };
        let (resets, seeds) = (Arc::clone(&resets), [random.next(), random.next()]);
        streams.spawn(async move {
            for stream in [&dialler, &listener] {
                stream.set_nodelay(true).expect("nodelay");
                SockRef::from(stream).set_linger(fault.is_some().then_some(Duration::ZERO)).expect("linger");
            }
            let ((up, down), (back, forth)) = (dialler.into_split(), listener.into_split());
            tokio::select! {
                () = pass(up, forth, fault, seeds[0]) => {}
                () = pass(back, down, fault, seeds[1]) => {}
            }
            if matches!(fault, Some(Fault::Resets(_))) {
                resets.fetch_add(1, Relaxed);
            }
        });
    }
}

/// Passes bytes on until there are no more, or the fault says so.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, fault: Option<Fault>, seed: u64) {
    let (mut random, mut passed) = (Random::new(seed), 0);
    let mut bytes = vec![0; 4096];
    while let Ok(len @ 1..) = from.read(&mut bytes).await {
        let mut came = &bytes[..len];
        match fault {
            Some(Fault::Slices) => {
                for byte in came {
                    if to.write_all(std::slice::from_ref(byte)).await.is_err() {
                        return;
                    }
                }
                continue;
            }
            Some(Fault::Stalls(most)) if random.below(20) == 0 => {
                tokio::time::sleep(Duration::from_millis(random.below(most + 1))).await;
            }
            Some(Fault::Resets(after)) if passed + len as u64 >= after => came = &came[..(after - passed) as usize],
            _ => {}
        }
        passed += came.len() as u64;
        if to.write_all(came).await.is_err() || fault == Some(Fault::Resets(passed)) {
            return;
        }
    }
    let _closed = to.shutdown().await;
    // The other direction ends by itself.
    std::future::pending::<()>().await;
}
