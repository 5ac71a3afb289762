//! A requester whose answers nobody takes: they are bounded, and none is lost.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ropewalk::{Answered, Builder, Message, Req};
use tempfile::TempDir;

use crate::{
    asked::{ask_and_go, end, leave, next, open, recovered, rep},
    common::{Place, number, soon, stays, until},
};

over_every_transport!(
    what_was_left_without_an_answer_holds_up_nothing_new,
    answers_that_found_no_room_are_asked_for_again,
    large_answers_to_what_was_found_come_one_after_the_other,
    one_without_an_answer_holds_up_none_that_found_no_room,
    answers_that_nobody_takes_are_bounded,
);

/// Takes so many answers, each of them once, and acknowledges them. Whose they are.
async fn take(req: &Req, count: usize, looks: impl Fn(&Answered)) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    while numbers.len() < count {
        let answered = recovered(req).await;
        looks(&answered);
        assert!(numbers.insert(number(answered.request())), "each of them once");
        answered.ack().unwrap();
    }
    numbers
}

async fn what_was_left_without_an_answer_holds_up_nothing_new(at: Place) {
    let directory = TempDir::new().unwrap();
    leave(directory.path(), 4).await;
    let req = open(directory.path(), |builder| builder.outstanding(2)).await;
    req.bind_to(at.address()).await.unwrap();
    let peer = rep(&req).await;
    let held = [next(&peer).await, next(&peer).await];
    for _ in 0..4 {
        let answer = async { next(&peer).await.reply("at once").await.unwrap() };
        let (answered, ()) = soon("a new one", async { tokio::join!(req.request("new"), answer) }).await;
        assert_eq!(answered, Ok(Message::from("at once")));
    }
    assert_eq!(held.map(|request| number(request.message())), [0, 1]);
    assert_eq!(end(req).await, 4);
    peer.close().await;
}

async fn answers_that_found_no_room_are_asked_for_again(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = open(directory.path(), |builder| builder.outstanding(1)).await;
    ask_and_go(&req, 8).await;
    req.bind_to(at.address()).await.unwrap();
    let peer = rep(&req).await;
    let answers = tokio::spawn(async move {
        peer.serve(4, |request| async { request }).await;
        peer.close().await;
    });
    // Nobody takes them at first, and there is room for two.
    until("all were asked", || req.stats().received >= 8).await;
    take(&req, 8, |answered| assert_eq!(answered.answer(), Ok(answered.request()))).await;
    assert_eq!(end(req).await, 0);
    answers.abort();
}

async fn large_answers_to_what_was_found_come_one_after_the_other(at: Place) {
    let directory = TempDir::new().unwrap();
    leave(directory.path(), 6).await;
    let req = open(directory.path(), |builder| builder.recv_hwm_bytes(10_000)).await;
    req.bind_to(at.address()).await.unwrap();
    let peer = rep(&req).await;
    let counts = Arc::new((Mutex::new(BTreeSet::new()), AtomicUsize::new(0), AtomicUsize::new(0)));
    let counted = Arc::clone(&counts);
    let answer = move |request: Message| {
        let counts = Arc::clone(&counted);
        async move {
            let (seen, in_hand, most) = &*counts;
            if !seen.lock().unwrap().insert(number(&request)) {
                most.fetch_max(in_hand.fetch_add(1, Relaxed) + 1, Relaxed);
                // It takes as long as others may take to come.
                tokio::time::sleep(Duration::from_millis(5)).await;
                in_hand.fetch_sub(1, Relaxed);
            }
            vec![b'x'; 6000]
        }
    };
    let answers = tokio::spawn(async move { peer.serve(8, answer).await });
    until("all were asked", || req.stats().received >= 6).await;
    let received = req.stats().received;
    stays("that nobody is asked in vain", || req.stats().received <= received + 1).await;
    take(&req, 6, |answered| assert_eq!(answered.answer().map(Message::bytes), Ok(6000))).await;
    assert_eq!(counts.2.load(Relaxed), 1, "they are not asked all at once again");
    assert_eq!(end(req).await, 0);
    answers.abort();
}

async fn one_without_an_answer_holds_up_none_that_found_no_room(at: Place) {
    let directory = TempDir::new().unwrap();
    leave(directory.path(), 4).await;
    let builder = |builder: Builder<_>| builder.recv_hwm_bytes(10_000).timeout(Duration::from_millis(200));
    let req = open(directory.path(), builder).await;
    req.bind_to(at.address()).await.unwrap();
    let peer = rep(&req).await;
    let answers = tokio::spawn(async move {
        let (mut silent, mut seen, mut hangs) = (Vec::new(), BTreeSet::new(), None);
        while let Ok(request) = peer.recv().await {
            // One of them has no answer at first, and another when it is asked again: the first that is.
            let number = number(request.message());
            if number == 0 || (!seen.insert(number) && *hangs.get_or_insert(number) == number) {
                silent.push(request);
            } else {
                request.reply(vec![b'x'; 6000]).await.unwrap();
            }
        }
    });
    until("all were asked", || req.stats().received >= 3).await;
    stays("that nobody is asked in vain", || req.stats().received == 3).await;
    let numbers = take(&req, 2, |_| ()).await;
    assert!(!numbers.contains(&0));
    assert_eq!(end(req).await, 2);
    answers.abort();
}

async fn answers_that_nobody_takes_are_bounded(at: Place) {
    let directory = TempDir::new().unwrap();
    leave(directory.path(), 20).await;

    let req = open(directory.path(), |builder| builder.outstanding(4)).await;
    req.bind_to(at.address()).await.unwrap();
    let peer = rep(&req).await;
    let asked = || async {
        let request = next(&peer).await;
        let number = request.message().clone();
        request.reply(number.clone()).await.unwrap();
        number
    };
    for number in 0..4 {
        assert_eq!(asked().await, &*number.to_string());
    }
    stays("that no more is asked", || peer.try_recv().is_err()).await;
    // Those that come meanwhile are not held up.
    let (answer, _) = soon("one between", async { tokio::join!(req.request("new"), asked()) }).await;
    assert_eq!(answer, Ok(Message::from("new")));
    let mut numbers = BTreeSet::new();
    for taken in 0..20 {
        let answered = recovered(&req).await;
        assert_eq!(answered.answer(), Ok(answered.request()));
        numbers.insert(number(answered.request()));
        answered.ack().unwrap();
        if taken < 16 {
            assert_eq!(asked().await, &*(taken + 4).to_string());
        }
    }
    assert!(numbers.into_iter().eq(0..20), "each of them once");
    assert_eq!(end(req).await, 0);
    peer.close().await;
}
