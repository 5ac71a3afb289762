//! `pub` and `sub`.

use std::time::Instant;

use ropewalk::{Builder, Closed, Delivery, Pub, Sub, SubRecvError};

use crate::{
    args::{Done, Keep, PubArgs, SubArgs},
    failure::Failure,
    input::{Given, Source, feed},
    output::Output,
    push_pull::{LEASE, Receiver, Shown, confirm, finish},
    socket::{Opened, configure, made, only_blocks},
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
    let builder = configure(builder, &args.shared)?;
    let Keep { spool, durability } = &args.keep;
    let keeps = |builder: Builder<_>, at: &_| builder.spool(at, durability.unwrap_or_default()).open();
    let socket = made(builder, spool.as_ref(), keeps).await?;
    let opened = Opened::meet(socket, &args.shared).await?;
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
    finish(opened, spool.is_some(), given, start, fed).await
}

/// `ropewalk sub`.
pub(crate) async fn subscribe(mut args: SubArgs, stop: &Stop) -> Result<(), Failure> {
    only_blocks(&args.shared)?;
    if args.topic.is_empty() {
        args.topic.push(String::new());
    }
    let builder = configure(Sub::builder(), &args.shared)?.lease(LEASE);
    let mut builder = args.topic.iter().fold(builder, |builder, prefix| builder.subscribe(prefix));
    if let Some(name) = &args.name {
        builder = builder.name(name);
    }
    if let Some(from) = args.replay {
        builder = builder.replay(from);
    }
    let Done { inbox, durability } = &args.done;
    let writes_down = |builder: Builder<_>, at: &_| builder.inbox_with(at, durability.unwrap_or_default()).open();
    let socket = made(builder, inbox.as_ref(), writes_down).await?;
    let opened = Opened::meet(socket, &args.shared).await?;
    let sub = opened.socket.clone();
    let mut receiver = Receiver::new(&args.until, &args.shared, Output::new(&args.print));
    let taken = if args.name.is_none() && inbox.is_none() {
        let take = async |into: &mut Vec<_>, limit| sub.recv_many(into, limit).await;
        receiver.take_all(stop, |heard| heard.into(), take, async |_| Ok(())).await
    } else {
        let confirmed = async |printed: &mut Vec<Came>| {
            let mut deliveries = printed.drain(..).filter_map(Came::into_delivery).collect();
            confirm(&mut deliveries, args.shared.verbose).await
        };
        receiver.take_all(stop, Came::shown, async |into, _| take(&sub, into).await, confirmed).await
    };
    opened.close().await;
    receiver.finish(taken)
}

/// What came to one who confirms.
enum Came {
    Delivery(Delivery),
    Missed(u64),
}

impl Came {
    fn shown(&self) -> Shown<'_> {
        match self {
            Self::Delivery(delivery) => Shown::Message(delivery.message()),
            Self::Missed(missed) => Shown::Missed(*missed),
        }
    }

    fn into_delivery(self) -> Option<Delivery> {
        match self {
            Self::Delivery(delivery) => Some(delivery),
            Self::Missed(_) => None,
        }
    }
}

async fn take(sub: &Sub, into: &mut Vec<Came>) -> Result<usize, Closed> {
    into.push(match sub.recv_delivery().await {
        Ok(delivery) => Came::Delivery(delivery),
        Err(SubRecvError::Lagged(missed)) => Came::Missed(missed),
        Err(_) => return Err(Closed),
    });
    Ok(1)
}
