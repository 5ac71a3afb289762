//! A worker: does a job, writes down that it is done and which message it was, and only then confirms.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    process::ExitCode,
};

use ropewalk::{Delivery, Pull};

use crate::{Result, end_with_the_conductor, peers, work};

/// So many jobs that are there at once share a write and a sync.
const AT_ONCE: usize = 16;

/// The name of the file of a worker's results.
pub(crate) fn results(number: usize) -> String {
    format!("worker-{number}.results")
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(directory: &Path, address: &str, number: &str) -> Result<ExitCode> {
    end_with_the_conductor();
    let number: usize = number.parse()?;
    let mut done = Done::open(&directory.join(results(number)))?;
    let pull = Pull::builder()
        .key(peers::key(directory, &format!("worker-{number}"))?)
        .heartbeat(peers::HEARTBEAT.0, peers::HEARTBEAT.1)
        .reconnect(peers::HEARTBEAT.0 / 5, peers::HEARTBEAT.1)
        .connect(address)
        .await?;
    let mut jobs = Vec::new();
    loop {
        pull.recv_deliveries(&mut jobs, AT_ONCE).await?;
        let mut lines = String::new();
        for job in &jobs {
            lines += &done.line(job)?;
        }
        done.append(&lines)?;
        for job in jobs.drain(..) {
            // One that was taken back is done all the same. Whoever has it now does it once more, and it counts once.
            let _taken_back = job.ack().await;
        }
    }
}

/// What this worker has done, in its file.
struct Done {
    file: File,
    /// The messages of all lines.
    known: HashSet<String>,
}

impl Done {
    fn open(path: &Path) -> Result<Self> {
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut lines = Vec::new();
        file.read_to_end(&mut lines)?;
        // A line without its end was never confirmed.
        let whole = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64)?;
        file.seek(SeekFrom::Start(whole as u64))?;
        let lines = String::from_utf8(lines[..whole].to_vec())?;
        let known = lines.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
        Ok(Self { file, known })
    }

    /// Does the job; its line is which message it was, which job, and the result. None for one that was done before.
    fn line(&mut self, delivery: &Delivery) -> Result<String> {
        let message = delivery.id().ok_or("a sender that does not keep its jobs")?.to_string();
        if self.known.contains(&message) {
            return Ok(String::new());
        }
        let job = delivery.parts().first().ok_or("a job has a number")?;
        let job = u64::from_le_bytes(job.as_ref().try_into()?);
        let line = format!("{message} {job} {}\n", work(job));
        self.known.insert(message);
        Ok(line)
    }

    /// Effect and identity together: in one write, and on disk when this returns.
    fn append(&mut self, lines: &str) -> Result<()> {
        if !lines.is_empty() {
            self.file.write_all(lines.as_bytes())?;
            self.file.sync_data()?;
        }
        Ok(())
    }
}
