//! The main job on real input: every file below a directory is hashed by four worker processes, one of which is killed
//! midway, and nothing is lost. Each process has a key of its own, and lets in only those whose keys it was told of.
//!
//! ```text
//! cargo run --release --example mesh -- [DIRECTORY] [--limit BYTES] [--transport quic|tls|tcp]
//! ```
//!
//! DIRECTORY is by default where cargo keeps the sources of packages it has downloaded; at most BYTES of it are read,
//! by default 1 GiB; the transport is by default quic.
//!
//! ```text
//!   coordinator                              worker 0 to 3, processes of their own
//!      PUSH ---- job: path, offset, content ----> PULL    hashes it, and confirms it when the result is confirmed
//!      PULL <--- result: digest ----------------- PUSH
//!      SUB  <--- progress ----------------------- PUB     drawn as a bar
//!      REQ  <--- how far are you? --------------> REP     one REQ for each worker
//! ```
//!
//! The coordinator's PUSH socket has a directory, where each job is until a worker has confirmed it: in memory there is
//! next to nothing. (It is a temporary one, which a coordinator that is killed leaves behind.) When a worker is killed, what it had not confirmed goes to the others by itself. It may have hashed one
//! of these and been killed before that was known: such a job is answered twice, and counts once.
//!
//! # How the keys get around
//! No secret leaves its process: each makes its key in memory, and tells the others only the public half, its peer id.
//! That needs a channel which nobody else can write to, and there is one already: the pipes of a process belong to
//! whoever started it. (Over ssh likewise, for workers on other machines.)
//!
//! ```text
//!   coordinator                              worker
//!      starts it -------------------------------> makes its key
//!      allows this peer id <------ its stdout --- its peer id
//!      its peer id, its addresses -- its stdin -> allows this peer id, dials these addresses
//! ```
//!
//! An address of quic or tls has its owner's peer id in it, so a worker talks to this coordinator or to nobody. When a
//! worker has failed the coordinator no longer allows its key. One that is started in its place has a new key, and goes
//! the same way.
//!
//! tcp proves nothing: there the keys are not asked for, and whoever reaches a port is a peer. It stays on loopback.

mod coordinator;
mod files;
mod wire;
mod worker;
mod workers;

use std::{
    env,
    error::Error,
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::{self, ExitCode},
};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const USAGE: &str = "usage: mesh [DIRECTORY] [--limit BYTES] [--transport quic|tls|tcp]";

/// The first is the default.
const TRANSPORTS: [&str; 3] = ["quic", "tls", "tcp"];

struct Arguments {
    directory: PathBuf,
    limit: u64,
    transport: &'static str,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let done = match arguments.first() {
        Some(first) if first == "--worker" => worker::run(&arguments[1..]).map(|()| true),
        _ => coordinator::run(read_arguments(arguments)),
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

fn read_arguments(arguments: Vec<OsString>) -> Arguments {
    let (mut directory, mut limit, mut transport) = (None, 1 << 30, TRANSPORTS[0]);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--limit") => {
                let bytes = arguments.next().and_then(|bytes| bytes.to_str()?.parse().ok());
                limit = bytes.unwrap_or_else(|| wrong_usage("--limit takes a number of bytes"));
            }
            Some("--transport") => {
                let named = arguments.next();
                let known = TRANSPORTS.into_iter().find(|known| named.as_deref() == Some(OsStr::new(known)));
                transport = known.unwrap_or_else(|| wrong_usage("--transport takes quic, tls or tcp"));
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
    Arguments { directory: directory.unwrap_or_else(cargo_sources), limit, transport }
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
