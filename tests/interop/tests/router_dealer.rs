//! REQ and REP against libzmq's ROUTER and DEALER, which show and make the envelopes.

use std::time::Duration;

use ropewalk::{Message, Rep, Req, RequestError, spool::Durability};
use ropewalk_interop::{Case, Parts, Peer, Scheme, SocketType, everywhere, parts, until, within};
use tokio::task::JoinSet;

everywhere!(
    a_router_sees_id_delimiter_and_request,
    a_rep_and_a_router_answer_a_request_that_is_kept,
    answers_in_any_order_find_their_requests,
    what_is_no_answer_is_passed_over,
    a_dealer_gets_its_envelope_back,
    what_is_no_request_is_passed_over,
    a_dealer_has_many_requests_in_flight,
    without_ids_one_request_at_a_time,
    a_late_answer_over_the_next_link_is_nobodys,
);

/// Turns requests around in an order that looks like chance and is the same every time.
fn shuffle<T>(items: &mut [T]) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for index in (1..items.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        items.swap(index, (state % (index as u64 + 1)) as usize);
    }
}

fn bytes(text: &str) -> Vec<u8> {
    text.into()
}

/// Asks in the background.
fn ask(req: &Req, message: impl Into<Message>) -> tokio::task::JoinHandle<Result<Message, RequestError>> {
    let (req, message) = (req.clone(), message.into());
    tokio::spawn(async move { req.request(message).await })
}

async fn a_router_sees_id_delimiter_and_request(case: Case) {
    let peer = Peer::new(SocketType::ROUTER);
    let req = case.link(Req::builder().identity("a label"), &peer).await;
    let asking = ask(&req, ["ABC", "DEF"]);
    let got = peer.recv();
    let [label, id, delimiter, first, second] = <[Vec<u8>; 5]>::try_from(got).unwrap();
    assert_eq!(label, b"a label", "the ROUTER's own part: whom it came from");
    assert_eq!(id.len(), 4);
    assert_eq!((delimiter, first, second), (bytes(""), bytes("ABC"), bytes("DEF")));
    peer.send([label, id, bytes(""), bytes("GHI"), bytes("")]);
    let answer = within("the answer", asking).await.unwrap().unwrap();
    assert_eq!(parts(&answer), [bytes("GHI"), bytes("")]);
}

async fn a_rep_and_a_router_answer_a_request_that_is_kept(case: Case) {
    for kind in [SocketType::REP, SocketType::ROUTER] {
        let (peer, directory) = (Peer::new(kind), tempfile::tempdir().unwrap());
        let req = Req::builder().spool(directory.path(), Durability::Os).open().await.unwrap();
        case.attach(&req, &peer).await;
        for number in 0..3 {
            let asking = ask(&req, number.to_string());
            let mut request = peer.recv();
            if kind == SocketType::ROUTER {
                let [_, id, delimiter, _] = &request[..] else { panic!("{request:?}") };
                assert_eq!((id.len(), delimiter.len()), (44, 0));
            }
            assert_eq!(request.last(), Some(&number.to_string().into_bytes()));
            *request.last_mut().unwrap() = bytes("good");
            peer.send(request);
            assert_eq!(within("the answer", asking).await.unwrap().unwrap(), "good");
        }
        assert_eq!(within("the end", req.close()).await.spooled, 0);
    }
}

async fn answers_in_any_order_find_their_requests(case: Case) {
    const REQUESTS: u32 = 1000;
    let peer = Peer::new(SocketType::ROUTER);
    let req = case.link(Req::builder().outstanding(REQUESTS as usize), &peer).await;
    let mut asking = JoinSet::new();
    for number in 0..REQUESTS {
        let req = req.clone();
        asking.spawn(async move {
            let answer = req.request(&number.to_be_bytes()).await.unwrap();
            assert_eq!(answer, &(number ^ 0xFFFF_FFFF).to_be_bytes()[..], "of request {number}");
        });
    }
    // All are in flight at once: none is answered before the last has come.
    let mut requests: Vec<Parts> = (0..REQUESTS).map(|_| peer.recv()).collect();
    shuffle(&mut requests);
    for mut request in requests {
        let body = request.last_mut().unwrap();
        body.iter_mut().for_each(|byte| *byte = !*byte);
        peer.send(request);
    }
    let all = async { while asking.join_next().await.transpose().unwrap().is_some() {} };
    within("all answers", all).await;
}

async fn what_is_no_answer_is_passed_over(case: Case) {
    let peer = Peer::new(SocketType::ROUTER);
    let req = case.link(Req::builder(), &peer).await;
    let asking = ask(&req, "question");
    let [label, id, ..] = <[Vec<u8>; 4]>::try_from(peer.recv()).unwrap();
    let other = id.iter().map(|byte| !byte).collect::<Vec<_>>();
    let (wrong, none) = (bytes("wrong"), Vec::new());
    for bad in [
        vec![wrong.clone()],
        vec![none.clone(), wrong.clone()],
        vec![id.clone(), wrong.clone()],
        vec![id.clone(), wrong.clone(), wrong.clone()],
        vec![other, none.clone(), wrong.clone()],
        vec![id[..3].to_vec(), none.clone(), wrong.clone()],
        vec![wrong.clone(), id.clone(), none.clone(), wrong.clone()],
        vec![id.clone(), none.clone()],
        vec![id.clone()],
        vec![none.clone()],
    ] {
        peer.send([label.clone()].into_iter().chain(bad));
    }
    peer.send([label.clone(), id.clone(), none.clone(), bytes("good")]);
    // The second answer to one request is nobody's.
    peer.send([label, id, none, bytes("wrong")]);
    assert_eq!(within("the answer", asking).await.unwrap().unwrap(), "good");
    let asking = ask(&req, "another");
    let mut request = peer.recv();
    *request.last_mut().unwrap() = bytes("good too");
    peer.send(request);
    assert_eq!(within("the answer", asking).await.unwrap().unwrap(), "good too");
    assert_eq!(req.stats().peers.len(), 1, "the link is still the same");
}

async fn a_dealer_gets_its_envelope_back(case: Case) {
    let peer = Peer::new(SocketType::DEALER);
    let rep = case.link(Rep::builder(), &peer).await;
    for envelope in [vec![""], vec!["X", "Y", ""], vec!["one", ""]] {
        let with = |body: &[&str]| -> Parts { envelope.iter().chain(body).map(|part| bytes(part)).collect() };
        peer.send(with(&["A", "", "B"]));
        let request = within("the request", rep.recv()).await.unwrap();
        assert_eq!(parts(request.message()), [bytes("A"), bytes(""), bytes("B")], "the first empty part ends it");
        request.reply(["C", ""]).await.unwrap();
        assert_eq!(peer.recv(), with(&["C", ""]));
    }
}

async fn what_is_no_request_is_passed_over(case: Case) {
    let peer = Peer::new(SocketType::DEALER);
    let rep = case.link(Rep::builder(), &peer).await;
    for bad in [vec!["no delimiter"], vec!["no", "delimiter", "either"], vec![""], vec!["nothing behind it", ""]] {
        peer.send(bad);
    }
    peer.send(["", "good"]);
    let request = within("the request", rep.recv()).await.unwrap();
    assert_eq!(*request.message(), "good");
    request.reply("yes").await.unwrap();
    assert_eq!(peer.recv(), [bytes(""), bytes("yes")]);
}

async fn a_dealer_has_many_requests_in_flight(case: Case) {
    const REQUESTS: u32 = 500;
    let peer = Peer::new(SocketType::DEALER);
    let rep = case.link(Rep::builder(), &peer).await;
    for number in 0..REQUESTS {
        peer.send([&number.to_be_bytes()[..], b"", b"question"]);
    }
    let mut requests = Vec::new();
    for _ in 0..REQUESTS {
        requests.push(within("a request", rep.recv()).await.unwrap());
    }
    shuffle(&mut requests);
    for request in requests {
        within("the reply", request.reply("answer")).await.unwrap();
    }
    let mut answered: Vec<u32> = (0..REQUESTS)
        .map(|_| {
            let [number, delimiter, answer] = <[Vec<u8>; 3]>::try_from(peer.recv()).unwrap();
            assert_eq!((delimiter, answer), (bytes(""), bytes("answer")));
            u32::from_be_bytes(number.try_into().unwrap())
        })
        .collect();
    answered.sort_unstable();
    assert!(answered.into_iter().eq(0..REQUESTS), "each once");
}

async fn without_ids_one_request_at_a_time(case: Case) {
    let peer = Peer::new(SocketType::ROUTER);
    let req = case.link(Req::builder().correlate(false), &peer).await;
    let asking = [ask(&req, "question"), ask(&req, "question")];
    for answer in ["first", "second"] {
        let [label, delimiter, body] = <[Vec<u8>; 3]>::try_from(peer.recv()).unwrap();
        assert_eq!((delimiter, body), (bytes(""), bytes("question")), "no id");
        let early = peer.recv_within(Duration::from_millis(20));
        assert_eq!(early, None, "the next waits for the answer to this");
        peer.send([label, bytes(""), bytes(answer)]);
    }
    let mut answers = Vec::new();
    for asking in asking {
        answers.push(within("the answer", asking).await.unwrap().unwrap().text().unwrap().to_owned());
    }
    answers.sort();
    assert_eq!(answers, ["first", "second"]);
}

/// Only where libzmq has bound: one that has connected keeps its queue, and the label of its peer, for the next link, so
/// that a late answer comes over that and nothing tells it from the right one. That is what ids are for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_ids_a_late_answer_is_nobodys() {
    for scheme in [Scheme::Tcp, Scheme::Ipc] {
        let case = Case::new(scheme, false);
        let peer = Peer::new(SocketType::ROUTER);
        let req = case.link(Req::builder().correlate(false), &peer).await;
        let asking = async { req.request("slow").timeout(Duration::from_millis(300)).await };
        let (gave_up, asked) = tokio::join!(asking, async { peer.recv() });
        assert_eq!(gave_up, Err(RequestError::TimedOut));
        let [slow, ..] = <[Vec<u8>; 3]>::try_from(asked).unwrap();
        // The link is closed, so that what comes late cannot be taken for the next one's answer.
        let asking = ask(&req, "next");
        peer.send([slow, bytes(""), bytes("late")]);
        let [label, _, body] = <[Vec<u8>; 3]>::try_from(peer.recv()).unwrap();
        assert_eq!(body, b"next");
        peer.send([label, bytes(""), bytes("right")]);
        assert_eq!(within("the answer", asking).await.unwrap().unwrap(), "right");
    }
}

/// With ids it is, whoever has bound: the late answer comes over the next link and finds nobody.
async fn a_late_answer_over_the_next_link_is_nobodys(case: Case) {
    let peer = Peer::with(SocketType::ROUTER, |socket| socket.set_reconnect_ivl(5).unwrap());
    let req = Req::builder().reconnect(Duration::from_millis(5), Duration::from_millis(50)).build();
    let address = case.attach(&req, &peer).await;
    let slow = ask(&req, "slow");
    let mut late = peer.recv();
    // Our end of the link goes, and comes back.
    if case.ropewalk_binds {
        req.unbind(&address).await.unwrap();
        req.bind_to(&address).await.unwrap();
    } else {
        req.disconnect(&address).await.unwrap();
        req.connect_to(&address).await.unwrap();
    }
    assert_eq!(within("the loss", slow).await.unwrap(), Err(RequestError::PeerLost));
    let next = ask(&req, "next");
    let mut request = peer.recv();
    *late.last_mut().unwrap() = bytes("late");
    // The same peer by its label, if libzmq takes it for the same.
    late[0].clone_from(&request[0]);
    peer.send(late);
    *request.last_mut().unwrap() = bytes("right");
    peer.send(request);
    assert_eq!(within("the answer", next).await.unwrap().unwrap(), "right");
    until("both answers", || req.stats().received == 2).await;
}

/// Of three ROUTERs all answer, also those that were not asked: only the one that was counts. RFC 28 demands it, and
/// libzmq's own test of it (`test_req_only_listens_to_current_peer`) is switched off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_peer_that_was_asked_is_listened_to() {
    let case = Case::new(Scheme::Tcp, false);
    for correlate in [true, false] {
        let req = Req::builder().correlate(correlate).identity("asker").build();
        let routers: Vec<Peer> = (0..3).map(|_| Peer::new(SocketType::ROUTER)).collect();
        for router in &routers {
            case.attach(&req, router).await;
        }
        within("three peers", req.ready_with(3)).await.unwrap();
        // A ROUTER drops what is for a label it does not know yet.
        for _ in 0..routers.len() {
            let asking = ask(&req, "warm");
            let (asked, request) = first_asked(&routers).await;
            routers[asked].send(request);
            within("the answer", asking).await.unwrap().unwrap();
        }
        for round in 0..6 {
            let asking = ask(&req, "question");
            let (asked, mut request) = first_asked(&routers).await;
            for (index, router) in routers.iter().enumerate() {
                if index != asked {
                    *request.last_mut().unwrap() = bytes("WRONG");
                    router.send(request.clone());
                }
            }
            // Those answers are there before the right one is sent.
            let arrived = || req.stats().received;
            let before = 3 + round * 3;
            until("the wrong answers", || arrived() == before + 2).await;
            *request.last_mut().unwrap() = bytes("GOOD");
            routers[asked].send(request);
            assert_eq!(within("the answer", asking).await.unwrap().unwrap(), "GOOD", "round {round}");
        }
    }
}

/// Who of them is asked next, and what.
async fn first_asked(routers: &[Peer]) -> (usize, Parts) {
    let mut found = None;
    let look = || {
        found =
            routers.iter().enumerate().find_map(|(index, router)| Some((index, router.recv_within(Duration::ZERO)?)));
        found.is_some()
    };
    until("a router is asked", look).await;
    found.unwrap()
}
