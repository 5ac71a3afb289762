//! `ropewalk`: talks to any peer from a shell, and scripts rely on it.
//!
//! ```text
//!   args      the words of the command line        push_pull pub_sub req_rep   one command each
//!   socket    options, endpoints, events           input     lines or numbers become messages
//!   stop      SIGINT and SIGTERM                   output    messages become lines; the summary
//!   bench     measurements beside bare sockets     exec     a command of the shell answers
//!   spool     looks into the directory of a spool  failure  why it ends with something else than 0
//! ```

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod args;
mod bench;
mod exec;
mod failure;
mod input;
mod output;
mod pub_sub;
mod push_pull;
mod req_rep;
mod socket;
mod spool;
mod stop;

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::Parser;
use ropewalk::SecretKey;
use tokio::runtime::{Builder, Runtime};

use crate::{
    args::{Cli, Command, KeyCommand},
    failure::Failure,
    output::note,
    stop::Stop,
};

/// How long tasks have to end when all is done; most have ended already.
const SHUTDOWN: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => return end(&Failure::Failed(format!("cannot start: {error}"))),
    };
    let done = runtime.block_on(Box::pin(run(cli.command)));
    // A read of standard input or a write to a pipe that nobody empties may still hang in a thread of its own.
    runtime.shutdown_timeout(SHUTDOWN);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(&failure),
    }
}

/// Measurements run on one thread in each process: what they show is then the library and not the scheduler.
fn runtime(command: &Command) -> std::io::Result<Runtime> {
    let one_thread = match command {
        Command::Bench(command) => command.two_processes(),
        _ => false,
    };
    let mut builder = if one_thread { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    builder.enable_all().build()
}

fn end(failure: &Failure) -> ExitCode {
    note(format_args!("ropewalk: {failure}"));
    ExitCode::from(failure.code())
}

fn key(command: KeyCommand) -> Result<(), Failure> {
    let key = match command {
        KeyCommand::New { file } => {
            let key = SecretKey::generate();
            key.save(file)?;
            key
        }
        KeyCommand::Show { file } => SecretKey::load(file)?,
    };
    // One who does not read it has no use for it.
    let _unread = writeln!(std::io::stdout().lock(), "{}", key.id());
    Ok(())
}

async fn run(command: Command) -> Result<(), Failure> {
    let stop = Stop::listen()?;
    let work = async {
        match command {
            Command::Push(args) => push_pull::push(args, &stop).await,
            Command::Pull(args) => push_pull::pull(args, &stop).await,
            Command::Pub(args) => pub_sub::publish(args, &stop).await,
            Command::Sub(args) => pub_sub::subscribe(args, &stop).await,
            Command::Req(args) => req_rep::req(args, &stop).await,
            Command::Rep(args) => req_rep::rep(args, &stop).await,
            Command::Bench(command) => bench::run(command, &stop).await,
            Command::Key(command) => key(command),
            Command::Spool(command) => spool::run(command, &stop).await,
        }
    };
    tokio::select! {
        done = work => done,
        () = stop.twice() => Err(Failure::failed("interrupted before all was done")),
    }
}
