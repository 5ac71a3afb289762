//! Networks that lose, delay, spoil and cut what they carry: nothing is lost or doubled that must not be, order is kept,
//! and who is there is not taken for dead.

#![cfg(all(feature = "tcp", feature = "tls", feature = "quic"))]

#[path = "../common/mod.rs"]
mod common;
mod tcp;
mod udp;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use common::{Random, address_of, keyed, run, soon, until};
use ropewalk::{Event, Events, Message, Pull, Push, Rep, Req, Socket, patterns::Pattern};
use tcp::Fault;
use udp::Faults;

/// Where a socket listens, and its address as it is when somebody stands before it at another.
fn through<P: Pattern>(socket: &Socket<P>, proxy: SocketAddr) -> String {
    let address = address_of(socket);
    address.replace(&listens(socket).to_string(), &proxy.to_string())
}

fn listens<P: Pattern>(socket: &Socket<P>) -> SocketAddr {
    let address = address_of(socket);
    let at = address.rsplit_once(['@', '/']).expect("host and port").1;
    at.parse().expect("an IP address")
}

/// A message that nobody can mistake for another.
fn numbered(number: u64, most: u64) -> Message {
    let mut random = Random::new(number + 1);
    let body: Vec<u8> = (0..random.below(most + 1)).map(|_| random.next() as u8).collect();
    Message::from([number.to_be_bytes().to_vec(), body])
}

fn number(message: &Message) -> u64 {
    u64::from_be_bytes(message.topic().try_into().expect("a number"))
}

/// Sends messages and takes them at the other end. Each comes, once, in order, as it was.
async fn hand_over(push: &Push, pull: &Pull, messages: std::ops::Range<u64>, most: u64) {
    let sending = async {
        for next in messages.clone() {
            push.send(numbered(next, most)).await.unwrap();
        }
    };
    let taking = async {
        for wanted in messages.clone() {
            let got = soon(format!("message {wanted}"), pull.recv()).await.unwrap();
            assert!(
                got == numbered(wanted, most),
                "message {} of {} bytes came, not {wanted}",
                number(&got),
                got.bytes()
            );
        }
    };
    tokio::join!(sending, taking);
}

/// Nobody went down so far.
fn nobody_died(events: &mut Events) {
    while let Some(event) = futures::FutureExt::now_or_never(events.next()) {
        assert!(!matches!(event, Some(Event::PeerDown { .. }) | None), "{event:?}");
    }
}

/// Both ends ask often, and would soon take the other for dead.
fn beating<P: Pattern>(builder: ropewalk::Builder<P>) -> ropewalk::Builder<P> {
    keyed(builder).heartbeat(Duration::from_millis(200), Duration::from_secs(2))
}

// ---- datagrams ----------------------------------------------------------------------------------------------------

async fn over_a_bad_network(faults: Faults, messages: u64, most: u64) {
    let pull = beating(Pull::builder()).bind("quic://127.0.0.1:0").await.unwrap();
    let proxy = udp::Proxy::before(listens(&pull), faults).await;
    let push = beating(Push::builder()).connect(through(&pull, proxy.address)).await.unwrap();
    let mut events = [push.events(), pull.events()];
    hand_over(&push, &pull, 0..messages, most).await;
    events.iter_mut().for_each(nobody_died);
    let counts = &proxy.counts;
    for (percent, count) in
        [(faults.lost, &counts.lost), (faults.doubled, &counts.doubled), (faults.spoilt, &counts.spoilt)]
    {
        assert!((percent > 0) <= (count.load(Relaxed) > 0), "{faults:?} {counts:?}");
    }
    let rep = beating(Rep::builder()).bind("quic://127.0.0.1:0").await.unwrap();
    let proxy = udp::Proxy::before(listens(&rep), faults).await;
    let req = beating(Req::builder()).connect(through(&rep, proxy.address)).await.unwrap();
    let serving = tokio::spawn(async move { rep.serve(4, |question| async move { question }).await });
    for next in 0..messages / 20 {
        let question = numbered(next, most);
        assert!(soon("an answer", async { req.request(question.clone()).await }).await.unwrap() == question);
    }
    serving.abort();
}

#[test]
fn one_per_cent_is_lost() {
    run(over_a_bad_network(Faults { lost: 1, doubled: 1, spoilt: 1, delay: 2 }, 1_000, 8_000));
}

#[test]
fn five_per_cent_are_lost() {
    run(over_a_bad_network(Faults { lost: 5, doubled: 5, spoilt: 2, delay: 4 }, 400, 8_000));
}

#[test]
fn twenty_per_cent_are_lost() {
    run(over_a_bad_network(Faults { lost: 20, doubled: 5, spoilt: 5, delay: 4 }, 200, 3_000));
}

#[test]
fn all_are_late_and_overtake_each_other() {
    run(over_a_bad_network(Faults { lost: 0, doubled: 20, spoilt: 0, delay: 20 }, 300, 8_000));
}

/// A router forgets the dialler, or that changes from one network to another: the link goes on.
#[test]
fn a_link_goes_on_when_its_peer_moves() {
    run(async {
        let pull = beating(Pull::builder()).bind("quic://127.0.0.1:0").await.unwrap();
        let proxy = udp::Proxy::before(listens(&pull), Faults::NONE).await;
        let push = beating(Push::builder()).connect(through(&pull, proxy.address)).await.unwrap();
        let mut events = [push.events(), pull.events()];
        let moving = async {
            for moves in 1..=4 {
                // In the middle of the stream, and only when the last move is through.
                until("answers", || proxy.counts.returned.load(Relaxed) > 20).await;
                proxy.move_on();
                until("the move", || proxy.counts.moves.load(Relaxed) == moves).await;
            }
            until("answers to where it is now", || proxy.counts.returned.load(Relaxed) > 0).await;
            let next = NEXT.load(Relaxed);
            until("messages after the last move", || NEXT.load(Relaxed) > next + 100).await;
        };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let streaming = async {
            loop {
                let next = NEXT.load(Relaxed);
                hand_over(&push, &pull, next..next + 100, 8_000).await;
                NEXT.store(next + 100, Relaxed);
            }
        };
        tokio::select! { () = moving => {}, () = streaming => {} }
        events.iter_mut().for_each(nobody_died);
        assert_eq!((push.stats().peers.len(), pull.stats().peers.len()), (1, 1));
    });
}

// ---- streams ------------------------------------------------------------------------------------------------------

/// What a link has credit for.
const IN_FLIGHT: u64 = 20;

async fn pair(scheme: &str, fault: Fault) -> (Push, Pull, tcp::Proxy) {
    let pull = beating(Pull::builder()).recv_hwm(IN_FLIGHT).bind(format!("{scheme}://127.0.0.1:0")).await.unwrap();
    let proxy = tcp::Proxy::before(listens(&pull), fault).await;
    let quick = Duration::from_millis(5);
    let push = beating(Push::builder()).reconnect(quick, quick);
    let push = push.connect(through(&pull, proxy.address)).await.unwrap();
    (push, pull, proxy)
}

async fn nothing_is_lost(scheme: &str, fault: Fault, messages: u64) {
    let (push, pull, _proxy) = pair(scheme, fault).await;
    let mut events = [push.events(), pull.events()];
    hand_over(&push, &pull, 0..messages, 2_000).await;
    events.iter_mut().for_each(nobody_died);
}

#[test]
fn bytes_come_one_by_one() {
    run(async {
        for scheme in ["tcp", "tls"] {
            nothing_is_lost(scheme, Fault::Slices, 100).await;
        }
    });
}

#[test]
fn streams_stall_now_and_then() {
    run(async {
        for scheme in ["tcp", "tls"] {
            nothing_is_lost(scheme, Fault::Stalls(50), 1_000).await;
        }
    });
}

/// Without delivery, what was written to a link that dies is in doubt; everything else arrives, in order and once.
#[test]
fn streams_are_reset() {
    run(async {
        for scheme in ["tcp", "tls"] {
            let (push, pull, proxy) = pair(scheme, Fault::Resets(20)).await;
            let taken = Arc::new(AtomicU64::new(0));
            let taking = tokio::spawn({
                let (pull, taken) = (pull.clone(), Arc::clone(&taken));
                async move {
                    let mut got = Vec::new();
                    while let Ok(message) = pull.recv().await {
                        let number = number(&message);
                        assert!(message == numbered(number, 2_000), "it is not as it was sent");
                        got.push(number);
                        taken.fetch_add(1, Relaxed);
                    }
                    got
                }
            });
            let mut sent = 0;
            while proxy.resets.load(Relaxed) < 20 {
                soon("room", push.send(numbered(sent, 2_000))).await.unwrap();
                sent += 1;
            }
            // What arrived has been taken when the goodbye is answered, or is in the inbox.
            let report = push.close().await;
            until("all to be taken", || taken.load(Relaxed) == pull.stats().received).await;
            pull.close().await;
            let got = soon("the taker", taking).await.unwrap();
            assert!(got.is_sorted_by(|one, next| one < next), "in order, none twice");
            assert_eq!(report.unsent, 0);
            let lost = sent - got.len() as u64;
            assert!(lost <= report.in_doubt, "{lost} of {sent} lost, {report:?}");
            assert!(report.in_doubt <= 20 * IN_FLIGHT, "{report:?}: more than there was credit for");
        }
    });
}
