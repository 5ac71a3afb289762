//! The worker processes, as the coordinator has them: who they are, how far they are, which of them have ended.

use std::{
    env,
    process::{ExitStatus, Stdio},
};

use futures::stream::{FuturesUnordered, StreamExt};
use ropewalk::{PeerId, Req};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
};

use crate::Result;

pub(crate) struct Worker {
    process: Child,
    /// It ends when this closes.
    lifeline: ChildStdin,
    /// The public half of the key that it made for itself.
    pub(crate) id: PeerId,
    pub(crate) process_id: u32,
    pub(crate) ended: Option<ExitStatus>,
    /// Asks how far it is.
    pub(crate) req: Option<Req>,
    /// As it published.
    pub(crate) hashed: u64,
    pub(crate) jobs: u64,
    pub(crate) bytes: u64,
    pub(crate) redone: u64,
}

impl Worker {
    /// Starts a process, which first of all says who it is.
    async fn start(number: usize) -> Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .args(["--worker", &number.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(lifeline), Some(said), Some(process_id)) =
            (process.stdin.take(), process.stdout.take(), process.id())
        else {
            return Err("a process without pipes".into());
        };
        let id = BufReader::new(said).lines().next_line().await?.ok_or("a worker ended before it said who it is")?;
        let id = id.parse()?;
        Ok(Self { process, lifeline, id, process_id, ended: None, req: None, hashed: 0, jobs: 0, bytes: 0, redone: 0 })
    }
}

/// Child processes; none outlives this.
pub(crate) struct Workers(pub(crate) Vec<Worker>);

impl Workers {
    pub(crate) async fn start(workers: usize) -> Result<Self> {
        Ok(Self(futures::future::try_join_all((0..workers).map(Worker::start)).await?))
    }

    /// Whom to let in: those whose process has not ended.
    pub(crate) fn ids(&self) -> impl Iterator<Item = PeerId> {
        self.0.iter().filter(|worker| worker.ended.is_none()).map(|worker| worker.id)
    }

    /// Tells all of them where to come, in one line. They wait for it.
    pub(crate) async fn invite(&mut self, line: &str) -> Result<()> {
        for worker in &mut self.0 {
            worker.lifeline.write_all(line.as_bytes()).await?;
        }
        Ok(())
    }

    /// SIGKILL, where there are signals. That it has ended is told by `next_end`.
    pub(crate) fn kill(&mut self, number: usize) -> Result<()> {
        let worker = &mut self.0[number];
        if worker.ended.is_none() {
            worker.process.start_kill()?;
        }
        Ok(())
    }

    /// The next whose process ends; none when all have. It may be dropped before it is ready, and misses nothing.
    pub(crate) async fn next_end(&mut self) -> Option<Result<usize>> {
        let living = self.0.iter_mut().enumerate().filter(|(_, worker)| worker.ended.is_none());
        let mut ends: FuturesUnordered<_> = living
            .map(|(number, worker)| async move {
                worker.ended = Some(worker.process.wait().await?);
                Ok(number)
            })
            .collect();
        ends.next().await
    }
}
