//! A replier that keeps its answers in a directory until their requests come no more.

use std::{fs, path::Path, time::Duration};

use ropewalk::{Message, RefusalReason, Rep, ReplyError, Req, Request, RequestError, SecretKey, spool::Durability};
use tempfile::TempDir;

use crate::common::{KEY, LONG, Place, address_of, keyed, soon, standing, stays, until};

over_every_transport!(
    a_request_that_comes_again_has_the_same_answer,
    an_answer_survives_who_gave_it,
    one_in_hand_is_not_handed_out_again_and_who_asked_last_is_answered,
    what_is_dropped_is_handed_out_again,
    what_comes_no_more_is_forgotten,
    an_old_copy_is_not_done_again_by_the_next_life_either,
    who_does_not_say_which_request_it_is_has_nothing_kept,
    nobody_else_is_given_an_answer,
    an_answer_that_is_too_large_is_said_on_both_sides,
);

/// Who asks again at once, and has one request under way.
async fn req(directory: &Path, rep: &Rep) -> Req {
    req_that_waits(Duration::from_millis(100), directory, rep).await
}

async fn req_that_waits(timeout: Duration, directory: &Path, rep: &Rep) -> Req {
    let builder = keyed(Req::builder()).reconnect(Duration::from_millis(1), Duration::from_millis(1));
    let builder = builder.timeout(timeout).outstanding(1);
    builder.spool(directory, Durability::Os).connect(address_of(rep)).await.unwrap()
}

async fn rep(at: &Place, directory: &Path) -> Rep {
    keyed(Rep::builder()).spool(directory, Durability::Os).bind(at.address()).await.unwrap()
}

async fn next(rep: &Rep) -> Request {
    soon("a request", rep.recv()).await.unwrap()
}

/// How many answers are kept.
fn kept(rep: &Rep) -> u64 {
    rep.spool_stats().unwrap().cursors["rep"].unsettled
}

/// Asks, and dies before it is done with the answer.
async fn ask_and_die(req: Req, rep: &Rep, answer: &str) {
    let answers = async { next(rep).await.reply(answer).await.unwrap() };
    let asks = req.request("one").timeout(LONG).answered();
    let (answered, ()) = soon("the answer", async { tokio::join!(asks, answers) }).await;
    assert_eq!(answered.unwrap().answer(), Ok(&Message::from(answer)));
    assert_eq!(soon("the end", req.close()).await.spooled, 1);
}

/// The answer that is given again, and nothing is handed out for it.
async fn is_answered_again(req: &Req, rep: &Rep, answer: &str) {
    let answered = tokio::select! {
        handed_out = rep.recv() => panic!("{handed_out:?} was handed out again"),
        answered = soon("the answer", req.recover()) => answered.unwrap(),
    };
    assert_eq!(answered.answer(), Ok(&Message::from(answer)));
    answered.ack().unwrap();
    stays("that nothing is handed out", || rep.try_recv().is_err()).await;
}

async fn a_request_that_comes_again_has_the_same_answer(at: Place) {
    let (asks, answers) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let rep = rep(&at, answers.path()).await;
    ask_and_die(req(asks.path(), &rep).await, &rep, "re one").await;
    assert_eq!(kept(&rep), 1);
    let req = req(asks.path(), &rep).await;
    is_answered_again(&req, &rep, "re one").await;
    req.close().await;
    let report = soon("the end", rep.close()).await;
    assert!(report.all_delivered(), "an answer that is kept is not one that was not delivered: {report:?}");
}

async fn an_answer_survives_who_gave_it(at: Place) {
    let (asks, answers) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let first = rep(&at, answers.path()).await;
    ask_and_die(req(asks.path(), &first).await, &first, "re one").await;
    soon("the end", first.close()).await;
    let rep = rep(&at, answers.path()).await;
    assert_eq!((rep.recovery().unwrap().next_seq, kept(&rep)), (1, 1));
    let req = req(asks.path(), &rep).await;
    is_answered_again(&req, &rep, "re one").await;
    req.close().await;
    rep.close().await;
}

async fn one_in_hand_is_not_handed_out_again_and_who_asked_last_is_answered(at: Place) {
    let (asks, answers) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let rep = rep(&at, answers.path()).await;
    let first = req(asks.path(), &rep).await;
    drop(standing(first.request("slow").into_future()).await);
    let held = next(&rep).await;
    let received = rep.stats().received;
    // It times out and is asked again; then its requester dies, and asks again.
    until("it comes again", || rep.stats().received > received).await;
    assert!(rep.try_recv().is_err(), "the application has it");
    soon("the end", first.close()).await;
    // This one asks once.
    let again = req_that_waits(2 * LONG, asks.path(), &rep).await;
    until("it comes again", || rep.stats().received > received + 1 && rep.try_recv().is_err()).await;
    held.reply("done").await.unwrap();
    is_answered_again(&again, &rep, "done").await;
    assert_eq!(rep.spool_stats().unwrap().seqs.end, 1, "one answer was kept");
    again.close().await;
    rep.close().await;
}

async fn what_is_dropped_is_handed_out_again(at: Place) {
    let (asks, answers) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let rep = rep(&at, answers.path()).await;
    let req = req(asks.path(), &rep).await;
    let asking = tokio::spawn({
        let req = req.clone();
        async move { req.request("one").timeout(LONG).await }
    });
    let first = next(&rep).await;
    let id = first.id();
    drop(first);
    let second = next(&rep).await;
    assert_eq!((second.id(), kept(&rep)), (id, 0));
    second.reply("done").await.unwrap();
    assert_eq!(soon("the answer", asking).await.unwrap(), Ok(Message::from("done")));
    req.close().await;
    rep.close().await;
}

async fn what_comes_no_more_is_forgotten(at: Place) {
    let (asks, answers) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let rep = rep(&at, answers.path()).await;
    let req = req(asks.path(), &rep).await;
    let served = tokio::spawn({
        let rep = rep.clone();
        async move { rep.serve(4, |request| async { request }).await }
    });
    let mut asked = 0;
    // Its requester says so when that is synced.
    while asked < 50 || kept(&rep) > 10 {
        let answer = soon("an answer", req.request(asked.to_string()).timeout(LONG).into_future()).await;
        assert_eq!(answer, Ok(Message::from(asked.to_string())));
        asked += 1;
        assert!(asked < 10_000, "nothing is forgotten: {} of {asked}", kept(&rep));
    }
    req.close().await;
    rep.close().await;
    served.await.unwrap();
}

async fn an_old_copy_is_not_done_again_by_the_next_life_either(at: Place) {
    let (asks, answers, old) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let first = rep(&at, answers.path()).await;
    let asking = req_that_waits(LONG, asks.path(), &first).await;
    let one = {
        let asked = standing(asking.request("one").timeout(LONG).into_future()).await;
        let one = next(&first).await;
        // What a requester is that never heard of the answer, or of what came behind.
        for entry in fs::read_dir(asks.path()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, old.path().join(path.file_name().unwrap())).unwrap();
        }
        let id = one.id().unwrap();
        one.reply("re one").await.unwrap();
        assert_eq!(soon("the answer", asked).await, Ok(Message::from("re one")));
        id
    };
    // Until it says that the first comes no more.
    for number in 0.. {
        let asked = standing(asking.request("more").timeout(LONG).into_future()).await;
        let request = next(&first).await;
        let floor = request.floor();
        request.reply("re more").await.unwrap();
        soon("the answer", asked).await.unwrap();
        if floor > one.seq {
            break;
        }
        assert!(number < 10_000, "nothing is forgotten");
    }
    asking.close().await;
    soon("the end", first.close()).await;

    let rep = rep(&at, answers.path()).await;
    let builder = keyed(Req::builder()).reconnect(Duration::from_millis(1), Duration::from_millis(1)).max_attempts(1);
    let again = builder.spool(old.path(), Durability::Os).connect(address_of(&rep)).await.unwrap();
    let answered = tokio::select! {
        handed_out = rep.recv() => panic!("{handed_out:?} was handed out again"),
        answered = soon("the end of it", again.recover()) => answered.unwrap(),
    };
    assert_eq!(answered.id(), Some(one));
    assert_eq!(answered.answer(), Err(&RequestError::Refused(RefusalReason::Dropped)));
    answered.ack().unwrap();
    again.close().await;
    rep.close().await;
}

async fn who_does_not_say_which_request_it_is_has_nothing_kept(at: Place) {
    let answers = TempDir::new().unwrap();
    let rep = rep(&at, answers.path()).await;
    let req = keyed(Req::builder()).connect(address_of(&rep)).await.unwrap();
    for _ in 0..3 {
        let replies = async { next(&rep).await.reply("re one").await.unwrap() };
        let (answer, ()) = soon("the answer", async { tokio::join!(req.request("one"), replies) }).await;
        assert_eq!(answer, Ok(Message::from("re one")));
    }
    assert_eq!(rep.spool_stats().unwrap().seqs.end, 0);
    req.close().await;
    rep.close().await;
}

async fn nobody_else_is_given_an_answer(at: Place) {
    let (asks, answers) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let rep = rep(&at, answers.path()).await;
    ask_and_die(req(asks.path(), &rep).await, &rep, "re one").await;
    // One who says that it is the same, but has another key.
    let other = SecretKey::generate();
    rep.allow([other.id()]);
    let req = Req::builder().key(other).allow([KEY.id()]).spool(asks.path(), Durability::Os);
    let req = req.connect(address_of(&rep)).await.unwrap();
    if at.is("tls") || at.is("quic") {
        next(&rep).await.reply("who are you?").await.unwrap();
        is_answered_again(&req, &rep, "who are you?").await;
        assert_eq!(kept(&rep), 2);
    } else {
        is_answered_again(&req, &rep, "re one").await;
    }
    req.close().await;
    rep.close().await;
}

async fn an_answer_that_is_too_large_is_said_on_both_sides(at: Place) {
    let (asks, answers) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let rep = rep(&at, answers.path()).await;
    let small = keyed(Req::builder()).max_message(100).spool(asks.path(), Durability::Os);
    let req = small.connect(address_of(&rep)).await.unwrap();
    let replies = async { next(&rep).await.reply(vec![b'x'; 200]).await };
    let (answer, reply) = soon("the refusal", async { tokio::join!(req.request("one"), replies) }).await;
    assert_eq!(answer, Err(RequestError::Refused(RefusalReason::TooLarge)));
    assert!(matches!(reply, Err(ReplyError::TooLarge(message)) if message.bytes() == 200));
    req.close().await;
    rep.close().await;
}
