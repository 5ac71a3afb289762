//! Ropewalk beside libzmq, omq-tokio, zeromq and the raw wire: the same work in two processes over loopback TCP,
//! rounds interleaved, medians and ratios in one table.
//!
//! ```text
//! cargo run --release --manifest-path benches/compare/Cargo.toml
//! cargo run --release --manifest-path benches/compare/Cargo.toml -- idle    # the memory of a silent link
//! ```

mod chart;
mod child;
mod libzmq;
mod omq;
mod raw;
mod rope;
mod spin;
mod table;
mod workload;
mod zeromq_rs;

use std::{io::IsTerminal, path::PathBuf};

use clap::Parser;

use crate::{
    child::{Job, Outcome, Report, Role, load_ended, stay_on},
    workload::{Kind, WORKLOADS, once},
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
    /// `ct` current-thread, `mt` multi-thread and spawned, `main` in `block_on` of a multi-thread runtime.
    runtime: &'static str,
    many: bool,
    /// How much slower than the fastest it is taken to be, so that its run takes no longer.
    slower: f64,
}

const CONTESTANTS: &[Contestant] = &[
    Contestant { name: "raw TCP", library: "raw", runtime: "ct", many: false, slower: 1.0 },
    Contestant { name: "ropewalk ct", library: "ropewalk", runtime: "ct", many: false, slower: 1.0 },
    Contestant { name: "ropewalk ct, recv_many", library: "ropewalk", runtime: "ct", many: true, slower: 1.0 },
    Contestant { name: "ropewalk mt", library: "ropewalk", runtime: "mt", many: false, slower: 1.0 },
    Contestant { name: "ropewalk main", library: "ropewalk", runtime: "main", many: false, slower: 1.0 },
    Contestant { name: "libzmq", library: "libzmq", runtime: "ct", many: false, slower: 0.5 },
    Contestant { name: "omq-tokio ct", library: "omq", runtime: "ct", many: false, slower: 0.5 },
    Contestant { name: "omq-tokio ct, recv_many", library: "omq", runtime: "ct", many: true, slower: 0.5 },
    Contestant { name: "omq-tokio mt", library: "omq", runtime: "mt", many: false, slower: 0.5 },
    Contestant { name: "omq-tokio main", library: "omq", runtime: "main", many: false, slower: 0.5 },
    Contestant { name: "zeromq ct", library: "zeromq", runtime: "ct", many: false, slower: 0.3 },
    Contestant { name: "zeromq mt", library: "zeromq", runtime: "mt", many: false, slower: 0.3 },
];

fn main() {
    let mut args = std::env::args().skip(1);
    let done = match args.next().as_deref() {
        Some("child") => child(args.collect()),
        Some("spin") => spin::run(),
        Some("idle") => idle(),
        _ => compare(&Args::parse()),
    };
    if let Err(error) = done {
        eprintln!("compare: {error}");
        std::process::exit(1);
    }
}

fn child(args: Vec<String>) -> Outcome {
    let [library, runtime, role, size, count, peers, many, address] = &args[..] else {
        return Err("a child needs eight arguments".into());
    };
    let mut job = Job {
        role: role.parse()?,
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

fn idle() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("an idle ropewalk link, both ends: {:.1} KiB", runtime.block_on(rope::idle_link())? as f64 / 1024.0);
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
    for workload in WORKLOADS.iter().filter(|workload| workload.name.contains(&args.only)) {
        let mut rows: Vec<table::Row> = CONTESTANTS
            .iter()
            .filter(|contestant| takes_part(contestant, workload.kind))
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
                let Contestant { library, runtime: kind, many, slower, .. } = row.contestant;
                row.add(runtime.block_on(once(workload, library, kind, *many, args.scale * slower)));
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

fn takes_part(contestant: &Contestant, kind: Kind) -> bool {
    let raw_can = !matches!(kind, Kind::In | Kind::Out | Kind::Beside);
    let batches = matches!(kind, Kind::OneWay);
    (contestant.library != "raw" || raw_can) && (!contestant.many || batches)
}
