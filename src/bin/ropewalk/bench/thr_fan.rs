//! One way: PUSH to PULL, and PUB to many SUBs.

use ropewalk::{CloseReport, Overflow, Pub, Push, SendError};
use tokio::task::JoinSet;

use super::{
    ends::{Ends, beside},
    job::{Job, Way, What},
    meter::{Figures, Spent, first_number, write_number},
    raw::{Frames, Listener},
};
use crate::failure::Failure;

/// One run: messages a second, megabytes a second, processor nanoseconds of both ends a message, and the most memory one
/// of them had, in MiB.
pub(super) async fn near(job: Job, ends: &Ends) -> Result<Vec<f64>, Failure> {
    let spent = Spent::new(&job);
    let figures = match (job.way, job.what) {
        (Way::Raw, _) => raw(&job, ends).await?,
        (_, What::Fan) => publish(&job, ends).await?,
        _ => push(&job, ends).await?,
    };
    let (cpu, peak) = spent.so_far(&job);
    // So few that all came at once say nothing.
    let measured = if figures.messages == 0 { f64::NAN } else { figures.messages as f64 };
    let rate = measured / figures.took.as_secs_f64();
    let all = (job.all() * job.copies()) as f64;
    let cpu = cpu.zip(figures.cpu).map_or(f64::NAN, |(near, far)| (near + far).as_nanos() as f64 / all);
    let peak = peak.zip(figures.peak_kib).map_or(f64::NAN, |(near, far)| near.max(far) as f64 / 1024.0);
    Ok(vec![rate, rate * job.size as f64 / 1e6, cpu, peak])
}

async fn push(job: &Job, ends: &Ends) -> Result<Figures, Failure> {
    let (mut sockets, mut addresses, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..job.senders {
        let place = ends.place(job, index as u16)?;
        let socket = ends.builder(Push::builder(), job).build();
        addresses.push(place.bind(&socket).await?);
        places.push(place);
        sockets.push(socket);
    }
    let sending = async {
        for socket in &sockets {
            socket.ready_with(job.far_sockets()).await.map_err(|error| Failure::Failed(error.to_string()))?;
        }
        if let [socket] = &sockets[..] {
            return send(socket, *job, 0).await;
        }
        let mut tasks = JoinSet::new();
        for (sender, socket) in sockets.iter().cloned().enumerate() {
            let job = *job;
            tasks.spawn(async move { send(&socket, job, sender as u64).await });
        }
        while let Some(sent) = tasks.join_next().await {
            sent.unwrap_or_else(|error| Err(Failure::Failed(error.to_string())))?;
        }
        Ok(())
    };
    let ((), figures) = beside(sending, ends.run(job, &addresses)).await?;
    for socket in &sockets {
        all_delivered(&socket.close().await)?;
    }
    Ok(figures)
}

async fn send(socket: &Push, job: Job, sender: u64) -> Result<(), Failure> {
    let mut body = vec![b'x'; job.size];
    for number in 0..job.all() / job.senders {
        write_number(&mut body, first_number(sender) + number);
        socket.send(&body[..]).await.map_err(refused)?;
    }
    Ok(())
}

async fn publish(job: &Job, ends: &Ends) -> Result<Figures, Failure> {
    let place = ends.place(job, 0)?;
    let socket = ends.builder(Pub::builder(), job).overflow(Overflow::Block).build();
    let addresses = [place.bind(&socket).await?];
    let sending = async {
        socket.subscribers("", job.far_sockets()).await.map_err(|error| Failure::Failed(error.to_string()))?;
        let mut body = vec![b'x'; job.size];
        for number in 0..job.all() {
            write_number(&mut body, number);
            socket.send(&body[..]).await.map_err(refused)?;
        }
        Ok(())
    };
    let ((), figures) = beside(sending, ends.run(job, &addresses)).await?;
    all_delivered(&socket.close().await)?;
    Ok(figures)
}

fn refused(error: SendError) -> Failure {
    Failure::Failed(error.to_string())
}

fn all_delivered(report: &CloseReport) -> Result<(), Failure> {
    if report.all_delivered() { Ok(()) } else { Err(Failure::Failed(format!("not all was delivered: {report:?}"))) }
}

/// Through bare sockets.
async fn raw(job: &Job, ends: &Ends) -> Result<Figures, Failure> {
    let (mut listeners, mut addresses, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..job.senders {
        let place = ends.place(job, index as u16)?;
        let (listener, address) = Listener::bind(&place.raw).await?;
        listeners.push(listener);
        addresses.push(address);
        places.push(place);
    }
    let sending = async {
        let mut tasks = JoinSet::new();
        for (sender, listener) in listeners.into_iter().enumerate() {
            let job = *job;
            tasks.spawn(async move {
                let mut peers = Vec::new();
                for _ in 0..job.peers {
                    peers.push(listener.accept().await?);
                }
                give(&job, sender as u64, &mut peers).await?;
                // They stay open until all has come.
                Ok::<_, Failure>(peers)
            });
        }
        let mut open = Vec::new();
        while let Some(peers) = tasks.join_next().await {
            open.push(peers.unwrap_or_else(|error| Err(Failure::Failed(error.to_string())))?);
        }
        Ok(open)
    };
    let (_open, figures) = beside(sending, ends.run(job, &addresses)).await?;
    Ok(figures)
}

async fn give(job: &Job, sender: u64, peers: &mut [Frames]) -> Result<(), Failure> {
    let mut body = vec![b'x'; job.size];
    let mut turn = 0;
    for number in 0..job.all() / job.senders {
        write_number(&mut body, first_number(sender) + number);
        if job.what == What::Fan {
            for peer in &mut *peers {
                peer.put(&body).await?;
            }
        } else {
            peers[turn].put(&body).await?;
            turn = if turn + 1 == peers.len() { 0 } else { turn + 1 };
        }
    }
    for peer in peers {
        peer.flush().await?;
    }
    Ok(())
}
