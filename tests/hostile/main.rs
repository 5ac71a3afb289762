//! Whatever bytes a peer sends: no panic, no growth past the limits, a clear word on each refusal, and the honest peer
//! beside it is not disturbed.

#[path = "../common/mod.rs"]
mod common;

mod floods;
mod lies;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use common::{LONG, address_of, soon};
use ropewalk::{Events, Pull, Push, Socket, patterns::Pattern};
use tokio::task::JoinHandle;

const ANYWHERE: &str = "tcp://127.0.0.1:0";

/// An honest peer that goes on sending to a listener while others do what they do, and at the end has lost nothing.
struct Honest {
    stop: Arc<AtomicBool>,
    sending: JoinHandle<u64>,
    taking: JoinHandle<u64>,
}

impl Honest {
    async fn beside(pull: &Pull) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let push = Push::builder().linger(LONG).connect(address_of(pull)).await.unwrap();
        soon("the honest peer", push.ready()).await.unwrap();
        let sending = tokio::spawn({
            let stop = Arc::clone(&stop);
            async move {
                let mut sent = 0;
                while !stop.load(Relaxed) {
                    push.send(sent.to_string()).await.unwrap();
                    sent += 1;
                    // At a pace at which the machine has time for the others.
                    tokio::time::sleep(std::time::Duration::from_micros(200)).await;
                }
                push.send("end").await.unwrap();
                let report = push.close().await;
                assert!(report.all_delivered() && report.delivered == sent + 1, "{report:?} of {sent}");
                sent
            }
        });
        let taking = tokio::spawn({
            let pull = pull.clone();
            async move {
                let mut next = 0;
                loop {
                    let message = pull.recv().await.unwrap();
                    if message == "end" {
                        return next;
                    }
                    // What a liar sent before it was caught is a message like any other.
                    if message == next.to_string().as_str() {
                        next += 1;
                    }
                }
            }
        });
        Self { stop, sending, taking }
    }

    async fn lost_nothing(self) {
        self.stop.store(true, Relaxed);
        let sent = soon("the honest sender", self.sending).await.unwrap();
        assert_eq!(soon("the honest messages", self.taking).await.unwrap(), sent);
    }
}

/// A listener, its events, and an honest peer.
async fn listener() -> (Pull, Events, Honest) {
    let pull = Pull::bind(ANYWHERE).await.unwrap();
    let honest = Honest::beside(&pull).await;
    let events = pull.events();
    (pull, events, honest)
}

/// Those that measure the memory of the process do it one at a time.
static MEASURING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Only the honest peer is linked, and nothing is held for anybody else.
async fn only_the_honest<P: Pattern>(socket: &Socket<P>) {
    common::until("only the honest peer to be linked", || socket.stats().peers.len() <= 1).await;
}
