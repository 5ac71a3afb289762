//! Flow control between Ropewalk peers: the receiver says how much may be in flight.
//!
//! ```text
//!   sender (Granted)                                  receiver (Grants)
//!   sent ----------------------------------------->   received     must stay within the limit
//!                                                     taken        by the application
//!   limit <------------- CREDIT{taken, limit} -------  limit = taken + window
//! ```
//!
//! All counts are cumulative since the link began, so a credit command that says what an earlier one said changes
//! nothing, and the newest replaces all before it. A message costs its bytes plus 64
//! ([`MESSAGE_OVERHEAD`](crate::message::MESSAGE_OVERHEAD)) and needs credit for its whole cost, unless nothing is in
//! flight: otherwise a message larger than the window could never go.

use crate::{extension::Credit, misbehaved::Misbehaved};

/// A number of messages and what they cost in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Messages.
    pub messages: u64,
    /// Bytes, with the overhead of each message.
    pub bytes: u64,
}

impl Tally {
    /// Nothing.
    pub const ZERO: Self = Self { messages: 0, bytes: 0 };

    /// No bound.
    pub const MAX: Self = Self { messages: u64::MAX, bytes: u64::MAX };

    /// So many messages and bytes.
    pub const fn new(messages: u64, bytes: u64) -> Self {
        Self { messages, bytes }
    }

    /// Counts one message of this cost.
    #[inline]
    pub fn add(&mut self, cost: u64) {
        self.messages = self.messages.saturating_add(1);
        self.bytes = self.bytes.saturating_add(cost);
    }

    /// Counts one message of this cost back.
    #[inline]
    pub fn remove(&mut self, cost: u64) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(cost);
    }

    /// Whether nothing is counted.
    #[inline]
    pub fn is_zero(self) -> bool {
        self.messages == 0
    }

    /// Both together.
    #[inline]
    pub fn plus(self, other: Self) -> Self {
        Self { messages: self.messages.saturating_add(other.messages), bytes: self.bytes.saturating_add(other.bytes) }
    }

    /// What is left when the other is taken away; nothing if it is more.
    #[inline]
    pub fn minus(self, other: Self) -> Self {
        Self { messages: self.messages.saturating_sub(other.messages), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    /// Whether one more message of this cost stays within `limit`. The byte bound is not overshot, except by a message
    /// that is alone.
    #[inline]
    pub fn admits(self, cost: u64, limit: Self) -> bool {
        self.messages < limit.messages && (self.bytes.saturating_add(cost) <= limit.bytes || self.messages == 0)
    }
}

/// The sender's side: what a receiver lets us have in flight.
#[derive(Debug, Clone)]
pub struct Granted {
    limit: Tally,
    taken: u64,
    sent: Tally,
}

impl Granted {
    /// The window a receiver's hello opens.
    pub fn new(window: Tally) -> Self {
        Self { limit: window, taken: 0, sent: Tally::ZERO }
    }

    /// Whether a message of this cost may go.
    #[inline]
    pub fn covers(&self, cost: u64) -> bool {
        self.sent.messages < self.limit.messages
            && (self.sent.bytes.saturating_add(cost) <= self.limit.bytes || self.sent.messages == self.taken)
    }

    /// Takes credit for a message of this cost. Call only if [`covers`](Self::covers) said yes.
    #[inline]
    pub fn spend(&mut self, cost: u64) {
        debug_assert!(self.covers(cost), "sent without credit");
        self.sent.add(cost);
    }

    /// Takes credit for so many messages at once, each of which is [covered](Self::covers) after those before it.
    #[inline]
    pub fn spend_all(&mut self, tally: Tally) {
        self.sent = self.sent.plus(tally);
        debug_assert!(self.sent.messages <= self.limit.messages, "sent without credit");
    }

    /// The receiver's word on what it took and what it allows now. What it said before that changes nothing, should it
    /// come late.
    ///
    /// # Errors
    /// When it takes back what it gave, or counts what was never sent.
    pub fn grant(&mut self, credit: &Credit) -> Result<(), Misbehaved> {
        if credit.taken > self.sent.messages {
            return Err(Misbehaved::ImpossibleCount);
        }
        let less = [credit.taken < self.taken, credit.messages < self.limit.messages, credit.bytes < self.limit.bytes];
        let more = [credit.taken > self.taken, credit.messages > self.limit.messages, credit.bytes > self.limit.bytes];
        match (less.contains(&true), more.contains(&true)) {
            (true, true) => return Err(Misbehaved::CreditWentBack),
            (true, false) => return Ok(()),
            (false, _) => {}
        }
        self.taken = credit.taken;
        self.limit = Tally::new(credit.messages, credit.bytes);
        Ok(())
    }

    /// Messages that credit was taken for, since the link began.
    pub fn sent(&self) -> u64 {
        self.sent.messages
    }

    /// Messages the receiver's application has taken, as far as we were told.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// What may be sent now, and what it may cost.
    pub fn left(&self) -> Tally {
        self.limit.minus(self.sent)
    }
}

/// The receiver's side: what we let a sender have in flight, and what we owe it.
#[derive(Debug, Clone)]
pub struct Grants {
    window: Tally,
    received: Tally,
    taken: Tally,
    told_taken: u64,
    told_limit: Tally,
}

/// Whether the sender should be told of new credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// There is nothing new to tell.
    No,
    /// It can wait for company.
    Later,
    /// It is due within a millisecond: the sender has next to none left.
    Soon,
    /// Half the window has come back: tell now, so that the sender need not stop.
    Now,
}

impl Grants {
    /// The window our hello opened.
    pub fn new(window: Tally) -> Self {
        Self { window, received: Tally::ZERO, taken: Tally::ZERO, told_taken: 0, told_limit: window }
    }

    /// The window as it is now.
    #[inline]
    pub fn window(&self) -> Tally {
        self.window
    }

    /// Widens the window; a link that began with nothing gets its share when there is some.
    pub fn widen(&mut self, window: Tally) {
        self.window.messages = self.window.messages.max(window.messages);
        self.window.bytes = self.window.bytes.max(window.bytes);
    }

    /// So much came at once. False: it may be more than the sender had credit for, and is to be looked at one by one with
    /// [`receive`](Self::receive). True: it is counted.
    #[inline]
    pub fn receive_all(&mut self, came: Tally) -> bool {
        let received = self.received.plus(came);
        let covered = received.messages <= self.told_limit.messages && received.bytes <= self.told_limit.bytes;
        if covered {
            self.received = received;
        }
        covered
    }

    /// A message of this cost came.
    ///
    /// # Errors
    /// When the sender had no credit for it.
    pub fn receive(&mut self, cost: u64) -> Result<(), Misbehaved> {
        let before = self.received;
        self.received.add(cost);
        let alone = before.messages <= self.told_taken;
        if self.received.messages > self.told_limit.messages || (self.received.bytes > self.told_limit.bytes && !alone)
        {
            return Err(Misbehaved::CreditExceeded);
        }
        Ok(())
    }

    /// The application took these.
    #[inline]
    pub fn take(&mut self, taken: Tally) -> Due {
        self.taken = self.taken.plus(taken);
        self.due()
    }

    /// How much more may be taken before half the window has come back: at least one message.
    pub fn until_due(&self) -> Tally {
        let limit = self.taken.plus(self.window);
        let half = Tally::new(self.window.messages.div_ceil(2), self.window.bytes.div_ceil(2));
        let left = half.minus(limit.minus(self.told_limit));
        Tally::new(left.messages.max(1), left.bytes.max(1))
    }

    /// Whether the sender should hear of it.
    #[inline]
    pub fn due(&self) -> Due {
        let limit = self.taken.plus(self.window);
        let news = Tally {
            messages: limit.messages.saturating_sub(self.told_limit.messages),
            bytes: limit.bytes.saturating_sub(self.told_limit.bytes),
        };
        if news.messages == 0 && news.bytes == 0 {
            return Due::No;
        }
        if news.messages >= self.window.messages.div_ceil(2) || news.bytes >= self.window.bytes.div_ceil(2) {
            return Due::Now;
        }
        let left = self.told_limit.minus(self.received);
        if left.messages == 0 || left.bytes < self.window.bytes / 4 { Due::Soon } else { Due::Later }
    }

    /// The credit to tell, which from now on counts as told.
    pub fn grant(&mut self) -> Credit {
        let limit = self.taken.plus(self.window);
        // A byte limit that was overdrawn by one large message does not go back.
        self.told_limit.messages = self.told_limit.messages.max(limit.messages);
        self.told_limit.bytes = self.told_limit.bytes.max(limit.bytes);
        self.told_taken = self.taken.messages;
        Credit { taken: self.told_taken, messages: self.told_limit.messages, bytes: self.told_limit.bytes }
    }

    /// Messages received since the link began.
    pub fn received(&self) -> u64 {
        self.received.messages
    }

    /// Messages the application has taken since the link began.
    pub fn taken(&self) -> u64 {
        self.taken.messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_comes_at_once_is_counted_like_one_by_one_or_not_at_all() {
        let window = Tally::new(10, 1000);
        for (messages, cost) in [(10, 100), (11, 10), (3, 400), (1, 5000)] {
            let (mut at_once, mut single) = (Grants::new(window), Grants::new(window));
            let verdict = (0..messages).try_for_each(|_| single.receive(cost));
            if at_once.receive_all(Tally::new(messages, messages * cost)) {
                assert_eq!((verdict, at_once.received), (Ok(()), single.received));
            } else {
                assert_eq!(at_once.received, Tally::ZERO);
            }
        }
        assert!(Grants::new(window).receive_all(window), "the common case is found");
    }

    #[test]
    fn until_due_says_when_half_a_window_has_come_back() {
        let mut grants = Grants::new(Tally::new(10, 10_000));
        for left in (1..=5).rev() {
            assert_eq!(grants.until_due().messages, left);
            grants.receive(100).unwrap();
            assert_eq!(grants.take(Tally::new(1, 100)) == Due::Now, left == 1);
        }
        grants.receive(6000).unwrap();
        assert_eq!(grants.take(Tally::new(1, 6000)), Due::Now);
        assert_eq!(grants.until_due(), Tally::new(1, 1), "never nothing");
    }

    #[test]
    fn credit_comes_back_at_half_a_window() {
        let mut grants = Grants::new(Tally::new(10, 10_000));
        let mut granted = Granted::new(grants.window());
        for _ in 0..10 {
            assert!(granted.covers(100));
            granted.spend(100);
            grants.receive(100).unwrap();
        }
        assert!(!granted.covers(100));
        assert_eq!(grants.receive(100), Err(Misbehaved::CreditExceeded));
        for _ in 0..4 {
            assert_eq!(grants.take(Tally::new(1, 100)), Due::Soon);
        }
        assert_eq!(grants.take(Tally::new(1, 100)), Due::Now);
        granted.grant(&grants.grant()).unwrap();
        assert_eq!(granted.left().messages, 5);
        assert_eq!(grants.due(), Due::No);
    }

    #[test]
    fn a_message_larger_than_the_window_goes_alone() {
        let mut grants = Grants::new(Tally::new(10, 1000));
        let mut granted = Granted::new(grants.window());
        assert!(granted.covers(5000));
        granted.spend(5000);
        grants.receive(5000).unwrap();
        assert!(!granted.covers(64) && !granted.covers(5000));
        assert_eq!(grants.take(Tally::new(1, 5000)), Due::Now);
        granted.grant(&grants.grant()).unwrap();
        assert!(granted.covers(5000));
        granted.spend(100);
        grants.receive(100).unwrap();
        assert!(!granted.covers(5000) && granted.covers(900));
        assert_eq!(grants.receive(5000), Err(Misbehaved::CreditExceeded));
    }

    #[test]
    fn lies_about_credit_are_named() {
        let mut granted = Granted::new(Tally::new(10, 1000));
        granted.spend(100);
        let credit = |taken, messages, bytes| Credit { taken, messages, bytes };
        assert_eq!(granted.grant(&credit(2, 20, 2000)), Err(Misbehaved::ImpossibleCount));
        assert_eq!(granted.grant(&credit(1, 9, 2000)), Err(Misbehaved::CreditWentBack));
        assert_eq!(granted.grant(&credit(1, 11, 999)), Err(Misbehaved::CreditWentBack));
        granted.grant(&credit(1, 11, 1100)).unwrap();
        assert_eq!(granted.grant(&credit(0, 12, 1100)), Err(Misbehaved::CreditWentBack));
        // What was said before comes late.
        granted.grant(&credit(0, 11, 1100)).unwrap();
        assert_eq!((granted.taken(), granted.left()), (1, Tally::new(10, 1000)));
    }

    proptest! {
        /// In flight never passes the window but by one lone message, and everything goes through in the end, in whatever
        /// order the credit comes.
        #[test]
        fn what_is_in_flight_stays_within_the_window(
            messages in 1u64..20, bytes in 64u64..5_000,
            steps in prop::collection::vec((any::<u8>(), 64u64..3_000), 1..400),
        ) {
            let window = Tally::new(messages, bytes);
            let mut grants = Grants::new(window);
            let mut granted = Granted::new(window);
            let (mut inbox, mut late) = (alloc::collections::VecDeque::new(), alloc::vec::Vec::new());
            for (what, cost) in steps {
                match what % 6 {
                    3 => late.push(grants.grant()),
                    4 if !late.is_empty() => {
                        let credit = late.swap_remove(usize::from(what) % late.len());
                        prop_assert_eq!(granted.grant(&credit), Ok(()));
                    }
                    0 | 1 => if granted.covers(cost) {
                        granted.spend(cost);
                        prop_assert_eq!(grants.receive(cost), Ok(()));
                        inbox.push_back(cost);
                    },
                    2 => if inbox.pop_front().is_some_and(|cost| grants.take(Tally::new(1, cost)) == Due::Now) {
                        prop_assert_eq!(granted.grant(&grants.grant()), Ok(()));
                    },
                    _ => if grants.due() > Due::No {
                        prop_assert_eq!(granted.grant(&grants.grant()), Ok(()));
                    },
                }
                let held: u64 = inbox.iter().sum();
                prop_assert!(inbox.len() as u64 <= messages);
                prop_assert!(held <= bytes || inbox.len() == 1 || inbox.front().is_some_and(|first| held - first <= bytes));
            }
            inbox.drain(..).for_each(|cost| { grants.take(Tally::new(1, cost)); });
            granted.grant(&grants.grant()).unwrap();
            prop_assert!(granted.covers(1_000_000), "an empty link takes any message");
        }
    }
}
