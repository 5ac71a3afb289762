//! A worker process: hashes what it is given until the coordinator says goodbye, and confirms a job when the coordinator has
//! confirmed the answer.

use std::{
    ffi::OsString,
    io::{self, Read},
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use futures::stream::{FuturesUnordered, StreamExt};
use ropewalk::{Delivery, DownReason, Event, Guarantee, Message, Pub, Pull, Push, Rep, SecretKey};
use sha2::{Digest, Sha256};

use crate::{
    Result,
    wire::{FromWorker, Job, PROGRESS, Progress, Status},
};

/// So many jobs, and bytes of them, may be on their way to a worker or wait in it.
const WINDOW: (u64, u64) = (32, 4 << 20);
/// So many answers may be on their way.
const ANSWERS: usize = 64;

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(arguments: &[OsString]) -> Result<()> {
    let [number] = arguments else { return Err("a worker is told its number; start mesh without --worker".into()) };
    let number = number.to_str().ok_or("a number")?.parse()?;
    let key = SecretKey::generate();
    // It is let in by this, and invited once it is.
    println!("{}", key.id());
    let mut invitation = String::new();
    if io::stdin().read_line(&mut invitation)? == 0 {
        return Err("no invitation came on standard input; start mesh without --worker".into());
    }
    end_with_the_coordinator();
    Worker::start(number, key, &invitation).await?.work().await
}

/// The coordinator holds the other end of standard input. It closes when the coordinator ends, however it ends.
fn end_with_the_coordinator() {
    thread::spawn(|| {
        let _nothing = io::stdin().read(&mut [0]);
        process::exit(1);
    });
}

struct Worker {
    number: usize,
    jobs: Pull,
    results: Push,
    progress: Pub,
    status: Rep,
    done: Arc<Mutex<Status>>,
    published: Instant,
}

impl Worker {
    async fn start(number: usize, key: SecretKey, invitation: &str) -> Result<Self> {
        let invitation: Vec<&str> = invitation.split_whitespace().collect();
        let [here, coordinator, jobs, results, progress] = invitation[..] else {
            return Err(format!("this is no invitation: {invitation:?}").into());
        };
        let jobs_here = Pull::builder().recv_hwm(WINDOW.0).recv_hwm_bytes(WINDOW.1);
        let worker = Self {
            number,
            jobs: jobs_here.key(key.clone()).connect(jobs).await?,
            results: Push::builder().key(key.clone()).guarantee(Guarantee::AtLeastOnce).connect(results).await?,
            progress: Pub::builder().key(key.clone()).connect(progress).await?,
            status: Rep::builder().key(key).allow([coordinator.parse()?]).bind(here).await?,
            done: Arc::default(),
            published: Instant::now(),
        };
        let (status, done) = (worker.status.clone(), Arc::clone(&worker.done));
        tokio::spawn(async move {
            let answer = |_| {
                let status = done.lock().unwrap_or_else(PoisonError::into_inner).clone();
                async move { Message::encode(&status).unwrap_or_default() }
            };
            status.serve(4, answer).await;
        });
        Ok(worker)
    }

    async fn work(mut self) -> Result<()> {
        let mut events = self.jobs.events();
        self.jobs.ready().await?;
        self.progress.subscribers(PROGRESS, 1).await?;
        let status = self.status.address().ok_or("the status has no address")?.to_string();
        self.tell(&FromWorker::Here { worker: self.number, status }).await?;

        let mut answers = FuturesUnordered::new();
        // All of these are cancel-safe: whichever is not ready loses nothing.
        loop {
            tokio::select! {
                job = self.jobs.recv_delivery(), if answers.len() < ANSWERS => answers.push(self.hash(job?).await?),
                Some(answered) = answers.next() => answered?,
                event = events.next() => match event {
                    // It says so when all jobs are confirmed.
                    Some(Event::PeerDown { reason: DownReason::Goodbye, .. }) | None => break,
                    Some(Event::PeerDown { reason, .. }) => return Err(format!("the coordinator is gone: {reason}").into()),
                    Some(_) => {}
                },
            }
        }
        while let Some(answered) = answers.next().await {
            answered?;
        }
        self.publish().await?;
        self.tell(&FromWorker::Finished { worker: self.number }).await?;
        let report = self.results.close().await;
        self.progress.close().await;
        self.status.close().await;
        self.jobs.close().await;
        if report.all_delivered() { Ok(()) } else { Err(format!("results did not arrive: {report:?}").into()) }
    }

    /// Hashes it. What is left to do is to answer.
    async fn hash(&mut self, job: Delivery) -> Result<impl Future<Output = Result<()>> + use<>> {
        let (Job { number, path, offset }, content) = Job::read(&job)?;
        let digest = Sha256::digest(content).into();
        let answer = Message::encode(&FromWorker::Done { worker: self.number, number, digest })?;
        {
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            *done = Status { jobs: done.jobs + 1, bytes: done.bytes + content.len() as u64, path, offset };
        }
        if self.published.elapsed() > Duration::from_millis(20) {
            self.publish().await?;
        }
        Ok(give(self.results.clone(), answer, job))
    }

    async fn tell(&self, what: &FromWorker) -> Result<()> {
        Ok(self.results.send(Message::encode(what)?).await?)
    }

    async fn publish(&mut self) -> Result<()> {
        self.published = Instant::now();
        let bytes = self.done.lock().unwrap_or_else(PoisonError::into_inner).bytes;
        let progress = Message::encode(&Progress { worker: self.number, bytes })?;
        Ok(self.progress.publish(PROGRESS, progress).await?)
    }
}

/// The job is confirmed when its answer is: a worker that is killed before that has done nothing, as far as others know.
async fn give(results: Push, answer: Message, job: Delivery) -> Result<()> {
    results.deliver(answer).await?;
    // If it was taken back meanwhile, another answers, too, and the same.
    let _taken_back = job.ack().await;
    Ok(())
}
