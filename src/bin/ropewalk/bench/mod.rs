//! Measurements of this machine, or of two: the library beside bare sockets, in one run.
//!
//! ```text
//!   near end (this process)                far end (another process, another machine, or a task)
//!   PUSH, PUB or REQ binds, sends    --->  PULL, SUB or REP connects, takes, checks, measures
//!   control: REQ binds, asks         --->  REP connects: "run JOB ADDRESS..." is answered with figures, "end", "bye"
//! ```
//!
//! Every way is measured in turn, three rounds of all, so that what else the machine does falls on all alike; medians
//! are told. The bare sockets carry frames of a length and a body, written and read in blocks of 64 KiB.

mod ends;
mod far;
mod job;
mod lat;
mod meter;
mod raw;
mod report;
mod thr_fan;

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use self::{
    ends::Ends,
    job::{Job, Transport, Way, What},
    report::Report,
};
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
        let args = self.parts().1;
        args.connect.is_some() || !args.in_one_process()
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

    /// How many sockets send, each to all at the far end; only thr
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    senders: u64,

    /// Keep another link of the same processes busy meanwhile; only lat
    #[arg(long)]
    busy: bool,

    /// Both ends in this process
    #[arg(long, conflicts_with_all = ["listen", "connect"])]
    one_process: bool,

    /// Wait at this address, tcp://HOST:PORT, for a far end started on another machine with --connect; the ports behind
    /// this one are used, too
    #[arg(long, value_name = "ADDR", conflicts_with = "connect")]
    listen: Option<String>,

    /// Be the far end of a measurement that waits at this address; what is measured is said there
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["transport", "size", "count", "peers", "senders", "busy", "json"])]
    connect: Option<String>,

    /// Let plain text leave this machine: addresses that are not loopback
    #[arg(long)]
    plaintext: bool,

    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    fn in_one_process(&self) -> bool {
        self.one_process || self.transport == Transport::Inproc
    }
}

/// `ropewalk bench`.
pub(crate) async fn run(command: BenchCommand, stop: &Stop) -> Result<(), Failure> {
    let (what, args) = command.parts();
    let measured = async {
        match &args.connect {
            Some(address) => far::serve(address, args.plaintext).await.map(|()| None),
            None => measure(plan(what, args)?, args).await.map(Some),
        }
    };
    let report = tokio::select! {
        report = measured => report?,
        () = stop.once() => return Err(Failure::failed("stopped before all was measured")),
    };
    report.map_or(Ok(()), |report| report.print(args.json))
}

async fn measure(job: Job, args: &BenchArgs) -> Result<Report, Failure> {
    let ways: &[Way] = match job.what {
        What::Lat => &[Way::Plain, Way::Raw],
        What::Thr | What::Fan => &[Way::Plain, Way::Many, Way::Raw],
    };
    let mut report = Report::new(job, ways);
    let ends = Ends::meet(&job, args).await?;
    let start = Instant::now();
    for round in 0..ROUNDS {
        for (row, way) in ways.iter().enumerate() {
            let job = Job { way: *way, ..job };
            if start.elapsed() > QUICK {
                note(format_args!("round {} of {ROUNDS}: {}", round + 1, report::name(&job)));
            }
            let figures = match job.what {
                What::Lat => Box::pin(lat::near(job, &ends)).await?,
                What::Thr | What::Fan => Box::pin(thr_fan::near(job, &ends)).await?,
            };
            ends.end().await?;
            report.add(row, figures);
        }
    }
    ends.part().await?;
    Ok(report)
}

fn plan(what: What, args: &BenchArgs) -> Result<Job, Failure> {
    let BenchArgs { transport, size, senders, busy, .. } = *args;
    let one_process = args.in_one_process();
    let peers = args.peers.unwrap_or(if what == What::Fan { 8 } else { 1 });
    if what != What::Thr && senders > 1 {
        return Err(Failure::Usage("--senders: only thr has several".into()));
    }
    if what != What::Lat && busy {
        return Err(Failure::Usage("--busy: only lat runs beside a busy link".into()));
    }
    if what == What::Thr && (peers > 1 || senders > 1) && size < 8 {
        return Err(Failure::Usage(
            "with several peers or senders a message carries a number of 8 bytes: --size 8 or more".into(),
        ));
    }
    if size > 64 << 20 {
        return Err(Failure::Usage("--size: at most 64 MiB".into()));
    }
    if args.listen.is_some() && !matches!(transport, Transport::Tcp | Transport::Tls | Transport::Quic) {
        return Err(Failure::Usage("--listen is for two machines, which only tcp, tls and quic connect".into()));
    }
    let most = match what {
        What::Thr => 5_000_000,
        What::Lat if busy => 3_000,
        What::Lat => 20_000,
        What::Fan => 2_000_000 / peers,
    };
    let bytes: u64 = if what == What::Lat { 64 << 20 } else { 1 << 30 };
    let fit = bytes / (size as u64 + 1) / if what == What::Fan { peers } else { 1 };
    // Each sender has as many.
    let count = args.count.unwrap_or(most.min(fit).max(20)).next_multiple_of(senders);
    let warm = (count / 20).clamp(1, 10_000).next_multiple_of(senders);
    Ok(Job { what, way: Way::Plain, transport, size, count, warm, senders, peers, busy, one_process })
}
