//! Whether an application that reads by itself looks again before it sleeps. To be woken costs both sides more than to look
//! for some microseconds, and a processor that has halted takes longer to wake than a message takes to go.
//!
//! After *much* more is there soon: it is a stream of messages. The driver is asked, and only on a runtime of one thread:
//! there nobody else has the processor meanwhile. With several threads it takes more than it gives.
//!
//! After *little*, a request, an answer, some small messages, the next is there soon if that is how these two talk. The
//! socket itself is asked, too: on a runtime of several threads another one would have to wake to hear from the driver.
//!
//! All other tasks of a runtime's thread have their turns between two looks; the main task of one of several threads has
//! its own, where nothing else runs. Who looks in vain looks more and more seldom, so a
//! socket that rests, or whose peers take their time, costs what it did.

use std::{
    pin::pin,
    task::Context,
    time::{Duration, Instant},
};

use tokio::runtime::{Handle, RuntimeFlavor};

/// A read of so many bytes is much. The socket itself is asked for no more at once.
pub(super) const MUCH: usize = 32 << 10;

/// Where looking was in vain so often in a row, up to this power of two of reads are not followed by any.
const MOST_IN_VAIN: u32 = 8;

#[derive(Debug, Default)]
pub(super) struct Patience {
    now: Now,
    /// How often in a row it has looked in vain.
    in_vain: u32,
    /// Reads that are not followed by looks.
    passed_over: u32,
}

/// What follows the last read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Now {
    #[default]
    Sleeps,
    /// Once there is nothing to read.
    WillLook {
        little: bool,
    },
    Looks {
        until: Instant,
        little: bool,
    },
}

impl Patience {
    /// So many bytes came.
    #[inline]
    pub(super) fn came(&mut self, bytes: usize) {
        if matches!(self.now, Now::Looks { .. }) {
            self.in_vain = 0;
        }
        self.now = match self.passed_over.checked_sub(1) {
            Some(fewer) => {
                self.passed_over = fewer;
                Now::Sleeps
            }
            None => Now::WillLook { little: bytes < MUCH },
        };
    }

    /// Somebody else reads, and waits to be woken.
    pub(super) fn sleep(&mut self) {
        self.now = Now::Sleeps;
    }

    /// Nothing is there. Whether to look again, when all others have had their turn.
    #[inline]
    pub(super) fn looks_again(&mut self, busy_poll: Duration, is_plain: impl FnOnce() -> bool) -> bool {
        match self.now {
            Now::Sleeps => {}
            Now::WillLook { little } if !busy_poll.is_zero() && (little && is_plain() || is_alone()) => {
                self.now = Now::Looks { until: Instant::now() + busy_poll, little };
            }
            Now::Looks { until, .. } if Instant::now() < until => {}
            Now::WillLook { .. } => self.now = Now::Sleeps,
            Now::Looks { .. } => {
                self.now = Now::Sleeps;
                self.in_vain = (self.in_vain + 1).min(MOST_IN_VAIN);
                // The first time it may have been chance.
                self.passed_over = (1 << self.in_vain) - 2;
            }
        }
        self.now != Now::Sleeps
    }

    /// Whether a look asks the socket itself, besides the driver.
    pub(super) fn asks_the_socket(&self) -> bool {
        matches!(self.now, Now::Looks { little: true, .. })
    }
}

/// Whether the runtime that runs this has only this thread.
fn is_alone() -> bool {
    Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread)
}

/// Wakes the task when all others have had their turn and the driver has looked.
pub(super) fn after_the_others(cx: &mut Context<'_>) {
    let yields = pin!(tokio::task::yield_now()).poll(cx);
    debug_assert!(yields.is_pending(), "it is ready at its second look");
}

#[cfg(test)]
mod tests {
    use super::*;

    const LITTLE: usize = MUCH - 1;
    /// Longer than a test takes, and none at all.
    const LONG: Duration = Duration::from_secs(1000);
    const NONE: Duration = Duration::from_nanos(1);

    /// Whether it looks after a read of so many bytes, and nothing comes.
    fn looks_in_vain(patience: &mut Patience, bytes: usize) -> bool {
        patience.came(bytes);
        let looks = patience.looks_again(NONE, || true);
        while patience.looks_again(NONE, || true) {}
        assert_eq!(patience.now, Now::Sleeps);
        looks
    }

    #[tokio::test]
    async fn who_looks_in_vain_looks_seldom() {
        for bytes in [LITTLE, MUCH] {
            let mut patience = Patience::default();
            assert!((0..2).all(|_| looks_in_vain(&mut patience, bytes)), "once may be chance");
            let looked = (0..10_000).filter(|_| looks_in_vain(&mut patience, bytes)).count();
            assert!((MOST_IN_VAIN as usize..60).contains(&looked), "{looked} of 10,000");
        }
    }

    #[tokio::test]
    async fn who_finds_something_goes_on_looking() {
        for bytes in [LITTLE, MUCH] {
            let mut patience = Patience::default();
            for _ in 0..1000 {
                looks_in_vain(&mut patience, bytes);
            }
            // Once it is found, the next in vain is the first again.
            while patience.now == Now::Sleeps {
                patience.came(bytes);
            }
            for _ in 0..1000 {
                assert!(patience.looks_again(LONG, || true));
                assert_eq!(patience.asks_the_socket(), bytes == LITTLE);
                patience.came(bytes);
            }
            assert!((0..2).all(|_| looks_in_vain(&mut patience, bytes)));
            let passed_over = (0..3).map(|_| looks_in_vain(&mut patience, bytes)).collect::<Vec<_>>();
            assert_eq!(passed_over, [false, false, true]);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_several_threads_nobody_looks_for_more_of_a_stream() {
        assert!(!looks_in_vain(&mut Patience::default(), MUCH));
        assert!(looks_in_vain(&mut Patience::default(), LITTLE));
        let mut encrypted = Patience::default();
        encrypted.came(LITTLE);
        assert!(!encrypted.looks_again(LONG, || false), "only the driver knows");
    }

    #[tokio::test]
    async fn who_may_not_look_sleeps() {
        let mut patience = Patience::default();
        for bytes in [LITTLE, MUCH] {
            patience.came(bytes);
            assert!(!patience.looks_again(Duration::ZERO, || true));
        }
    }
}
