//! One way: PUSH to PULL, and PUB to many SUBs.

use ropewalk::{Overflow, Pub, Push, SendError, Socket, patterns::Pattern};

use super::{
    Job, Way, What,
    far::{Far, Place},
    meter::{Figures, cpu, cpu_since, write_number},
    raw::{Frames, Listener},
};
use crate::failure::Failure;

/// One run: messages a second, megabytes a second, and processor nanoseconds of both ends a message.
pub(super) async fn near(job: Job) -> Result<Vec<f64>, Failure> {
    let (figures, cpu) = match (job.way, job.what) {
        (Way::Raw, _) => raw(job).await?,
        (_, What::Fan) => {
            let builder = Pub::builder().max_message(job.max_message()).overflow(Overflow::Block);
            let publisher = builder.build();
            let ready = async |publisher: &Pub| publisher.subscribers("", peers(&job)).await;
            through(job, publisher, ready, async |publisher, body| publisher.send(body).await).await?
        }
        _ => {
            let push = Push::builder().max_message(job.max_message()).build();
            let ready = async |push: &Push| push.ready_with(peers(&job)).await;
            through(job, push, ready, async |push, body| push.send(body).await).await?
        }
    };
    let seconds = figures.took.as_secs_f64();
    let rate = figures.messages as f64 / seconds;
    let all = (job.all() * job.copies()) as f64;
    let cpu = match (cpu, figures.cpu) {
        (Some(near), Some(far)) => (near + far).as_nanos() as f64 / all,
        _ => f64::NAN,
    };
    Ok(vec![rate, rate * job.size as f64 / 1e6, cpu])
}

fn peers(job: &Job) -> usize {
    usize::try_from(job.peers).unwrap_or(usize::MAX)
}

type Measured = (Figures, Option<std::time::Duration>);

/// Through a socket of the library.
async fn through<P: Pattern>(
    job: Job,
    socket: Socket<P>,
    ready: impl AsyncFn(&Socket<P>) -> Result<(), ropewalk::Closed>,
    send: impl AsyncFn(&Socket<P>, &[u8]) -> Result<(), SendError>,
) -> Result<Measured, Failure> {
    let place = Place::new(&job);
    let address = socket.bind_to(&place.address).await?;
    let mut far = Far::start(job, address.to_string())?;
    let sending = async {
        ready(&socket).await.map_err(|error| Failure::Failed(error.to_string()))?;
        let before = cpu(&job);
        let mut body = vec![b'x'; job.size];
        for number in 0..job.all() {
            write_number(&mut body, number);
            send(&socket, &body).await.map_err(|error| Failure::Failed(error.to_string()))?;
        }
        Ok::<_, Failure>(before)
    };
    let (before, figures) = tokio::try_join!(sending, far.figures())?;
    let used = cpu_since(&job, before);
    let report = socket.close().await;
    far.end().await?;
    if !report.all_delivered() {
        return Err(Failure::Failed(format!("not all was delivered: {report:?}")));
    }
    Ok((figures, used))
}

/// Through bare sockets.
async fn raw(job: Job) -> Result<Measured, Failure> {
    let place = Place::new(&job);
    let (listener, address) = Listener::bind(&job, &place.path.to_string_lossy()).await?;
    let mut far = Far::start(job, address)?;
    let sending = async {
        let mut peers = Vec::new();
        for _ in 0..job.peers {
            peers.push(listener.accept().await?);
        }
        let before = cpu(&job);
        give(&job, &mut peers).await?;
        Ok::<_, Failure>((before, peers))
    };
    let ((before, peers), figures) = tokio::try_join!(sending, far.figures())?;
    let used = cpu_since(&job, before);
    far.end().await?;
    drop(peers);
    Ok((figures, used))
}

async fn give(job: &Job, peers: &mut [Frames]) -> Result<(), Failure> {
    let mut body = vec![b'x'; job.size];
    let mut turn = 0;
    for number in 0..job.all() {
        write_number(&mut body, number);
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
