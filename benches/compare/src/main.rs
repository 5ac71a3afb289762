//! Ropewalk beside libzmq, omq-tokio, zeromq and the raw wire: the same work in two processes over loopback TCP,
//! rounds interleaved, medians and ratios in one table.
//!
//! ```text
//! cargo run --release --manifest-path benches/compare/Cargo.toml
//! cargo run --release --manifest-path benches/compare/Cargo.toml -- idle    # the memory of a silent link
//! cargo run --release --manifest-path benches/compare/Cargo.toml -- --transport tls,quic
//! ```

mod chart;
mod child;
mod idle;
mod keys;
mod libzmq;
mod omq;
mod raw;
mod raw_quic;
mod raw_tls;
mod rope;
mod spin;
mod table;
mod transport;
mod workload;
mod zeromq_rs;

use std::{io::IsTerminal, path::PathBuf};

use clap::Parser;

use crate::{
    child::{Job, Outcome, Report, Role, load_ended, stay_on},
    transport::Transport,
    workload::{Kind, WORKLOADS, Workload, once},
};

/// Measures Ropewalk and its peers at the same work, in interleaved rounds.
#[derive(Debug, Parser)]
struct Args {
    /// How often each is measured; the medians count.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only workloads whose name has this in it.
    #[arg(long, default_value = "")]
    only: String,
    /// Only workloads over these.
    #[arg(long, value_delimiter = ',')]
    transport: Vec<Transport>,
    /// Only these libraries or contestants.
    #[arg(long, value_delimiter = '|')]
    with: Vec<String>,
    /// How much of each workload to run.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Where to put the charts.
    #[arg(long)]
    charts: Option<PathBuf>,
}

/// A library in one of its modes.
#[derive(Debug, Clone, Copy)]
pub struct Contestant {
    pub name: &'static str,
    library: &'static str,
    over: &'static [Transport],
    /// `ct` current-thread, `mt` multi-thread and spawned, `main` in `block_on` of a multi-thread runtime.
    runtime: &'static str,
    many: bool,
    /// How much slower than the fastest it is taken to be, so that its run takes no longer.
    slower: f64,
}

const TCP: &[Transport] = &[Transport::Tcp];
const EACH: &[Transport] = &[Transport::Tcp, Transport::Tls, Transport::Quic];

const CONTESTANTS: &[Contestant] = &[
    contestant("raw TCP", "raw", TCP, "ct", 1.0),
    contestant("raw tokio-rustls", "raw", &[Transport::Tls], "ct", 1.0),
    contestant("raw quinn", "raw", &[Transport::Quic], "ct", 1.0),
    contestant("ropewalk ct", "ropewalk", EACH, "ct", 1.0),
    contestant("ropewalk ct, recv_many", "ropewalk", EACH, "ct", 1.0).many(),
    contestant("ropewalk mt", "ropewalk", EACH, "mt", 1.0),
    contestant("ropewalk main", "ropewalk", TCP, "main", 1.0),
    contestant("libzmq", "libzmq", TCP, "ct", 0.5),
    contestant("omq-tokio ct", "omq", TCP, "ct", 0.5),
    contestant("omq-tokio ct, recv_many", "omq", TCP, "ct", 0.5).many(),
    contestant("omq-tokio mt", "omq", TCP, "mt", 0.5),
    contestant("omq-tokio main", "omq", TCP, "main", 0.5),
    contestant("zeromq ct", "zeromq", TCP, "ct", 0.3),
    contestant("zeromq mt", "zeromq", TCP, "mt", 0.3),
];

const fn contestant(
    name: &'static str,
    library: &'static str,
    over: &'static [Transport],
    runtime: &'static str,
    slower: f64,
) -> Contestant {
    Contestant { name, library, over, runtime, many: false, slower }
}

impl Contestant {
    /// In batches.
    const fn many(self) -> Self {
        Self { many: true, ..self }
    }

    /// What it does where others do this.
    pub fn does(&self, kind: Kind) -> Kind {
        kind
    }

    fn takes_part(&self, workload: &Workload) -> bool {
        let raw_can = !matches!(workload.kind, Kind::In | Kind::Out | Kind::Beside);
        let batches = Kind::OneWay;
        self.over.contains(&workload.transport)
            && (self.library != "raw" || raw_can)
            && (!self.many || workload.kind == batches)
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let done = match args.next().as_deref() {
        Some("child") => child(args.collect()).inspect_err(|error| child::failed(&error.to_string())),
        Some("spin") => spin::run(),
        Some("idle") => idle::run(args.next().as_deref()),
        _ => compare(&Args::parse()),
    };
    if let Err(error) = done {
        eprintln!("compare: {error}");
        std::process::exit(1);
    }
}

fn child(args: Vec<String>) -> Outcome {
    let [library, runtime, role, transport, size, count, peers, many, address] = &args[..] else {
        return Err("a child needs nine arguments".into());
    };
    let mut job = Job {
        role: role.parse()?,
        transport: transport.parse()?,
        size: size.parse()?,
        count: count.parse()?,
        peers: peers.parse()?,
        many: many.parse()?,
        address: address.clone(),
        load: None,
        is_load: false,
    };
    if runtime == "ct" && library != "libzmq" {
        match job.role {
            Role::Rep => stay_on(0),
            Role::Req => stay_on(1),
            _ => {}
        }
    }
    let load = job.beside()?;
    let report = match library.as_str() {
        "raw" => on(runtime, raw::run, job, load)?,
        "ropewalk" => on(runtime, rope::run, job, load)?,
        "omq" => on(runtime, omq::run, job, load)?,
        "zeromq" => on(runtime, zeromq_rs::run, job, load)?,
        "libzmq" => libzmq::run_beside(&job, load)?,
        other => return Err(format!("no library {other}").into()),
    };
    report.say();
    Ok(())
}

/// Runs a job on a runtime of this kind, and beside it the load, which has no end of its own.
fn on<F: Future<Output = Outcome<Report>> + Send + 'static>(
    runtime: &str,
    run: fn(Job) -> F,
    job: Job,
    load: Option<Job>,
) -> Outcome<Report> {
    let mut builder = if runtime == "ct" {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime_of = builder.enable_all().build()?;
    let work = async move {
        if let Some(load) = load {
            tokio::spawn(async move { load_ended(run(load).await) });
            let listens = job.clone();
            tokio::task::spawn_blocking(move || listens.wait_for_load()).await??;
        }
        run(job).await
    };
    let report = if runtime == "mt" {
        runtime_of.block_on(async { tokio::spawn(work).await? })
    } else {
        runtime_of.block_on(work)
    };
    runtime_of.shutdown_background();
    report
}

fn compare(args: &Args) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let progress = std::io::stderr().is_terminal();
    let mut tables = Vec::new();
    let over = |transport: &Transport| args.transport.is_empty() || args.transport.contains(transport);
    let is_asked = |workload: &&Workload| workload.name.contains(&args.only) && over(&workload.transport);
    for workload in WORKLOADS.iter().filter(is_asked) {
        let mut rows: Vec<table::Row> = CONTESTANTS
            .iter()
            .filter(|contestant| contestant.takes_part(workload))
            .filter(|contestant| {
                args.with.is_empty()
                    || args.with.iter().any(|name| name == contestant.library || name == contestant.name)
            })
            .map(table::Row::new)
            .collect();
        // Halted processors take longer to wake than a message takes to go: two rows of latency, one kept awake.
        let awake = workload.kind.is_round_trip().then(spin::Spinners::start).transpose()?;
        for round in 1..=args.rounds {
            for row in rows.iter_mut().filter(|row| row.goes_on()) {
                if progress {
                    eprint!("\r\x1b[K{} {round}/{}: {}", workload.name, args.rounds, row.contestant.name);
                }
                row.add(runtime.block_on(once(workload, row.contestant, args.scale)));
            }
        }
        drop(awake);
        if progress {
            eprint!("\r\x1b[K");
        }
        table::print(workload, &rows);
        tables.push((*workload, rows));
    }
    if let Some(directory) = &args.charts {
        std::fs::create_dir_all(directory)?;
        for (workload, rows) in &tables {
            chart::draw(directory, workload, rows)?;
        }
    }
    Ok(())
}
