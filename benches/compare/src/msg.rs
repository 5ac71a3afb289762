//! msg-socket over its QUIC. It has no PUSH and PULL: what goes one way are requests of which many are under way. `many`
//! is PUB and SUB instead, which lose what finds no place in a queue: those that can be set are as long as the run, but
//! one within SUB cannot.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use msg_socket::{PubOptions, PubSocket, RepOptions, RepSocket, ReqOptions, ReqSocket, SubOptions, SubSocket};
use msg_transport::quic::Quic;

use crate::child::{Job, Outcome, Payload, Report, Role, histogram, settle};

const ANY: &str = "127.0.0.1:0";
const TOPIC: &str = "x";

/// Requests under way; its queues take 8192.
const UNDER_WAY: usize = 1000;

/// If nothing comes for so long, the rest is lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is written at once one way. Where one waits for the answer nothing is kept back.
const BUFFER: usize = 256 << 10;

pub async fn run(job: Job) -> Outcome<Report> {
    let report = match job.role {
        Role::Pub => publish(&job).await,
        Role::Sub => subscribe(&job).await,
        Role::Pull => take(&job).await,
        Role::Push => push(&job).await,
        Role::Rep => rep(&job).await,
        Role::Req => req(&job).await,
        _ => Err("msg-socket is measured with one sender and one receiver".into()),
    }?;
    settle(&report).await;
    Ok(report)
}

async fn publish(job: &Job) -> Outcome<Report> {
    let options = PubOptions::high_throughput().with_high_water_mark(job.count as usize);
    let mut socket: PubSocket<Quic, SocketAddr> = PubSocket::with_options(Quic::default(), options);
    socket.bind(ANY).await?;
    job.listening(&socket.local_addr().ok_or("no address")?.to_string());
    job.go().await?;
    // There is nothing to ask; what is lost shows at the subscriber.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = job.start();
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        socket.publish(TOPIC, Bytes::copy_from_slice(payload.number(number))).await?;
        // It waits for nothing, and what sends must have its turn.
        if number % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(start.report(job.count))
}

async fn subscribe(job: &Job) -> Outcome<Report> {
    let options = SubOptions::default().with_ingress_queue_size(job.count as usize).with_read_buffer_size(BUFFER);
    let mut socket: SubSocket<Quic, SocketAddr> = SubSocket::with_options(Quic::default(), options);
    socket.connect(job.address.as_str()).await?;
    socket.subscribe(TOPIC).await?;
    job.linked();
    let got = AtomicU64::new(0);
    let receive = async {
        let (mut check, mut started) = (job.check(), None);
        for number in 0..job.count {
            let message = socket.next().await.ok_or("the socket is closed")?;
            started.get_or_insert_with(|| job.start());
            check.message(message.payload())?;
            got.store(number + 1, Relaxed);
        }
        let start = started.ok_or("nothing came")?;
        Ok(start.report(job.count))
    };
    tokio::select! {
        report = receive => report,
        () = stands_still(&got) => Err(format!("{} of {} messages are lost", job.count - got.load(Relaxed), job.count).into()),
    }
}

/// Waits until it is clear that nothing comes any more.
async fn stands_still(got: &AtomicU64) {
    let mut before = 0;
    loop {
        tokio::time::sleep(PATIENCE).await;
        let now = got.load(Relaxed);
        if now > 0 && now == before {
            return;
        }
        before = now;
    }
}

async fn bind(options: RepOptions, job: &Job) -> Outcome<RepSocket<Quic, SocketAddr>> {
    let mut socket = RepSocket::with_options(Quic::default(), options);
    socket.bind(ANY).await?;
    job.listening(&socket.local_addr().ok_or("no address")?.to_string());
    Ok(socket)
}

async fn dial(options: ReqOptions, job: &Job) -> Outcome<ReqSocket<Quic, SocketAddr>> {
    let mut socket = ReqSocket::with_options(Quic::default(), options.with_blocking_connect());
    socket.connect(job.address.as_str()).await?;
    job.linked();
    job.go().await?;
    Ok(socket)
}

async fn take(job: &Job) -> Outcome<Report> {
    let mut socket = bind(RepOptions::default(), job).await?;
    let (mut check, mut started) = (job.check(), None);
    for _ in 0..job.count {
        let request = socket.next().await.ok_or("the socket is closed")?;
        started.get_or_insert_with(|| job.start());
        check.message(request.msg())?;
        request.respond(Bytes::new())?;
    }
    let start = started.ok_or("nothing came")?;
    Ok(start.report(job.count))
}

async fn push(job: &Job) -> Outcome<Report> {
    let socket = dial(ReqOptions::high_throughput(), job).await?;
    let start = job.start();
    let mut payload = Payload::new(job.size);
    let mut under_way = FuturesUnordered::new();
    for number in 0..job.count {
        if under_way.len() >= UNDER_WAY {
            under_way.next().await.ok_or("no request is under way")??;
        }
        under_way.push(socket.request(Bytes::copy_from_slice(payload.number(number))));
    }
    while let Some(answer) = under_way.next().await {
        answer?;
    }
    Ok(start.report(job.count))
}

async fn rep(job: &Job) -> Outcome<Report> {
    let mut socket = bind(RepOptions::default().with_write_buffer_size(1), job).await?;
    let mut started = None;
    for _ in 0..job.count {
        let request = socket.next().await.ok_or("the socket is closed")?;
        started.get_or_insert_with(|| job.start());
        let answer = request.msg().clone();
        request.respond(answer)?;
    }
    let start = started.ok_or("nobody asked")?;
    Ok(start.report(job.count))
}

async fn req(job: &Job) -> Outcome<Report> {
    let socket = dial(ReqOptions::low_latency().with_write_buffer_size(1), job).await?;
    let (mut payload, mut latency) = (Payload::new(job.size), histogram());
    let start = job.start();
    for number in 0..job.count {
        let asked = Instant::now();
        let answer = socket.request(Bytes::copy_from_slice(payload.number(number))).await?;
        latency.saturating_record(asked.elapsed().as_nanos() as u64);
        if answer != payload.number(number) {
            return Err("a wrong answer".into());
        }
    }
    Ok(start.report(job.count).with_latency(&latency))
}
