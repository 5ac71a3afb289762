//! Whether an application that reads by itself looks again before it sleeps. In the midst of a stream of messages more is
//! there a few microseconds later, and to be woken for it costs both sides more than to look.
//!
//! Only on a runtime of one thread: there nobody else has the processor meanwhile, all its other tasks have their turns
//! between two looks, and each look is a call of the driver. With several threads it takes more than it gives.

use std::{pin::pin, task::Context};

use tokio::runtime::{Handle, RuntimeFlavor};

/// A read of so many bytes is one of a stream of messages.
const MUCH: usize = 2 << 10;

/// So often it looks again: for about as many microseconds.
const LOOKS: u32 = 40;

/// Where looking was in vain, up to this power of two of such reads are not followed by any.
const MOST_IN_VAIN: u32 = 8;

#[derive(Debug, Default)]
pub(super) struct Patience {
    /// How often it still looks.
    left: u32,
    /// How often in a row it has looked in vain.
    in_vain: u32,
    /// Reads that are not followed by looks.
    passed_over: u32,
}

impl Patience {
    /// So many bytes came.
    #[inline]
    pub(super) fn came(&mut self, bytes: usize) {
        if self.left > 0 && self.left < LOOKS {
            self.in_vain = 0;
        }
        self.left = 0;
        if bytes < MUCH {
            return;
        }
        match self.passed_over.checked_sub(1) {
            Some(fewer) => self.passed_over = fewer,
            None => self.left = LOOKS,
        }
    }

    /// Nothing is there. Whether to look again, when all others have had their turn.
    #[inline]
    pub(super) fn looks_again(&mut self) -> bool {
        let Some(fewer) = self.left.checked_sub(1) else { return false };
        let begins = self.left == LOOKS;
        self.left = fewer;
        if begins && !is_alone() {
            self.left = 0;
        } else if fewer == 0 {
            self.in_vain = (self.in_vain + 1).min(MOST_IN_VAIN);
            self.passed_over = 1 << self.in_vain;
        }
        self.left > 0
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

    /// How often it looks after a read of so many bytes, when nothing comes.
    fn looks(patience: &mut Patience, bytes: usize) -> u32 {
        patience.came(bytes);
        let looks = (0..2 * LOOKS).filter(|_| patience.looks_again()).count();
        assert_eq!(patience.left, 0, "it sleeps in the end");
        looks as u32
    }

    #[tokio::test]
    async fn who_looks_in_vain_looks_seldom() {
        let mut patience = Patience::default();
        assert_eq!(looks(&mut patience, MUCH - 1), 0, "a lone message is followed by sleep");
        let reads = 10_000;
        let looked = (0..reads).filter(|_| looks(&mut patience, MUCH) > 0).count();
        assert!((MOST_IN_VAIN as usize..60).contains(&looked), "{looked} of {reads}");
    }

    #[tokio::test]
    async fn who_finds_something_goes_on_looking() {
        let mut patience = Patience::default();
        (0..1000).for_each(|_| assert!(looks(&mut patience, MUCH) < LOOKS));
        // Once it is found, the next in vain is the first again.
        while patience.left == 0 {
            patience.came(MUCH);
        }
        for _ in 0..1000 {
            assert!(patience.looks_again());
            patience.came(MUCH);
            assert_eq!(patience.left, LOOKS);
        }
        assert_eq!(looks(&mut patience, MUCH), LOOKS - 1);
        assert_eq!((looks(&mut patience, MUCH), looks(&mut patience, MUCH)), (0, 0));
        assert_eq!(looks(&mut patience, MUCH), LOOKS - 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_several_threads_nobody_looks() {
        assert_eq!(looks(&mut Patience::default(), MUCH), 0);
    }
}
