//! A requester that keeps its requests in a directory until they are answered.

use std::{collections::BTreeSet, path::Path, time::Duration};

use futures::FutureExt;
use ropewalk::{
    Answered, Builder, Closed, Event, Message, RefusalReason, Rep, Req, Request, RequestError,
    patterns::req_rep,
    spool::{Durability, SpoolOptions},
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::common::{LONG, Place, address_of, keyed, soon, standing, stays, until};

over_every_transport!(
    a_request_survives_its_requester,
    what_is_only_to_be_kept_is_answered_later,
    a_request_whose_peer_is_lost_goes_to_another_and_is_the_same,
    a_request_that_is_dropped_comes_again_so_often_and_no_more,
    a_request_without_an_answer_is_asked_again,
    one_who_is_slower_than_a_try_is_heard,
    a_request_that_is_never_answered_is_given_up,
    who_waits_for_an_answer_recovers_in_turn,
    what_nobody_waits_for_any_more_is_answered_all_the_same,
    an_answer_is_handed_out_until_it_is_acknowledged,
    who_closes_keeps_its_requests,
    a_full_directory_holds_up_requests,
    what_is_too_large_is_not_kept,
    without_a_directory_nothing_is_recovered,
);

/// Where nobody has been yet: requests are tried again at once.
pub(super) async fn open(
    directory: &Path,
    set: impl FnOnce(Builder<req_rep::Req<ropewalk::Asker>>) -> Builder<req_rep::Req<ropewalk::Asker>>,
) -> Req {
    let builder = keyed(Req::builder()).reconnect(Duration::from_millis(1), Duration::from_millis(1));
    set(builder).spool(directory, Durability::Os).open().await.unwrap()
}

async fn bound(at: &Place, directory: &Path) -> Req {
    let req = open(directory, |builder| builder).await;
    req.bind_to(at.address()).await.unwrap();
    req
}

pub(super) async fn rep(of: &Req) -> Rep {
    keyed(Rep::builder()).connect(address_of(of)).await.unwrap()
}

pub(super) async fn next(rep: &Rep) -> Request {
    soon("a request", rep.recv()).await.unwrap()
}

pub(super) async fn recovered(req: &Req) -> Answered {
    soon("an answer", req.recover()).await.unwrap()
}

/// How many are not answered, or not acknowledged.
fn left(req: &Req) -> u64 {
    req.spool_stats().unwrap().cursors["req"].unsettled
}

/// Asks in the background.
fn ask(req: &Req, request: &'static str) -> JoinHandle<Result<Message, RequestError>> {
    let req = req.clone();
    tokio::spawn(async move { req.request(request).timeout(LONG).await })
}

/// Asks so many numbers, for whose answers nobody waits.
pub(super) async fn ask_and_go(req: &Req, count: u64) {
    for number in 0..count {
        drop(standing(req.request(number.to_string()).into_future()).await);
    }
    until("all are kept", || left(req) == count).await;
}

/// An earlier life that has done so, and met no peer.
pub(super) async fn leave(directory: &Path, count: u64) {
    let req = open(directory, |builder| builder).await;
    ask_and_go(&req, count).await;
    assert_eq!(end(req).await, count);
}

pub(super) async fn end(req: Req) -> u64 {
    let report = soon("the end", req.close()).await;
    report.spooled
}

async fn a_request_survives_its_requester(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = bound(&at, directory.path()).await;
    let mut asks = std::pin::pin!(req.request("how far?").into_future());
    assert!(asks.as_mut().now_or_never().is_none());
    until("it is kept", || left(&req) == 1).await;
    let peer = rep(&req).await;
    let request = tokio::select! {
        answer = &mut asks => panic!("nobody has answered: {answer:?}"),
        request = next(&peer) => request,
    };
    let id = request.id().expect("it says which it is");
    // The requester dies, and hears nothing of the answer.
    let (answer, report) = soon("the end", async { tokio::join!(asks, req.close()) }).await;
    assert_eq!((answer, report.spooled), (Err(RequestError::Closed), 1));
    drop(request);

    let req = bound(&at, directory.path()).await;
    assert_eq!(req.recovery().unwrap().next_seq, 1);
    let again = rep(&req).await;
    let request = next(&again).await;
    assert_eq!((request.id(), request.message()), (Some(id), &Message::from("how far?")));
    request.reply("far").await.unwrap();
    let answered = recovered(&req).await;
    assert_eq!((answered.id(), answered.request()), (Some(id), &Message::from("how far?")));
    assert_eq!(answered.answer(), Ok(&Message::from("far")));
    answered.ack().unwrap();
    assert_eq!(end(req).await, 0);

    let req = bound(&at, directory.path()).await;
    let third = rep(&req).await;
    soon("a peer", req.ready()).await.unwrap();
    let mut nothing = standing(third.recv()).await;
    stays("that nothing is asked again", || nothing.as_mut().now_or_never().is_none()).await;
    drop(nothing);
    assert_eq!(end(req).await, 0);
    for peer in [peer, again, third] {
        peer.close().await;
    }
}

async fn a_request_whose_peer_is_lost_goes_to_another_and_is_the_same(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = open(directory.path(), |builder| builder.outstanding(1)).await;
    req.bind_to(at.address()).await.unwrap();
    let asks = ask(&req, "one");
    let first = rep(&req).await;
    let request = next(&first).await;
    let id = request.id();
    assert!(id.is_some());
    soon("the end of the first", first.close()).await;
    let second = rep(&req).await;
    let again = next(&second).await;
    assert_eq!((again.id(), again.message()), (id, &Message::from("one")));
    assert_eq!(again.floor(), 0, "it is the oldest that comes again");
    again.reply("re one").await.unwrap();
    assert_eq!(soon("the answer", asks).await.unwrap(), Ok(Message::from("re one")));
    until("it is settled", || left(&req) == 0).await;

    // What is settled for good does not come again, and is told so in the end.
    let next_is_told = async {
        loop {
            let request = next(&second).await;
            let floor = request.floor();
            assert!(request.id().is_some_and(|id| floor <= id.seq));
            request.reply("more").await.unwrap();
            if floor > 0 {
                return;
            }
        }
    };
    let mut told = std::pin::pin!(next_is_told);
    while let Some(asked) = tokio::select! {
        () = &mut told => None,
        asked = req.request("more") => Some(asked),
    } {
        assert_eq!(asked, Ok(Message::from("more")));
    }
    req.close().await;
    second.close().await;
}

async fn a_request_that_is_dropped_comes_again_so_often_and_no_more(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = open(directory.path(), |builder| builder.max_attempts(3)).await;
    req.bind_to(at.address()).await.unwrap();
    let peer = rep(&req).await;
    let asks = ask(&req, "poison");
    for _ in 0..3 {
        drop(next(&peer).await);
    }
    let refused = RequestError::Refused(RefusalReason::Dropped);
    assert_eq!(soon("the refusal", asks).await.unwrap(), Err(refused.clone()));
    assert_eq!(left(&req), 0, "it is not asked any more");

    // The tries count on after a restart, and what nobody waits for says in the end that it was refused.
    drop(standing(req.request("again").into_future()).await);
    drop(next(&peer).await);
    drop(next(&peer).await);
    let third = next(&peer).await;
    end(req).await;
    let req = open(directory.path(), |builder| builder.max_attempts(3)).await;
    req.bind_to(at.address()).await.unwrap();
    let other = rep(&req).await;
    drop((third, next(&other).await));
    let answered = recovered(&req).await;
    assert_eq!((answered.request(), answered.answer()), (&Message::from("again"), Err(&refused)));
    answered.ack().unwrap();
    assert_eq!(end(req).await, 0);
    peer.close().await;
    other.close().await;
}

async fn a_request_without_an_answer_is_asked_again(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = open(directory.path(), |builder| builder.timeout(Duration::from_millis(100))).await;
    req.bind_to(at.address()).await.unwrap();
    let peer = rep(&req).await;
    let asks = tokio::spawn({
        let req = req.clone();
        async move { req.request("one").timeout(LONG).answered().await }
    });
    let held = next(&peer).await;
    let again = next(&peer).await;
    assert_eq!(held.id(), again.id());
    again.reply("re one").await.unwrap();
    let answered = soon("the answer", asks).await.unwrap().unwrap();
    assert_eq!(answered.answer(), Ok(&Message::from("re one")));
    assert_eq!(left(&req), 1);
    answered.ack().unwrap();
    assert_eq!(left(&req), 0);
    // The late answer of the first goes nowhere.
    held.reply("too late").await.unwrap();
    assert_eq!(end(req).await, 0);
    peer.close().await;
}

async fn one_who_is_slower_than_a_try_is_heard(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = open(directory.path(), |builder| builder.timeout(Duration::from_millis(100))).await;
    req.bind_to(at.address()).await.unwrap();
    let peer = rep(&req).await;
    let asks = ask(&req, "slow");
    // It takes three times as long as the first try.
    let slow = async {
        loop {
            let request = next(&peer).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            request.reply("done").await.unwrap();
        }
    };
    tokio::select! {
        answer = asks => assert_eq!(answer.unwrap(), Ok(Message::from("done"))),
        () = slow => {}
    }
    assert_eq!(end(req).await, 0);
    peer.close().await;
}

async fn a_request_that_is_never_answered_is_given_up(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = open(directory.path(), |builder| builder.timeout(Duration::from_millis(100)).max_attempts(2)).await;
    req.bind_to(at.address()).await.unwrap();
    // It waits in the queue of an endpoint that is being dialled.
    req.connect_to(at.nowhere()).await.unwrap();
    let asks = ask(&req, "a hole");
    until("it is kept", || left(&req) == 1).await;
    // As long as nobody is asked, it is not given up.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let peer = rep(&req).await;
    let (first, second) = (next(&peer).await, next(&peer).await);
    assert_eq!(first.id(), second.id());
    assert_eq!(soon("the end of it", asks).await.unwrap(), Err(RequestError::TimedOut));
    assert_eq!(end(req).await, 0);
    drop((first, second));
    peer.close().await;
}

async fn who_waits_for_an_answer_recovers_in_turn(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = bound(&at, directory.path()).await;
    ask_and_go(&req, 2).await;
    let first = standing(req.recover()).await;
    let gone = standing(req.recover()).await;
    let second = standing(req.recover()).await;
    drop(gone);
    let peer = rep(&req).await;
    let requests = [next(&peer).await, next(&peer).await];
    let mut waits = vec![second, first];
    for request in requests {
        request.reply("done").await.unwrap();
        let answered = soon("the first in line", waits.pop().unwrap()).await.unwrap();
        answered.ack().unwrap();
        if let Some(next) = waits.last_mut() {
            assert!(next.now_or_never().is_none());
        }
    }
    drop(waits);
    assert_eq!(end(req).await, 0);
    peer.close().await;
}

async fn what_nobody_waits_for_any_more_is_answered_all_the_same(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = bound(&at, directory.path()).await;
    let timed_out = req.request("one").timeout(Duration::from_millis(10)).await;
    assert_eq!(timed_out, Err(RequestError::NotYet));
    drop(standing(req.request("two").into_future()).await);
    until("both are kept", || left(&req) == 2).await;
    let peer = rep(&req).await;
    for (asked, answer) in [("one", "re one"), ("two", "re two")] {
        let request = next(&peer).await;
        assert_eq!(*request.message(), asked);
        request.reply(answer).await.unwrap();
        let answered = recovered(&req).await;
        assert_eq!((answered.request(), answered.answer()), (&Message::from(asked), Ok(&Message::from(answer))));
        answered.ack().unwrap();
    }
    assert_eq!(end(req).await, 0);
    peer.close().await;
}

async fn an_answer_is_handed_out_until_it_is_acknowledged(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = bound(&at, directory.path()).await;
    let peer = rep(&req).await;
    let answers = async {
        let request = next(&peer).await;
        let id = request.id();
        request.reply("re one").await.unwrap();
        id
    };
    let (answered, id) = soon("the answer", async { tokio::join!(req.request("one").answered(), answers) }).await;
    drop(answered.unwrap());
    let answered = recovered(&req).await;
    assert_eq!((answered.id(), left(&req)), (id, 1));
    // The requester dies before it has done with the answer, and asks again: it is the same request.
    assert_eq!(end(req).await, 1);
    assert!(answered.ack().is_err(), "there is no directory any more to write it into");
    let req = bound(&at, directory.path()).await;
    let other = rep(&req).await;
    let request = next(&other).await;
    assert_eq!(request.id(), id);
    request.reply("re one").await.unwrap();
    recovered(&req).await.ack().unwrap();
    assert_eq!(end(req).await, 0);
    peer.close().await;
    other.close().await;
}

async fn who_closes_keeps_its_requests(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = bound(&at, directory.path()).await;
    let waits: Vec<_> = (0..10)
        .map(|number| {
            let req = req.clone();
            tokio::spawn(async move { req.request(number.to_string()).await })
        })
        .collect();
    until("all are kept", || left(&req) == 10).await;
    let recovers = tokio::spawn({
        let req = req.clone();
        async move { req.recover().await.map(|_| ()) }
    });
    let report = soon("the end", req.close()).await;
    assert_eq!((report.spooled, report.unsent, report.all_delivered()), (10, 0, false), "{report:?}");
    for wait in waits {
        assert_eq!(soon("the end", wait).await.unwrap(), Err(RequestError::Closed));
    }
    assert_eq!(soon("the end", recovers).await.unwrap(), Err(Closed));
    assert_eq!(soon("the end", req.recover()).await.map(|_| ()), Err(Closed));
    assert_eq!(soon("no", req.request("no").into_future()).await, Err(RequestError::Closed));
}

async fn a_full_directory_holds_up_requests(at: Place) {
    let directory = TempDir::new().unwrap();
    let small = SpoolOptions::new(Durability::Os).segment(16 << 10).frame(4 << 10).quota(192 << 10);
    let req = keyed(Req::builder()).spool(directory.path(), small).open().await.unwrap();
    let asks: Vec<_> = (0..100)
        .map(|number| {
            let (req, message) = (req.clone(), format!("{number:4000}"));
            tokio::spawn(async move { req.request(message).timeout(LONG).await })
        })
        .collect();
    until("it is full", || req.spool_stats().unwrap().full || left(&req) > 20).await;
    stays("that it takes no more", || left(&req) < 100).await;
    req.bind_to(at.address()).await.unwrap();
    let peer = rep(&req).await;
    let answers = tokio::spawn(async move { peer.serve(16, |request| async { request }).await });
    for (number, ask) in asks.into_iter().enumerate() {
        assert_eq!(soon("an answer", ask).await.unwrap(), Ok(Message::from(format!("{number:4000}"))));
    }
    assert_eq!(end(req).await, 0);
    answers.abort();
}

async fn what_is_too_large_is_not_kept(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = open(directory.path(), |builder| builder.max_message(100).max_attempts(u32::MAX)).await;
    // Its envelope is 44 bytes.
    let refused = req.request(vec![b'x'; 57]).await;
    assert!(matches!(refused, Err(RequestError::TooLarge(message)) if message.bytes() == 57));
    assert_eq!(left(&req), 0);
    drop(standing(req.request(vec![b'y'; 56]).into_future()).await);
    until("it is kept", || left(&req) == 1).await;
    // What fits here may be too large there.
    req.bind_to(at.address()).await.unwrap();
    let peer = keyed(Rep::builder()).max_message(99).connect(address_of(&req)).await.unwrap();
    soon("a peer", req.ready()).await.unwrap();
    let refused = soon("the refusal", req.request(vec![b'x'; 56]).into_future()).await;
    assert!(matches!(refused, Err(RequestError::TooLarge(message)) if message.bytes() == 56));
    assert_eq!(left(&req), 1);
    // What nobody waits for any more waits for one who takes it.
    let roomy = rep(&req).await;
    next(&roomy).await.reply("done").await.unwrap();
    recovered(&req).await.ack().unwrap();
    assert_eq!(end(req).await, 0);
    peer.close().await;
    roomy.close().await;
}

async fn what_is_only_to_be_kept_is_answered_later(at: Place) {
    let directory = TempDir::new().unwrap();
    let req = bound(&at, directory.path()).await;
    let one = soon("it to be kept", req.request("one").keep()).await.unwrap();
    assert_eq!(soon("the end", req.close()).await.spooled, 1);
    assert_eq!(req.request("late").keep().await, Err(RequestError::Closed));

    let req = bound(&at, directory.path()).await;
    let two = soon("it to be kept", req.request("two").keep()).await.unwrap();
    assert!(req.spool_stats().unwrap().accepted > two.seq);
    assert_eq!((two.stream, two.seq), (one.stream, one.seq + 1));
    let peer = rep(&req).await;
    for _ in 0..2 {
        let request = next(&peer).await;
        let answer = format!("re {}", request.message().text().unwrap());
        request.reply(answer).await.unwrap();
    }
    let mut answers = BTreeSet::new();
    for _ in 0..2 {
        let answered = recovered(&req).await;
        answers.insert((answered.id().unwrap().seq, answered.answer().unwrap().text().unwrap().to_owned()));
        answered.ack().unwrap();
    }
    assert_eq!(answers, BTreeSet::from([(one.seq, "re one".to_owned()), (two.seq, "re two".to_owned())]));
    assert_eq!(end(req).await, 0);
}

async fn without_a_directory_nothing_is_recovered(at: Place) {
    let (req, rep) = at.link(keyed(Req::builder()), keyed(Rep::builder())).await;
    assert_eq!(req.request("x").keep().await, Err(RequestError::NoDirectory("x".into())));
    assert!(req.recovery().is_none() && req.spool_stats().is_none());
    let mut events = req.events();
    let answers = async {
        let request = next(&rep).await;
        assert_eq!((request.id(), request.floor()), (None, 0));
        request.reply("re one").await.unwrap();
    };
    let (answered, ()) = soon("the answer", async { tokio::join!(req.request("one").answered(), answers) }).await;
    let answered = answered.unwrap();
    assert_eq!((answered.id(), answered.request()), (None, &Message::from("one")));
    assert_eq!(answered.answer(), Ok(&Message::from("re one")));
    answered.ack().unwrap();
    let recovers = standing(req.recover()).await;
    let (recovered, _) = soon("the end", async { tokio::join!(recovers, req.close()) }).await;
    assert_eq!(recovered.map(|_| ()), Err(Closed));
    rep.close().await;
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::SpoolFailed { .. }), "{event:?}");
    }
}

/// What nobody waits for any more until the disk has it is asked all the same: whoever hears that it is not would ask again.
/// With the clock at rest, time is over whenever the disk is waited for.
#[tokio::test(start_paused = true)]
async fn what_is_taken_is_never_said_not_to_be_asked() {
    let directory = TempDir::new().unwrap();
    let req = keyed(Req::builder()).spool(directory.path(), Durability::Always).open().await.unwrap();
    for number in 0..20_u64 {
        let kept = req.request(number.to_string()).timeout(Duration::from_secs(1)).keep().await;
        assert!(matches!(kept, Ok(_) | Err(RequestError::NotYet)), "{kept:?}");
        assert_eq!(req.request("x").timeout(Duration::from_secs(1)).await, Err(RequestError::NotYet));
    }
    tokio::time::resume();
    assert_eq!(end(req).await, 40);
}
