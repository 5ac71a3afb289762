//! `push` and `pull`, and how every sender ends and every receiver takes.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use ropewalk::{Closed, Heard, Pull, Push, patterns::Pattern};

use crate::{
    args::{PullArgs, PushArgs, Shared, Until},
    failure::Failure,
    input::{Given, Source, feed},
    output::{Counter, Output, Reader, Summary},
    socket::{LINGER, Opened, judge, only_blocks},
    stop::Stop,
};

/// The most messages that are taken before they are printed.
const BATCH: u64 = 1024;

/// `ropewalk push`.
pub(crate) async fn push(args: PushArgs, stop: &Stop) -> Result<(), Failure> {
    only_blocks(&args.shared)?;
    let mut source = Source::of(&args.feed.file, args.feed.size, args.feed.count).await?;
    let opened = Opened::open(Push::builder(), &args.shared).await?;
    let push = opened.socket.clone();
    let start = Instant::now();
    let mut given = Given::default();
    let fed = feed(&args.feed, &mut source, stop, &mut given, async |message| push.send(message).await).await;
    finish(opened, given, start, fed).await
}

/// Closes a sender, tells what it did, and judges it.
pub(crate) async fn finish<P: Pattern>(
    opened: Opened<P>,
    given: Given,
    start: Instant,
    fed: Result<(), Failure>,
) -> Result<(), Failure> {
    let report = opened.close().await;
    let Given { messages, bytes } = given;
    Summary { messages, bytes, lost: report.unsent + report.dropped, took: start.elapsed() }.tell("sent");
    match (fed, judge(&report)) {
        (Err(first), Err(second)) => Err(Failure::Failed(format!("{first}; {second}"))),
        (fed, judged) => fed.and(judged),
    }
}

/// `ropewalk pull`.
pub(crate) async fn pull(args: PullArgs, stop: &Stop) -> Result<(), Failure> {
    only_blocks(&args.shared)?;
    let opened = Opened::open(Pull::builder(), &args.shared).await?;
    let pull = opened.socket.clone();
    let mut receiver = Receiver::new(&args.until, &args.shared, Output::new(&args.print));
    let taken = receiver.take_all(stop, Heard::Message, async |into, limit| pull.recv_many(into, limit).await).await;
    opened.close().await;
    receiver.finish(taken)
}

/// Takes messages from a socket and prints them, until there were enough.
pub(crate) struct Receiver<'a> {
    until: &'a Until,
    output: Output,
    linger: Duration,
    counter: Counter,
}

impl<'a> Receiver<'a> {
    pub(crate) fn new(until: &'a Until, shared: &Shared, output: Output) -> Self {
        Self { until, output, linger: shared.linger.unwrap_or(LINGER), counter: Counter::default() }
    }

    /// Until COUNT messages came, none came for the timeout, a signal says stop, or nobody reads the lines.
    pub(crate) async fn take_all<T>(
        &mut self,
        stop: &Stop,
        heard: impl Fn(T) -> Heard,
        mut take: impl AsyncFnMut(&mut Vec<T>, usize) -> Result<usize, Closed>,
    ) -> Result<Reader, Failure> {
        let mut taken = Vec::new();
        while let ControlFlow::Continue(limit) = self.next_batch() {
            let came = async {
                match self.until.timeout {
                    Some(timeout) => {
                        tokio::time::timeout(timeout, take(&mut taken, limit)).await.is_ok_and(|came| came.is_ok())
                    }
                    None => take(&mut taken, limit).await.is_ok(),
                }
            };
            let came = tokio::select! {
                came = came => came,
                () = stop.once() => false,
            };
            if !came {
                break;
            }
            self.counter.tick();
            for item in taken.drain(..) {
                self.print(heard(item));
            }
            let flushed = tokio::select! {
                flushed = self.output.flush() => flushed?,
                () = stop.once() => break,
            };
            if flushed == Reader::Gone {
                return Ok(Reader::Gone);
            }
        }
        match tokio::time::timeout(self.linger, self.output.flush()).await {
            Ok(flushed) => flushed,
            Err(_) => Err(Failure::failed("standard output did not take all messages within the linger")),
        }
    }

    fn next_batch(&self) -> ControlFlow<(), usize> {
        let left = self.until.count.unwrap_or(u64::MAX) - self.counter.messages;
        match usize::try_from(left.min(BATCH)) {
            Ok(0) | Err(_) => ControlFlow::Break(()),
            Ok(limit) => ControlFlow::Continue(limit),
        }
    }

    fn print(&mut self, heard: Heard) {
        match heard {
            Heard::Message(message) => {
                self.counter.count(&message);
                self.output.print(&message);
            }
            Heard::Lagged(missed) => self.counter.lost += missed,
        }
    }

    /// Tells what came, and whether it was enough.
    pub(crate) fn finish(self, taken: Result<Reader, Failure>) -> Result<(), Failure> {
        self.counter.summary().tell("received");
        match (taken?, self.until.count) {
            (Reader::Served, Some(count)) if self.counter.messages < count => {
                Err(Failure::Failed(format!("{} of {count} messages came", self.counter.messages)))
            }
            _ => Ok(()),
        }
    }
}
