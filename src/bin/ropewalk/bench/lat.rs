//! Round trips, one after the other.

use std::time::{Duration, Instant};

use ropewalk::Req;

use super::{
    Job, Way,
    far::{Far, Place},
    meter::write_number,
    raw::{Frames, Listener},
};
use crate::failure::Failure;

/// One run: the median, the 99th and the 99.9th of a hundred, in microseconds.
pub(super) async fn near(job: Job) -> Result<Vec<f64>, Failure> {
    let mut times = match job.way {
        Way::Raw => raw(job).await?,
        _ => through(job).await?,
    };
    times.sort_unstable();
    Ok([0.5, 0.99, 0.999].iter().map(|share| part(&times, *share)).collect())
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
}

impl Trips {
    fn new(job: Job) -> Self {
        let times = Vec::with_capacity(usize::try_from(job.count).unwrap_or_default());
        Self { job, body: vec![b'x'; job.size], number: 0, times }
    }

    /// Numbers the next request; none when there were enough.
    fn start(&mut self) -> Option<Instant> {
        write_number(&mut self.body, self.number);
        (self.number < self.job.all()).then(Instant::now)
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

/// Through sockets of the library.
async fn through(job: Job) -> Result<Vec<Duration>, Failure> {
    let place = Place::new(&job);
    let req = Req::builder().max_message(job.max_message()).build();
    let address = req.bind_to(&place.address).await?;
    let mut far = Far::start(job, address.to_string())?;
    let asking = async {
        let peers = usize::try_from(job.peers).unwrap_or(usize::MAX);
        req.ready_with(peers).await.map_err(|error| Failure::Failed(error.to_string()))?;
        let mut trips = Trips::new(job);
        while let Some(start) = trips.start() {
            let reply = req.request(&trips.body).await.map_err(|error| Failure::Failed(error.to_string()))?;
            trips.end(start, reply.payload())?;
        }
        Ok::<_, Failure>(trips.times)
    };
    let times = tokio::select! {
        times = asking => times?,
        failed = far.figures() => return Err(early(failed)),
    };
    req.close().await;
    far.end().await?;
    Ok(times)
}

/// Through bare sockets, in turn.
async fn raw(job: Job) -> Result<Vec<Duration>, Failure> {
    let place = Place::new(&job);
    let (listener, address) = Listener::bind(&job, &place.path.to_string_lossy()).await?;
    let mut far = Far::start(job, address)?;
    let mut peers: Vec<Frames> = Vec::new();
    let asking = async {
        for _ in 0..job.peers {
            peers.push(listener.accept().await?);
        }
        let mut trips = Trips::new(job);
        let mut turn = 0;
        while let Some(start) = trips.start() {
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
        Ok::<_, Failure>(trips.times)
    };
    let times = tokio::select! {
        times = asking => times?,
        failed = far.figures() => return Err(early(failed)),
    };
    far.end().await?;
    Ok(times)
}

/// The far end has nothing to tell of round trips but that it failed.
fn early<T>(told: Result<T, Failure>) -> Failure {
    told.err().unwrap_or_else(|| Failure::failed("the far end ended before it was done"))
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
