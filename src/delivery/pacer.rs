//! Not more than so many in a second.

use std::time::Duration;

use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep_until},
};

use crate::sockets::after;

/// Who was held up may be so much late and still have all its turns: timers are no finer than a millisecond.
const LATE: Duration = Duration::from_millis(20);

/// Gives turns, one after another, evenly in time (GCRA, ITU-T I.371).
#[derive(Debug)]
pub(crate) struct Pacer {
    interval: Duration,
    /// When the next turn is; `None` before the first.
    next: Mutex<Option<Instant>>,
}

/// One turn. It counts when it is [taken](Self::take); dropped, it is the next one's. Without a pacer nothing counts.
#[derive(Default)]
pub(crate) struct Turn<'a>(Option<Next<'a>>);

struct Next<'a> {
    interval: Duration,
    at: MutexGuard<'a, Option<Instant>>,
}

impl Pacer {
    pub(crate) fn new(per_second: f64) -> Self {
        let interval = Duration::try_from_secs_f64(1.0 / per_second).unwrap_or(Duration::MAX);
        Self { interval, next: Mutex::new(None) }
    }

    /// Waits for the next turn.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let at = self.next.lock().await;
        if let Some(at) = *at {
            sleep_until(at).await;
        }
        Turn(Some(Next { interval: self.interval, at }))
    }

    /// The next turn, if it is now.
    pub(crate) fn try_turn(&self) -> Option<Turn<'_>> {
        let at = self.next.try_lock().ok()?;
        let is_now = at.is_none_or(|at| at <= Instant::now());
        is_now.then(|| Turn(Some(Next { interval: self.interval, at })))
    }
}

impl Turn<'_> {
    pub(crate) fn take(self) {
        let Some(Next { interval, mut at }) = self.0 else { return };
        let now = Instant::now();
        let earliest = now.checked_sub(LATE).unwrap_or(now);
        let from = at.unwrap_or(now).max(earliest);
        *at = Some(after(from, interval));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_come_evenly_and_one_that_was_not_taken_costs_nothing() {
        let (pacer, began) = (Pacer::new(10.0), Instant::now());
        for _ in 0..3 {
            pacer.turn().await.take();
        }
        assert_eq!(began.elapsed().as_millis(), 200);
        drop(pacer.turn().await);
        pacer.turn().await.take();
        assert_eq!(began.elapsed().as_millis(), 300);
        assert!(pacer.try_turn().is_none());
        // After a pause there is no crowd.
        tokio::time::advance(Duration::from_secs(5)).await;
        let before = Instant::now();
        for _ in 0..11 {
            pacer.turn().await.take();
        }
        assert!(before.elapsed() >= Duration::from_millis(900), "{:?}", before.elapsed());
    }
}
