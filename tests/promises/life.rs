//! Heartbeats, events, statistics, runtimes.

use std::time::{Duration, Instant};

use ropewalk::{
    DownReason, Event, Message, Misbehaved, Pull, Push, Rep, Req, Role, Socket,
    patterns::{
        Meets, Pattern, Peer, Turn, Why,
        zmtp::{Command, Ready, greeting},
    },
};
use tokio::runtime::Builder;

use crate::{
    common::{
        A_WHILE, LONG, Place, address_of, down, event, fill, keyed, numbers, one_thread,
        raw::{Came, Raw, hello},
        run, soon, stays, until,
    },
    over_every_transport,
};

over_every_transport! {
    idle_peers_are_not_declared_dead,
    a_receiver_that_takes_nothing_is_not_declared_dead,
    events_tell_the_life_of_a_link,
    unread_events_are_bounded,
    statistics_add_up,
    senders_and_receivers_on_different_runtimes,
    everything_works_on_one_thread,
    durations_without_end_are_durations,
    a_pattern_that_panics_ends_one_link,
}

const EVERY: Duration = Duration::from_millis(20);
const DEAD: Duration = Duration::from_millis(100);

async fn idle_peers_are_not_declared_dead(at: Place) {
    let (push, pull) = at
        .link(keyed(Push::builder()).heartbeat(EVERY, 3 * DEAD), keyed(Pull::builder()).heartbeat(EVERY, 3 * DEAD))
        .await;
    let mut events = push.events();
    let quiet = tokio::time::timeout(8 * DEAD, down(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    push.send("1").await.unwrap();
    assert_eq!(numbers(&pull, 1).await, [1]);
}

async fn a_receiver_that_takes_nothing_is_not_declared_dead(at: Place) {
    let push = keyed(Push::builder()).heartbeat(EVERY, 3 * DEAD).send_hwm(5);
    let (push, pull) = at.link(push, keyed(Pull::builder()).heartbeat(EVERY, 3 * DEAD).recv_hwm(5)).await;
    let (mut ours, mut theirs) = (push.events(), pull.events());
    let mut sent = 0;
    until("both marks to be reached", || {
        sent += fill(&push, 10_000);
        sent == 10
    })
    .await;
    let quiet = tokio::time::timeout(8 * DEAD, async { tokio::join!(down(&mut ours), down(&mut theirs)) }).await;
    assert!(quiet.is_err(), "{quiet:?}");
    for _ in 0..10 {
        soon("a message", pull.recv()).await.unwrap();
    }
}

/// Whether it says that it speaks the extension or not, a peer that answers nothing is dead after the time.
#[test]
fn a_peer_that_stops_answering_is_declared_dead_in_time() {
    run(async {
        for speaks in [None, hello(10, 10_000)] {
            let pull = keyed(Pull::builder()).heartbeat(EVERY, DEAD).bind("tcp://127.0.0.1:0").await.unwrap();
            let mut events = pull.events();
            let (mut raw, _) = Raw::link(&address_of(&pull), Role::PUSH, speaks).await;
            // As long as it answers it lives.
            let start = Instant::now();
            while start.elapsed() < 3 * DEAD {
                if let Came::Command(Command::Ping { context, .. }) = raw.next().await {
                    raw.tell(Command::Pong { context }).await;
                }
            }
            let stopped = Instant::now();
            let (reason, _) = down(&mut events).await;
            let DownReason::Dead { silent } = reason else { panic!("{reason}") };
            assert!(silent >= DEAD && stopped.elapsed() < 20 * DEAD, "silent for {silent:?}");
        }
    });
}

/// A dialled peer whose machine accepts and then says nothing: the handshake ends by itself, and is tried again.
#[test]
fn a_handshake_that_stalls_ends() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        let push = keyed(Push::builder()).handshake_timeout(EVERY).reconnect(Duration::ZERO, EVERY).build();
        let mut events = push.events();
        push.connect_to(&address).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut raw = Raw::accept(&listener).await;
            raw.write(&greeting()[..20]).await;
            held.push(raw);
            event(&mut events, "that a handshake failed", |event| match event {
                Event::HandshakeFailed { reason: DownReason::HandshakeTimeout, address: at } => {
                    (at == address).then_some(())
                }
                _ => None,
            })
            .await;
        }
    });
}

/// A raw peer counts what it takes; what it was sent and did not count is in doubt when it goes.
#[test]
fn what_is_not_known_to_have_arrived_is_in_doubt() {
    run(async {
        let push = keyed(Push::builder()).send_hwm(3).bind("tcp://127.0.0.1:0").await.unwrap();
        let mut events = push.events();
        let (mut raw, _) = Raw::link(&address_of(&push), Role::PULL, hello(5, 10_000)).await;
        soon("the peer", push.ready()).await.unwrap();
        assert_eq!(fill(&push, 1), 8);
        for _ in 0..5 {
            raw.message().await;
        }
        let credit = ropewalk::patterns::extension::Credit { taken: 2, messages: 5, bytes: 10_000 };
        raw.tell(Command::Credit(credit)).await;
        until("the word to arrive", || push.stats().peers[0].in_doubt == 3).await;
        drop(raw);
        let (reason, in_doubt) = down(&mut events).await;
        assert!(matches!(reason, DownReason::Ended | DownReason::Io(_)), "{reason}");
        assert_eq!(in_doubt, 3);
        // A peer that came and went is no reason to keep waiting.
        let report = soon("the end", Push::close(&push));
        let pull = keyed(Pull::builder()).connect(address_of(&push)).await.unwrap();
        let (report, rest) = tokio::join!(report, async {
            let mut rest = 0;
            while pull.stats().received < 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            while pull.try_recv().is_ok() {
                rest += 1;
            }
            rest
        });
        assert_eq!((report.delivered, report.in_doubt, report.unsent, rest), (2 + 3, 3, 0, 3));
    });
}

/// That it has sent its own is not enough: a peer of ours answers a goodbye.
#[test]
fn a_goodbye_that_is_not_answered_proves_nothing() {
    run(async {
        let push = keyed(Push::builder()).bind("tcp://127.0.0.1:0").await.unwrap();
        let (mut raw, _) = Raw::link(&address_of(&push), Role::PULL, hello(5, 10_000)).await;
        soon("the peer", push.ready()).await.unwrap();
        for number in 0..3 {
            push.send(number.to_string()).await.unwrap();
        }
        let report = tokio::spawn({
            let push = push.clone();
            async move { push.close().await }
        });
        while !matches!(soon("a goodbye", raw.next()).await, Came::Command(Command::Goodbye(_))) {}
        drop(raw);
        let report = soon("the end", report).await.unwrap();
        assert_eq!((report.delivered, report.in_doubt), (0, 3), "{report:?}");
    });
}

/// As libzmq does it: what is in the kernel counts as sent.
#[test]
fn what_a_plain_peer_sent_before_it_closed_is_received_however_slowly() {
    run(async {
        let pull = keyed(Pull::builder()).recv_hwm(10).bind("tcp://127.0.0.1:0").await.unwrap();
        let (mut raw, _) = Raw::link(&address_of(&pull), Role::PUSH, None).await;
        for number in 0..500 {
            raw.send(&[number.to_string().as_bytes()]).await;
        }
        until("the inbox to be full", || pull.stats().received >= 10).await;
        drop(raw);
        // What we say meanwhile finds nobody.
        for _ in 0..10 {
            stays("linked", || pull.stats().peers.len() == 1).await;
        }
        assert_eq!(numbers(&pull, 500).await, (0..500).collect::<Vec<_>>());
        until("it to be gone", || pull.stats().peers.is_empty()).await;
    });
}

async fn events_tell_the_life_of_a_link(at: Place) {
    let pull = keyed(Pull::builder()).build();
    let mut events = pull.events();
    let address = pull.bind_to(at.address()).await.unwrap().to_string();
    let listening = event(&mut events, "listening", |event| match event {
        Event::Listening { address } => Some(address),
        _ => None,
    });
    assert_eq!(listening.await, address);
    let push = keyed(Push::builder()).connect(&address).await.unwrap();
    let up = event(&mut events, "of a peer", |event| match event {
        Event::PeerUp { peer } => Some(peer),
        _ => None,
    })
    .await;
    assert_eq!((&up.endpoint, up.role.clone(), up.ropewalk), (&address, Role::PUSH, true));
    push.send("1").await.unwrap();
    assert_eq!(numbers(&pull, 1).await, [1]);
    push.close().await;
    let gone = event(&mut events, "that the peer is gone", |event| match event {
        Event::PeerDown { peer, reason, in_doubt } => Some((peer, reason, in_doubt)),
        _ => None,
    })
    .await;
    assert_eq!((gone.0, gone.2), (up, 0));
    assert!(matches!(gone.1, DownReason::Goodbye), "{}", gone.1);
    pull.close().await;
    let stopped = event(&mut events, "of the end", |event| match event {
        Event::StoppedListening { address } => Some(address),
        _ => None,
    });
    assert_eq!(stopped.await, address);
    assert!(soon("the end", events.next()).await.is_none());
}

async fn unread_events_are_bounded(at: Place) {
    let pull = keyed(Pull::builder()).event_capacity(4).bind(at.address()).await.unwrap();
    let mut events = pull.events();
    for _ in 0..10 {
        let push = keyed(Push::builder()).connect(address_of(&pull)).await.unwrap();
        soon("a link", push.ready()).await.unwrap();
        push.close().await;
    }
    until("all to be gone", || pull.stats().peers.is_empty()).await;
    pull.close().await;
    let Some(Event::Missed { events: missed }) = soon("an event", events.next()).await else { panic!("none missed") };
    let mut rest = 0;
    while soon("the rest", events.next()).await.is_some() {
        rest += 1;
    }
    assert_eq!((missed + rest, rest), (10 * 2 + 1, 4));
}

async fn statistics_add_up(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).send_hwm(10), keyed(Pull::builder()).recv_hwm(20)).await;
    let accepted = fill(&push, 36);
    assert_eq!(accepted, 30);
    until("all that may to be written", || pull.stats().received == 20).await;
    let (sender, receiver) = (push.stats(), pull.stats());
    assert_eq!((sender.peers.len(), receiver.peers.len()), (1, 1));
    let (to, from) = (&sender.peers[0], &receiver.peers[0]);
    assert_eq!((to.without_credit.messages, to.without_credit.bytes), (10, 1000));
    assert_eq!((from.inbox.messages, from.inbox.bytes, from.received), (20, 2000, 20));
    assert_eq!(to.credit.map(|credit| credit.messages), Some(0));
    assert_eq!((sender.dropped, sender.lost, sender.unlinked.messages, sender.send_queued), (0, 0, 0, 1000));
    assert!(receiver.recv_reserved >= 2000);
    for _ in 0..30 {
        soon("a message", pull.recv()).await.unwrap();
    }
    until("all to be written and known to be taken", || {
        let stats = push.stats();
        stats.sent == 30 && stats.send_queued == 0 && stats.peers[0].queued.is_zero()
    })
    .await;
    assert_eq!(pull.stats().peers[0].inbox.messages, 0);
    push.close().await;
    until("the link to be gone", || pull.stats().peers.is_empty()).await;
    assert_eq!((pull.stats().received, pull.stats().recv_reserved), (30, 0));
}

/// Sockets live on one runtime and are used from another, and from threads that have none.
async fn senders_and_receivers_on_different_runtimes(at: Place) {
    tokio::task::spawn_blocking(move || {
        let many = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (one, driver) = (one_thread(), one_thread());
        let pull = many.block_on(async { keyed(Pull::builder()).recv_hwm(10).bind(at.address()).await.unwrap() });
        let push =
            one.block_on(async { keyed(Push::builder()).send_hwm(10).connect(address_of(&pull)).await.unwrap() });
        // A runtime of one thread works only while somebody runs it.
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = std::thread::spawn(move || one.block_on(async { drop(stopped.await) }));
        let sending = std::thread::spawn(move || {
            futures::executor::block_on(async {
                for number in 0..2000u64 {
                    push.send(number.to_string()).await.unwrap();
                }
                push.close().await
            })
        });
        let got = driver.block_on(numbers(&pull, 2000));
        assert_eq!(got, (0..2000).collect::<Vec<_>>());
        assert!(sending.join().unwrap().all_delivered());
        stop.send(()).unwrap();
        running.join().unwrap();
        many.block_on(pull.close());
    })
    .await
    .unwrap();
}

async fn everything_works_on_one_thread(at: Place) {
    tokio::task::spawn_blocking(move || {
        one_thread().block_on(async {
            let (push, pull) = at.link(keyed(Push::builder()).send_hwm(10), keyed(Pull::builder()).recv_hwm(10)).await;
            let sending = async {
                for number in 0..1000u64 {
                    push.send(number.to_string()).await.unwrap();
                }
                push.close().await
            };
            let (report, got) = tokio::join!(sending, numbers(&pull, 1000));
            assert!(report.all_delivered());
            assert_eq!(got, (0..1000).collect::<Vec<_>>());
            let (req, rep) = at.link(keyed(Req::builder()), keyed(Rep::builder())).await;
            let serving = rep.serve(4, |message| async { message });
            let asking = async {
                for number in 0..100u64 {
                    let answer = req.request(number.to_string()).timeout(LONG).await.unwrap();
                    assert_eq!(answer, number.to_string().as_str());
                }
                rep.close().await;
            };
            soon("the requests", async { tokio::join!(serving, asking) }).await;
        });
    })
    .await
    .unwrap();
}

/// The runtime of a socket may end before its handles do; they say so instead of hanging.
#[test]
fn a_runtime_that_ends_leaves_nobody_hanging() {
    let other = one_thread();
    let pull = other.block_on(async { keyed(Pull::builder()).bind("tcp://127.0.0.1:0").await.unwrap() });
    let push = other.block_on(async { keyed(Push::builder()).connect(address_of(&pull)).await.unwrap() });
    drop(other);
    run(async move {
        assert!(tokio::time::timeout(A_WHILE, pull.recv()).await.is_err());
        push.try_send("never to be sent").unwrap();
        let report = soon("close", push.close()).await;
        assert_eq!((report.delivered, report.unsent), (0, 1));
        soon("close", pull.close()).await;
        assert_eq!(soon("recv", pull.recv()).await, Err(ropewalk::Closed));
    });
}

/// A peer that only read what was sent may die before its application has seen it.
#[test]
fn what_was_only_read_is_in_doubt() {
    run(async {
        let push = keyed(Push::builder()).heartbeat(EVERY, LONG).linger(EVERY).bind("tcp://127.0.0.1:0").await.unwrap();
        let mut events = push.events();
        let (mut raw, _) = Raw::link(&address_of(&push), Role::PULL, hello(100, 1 << 20)).await;
        soon("the link", push.ready()).await.unwrap();
        assert_eq!(fill(&push, 1).min(3), 3);
        let mut answered = 0;
        while answered < 2 {
            match soon("a PING", raw.next()).await {
                Came::Command(Command::Ping { context, .. }) => {
                    raw.tell(Command::Pong { context }).await;
                    answered += 1;
                }
                Came::End => panic!("the link ended"),
                Came::Message(_) | Came::Command(_) => {}
            }
        }
        let sent = push.stats().peers[0].sent;
        drop(raw);
        event(&mut events, "that messages are in doubt", |event| match event {
            Event::PeerDown { in_doubt, .. } => {
                assert_eq!(in_doubt, sent);
                Some(())
            }
            _ => None,
        })
        .await;
        assert_eq!((push.stats().in_doubt, push.close().await.delivered), (sent, 0));
    });
}

/// The peer may ask to be taken for dead sooner than we ask whether it is alive; it is asked all the same.
#[test]
fn nobody_is_taken_for_dead_who_was_not_asked() {
    run(async {
        let pull = keyed(Pull::builder()).heartbeat(10 * DEAD, LONG).bind("tcp://127.0.0.1:0").await.unwrap();
        let mut events = pull.events();
        let (mut raw, _) = Raw::link(&address_of(&pull), Role::PUSH, hello(100, 1 << 20)).await;
        raw.tell(Command::Ping { ttl: 3, context: Default::default() }).await;
        let mut asked = 0;
        while asked < 3 {
            match soon("a PING", raw.next()).await {
                Came::Command(Command::Ping { context, .. }) => {
                    asked += 1;
                    raw.tell(Command::Pong { context }).await;
                }
                Came::End => panic!("{:?}", down(&mut events).await),
                Came::Message(_) | Came::Command(_) => {}
            }
        }
    });
}

async fn durations_without_end_are_durations(at: Place) {
    let ever = Duration::MAX;
    let pull = keyed(Pull::builder()).heartbeat(ever, ever).linger(ever).handshake_timeout(ever);
    let pull = pull.reconnect(ever, ever).max_message(u64::MAX).bind(at.address()).await.unwrap();
    let push = keyed(Push::builder()).heartbeat(ever, ever).linger(ever).keepalive(Some(Duration::from_millis(1)));
    let push = push.handshake_timeout(ever).max_message(u64::MAX).connect(address_of(&pull)).await.unwrap();
    let large = Message::from_parts([vec![b'x'; 100_000], vec![b'y'; 100_000]].map(bytes::Bytes::from));
    push.send(large).await.unwrap();
    let report = tokio::spawn(async move { push.close().await });
    assert_eq!(soon("a message", pull.recv()).await.unwrap().bytes(), 200_000);
    assert!(soon("the report", report).await.unwrap().all_delivered());
    soon("the end", pull.close()).await;
}

/// Takes what is pushed, unless it is not as it should be.
struct Careless;

impl Pattern for Careless {
    const ROLE: Role = Role::PULL;
    const MEETS: Meets = Meets::AtArrival;
    type Verb<'a> = ();
    type Event = Message;

    fn accepts(role: &Role) -> bool {
        *role == Role::PUSH
    }

    fn on_join<T: Turn<Event = Message>>(&mut self, _: Peer, _: &Ready, _: &mut T) {}

    fn on_leave<T: Turn<Event = Message>>(&mut self, _: Peer, _: Vec<Message>, _: &mut T) {}

    fn on_verb<'a, T: Turn<Event = Message>>(
        &mut self,
        (): Self::Verb<'a>,
        _: &mut T,
    ) -> Result<(), (Self::Verb<'a>, Why)> {
        Ok(())
    }

    fn on_message<T: Turn<Event = Message>>(
        &mut self,
        _: Peer,
        message: Message,
        _: &mut T,
    ) -> Result<Option<Message>, Misbehaved> {
        assert_ne!(message, "wrong", "as this test wants it");
        Ok(Some(message))
    }
}

async fn a_pattern_that_panics_ends_one_link(at: Place) {
    let push = keyed(Push::builder()).bind(at.address()).await.unwrap();
    let careless = keyed(Socket::with_pattern(Careless)).reconnect(A_WHILE / 10, A_WHILE).build();
    let mut events = careless.events();
    careless.connect_to(address_of(&push)).await.unwrap();
    push.send("wrong").await.unwrap();
    assert!(matches!(down(&mut events).await.0, DownReason::Panicked));
    // It dials again.
    until("the next link", || careless.stats().peers.len() == 1 && push.stats().peers.len() == 1).await;
    push.send("right").await.unwrap();
    assert_eq!(soon("a message", careless.next()).await.unwrap(), "right");
    soon("the end", careless.close()).await;
}
