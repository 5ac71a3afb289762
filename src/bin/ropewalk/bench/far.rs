//! The far end of a run: a process of its own, or for inproc a task.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::{Args, ValueEnum};
use ropewalk::{Heard, Pull, Rep, Sub, SubRecvError};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::oneshot,
    task::JoinSet,
};

use super::{
    Job, Transport, Way, What,
    meter::{Figures, Meter, Sequence, cpu, cpu_since},
    raw,
};
use crate::failure::Failure;

/// The most messages that are taken at once.
const MANY: usize = 1024;

/// How long the far process may take to end.
const ENDS: Duration = Duration::from_secs(5);

/// What the far process is told.
#[derive(Debug, Args)]
pub(crate) struct FarArgs {
    #[command(flatten)]
    job: Job,
    address: String,
}

/// The far process: measures, tells, and lives until its standard input ends; so it never outlives the near one.
pub(crate) async fn far(args: FarArgs) -> Result<(), Failure> {
    let FarArgs { job, address } = args;
    let mut near = tokio::io::stdin();
    let mut byte = [0];
    let ended = near.read(&mut byte);
    let work = async {
        let (figures, _sockets) = take_all(job, &address).await?;
        let nanos = |time: Duration| time.as_nanos().to_string();
        let cpu = figures.cpu.map_or_else(|| "-".to_owned(), nanos);
        let line = format!("done {} {} {cpu}\n", nanos(figures.took), figures.messages);
        let mut out = tokio::io::stdout();
        out.write_all(line.as_bytes()).await?;
        out.flush().await?;
        std::future::pending().await
    };
    tokio::select! {
        _ended = ended => Ok(()),
        failed = work => failed,
    }
}

/// Runs the far end until all has come. Its sockets live as long as the set.
async fn take_all(job: Job, address: &str) -> Result<(Figures, JoinSet<Result<(), Failure>>), Failure> {
    let meter = Arc::new(Meter::new(&job));
    let mut sockets = JoinSet::new();
    let before = cpu(&job);
    for _ in 0..job.peers {
        let (meter, address) = (Arc::clone(&meter), address.to_owned());
        sockets.spawn(async move {
            match (job.what, job.way) {
                (What::Lat, Way::Raw) => raw::echo(raw::connect(&job, &address).await?).await,
                (_, Way::Raw) => raw::take(raw::connect(&job, &address).await?, &job, &meter).await,
                (What::Lat, _) => reply(&job, &address).await,
                (What::Thr, way) => pull(&job, way, &address, &meter).await,
                (What::Fan, way) => subscribe(&job, way, &address, &meter).await,
            }
        });
    }
    let finished = async {
        match job.what {
            // The near end knows when it has had enough.
            What::Lat => std::future::pending().await,
            What::Thr | What::Fan => meter.finished(&job).await,
        }
    };
    let (took, messages) = tokio::select! {
        finished = finished => finished?,
        Some(ended) = sockets.join_next() => {
            let why = ended.unwrap_or_else(|error| Err(Failure::Failed(error.to_string())));
            return Err(why.err().unwrap_or_else(|| Failure::failed("a socket of the far end was closed")));
        }
    };
    Ok((Figures { took, messages, cpu: cpu_since(&job, before) }, sockets))
}

async fn pull(job: &Job, way: Way, address: &str, meter: &Meter) -> Result<(), Failure> {
    let pull = Pull::builder().max_message(job.max_message()).connect(address).await?;
    let mut sequence = Sequence::new(job, meter);
    if way == Way::Plain {
        while let Ok(message) = pull.recv().await {
            sequence.check(message.payload())?;
            meter.taken(1);
        }
        return Ok(());
    }
    let mut messages = Vec::with_capacity(MANY);
    while let Ok(taken) = pull.recv_many(&mut messages, MANY).await {
        for message in messages.drain(..) {
            sequence.check(message.payload())?;
        }
        meter.taken(taken as u64);
    }
    Ok(())
}

async fn subscribe(job: &Job, way: Way, address: &str, meter: &Meter) -> Result<(), Failure> {
    let sub = Sub::builder().max_message(job.max_message()).build();
    sub.subscribe("").await.map_err(|error| Failure::Failed(error.to_string()))?;
    sub.connect_to(address).await?;
    let mut sequence = Sequence::new(job, meter);
    let lagged = |missed| Failure::Failed(format!("a subscriber missed {missed} messages"));
    if way == Way::Plain {
        loop {
            match sub.recv().await {
                Ok(message) => sequence.check(message.payload())?,
                Err(SubRecvError::Lagged(missed)) => return Err(lagged(missed)),
                Err(_) => return Ok(()),
            }
            meter.taken(1);
        }
    }
    let mut all = Vec::with_capacity(MANY);
    while let Ok(taken) = sub.recv_many(&mut all, MANY).await {
        for heard in all.drain(..) {
            match heard {
                Heard::Message(message) => sequence.check(message.payload())?,
                Heard::Lagged(missed) => return Err(lagged(missed)),
            }
        }
        meter.taken(taken as u64);
    }
    Ok(())
}

async fn reply(job: &Job, address: &str) -> Result<(), Failure> {
    let rep = Rep::builder().max_message(job.max_message()).connect(address).await?;
    while let Ok(request) = rep.recv().await {
        let message = request.message().clone();
        request.reply(message).await.map_err(|error| Failure::Failed(error.to_string()))?;
    }
    Ok(())
}

/// The far end as the near one sees it. Dropped, it is killed.
pub(super) enum Far {
    Process(Box<Child>),
    Task(JoinSet<Result<(), Failure>>, oneshot::Receiver<Figures>),
}

impl Far {
    /// Starts it.
    pub(super) fn start(job: Job, address: String) -> Result<Self, Failure> {
        if job.transport == Transport::Inproc {
            let (tell, told) = oneshot::channel();
            let mut task = JoinSet::new();
            task.spawn(async move {
                let (figures, _sockets) = take_all(job, &address).await?;
                // The near end waits for it, or is gone.
                let _gone = tell.send(figures);
                std::future::pending().await
            });
            return Ok(Self::Task(task, told));
        }
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("bench-far").args(words(&job)).arg(address);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        Ok(Self::Process(Box::new(command.spawn().map_err(failed)?)))
    }

    /// What it measured.
    pub(super) async fn figures(&mut self) -> Result<Figures, Failure> {
        match self {
            Self::Task(task, told) => tokio::select! {
                Ok(figures) = told => Ok(figures),
                Some(Ok(Err(failure))) = task.join_next() => Err(failure),
                else => Err(Failure::failed("the far end ended before it was done")),
            },
            Self::Process(child) => {
                let mut line = String::new();
                if let Some(out) = child.stdout.as_mut() {
                    BufReader::new(out).read_line(&mut line).await.map_err(failed)?;
                }
                parse(&line).ok_or_else(|| Failure::failed("the far end ended before it was done"))
            }
        }
    }

    /// Ends it.
    pub(super) async fn end(self) -> Result<(), Failure> {
        match self {
            Self::Task(mut task, _) => task.shutdown().await,
            Self::Process(mut child) => {
                drop(child.stdin.take());
                if tokio::time::timeout(ENDS, child.wait()).await.is_err() {
                    child.kill().await.map_err(failed)?;
                }
            }
        }
        Ok(())
    }
}

fn failed(error: std::io::Error) -> Failure {
    Failure::Failed(format!("the far end: {error}"))
}

/// A job as the words of a command line.
fn words(job: &Job) -> Vec<String> {
    let Job { what, way, transport, size, count, warm, peers } = job;
    let word = |value: Option<clap::builder::PossibleValue>| value.map(|value| value.get_name().to_owned());
    let names = [what.to_possible_value(), way.to_possible_value(), transport.to_possible_value()];
    let numbers = [*size as u64, *count, *warm, *peers];
    names.into_iter().filter_map(word).chain(numbers.iter().map(u64::to_string)).collect()
}

fn parse(line: &str) -> Option<Figures> {
    let mut words = line.strip_prefix("done ")?.split_whitespace();
    let mut number = || words.next()?.parse::<u64>().ok();
    let (took, messages, cpu) = (number()?, number()?, number());
    Some(Figures { took: Duration::from_nanos(took), messages, cpu: cpu.map(Duration::from_nanos) })
}

/// An address nobody else listens on, and the file to be removed at the end if it has one.
pub(super) struct Place {
    pub(super) address: String,
    pub(super) path: PathBuf,
}

impl Place {
    pub(super) fn new(job: &Job) -> Self {
        static PLACES: AtomicU64 = AtomicU64::new(0);
        let name = format!("ropewalk-{}-{}", std::process::id(), PLACES.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(&name);
        let address = match job.transport {
            Transport::Tcp => "tcp://127.0.0.1:0".to_owned(),
            Transport::Ipc => format!("ipc://{}", path.display()),
            Transport::Inproc => format!("inproc://{name}"),
        };
        Self { address, path }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Most places have no file.
        let _none = std::fs::remove_file(&self.path);
    }
}
