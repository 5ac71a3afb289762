//! Ropewalk.

use std::time::Instant;

use ropewalk::{Builder, Overflow, Pub, Pull, Push, Rep, Req, SecretKey, Sub, patterns::Pattern};
use tokio::task::JoinSet;

use crate::{
    child::{Job, Outcome, Payload, Report, Role, histogram},
    transport::Transport,
    workload::together,
};

pub async fn run(job: Job) -> Outcome<Report> {
    match job.role {
        Role::Pull => {
            let socket = with_key(Pull::builder(), &job).bind(&any(job.transport)).await?;
            job.listening(&socket.address().ok_or("no address")?.to_string());
            let report = pull(&socket, &job, job.count * job.peers as u64).await?;
            socket.close().await;
            Ok(report)
        }
        Role::Push => push_many(job).await,
        Role::PushBound => push_bound(&job).await,
        Role::PullMany => pull_many(job).await,
        Role::Rep => rep(&job).await,
        Role::Req => req(&job).await,
        Role::Pub => publish(&job).await,
        Role::Sub => subscribe(job).await,
        Role::RepBeside | Role::ReqBeside => Err("that is two jobs".into()),
    }
}

/// Where any port will do.
pub fn any(transport: Transport) -> String {
    format!("{transport}://127.0.0.1:0")
}

/// Over tcp there is nobody to prove.
fn with_key<P: Pattern>(builder: Builder<P>, job: &Job) -> Builder<P> {
    if job.transport == Transport::Tcp { builder } else { builder.key(SecretKey::generate()).allow_any_peer() }
}

async fn pull(socket: &Pull, job: &Job, count: u64) -> Outcome<Report> {
    let mut check = job.check();
    let first = socket.recv().await?;
    let start = job.start();
    check.message(first.payload())?;
    let mut got = 1;
    if job.many {
        let mut messages = Vec::new();
        while got < count {
            got += socket.recv_many(&mut messages, 64).await? as u64;
            for message in messages.drain(..) {
                check.message(message.payload())?;
            }
        }
    } else {
        while got < count {
            check.message(socket.recv().await?.payload())?;
            got += 1;
        }
    }
    Ok(start.report(got))
}

async fn push_many(job: Job) -> Outcome<Report> {
    let mut sockets = Vec::new();
    for _ in 0..job.peers {
        let socket = with_key(Push::builder(), &job).connect(&job.address).await?;
        socket.ready().await?;
        sockets.push(socket);
    }
    job.linked();
    job.go().await?;
    if let [socket] = &sockets[..] {
        let report = push(socket, &job, 0).await?;
        socket.close().await;
        return Ok(report);
    }
    let mut tasks = JoinSet::new();
    for (index, socket) in sockets.into_iter().enumerate() {
        let job = job.clone();
        tasks.spawn(async move {
            let report = push(&socket, &job, (index as u64) << 48).await?;
            socket.close().await;
            Ok(report)
        });
    }
    together(tasks).await
}

async fn push(socket: &Push, job: &Job, first: u64) -> Outcome<Report> {
    let start = job.start();
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        socket.send(payload.number(first + number)).await?;
    }
    Ok(start.report(job.count))
}

async fn push_bound(job: &Job) -> Outcome<Report> {
    let socket = with_key(Push::builder(), job).bind(&any(job.transport)).await?;
    job.listening(&socket.address().ok_or("no address")?.to_string());
    job.go().await?;
    socket.ready_with(job.peers).await?;
    let report = push(&socket, job, 0).await?;
    socket.close().await;
    Ok(report)
}

async fn pull_many(job: Job) -> Outcome<Report> {
    let mut tasks = JoinSet::new();
    let left = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(job.count));
    let mut sockets = Vec::new();
    for _ in 0..job.peers {
        let socket = with_key(Pull::builder(), &job).connect(&job.address).await?;
        socket.ready().await?;
        sockets.push(socket);
    }
    for socket in &sockets {
        let (socket, left, job, all) = (socket.clone(), left.clone(), job.clone(), sockets.clone());
        tasks.spawn(async move {
            let mut check = job.check();
            let (mut started, mut got) = (None, 0);
            while let Ok(message) = socket.recv().await {
                started.get_or_insert_with(|| job.start());
                check.upward(message.payload())?;
                got += 1;
                if left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 1 {
                    for other in &all {
                        other.close().await;
                    }
                }
            }
            let start = started.ok_or("a receiver got nothing")?;
            Ok(start.report(got))
        });
    }
    job.linked();
    together(tasks).await
}

async fn rep(job: &Job) -> Outcome<Report> {
    let socket = with_key(Rep::builder(), job).bind(&any(job.transport)).await?;
    job.listening(&socket.address().ok_or("no address")?.to_string());
    let mut since = None;
    for _ in 0..job.count {
        let request = socket.recv().await?;
        since.get_or_insert_with(|| job.start());
        let answer = request.message().clone();
        request.reply(answer).await?;
    }
    let start = since.ok_or("nobody asked")?;
    let report = start.report(job.count);
    socket.close().await;
    Ok(report)
}

async fn req(job: &Job) -> Outcome<Report> {
    let socket = with_key(Req::builder(), job).connect(&job.address).await?;
    socket.ready().await?;
    job.linked();
    job.go().await?;
    let (mut payload, mut latency) = (Payload::new(job.size), histogram());
    let start = job.start();
    for number in 0..job.count {
        let asked = Instant::now();
        let answer = socket.request(payload.number(number)).await?;
        latency.saturating_record(asked.elapsed().as_nanos() as u64);
        if answer.payload() != payload.number(number) {
            return Err("a wrong answer".into());
        }
    }
    let report = start.report(job.count).with_latency(&latency);
    socket.close().await;
    Ok(report)
}

async fn publish(job: &Job) -> Outcome<Report> {
    let socket = with_key(Pub::builder(), job).overflow(Overflow::Block).bind(&any(job.transport)).await?;
    job.listening(&socket.address().ok_or("no address")?.to_string());
    job.go().await?;
    socket.subscribers("", job.peers).await?;
    let start = job.start();
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        socket.send(payload.number(number)).await?;
    }
    let report = start.report(job.count * job.peers as u64);
    socket.close().await;
    Ok(report)
}

async fn subscribe(job: Job) -> Outcome<Report> {
    let mut tasks = JoinSet::new();
    for _ in 0..job.peers {
        let socket = with_key(Sub::builder(), &job).connect(&job.address).await?;
        socket.subscribe("").await?;
        socket.ready().await?;
        let job = job.clone();
        tasks.spawn(async move {
            let mut check = job.check();
            let mut started = None;
            for _ in 0..job.count {
                let message = socket.recv().await?;
                started.get_or_insert_with(|| job.start());
                check.message(message.payload())?;
            }
            let start = started.ok_or("nothing came")?;
            let report = start.report(job.count);
            socket.close().await;
            Ok(report)
        });
    }
    job.linked();
    together(tasks).await
}
