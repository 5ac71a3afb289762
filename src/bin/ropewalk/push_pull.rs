//! `push` and `pull`, and how every sender ends and every receiver takes.

use std::{
    future::{Future, poll_fn},
    ops::ControlFlow,
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

use futures_sink::Sink;
use ropewalk::{
    AckError, Builder, Closed, Delivery, Heard, Message, Pull, Push, SendError, Sending, patterns::Pattern,
};

use crate::{
    args::{Done, Keep, PullArgs, PushArgs, Shared, Until},
    failure::Failure,
    input::{Given, Source, feed},
    output::{Counter, Output, Reader, Summary, note},
    socket::{LINGER, Opened, configure, judge, made, only_blocks},
    stop::Stop,
};

/// How long a message may wait for its line to be read.
pub(crate) const LEASE: Duration = Duration::from_secs(86_400 * 365);

/// The most messages that are taken before they are printed.
const BATCH: u64 = 1024;

/// `ropewalk push`.
pub(crate) async fn push(args: PushArgs, stop: &Stop) -> Result<(), Failure> {
    only_blocks(&args.shared)?;
    let mut source = Source::of(&args.feed.file, args.feed.size, args.feed.count).await?;
    let builder = configure(Push::builder(), &args.shared)?;
    let Keep { spool, durability } = &args.keep;
    let Some(directory) = spool else {
        let opened = Opened::meet(builder.build(), &args.shared).await?;
        let (push, start, mut given) = (opened.socket.clone(), Instant::now(), Given::default());
        let fed = feed(&args.feed, &mut source, stop, &mut given, async |message| push.send(message).await).await;
        return finish(opened, false, given, start, fed).await;
    };
    let socket = builder.spool(directory, durability.unwrap_or_default()).open().await?;
    let opened = Opened::meet(socket, &args.shared).await?;
    let (start, mut given, mut sink) = (Instant::now(), Given::default(), opened.socket.sink());
    let fed = feed(&args.feed, &mut source, stop, &mut given, async |message| keep(&mut sink, message).await).await;
    let kept = async {
        let flushed = poll_fn(|cx| Pin::new(&mut sink).poll_flush(cx)).await;
        flushed.map_err(|error| Failure::failed(error.to_string()))
    };
    // Where it is full, one that is to stop waits no longer than the linger for room.
    let linger = args.shared.linger.unwrap_or(LINGER);
    let kept = tokio::select! {
        kept = kept => kept,
        () = async { stop.once().await; tokio::time::sleep(linger).await } => Ok(()),
    };
    drop(sink);
    finish(opened, true, given, start, fed.and(kept)).await
}

/// Takes a message into the spool. It is on its way to the disk then, together with those that come meanwhile; a flush
/// waits for it.
async fn keep(sink: &mut Sending, message: &[u8]) -> Result<(), SendError> {
    poll_fn(|cx| Pin::new(&mut *sink).poll_ready(cx)).await?;
    Pin::new(&mut *sink).start_send(Message::from(message))?;
    poll_fn(|cx| Pin::new(&mut *sink).poll_ready(cx)).await
}

/// Closes a sender, tells what it did, and judges it. What is in its spool goes on next time.
pub(crate) async fn finish<P: Pattern>(
    opened: Opened<P>,
    has_spool: bool,
    given: Given,
    start: Instant,
    fed: Result<(), Failure>,
) -> Result<(), Failure> {
    let report = opened.close().await;
    let Given { messages, bytes } = given;
    let (lost, spooled) = (report.unsent + report.dropped, has_spool.then_some(report.spooled));
    Summary { messages, bytes, lost, took: start.elapsed(), spooled }.tell("sent");
    let judged = match has_spool {
        // What is in the spool goes on next time; what was there and is not any more does not.
        true if report.unsent > 0 => Err(Failure::Failed(format!("{} messages of the spool are lost", report.unsent))),
        true => Ok(()),
        false => judge(&report),
    };
    match (fed, judged) {
        (Err(first), Err(second)) => Err(Failure::Failed(format!("{first}; {second}"))),
        (fed, judged) => fed.and(judged),
    }
}

/// `ropewalk pull`.
pub(crate) async fn pull(args: PullArgs, stop: &Stop) -> Result<(), Failure> {
    only_blocks(&args.shared)?;
    // A line that is not read for long is in nobody's way; and should this process end, its link does.
    let builder = configure(Pull::builder(), &args.shared)?.lease(LEASE);
    let Done { inbox, durability } = &args.done;
    let writes_down = |builder: Builder<_>, at: &_| builder.inbox_with(at, durability.unwrap_or_default()).open();
    let socket = made(builder, inbox.as_ref(), writes_down).await?;
    let opened = Opened::meet(socket, &args.shared).await?;
    let pull = opened.socket.clone();
    let mut receiver = Receiver::new(&args.until, &args.shared, Output::new(&args.print));
    let taken = receiver
        .take_all(
            stop,
            |delivery: &Delivery| Shown::Message(delivery.message()),
            async |into, limit| pull.recv_deliveries(into, limit).await,
            async |printed| confirm(printed, args.shared.verbose).await,
        )
        .await;
    opened.close().await;
    receiver.finish(taken)
}

/// The lines of these were written: their senders may forget them. With an inbox all are written down together.
pub(crate) async fn confirm(printed: &mut Vec<Delivery>, verbose: bool) -> Result<(), Failure> {
    // What came from a sender that does not ask is settled already.
    let asked = printed.drain(..).filter(|delivery| delivery.id().is_some());
    let mut acks: Vec<_> = asked.map(|delivery| Box::pin(delivery.ack())).collect();
    let (mut taken_back, mut failed) = (0, None);
    poll_fn(|cx| {
        acks.retain_mut(|ack| match ack.as_mut().poll(cx) {
            Poll::Pending => true,
            Poll::Ready(done) => {
                match done {
                    Ok(()) => {}
                    Err(AckError::TakenBack) => taken_back += 1,
                    Err(error) => failed = Some(error),
                }
                false
            }
        });
        if acks.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    if taken_back > 0 && verbose {
        note(format_args!("{taken_back} messages were taken back before their lines were written, and come again"));
    }
    failed.map_or(Ok(()), |error| Err(Failure::failed(error.to_string())))
}

/// What is printed of what was taken, or counted.
pub(crate) enum Shown<'a> {
    Message(&'a Message),
    Missed(u64),
}

impl<'a> From<&'a Heard> for Shown<'a> {
    fn from(heard: &'a Heard) -> Self {
        match heard {
            Heard::Message(message) => Self::Message(message),
            Heard::Lagged(missed) => Self::Missed(*missed),
        }
    }
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

    /// Until COUNT messages came, none came for the timeout, a signal says stop, or nobody reads the lines. When the
    /// lines of some were written, `confirm` is given these.
    pub(crate) async fn take_all<T>(
        &mut self,
        stop: &Stop,
        show: impl Fn(&T) -> Shown<'_>,
        mut take: impl AsyncFnMut(&mut Vec<T>, usize) -> Result<usize, Closed>,
        mut confirm: impl AsyncFnMut(&mut Vec<T>) -> Result<(), Failure>,
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
            taken.iter().for_each(|item| self.print(&show(item)));
            let flushed = tokio::select! {
                flushed = self.output.flush() => flushed?,
                () = stop.once() => break,
            };
            if flushed == Reader::Gone {
                return Ok(Reader::Gone);
            }
            confirm(&mut taken).await?;
            taken.clear();
        }
        match tokio::time::timeout(self.linger, self.output.flush()).await {
            Ok(flushed) => {
                let flushed = flushed?;
                if flushed == Reader::Served && !taken.is_empty() {
                    confirm(&mut taken).await?;
                }
                Ok(flushed)
            }
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

    fn print(&mut self, shown: &Shown<'_>) {
        match shown {
            Shown::Message(message) => {
                self.counter.count(message);
                self.output.print(message);
            }
            Shown::Missed(missed) => self.counter.lost += missed,
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
