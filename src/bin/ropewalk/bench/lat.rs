//! Round trips, one after the other.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use ropewalk::{Push, Req};
use tokio::task::JoinHandle;

use super::{
    ends::{Ends, Place, why},
    job::{Job, Way},
    meter::write_number,
    raw::{Frames, Listener},
};
use crate::failure::Failure;

/// One run: the median, the 99th and the 99.9th of a hundred, in microseconds; and how many messages a second went over
/// the busy link, if there was one.
pub(super) async fn near(job: Job, ends: &Ends) -> Result<Vec<f64>, Failure> {
    let Trips { mut times, took, busy, .. } = match job.way {
        Way::Raw => raw(job, ends).await?,
        _ => through(job, ends).await?,
    };
    times.sort_unstable();
    let mut figures: Vec<f64> = [0.5, 0.99, 0.999].iter().map(|share| part(&times, *share)).collect();
    if job.busy {
        figures.push(busy as f64 / took.as_secs_f64());
    }
    Ok(figures)
}

/// So large a share took at most so long.
fn part(sorted: &[Duration], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map_or(f64::NAN, |time| time.as_nanos() as f64 / 1e3)
}

/// Times round trips and checks what comes back.
struct Trips {
    job: Job,
    body: Vec<u8>,
    number: u64,
    times: Vec<Duration>,
    since: Instant,
    /// From the first that is measured to the last.
    took: Duration,
    /// Messages over the busy link meanwhile.
    busy: u64,
}

impl Trips {
    fn new(job: Job) -> Self {
        let times = Vec::with_capacity(usize::try_from(job.count).unwrap_or_default());
        let (since, took) = (Instant::now(), Duration::ZERO);
        Self { job, body: vec![b'x'; job.size], number: 0, times, since, took, busy: 0 }
    }

    /// Numbers the next request; none when there were enough.
    fn start(&mut self, load: Option<&Load>) -> Option<Instant> {
        write_number(&mut self.body, self.number);
        let now = Instant::now();
        let sent = load.map_or(0, |load| load.sent.load(Relaxed));
        if self.number == self.job.warm {
            (self.since, self.busy) = (now, sent);
        }
        if self.number < self.job.all() {
            return Some(now);
        }
        (self.took, self.busy) = (now - self.since, sent - self.busy);
        None
    }

    fn end(&mut self, start: Instant, reply: &[u8]) -> Result<(), Failure> {
        let took = start.elapsed();
        if reply != self.body {
            return Err(Failure::Failed(format!("the reply to request {} is not its own", self.number)));
        }
        if self.number >= self.job.warm {
            self.times.push(took);
        }
        self.number += 1;
        Ok(())
    }
}

/// What keeps another link busy, until it is dropped.
struct Load {
    sent: Arc<AtomicU64>,
    task: JoinHandle<Result<(), Failure>>,
    _place: Place,
}

impl Load {
    /// Listens, and says where the far end has to connect to.
    async fn start(job: &Job, ends: &Ends) -> Result<(Self, String), Failure> {
        let load = job.load();
        let place = ends.place(&load, 1)?;
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        let mut body = vec![b'x'; load.size];
        if load.way == Way::Raw {
            let (listener, address) = Listener::bind(&place.raw).await?;
            let task = tokio::spawn(async move {
                let mut peer = listener.accept().await?;
                for number in 0.. {
                    write_number(&mut body, number);
                    peer.put(&body).await?;
                    counter.fetch_add(1, Relaxed);
                }
                Ok(())
            });
            return Ok((Self { sent, task, _place: place }, address));
        }
        let push = ends.builder(Push::builder(), &load).build();
        let address = place.bind(&push).await?;
        let task = tokio::spawn(async move {
            for number in 0.. {
                write_number(&mut body, number);
                push.send(&body[..]).await.map_err(|error| Failure::Failed(error.to_string()))?;
                counter.fetch_add(1, Relaxed);
            }
            Ok(())
        });
        Ok((Self { sent, task, _place: place }, address))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts what is to be busy. Where the far end connects to, that of the load first.
async fn begin(job: &Job, ends: &Ends, address: String) -> Result<(Option<Load>, Vec<String>), Failure> {
    if !job.busy {
        return Ok((None, vec![address]));
    }
    let (load, of_load) = Load::start(job, ends).await?;
    Ok((Some(load), vec![of_load, address]))
}

/// Through sockets of the library.
async fn through(job: Job, ends: &Ends) -> Result<Trips, Failure> {
    let place = ends.place(&job, 0)?;
    let req = ends.builder(Req::builder(), &job).build();
    let (load, addresses) = begin(&job, ends, place.bind(&req).await?).await?;
    let asking = async {
        req.ready_with(job.far_sockets()).await.map_err(|error| Failure::Failed(error.to_string()))?;
        let mut trips = Trips::new(job);
        while let Some(start) = trips.start(load.as_ref()) {
            let reply = req.request(&trips.body).await.map_err(|error| Failure::Failed(error.to_string()))?;
            trips.end(start, reply.payload())?;
        }
        Ok::<_, Failure>(trips)
    };
    let trips = while_far_runs(asking, ends, &job, &addresses).await?;
    drop(load);
    req.close().await;
    Ok(trips)
}

/// Through bare sockets, in turn.
async fn raw(job: Job, ends: &Ends) -> Result<Trips, Failure> {
    let place = ends.place(&job, 0)?;
    let (listener, address) = Listener::bind(&place.raw).await?;
    let (load, addresses) = begin(&job, ends, address).await?;
    let asking = async {
        let mut peers: Vec<Frames> = Vec::new();
        for _ in 0..job.peers {
            peers.push(listener.accept().await?);
        }
        let mut trips = Trips::new(job);
        let mut turn = 0;
        while let Some(start) = trips.start(load.as_ref()) {
            let peer = &mut peers[turn];
            turn = if turn + 1 == job.peers as usize { 0 } else { turn + 1 };
            peer.put(&trips.body).await?;
            peer.flush().await?;
            loop {
                peer.fill().await?;
                if let Some(reply) = peer.next() {
                    break trips.end(start, reply)?;
                }
            }
        }
        Ok::<_, Failure>(trips)
    };
    while_far_runs(asking, ends, &job, &addresses).await
}

/// The far end has nothing to tell of round trips but that it failed.
async fn while_far_runs(
    asking: impl Future<Output = Result<Trips, Failure>>,
    ends: &Ends,
    job: &Job,
    addresses: &[String],
) -> Result<Trips, Failure> {
    let mut far = pin!(ends.run(job, addresses));
    tokio::select! {
        trips = asking => match trips {
            Ok(trips) => Ok(trips),
            Err(failure) => Err(why(failure, far).await),
        },
        told = &mut far => {
            Err(told.err().unwrap_or_else(|| Failure::failed("the far end ended before it was done")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::part;

    #[test]
    fn parts_are_of_the_sorted() {
        let times: Vec<Duration> = (1..=1000).map(Duration::from_micros).collect();
        assert_eq!([0.5, 0.99, 0.999, 1.0].map(|share| part(&times, share)), [500.0, 990.0, 999.0, 1000.0]);
        assert_eq!(part(&times[..1], 0.5), 1.0);
        assert!(part(&[], 0.5).is_nan());
    }
}
