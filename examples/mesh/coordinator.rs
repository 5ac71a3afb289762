//! The coordinator: gives out jobs, which its spool keeps until a worker has confirmed them, and gathers answers.

use std::{
    collections::BTreeSet,
    error::Error,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::{Fuse, FusedFuture, FutureExt, join_all};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use ropewalk::{
    DownReason, Event, Events, Message, Pull, Push, Req, SecretKey, Sub, SubRecvError,
    spool::{Durability, SpoolOptions},
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};

use crate::{
    Arguments, Result,
    files::{self, Listing, Piece, Unreadable},
    wire::{FromWorker, Job, PROGRESS, Progress, Status},
    workers::{Worker, Workers},
};

const WORKERS: usize = 4;
/// The one that is killed.
const VICTIM: usize = 2;
/// The spool takes no more of the disk than the second; it goes away piece by piece, and the first is such a piece.
const SPOOL: (u64, u64) = (16 << 20, 128 << 20);
/// How long nothing may happen before this is taken for broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// True: nothing is lost and nothing is wrong.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(Arguments { directory, limit, transport }: Arguments) -> Result<bool> {
    println!("hashing what is below {}, at most {}, over {transport}", directory.display(), HumanBytes(limit));
    let listing = spawn_blocking(move || files::list(&directory, limit)).await??;
    let mut mesh = Mesh::start(listing, transport).await?;
    mesh.hash_all().await?;
    let elapsed = mesh.began.elapsed();
    mesh.finish().await?;
    println!("every answer is compared with a digest computed here");
    let (lost, wrong) = mesh.check().await?;
    mesh.report(elapsed);
    println!("{} files, {lost} lost, {wrong} wrong", mesh.files());
    Ok(lost == 0 && wrong == 0)
}

/// One job. Its content is in the spool until it is confirmed; file, offset and length say where it came from.
struct Entry {
    file: u32,
    bytes: u32,
    offset: u64,
    digest: Option<[u8; 32]>,
}

struct Mesh {
    listing: Arc<Listing>,
    unreadable: Vec<Unreadable>,
    push: Push,
    pull: Pull,
    sub: Sub,
    events: Events,
    workers: Workers,
    bar: ProgressBar,
    began: Instant,
    jobs: Vec<Entry>,
    /// Jobs that have an answer, and their bytes.
    answered: usize,
    answered_bytes: u64,
    /// Second answers, and how many of them were not the first one.
    redone: u64,
    differing: u64,
    deaths: usize,
    finished: usize,
    progress: u64,
    progress_missed: u64,
    /// Where the spool is; it goes after those who use it.
    _directory: TempDir,
}

impl Mesh {
    /// Starts the workers, lets them in and waits until all are there.
    async fn start(mut listing: Listing, transport: &str) -> Result<Self> {
        let workers = timeout(PATIENCE, Workers::start(WORKERS)).await;
        let mut workers = workers.map_err(|_| "the workers do not say who they are")??;
        let (key, here) = (SecretKey::generate(), format!("{transport}://127.0.0.1:0"));
        let directory = tempfile::tempdir()?;
        let push = Push::builder().key(key.clone()).allow(workers.ids()).linger(PATIENCE);
        let spool = SpoolOptions::new(Durability::Os).segment(SPOOL.0).quota(SPOOL.1);
        let push = push.spool(directory.path(), spool).bind(&here).await?;
        let (events, jobs) = (push.events(), push.address().ok_or("the jobs have no address")?);
        let pull = Pull::builder().key(key.clone()).allow(workers.ids()).build();
        let results = pull.bind_to(&here).await?;
        let sub = Sub::builder().key(key.clone()).allow(workers.ids()).build();
        sub.subscribe(PROGRESS).await?;
        let progress = sub.bind_to(&here).await?;
        workers.invite(&format!("{here} {} {jobs} {results} {progress}\n", key.id())).await?;
        for _ in 0..WORKERS {
            let heard = tokio::select! {
                heard = timeout(PATIENCE, pull.recv()) => heard,
                Some(number) = workers.next_end() => {
                    return Err(format!("worker {} has ended already; it says why above", number?).into());
                }
            };
            match heard.map_err(|_| "the workers do not come; try another --transport")??.decode()? {
                FromWorker::Here { worker, status } => {
                    let worker = workers.0.get_mut(worker).ok_or("a worker that was not started")?;
                    worker.req = Some(Req::builder().key(key.clone()).connect(status).await?);
                }
                other => return Err(format!("{other:?} came before all workers were there").into()),
            }
        }
        push.ready_with(WORKERS).await?;

        // Hidden by itself when standard error is not a terminal.
        let bar = ProgressBar::new(listing.bytes);
        bar.set_style(ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes} {binary_bytes_per_sec} {msg}")?);
        Ok(Self {
            unreadable: std::mem::take(&mut listing.unreadable),
            listing: Arc::new(listing),
            _directory: directory,
            push,
            pull,
            sub,
            events,
            workers,
            bar,
            began: Instant::now(),
            jobs: Vec::new(),
            answered: 0,
            answered_bytes: 0,
            redone: 0,
            differing: 0,
            deaths: 0,
            finished: 0,
            progress: 0,
            progress_missed: 0,
        })
    }

    /// Until every job has an answer. Midway the victim is killed.
    async fn hash_all(&mut self) -> Result<()> {
        let (sender, mut pieces) = mpsc::channel(4);
        let listing = Arc::clone(&self.listing);
        spawn_blocking(move || files::read_all(&listing.files, &sender));

        let (pull, sub) = (self.pull.clone(), self.sub.clone());
        let (mut all_read, mut asked, mut killed) = (false, false, false);
        // To drop this would leave in doubt whether the job is in the spool. So it stays until it is done.
        let mut pushing = pin!(Fuse::terminated());
        loop {
            let all_pushed = all_read && pushing.is_terminated();
            let waiting = self.answered < self.jobs.len();
            if !asked && waiting && self.answered_bytes >= self.listing.bytes / 4 {
                asked = true;
                self.show_statuses().await?;
            } else if !killed && waiting && (self.answered_bytes >= self.listing.bytes / 2 || all_pushed) {
                killed = true;
                self.workers.kill(VICTIM)?;
            }
            if all_pushed && !waiting && self.deaths >= usize::from(killed) {
                self.show_statuses().await?;
                return Ok(());
            }
            // Every other one may be dropped before it is ready, and nothing is lost or done twice.
            let step = async {
                tokio::select! {
                    pushed = &mut pushing, if !pushing.is_terminated() => pushed?,
                    piece = pieces.recv(), if pushing.is_terminated() && !all_read => match piece {
                        Some(Piece::Content { file, offset, content }) => {
                            let job = self.job(file, offset, content)?;
                            pushing.set(push(self.push.clone(), job).fuse());
                        }
                        Some(Piece::Unreadable(unreadable)) => self.unreadable.push(unreadable),
                        None => all_read = true,
                    },
                    message = pull.recv() => self.hear(&message?)?,
                    event = self.events.next() => self.happened(event)?,
                    progress = sub.recv() => self.show_progress(progress)?,
                    Some(number) = self.workers.next_end() => self.ended(number?),
                }
                Ok::<(), Box<dyn Error + Send + Sync>>(())
            };
            timeout(PATIENCE, step).await.map_err(|_| "nothing happens any more")??;
        }
    }

    /// Waits until all jobs are confirmed, says goodbye to the workers and hears them out: jobs that were given out twice
    /// are answered twice.
    async fn finish(&mut self) -> Result<()> {
        let (push, pull, sub) = (self.push.clone(), self.pull.clone(), self.sub.clone());
        let closing = tokio::spawn(async move { push.close().await });
        let mut open = true;
        while self.finished + self.deaths < WORKERS {
            let step = async {
                tokio::select! {
                    message = pull.recv() => self.hear(&message?)?,
                    event = self.events.next(), if open => match event {
                        None => open = false,
                        event => self.happened(event)?,
                    },
                    progress = sub.recv() => self.show_progress(progress)?,
                    Some(number) = self.workers.next_end() => self.ended(number?),
                }
                Ok::<(), Box<dyn Error + Send + Sync>>(())
            };
            timeout(PATIENCE, step).await.map_err(|_| "the workers do not finish")??;
        }
        let report = closing.await?;
        self.bar.finish_and_clear();
        println!("of the jobs {} are confirmed, {} are not", report.delivered, report.spooled);
        self.sub.close().await;
        self.pull.close().await;
        for worker in &self.workers.0 {
            if let Some(req) = &worker.req {
                req.close().await;
            }
        }
        let all_end = async {
            while let Some(number) = self.workers.next_end().await {
                number?;
            }
            Ok(())
        };
        timeout(PATIENCE, all_end).await.map_err(|_| "a worker does not end")?
    }

    /// A piece of a file becomes a job.
    fn job(&mut self, file: usize, offset: u64, content: bytes::Bytes) -> Result<Message> {
        let number = u32::try_from(self.jobs.len())?;
        self.jobs.push(Entry { file: u32::try_from(file)?, bytes: content.len() as u32, offset, digest: None });
        let path = self.listing.name(file);
        Job { number, path, offset }.into_message(content)
    }

    fn hear(&mut self, message: &Message) -> Result<()> {
        match message.decode()? {
            FromWorker::Done { worker, number, digest } => {
                let entry = self.jobs.get_mut(number as usize).ok_or("an answer to no job")?;
                let worker = self.workers.0.get_mut(worker).ok_or("an answer of no worker")?;
                match entry.digest {
                    None => {
                        entry.digest = Some(digest);
                        self.answered += 1;
                        self.answered_bytes += u64::from(entry.bytes);
                        worker.jobs += 1;
                        worker.bytes += u64::from(entry.bytes);
                    }
                    Some(first) => {
                        self.redone += 1;
                        worker.redone += 1;
                        self.differing += u64::from(first != digest);
                    }
                }
            }
            FromWorker::Finished { .. } => self.finished += 1,
            FromWorker::Here { .. } => return Err("a worker came twice".into()),
        }
        Ok(())
    }

    fn happened(&mut self, event: Option<Event>) -> Result<()> {
        match event {
            Some(Event::PeerDown { reason: DownReason::Goodbye | DownReason::Closed, .. }) => {}
            Some(Event::PeerDown { reason, .. }) => {
                self.deaths += 1;
                self.say(&format!("a worker is gone: {reason}; what it has not confirmed goes to the others"));
                if self.deaths == WORKERS {
                    return Err("all workers are gone".into());
                }
            }
            Some(Event::HandshakeFailed { address, reason }) => {
                self.say(&format!("{address} does not come in: {reason}"));
            }
            Some(Event::Missed { events }) => return Err(format!("{events} events were missed").into()),
            Some(_) => {}
            None => return Err("the socket of the jobs is closed".into()),
        }
        Ok(())
    }

    /// The key of a worker that has failed is no longer allowed, and its links end at once: over QUIC nothing else
    /// would tell so soon.
    fn ended(&mut self, number: usize) {
        match self.workers.0[number].ended {
            Some(status) if !status.success() => self.say(&format!("worker {number} has ended: {status}")),
            _ => return,
        }
        // Closed in the background: nobody is there to say goodbye to.
        self.workers.0[number].req = None;
        self.push.allow_only(self.workers.ids());
        self.pull.allow_only(self.workers.ids());
        self.sub.allow_only(self.workers.ids());
    }

    fn show_progress(&mut self, progress: Result<Message, SubRecvError>) -> Result<()> {
        match progress {
            Ok(message) => {
                let Progress { worker, bytes } = message.decode()?;
                self.workers.0.get_mut(worker).ok_or("progress of no worker")?.hashed = bytes;
                self.progress += 1;
                let hashed: u64 = self.workers.0.iter().map(|worker| worker.hashed).sum();
                // What is hashed twice counts once here.
                self.bar.set_position(hashed.min(self.listing.bytes));
            }
            Err(SubRecvError::Lagged(missed)) => self.progress_missed += missed,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Asks every worker that lives how far it is.
    async fn show_statuses(&mut self) -> Result<()> {
        let asked = self.workers.0.iter().enumerate().filter(|(_, worker)| worker.ended.is_none());
        let asked = asked.filter_map(|(number, worker)| {
            let req = worker.req.as_ref()?;
            Some(async move { (number, req.request("status").timeout(Duration::from_secs(10)).await) })
        });
        for (number, answer) in join_all(asked).await {
            match answer {
                Ok(answer) => {
                    let Status { jobs, bytes, path, offset } = answer.decode()?;
                    let last = if jobs == 0 { String::new() } else { format!(", the last at {offset} of {path}") };
                    self.say(&format!("worker {number} says: {jobs} jobs, {}{last}", HumanBytes(bytes)));
                }
                Err(error) => self.say(&format!("worker {number} says nothing: {error}")),
            }
        }
        Ok(())
    }

    fn say(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }

    /// Compares every answer with a digest computed here from the file. How many files lack one, or have a wrong one.
    async fn check(&mut self) -> Result<(usize, usize)> {
        let (jobs, listing) = (std::mem::take(&mut self.jobs), Arc::clone(&self.listing));
        let (jobs, lost, wrong) = spawn_blocking(move || {
            let (mut lost, mut wrong) = (BTreeSet::new(), BTreeSet::new());
            for Entry { file, bytes, offset, digest } in &jobs {
                let path = &listing.files[*file as usize].path;
                let Some(digest) = digest else {
                    eprintln!("lost: {} at {offset}", path.display());
                    lost.insert(*file);
                    continue;
                };
                let found = files::digest(path, *offset, *bytes);
                if !matches!(&found, Ok(found) if found == digest) {
                    let why = found.err().map_or("the digest differs".into(), |error| error.to_string());
                    eprintln!("wrong: {} at {offset}: {why}", path.display());
                    wrong.insert(*file);
                }
            }
            (jobs, lost.len(), wrong.len())
        })
        .await?;
        self.jobs = jobs;
        Ok((lost, wrong + self.differing as usize))
    }

    /// The files of which there is a job.
    fn files(&self) -> usize {
        // Jobs of one file stand together.
        self.jobs.chunk_by(|a, b| a.file == b.file).count()
    }

    fn report(&self, elapsed: Duration) {
        for Unreadable { path, error } in self.unreadable.iter().take(20) {
            eprintln!("cannot be read: {}: {error}", path.display());
        }
        let unreadable = self.unreadable.len();
        if unreadable > 20 {
            eprintln!("cannot be read: {} more", unreadable - 20);
        }
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let bytes: u64 = self.jobs.iter().map(|job| u64::from(job.bytes)).sum();
        let cut = if self.listing.cut { ", there is more beyond the limit" } else { "" };
        println!();
        println!("files     {:>12}   and {unreadable} that cannot be read{cut}", self.files());
        println!("jobs      {:>12}", self.jobs.len());
        println!("bytes     {bytes:>12}   {}", HumanBytes(bytes));
        println!("seconds   {seconds:>12.2}");
        println!("MB/s      {:>12.1}", bytes as f64 / 1e6 / seconds);
        println!("redone    {:>12}   answered twice, {} of them differently", self.redone, self.differing);
        println!("progress  {:>12}   heard, {} missed", self.progress, self.progress_missed);
        println!();
        println!("worker   process         jobs          bytes   redone   end");
        for (number, worker) in self.workers.0.iter().enumerate() {
            let Worker { process_id, jobs, bytes, redone, ended, .. } = worker;
            let ended = ended.map_or("?".into(), |ended| ended.to_string());
            println!("{number:>6} {process_id:>9} {jobs:>12} {bytes:>14} {redone:>8}   {ended}");
        }
        println!();
    }
}

/// Returns when the job is in the spool.
async fn push(push: Push, job: Message) -> Result<()> {
    Ok(push.send(job).await?)
}
