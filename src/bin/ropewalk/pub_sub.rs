//! `pub` and `sub`.

use std::time::Instant;

use ropewalk::{Pub, Sub};

use crate::{
    args::{PubArgs, SubArgs},
    failure::Failure,
    input::{Given, Source, feed},
    output::Output,
    push_pull::{Receiver, finish},
    socket::{Opened, only_blocks},
    stop::Stop,
};

/// `ropewalk pub`.
pub(crate) async fn publish(args: PubArgs, stop: &Stop) -> Result<(), Failure> {
    let topic = args.topic.as_bytes();
    let mut source = Source::of(&args.feed.file, args.feed.size, args.feed.count).await?;
    let mut builder = Pub::builder();
    if let Some(policy) = args.shared.overflow {
        builder = builder.overflow(policy.into());
    }
    let opened = Opened::open(builder, &args.shared).await?;
    let publisher = opened.socket.clone();
    tokio::select! {
        // It fails only when the socket is closed, and then so does what follows.
        _ready = publisher.subscribers(topic, args.wait_subscribers) => {}
        () = stop.once() => {}
    }
    let start = Instant::now();
    let mut given = Given::default();
    let fed =
        feed(&args.feed, &mut source, stop, &mut given, async |message| publisher.publish(topic, message).await).await;
    given.bytes += given.messages * topic.len() as u64;
    finish(opened, given, start, fed).await
}

/// `ropewalk sub`.
pub(crate) async fn subscribe(mut args: SubArgs, stop: &Stop) -> Result<(), Failure> {
    only_blocks(&args.shared)?;
    if args.topic.is_empty() {
        args.topic.push(String::new());
    }
    let opened = Opened::new(Sub::builder(), &args.shared)?;
    let sub = opened.socket.clone();
    for prefix in &args.topic {
        sub.subscribe(prefix).await.map_err(|error| Failure::Failed(format!("cannot subscribe: {error}")))?;
    }
    opened.meet(&args.shared).await?;
    let mut receiver = Receiver::new(&args.until, &args.shared, Output::new(&args.print));
    let take = async |into: &mut Vec<_>, limit| sub.recv_many(into, limit).await;
    let taken = receiver.take_all(stop, |heard| heard.into(), take, async |_| Ok(())).await;
    opened.close().await;
    receiver.finish(taken)
}
