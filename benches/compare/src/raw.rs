//! The limit: the same bytes over a plain tokio TCP stream, framed by a length, as much per call as fits. The bare
//! encrypted streams do the same.

use std::time::Instant;

use bytes::{Buf, BufMut, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    child::{Job, Outcome, Payload, Report, Role, histogram},
    raw_quic, raw_tls,
    transport::Transport,
};

const BATCH: usize = 256 << 10;

pub async fn run(job: Job) -> Outcome<Report> {
    match job.transport {
        Transport::Tcp => over_tcp(job).await,
        Transport::Tls => raw_tls::run(job).await,
        Transport::Quic => raw_quic::run(job).await,
    }
}

async fn over_tcp(job: Job) -> Outcome<Report> {
    match job.role {
        Role::Pull => read_all(&mut accept(&listen(&job).await?).await?, &job, job.count).await,
        Role::Push => push(&mut dial(&job.address).await?, &job).await,
        Role::Rep => rep(&mut accept(&listen(&job).await?).await?, &job).await,
        Role::Req => req(&mut dial(&job.address).await?, &job).await,
        Role::Pub => publish(&job).await,
        Role::Sub => subscribe(&job).await,
        Role::PushBound | Role::PullMany => Err("the raw stream has one sender and one receiver".into()),
        Role::RepBeside | Role::ReqBeside => Err("that is two jobs".into()),
    }
}

async fn listen(job: &Job) -> Outcome<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    job.listening(&listener.local_addr()?.to_string());
    Ok(listener)
}

pub async fn accept(listener: &TcpListener) -> Outcome<TcpStream> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub async fn dial(address: &str) -> Outcome<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub async fn read_all(stream: &mut (impl AsyncRead + Unpin), job: &Job, count: u64) -> Outcome<Report> {
    let (mut check, mut buffer) = (job.check(), BytesMut::new());
    let (mut got, mut started) = (0, None);
    while got < count {
        buffer.reserve(BATCH);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(format!("the stream ended after {got} messages").into());
        }
        started.get_or_insert_with(|| job.start());
        while let Some(length) = buffer.get(..4) {
            let length = u32::from_le_bytes(length.try_into()?) as usize;
            let Some(message) = buffer.get(4..4 + length) else { break };
            check.message(message)?;
            buffer.advance(4 + length);
            got += 1;
        }
    }
    let start = started.ok_or("nothing came")?;
    Ok(start.report(got))
}

fn put(buffer: &mut BytesMut, payload: &mut Payload, number: u64) {
    let message = payload.number(number);
    buffer.put_u32_le(message.len() as u32);
    buffer.put_slice(message);
}

pub async fn push(stream: &mut (impl AsyncWrite + Unpin), job: &Job) -> Outcome<Report> {
    job.linked();
    job.go().await?;
    let start = job.start();
    let (mut payload, mut buffer) = (Payload::new(job.size), BytesMut::new());
    for number in 0..job.count {
        put(&mut buffer, &mut payload, number);
        if buffer.len() >= BATCH {
            stream.write_all_buf(&mut buffer).await?;
        }
    }
    stream.write_all_buf(&mut buffer).await?;
    stream.shutdown().await?;
    Ok(start.report(job.count))
}

pub async fn rep(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), job: &Job) -> Outcome<Report> {
    let mut buffer = vec![0; job.size.max(8)];
    let start = job.start();
    for _ in 0..job.count {
        stream.read_exact(&mut buffer).await?;
        stream.write_all(&buffer).await?;
        stream.flush().await?;
    }
    Ok(start.report(job.count))
}

pub async fn req(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), job: &Job) -> Outcome<Report> {
    job.linked();
    job.go().await?;
    let (mut payload, mut buffer) = (Payload::new(job.size), vec![0; job.size.max(8)]);
    let mut latency = histogram();
    let start = job.start();
    for number in 0..job.count {
        let asked = Instant::now();
        stream.write_all(payload.number(number)).await?;
        stream.flush().await?;
        stream.read_exact(&mut buffer).await?;
        latency.saturating_record(asked.elapsed().as_nanos() as u64);
        job.check().upward(&buffer)?;
    }
    Ok(start.report(job.count).with_latency(&latency))
}

async fn publish(job: &Job) -> Outcome<Report> {
    let listener = listen(job).await?;
    let mut streams = Vec::new();
    for _ in 0..job.peers {
        streams.push(accept(&listener).await?);
    }
    job.go().await?;
    let start = job.start();
    let (mut payload, mut buffer) = (Payload::new(job.size), BytesMut::new());
    for number in 0..job.count {
        put(&mut buffer, &mut payload, number);
        if buffer.len() >= BATCH || number + 1 == job.count {
            let batch = buffer.split().freeze();
            for stream in &mut streams {
                stream.write_all(&batch).await?;
            }
        }
    }
    Ok(start.report(job.count * job.peers as u64))
}

async fn subscribe(job: &Job) -> Outcome<Report> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..job.peers {
        let (mut stream, job) = (dial(&job.address).await?, job.clone());
        tasks.spawn(async move { read_all(&mut stream, &job, job.count).await });
    }
    job.linked();
    crate::workload::together(tasks).await
}
