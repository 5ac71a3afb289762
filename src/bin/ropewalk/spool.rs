//! `spool`: looks into the directory of a spool that nobody has open. To open it begins a new file in it, as every
//! opening does; nothing else changes but by `dead requeue` and `dead purge`.

use std::{
    io::{IsTerminal, Write as _, stderr},
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use ropewalk::{
    delivery::{DeadLetter, DeadLetters},
    spool::{CursorStats, Durability, OpenError, ReadError, RecoveryReport, Spool, SpoolOptions, Verified},
};

use crate::{
    args::{CatArgs, DeadCommand, Print, SpoolCommand, Which},
    failure::Failure,
    output::{Counter, Output, Reader, join, note},
    stop::Stop,
};

/// How long to wait for another owner: one that was just killed is soon gone, one that runs is not waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is quicker than this shows no progress.
const LONG: Duration = Duration::from_millis(500);

/// So many records are printed, or dead letters read, at once.
const BATCH: usize = 256;

/// `ropewalk spool`.
pub(crate) async fn run(command: SpoolCommand, stop: &Stop) -> Result<(), Failure> {
    let work = async {
        match command {
            SpoolCommand::Stat { directory } => stat(&directory).await,
            SpoolCommand::Verify { directory } => verify(&directory).await,
            SpoolCommand::Cat(args) => cat(&args).await,
            SpoolCommand::Dead { directory, command } => dead(&directory, command.unwrap_or(DeadCommand::List)).await,
        }
    };
    tokio::select! {
        done = work => done,
        () = stop.once() => Err(Failure::failed("interrupted before all was done")),
    }
}

/// How a spool is opened to be looked at.
fn options() -> SpoolOptions {
    SpoolOptions::new(Durability::Always).lock_timeout(PATIENCE)
}

/// Opens what is there, and makes nothing that is not.
async fn open(directory: &Path) -> Result<(Spool, RecoveryReport), Failure> {
    check(directory)?;
    Ok(Spool::open(directory, options()).await?)
}

fn check(directory: &Path) -> Result<(), Failure> {
    if directory.join("LOCK").is_file() {
        return Ok(());
    }
    Err(Failure::Failed(format!("{} is no directory of a spool", directory.display())))
}

/// The directory is free again when this returns.
async fn close(spool: &Spool) -> Result<(), Failure> {
    spool.close().await.map_err(|error| Failure::failed(error.to_string()))
}

async fn stat(directory: &Path) -> Result<(), Failure> {
    let (spool, report) = open(directory).await?;
    let stats = spool.stats();
    let mut lines = vec![
        format!("seqs     {} to {}", stats.seqs.start, stats.seqs.end),
        format!("bytes    {} in {} files", stats.bytes, stats.segments),
    ];
    for (name, cursor) in &stats.cursors {
        let CursorStats { settled, unsettled, missed, .. } = cursor;
        let missed = if *missed > 0 { format!(", {missed} were dropped before") } else { String::new() };
        lines.push(format!("cursor   {name} is at {settled}, {unsettled} messages are not settled{missed}"));
    }
    lines.push(match report.clean {
        true => "closed   in order".to_owned(),
        false => format!(
            "closed   by a crash: {} records saved, {} bytes of unfinished ones left out",
            report.copied, report.torn_bytes
        ),
    });
    // While the spool is open here nobody else can have its dead letters open.
    let dead = count(directory).await;
    close(&spool).await?;
    lines.push(format!("dead     {}", dead?));
    print(&lines.join("\n"));
    Ok(())
}

fn print(lines: &str) {
    // One who does not read it has no use for it.
    let _unread = writeln!(std::io::stdout().lock(), "{lines}");
}

async fn verify(directory: &Path) -> Result<(), Failure> {
    let (spool, report) = open(directory).await?;
    let progress = Progress::new(spool.stats().bytes);
    let verified = spool.verify_with(|found| progress.show(found)).await;
    progress.end();
    let verified = verified.map_err(|error| Failure::failed(error.to_string()))?;
    close(&spool).await?;
    let Verified { records, bytes, damage, .. } = &verified;
    let torn = report.torn_bytes;
    print(&format!("{records} messages, {bytes} bytes, {torn} bytes unfinished, damaged at {} places", damage.len()));
    if damage.is_empty() {
        return Ok(());
    }
    damage.iter().for_each(|damage| note(format_args!("{damage}")));
    Err(Failure::Failed(format!("the spool {} is damaged", directory.display())))
}

/// How far a check is, on a terminal.
struct Progress {
    began: Instant,
    bar: ProgressBar,
}

impl Progress {
    fn new(bytes: u64) -> Self {
        let style = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {binary_bytes_per_sec}");
        let bar = if stderr().is_terminal() { ProgressBar::no_length() } else { ProgressBar::hidden() };
        bar.set_length(bytes);
        Self { began: Instant::now(), bar: bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())) }
    }

    fn show(&self, found: &Verified) {
        if self.began.elapsed() >= LONG {
            self.bar.set_position(found.bytes);
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

async fn cat(args: &CatArgs) -> Result<(), Failure> {
    let (spool, _) = open(&args.directory).await?;
    let mut catting = Catting {
        output: Output::new(&args.print),
        counter: Counter::default(),
        left: args.count.unwrap_or(u64::MAX),
        damaged: 0,
    };
    let read = catting.read(&spool, args.from).await;
    let flushed = catting.output.flush().await;
    close(&spool).await?;
    catting.counter.summary().tell("read");
    read?;
    flushed?;
    match catting.damaged {
        0 => Ok(()),
        places => Err(Failure::Failed(format!("the spool {} is damaged at {places} places", args.directory.display()))),
    }
}

/// Prints a spool.
struct Catting {
    output: Output,
    counter: Counter,
    left: u64,
    damaged: u64,
}

impl Catting {
    async fn read(&mut self, spool: &Spool, from: Option<u64>) -> Result<(), Failure> {
        let cursors = spool.stats().cursors;
        let unsettled = cursors.values().map(|cursor| cursor.settled).min().unwrap_or(0);
        let mut reader = spool.read_from(from.unwrap_or(unsettled));
        let is_settled = |seq| {
            from.is_none()
                && !cursors.is_empty()
                && cursors.keys().all(|cursor| spool.is_settled(cursor, seq) == Some(true))
        };
        while self.left > 0 {
            match reader.try_next().await {
                Ok(None) => break,
                Ok(Some(record)) if is_settled(record.seq) => {}
                Ok(Some(record)) => {
                    self.left -= 1;
                    self.counter.tick();
                    self.counter.count(&record.message);
                    self.output.print(&record.message);
                    if self.output.waiting() >= BATCH << 10 && self.output.flush().await? == Reader::Gone {
                        break;
                    }
                }
                Err(ReadError::Damaged(damage)) => {
                    self.damaged += 1;
                    self.counter.lost += damage.seqs.end - damage.seqs.start;
                    note(format_args!("{damage}"));
                }
                // What was dropped for want of room is not there to be printed.
                Err(ReadError::Missed { records, .. }) => self.counter.lost += records,
                Err(error) => return Err(Failure::failed(error.to_string())),
            }
        }
        Ok(())
    }
}

/// Goes through the dead letters of a spool, until `see` has enough.
async fn each(
    letters: &DeadLetters,
    mut see: impl AsyncFnMut(DeadLetter) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    let mut from = 0;
    loop {
        let some = letters.list(from, BATCH).await?;
        let Some(last) = some.last() else { return Ok(()) };
        from = last.number + 1;
        for letter in some {
            if see(letter).await?.is_break() {
                return Ok(());
            }
        }
    }
}

async fn count(directory: &Path) -> Result<u64, Failure> {
    let (letters, mut count) = (DeadLetters::of(directory), 0);
    each(&letters, async |_| {
        count += 1;
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    close_letters(letters).await?;
    Ok(count)
}

async fn dead(directory: &Path, command: DeadCommand) -> Result<(), Failure> {
    check(directory)?;
    match command {
        DeadCommand::List => list(directory).await,
        DeadCommand::Requeue { which } => requeue(directory, which).await,
        DeadCommand::Purge { which } => purge(directory, which).await,
    }
}

async fn list(directory: &Path) -> Result<(), Failure> {
    let letters = DeadLetters::of(directory);
    let mut output = Output::new(&Print { separator: " ".into(), quiet: false });
    each(&letters, async |letter| {
        let DeadLetter { number, attempts, reason, message, .. } = letter;
        // A reason is whatever the receiver said, and may not break the line; nor may the message.
        let reason = reason.replace(char::is_control, " ");
        let mut line = format!("{number}\t{attempts}\t{reason}\t").into_bytes();
        join(&message, " ", &mut line);
        line.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
        output.print(&line.into());
        Ok(match output.flush().await? {
            Reader::Served => ControlFlow::Continue(()),
            Reader::Gone => ControlFlow::Break(()),
        })
    })
    .await?;
    close_letters(letters).await
}

async fn requeue(directory: &Path, which: Which) -> Result<(), Failure> {
    let (letters, mut count) = (DeadLetters::of(directory), 0);
    let requeued = match which {
        Which::One(number) => letters.requeue(number).await.map(|there| count += u64::from(there)),
        Which::All => requeue_all(&letters, &mut count).await,
    };
    close_letters(letters).await?;
    requeued?;
    done(which, count, "sent again")
}

async fn close_letters(letters: DeadLetters) -> Result<(), Failure> {
    letters.close().await.map_err(|error| Failure::failed(error.to_string()))
}

async fn requeue_all(letters: &DeadLetters, count: &mut u64) -> Result<(), OpenError> {
    loop {
        // Those that were sent again are no longer there.
        let some = letters.list(0, BATCH).await?;
        if some.is_empty() {
            return Ok(());
        }
        for letter in some {
            *count += u64::from(letters.requeue(letter.number).await?);
        }
    }
}

async fn purge(directory: &Path, which: Which) -> Result<(), Failure> {
    let (letters, mut count) = (DeadLetters::of(directory), 0);
    let wanted = |number| which == Which::All || which == Which::One(number);
    each(&letters, async |letter| {
        if wanted(letter.number) {
            letters.purge(letter.number).await?;
            count += 1;
        }
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    close_letters(letters).await?;
    done(which, count, "forgotten")
}

/// Says how many there were; that there is none of a number is a failure.
fn done(which: Which, count: u64, what: &str) -> Result<(), Failure> {
    match which {
        Which::One(number) if count == 0 => Err(Failure::Failed(format!("there is no dead letter {number}"))),
        _ => {
            note(format_args!("{count} dead letters {what}"));
            Ok(())
        }
    }
}
