//! Who may take part, and how fast.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt};
use ropewalk::{
    Action, DeliverError, Denial, DownReason, Event, Guarantee, Message, Pub, Pull, Push, Rep, Replay, Req, SendError,
    Sub, TryRecvError,
    patterns::{Role, Tally, extension::Hello},
    spool::{Durability, OpenError, SpoolOptions, WhenFull},
};
use tempfile::TempDir;

use crate::common::{Place, address_of, event, keyed, raw::Raw, run, soon, stays, until};

over_every_transport!(
    who_may_not_have_a_name_gets_nothing,
    what_may_not_be_pushed_is_a_dead_letter,
    a_rate_is_kept_and_the_rest_waits,
    a_sink_is_durable_at_flush,
    what_is_sent_together_is_durable_together,
    a_full_directory_makes_senders_wait,
    what_a_full_directory_drops_is_told,
    a_directory_that_was_copied_takes_another_name,
    a_copy_of_a_directory_that_is_open_stops_neither,
    a_publisher_that_keeps_nothing_is_named,
);

async fn who_may_not_have_a_name_gets_nothing(at: Place) {
    let (directory, strict) = (TempDir::new().unwrap(), Arc::new(AtomicBool::new(true)));
    let asks = Arc::clone(&strict);
    let publisher = keyed(Pub::builder())
        .authorize(move |_, action| !asks.load(Relaxed) || action != Action::Follow(b"billing"))
        .spool(directory.path(), Durability::Os);
    let publisher = publisher.bind(at.address()).await.unwrap();
    let mut events = publisher.events();
    let address = address_of(&publisher);
    let sub = keyed(Sub::builder()).name("billing").connect(&address).await.unwrap();
    sub.subscribe("").await.unwrap();
    let denied = event(&mut events, "a denial", |event| match event {
        Event::Denied { denial, .. } => Some(denial),
        _ => None,
    });
    assert_eq!(denied.await, Denial::Follow("billing".into()));
    publisher.publish("a", "1").await.unwrap();
    stays("without it", || sub.try_recv().is_err()).await;
    strict.store(false, Relaxed);
    sub.disconnect(&address).await.unwrap();
    sub.connect_to(&address).await.unwrap();
    until("its cursor", || publisher.spool_stats().unwrap().cursors.contains_key("billing")).await;
    publisher.publish("a", "2").await.unwrap();
    assert_eq!(soon("a message", sub.recv()).await.unwrap().payload(), b"2");
    sub.close().await;
    publisher.close().await;
}

async fn what_may_not_be_pushed_is_a_dead_letter(at: Place) {
    let directory = TempDir::new().unwrap();
    let pull = keyed(Pull::builder()).authorize(|_, action| match action {
        Action::Publish(message) => message.payload() != b"no",
        _ => true,
    });
    let pull = pull.bind(at.address()).await.unwrap();
    let push = keyed(Push::builder()).spool(directory.path(), Durability::Os).connect(address_of(&pull)).await.unwrap();
    push.send("no").await.unwrap();
    push.send("yes").await.unwrap();
    assert_eq!(soon("what may come", pull.recv()).await.unwrap(), "yes");
    let dead = push.dead_letters().unwrap();
    let letter = soon("the dead letter", async {
        loop {
            if let [letter] = &dead.list(0, 2).await.unwrap()[..] {
                return letter.clone();
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(letter.await.reason, "it was rejected: not authorized");
    let report = push.close().await;
    assert_eq!((report.delivered, report.dead, report.spooled), (1, 1, 0), "{report:?}");
    pull.close().await;
}

async fn a_rate_is_kept_and_the_rest_waits(at: Place) {
    let directory = TempDir::new().unwrap();
    let push = keyed(Push::builder()).spool(directory.path(), Durability::Os).bind(at.address()).await.unwrap();
    let pull = keyed(Pull::builder()).rate(100.0).connect(address_of(&push)).await.unwrap();
    for _ in 0..30 {
        push.send("job").await.unwrap();
    }
    soon("the first", pull.recv()).await.unwrap();
    let began = Instant::now();
    assert_eq!(pull.try_recv(), Err(TryRecvError::Empty), "it is not time yet");
    let mut stream = pull.stream();
    for number in 0..20 {
        match number % 3 {
            0 => drop(soon("a message", pull.recv()).await.unwrap()),
            1 => soon("a message", stream.next()).await.map(drop).unwrap(),
            _ => soon("a delivery", pull.recv_delivery()).await.unwrap().ack().await.unwrap(),
        }
    }
    // Up to 20 ms may be made up for after a delay.
    assert!(began.elapsed() >= Duration::from_millis(175), "{:?}", began.elapsed());
    drop(stream);
    until("nine to wait", || push.spool_stats().unwrap().cursors["push"].unsettled == 9).await;
    push.close().await;
    pull.close().await;
}

async fn a_sink_is_durable_at_flush(at: Place) {
    let directory = TempDir::new().unwrap();
    let builder = || keyed(Push::builder()).spool(directory.path(), Durability::Always).linger(Duration::ZERO);
    let push = builder().open().await.unwrap();
    let mut sink = push.sink();
    for number in 0..20 {
        sink.feed(number.to_string().into()).await.unwrap();
    }
    sink.flush().await.unwrap();
    assert_eq!(push.spool_stats().unwrap().durable, push.spool_stats().unwrap().seqs.end);
    drop(sink);
    assert_eq!(push.close().await.spooled, 20);
    let push = builder().bind(at.address()).await.unwrap();
    let pull = keyed(Pull::builder()).connect(address_of(&push)).await.unwrap();
    for number in 0..20 {
        assert_eq!(soon("a message", pull.recv()).await.unwrap(), &number.to_string()[..]);
    }
    push.close().await;
    pull.close().await;
}

async fn what_is_sent_together_is_durable_together(at: Place) {
    let directory = TempDir::new().unwrap();
    let push = keyed(Push::builder()).spool(directory.path(), Durability::Always).max_message(1000);
    let push = push.bind(at.address()).await.unwrap();
    let durable = || {
        let stats = push.spool_stats().unwrap();
        assert_eq!(stats.durable, stats.seqs.end);
        stats.seqs.end
    };
    let bytes = || push.spool_stats().unwrap().bytes;
    let empty = bytes();
    for number in 0..100 {
        push.send(format!("{number:05}")).await.unwrap();
    }
    let alone = bytes() - empty;
    assert_eq!(push.send_all((100..1000).map(|number| format!("{number:05}"))).await, Ok(900));
    assert_eq!(durable(), 1000);
    // A frame is for what is written together.
    assert!(bytes() - empty - alone < 9 * alone, "they are not written one by one");
    let large = || vec![b'x'; 1001];
    let mut messages = ["01000".into(), "01001".into(), large(), b"not sent".to_vec()].into_iter();
    assert_eq!(push.send_all(messages.by_ref()).await, Err(SendError::TooLarge(large().into())));
    assert_eq!((durable(), messages.next()), (1002, Some(b"not sent".to_vec())));
    assert_eq!(push.send_all::<Message>([]).await, Ok(0));
    let pull = keyed(Pull::builder()).connect(address_of(&push)).await.unwrap();
    for number in 0..1002 {
        assert_eq!(soon("a message", pull.recv()).await.unwrap(), &format!("{number:05}")[..]);
    }
    push.close().await;
    assert_eq!(push.send_all(["x", "y"]).await, Err(SendError::Closed("x".into())));
    pull.close().await;
}

/// On one thread: who sends many together, and has room for all of them, does not keep it to itself.
#[tokio::test]
async fn others_have_their_turn_while_many_are_sent_together() {
    let directory = TempDir::new().unwrap();
    let push = Push::builder().spool(directory.path(), Durability::Os).linger(Duration::ZERO);
    let push = push.bind("inproc://turns").await.unwrap();
    let turns = Arc::new(AtomicU64::new(0));
    let other = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                turns.fetch_add(1, Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    let mut seen = Vec::new();
    let numbers = (0..5000).map(|number| {
        seen.push(turns.load(Relaxed));
        format!("{number}")
    });
    assert_eq!(push.send_all(numbers).await, Ok(5000));
    assert!(seen[4999] >= seen[0] + 5, "{} to {}", seen[0], seen[4999]);
    other.abort();
    push.close().await;
}

async fn a_full_directory_makes_senders_wait(at: Place) {
    let directory = TempDir::new().unwrap();
    let options = SpoolOptions::new(Durability::Os).segment(8 << 10).quota(32 << 10);
    let push = keyed(Push::builder()).spool(directory.path(), options).bind(at.address()).await.unwrap();
    let sends = tokio::spawn({
        let push = push.clone();
        async move {
            for number in 0..50_u64 {
                push.send(format!("{number:01000}")).await.unwrap();
            }
            push.send_all((50..100_u64).map(|number| format!("{number:01000}"))).await.unwrap();
        }
    });
    until("some to be accepted", || push.spool_stats().unwrap().seqs.end >= 5).await;
    stays("waiting", || !sends.is_finished()).await;
    let pull = keyed(Pull::builder()).connect(address_of(&push)).await.unwrap();
    for number in 0..100_u64 {
        assert_eq!(soon("a message", pull.recv()).await.unwrap().text().unwrap().parse(), Ok(number));
    }
    soon("all to be sent", sends).await.unwrap();
    assert!(push.close().await.all_delivered());
    pull.close().await;
}

async fn what_a_full_directory_drops_is_told(at: Place) {
    let directory = TempDir::new().unwrap();
    let options = SpoolOptions::new(Durability::Os).segment(8 << 10).quota(32 << 10).tail(4 << 10);
    let options = options.when_full(WhenFull::DropOldest);
    let builder = || keyed(Push::builder()).send_hwm(2).spool(directory.path(), options.clone());
    let push = builder().linger(Duration::ZERO).bind(at.address()).await.unwrap();
    push.send_all((0..2).map(|number| format!("{number:01000}"))).await.unwrap();
    until("both to be read", || push.stats().unlinked.messages == 2).await;
    let waits = tokio::spawn({
        let push = push.clone();
        async move { push.deliver("not yet read").await }
    });
    until("it to be accepted", || push.spool_stats().unwrap().seqs.end == 3).await;
    push.send_all((3..100_u64).map(|number| format!("{number:01000}"))).await.unwrap();
    let mut events = push.events();
    let pull = keyed(Pull::builder()).connect(address_of(&push)).await.unwrap();
    assert!(matches!(soon("its fate", waits).await.unwrap(), Err(DeliverError::Dropped)));
    let lost = event(&mut events, "the loss", |event| match event {
        Event::Lost { messages } => Some(messages),
        _ => None,
    });
    let lost = lost.await;
    let mut came = 0;
    while soon("the next", pull.recv()).await.unwrap().text().unwrap().parse::<u64>().unwrap() < 99 {
        came += 1;
    }
    assert_eq!(came + 1 + lost, 100, "{lost} lost");
    pull.close().await;
    // What nobody has read by the end is told then, too.
    push.send_all((0..100_u64).map(|number| format!("{number:01000}"))).await.unwrap();
    let report = soon("the end", push.close()).await;
    assert!(report.unsent > lost && !report.all_delivered(), "{report:?}");
    // And not once more.
    let push = builder().linger(Duration::ZERO).open().await.unwrap();
    assert_eq!(push.close().await.unsent, 0);
}

async fn a_directory_that_was_copied_takes_another_name(at: Place) {
    let (original, copy) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let open = async |directory: &TempDir| {
        let push = keyed(Push::builder()).spool(directory.path(), Durability::Os).linger(Duration::from_secs(2));
        push.open().await.unwrap()
    };
    open(&original).await.close().await;
    copy_files(&original, &copy);
    let mut ids = Vec::new();
    for (directory, number) in [(&original, "1"), (&copy, "2"), (&original, "3"), (&copy, "4")] {
        let push = open(directory).await;
        let mut events = push.events();
        push.connect_to(address_of(&pull)).await.unwrap();
        push.send(number).await.unwrap();
        let delivery = soon(number, pull.recv_delivery()).await.unwrap();
        assert_eq!(*delivery, number);
        ids.push(delivery.id().unwrap());
        delivery.ack().await.unwrap();
        let report = soon("the end", push.close()).await;
        assert!(report.all_delivered(), "{report:?}");
        // Both are of the same age when they first meet: it is the second that hears of the other.
        let mut forked = false;
        while let Some(event) = events.next().await {
            forked |= matches!(event, Event::SpoolForked);
        }
        assert_eq!(forked, number == "2", "{number}");
    }
    let streams: Vec<_> = ids.iter().map(|id| id.stream).collect();
    assert!(streams[0] == streams[2] && streams[1] == streams[3] && streams[0] != streams[1], "{ids:?}");
    pull.close().await;
}

/// Another ZeroMQ, or a Ropewalk of before.
#[test]
fn a_peer_that_cannot_confirm_is_not_linked() {
    run(async {
        let push = Push::builder().guarantee(Guarantee::AtLeastOnce).bind("tcp://127.0.0.1:0").await.unwrap();
        let mut events = push.events();
        let old = Hello { features: 0, ..Hello::new(Tally::new(10, 10_000), 1000) };
        for hello in [None, Some(old)] {
            let mut peer = Raw::dial(&address_of(&push)).await;
            peer.shake(Role::PULL, hello).await;
            let reason = event(&mut events, "a refusal", |event| match event {
                Event::HandshakeFailed { reason, .. } | Event::PeerDown { reason, .. } => Some(reason),
                _ => None,
            });
            assert!(matches!(reason.await, DownReason::NotConfirming));
        }
        push.close().await;
    });
}

/// Who has a name, or asks for what was published before, is told of a publisher that keeps nothing.
async fn a_publisher_that_keeps_nothing_is_named(at: Place) {
    for kept in [false, true] {
        let directory = TempDir::new().unwrap();
        let publisher = match kept {
            true => keyed(Pub::builder()).spool(directory.path(), Durability::Os).bind(at.address()).await.unwrap(),
            false => keyed(Pub::builder()).bind(at.address()).await.unwrap(),
        };
        let address = address_of(&publisher);
        let sub = || keyed(Sub::builder()).subscribe("");
        let subs = [(false, sub()), (true, sub().name("a")), (true, sub().replay(Replay::Earliest))];
        for (asks, sub) in subs {
            let sub = sub.connect(&address).await.unwrap();
            // It is linked three times, and whoever asks for events then hears it for all but perhaps the last.
            for _ in 0..2 {
                soon("a link", sub.ready()).await.unwrap();
                sub.disconnect(&address).await.unwrap();
                until("its end", || sub.stats().peers.is_empty()).await;
                sub.connect_to(&address).await.unwrap();
            }
            soon("a link", sub.ready()).await.unwrap();
            let events = sub.events();
            sub.close().await;
            let told = events.filter(|event| {
                let told = matches!(event, Event::KeepsNothing { peer } if peer.role == Role::PUB);
                std::future::ready(told)
            });
            let told = soon("the end", told.count()).await;
            assert_eq!(told > 0, asks && !kept, "{asks} {kept}");
            assert!(told <= 2, "{told}");
        }
        publisher.close().await;
    }
}

fn copy_files(from: &TempDir, to: &TempDir) {
    for entry in std::fs::read_dir(from.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
}

async fn a_copy_of_a_directory_that_is_open_stops_neither(at: Place) {
    let (original, copy) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let open = async |directory: &TempDir| {
        let push = keyed(Push::builder()).spool(directory.path(), Durability::Os);
        push.connect(address_of(&pull)).await.unwrap()
    };
    let hears = async |text: &str| assert_eq!(soon(text, pull.recv()).await.unwrap(), text);
    let first = open(&original).await;
    let mut events = first.events();
    first.send("1").await.unwrap();
    hears("1").await;
    copy_files(&original, &copy);
    // It takes the copy for what the first has become, and the first is to call itself something else.
    let second = open(&copy).await;
    second.send("2").await.unwrap();
    hears("2").await;
    event(&mut events, "another name", |event| matches!(event, Event::SpoolForked).then_some(())).await;
    for (push, text) in [(&first, "3"), (&second, "4"), (&first, "5")] {
        push.send(text).await.unwrap();
        hears(text).await;
    }
    for push in [first, second] {
        let report = soon("the end", push.close()).await;
        assert!(report.all_delivered(), "{report:?}");
    }
    pull.close().await;
}

/// What one kind of socket has written another would take for its own.
#[test]
fn a_directory_is_for_sockets_of_one_role() {
    run(async {
        let directory = TempDir::new().unwrap();
        let push = Push::builder().linger(Duration::ZERO).spool(directory.path(), Durability::Os).open().await.unwrap();
        push.send("job").await.unwrap();
        push.close().await;
        let before = std::fs::read_dir(directory.path()).unwrap().count();
        let at = directory.path();
        let others: [(_, Result<(), OpenError>); 5] = [
            ("PULL", Pull::builder().inbox(at).open().await.map(drop)),
            ("PUB", Pub::builder().spool(at, Durability::Os).open().await.map(drop)),
            ("SUB", Sub::builder().inbox(at).open().await.map(drop)),
            ("REQ", Req::builder().spool(at, Durability::Os).open().await.map(drop)),
            ("REP", Rep::builder().spool(at, Durability::Os).open().await.map(drop)),
        ];
        for (role, refused) in others {
            let told = refused.unwrap_err().to_string();
            assert!(told.contains(&format!("of a PUSH socket, and not of a {role}")), "{told}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), before, "nothing was changed");
        let push = Push::builder().linger(Duration::ZERO).spool(at, Durability::Os).open().await.unwrap();
        assert_eq!(push.close().await.spooled, 1);
    });
}
