//! The other ways to send and to take.

use futures::{SinkExt, StreamExt};
use ropewalk::{Message, Pull, Push, SendError, TrySendError};
use serde::{Deserialize, Serialize};

use crate::{
    common::{Place, address_of, keyed, misbehaved, numbers, rest, soon, standing},
    over_every_transport,
};

over_every_transport! {
    all_forms_of_a_message_arrive,
    values_arrive,
    a_sink_and_a_stream,
    many_at_once,
    what_is_larger_than_accepted_is_given_back,
    who_accepts_less_is_passed_over,
}

async fn all_forms_of_a_message_arrive(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder())).await;
    let (text, bytes, large) = ("text".to_owned(), vec![1u8, 2, 3], vec![7u8; 300_000]);
    push.send("text").await.unwrap();
    push.send(&text).await.unwrap();
    push.send(text.clone()).await.unwrap();
    push.send(&bytes).await.unwrap();
    push.send(bytes.clone()).await.unwrap();
    push.send(&[1, 2, 3]).await.unwrap();
    push.send(bytes::Bytes::from_static(b"text")).await.unwrap();
    push.send(["a", "", "c"]).await.unwrap();
    push.send("").await.unwrap();
    push.send(&large).await.unwrap();
    push.send(Message::from_parts((0..64u8).map(|part| vec![part; usize::from(part) * 100]))).await.unwrap();
    let mut got = Vec::new();
    for _ in 0..11 {
        got.push(soon("a message", pull.recv()).await.unwrap());
    }
    for index in [0, 1, 2, 6] {
        assert_eq!(got[index], "text");
    }
    for index in [3, 4, 5] {
        assert_eq!(got[index], &[1u8, 2, 3][..]);
    }
    assert_eq!(got[7], Message::from(["a", "", "c"]));
    assert_eq!(got[8], "");
    assert_eq!(got[9], &large[..]);
    assert_eq!((got[10].len(), got[10].bytes()), (64, 63 * 64 / 2 * 100));
    assert!(
        got[10].parts().iter().enumerate().all(|(part, bytes)| bytes.iter().all(|byte| usize::from(*byte) == part))
    );
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Job {
    name: String,
    sizes: Vec<u64>,
    next: Option<Box<Job>>,
}

async fn values_arrive(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder())).await;
    let last = Job { name: "last".into(), sizes: vec![], next: None };
    let job = Job { name: "first".into(), sizes: vec![1, 1 << 40], next: Some(Box::new(last)) };
    push.send(Message::encode(&job).unwrap()).await.unwrap();
    let message = soon("a job", pull.recv()).await.unwrap();
    assert_eq!(message.decode::<Job>().unwrap(), job);
    assert!(message.decode::<u8>().is_err());
}

async fn a_sink_and_a_stream(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).send_hwm(3), keyed(Pull::builder()).recv_hwm(2)).await;
    let sending = tokio::spawn(async move {
        let mut sink = push.sink();
        let messages = futures::stream::iter((0..300u64).map(|number| Ok(Message::from(number.to_string()))));
        messages.forward(&mut sink).await.unwrap();
        sink.send(Message::from("300")).await.unwrap();
        sink.close().await.unwrap();
        // The socket is not closed by its sink.
        push.send("301").await.unwrap();
        push.close().await
    });
    let mut stream = pull.stream();
    for expected in 0..302u64 {
        let message = soon("a message", stream.next()).await.unwrap();
        assert_eq!(message, expected.to_string().as_str());
    }
    assert!(soon("the sender", sending).await.unwrap().all_delivered());
    let ending = standing(stream.next()).await;
    pull.close().await;
    assert_eq!(soon("the end", ending).await, None);
}

async fn many_at_once(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).send_hwm(5), keyed(Pull::builder()).recv_hwm(50)).await;
    let sending = tokio::spawn({
        let push = push.clone();
        async move { push.send_all((0..1000u64).map(|number| number.to_string())).await }
    });
    let (mut into, mut most) = (Vec::new(), 0);
    while into.len() < 1000 {
        let before = into.len();
        let took = soon("more", pull.recv_many(&mut into, 20)).await.unwrap();
        assert!((1..=20).contains(&took) && into.len() == before + took);
        most = most.max(took);
    }
    assert!(most > 1, "they come together");
    assert!(into.iter().enumerate().all(|(number, message)| *message == number.to_string().as_str()));
    assert_eq!(soon("the sender", sending).await.unwrap(), Ok(1000));
    assert_eq!(pull.recv_many(&mut into, 0).await, Ok(0));
    push.close().await;
    let refused = push.send_all(["x"]).await;
    assert_eq!(refused, Err(SendError::Closed(Message::from("x"))));
}

async fn what_is_larger_than_accepted_is_given_back(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).max_message(1000).max_parts(3), keyed(Pull::builder())).await;
    let large = Message::from(vec![b'x'; 1001]);
    assert_eq!(push.send(large.clone()).await, Err(SendError::TooLarge(large.clone())));
    assert_eq!(push.try_send(large.clone()), Err(TrySendError::TooLarge(large)));
    let parts = Message::from(["a", "b", "c", "d"]);
    assert_eq!(push.send(parts.clone()).await, Err(SendError::TooLarge(parts)));
    push.send(vec![b'x'; 1000]).await.unwrap();
    push.send(["a", "b", "c"]).await.unwrap();
    assert_eq!(soon("a message", pull.recv()).await.unwrap().bytes(), 1000);
    assert_eq!(soon("a message", pull.recv()).await.unwrap().len(), 3);

    // The receiver's own limit is known to the sender; nothing has to be sent to find out.
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder()).max_message(1000)).await;
    let mut events = pull.events();
    let large = Message::from(vec![b'x'; 1001]);
    assert_eq!(push.send(large.clone()).await, Err(SendError::TooLarge(large)));
    push.send(vec![b'x'; 1000]).await.unwrap();
    assert_eq!(soon("a message", pull.recv()).await.unwrap().bytes(), 1000);
    if !at.is("inproc") {
        // One who does not know it, or does not care, is let go.
        let mut raw = crate::common::raw::Raw::link(&address_of(&pull), ropewalk::Role::PUSH, None).await.0;
        raw.try_write(&crate::common::raw::frames(&[&[0; 1001]])).await;
        assert_eq!(misbehaved(&mut events).await, ropewalk::Misbehaved::MessageTooLarge { limit: 1000 });
    }
}

async fn who_accepts_less_is_passed_over(at: Place) {
    let push = keyed(Push::builder()).build();
    let small = keyed(Pull::builder()).max_message(10).bind(at.address()).await.unwrap();
    let large = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    push.connect_to(address_of(&small)).await.unwrap();
    push.connect_to(address_of(&large)).await.unwrap();
    soon("both", push.ready_with(2)).await.unwrap();
    for number in 0..10u64 {
        push.send(format!("{number:>20}").replace(' ', "0")).await.unwrap();
    }
    assert_eq!(numbers(&large, 10).await, (0..10).collect::<Vec<_>>());
    assert_eq!(rest(&small).await, []);
}
