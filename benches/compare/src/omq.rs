//! omq-tokio on the caller's runtime.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use omq_tokio::{Message, Options, Socket, SocketType, options::OnMute};
use tokio::task::JoinSet;

use crate::{
    child::{Job, Outcome, Payload, Report, Role, histogram},
    workload::together,
};

const ANY: &str = "tcp://127.0.0.1:0";

pub async fn run(job: Job) -> Outcome<Report> {
    match job.role {
        Role::Pull => {
            let socket = bind(SocketType::Pull, &job).await?;
            pull(&socket, &job, job.count * job.peers as u64).await
        }
        Role::Push => push_many(job).await,
        Role::PushBound => {
            let socket = bind(SocketType::Push, &job).await?;
            job.go().await?;
            let report = push(&socket, &job, 0).await?;
            socket.close_with_linger(None).await?;
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

fn socket(kind: SocketType) -> Socket {
    Socket::new(kind, Options::default().linger_forever().on_mute(OnMute::Block))
}

async fn bind(kind: SocketType, job: &Job) -> Outcome<Socket> {
    let socket = socket(kind);
    socket.bind(ANY).await?;
    job.listening(&socket.last_bound_endpoint().ok_or("no endpoint")?.to_string());
    Ok(socket)
}

async fn dial(kind: SocketType, job: &Job) -> Outcome<Socket> {
    let socket = socket(kind);
    socket.connect(job.address.as_str()).await?;
    if kind == SocketType::Sub {
        socket.subscribe("").await?;
    }
    while !socket.connections().await?.iter().any(|connection| connection.peer_info.is_some()) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(socket)
}

fn body(message: &Message) -> &[u8] {
    message.part_slice(0).unwrap_or_default()
}

async fn pull(socket: &Socket, job: &Job, count: u64) -> Outcome<Report> {
    let mut check = job.check();
    let first = socket.recv().await?;
    let start = job.start();
    check.message(body(&first))?;
    let mut got = 1;
    if job.many {
        let mut messages = Vec::new();
        while got < count {
            got += socket.recv_many_into(64, &mut messages).await? as u64;
            for message in messages.drain(..) {
                check.message(body(&message))?;
            }
        }
    } else {
        while got < count {
            check.message(body(&socket.recv().await?))?;
            got += 1;
        }
    }
    Ok(start.report(got))
}

async fn push_many(job: Job) -> Outcome<Report> {
    let mut sockets = Vec::new();
    for _ in 0..job.peers {
        sockets.push(dial(SocketType::Push, &job).await?);
    }
    job.linked();
    job.go().await?;
    if sockets.len() == 1 {
        let socket = sockets.remove(0);
        let report = push(&socket, &job, 0).await?;
        socket.close_with_linger(None).await?;
        return Ok(report);
    }
    let mut tasks = JoinSet::new();
    for (index, socket) in sockets.into_iter().enumerate() {
        let job = job.clone();
        tasks.spawn(async move {
            let report = push(&socket, &job, (index as u64) << 48).await?;
            socket.close_with_linger(None).await?;
            Ok(report)
        });
    }
    together(tasks).await
}

async fn push(socket: &Socket, job: &Job, first: u64) -> Outcome<Report> {
    let start = job.start();
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        socket.send(Message::from_slice(payload.number(first + number))).await?;
    }
    Ok(start.report(job.count))
}

async fn pull_many(job: Job) -> Outcome<Report> {
    let mut tasks = JoinSet::new();
    let left = Arc::new(std::sync::atomic::AtomicU64::new(job.count));
    for _ in 0..job.peers {
        let (socket, left, job) = (dial(SocketType::Pull, &job).await?, left.clone(), job.clone());
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
    let socket = bind(SocketType::Rep, job).await?;
    let mut started = None;
    for _ in 0..job.count {
        let message = socket.recv().await?;
        started.get_or_insert_with(|| job.start());
        socket.send(message).await?;
    }
    let start = started.ok_or("nobody asked")?;
    let report = start.report(job.count);
    socket.close_with_linger(None).await?;
    Ok(report)
}

async fn req(job: &Job) -> Outcome<Report> {
    let socket = dial(SocketType::Req, job).await?;
    job.linked();
    job.go().await?;
    let (mut payload, mut latency) = (Payload::new(job.size), histogram());
    let start = job.start();
    for number in 0..job.count {
        let asked = Instant::now();
        socket.send(Message::from_slice(payload.number(number))).await?;
        let answer = socket.recv().await?;
        latency.saturating_record(asked.elapsed().as_nanos() as u64);
        if body(&answer) != payload.number(number) {
            return Err("a wrong answer".into());
        }
    }
    Ok(start.report(job.count).with_latency(&latency))
}

async fn publish(job: &Job) -> Outcome<Report> {
    let socket = bind(SocketType::Pub, job).await?;
    job.go().await?;
    // There is nothing to ask; what is lost shows at the subscribers.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = job.start();
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        socket.send(Message::from_slice(payload.number(number))).await?;
    }
    let report = start.report(job.count * job.peers as u64);
    socket.close_with_linger(None).await?;
    Ok(report)
}

async fn subscribe(job: Job) -> Outcome<Report> {
    let mut tasks = JoinSet::new();
    for _ in 0..job.peers {
        let (socket, job) = (dial(SocketType::Sub, &job).await?, job.clone());
        tasks.spawn(async move { pull(&socket, &job, job.count).await });
    }
    job.linked();
    together(tasks).await
}
