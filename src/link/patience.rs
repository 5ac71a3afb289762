//! Whether an application that reads by itself looks again before it sleeps. To be woken costs both sides more than to look
//! for some microseconds, and a processor that has halted takes longer to wake than a message takes to go.
//!
//! The socket itself is asked, where there is a plain one, and the driver hears nothing of it meanwhile: on a runtime of
//! several threads it would wake another one for nothing. On a runtime of one thread that is for *little*: a request, an
//! answer, some small messages, the next of which is there soon if that is how these two talk. After *much*, which is a
//! stream of messages, the driver is asked there, and what comes is read to where it stays.
//!
//! All other tasks of a runtime's thread have their turns between two looks, on a runtime of several threads every few
//! microseconds. Who looks in vain looks more and more seldom, so a socket that rests, or whose peers take their time,
//! costs what it did.

use std::{
    pin::pin,
    task::Context,
    time::{Duration, Instant},
};

use tokio::runtime::{Handle, RuntimeFlavor};

/// A read of so many bytes is much. The socket itself is asked for no more at once.
pub(super) const MUCH: usize = 32 << 10;

/// On a runtime of several threads each giving way wakes another thread, which finds nothing to do. So it is not done after
/// each look there, but after as long as a task may well take for anything.
const TURN: Duration = Duration::from_micros(10);

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
    /// Once there is nothing to read, at the socket itself or at what the driver knows.
    WillLook { since: Instant, by_socket: bool },
    Looks {
        until: Instant,
        by_socket: bool,
        /// How long between two turns of the others, and when the next is due.
        turn: Duration,
        next: Instant,
    },
}

/// What to do where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Sleep,
    LookAtOnce,
    LookAfterTheOthers,
}

/// Where to read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Driver,
    Socket,
    /// What was there is read.
    AfterTheOthers,
}

impl Patience {
    /// So many bytes came, and whether the socket itself may be asked for more.
    #[inline]
    pub(super) fn came(&mut self, bytes: usize, may_ask: bool) {
        if matches!(self.now, Now::Looks { .. }) {
            self.in_vain = 0;
        }
        self.now = match self.passed_over.checked_sub(1) {
            Some(fewer) => {
                self.passed_over = fewer;
                Now::Sleeps
            }
            None => {
                let by_socket = may_ask && (bytes < MUCH || !is_alone());
                Now::WillLook { since: Instant::now(), by_socket }
            }
        };
    }

    /// Somebody else reads, and waits to be woken.
    pub(super) fn sleep(&mut self) {
        self.now = Now::Sleeps;
    }

    #[inline]
    pub(super) fn next(&self) -> Look {
        match self.now {
            Now::WillLook { by_socket: true, .. } => Look::AfterTheOthers,
            Now::Looks { by_socket: true, .. } => Look::Socket,
            _ => Look::Driver,
        }
    }

    /// Nothing is there.
    #[inline]
    pub(super) fn found_nothing(&mut self, busy_poll: Duration) -> Then {
        if self.now == Now::Sleeps {
            return Then::Sleep;
        }
        let now = Instant::now();
        if let Now::WillLook { since, by_socket } = self.now {
            let alone = is_alone();
            if busy_poll.is_zero() || !(by_socket || alone) {
                self.now = Now::Sleeps;
            } else {
                let turn = if alone { Duration::ZERO } else { TURN };
                self.now = Now::Looks { until: now + busy_poll, by_socket, turn, next: now + turn };
                if by_socket && now >= since + TURN {
                    // The application took its time, and something may be there.
                    return Then::LookAtOnce;
                }
            }
        }
        let Now::Looks { until, turn, next, .. } = &mut self.now else { return Then::Sleep };
        if now >= *until {
            self.now = Now::Sleeps;
            self.in_vain = (self.in_vain + 1).min(MOST_IN_VAIN);
            // The first time it may have been chance.
            self.passed_over = (1 << self.in_vain) - 2;
            Then::Sleep
        } else if now < *next {
            Then::LookAtOnce
        } else {
            *next = now + *turn;
            Then::LookAfterTheOthers
        }
    }
}

/// Whether the runtime that runs this has only this thread.
fn is_alone() -> bool {
    Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread)
}

/// Wakes the task when all others have had their turn. Where no other thread can take it, the driver has looked then, too.
pub(super) fn after_the_others(cx: &mut Context<'_>) {
    if is_alone() {
        let yields = pin!(tokio::task::yield_now()).poll(cx);
        debug_assert!(yields.is_pending(), "it is ready at its second look");
    } else {
        cx.waker().wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than a test takes, and none at all.
    const LONG: Duration = Duration::from_secs(1000);
    const NONE: Duration = Duration::from_nanos(1);

    const LITTLE: usize = MUCH - 1;

    /// Whether it looks after a read of so many bytes, and nothing comes.
    fn looks_in_vain(patience: &mut Patience, bytes: usize) -> bool {
        patience.came(bytes, true);
        let looks = patience.found_nothing(NONE) != Then::Sleep;
        while patience.found_nothing(NONE) != Then::Sleep {}
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
                patience.came(bytes, true);
            }
            for _ in 0..1000 {
                assert_ne!(patience.found_nothing(LONG), Then::Sleep);
                assert_eq!(patience.next() == Look::Socket, bytes == LITTLE);
                patience.came(bytes, true);
            }
            assert!((0..2).all(|_| looks_in_vain(&mut patience, bytes)));
            let passed_over = (0..3).map(|_| looks_in_vain(&mut patience, bytes)).collect::<Vec<_>>();
            assert_eq!(passed_over, [false, false, true]);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_several_threads_only_the_socket_is_asked() {
        for bytes in [LITTLE, MUCH] {
            let mut patience = Patience::default();
            patience.came(bytes, true);
            assert_ne!(patience.found_nothing(LONG), Then::Sleep);
            assert_eq!(patience.next(), Look::Socket);
            patience.came(bytes, false);
            assert_eq!(patience.found_nothing(LONG), Then::Sleep, "only the driver knows");
        }
    }

    #[tokio::test]
    async fn the_others_have_their_turn_after_each_look() {
        let mut patience = Patience::default();
        patience.came(LITTLE, true);
        std::thread::sleep(TURN);
        assert_eq!(patience.found_nothing(LONG), Then::LookAtOnce, "something may have come meanwhile");
        assert!((0..100).all(|_| patience.found_nothing(LONG) == Then::LookAfterTheOthers));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_several_threads_the_others_have_their_turn_now_and_then() {
        let mut patience = Patience::default();
        patience.came(LITTLE, true);
        for _ in 0..10 {
            let begun = Instant::now();
            while patience.found_nothing(LONG) == Then::LookAtOnce {}
            assert!(begun.elapsed() < LONG);
            let next = match patience.now {
                Now::Looks { next, .. } => next,
                other => panic!("{other:?}"),
            };
            assert!(next > begun + TURN && next <= Instant::now() + TURN);
        }
    }

    #[tokio::test]
    async fn who_may_not_look_sleeps() {
        let mut patience = Patience::default();
        for bytes in [LITTLE, MUCH] {
            patience.came(bytes, true);
            assert_eq!(patience.found_nothing(Duration::ZERO), Then::Sleep);
        }
    }
}
