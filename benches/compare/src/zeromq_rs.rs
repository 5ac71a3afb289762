//! The crate `zeromq` on the caller's runtime.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use zeromq::{
    PubSocket, PullSocket, PushSocket, RepSocket, ReqSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage,
};

use crate::{
    child::{Job, Outcome, Payload, Report, Role, histogram, settle},
    workload::together,
};

const ANY: &str = "tcp://127.0.0.1:0";

pub async fn run(job: Job) -> Outcome<Report> {
    match job.role {
        Role::Pull => {
            let mut socket = PullSocket::new();
            job.listening(&socket.bind(ANY).await?.to_string());
            pull(&mut socket, &job, job.count * job.peers as u64).await
        }
        Role::Push => push_many(job).await,
        Role::PushBound => {
            let mut socket = PushSocket::new();
            job.listening(&socket.bind(ANY).await?.to_string());
            job.go().await?;
            let report = push(&mut socket, &job, 0).await?;
            settle(&report).await;
            Ok(report)
        }
        Role::PullMany => pull_many(job).await,
        Role::Rep => rep(&job).await,
        Role::Req => req(&job).await,
        Role::Pub => publish(&job).await,
        Role::Sub => subscribe(job).await,
        Role::RepBeside | Role::ReqBeside => Err("that is two jobs".into()),
    }
}

fn message(payload: &[u8]) -> ZmqMessage {
    bytes::Bytes::copy_from_slice(payload).into()
}

fn body(message: &ZmqMessage) -> &[u8] {
    message.get(0).map(|part| &part[..]).unwrap_or_default()
}

async fn pull(socket: &mut impl SocketRecv, job: &Job, count: u64) -> Outcome<Report> {
    let mut check = job.check();
    let first = socket.recv().await?;
    let start = job.start();
    check.message(body(&first))?;
    for _ in 1..count {
        check.message(body(&socket.recv().await?))?;
    }
    Ok(start.report(count))
}

async fn push_many(job: Job) -> Outcome<Report> {
    let mut sockets = Vec::new();
    for _ in 0..job.peers {
        let mut socket = PushSocket::new();
        socket.connect(&job.address).await?;
        sockets.push(socket);
    }
    job.linked();
    job.go().await?;
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
    let start = job.start();
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        socket.send(message(payload.number(first + number))).await?;
    }
    Ok(start.report(job.count))
}

async fn pull_many(job: Job) -> Outcome<Report> {
    let mut tasks = JoinSet::new();
    let left = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(job.count));
    for _ in 0..job.peers {
        let mut socket = PullSocket::new();
        socket.connect(&job.address).await?;
        let (left, job) = (left.clone(), job.clone());
        tasks.spawn(async move {
            let (mut check, mut started, mut got, mut last) = (job.check(), None, 0, Instant::now());
            while left.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                let Ok(message) = tokio::time::timeout(Duration::from_millis(200), socket.recv()).await else {
                    continue;
                };
                started.get_or_insert_with(|| job.start());
                check.upward(body(&message?))?;
                got += 1;
                last = Instant::now();
                left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            }
            let start = started.ok_or("a receiver got nothing")?;
            let mut report = start.report(got);
            report.nanos = (last - start.since).as_nanos() as u64;
            Ok(report)
        });
    }
    job.linked();
    together(tasks).await
}

async fn rep(job: &Job) -> Outcome<Report> {
    let mut socket = RepSocket::new();
    job.listening(&socket.bind(ANY).await?.to_string());
    let mut started = None;
    for _ in 0..job.count {
        let message = socket.recv().await?;
        started.get_or_insert_with(|| job.start());
        socket.send(message).await?;
    }
    let start = started.ok_or("nobody asked")?;
    let report = start.report(job.count);
    settle(&report).await;
    Ok(report)
}

async fn req(job: &Job) -> Outcome<Report> {
    let mut socket = ReqSocket::new();
    socket.connect(&job.address).await?;
    job.linked();
    job.go().await?;
    let (mut payload, mut latency) = (Payload::new(job.size), histogram());
    let start = job.start();
    for number in 0..job.count {
        let asked = Instant::now();
        socket.send(message(payload.number(number))).await?;
        let answer = socket.recv().await?;
        latency.saturating_record(asked.elapsed().as_nanos() as u64);
        if body(&answer) != payload.number(number) {
            return Err("a wrong answer".into());
        }
    }
    Ok(start.report(job.count).with_latency(&latency))
}

async fn publish(job: &Job) -> Outcome<Report> {
    let mut socket = PubSocket::new();
    job.listening(&socket.bind(ANY).await?.to_string());
    job.go().await?;
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
    job.linked();
    together(tasks).await
}
