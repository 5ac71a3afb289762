//! Every public future, dropped after any number of polls: nothing is lost and nothing is there twice.

#[path = "common/mod.rs"]
mod common;

use std::{
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use common::{LONG, Place, Random, address_of, keyed, numbers, soon, standing, until};
use futures::{SinkExt, StreamExt};
use ropewalk::{Heard, Overflow, Pub, Pull, Push, Rep, Req, Sub};

over_every_transport! {
    sends,
    sends_of_a_sink,
    receives,
    many_receives,
    receives_of_a_stream,
    publishes_that_block,
    requests,
    replies,
    waits_for_peers,
    closes,
    binds_and_connects,
    those_behind_a_dropped_send_are_served,
    those_behind_a_dropped_receive_are_served,
}

const ROUNDS: u64 = 400;

/// Polls at most so often, whenever it is woken or might as well be, and then drops.
struct UpTo<F> {
    polls: u64,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for UpTo<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        if let Poll::Ready(output) = self.future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        // The next poll comes whether there is a reason or not.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

fn up_to<F: Future>(polls: u64, future: F) -> UpTo<F> {
    UpTo { polls, future: Box::pin(future) }
}

/// Few polls, mostly; now and then as many as it takes.
fn polls(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 1,
        1 => random.below(4),
        2 => random.below(30),
        _ => u64::MAX,
    }
}

/// What came is a part of what was tried, in order, each once; what was accepted is all there.
fn check(came: &[u64], accepted: &[u64]) {
    assert!(came.windows(2).all(|pair| pair[0] < pair[1]), "out of order or twice: {came:?}");
    assert!(accepted.iter().all(|number| came.binary_search(number).is_ok()), "lost one of {accepted:?}: {came:?}");
    // An accepted message is one whose future was done; one that was dropped before was not accepted.
    assert_eq!(came.len(), accepted.len(), "{came:?} of {accepted:?}");
}

/// Takes until the last number comes.
async fn taken(pull: Pull) -> Vec<u64> {
    let mut came = Vec::new();
    while came.last() != Some(&u64::MAX) {
        came.extend(numbers(&pull, 1).await);
    }
    came.pop();
    came
}

async fn sends(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).send_hwm(2), keyed(Pull::builder()).recv_hwm(2)).await;
    let (mut random, mut accepted) = (Random::new(1), Vec::new());
    let taking = tokio::spawn(taken(pull));
    for number in 0..ROUNDS {
        match up_to(polls(&mut random), push.send(number.to_string())).await {
            Some(sent) => {
                sent.unwrap();
                accepted.push(number);
            }
            None => tokio::task::yield_now().await,
        }
    }
    push.send(u64::MAX.to_string()).await.unwrap();
    check(&soon("the receiver", taking).await.unwrap(), &accepted);
    assert!(accepted.len() > 100, "only {} were accepted", accepted.len());
}

/// What a sink has taken it holds; dropping the future of a flush does not drop the message.
async fn sends_of_a_sink(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).send_hwm(2), keyed(Pull::builder()).recv_hwm(2)).await;
    let (mut random, mut sink) = (Random::new(2), push.sink());
    let taking = tokio::spawn(taken(pull));
    let mut fed = Vec::new();
    for number in 0..ROUNDS {
        let ready = up_to(polls(&mut random), futures::future::poll_fn(|cx| sink.poll_ready_unpin(cx))).await;
        if let Some(ready) = ready {
            ready.unwrap();
            sink.start_send_unpin(number.to_string().into()).unwrap();
            fed.push(number);
        }
        let _dropped = up_to(polls(&mut random), sink.flush()).await;
    }
    sink.send(u64::MAX.to_string().into()).await.unwrap();
    check(&soon("the receiver", taking).await.unwrap(), &fed);
}

async fn receives(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder()).recv_hwm(3)).await;
    let sending = tokio::spawn(async move { push.send_all((0..ROUNDS).map(|number| number.to_string())).await });
    let (mut random, mut came) = (Random::new(3), Vec::new());
    while (came.len() as u64) < ROUNDS {
        if let Some(message) = soon("a message", up_to(polls(&mut random), pull.recv())).await {
            came.push(common::number(&message.unwrap()));
        }
    }
    assert_eq!(came, (0..ROUNDS).collect::<Vec<_>>());
    soon("the sender", sending).await.unwrap().unwrap();
}

async fn many_receives(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder()).recv_hwm(7)).await;
    let sending = tokio::spawn(async move { push.send_all((0..ROUNDS).map(|number| number.to_string())).await });
    let (mut random, mut came) = (Random::new(4), Vec::new());
    while (came.len() as u64) < ROUNDS {
        let limit = 1 + random.below(5) as usize;
        // What was put in by a future that was dropped stays in.
        let _dropped = soon("messages", up_to(polls(&mut random), pull.recv_many(&mut came, limit))).await;
    }
    assert!(came.iter().enumerate().all(|(number, message)| *message == number.to_string().as_str()));
    soon("the sender", sending).await.unwrap().unwrap();
}

async fn receives_of_a_stream(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder()).recv_hwm(3)).await;
    let sending = tokio::spawn(async move { push.send_all((0..ROUNDS).map(|number| number.to_string())).await });
    let (mut random, mut came) = (Random::new(5), Vec::new());
    let mut stream = pull.stream();
    while (came.len() as u64) < ROUNDS {
        if let Some(message) = soon("a message", up_to(polls(&mut random), stream.next())).await {
            came.push(common::number(&message.unwrap()));
        }
        if random.below(10) == 0 {
            stream = pull.stream();
        }
    }
    assert_eq!(came, (0..ROUNDS).collect::<Vec<_>>());
    soon("the sender", sending).await.unwrap().unwrap();
}

async fn publishes_that_block(at: Place) {
    let publisher = keyed(Pub::builder()).overflow(Overflow::Block).send_hwm(2).bind(at.address()).await.unwrap();
    let mut hearing = Vec::new();
    for _ in 0..2 {
        let sub = keyed(Sub::builder()).recv_hwm(2).connect(address_of(&publisher)).await.unwrap();
        sub.subscribe("").await.unwrap();
        hearing.push(tokio::spawn(async move {
            let (mut came, mut heard) = (Vec::new(), Vec::new());
            while came.last() != Some(&u64::MAX) {
                soon("a message", sub.recv_many(&mut heard, 3)).await.unwrap();
                for heard in heard.drain(..) {
                    let Heard::Message(message) = heard else { panic!("{heard:?}") };
                    came.push(common::number(&message));
                }
            }
            came.pop();
            came
        }));
    }
    soon("both", publisher.subscribers("t", 2)).await.unwrap();
    let (mut random, mut accepted) = (Random::new(6), Vec::new());
    for number in 0..ROUNDS {
        match up_to(polls(&mut random), publisher.publish("t", number.to_string())).await {
            Some(published) => {
                published.unwrap();
                accepted.push(number);
            }
            None => tokio::task::yield_now().await,
        }
    }
    publisher.publish("t", u64::MAX.to_string()).await.unwrap();
    for hearing in hearing {
        check(&soon("a subscriber", hearing).await.unwrap(), &accepted);
    }
}

async fn requests(at: Place) {
    let (req, rep) = at.link(keyed(Req::builder()).outstanding(5), keyed(Rep::builder())).await;
    let serving = tokio::spawn(async move {
        let mut came = Vec::new();
        while let Ok(request) = rep.recv().await {
            came.push(common::number(request.message()));
            let answer = request.message().clone();
            let _gone = request.reply(answer).await;
        }
        came
    });
    let (mut random, mut answered) = (Random::new(7), Vec::new());
    for number in 0..ROUNDS {
        let asking = async { req.request(number.to_string()).timeout(LONG).await };
        if let Some(answer) = up_to(polls(&mut random), asking).await {
            assert_eq!(answer.unwrap(), number.to_string().as_str());
            answered.push(number);
        }
    }
    // None of those that were given up holds a place.
    let asking = (0..20u64).map(|number| {
        let (req, number) = (req.clone(), (ROUNDS + number).to_string());
        async move { assert_eq!(req.request(&number).timeout(LONG).await.unwrap(), number.as_str()) }
    });
    soon("the others", futures::future::join_all(asking)).await;
    serving.abort();
    assert!(answered.len() > 50 && serving.await.is_err());
}

/// A reply whose future is dropped was given, or the request is refused: the requester always hears.
async fn replies(at: Place) {
    let (req, rep) = at.link(keyed(Req::builder()).recv_hwm(1), keyed(Rep::builder()).send_hwm(1)).await;
    let serving = tokio::spawn(async move {
        let mut random = Random::new(8);
        while let Some(Ok(request)) = up_to(u64::MAX, rep.recv()).await {
            let answer = request.message().clone();
            let _dropped = up_to(polls(&mut random), request.reply(answer)).await;
        }
    });
    let asking = (0..ROUNDS).map(|number| {
        let (req, number) = (req.clone(), number.to_string());
        async move {
            match req.request(&number).timeout(2 * LONG).await {
                Ok(answer) => assert_eq!(answer, number.as_str()),
                Err(error) => assert!(matches!(error, ropewalk::RequestError::Refused(_)), "{error}"),
            }
        }
    });
    soon("every request to end", futures::future::join_all(asking)).await;
    serving.abort();
}

async fn waits_for_peers(at: Place) {
    let publisher = keyed(Pub::builder()).bind(at.address()).await.unwrap();
    let mut random = Random::new(9);
    for _ in 0..50 {
        assert!(up_to(random.below(5), publisher.ready()).await.is_none());
        assert!(up_to(random.below(5), publisher.subscribers("t", 1)).await.is_none());
    }
    let waiting = [standing(publisher.ready()).await, standing(publisher.ready()).await];
    let subscribed = standing(publisher.subscribers("t", 1)).await;
    let sub = keyed(Sub::builder()).connect(address_of(&publisher)).await.unwrap();
    sub.subscribe("t").await.unwrap();
    for waiting in waiting {
        soon("a peer", waiting).await.unwrap();
    }
    soon("a subscriber", subscribed).await.unwrap();
}

async fn closes(at: Place) {
    let mut random = Random::new(10);
    for round in 0..20u64 {
        let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder()).recv_hwm(2)).await;
        push.send_all((0..round).map(|number| number.to_string())).await.unwrap();
        let dropped = up_to(random.below(20), push.close()).await;
        assert_eq!(numbers(&pull, round as usize).await, (0..round).collect::<Vec<_>>());
        let report = soon("the end", push.close()).await;
        assert!(dropped.is_none_or(|before| before == report));
        if random.below(2) == 0 {
            let _dropped = up_to(random.below(5), pull.close()).await;
        }
        soon("the end", pull.close()).await;
    }
}

/// A bind that was given up listens nowhere; one that was done does.
async fn binds_and_connects(at: Place) {
    let pull = keyed(Pull::builder()).build();
    let push = keyed(Push::builder()).reconnect(Duration::ZERO, Duration::from_millis(10)).build();
    let mut random = Random::new(11);
    for _ in 0..40 {
        let address = at.address();
        let before = pull.endpoints().len();
        let bound = up_to(random.below(3), pull.bind_to(&address)).await;
        match bound {
            Some(bound) => {
                let bound = bound.unwrap().to_string();
                let dialled = up_to(random.below(2), push.connect_to(&bound)).await.is_some();
                if dialled {
                    soon("the link", push.ready()).await.unwrap();
                    let _dropped = up_to(random.below(3), push.disconnect(&bound)).await;
                }
                let _dropped = up_to(random.below(3), pull.unbind(&bound)).await;
            }
            None => {
                assert_eq!(pull.endpoints().len(), before);
                // The address is free.
                keyed(Pull::builder()).bind(&address).await.unwrap().close().await;
            }
        }
    }
    push.close().await;
    pull.close().await;
    until("no link", || push.stats().peers.is_empty() && pull.stats().peers.is_empty()).await;
}

async fn those_behind_a_dropped_send_are_served(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).send_hwm(1), keyed(Pull::builder()).recv_hwm(1)).await;
    assert_eq!(common::fill(&push, 1), 2);
    let mut waiting = Vec::new();
    for number in 0..100u64 {
        let push = push.clone();
        waiting.push((number, standing(async move { push.send(number.to_string()).await }).await));
    }
    let mut random = Random::new(12);
    let (kept, dropped): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|_| random.below(3) == 0);
    // The first in line among them, after it was woken.
    soon("a message", pull.recv()).await.unwrap();
    drop(dropped);
    let expected: Vec<u64> = kept.iter().map(|(number, _)| *number).collect();
    let serving: Vec<_> = kept.into_iter().map(|(_, send)| tokio::spawn(send)).collect();
    soon("a message", pull.recv()).await.unwrap();
    assert_eq!(numbers(&pull, expected.len()).await, expected);
    for send in serving {
        soon("a send", send).await.unwrap().unwrap();
    }
}

async fn those_behind_a_dropped_receive_are_served(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder())).await;
    let mut random = Random::new(13);
    for _ in 0..20 {
        let mut waiting = Vec::new();
        for _ in 0..20 {
            let pull = pull.clone();
            waiting.push(standing(async move { pull.recv().await }).await);
        }
        push.send("1").await.unwrap();
        // Who is first has been woken by now, or soon will be, and goes without looking.
        until("the message", || pull.stats().peers[0].inbox.messages == 1).await;
        let keep = waiting.swap_remove(random.below(20) as usize);
        waiting.truncate(random.below(20) as usize);
        drop(waiting);
        assert_eq!(soon("the message", pin!(keep)).await.unwrap(), "1");
    }
}
