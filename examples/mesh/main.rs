//! The main job on real input: every file below a directory is hashed by four worker processes, one of which is killed
//! midway, and nothing is lost.
//!
//! ```text
//! cargo run --release --example mesh -- [DIRECTORY] [--limit BYTES]
//! ```
//!
//! DIRECTORY is by default where cargo keeps the sources of packages it has downloaded; at most BYTES of it are read,
//! by default 1 GiB.
//!
//! ```text
//!   coordinator                              worker 0 to 3, processes of their own
//!      PUSH ---- job: path, offset, content ----> PULL    hashes it
//!      PULL <--- result: digest ----------------- PUSH
//!      SUB  <--- progress ----------------------- PUB     drawn as a bar
//!      REQ  <--- how far are you? --------------> REP     one REQ for each worker
//! ```
//!
//! The coordinator learns from the events of its PUSH socket that a worker is gone, and pushes every unanswered job
//! again. No job's content is kept until it is answered: what must be pushed again is read again.

mod coordinator;
mod files;
mod wire;
mod worker;

use std::{
    env,
    error::Error,
    ffi::OsString,
    path::PathBuf,
    process::{self, ExitCode},
};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const USAGE: &str = "usage: mesh [DIRECTORY] [--limit BYTES]";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let done = match arguments.first() {
        Some(first) if first == "--worker" => worker::run(&arguments[1..]).map(|()| true),
        _ => {
            let (directory, limit) = read_arguments(arguments);
            coordinator::run(directory, limit)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mesh: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read_arguments(arguments: Vec<OsString>) -> (PathBuf, u64) {
    let (mut directory, mut limit) = (None, 1 << 30);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--limit") => {
                let bytes = arguments.next().and_then(|bytes| bytes.to_str()?.parse().ok());
                limit = bytes.unwrap_or_else(|| wrong_usage("--limit takes a number of bytes"));
            }
            Some("-h" | "--help") => {
                println!("{USAGE}");
                process::exit(0);
            }
            Some(option) if option.starts_with('-') => wrong_usage(&format!("{option} is not known")),
            _ if directory.is_none() => directory = Some(PathBuf::from(argument)),
            _ => wrong_usage("one directory at most"),
        }
    }
    (directory.unwrap_or_else(cargo_sources), limit)
}

fn wrong_usage(what: &str) -> ! {
    eprintln!("mesh: {what}\n{USAGE}");
    process::exit(2);
}

/// `registry/src` in cargo's home.
fn cargo_sources() -> PathBuf {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    home.unwrap_or_default().join("registry").join("src")
}
