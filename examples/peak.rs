//! More comes in than goes out, for a while: 5,000 messages a second in, 2,000 a second out. The spool takes what is
//! between; then the sender stops, and it drains.
//!
//! `cargo run --release --example peak -- [--seconds N]`: so long comes more than goes out, by default 5 s.
//!
//! ```text
//!   PUSH --> spool, in a directory --> PULL, 2,000 a second
//! ```
//!
//! No message is kept in memory beyond a bounded window: what is not confirmed is on disk, and `send` is done when it is
//! there. Both ends are in one process here; they may as well be in two.

use std::{
    env,
    error::Error,
    process::ExitCode,
    time::{Duration, Instant},
};

use futures::SinkExt;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use ropewalk::{Message, Pull, Push, spool::Durability};
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// In one second.
const IN: u64 = 5_000;
const OUT: u64 = 2_000;

/// What a message has besides its number.
const BYTES: usize = 250;

/// How long nothing may come before something is taken for broken.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let seconds: u64 = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => 5,
        ["--seconds", seconds] => seconds.parse()?,
        _ => return Err("usage: peak [--seconds N]".into()),
    };
    let directory = tempfile::tempdir()?;
    let push = Push::builder().spool(directory.path().join("jobs"), Durability::Always);
    let push = push.bind("tcp://127.0.0.1:0").await?;
    let pull = Pull::builder().rate(OUT as f64);
    let pull = pull.connect(push.address().ok_or("no address")?.to_string()).await?;

    let sending = tokio::spawn(send(push.clone(), seconds));
    let (drained, over) = oneshot::channel();
    let watching = tokio::spawn(watch(push.clone(), over));
    let (taken, lost) = take(&pull, seconds * IN).await?;
    sending.await??;
    drop(drained);
    let most = watching.await??;
    let report = push.close().await;
    pull.close().await;
    println!("{taken} messages, at most {} in the spool, {} left there, {lost} lost", HumanCount(most), report.spooled);
    Ok(if lost == 0 && report.all_delivered() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// So many a second, evenly. Those of one step are written and synced together.
async fn send(push: Push, seconds: u64) -> Result<()> {
    let steps = 100;
    let mut ticks = interval(Duration::from_secs(1) / steps);
    // Who is late catches up.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut sink, mut number) = (push.sink(), 0_u64);
    for _ in 0..seconds * u64::from(steps) {
        ticks.tick().await;
        for _ in 0..IN / u64::from(steps) {
            let mut message = number.to_le_bytes().to_vec();
            message.resize(8 + BYTES, b'.');
            sink.feed(Message::from(message)).await?;
            number += 1;
        }
        sink.flush().await?;
    }
    Ok(())
}

/// Takes them all: how many came, and how many did not.
async fn take(pull: &Pull, count: u64) -> Result<(u64, u64)> {
    let mut seen = vec![false; usize::try_from(count)?];
    let mut taken = 0;
    while taken < count {
        let Ok(message) = timeout(PATIENCE, pull.recv()).await else { break };
        let message = message?;
        let payload = message.parts().first().ok_or("an empty message")?;
        let number = u64::from_le_bytes(payload.get(..8).ok_or("no number")?.try_into()?);
        let seen = seen.get_mut(usize::try_from(number)?).ok_or("a number that was not sent")?;
        if std::mem::replace(seen, true) {
            return Err(format!("message {number} came twice").into());
        }
        taken += 1;
    }
    Ok((taken, seen.iter().filter(|seen| !**seen).count() as u64))
}

/// Shows what goes in and out and what is between, until it is over; the most that was there.
async fn watch(push: Push, mut over: oneshot::Receiver<()>) -> Result<u64> {
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?);
    let mut ticks = interval(Duration::from_millis(100));
    let (mut before, mut most, mut shown) = ((Instant::now(), 0, 0), 0, 0);
    for tick in 1.. {
        tokio::select! {
            _ = ticks.tick() => {}
            // That it is dropped says it.
            _ = &mut over => break,
        }
        let stats = push.spool_stats().ok_or("no spool")?;
        let backlog = stats.cursors.get("push").map_or(0, |cursor| cursor.unsettled);
        let (now, sent) = (Instant::now(), stats.accepted);
        most = most.max(backlog);
        if tick % 10 == 0 {
            let seconds = (now - before.0).as_secs_f64();
            let (taken_in, out) = (sent - before.1, (sent - backlog).saturating_sub(before.2));
            before = (now, sent, sent - backlog);
            shown += 1;
            let rate = |count: u64| (count as f64 / seconds) as u64;
            let line = format!(
                "{shown:>3} s  in {:>5}/s  out {:>5}/s  in the spool {:>7} messages, {} on disk",
                rate(taken_in),
                rate(out),
                backlog,
                HumanBytes(stats.bytes)
            );
            match bar.is_hidden() {
                true => println!("{line}"),
                false => bar.set_message(line),
            }
        }
        bar.tick();
    }
    bar.finish_and_clear();
    Ok(most)
}
