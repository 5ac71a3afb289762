//! A queue of jobs that survives: one producer, several workers, each a process of its own that anybody may kill at any
//! time, with SIGKILL, and start again. Every job is done, and counts once.
//!
//! ```text
//! cargo run --release --example work_queue -- [--jobs N] [--seconds N] [--workers N] [--transport quic|tcp]
//! ```
//! Started so, it starts all of them in a temporary directory, kills one after the other at random for so many seconds
//! (whoever else kills one may do so, too), starts each again, and counts at the end.
//!
//! ```text
//!   producer                                    worker 0 to 3
//!      jobs in order --> spool, PUSH ---------> PULL, does the job, appends a line to its own file: which message it
//!                          |                      was, which job, the result; syncs it; then confirms
//!                          +-- one of the readers of this log is the producer itself: where was I?
//! ```
//!
//! # Why no job is lost
//! The producer's `PUSH` has a directory: a job that was accepted is on disk until a worker has confirmed it, and a worker
//! confirms when its own line is on disk. When the producer is started again it must know which job was the last that was
//! accepted. A note beside the spool would be one step behind or ahead. So it asks the spool: a cursor of its own keeps
//! the last record there, even when all jobs are done, and that record says which job it was.
//!
//! # Why no job counts twice
//! A worker that is killed between its line and its confirmation has done the job, and the sender cannot know it: the job
//! goes to another, and there are two lines. No queue can prevent that. But both lines name the same message, for its
//! identity stays the same however often it is delivered. The line commits the job's effect and this identity together
//! (one write, one sync), so whoever reads the lines counts each identity once and passes over the second. A worker does
//! so for itself, too: it reads its own file when it starts, and what is there it only confirms.
//!
//! Over quic each process has a key of its own, made for it before it starts: see `peers.rs`.

mod conductor;
mod peers;
mod producer;
mod worker;

use std::{
    env,
    error::Error,
    path::Path,
    process::{self, ExitCode},
    thread,
};

use sha2::{Digest, Sha256};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const USAGE: &str = "usage: work_queue [--jobs N] [--seconds N] [--workers N] [--transport quic|tcp]";

/// What is to be done, and how roughly.
struct Plan {
    jobs: u64,
    seconds: u64,
    workers: usize,
    transport: String,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["--producer", directory, address, jobs, seconds] => {
            producer::run(Path::new(directory), address, jobs, seconds)
        }
        ["--worker", directory, address, number] => worker::run(Path::new(directory), address, number),
        _ => conductor::run(&read_plan(&words)),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("work_queue: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read_plan(words: &[&str]) -> Plan {
    let mut plan = Plan { jobs: 10_000, seconds: 10, workers: 4, transport: "quic".into() };
    for pair in words.chunks(2) {
        let number = pair.get(1).and_then(|value| value.parse().ok());
        match (pair, number) {
            (["--jobs", _], Some(jobs @ 1..)) => plan.jobs = jobs,
            (["--seconds", _], Some(seconds)) => plan.seconds = seconds,
            (["--workers", _], Some(workers @ 1..=64)) => plan.workers = workers as usize,
            (["--transport", transport @ ("quic" | "tcp")], _) => plan.transport = (*transport).into(),
            _ => {
                eprintln!("{USAGE}");
                process::exit(2);
            }
        }
    }
    plan
}

/// The job: a chain of hashes that begins with its number, and takes a moment.
fn work(job: u64) -> String {
    let mut digest = Sha256::digest(job.to_le_bytes());
    for _ in 0..2_000 {
        digest = Sha256::digest(digest);
    }
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The conductor holds the other end of standard input. It closes when the conductor ends, however it ends.
fn end_with_the_conductor() {
    thread::spawn(|| {
        let _nothing = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
        process::exit(0);
    });
}
