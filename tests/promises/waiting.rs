//! Those who wait: they may read by themselves, or look for a while before they sleep. Nobody is kept from anything by that.

use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant},
};

use ropewalk::{Pull, Push, Rep, Req, Role};
use tokio::task::coop::poll_proceed;

use crate::{
    common::{
        LONG, Place, address_of, down, fill, keyed, numbers, one_thread,
        raw::{Raw, frames, hello},
        soon, standing, until,
    },
    over_every_transport,
};

over_every_transport! {
    a_receiver_that_waits_and_is_not_polled_lives,
    a_sender_that_waits_and_is_not_polled_lives,
    those_who_wait_behind_another_are_served,
    those_who_send_behind_another_are_served,
    who_sleeps_is_woken_by_what_comes,
    what_comes_in_pieces_arrives_though_nobody_waits,
    who_has_had_its_share_gives_way,
    however_long_one_looks_for_an_answer_it_is_the_right_one,
}

const EVERY: Duration = Duration::from_millis(20);
const DEAD: Duration = Duration::from_millis(100);

/// Whoever waits may read the stream by itself; one that is kept and never polled again must not keep it for itself.
async fn a_receiver_that_waits_and_is_not_polled_lives(at: Place) {
    let push = keyed(Push::builder()).heartbeat(EVERY, 3 * DEAD);
    let (push, pull) = at.link(push, keyed(Pull::builder()).heartbeat(EVERY, 3 * DEAD)).await;
    let mut events = push.events();
    let mut kept = Box::pin(pull.recv());
    assert!(futures::poll!(&mut kept).is_pending());
    let quiet = tokio::time::timeout(8 * DEAD, down(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    // It comes back.
    push.send("1").await.unwrap();
    assert_eq!(soon("a message", kept).await.unwrap().payload(), b"1");
    // One that took something leaves the stream to others, too.
    push.send("2").await.unwrap();
    assert_eq!(numbers(&pull, 1).await, [2]);
    let quiet = tokio::time::timeout(8 * DEAD, down(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

/// Fills both sides, of which each has room for one. What the receiver took is told in its time.
async fn full(push: &Push) {
    let mut sent = 0;
    until("both marks to be reached", || {
        sent += fill(push, 1);
        sent == 2
    })
    .await;
}

/// The same of one that waits for room.
async fn a_sender_that_waits_and_is_not_polled_lives(at: Place) {
    let push = keyed(Push::builder()).heartbeat(EVERY, 3 * DEAD).send_hwm(1);
    let (push, pull) = at.link(push, keyed(Pull::builder()).heartbeat(EVERY, 3 * DEAD).recv_hwm(1)).await;
    let (mut ours, mut theirs) = (push.events(), pull.events());
    full(&push).await;
    let mut kept = standing(push.send("2")).await;
    let quiet = tokio::time::timeout(8 * DEAD, async { tokio::join!(down(&mut ours), down(&mut theirs)) }).await;
    assert!(quiet.is_err(), "{quiet:?}");
    // It comes back.
    for _ in 0..2 {
        soon("a message", pull.recv()).await.unwrap();
    }
    soon("room", &mut kept).await.unwrap();
    let quiet = tokio::time::timeout(8 * DEAD, async { tokio::join!(down(&mut ours), down(&mut theirs)) }).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(numbers(&pull, 1).await, [2]);
    // One that is kept hears of the end no later than others.
    full(&push).await;
    let _kept = standing(push.send("5")).await;
    pull.close().await;
    soon("the end of the link", down(&mut ours)).await;
}

/// The first of those who wait goes away, with or without a message; the next is served all the same.
async fn those_who_wait_behind_another_are_served(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder())).await;
    for round in 0..200u64 {
        let mut first = Box::pin(pull.recv());
        assert!(futures::poll!(&mut first).is_pending());
        let second = tokio::spawn({
            let pull = pull.clone();
            async move { pull.recv().await }
        });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
            push.send("first").await.unwrap();
            soon("the first", first).await.unwrap();
        } else {
            drop(first);
        }
        push.send("second").await.unwrap();
        soon("the second", second).await.unwrap().unwrap();
    }
}

/// The same of those who wait for room.
async fn those_who_send_behind_another_are_served(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).send_hwm(1), keyed(Pull::builder()).recv_hwm(1)).await;
    for round in 0..200u64 {
        full(&push).await;
        let first = standing(push.send("first")).await;
        let second = tokio::spawn(
            standing({
                let push = push.clone();
                async move { push.send("second").await }
            })
            .await,
        );
        if round % 2 == 0 {
            soon("a message", pull.recv()).await.unwrap();
            soon("the first", first).await.unwrap();
        } else {
            drop(first);
        }
        for _ in 0..3 {
            soon("a message", pull.recv()).await.unwrap();
        }
        soon("the second", second).await.unwrap().unwrap();
    }
}

/// And by nothing else: the clock stands still, so what the link does now and then it does not do.
async fn who_sleeps_is_woken_by_what_comes(at: Place) {
    let on_one_thread = async move || {
        let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder())).await;
        tokio::time::pause();
        // As long as somebody has something to do.
        let busy = tokio::spawn(until_then(Instant::now() + LONG));
        for number in 0..50u64 {
            let push = push.clone();
            let sends = tokio::spawn(async move {
                // The receiver has long ceased to look by then.
                until_then(Instant::now() + Duration::from_millis(1)).await;
                push.send(number.to_string()).await
            });
            assert_eq!(numbers(&pull, 1).await, [number]);
            sends.await.unwrap().unwrap();
        }
        assert!(!busy.is_finished(), "the clock has woken it");
        busy.abort();
        tokio::time::resume();
    };
    tokio::task::spawn_blocking(move || one_thread().block_on(on_one_thread())).await.unwrap();
}

/// The pieces of a message, each long after the one before: there is nothing else that the reader could be woken by.
async fn what_comes_in_pieces_arrives_though_nobody_waits(at: Place) {
    if at.is("inproc") {
        return;
    }
    let pull = keyed(Pull::builder()).no_heartbeat().bind(at.address()).await.unwrap();
    let (mut raw, _) = Raw::link(&address_of(&pull), Role::PUSH, hello(100, 100_000)).await;
    for received in 1..=10 {
        for byte in frames(&[b"piece"]) {
            raw.write(&[byte]).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        until("a message", || pull.stats().received == received).await;
    }
}

/// As tokio has it: a task that always finds something would leave no turn to the others of its thread.
async fn who_has_had_its_share_gives_way(at: Place) {
    if at.is("inproc") {
        return;
    }
    let on_one_thread = async move || {
        let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder())).await;
        push.send("0").await.unwrap();
        assert_eq!(numbers(&pull, 1).await, [0]);
        let mut next = standing(pull.recv()).await;
        push.try_send("1").unwrap();
        let without_any_left = poll_fn(|cx| {
            while let Poll::Ready(turn) = poll_proceed(cx) {
                turn.made_progress();
            }
            Poll::Ready(next.as_mut().poll(cx))
        });
        assert!(without_any_left.await.is_pending(), "it has taken what was there");
        assert_eq!(soon("the next", next).await.unwrap(), "1");
    };
    tokio::task::spawn_blocking(move || one_thread().block_on(on_one_thread())).await.unwrap();
}

async fn until_then(then: Instant) {
    while Instant::now() < then {
        tokio::task::yield_now().await;
    }
}

/// Who waits looks for a while before it sleeps: not at all, for as long as usual, until it comes. Closing ends that, too.
async fn however_long_one_looks_for_an_answer_it_is_the_right_one(at: Place) {
    let asks = async move |busy_poll: Duration| {
        let (req, rep) = (keyed(Req::builder()).busy_poll(busy_poll), keyed(Rep::builder()).busy_poll(busy_poll));
        let (req, rep) = at.link(req, rep).await;
        let serving = rep.clone();
        let serving = tokio::spawn(async move {
            while let Ok(request) = serving.recv().await {
                let answer = request.message().clone();
                request.reply(answer).await.unwrap();
            }
        });
        for len in [0, 1, 100, 5_000, 32_700, 32_760, 32_768, 40_000, 70_000].repeat(20) {
            let question: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let answer = soon("an answer", req.request(question.clone()).into_future()).await.unwrap();
            assert!(answer == &*question, "{len}");
        }
        soon("both to close", async { tokio::join!(req.close(), rep.close()) }).await;
        soon("the end", serving).await.unwrap();
    };
    let busy_polls = [Duration::ZERO, Duration::from_micros(50), Duration::MAX];
    for busy_poll in busy_polls {
        asks(busy_poll).await;
    }
    let on_one_thread = move || {
        for busy_poll in busy_polls {
            one_thread().block_on(asks(busy_poll));
        }
    };
    tokio::task::spawn_blocking(on_one_thread).await.unwrap();
}
