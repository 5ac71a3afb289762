//! Requests and their answers.

use std::{collections::BTreeSet, task::Poll, time::Duration};

use ropewalk::{Message, RefusalReason, Rep, ReplyError, Req, Request, RequestError};

use crate::{
    common::{LONG, Place, address_of, keyed, soon, standing, stays, until},
    over_every_transport,
};

over_every_transport! {
    many_at_once_answered_in_any_order,
    a_request_times_out_and_its_late_answer_goes_nowhere,
    a_request_is_asked_again_when_told_so,
    a_request_whose_peer_goes_is_lost,
    a_dropped_request_is_refused_at_once,
    a_request_to_nobody_waits_for_a_peer,
    requests_go_to_each_peer_in_turn,
    outstanding_requests_are_bounded,
    without_ids_one_request_at_a_time_goes_to_each_peer,
    without_ids_a_timeout_closes_the_link,
    a_replier_serves_many_at_once,
    what_is_too_large_is_said_on_both_sides,
    as_many_parts_as_there_may_be,
    answers_that_are_always_there_already,
    closing_ends_requests,
}

async fn pair(at: &Place) -> (Req, Rep) {
    at.link(keyed(Req::builder()), keyed(Rep::builder())).await
}

async fn next(rep: &Rep) -> Request {
    soon("a request", rep.recv()).await.unwrap()
}

async fn many_at_once_answered_in_any_order(at: Place) {
    let (req, rep) = pair(&at).await;
    let asking: Vec<_> = (0..200u64)
        .map(|number| {
            let req = req.clone();
            tokio::spawn(async move { req.request(number.to_string()).timeout(LONG).await })
        })
        .collect();
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(next(&rep).await);
    }
    for request in held.into_iter().rev() {
        let number: u64 = request.message().text().unwrap().parse().unwrap();
        request.reply((number * 2).to_string()).await.unwrap();
    }
    for (number, asking) in asking.into_iter().enumerate() {
        assert_eq!(soon("an answer", asking).await.unwrap().unwrap(), (number * 2).to_string().as_str());
    }
}

async fn a_request_times_out_and_its_late_answer_goes_nowhere(at: Place) {
    let (req, rep) = pair(&at).await;
    let asked = req.request("late").timeout(Duration::from_millis(20)).await;
    assert_eq!(asked, Err(RequestError::TimedOut));
    next(&rep).await.reply("too late").await.unwrap();
    let (answer, ()) = tokio::join!(req.request("next").timeout(LONG), async {
        let request = next(&rep).await;
        assert_eq!(*request.message(), "next");
        request.reply("in time").await.unwrap();
    });
    assert_eq!(answer.unwrap(), "in time");
}

async fn a_request_is_asked_again_when_told_so(at: Place) {
    let (req, rep) = pair(&at).await;
    let replying = async {
        for _ in 0..2 {
            // Kept until it has timed out.
            let request = next(&rep).await;
            let again = next(&rep).await;
            assert_eq!(request.message(), again.message());
            again.reply("at last").await.unwrap();
            let _late = request.reply("late").await;
        }
    };
    let asking = async {
        for _ in 0..2 {
            let answer = req.request("again").timeout(Duration::from_millis(400)).retries(5).await;
            assert_eq!(answer.unwrap(), "at last");
        }
    };
    soon("both", async { tokio::join!(replying, asking) }).await;
}

async fn a_request_whose_peer_goes_is_lost(at: Place) {
    let (req, rep) = pair(&at).await;
    let asking = standing(async { req.request("x").timeout(LONG).await }).await;
    let request = next(&rep).await;
    soon("the end", rep.close()).await;
    assert_eq!(soon("to hear of it", asking).await, Err(RequestError::PeerLost));
    assert_eq!(request.reply("y").await, Err(ReplyError::Closed(Message::from("y"))));

    // The other way round the replier is told.
    let (req, rep) = pair(&at).await;
    let asking = standing(async { req.request("x").timeout(LONG).await }).await;
    let request = next(&rep).await;
    drop(asking);
    soon("the end", req.close()).await;
    until("the requester to be gone", || rep.stats().peers.is_empty()).await;
    assert_eq!(request.reply("y").await, Err(ReplyError::PeerLost(Message::from("y"))));
}

async fn a_dropped_request_is_refused_at_once(at: Place) {
    let (req, rep) = pair(&at).await;
    for _ in 0..10 {
        let asking = standing(async { req.request("x").timeout(3 * LONG).await }).await;
        drop(next(&rep).await);
        assert_eq!(soon("a refusal", asking).await, Err(RequestError::Refused(RefusalReason::Dropped)));
    }
}

async fn a_request_to_nobody_waits_for_a_peer(at: Place) {
    let rep = keyed(Rep::builder()).bind(at.address()).await.unwrap();
    let address = address_of(&rep);
    rep.close().await;
    let req =
        keyed(Req::builder()).reconnect(Duration::ZERO, Duration::from_millis(20)).connect(&address).await.unwrap();
    let asking = standing(async { req.request("early").timeout(LONG).await }).await;
    let rep = keyed(Rep::builder()).bind(&address).await.unwrap();
    next(&rep).await.reply("served").await.unwrap();
    assert_eq!(soon("an answer", asking).await.unwrap(), "served");
    // One that nobody waits for any more is not asked at all.
    rep.close().await;
    until("nobody to be linked", || req.stats().peers.is_empty()).await;
    assert_eq!(req.request("given up").timeout(Duration::from_millis(5)).await, Err(RequestError::NotAsked));
    assert_eq!(req.stats().unlinked.messages, 0);
    // One that was asked once, and then nobody, may have been done.
    let rep = keyed(Rep::builder()).bind(&address).await.unwrap();
    soon("the link", req.ready()).await.unwrap();
    let asks = async { req.request("held").timeout(Duration::from_millis(200)).retries(2).await };
    let goes = async {
        let held = next(&rep).await;
        rep.close().await;
        drop(held);
    };
    let (asked, ()) = soon("the time-out", async { tokio::join!(asks, goes) }).await;
    assert_eq!(asked, Err(RequestError::TimedOut));
}

async fn requests_go_to_each_peer_in_turn(at: Place) {
    let req = keyed(Req::builder()).build();
    let mut reps = Vec::new();
    for _ in 0..3 {
        let rep = keyed(Rep::builder()).bind(at.address()).await.unwrap();
        req.connect_to(address_of(&rep)).await.unwrap();
        reps.push(rep);
    }
    soon("all three", req.ready_with(3)).await.unwrap();
    let mut asking = Vec::new();
    for number in 0..12 {
        let req = req.clone();
        asking.push(standing(async move { req.request(number.to_string()).timeout(LONG).await }).await);
    }
    let mut firsts = BTreeSet::new();
    for rep in &reps {
        let mut numbers = Vec::new();
        for _ in 0..4 {
            let request = next(rep).await;
            numbers.push(request.message().text().unwrap().parse::<u32>().unwrap());
            request.reply("x").await.unwrap();
        }
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 3), "{numbers:?}");
        firsts.insert(numbers[0]);
    }
    assert_eq!(firsts.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    for asking in asking {
        soon("an answer", asking).await.unwrap();
    }
}

async fn outstanding_requests_are_bounded(at: Place) {
    let (req, rep) = at.link(keyed(Req::builder()).outstanding(5), keyed(Rep::builder())).await;
    let mut asking = Vec::new();
    for number in 0..10 {
        let req = req.clone();
        asking.push(standing(async move { req.request(number.to_string()).timeout(LONG).await }).await);
    }
    let mut asking: Vec<_> = asking.into_iter().map(tokio::spawn).collect();
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(next(&rep).await);
    }
    stays("five", || rep.try_recv().is_err()).await;
    // Each that ends lets one more go, in order; an abandoned one too.
    held.remove(0).reply("x").await.unwrap();
    assert_eq!(*next(&rep).await.message(), "5");
    asking.remove(1).abort();
    assert_eq!(*next(&rep).await.message(), "6");
}

async fn without_ids_one_request_at_a_time_goes_to_each_peer(at: Place) {
    let (req, rep) = at.link(keyed(Req::builder()).correlate(false), keyed(Rep::builder())).await;
    let first = standing(async { req.request("1").timeout(LONG).await }).await;
    let second = standing(async { req.request("2").timeout(LONG).await }).await;
    let request = next(&rep).await;
    stays("one request", || rep.try_recv().is_err()).await;
    request.reply("one").await.unwrap();
    assert_eq!(soon("an answer", first).await.unwrap(), "one");
    let (answer, ()) = tokio::join!(second, async { next(&rep).await.reply("two").await.unwrap() });
    assert_eq!(answer.unwrap(), "two");
}

async fn without_ids_a_timeout_closes_the_link(at: Place) {
    let reconnect = Duration::from_millis(10);
    let builder = keyed(Req::builder()).correlate(false).reconnect(Duration::ZERO, reconnect);
    let (req, rep) = at.link(builder, keyed(Rep::builder())).await;
    // It has to have been written: one that is given up before is not asked at all.
    let asking = async { req.request("1").timeout(Duration::from_millis(500)).await };
    let (asked, request) = tokio::join!(asking, next(&rep));
    assert_eq!(asked, Err(RequestError::TimedOut));
    until("the link to be closed", || rep.stats().peers.iter().all(|peer| peer.peer.number != request.peer().number))
        .await;
    assert!(matches!(request.reply("wrong").await, Err(ReplyError::PeerLost(_))));
    let (answer, ()) = tokio::join!(req.request("2").timeout(LONG), async {
        next(&rep).await.reply("right").await.unwrap();
    });
    assert_eq!(answer.unwrap(), "right");
}

async fn a_replier_serves_many_at_once(at: Place) {
    let (req, rep) = pair(&at).await;
    let serving = tokio::spawn({
        let rep = rep.clone();
        async move {
            let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(10));
            rep.serve(10, move |message| {
                let barrier = barrier.clone();
                async move {
                    assert_ne!(message, "panic");
                    barrier.wait().await;
                    Message::from(format!("{} served", message.text().unwrap()))
                }
            })
            .await;
        }
    });
    for _ in 0..3 {
        let asking = (0..10).map(|number| {
            let req = req.clone();
            async move { req.request(number.to_string()).timeout(LONG).await }
        });
        for (number, answer) in soon("ten answers", futures::future::join_all(asking)).await.into_iter().enumerate() {
            assert_eq!(answer.unwrap(), format!("{number} served").as_str());
        }
    }
    let refused = req.request("panic").timeout(LONG).await;
    assert_eq!(refused, Err(RequestError::Refused(RefusalReason::Dropped)));
    soon("the end", rep.close()).await;
    soon("serve to end", serving).await.unwrap();
}

async fn what_is_too_large_is_said_on_both_sides(at: Place) {
    let (req, rep) = at.link(keyed(Req::builder()).max_message(1000), keyed(Rep::builder())).await;
    let large = vec![b'x'; 2000];
    assert!(matches!(req.request(&large).await, Err(RequestError::TooLarge(message)) if message.bytes() == 2000));
    let (answer, replied) =
        tokio::join!(req.request("x").timeout(LONG), async { next(&rep).await.reply(large.clone()).await });
    assert!(matches!(replied, Err(ReplyError::TooLarge(message)) if message.bytes() == 2000));
    assert_eq!(answer, Err(RequestError::Refused(RefusalReason::TooLarge)));
}

async fn closing_ends_requests(at: Place) {
    let (req, rep) = pair(&at).await;
    let asking = standing(async { req.request("x").timeout(LONG).await }).await;
    let receiving = standing(async {
        let _first = rep.recv().await;
        rep.recv().await.map(drop)
    });
    let receiving = receiving.await;
    req.close().await;
    assert_eq!(soon("to hear of it", asking).await, Err(RequestError::Closed));
    assert_eq!(req.request("y").await, Err(RequestError::Closed));
    let (ended, _) = tokio::join!(receiving, rep.close());
    assert_eq!(ended, Err(ropewalk::Closed));
}

/// What stands before a request or an answer counts as parts, and nobody breaks the link over one too many.
async fn as_many_parts_as_there_may_be(at: Place) {
    let (req, rep) = pair(&at).await;
    let of = |parts: usize| Message::from_parts((0..parts).map(|_| bytes::Bytes::from_static(b"x")));
    for parts in 60..=64 {
        let mut asking = Box::pin(req.request(of(parts)).into_future());
        match futures::poll!(&mut asking) {
            Poll::Ready(refused) => {
                assert!(parts > 62 && matches!(refused, Err(RequestError::TooLarge(_))), "{parts} {refused:?}");
            }
            Poll::Pending => {
                assert!(parts <= 62, "{parts}");
                assert_eq!(next(&rep).await.message().len(), parts);
            }
        }
    }
    let asking = standing({
        let req = req.clone();
        async move { req.request("?").await }
    })
    .await;
    let asking = tokio::spawn(asking);
    let refused = next(&rep).await.reply(of(63)).await;
    assert!(matches!(refused, Err(ReplyError::TooLarge(_))), "{refused:?}");
    let refused = soon("a refusal", asking).await.unwrap();
    assert!(matches!(refused, Err(RequestError::Refused(RefusalReason::TooLarge))), "{refused:?}");
    // All over one link.
    assert_eq!(rep.stats().peers[0].received, 4);
}

/// Whoever asks again and again and never has to wait still lets the runtime have its turn, and goes on after it.
async fn answers_that_are_always_there_already(at: Place) {
    let (req, rep) = pair(&at).await;
    tokio::spawn(async move { rep.serve(1, |question| async move { question }).await });
    let (mut asking, mut answered, mut patience) = (None, 0, 0);
    let all = std::future::poll_fn(|cx| {
        while answered < 300 {
            let asked = asking.get_or_insert_with(|| req.request("?").into_future());
            match asked.as_mut().poll(cx) {
                Poll::Ready(answer) => {
                    answer.unwrap();
                    (asking, answered, patience) = (None, answered + 1, 0);
                }
                // By then the answer is there, as if we had been slow.
                Poll::Pending if patience < 20 => {
                    patience += 1;
                    std::thread::sleep(Duration::from_micros(200));
                }
                Poll::Pending => {
                    patience = 0;
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(())
    });
    soon("all answers", all).await;
}
