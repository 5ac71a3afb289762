//! The crate `zeromq` on the caller's runtime.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use zeromq::{
    PubSocket, PullSocket, PushSocket, RepSocket, ReqSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage,
};

use crate::{
    child::{Check, Job, Outcome, Payload, Report, Role, cpu_time, go, histogram, linked, listening},
    workload::together,
};

const ANY: &str = "tcp://127.0.0.1:0";

pub async fn run(job: Job) -> Outcome<Report> {
    match job.role {
        Role::Pull => {
            let mut socket = PullSocket::new();
            listening(&socket.bind(ANY).await?.to_string());
            pull(&mut socket, &job, job.count * job.peers as u64).await
        }
        Role::Push => push_many(job).await,
        Role::PushBound => {
            let mut socket = PushSocket::new();
            listening(&socket.bind(ANY).await?.to_string());
            go().await?;
            let report = push(&mut socket, &job, 0).await?;
            settle(&report).await;
            Ok(report)
        }
        Role::PullMany => pull_many(job).await,
        Role::Rep => rep(&job).await,
        Role::Req => req(&job).await,
        Role::Pub => publish(&job).await,
        Role::Sub => subscribe(job).await,
    }
}

/// Closing does not wait for what was accepted, so the socket stays until the other side is done and the parent says so.
async fn settle(report: &Report) {
    report.say();
    let _told = go().await;
}

fn message(payload: &[u8]) -> ZmqMessage {
    bytes::Bytes::copy_from_slice(payload).into()
}

fn body(message: &ZmqMessage) -> &[u8] {
    message.get(0).map(|part| &part[..]).unwrap_or_default()
}

async fn pull(socket: &mut impl SocketRecv, job: &Job, count: u64) -> Outcome<Report> {
    let mut check = Check::new(job.size);
    let first = socket.recv().await?;
    let (since, cpu) = (Instant::now(), cpu_time());
    check.message(body(&first))?;
    for _ in 1..count {
        check.message(body(&socket.recv().await?))?;
    }
    Ok(Report::of(count, since, cpu))
}

async fn push_many(job: Job) -> Outcome<Report> {
    let mut sockets = Vec::new();
    for _ in 0..job.peers {
        let mut socket = PushSocket::new();
        socket.connect(&job.address).await?;
        sockets.push(socket);
    }
    linked();
    go().await?;
    let mut tasks = JoinSet::new();
    if let [socket] = &mut sockets[..] {
        let report = push(socket, &job, 0).await?;
        settle(&report).await;
        return Ok(report);
    }
    for (index, mut socket) in sockets.into_iter().enumerate() {
        let job = job.clone();
        tasks.spawn(async move {
            let report = push(&mut socket, &job, (index as u64) << 48).await?;
            Outcome::Ok((report, socket))
        });
    }
    let mut kept = Vec::new();
    let mut all = Report::default();
    while let Some(done) = tasks.join_next().await {
        let (report, socket) = done??;
        all = report;
        kept.push(socket);
    }
    settle(&all).await;
    Ok(all)
}

async fn push(socket: &mut impl SocketSend, job: &Job, first: u64) -> Outcome<Report> {
    let (since, cpu) = (Instant::now(), cpu_time());
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        socket.send(message(payload.number(first + number))).await?;
    }
    Ok(Report::of(job.count, since, cpu))
}

async fn pull_many(job: Job) -> Outcome<Report> {
    let mut tasks = JoinSet::new();
    let left = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(job.count));
    for _ in 0..job.peers {
        let mut socket = PullSocket::new();
        socket.connect(&job.address).await?;
        let (left, job) = (left.clone(), job.clone());
        tasks.spawn(async move {
            let (mut check, mut started, mut got, mut last) = (Check::new(job.size), None, 0, Instant::now());
            while left.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                let Ok(message) = tokio::time::timeout(Duration::from_millis(200), socket.recv()).await else {
                    continue;
                };
                started.get_or_insert_with(|| (Instant::now(), cpu_time()));
                check.upward(body(&message?))?;
                got += 1;
                last = Instant::now();
                left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            }
            let (since, cpu) = started.ok_or("a receiver got nothing")?;
            let mut report = Report::of(got, since, cpu);
            report.nanos = (last - since).as_nanos() as u64;
            Ok(report)
        });
    }
    linked();
    together(tasks).await
}

async fn rep(job: &Job) -> Outcome<Report> {
    let mut socket = RepSocket::new();
    listening(&socket.bind(ANY).await?.to_string());
    let mut started = None;
    for _ in 0..job.count {
        let message = socket.recv().await?;
        started.get_or_insert_with(|| (Instant::now(), cpu_time()));
        socket.send(message).await?;
    }
    let (since, cpu) = started.ok_or("nobody asked")?;
    let report = Report::of(job.count, since, cpu);
    settle(&report).await;
    Ok(report)
}

async fn req(job: &Job) -> Outcome<Report> {
    let mut socket = ReqSocket::new();
    socket.connect(&job.address).await?;
    linked();
    go().await?;
    let (mut payload, mut latency) = (Payload::new(job.size), histogram());
    let (since, cpu) = (Instant::now(), cpu_time());
    for number in 0..job.count {
        let asked = Instant::now();
        socket.send(message(payload.number(number))).await?;
        let answer = socket.recv().await?;
        latency.saturating_record(asked.elapsed().as_nanos() as u64);
        if body(&answer) != payload.number(number) {
            return Err("a wrong answer".into());
        }
    }
    Ok(Report::of(job.count, since, cpu).with_latency(&latency))
}

async fn publish(job: &Job) -> Outcome<Report> {
    let mut socket = PubSocket::new();
    listening(&socket.bind(ANY).await?.to_string());
    go().await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let report = push(&mut socket, job, 0).await?;
    settle(&report).await;
    Ok(report)
}

async fn subscribe(job: Job) -> Outcome<Report> {
    let mut tasks = JoinSet::new();
    for _ in 0..job.peers {
        let mut socket = SubSocket::new();
        socket.connect(&job.address).await?;
        socket.subscribe("").await?;
        let job = job.clone();
        tasks.spawn(async move { pull(&mut socket, &job, job.count).await });
    }
    linked();
    together(tasks).await
}
