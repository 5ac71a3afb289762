//! What a link that is silent takes of the memory of one process that has both of its ends.

use std::process::Command;

use clap::ValueEnum;
use ropewalk::{Pull, Push, SecretKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{child::Outcome, raw_quic, rope, transport::Transport};

const LINKS: usize = 1000;

/// Each in a process of its own, for what one has freed the next would use.
pub fn run(which: Option<&str>) -> Outcome {
    let Some(which) = which else {
        for transport in Transport::value_variants() {
            of_its_own(&transport.to_string())?;
        }
        return of_its_own("raw quinn");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (name, bytes) = match which {
        "raw quinn" => (which.to_owned(), runtime.block_on(raw_quinn())?),
        transport => (format!("ropewalk {transport}"), runtime.block_on(ropewalk(transport.parse()?))?),
    };
    println!("an idle link, both ends: {name:<14}{:>8.1} KiB", bytes as f64 / 1024.0);
    Ok(())
}

fn of_its_own(which: &str) -> Outcome {
    let status = Command::new(std::env::current_exe()?).args(["idle", which]).status()?;
    if status.success() { Ok(()) } else { Err(format!("the process that measures {which} failed").into()) }
}

async fn ropewalk(transport: Transport) -> Outcome<u64> {
    let pull = Pull::builder().max_handshakes(LINKS, LINKS).key(SecretKey::generate()).allow_any_peer();
    let pull = pull.bind(&rope::any(transport)).await?;
    let address = pull.address().ok_or("no address")?.to_string();
    let key = SecretKey::generate();
    let dial = async || {
        let push = Push::builder().key(key.clone()).connect(&address).await?;
        push.ready().await?;
        Outcome::Ok(push)
    };
    let _warm_up = dial().await?;
    let before = resident()?;
    let mut sockets = Vec::new();
    for _ in 0..LINKS {
        sockets.push(dial().await?);
    }
    pull.ready_with(LINKS + 1).await?;
    of_each(before)
}

/// The limit of quic: connections with one stream each, over which a byte has gone.
async fn raw_quinn() -> Outcome<u64> {
    let key = SecretKey::generate();
    let (listens, dials) = (raw_quic::listen(&key)?, raw_quic::client()?);
    let address = listens.local_addr()?.to_string();
    let link = async || {
        let dialled = async {
            let mut link = raw_quic::Link::dial(&dials, &address, key.id()).await?;
            link.stream.write_all(b"x").await?;
            Outcome::Ok(link)
        };
        let accepted = async {
            let mut link = raw_quic::Link::accept(&listens).await?;
            link.stream.read_u8().await?;
            Outcome::Ok(link)
        };
        Outcome::Ok(tokio::try_join!(dialled, accepted)?)
    };
    let _warm_up = link().await?;
    let before = resident()?;
    let mut links = Vec::new();
    for _ in 0..LINKS {
        links.push(link().await?);
    }
    of_each(before)
}

fn of_each(before: u64) -> Outcome<u64> {
    Ok(resident()?.saturating_sub(before) / LINKS as u64)
}

fn resident() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}
