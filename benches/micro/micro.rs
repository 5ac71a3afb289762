//! The hot steps, each measured alone and on one thread, so that a change of one of them is seen apart from the kernel
//! and the scheduler. How fast the whole is, `benches/compare` says.
//!
//! All of it goes through the public API. What stands in the table is the time of a batch, and below it how many items
//! that makes in a second: messages, or for topics the peers found.

use bytes::{BufMut, BytesMut};
use divan::{Bencher, black_box, counter::ItemsCount};
use ropewalk::{Message, Pull, Push, TryRecvError};
use ropewalk_patterns::{
    Peer,
    topics::Topics,
    zmtp::{Decoder, Limits, Room, Step, encode_part, take_message},
};
use tokio::{
    runtime::{self, Runtime},
    task::yield_now,
};

fn main() {
    divan::main();
}

/// Messages, or look-ups, in each iteration.
const BATCH: usize = 1000;

/// Bytes of a message's only part.
const SIZES: [usize; 3] = [16, 64, 1024];

// ---- frames ---------------------------------------------------------------------------------------------------------

fn put(out: &mut impl BufMut, part: &[u8]) {
    for _ in 0..BATCH {
        let part = black_box(part);
        encode_part(out, false, part.len());
        out.put_slice(part);
    }
}

/// Bytes of so many messages in frames.
fn encoded(size: usize) -> usize {
    BATCH * (size + if size < 256 { 2 } else { 9 })
}

/// Into what the queue of a peer is made of. It has grown already, as that of a busy peer has.
#[divan::bench(args = SIZES)]
fn encode(bencher: Bencher<'_, '_>, size: usize) {
    let part = vec![7; size];
    let mut out: Vec<u8> = Vec::with_capacity(encoded(size));
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        out.clear();
        put(&mut out, &part);
        assert_eq!(black_box(&out).len(), encoded(size));
    });
}

/// Into what a message for several peers is encoded in.
#[divan::bench(args = SIZES)]
fn encode_bytes_mut(bencher: Bencher<'_, '_>, size: usize) {
    let part = vec![7; size];
    let mut out = BytesMut::with_capacity(encoded(size));
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        out.clear();
        put(&mut out, &part);
        assert_eq!(black_box(&out).len(), encoded(size));
    });
}

/// Each message is let go as soon as it was taken, as by an application that has done with it.
#[divan::bench(args = SIZES)]
fn decode(bencher: Bencher<'_, '_>, size: usize) {
    let mut stream = BytesMut::new();
    put(&mut stream, &vec![7; size]);
    bencher
        .counter(ItemsCount::new(BATCH))
        // The buffer is given away in pieces, so each iteration needs its own.
        .with_inputs(|| (Decoder::new(Limits::default()), BytesMut::from(&stream[..])))
        .bench_local_refs(|(decoder, buffer)| {
            let Ok(Step::Messages { mut bytes, tally }) = decoder.next(buffer, Room::UNBOUNDED) else {
                panic!("whole messages are there");
            };
            let mut taken = 0;
            while let Some(message) = take_message(&mut bytes) {
                taken += black_box(message).payload().len();
            }
            assert_eq!((tally.messages as usize, taken), (BATCH, BATCH * size));
        });
}

// ---- sockets --------------------------------------------------------------------------------------------------------

const ADDRESSES: [&str; 2] = ["tcp://127.0.0.1:0", "inproc://micro"];

const PAYLOAD: [u8; 64] = [7; 64];

/// Two linked sockets, and the only thread their links run on: whatever takes the thread keeps them still.
struct Pair {
    runtime: Runtime,
    push: Push,
    pull: Pull,
}

impl Pair {
    fn new(address: &str) -> Self {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (push, pull) = runtime.block_on(async {
            // The window is so wide that credit goes back once in many samples: that is a write to the kernel, which is
            // no part of the step.
            let pull = Pull::builder().recv_hwm(100_000).bind(address).await.expect("listens");
            let address = pull.address().expect("it listens").to_string();
            let push = Push::builder().send_hwm(4_000).connect(address).await.expect("dials");
            push.ready().await.expect("linked");
            pull.ready().await.expect("linked");
            (push, pull)
        });
        Self { runtime, push, pull }
    }

    /// Sends a batch. There is room for all of it, so nothing else runs meanwhile.
    async fn send(&self) {
        for _ in 0..BATCH {
            self.push.send(black_box(&PAYLOAD)).await.expect("the socket is open");
        }
    }

    /// Messages that wait for the link to write them.
    fn queued(&self) -> u64 {
        self.push.stats().peers.iter().map(|peer| peer.queued.messages).sum()
    }

    /// Messages that were sent and not taken yet.
    fn under_way(&self) -> u64 {
        let pull = self.pull.stats();
        let inbox: u64 = pull.peers.iter().map(|peer| peer.inbox.messages).sum();
        self.push.stats().sent + self.queued() + inbox - pull.received
    }

    /// Lets the links run until all that was sent is taken.
    async fn take_all(&self) {
        for _ in 0..self.under_way() {
            loop {
                match self.pull.try_recv() {
                    Ok(message) => break check(&message),
                    Err(TryRecvError::Empty) => yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    /// Takes what the last sample has sent. All of it must still be there: the link did not run while it was timed.
    fn settle(&self) {
        let queued = self.queued();
        assert!(queued == 0 || queued > BATCH as u64, "{queued} messages wait");
        self.runtime.block_on(self.take_all());
    }

    /// Brings the link to where it is in a stream of messages: it has something to write and knows it, so those that
    /// follow have nobody to wake. It does not run before they are sent.
    fn wake_link(&self) {
        self.runtime.block_on(async {
            while self.queued() == 0 {
                self.take_all().await;
                // A lone message is written where it is sent. The one after it is left to the link, if it comes at once.
                for _ in 0..2 {
                    self.push.send(&PAYLOAD).await.expect("the socket is open");
                }
            }
        });
    }

    /// Brings a batch to the inbox. What came before must have been taken.
    fn fill(&self) {
        assert_eq!(self.under_way(), 0);
        let before = self.pull.stats().received;
        self.runtime.block_on(async {
            self.send().await;
            while self.pull.stats().received < before + BATCH as u64 {
                yield_now().await;
            }
        });
    }
}

fn check(message: &Message) {
    assert_eq!(black_box(message).payload().len(), PAYLOAD.len());
}

/// To a link that is awake and does not run: the writing is not in it.
#[divan::bench(args = ADDRESSES, sample_size = 1, sample_count = 1000, max_time = 5)]
fn send(bencher: Bencher<'_, '_>, address: &str) {
    let pair = Pair::new(address);
    bencher
        .counter(ItemsCount::new(BATCH))
        .with_inputs(|| {
            pair.settle();
            pair.wake_link();
        })
        .bench_local_values(|()| pair.runtime.block_on(pair.send()));
    pair.settle();
}

/// Of what has arrived: the reading is not in it.
#[divan::bench(args = ADDRESSES, sample_size = 1, sample_count = 1000, max_time = 5)]
fn try_recv(bencher: Bencher<'_, '_>, address: &str) {
    let pair = Pair::new(address);
    bencher.counter(ItemsCount::new(BATCH)).with_inputs(|| pair.fill()).bench_local_values(|()| {
        pair.runtime.block_on(async {
            for _ in 0..BATCH {
                check(&pair.pull.try_recv().expect("it has arrived"));
            }
        });
    });
    assert_eq!(pair.under_way(), 0);
}

/// Likewise, up to 64 at a time.
#[divan::bench(args = ADDRESSES, sample_size = 1, sample_count = 1000, max_time = 5)]
fn recv_many(bencher: Bencher<'_, '_>, address: &str) {
    let pair = Pair::new(address);
    let mut messages = Vec::with_capacity(64);
    bencher.counter(ItemsCount::new(BATCH)).with_inputs(|| pair.fill()).bench_local_values(|()| {
        pair.runtime.block_on(async {
            let mut taken = 0;
            while taken < BATCH {
                taken += pair.pull.recv_many(&mut messages, 64).await.expect("the socket is open");
                messages.drain(..).for_each(|message| check(&message));
            }
        });
    });
    assert_eq!(pair.under_way(), 0);
}

// ---- topics ---------------------------------------------------------------------------------------------------------

/// The subscriptions of so many peers, one of each.
fn topics(peers: usize, prefix: impl Fn(usize) -> String) -> Topics {
    let mut topics = Topics::new();
    for number in 0..peers {
        let new = topics.subscribe(peer(number), prefix(number).into(), &Limits::default());
        assert_eq!(new, Ok(true));
    }
    topics
}

fn peer(number: usize) -> Peer {
    Peer { slot: u32::try_from(number).expect("not so many peers"), generation: 0 }
}

fn topic(number: usize) -> String {
    format!("sensors/{number:06}/temperature")
}

/// Each topic has one subscriber. Those looked for lie apart, so that one does not find what the one before it has left
/// in the cache.
#[divan::bench(args = [1, 1_000, 1_000_000])]
fn topics_of_one(bencher: Bencher<'_, '_>, subscriptions: usize) {
    let table = topics(subscriptions, topic);
    assert_eq!(table.len(), subscriptions);
    let wanted = (0..BATCH).map(|index| index * 7919 % subscriptions);
    let wanted: Vec<(String, Peer)> = wanted.map(|number| (topic(number), peer(number))).collect();
    let mut found = Vec::new();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        for (topic, peer) in &wanted {
            table.matching(black_box(topic.as_bytes()), &mut found);
            assert_eq!(found, [*peer]);
        }
    });
}

/// All have subscribed to the same prefix.
#[divan::bench(args = [1_000])]
fn topic_of_many(bencher: Bencher<'_, '_>, subscribers: usize) {
    let table = topics(subscribers, |_| "sensors/".to_owned());
    assert_eq!(table.len(), 1);
    let topic = topic(123);
    let mut found = Vec::new();
    bencher.counter(ItemsCount::new(subscribers)).bench_local(|| {
        table.matching(black_box(topic.as_bytes()), &mut found);
        assert_eq!(black_box(&found).len(), subscribers);
    });
}
