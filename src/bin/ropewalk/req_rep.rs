//! `req` and `rep`.

use std::{collections::VecDeque, future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};

use ropewalk::{Message, Rep, Req, Request, RequestError};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use crate::{
    args::{Answer, RepArgs, ReqArgs},
    exec::exec,
    failure::Failure,
    input::Source,
    output::{Counter, Output, Reader, join, note},
    socket::{LINGER, Opened, only_blocks},
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
    let opened = Opened::open(Req::builder(), &args.shared).await?;
    let mut asking = Asking {
        req: opened.socket.clone(),
        timeout: args.timeout.unwrap_or(TIMEOUT),
        left: args.count.unwrap_or(u64::MAX),
        under_way: VecDeque::new(),
        replies: Counter::default(),
        output: Output::new(&args.print),
    };
    let asked = tokio::select! {
        biased;
        () = stop.once() => asking.stopped(args.count),
        asked = asking.ask_all(&mut source) => asked,
    };
    // What was printed before a failure or a signal is still written.
    let flushed = timeout(args.shared.linger.unwrap_or(LINGER), asking.output.flush()).await;
    asking.replies.lost = asking.under_way.len() as u64;
    let replies = asking.replies.summary();
    drop(asking.under_way);
    opened.close().await;
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
    replies: Counter,
    output: Output,
}

/// One request.
enum Asked {
    UnderWay(JoinHandle<Result<Message, RequestError>>),
    Done(Option<Result<Message, RequestError>>),
}

impl Asked {
    fn is_done(&self) -> bool {
        match self {
            Self::UnderWay(task) => task.is_finished(),
            Self::Done(_) => true,
        }
    }

    /// Cancel-safe, until it has returned.
    async fn reply(&mut self) -> Result<Message, RequestError> {
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
    /// Sends requests as the input comes, and prints replies in the order of the requests. Ends at the first that has
    /// none: the lines printed stay those of the requests before it.
    async fn ask_all(&mut self, source: &mut Source) -> Result<(), Failure> {
        let mut over = self.left == 0;
        loop {
            let has_room = !over && self.under_way.len() < ASKED;
            let oldest = self.under_way.front_mut();
            tokio::select! {
                request = source.next(), if has_room => match request? {
                    Some(request) => {
                        let request = Message::from(request);
                        self.ask(request).await;
                        self.left -= 1;
                        over = self.left == 0;
                    }
                    None => over = true,
                },
                Some(reply) = reply(oldest) => {
                    if self.replied(reply).await? == Reader::Gone {
                        return Ok(());
                    }
                }
                else => return Ok(()),
            }
        }
    }

    /// Sends one, here and now if there is room, so that requests go in the order of the input.
    async fn ask(&mut self, request: Message) {
        let (req, timeout) = (self.req.clone(), self.timeout);
        let mut asked: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(async move { req.request(request).timeout(timeout).await });
        let asked = match poll_fn(|cx| Poll::Ready(asked.as_mut().poll(cx))).await {
            Poll::Ready(reply) => Asked::Done(Some(reply)),
            Poll::Pending => Asked::UnderWay(tokio::spawn(asked)),
        };
        self.under_way.push_back(asked);
    }

    /// Prints the oldest reply, and those behind it that are there already.
    async fn replied(&mut self, oldest: Result<Message, RequestError>) -> Result<Reader, Failure> {
        let mut reply = oldest;
        loop {
            let reply_of = self.replies.messages + 1;
            let message = reply.map_err(|error| Failure::Failed(format!("request {reply_of}: {error}")))?;
            self.under_way.pop_front();
            self.replies.tick();
            self.replies.count(&message);
            self.output.print(&message);
            match self.under_way.front_mut() {
                Some(next) if next.is_done() => reply = next.reply().await,
                _ => return self.output.flush().await,
            }
        }
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

async fn reply(oldest: Option<&mut Asked>) -> Option<Result<Message, RequestError>> {
    Some(oldest?.reply().await)
}

/// `ropewalk rep`.
pub(crate) async fn rep(args: RepArgs, stop: &Stop) -> Result<(), Failure> {
    only_blocks(&args.shared)?;
    let opened = Opened::open(Rep::builder(), &args.shared).await?;
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
    /// Each says whether it was answered.
    under_way: JoinSet<bool>,
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
                Some(answered) = self.under_way.join_next() => self.requests.lost += u64::from(!answered.unwrap_or(false)),
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
            self.requests.lost += u64::from(!answered.unwrap_or(false));
        }
        self.output.flush().await
    }
}

/// How requests are answered.
struct How {
    answer: Answer,
    separator: String,
    verbose: bool,
}

/// Whether it was answered. A request that was not is refused.
async fn answer(how: Arc<How>, request: Request) -> bool {
    let reply = match &how.answer.exec {
        None => request.message().clone(),
        Some(command) => {
            let mut input = Vec::new();
            join(request.message(), &how.separator, &mut input);
            match exec(command, &input, how.verbose).await {
                Ok(output) => output.into(),
                Err(error) => {
                    note(format_args!("a request is refused: {error}"));
                    return false;
                }
            }
        }
    };
    match request.reply(reply).await {
        Ok(()) => true,
        Err(error) => {
            if how.verbose {
                note(format_args!("a reply went nowhere: {error}"));
            }
            false
        }
    }
}
