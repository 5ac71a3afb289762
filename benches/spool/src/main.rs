//! The spool beside the raw loop: what the disk gives to one thread that writes and syncs the same bytes.
//!
//! ```text
//! cargo run --release --manifest-path benches/spool/Cargo.toml -- [--directory DIR] [ROW]...
//! ```
//! Both run in turns, a short while each, in the same directory; each line has the median over the rounds of the ratio
//! of the two, so that what else the machine does hits both. The runtime has one thread, and the spool its own: who has
//! two cores has none to spare for anything else.

mod always;
mod backlog;
mod counted;
mod end_to_end;
mod os;
mod raw;
mod settle;

use std::{env, fs, future::Future, io, path::PathBuf, pin::Pin, process::ExitCode, time::Duration};

use ropewalk::{
    Message,
    spool::{Spool, SpoolOptions},
};
use tokio::task::JoinSet;

use crate::counted::{Counted, Counts};

type Row = fn(&Place) -> Pin<Box<dyn Future<Output = ()> + '_>>;

/// A new row is one line here.
const ROWS: [(&str, Row); 9] = [
    ("always", |place| Box::pin(always::many(place))),
    ("idle", |place| Box::pin(always::alone(place))),
    ("os", |place| Box::pin(os::write(place))),
    ("settle", |place| Box::pin(settle::settle(place))),
    ("backlog", |place| Box::pin(backlog::reopen_and_read(place))),
    ("tail", |place| Box::pin(os::tail(place))),
    ("deliver", |place| Box::pin(end_to_end::deliver(place))),
    ("through", |place| Box::pin(end_to_end::through(place))),
    ("ask", |place| Box::pin(end_to_end::ask(place))),
];

/// Senders at once, where there are many.
pub(crate) const SENDERS: usize = 64;

/// Where all files are.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A new spool in this directory, that takes all a row writes.
    pub(crate) async fn spool(&self, name: &str, options: impl Into<SpoolOptions>) -> (Spool, Counts) {
        let (storage, counts) = Counted::new(self.path(name));
        let opened = Spool::open_on(storage, options.into().quota(8 << 30)).await;
        (opened.expect("it opens").0, counts)
    }

    pub(crate) async fn done(&self, name: &str, spool: Spool) {
        spool.close().await.expect("it closes");
        fs::remove_dir_all(self.path(name)).expect("it goes");
    }
}

fn main() -> ExitCode {
    let (mut directory, mut wanted) = (env::temp_dir(), Vec::new());
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        match &*word {
            "--directory" => directory = words.next().map(PathBuf::from).unwrap_or_default(),
            _ if ROWS.iter().any(|(name, _)| *name == word) => wanted.push(word),
            _ => {
                let names: Vec<&str> = ROWS.iter().map(|(name, _)| *name).collect();
                eprintln!("usage: [--directory DIR] [ROW]...; rows: {}", names.join(" "));
                return ExitCode::from(2);
            }
        }
    }
    match run(directory, &wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(directory: PathBuf, wanted: &[String]) -> io::Result<()> {
    let place = Place { directory: tempfile::Builder::new().prefix("spool-bench").tempdir_in(directory)? };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("ratio   goal      what");
    for (name, row) in ROWS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            runtime.block_on(row(&place));
        }
    }
    Ok(())
}

// ---- what the rows share --------------------------------------------------------------------------------------------

/// What becomes of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// They stay: the log grows.
    Stay,
    /// Who appended them settles them: the log goes round in a few files, as where receivers keep up.
    Settle,
}

impl Then {
    fn says(self) -> &'static str {
        match self {
            Self::Stay => "",
            Self::Settle => ", settled at once",
        }
    }

    /// Has the log go round, if it will.
    async fn begin(self, spool: &Spool) {
        if self == Self::Settle {
            spool.cursor("reader").await.expect("a cursor");
            send(spool, SENDERS, FILES_FULL / SENDERS / 64 / 1024, 64, &message(1024), self).await;
        }
    }
}

/// Bytes of some segments.
const FILES_FULL: usize = 5 * (64 << 20);

/// So many tasks append groups of this message until each has done its part. How long each append took.
pub(crate) async fn send(
    spool: &Spool,
    tasks: usize,
    appends: usize,
    group: usize,
    message: &Message,
    then: Then,
) -> Vec<Duration> {
    let mut senders = JoinSet::new();
    for _ in 0..tasks {
        let (spool, message) = (spool.clone(), message.clone());
        senders.spawn(async move {
            let mut took = Vec::with_capacity(appends);
            for _ in 0..appends {
                let began = std::time::Instant::now();
                let seqs = spool.append((0..group).map(|_| message.clone())).await.expect("it is taken");
                took.push(began.elapsed());
                if then == Then::Settle {
                    spool.settle("reader", seqs).expect("it settles");
                }
            }
            took
        });
    }
    senders.join_all().await.concat()
}

pub(crate) fn message(len: usize) -> Message {
    Message::from(vec![7; len])
}

pub(crate) fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The time that this part of them did not take longer than, in microseconds.
pub(crate) fn percentile(took: &mut [Duration], part: f64) -> f64 {
    took.sort_unstable();
    let at = ((took.len() as f64 * part) as usize).min(took.len().saturating_sub(1));
    took.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1e6)
}

/// At least, or at most, so much.
pub(crate) enum Goal {
    Least(f64),
    Most(f64),
    None,
}

/// One line of the table: the figure that counts first.
pub(crate) fn say(figure: f64, goal: Goal, what: &str) {
    let (goal, missed) = match goal {
        Goal::Least(least) => (format!(">= {least:.3}"), figure < least),
        Goal::Most(most) => (format!("<= {most:.3}"), figure > most),
        Goal::None => (String::new(), false),
    };
    println!("{figure:<7.3} {goal:<9} {what}{}", if missed { "  <-- MISSED" } else { "" });
}
