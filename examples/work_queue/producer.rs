//! The producer: gives each job to the spool, in order, once, however often it is killed.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use futures::SinkExt;
use ropewalk::{
    Message, Push,
    spool::{Durability, Spool},
};

use crate::{Result, end_with_the_conductor, peers};

/// The reader of the log that the producer itself is.
const CURSOR: &str = "producer";

/// So many jobs of one producer may be with one worker: those that come again when it is killed.
const UNDER_WAY: u64 = 64;

#[tokio::main]
pub(crate) async fn run(directory: &Path, address: &str, jobs: &str, seconds: &str) -> Result<ExitCode> {
    end_with_the_conductor();
    let (jobs, seconds): (u64, f64) = (jobs.parse()?, seconds.parse()?);
    let spool = directory.join("spool");
    let first = next_job(&spool).await?;
    let ids = peers::ids(directory)?;
    let workers = ids.iter().filter(|(name, _)| name.starts_with("worker")).map(|(_, id)| *id);
    let push = Push::builder()
        .key(peers::key(directory, "producer")?)
        .allow(workers)
        .heartbeat(peers::HEARTBEAT.0, peers::HEARTBEAT.1)
        .under_way(UNDER_WAY)
        .linger(Duration::from_secs(600))
        .spool(spool, Durability::Always)
        .bind(address)
        .await?;
    // Where to come: only when it was not told is this new.
    println!("{}", push.address().ok_or("no address")?);

    // Not all at once, that there is something to be killed in.
    let (began, mut sink) = (Instant::now(), push.sink());
    for job in first..jobs {
        let due = Duration::from_secs_f64((job - first) as f64 * seconds / jobs as f64);
        if due > began.elapsed() {
            // What came together is on disk, and then it is waited.
            sink.flush().await?;
            tokio::time::sleep_until((began + due).into()).await;
        }
        sink.feed(Message::from(job.to_le_bytes().to_vec())).await?;
    }
    sink.flush().await?;
    // Until all of them are confirmed.
    let dead = push.dead_letters().ok_or("no dead letters")?;
    let report = push.close().await;
    let dead = dead.list(0, 10).await?;
    match report.all_delivered() && dead.is_empty() {
        true => Ok(ExitCode::SUCCESS),
        false => Err(format!("not all was done: {report:?}, dead letters: {dead:?}").into()),
    }
}

/// Asks the log which job comes next. The last record stays in it, for this reader is never done with that one.
async fn next_job(directory: &Path) -> Result<u64> {
    let (spool, _) = Spool::open(directory, Durability::Always).await?;
    spool.cursor(CURSOR).await?;
    let settled = spool.settled(CURSOR).unwrap_or(0);
    let (mut reader, mut last) = (spool.read_from(settled), None);
    while let Some(record) = reader.try_next().await? {
        last = Some((record.seq, record.message));
    }
    let next = match last {
        None => 0,
        Some((seq, message)) => {
            spool.settle(CURSOR, settled..seq)?;
            let job = message.parts().first().ok_or("a job has a number")?;
            u64::from_le_bytes(job.as_ref().try_into()?) + 1
        }
    };
    spool.close().await?;
    Ok(next)
}
