//! Starts everything, kills it, starts it again, and counts.

use std::{
    collections::{HashMap, hash_map::Entry},
    env, fs,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use futures::stream::{FuturesUnordered, StreamExt};
use indicatif::HumanCount;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::{sleep_until, timeout},
};

use crate::{Plan, Result, peers, work, worker};

/// Between two kills, in milliseconds.
const PAUSE: (u64, u64) = (200, 1_200);

/// How long the rest may take when nobody is killed any more.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
pub(crate) async fn run(plan: &Plan) -> Result<ExitCode> {
    let directory = tempfile::tempdir()?;
    let names: Vec<String> = (0..plan.workers).map(|number| format!("worker-{number}")).collect();
    peers::make(directory.path(), &[&["producer".to_owned()], &names[..]].concat())?;
    println!("{} jobs over {}, {} workers", HumanCount(plan.jobs), plan.transport, plan.workers);
    let began = Instant::now();
    let mut all = All::start(plan, directory.path()).await?;
    all.kill_at_random(began).await?;
    all.until_done().await?;
    let kills = all.end().await?;
    let counted = count(directory.path(), plan)?;
    let Counted { lost, twice, wrong, again } = counted;
    println!(
        "{again} jobs were worked on again, for somebody was killed before it was known that they were done: each counts once"
    );
    println!("{} jobs, {kills} kills, {lost} lost, {twice} done twice, {wrong} wrong", plan.jobs);
    Ok(if (lost, twice, wrong) == (0, 0, 0) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A process that is started again when it ends.
struct Process {
    name: String,
    arguments: Vec<String>,
    child: Child,
    /// It ends when this closes. To wait for a child closes what it still holds of its input, so it is held here.
    lifeline: Option<ChildStdin>,
}

impl Process {
    fn start(name: String, arguments: Vec<String>, stdout: Stdio) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.args(&arguments).stdin(Stdio::piped()).stdout(stdout).kill_on_drop(true);
        let mut child = command.spawn()?;
        let lifeline = child.stdin.take();
        Ok(Self { name, arguments, child, lifeline })
    }

    fn start_again(&mut self) -> Result<()> {
        *self = Self::start(std::mem::take(&mut self.name), std::mem::take(&mut self.arguments), Stdio::null())?;
        Ok(())
    }
}

/// The producer and then the workers. None outlives this.
struct All {
    processes: Vec<Process>,
    seconds: u64,
    kills: u64,
    /// The producer has ended because all was done.
    done: bool,
}

impl All {
    /// The producer takes a free port, and keeps it when it is started again.
    async fn start(plan: &Plan, directory: &Path) -> Result<Self> {
        let place: PathBuf = directory.into();
        let place = place.to_str().ok_or("a directory whose name is text")?;
        let producer = |address: &str| -> Vec<String> {
            // Jobs come for most of the time in which somebody is killed.
            let seconds = plan.seconds as f64 * 0.8;
            ["--producer", place, address, &plan.jobs.to_string(), &seconds.to_string()].map(str::to_owned).into()
        };
        let free = format!("{}://127.0.0.1:0", plan.transport);
        let mut first = Process::start("the producer".into(), producer(&free), Stdio::piped())?;
        let mut said = BufReader::new(first.child.stdout.take().ok_or("no pipe")?).lines();
        let address =
            timeout(PATIENCE, said.next_line()).await??.ok_or("the producer ended before it said where it listens")?;
        // An address of quic names whom to expect there; to listen there it is left out.
        let port = address.rsplit_once(':').ok_or("an address without a port")?.1;
        let here = format!("{}://127.0.0.1:{port}", plan.transport);
        first.arguments = producer(&here);
        let mut processes = vec![first];
        for number in 0..plan.workers {
            let arguments = ["--worker", place, &address, &number.to_string()].map(str::to_owned).into();
            processes.push(Process::start(format!("worker {number}"), arguments, Stdio::null())?);
        }
        Ok(Self { processes, seconds: plan.seconds, kills: 0, done: false })
    }

    /// Kills one after the other, and starts again whoever has ended.
    async fn kill_at_random(&mut self, began: Instant) -> Result<()> {
        let (end, mut next) = (began + Duration::from_secs(self.seconds), pause(began));
        while Instant::now() < end && !self.done {
            tokio::select! {
                ended = self.next_end() => self.again(ended?)?,
                () = sleep_until(next.min(end).into()) => {
                    let victim = usize::try_from(random() % self.processes.len() as u64)?;
                    let Process { name, child, .. } = &mut self.processes[victim];
                    let id = child.id().unwrap_or_default();
                    println!("{:>5.1} s: {name} is killed, process {id}", began.elapsed().as_secs_f64());
                    child.start_kill()?;
                    next = pause(Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Nobody is killed any more, unless by others.
    async fn until_done(&mut self) -> Result<()> {
        let done = async {
            while !self.done {
                let ended = self.next_end().await?;
                self.again(ended)?;
            }
            Ok(())
        };
        timeout(PATIENCE, done).await.map_err(|_| "it does not come to an end")?
    }

    /// The next that ends, and how. It may be dropped before it is ready, and misses nothing.
    async fn next_end(&mut self) -> Result<(usize, ExitStatus)> {
        let mut ends: FuturesUnordered<_> = self
            .processes
            .iter_mut()
            .enumerate()
            .map(|(number, process)| async move { Ok((number, process.child.wait().await?)) })
            .collect();
        ends.next().await.ok_or("there are no processes")?
    }

    /// Starts it again if it was killed.
    fn again(&mut self, (number, status): (usize, ExitStatus)) -> Result<()> {
        let process = &mut self.processes[number];
        match status.code() {
            Some(0) if number == 0 => {
                self.done = true;
                return Ok(());
            }
            // It was not killed but has failed, and said why.
            Some(_) if cfg!(unix) => return Err(format!("{} has ended: {status}", process.name).into()),
            _ => process.start_again()?,
        }
        self.kills += 1;
        Ok(())
    }

    /// They end when their standard input does. How many were killed.
    async fn end(self) -> Result<u64> {
        for mut process in self.processes {
            drop(process.lifeline.take());
            timeout(PATIENCE, process.child.wait()).await??;
        }
        Ok(self.kills)
    }
}

fn random() -> u64 {
    RandomState::new().hash_one(0)
}

fn pause(from: Instant) -> Instant {
    from + Duration::from_millis(PAUSE.0 + random() % (PAUSE.1 - PAUSE.0))
}

#[derive(Default)]
struct Counted {
    lost: u64,
    /// Jobs that two messages brought.
    twice: u64,
    wrong: u64,
    /// Messages that were worked on more than once.
    again: u64,
}

/// Reads the files of the workers as one who uses the results would: the identity of a message counts once.
fn count(directory: &Path, plan: &Plan) -> Result<Counted> {
    let (mut counted, mut messages) = (Counted::default(), HashMap::new());
    let mut times = vec![0_u64; usize::try_from(plan.jobs)?];
    for number in 0..plan.workers {
        let path = directory.join(worker::results(number));
        let lines = if path.exists() { fs::read_to_string(path)? } else { String::new() };
        for line in lines.lines() {
            let [message, job, result] = line.split(' ').collect::<Vec<_>>()[..] else {
                return Err(format!("this is no line of a worker: {line}").into());
            };
            let job: usize = job.parse()?;
            match messages.entry(message.to_owned()) {
                Entry::Vacant(entry) => {
                    entry.insert(result.to_owned());
                    *times.get_mut(job).ok_or("a job that was not given out")? += 1;
                    counted.wrong += u64::from(work(job as u64) != result);
                }
                Entry::Occupied(first) => {
                    counted.again += 1;
                    counted.wrong += u64::from(first.get() != result);
                }
            }
        }
    }
    counted.lost = times.iter().filter(|times| **times == 0).count() as u64;
    counted.twice = times.iter().filter(|times| **times > 1).count() as u64;
    Ok(counted)
}
