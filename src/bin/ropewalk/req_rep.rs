//! `req` and `rep`.

use std::{collections::VecDeque, future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};

use ropewalk::{Answered, Builder, Message, Rep, ReplyError, Req, Request, RequestError};
use tokio::{
    task::{JoinError, JoinHandle, JoinSet},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    args::{Answer, Keep, RepArgs, ReqArgs},
    exec::exec,
    failure::Failure,
    input::Source,
    output::{Counter, Output, Reader, join, note},
    socket::{LINGER, Opened, configure, made, only_blocks},
    stop::Stop,
};

/// How many requests are under way at once.
const ASKED: usize = 64;

/// How long a request waits for its reply unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How many requests are answered at once, and how many by a command.
const ANSWERED: usize = 256;
const EXECUTED: usize = 16;

/// No request is taken while so many bytes wait to be printed.
const UNPRINTED: usize = 1 << 20;

/// `ropewalk req`.
pub(crate) async fn req(args: ReqArgs, stop: &Stop) -> Result<(), Failure> {
    only_blocks(&args.shared)?;
    let mut source = match args.message {
        Some(message) => Source::one(message.into()),
        None => Source::of("-", args.size, args.count).await?,
    };
    let builder = configure(Req::builder(), &args.shared)?;
    let Keep { spool, durability } = &args.keep;
    let keeps = |builder: Builder<_>, at: &_| builder.spool(at, durability.unwrap_or_default()).open();
    let socket = made(builder, spool.as_ref(), keeps).await?;
    let opened = Opened::meet(socket, &args.shared).await?;
    let mut asking = Asking {
        req: opened.socket.clone(),
        timeout: args.timeout.unwrap_or(TIMEOUT),
        left: args.count.unwrap_or(u64::MAX),
        under_way: VecDeque::new(),
        printed: Vec::new(),
        replies: Counter::default(),
        output: Output::new(&args.print),
    };
    let asked = tokio::select! {
        biased;
        () = stop.once() => asking.stopped(args.count),
        asked = asking.ask_all(&mut source) => asked,
    };
    // What was printed before a failure or a signal is still written.
    let flushed = timeout(args.shared.linger.unwrap_or(LINGER), asking.flush()).await;
    let mut replies = asking.replies.summary();
    let unanswered = asking.under_way.len() as u64;
    drop(asking);
    let spooled = opened.close().await.spooled;
    if spool.is_some() {
        replies.spooled = Some(spooled);
    } else {
        replies.lost = unanswered;
    }
    replies.tell("received");
    asked?;
    flushed.unwrap_or_else(|_| Err(Failure::failed("standard output did not take all replies within the linger")))?;
    Ok(())
}

/// Requests under way, in their order.
struct Asking {
    req: Req,
    timeout: Duration,
    /// So many more may be sent.
    left: u64,
    under_way: VecDeque<Asked>,
    /// Whose replies are printed, and perhaps not written yet.
    printed: Vec<Answered>,
    replies: Counter,
    output: Output,
}

/// One request.
enum Asked {
    UnderWay(JoinHandle<Result<Answered, RequestError>>),
    Done(Option<Result<Answered, RequestError>>),
}

impl Asked {
    fn is_done(&self) -> bool {
        match self {
            Self::UnderWay(task) => task.is_finished(),
            Self::Done(_) => true,
        }
    }

    /// Cancel-safe, until it has returned.
    async fn reply(&mut self) -> Result<Answered, RequestError> {
        match self {
            Self::UnderWay(task) => task.await.unwrap_or(Err(RequestError::Closed)),
            Self::Done(reply) => reply.take().unwrap_or(Err(RequestError::Closed)),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Self::UnderWay(task) = self {
            task.abort();
        }
    }
}

impl Asking {
    /// Sends requests as the input comes, and prints replies in the order of the requests; before them those to what an
    /// earlier run has left, as they come. Ends at the first that has none: the lines printed stay those of the requests
    /// before it.
    async fn ask_all(&mut self, source: &mut Source) -> Result<(), Failure> {
        let (mut over, mut earlier, req) = (self.left == 0, self.unanswered(), self.req.clone());
        let mut until = deadline(self.timeout);
        loop {
            let has_room = !over && self.under_way.len() < ASKED;
            let oldest = self.under_way.front_mut();
            tokio::select! {
                recovered = timeout_at(until, req.recover()), if earlier > 0 => {
                    let Ok(Ok(answered)) = recovered else {
                        let why = format!("no reply to any of {earlier} requests that an earlier run has left in the spool");
                        return Err(Failure::Failed(why));
                    };
                    (earlier, until) = (earlier - 1, deadline(self.timeout));
                    if self.recovered(answered).await? == Reader::Gone {
                        return Ok(());
                    }
                }
                request = source.next(), if has_room => match request? {
                    Some(request) => {
                        let request = Message::from(request);
                        self.ask(request).await;
                        self.left -= 1;
                        over = self.left == 0;
                    }
                    None => over = true,
                },
                Some(reply) = reply(oldest), if earlier == 0 => {
                    if self.replied(reply).await? == Reader::Gone {
                        return Ok(());
                    }
                }
                else => return Ok(()),
            }
        }
    }

    /// Prints the reply to a request of an earlier run.
    async fn recovered(&mut self, answered: Answered) -> Result<Reader, Failure> {
        if let Err(error) = answered.answer() {
            let why = format!("a request that an earlier run has left in the spool: {error}");
            // It is not asked again.
            return acknowledge(answered).and(Err(Failure::Failed(why)));
        }
        self.print(answered);
        self.flush().await
    }

    /// How many requests are in the spool.
    fn unanswered(&self) -> u64 {
        self.req.spool_stats().map_or(0, |spool| spool.cursors.values().map(|cursor| cursor.unsettled).sum())
    }

    /// Sends one, here and now if there is room, so that requests go in the order of the input.
    async fn ask(&mut self, request: Message) {
        let (req, timeout) = (self.req.clone(), self.timeout);
        let mut asked: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(async move { req.request(request).timeout(timeout).answered().await });
        let asked = match poll_fn(|cx| Poll::Ready(asked.as_mut().poll(cx))).await {
            Poll::Ready(reply) => Asked::Done(Some(reply)),
            Poll::Pending => Asked::UnderWay(tokio::spawn(asked)),
        };
        self.under_way.push_back(asked);
    }

    /// Prints the oldest reply, and those behind it that are there already.
    async fn replied(&mut self, oldest: Result<Answered, RequestError>) -> Result<Reader, Failure> {
        let mut reply = oldest;
        loop {
            let reply_of = self.replies.messages + 1;
            let answered = reply.map_err(|error| Failure::Failed(format!("request {reply_of}: {error}")))?;
            self.under_way.pop_front();
            self.print(answered);
            match self.under_way.front_mut() {
                Some(next) if next.is_done() => reply = next.reply().await,
                _ => return self.flush().await,
            }
        }
    }

    fn print(&mut self, answered: Answered) {
        if let Ok(message) = answered.answer() {
            self.replies.tick();
            self.replies.count(message);
            self.output.print(message);
        }
        self.printed.push(answered);
    }

    /// Writes what was printed. Then the spool may forget the requests.
    async fn flush(&mut self) -> Result<Reader, Failure> {
        let reader = self.output.flush().await?;
        if reader == Reader::Served {
            self.printed.drain(..).try_for_each(acknowledge)?;
        }
        Ok(reader)
    }

    /// What a signal leaves undone.
    fn stopped(&self, count: Option<u64>) -> Result<(), Failure> {
        let replies = self.replies.messages;
        match count {
            Some(count) => Err(Failure::Failed(format!("stopped after {replies} of {count} replies"))),
            None if !self.under_way.is_empty() => {
                Err(Failure::Failed(format!("stopped with {} requests unanswered", self.under_way.len())))
            }
            None => Ok(()),
        }
    }
}

async fn reply(oldest: Option<&mut Asked>) -> Option<Result<Answered, RequestError>> {
    Some(oldest?.reply().await)
}

/// What is too long for the clock is for ever.
fn deadline(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or(now + Duration::from_secs(86_400 * 365))
}

fn acknowledge(answered: Answered) -> Result<(), Failure> {
    answered.ack().map_err(|error| Failure::failed(error.to_string()))
}

/// `ropewalk rep`.
pub(crate) async fn rep(args: RepArgs, stop: &Stop) -> Result<(), Failure> {
    only_blocks(&args.shared)?;
    let builder = configure(Rep::builder(), &args.shared)?;
    let Keep { spool, durability } = &args.keep;
    let keeps = |builder: Builder<_>, at: &_| builder.spool(at, durability.unwrap_or_default()).open();
    let socket = made(builder, spool.as_ref(), keeps).await?;
    let opened = Opened::meet(socket, &args.shared).await?;
    let mut answering = Answering {
        rep: opened.socket.clone(),
        answer: Arc::new(How {
            answer: args.answer,
            separator: args.print.separator.clone(),
            verbose: args.shared.verbose,
        }),
        left: args.count.unwrap_or(u64::MAX),
        under_way: JoinSet::new(),
        requests: Counter::default(),
        output: Output::new(&args.print),
    };
    let served = answering.serve(stop).await;
    let ended = timeout(args.shared.linger.unwrap_or(LINGER), answering.finish()).await;
    let Answering { mut requests, under_way, left, .. } = answering;
    requests.lost += under_way.len() as u64;
    drop(under_way);
    let report = opened.close().await;
    requests.lost += report.unsent;
    requests.summary().tell("received");
    let reader = served?;
    if let Ok(ended) = ended {
        ended?;
    }
    match args.count {
        Some(count) if left > 0 && reader == Reader::Served => {
            Err(Failure::Failed(format!("stopped after {} of {count} requests", count - left)))
        }
        _ => Ok(()),
    }
}

/// Requests that are being answered.
struct Answering {
    rep: Rep,
    answer: Arc<How>,
    /// So many more may be taken.
    left: u64,
    /// Each says whether it was answered; an error, that none can be.
    under_way: JoinSet<Result<bool, Failure>>,
    requests: Counter,
    output: Output,
}

impl Answering {
    /// Until COUNT requests were answered, a signal says stop, or nobody reads what is printed.
    async fn serve(&mut self, stop: &Stop) -> Result<Reader, Failure> {
        let at_once = if self.answer.answer.echo { ANSWERED } else { EXECUTED };
        while self.left > 0 || !self.under_way.is_empty() {
            let has_room = self.left > 0 && self.under_way.len() < at_once && self.output.waiting() < UNPRINTED;
            tokio::select! {
                () = stop.once() => break,
                request = self.rep.recv(), if has_room => {
                    let Ok(request) = request else { break };
                    self.left -= 1;
                    self.requests.tick();
                    self.requests.count(request.message());
                    self.output.print(request.message());
                    self.under_way.spawn(answer(Arc::clone(&self.answer), request));
                }
                Some(answered) = self.under_way.join_next() => self.has_ended(answered)?,
                flushed = self.output.flush(), if self.output.waiting() > 0 => if flushed? == Reader::Gone {
                    return Ok(Reader::Gone);
                },
            }
        }
        Ok(Reader::Served)
    }

    /// Lets what is under way end, and writes what was printed.
    async fn finish(&mut self) -> Result<Reader, Failure> {
        while let Some(answered) = self.under_way.join_next().await {
            self.has_ended(answered)?;
        }
        self.output.flush().await
    }

    fn has_ended(&mut self, answered: Result<Result<bool, Failure>, JoinError>) -> Result<(), Failure> {
        let answered = answered.unwrap_or(Ok(false));
        self.requests.lost += u64::from(!matches!(answered, Ok(true)));
        answered.map(drop)
    }
}

/// How requests are answered.
struct How {
    answer: Answer,
    separator: String,
    verbose: bool,
}

/// Whether it was answered. A request that was not is refused. An error: the spool has failed.
async fn answer(how: Arc<How>, request: Request) -> Result<bool, Failure> {
    let reply = match &how.answer.exec {
        None => request.message().clone(),
        Some(command) => {
            let mut input = Vec::new();
            join(request.message(), &how.separator, &mut input);
            match exec(command, &input, how.verbose).await {
                Ok(output) => output.into(),
                Err(error) => {
                    note(format_args!("a request is refused: {error}"));
                    return Ok(false);
                }
            }
        }
    };
    match request.reply(reply).await {
        Ok(()) => Ok(true),
        Err(error @ ReplyError::SpoolFailed(..)) => Err(Failure::failed(error.to_string())),
        Err(error) => {
            if how.verbose {
                note(format_args!("a reply went nowhere: {error}"));
            }
            Ok(false)
        }
    }
}
