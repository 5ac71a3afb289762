//! From a sender that keeps its messages to the application that confirms them, and from a requester that keeps its requests
//! to the one that answers, over loopback TCP.

use std::{
    fs,
    time::{Duration, Instant},
};

use ropewalk::{Message, Pull, Push, Rep, Req, spool::Durability};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::{Goal, Place, SENDERS, median, message, percentile, raw::Raw, say};

const ROUNDS: usize = 9;

/// How long rounds may take in all.
const AT_MOST: Duration = Duration::from_secs(5);

/// Messages in a round of many, and the rounds in which they fill the files of the log.
const MANY: usize = 50_000;
const FIRST: usize = 8;

/// Requests of each task in a round.
const ASKED: usize = 200;

/// A receiver, and where it listens.
async fn receiver() -> (Pull, String) {
    let pull = Pull::bind("tcp://127.0.0.1:0").await.expect("it listens");
    let address = pull.address().expect("it listens").to_string();
    (pull, address)
}

/// A pair of sockets of which the sender keeps its messages.
async fn keeping(place: &Place, name: &str, durability: Durability) -> (Push, Pull) {
    let (pull, address) = receiver().await;
    let push = Push::builder().spool(place.path(name), durability).connect(address).await.expect("it opens");
    push.ready().await.expect("linked");
    (push, pull)
}

/// What one message takes until the sender knows that it is done with, beside a sync and a round trip, each alone.
pub(crate) async fn deliver(place: &Place) {
    let (push, pull) = keeping(place, "deliver", Durability::Always).await;
    let confirming = tokio::spawn({
        let pull = pull.clone();
        async move {
            while let Ok(delivery) = pull.recv_delivery().await {
                delivery.ack().await.expect("its link lives");
            }
        }
    });
    let deliver = async |message: &Message| push.deliver(message).await.expect("it is confirmed");
    alone(place, "one message delivered", Goal::Most(30.0), deliver).await;
    push.close().await;
    pull.close().await;
    confirming.await.expect("it ends");
    fs::remove_dir_all(place.path("deliver")).expect("it goes");
}

/// What one message takes, in turns with a sync and a round trip, each alone.
async fn alone(place: &Place, what: &str, goal: Goal, mut does: impl AsyncFnMut(&Message)) {
    let (mut stream, echoing) = echo().await;
    // About what the log takes for a message, and the wire.
    let (message, mut raw, mut bytes) = (message(100), Raw::new(place.path("raw")), [7; 128]);
    let (mut ours, mut syncs, mut trips) = (Vec::new(), Vec::new(), Vec::new());
    let began = Instant::now();
    while ours.len() < 3000 && began.elapsed() < AT_MOST {
        let before = Instant::now();
        does(&message).await;
        ours.push(before.elapsed());
        syncs.push(raw.sync(&bytes));
        let before = Instant::now();
        stream.write_all(&bytes).await.expect("a stream");
        stream.read_exact(&mut bytes).await.expect("a stream");
        trips.push(before.elapsed());
    }
    drop(stream);
    echoing.await.expect("it ends");
    let [ours, sync, trip] = [ours, syncs, trips].map(|mut took| percentile(&mut took, 0.5));
    let what = format!("us beyond a sync ({sync:.0}) and a round trip ({trip:.0}): {what}, p50 {ours:.0}");
    say(ours - sync - trip, goal, &what);
}

/// A stream of which the other end sends back what comes, until it is closed.
async fn echo() -> (TcpStream, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("it listens");
    let stream = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a stream");
    let (mut other, _) = listener.accept().await.expect("a stream");
    for stream in [&stream, &other] {
        stream.set_nodelay(true).expect("an option");
    }
    let echoing = tokio::spawn(async move {
        let mut bytes = [0; 128];
        while other.read_exact(&mut bytes).await.is_ok() {
            other.write_all(&bytes).await.expect("a stream");
        }
    });
    (stream, echoing)
}

/// How a sender gives what it has.
#[derive(Clone, Copy)]
enum Way {
    OneByOne,
    Together,
}

/// As many as go through a pair of sockets of which one keeps what it sends, beside a pair of which none does. What came
/// is settled, and so the log goes round in a few files; the first rounds, which make them, do not count.
pub(crate) async fn through(place: &Place) {
    let (pull, address) = receiver().await;
    let push = Push::connect(address).await.expect("it dials");
    push.ready().await.expect("linked");
    let without = (push, pull);
    let with = keeping(place, "through", Durability::Os).await;
    for (way, many, goal) in [(Way::Together, MANY, Goal::Least(0.5)), (Way::OneByOne, MANY / 10, Goal::None)] {
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS + FIRST {
            let alone = send(&without, way, many).await;
            let took = send(&with, way, many).await;
            if round >= FIRST {
                ratios.push(alone.as_secs_f64() / took.as_secs_f64());
                rates.push(many as f64 / took.as_secs_f64());
            }
        }
        let rate = median(rates);
        let how = match way {
            Way::OneByOne => "each waits for the one before",
            Way::Together => "given together",
        };
        let what = format!("os, through a pair of sockets, 1 KiB, {how}: {rate:.0} messages/s, beside nothing on disk");
        say(median(ratios), goal, &what);
    }
    for (push, pull) in [without, with] {
        push.close().await;
        pull.close().await;
    }
    fs::remove_dir_all(place.path("through")).expect("it goes");
}

async fn send((push, pull): &(Push, Pull), way: Way, many: usize) -> Duration {
    let (message, began) = (message(1024), Instant::now());
    let send = async {
        match way {
            Way::Together => {
                push.send_all((0..many).map(|_| message.clone())).await.expect("they are taken");
            }
            Way::OneByOne => {
                for _ in 0..many {
                    push.send(&message).await.expect("it is taken");
                }
            }
        }
    };
    let take = async {
        for _ in 0..many {
            pull.recv().await.expect("it comes");
        }
    };
    tokio::join!(send, take);
    began.elapsed()
}

/// Who asks, and who answers.
struct Asking {
    req: Req,
    rep: Rep,
    answering: JoinHandle<()>,
}

impl Asking {
    /// Which of them keep what they are given, and how.
    async fn begin(place: &Place, requests: Option<Durability>, answers: Option<Durability>) -> Self {
        let (req, rep) = (Req::builder(), Rep::builder());
        let rep = match answers {
            Some(durability) => rep.spool(place.path("answers"), durability).bind("tcp://127.0.0.1:0").await,
            None => rep.bind("tcp://127.0.0.1:0").await,
        };
        let rep = rep.expect("it listens");
        let address = rep.address().expect("it listens").to_string();
        let req = match requests {
            Some(durability) => req.spool(place.path("requests"), durability).connect(address).await,
            None => req.connect(address).await,
        };
        let req = req.expect("it dials");
        req.ready().await.expect("linked");
        let answers = rep.clone();
        let answering = tokio::spawn(async move { answers.serve(SENDERS, |request| async move { request }).await });
        Self { req, rep, answering }
    }

    /// So many tasks, each of which waits for its answer before it asks again.
    async fn round(&self) -> Duration {
        let (mut tasks, began) = (JoinSet::new(), Instant::now());
        for _ in 0..SENDERS {
            let (req, message) = (self.req.clone(), message(100));
            tasks.spawn(async move {
                for _ in 0..ASKED {
                    req.request(&message).await.expect("an answer");
                }
            });
        }
        tasks.join_all().await;
        began.elapsed()
    }

    async fn end(self, place: &Place) {
        self.req.close().await;
        self.rep.close().await;
        self.answering.await.expect("it ends");
        for name in ["requests", "answers"].map(|name| place.path(name)).iter().filter(|path| path.exists()) {
            fs::remove_dir_all(name).expect("it goes");
        }
    }
}

/// What a request costs that is kept until it is answered, and its answer as long as it may be asked for again.
pub(crate) async fn ask(place: &Place) {
    let always = Some(Durability::Always);
    for (answers, what) in
        [(None, "one kept request answered"), (always, "the same, and its answer kept (a second sync)")]
    {
        let asking = Asking::begin(place, always, answers).await;
        let ask = async |message: &Message| drop(asking.req.request(message).await.expect("an answer"));
        alone(place, what, Goal::None, ask).await;
        asking.end(place).await;
    }
    for durability in [Durability::Os, Durability::Always] {
        let plain = Asking::begin(place, None, None).await;
        let kept = Asking::begin(place, Some(durability), None).await;
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (alone, took) = (plain.round().await, kept.round().await);
            ratios.push(alone.as_secs_f64() / took.as_secs_f64());
            rates.push((SENDERS * ASKED) as f64 / took.as_secs_f64());
        }
        plain.end(place).await;
        kept.end(place).await;
        let rate = median(rates);
        let what =
            format!("{durability:?}, {SENDERS} kept requests at once, 100 B: {rate:.0} a second, beside none kept");
        say(median(ratios), Goal::None, &what);
    }
}
