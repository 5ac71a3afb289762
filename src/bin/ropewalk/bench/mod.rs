//! Measurements of this machine: the library beside bare sockets, in one run.
//!
//! ```text
//!   near end (this process)                far end (the same program again, or a task for inproc)
//!   PUSH, PUB or REQ binds, sends    --->  PULL, SUB or REP connects, takes, checks, measures
//!   figures <------------------------------ "done NANOSECONDS MESSAGES CPU" on its standard output
//! ```
//!
//! Every way is measured in turn, three rounds of all, so that what else the machine does falls on all alike; medians
//! are told. The bare sockets carry frames of a length and a body, written and read in blocks of 64 KiB.

mod far;
mod lat;
mod meter;
mod raw;
mod report;
mod thr_fan;

use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};

pub(crate) use self::far::{FarArgs, far};
use self::report::Report;
use crate::{failure::Failure, output::note, stop::Stop};

/// How often every way is measured.
const ROUNDS: usize = 3;

/// After so long it is told what is going on.
const QUICK: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Messages a second one way, PUSH to PULL
    Thr(BenchArgs),
    /// Round trips, REQ to REP and back
    Lat(BenchArgs),
    /// Deliveries a second from one PUB to many SUBs, nothing dropped
    Fan(BenchArgs),
}

impl BenchCommand {
    /// Whether both ends have a process of their own.
    pub(crate) fn two_processes(&self) -> bool {
        self.parts().1.transport != Transport::Inproc
    }

    fn parts(&self) -> (What, &BenchArgs) {
        match self {
            Self::Thr(args) => (What::Thr, args),
            Self::Lat(args) => (What::Lat, args),
            Self::Fan(args) => (What::Fan, args),
        }
    }
}

/// How to measure it.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What carries the messages
    #[arg(long, value_name = "SCHEME", default_value = "tcp")]
    transport: Transport,

    /// The size of a message
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    size: usize,

    /// How many messages in each run [default: what takes a second or less]
    #[arg(short = 'n', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// How many sockets at the far end [default: 1, for fan 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    peers: Option<u64>,

    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    Thr,
    Lat,
    Fan,
}

/// What carries the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// Between two processes, over loopback
    Tcp,
    /// Between two processes, over a Unix domain socket
    Ipc,
    /// In one process
    Inproc,
}

/// By what means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// The library, message by message.
    Plain,
    /// The library, as many messages at once as are there.
    Many,
    /// A bare socket.
    Raw,
}

/// One run: what both ends must know.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Job {
    what: What,
    way: Way,
    transport: Transport,
    size: usize,
    /// Messages that are measured, and those before them that are not.
    count: u64,
    warm: u64,
    peers: u64,
}

impl Job {
    fn all(&self) -> u64 {
        self.warm + self.count
    }

    /// How many messages the far end gets for each that is sent.
    fn copies(&self) -> u64 {
        if self.what == What::Fan { self.peers } else { 1 }
    }

    /// The largest message both ends accept; a request has parts of its own before it.
    fn max_message(&self) -> u64 {
        (self.size as u64 + 64).max(4 << 20)
    }
}

/// `ropewalk bench`.
pub(crate) async fn run(command: BenchCommand, stop: &Stop) -> Result<(), Failure> {
    let (what, args) = command.parts();
    let job = plan(what, args)?;
    let ways: &[Way] = match what {
        What::Lat => &[Way::Plain, Way::Raw],
        What::Thr | What::Fan => &[Way::Plain, Way::Many, Way::Raw],
    };
    let mut report = Report::new(job, ways);
    let measured = async {
        let start = Instant::now();
        for round in 0..ROUNDS {
            for (row, way) in ways.iter().enumerate() {
                let job = Job { way: *way, ..job };
                if start.elapsed() > QUICK {
                    note(format_args!("round {} of {ROUNDS}: {}", round + 1, report::name(&job)));
                }
                let figures = match what {
                    What::Lat => Box::pin(lat::near(job)).await?,
                    What::Thr | What::Fan => Box::pin(thr_fan::near(job)).await?,
                };
                report.add(row, figures);
            }
        }
        Ok::<_, Failure>(())
    };
    tokio::select! {
        measured = measured => measured?,
        () = stop.once() => return Err(Failure::failed("stopped before all was measured")),
    }
    report.print(args.json)
}

fn plan(what: What, args: &BenchArgs) -> Result<Job, Failure> {
    let (transport, size) = (args.transport, args.size);
    let peers = args.peers.unwrap_or(if what == What::Fan { 8 } else { 1 });
    if what == What::Thr && peers > 1 && size < 8 {
        return Err(Failure::Usage(
            "with several peers a message carries a number of 8 bytes: --size 8 or more".into(),
        ));
    }
    if size > 64 << 20 {
        return Err(Failure::Usage("--size: at most 64 MiB".into()));
    }
    let most = match what {
        What::Thr => 5_000_000,
        What::Lat => 20_000,
        What::Fan => 2_000_000 / peers,
    };
    let bytes: u64 = if what == What::Lat { 64 << 20 } else { 1 << 30 };
    let fit = bytes / (size as u64 + 1) / if what == What::Fan { peers } else { 1 };
    let count = args.count.unwrap_or(most.min(fit).max(20));
    let warm = (count / 20).clamp(1, 10_000);
    Ok(Job { what, way: Way::Plain, transport, size, count, warm, peers })
}
