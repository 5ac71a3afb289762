//! Ropewalk beside libzmq, omq-tokio, zeromq and the raw wire: the same work in two processes over loopback, rounds
//! interleaved, medians and ratios in one table. Over tcp beside those, over tls and quic beside the bare streams.
//!
//! ```text
//! cargo run --release --manifest-path benches/compare/Cargo.toml
//! cargo run --release --manifest-path benches/compare/Cargo.toml -- --transport tls,quic
//! cargo run --release --manifest-path benches/compare/Cargo.toml -- idle    # the memory of a silent link
//! ```
//!
//! Over tls and quic also beside msg-socket and zenoh, which take long to compile:
//!
//! ```text
//! cargo run --release --manifest-path benches/compare/Cargo.toml --features encrypted-peers -- --transport tls,quic
//! ```

mod chart;
mod child;
mod contestants;
mod idle;
mod keys;
mod libzmq;
#[cfg(feature = "encrypted-peers")]
mod msg;
mod omq;
mod raw;
mod raw_quic;
mod raw_tls;
mod rope;
mod spin;
mod table;
mod transport;
mod workload;
#[cfg(feature = "encrypted-peers")]
mod zenoh_peer;
mod zeromq_rs;

use std::{io::IsTerminal, path::PathBuf};

use clap::Parser;

use crate::{
    child::{Job, Outcome, Report, Role, load_ended, stay_on},
    contestants::{CONTESTANTS, ENCRYPTED_PEERS},
    transport::Transport,
    workload::{WORKLOADS, Workload, once},
};

/// Measures Ropewalk and its peers at the same work, in interleaved rounds.
///
/// `idle` instead of options: what a silent link takes of memory.
#[derive(Debug, Parser)]
#[command(
    after_help = "msg-socket and zenoh, over tls and quic, take long to compile and are there if it was built so:\n  \
    cargo run --release --manifest-path benches/compare/Cargo.toml --features encrypted-peers -- --transport tls,quic"
)]
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
        #[cfg(feature = "encrypted-peers")]
        "msg-socket" => on(runtime, msg::run, job, load)?,
        #[cfg(feature = "encrypted-peers")]
        "zenoh" => zenoh_peer::run(&job)?,
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
            .chain(ENCRYPTED_PEERS)
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
