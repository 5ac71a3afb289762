//! A message that the application has, until it says what becomes of it.

use std::{fmt, ops::Deref, sync::Arc, time::Duration};

use bytes::Bytes;
use ropewalk_patterns::{
    Message,
    delivery::{Confirms, Held, LONGEST_NAME, MessageId},
    extension::delivery::What,
};

use crate::{error::AckError, events::PeerInfo, hub::Hub};

/// A lease lasts so many ticks.
pub(crate) const TICKS: u32 = 8;

/// Whom a delivery is to be settled with.
pub(crate) trait Settles: Send + Sync {
    /// False: it was taken back before.
    fn ack(&self, held: &Held) -> bool;
    fn give_up(&self, held: &Held, what: What) -> bool;
    fn extend(&self, held: &Held, ticks: u64) -> bool;
    /// It is being written down that this is done with.
    fn finish(&self, held: &Held) -> bool;
}

impl<P: Confirms> Settles for Hub<P> {
    fn ack(&self, held: &Held) -> bool {
        self.act(|pattern, core| pattern.inbound().ack(held, core))
    }

    fn give_up(&self, held: &Held, what: What) -> bool {
        self.act(|pattern, core| pattern.inbound().give_up(held, what, core))
    }

    fn extend(&self, held: &Held, ticks: u64) -> bool {
        self.act(|pattern, _| pattern.inbound().extend(held, ticks))
    }

    fn finish(&self, held: &Held) -> bool {
        self.act(|pattern, _| pattern.inbound().finish(held))
    }
}

/// A message that was handed out, until it is settled. Dropped before that, it is given back, and goes to somebody else.
///
/// It reads like the [`Message`] it brought. What came from a sender that does not ask for confirmation is settled
/// already, and to settle it again does nothing.
pub struct Delivery {
    pub(crate) message: Message,
    pub(crate) peer: Arc<PeerInfo>,
    pub(crate) open: Option<Open>,
}

/// What is to be settled.
pub(crate) struct Open {
    pub(crate) held: Held,
    pub(crate) settles: Arc<dyn Settles>,
    #[cfg(feature = "spool")]
    pub(crate) inbox: Option<Arc<super::InboxLog>>,
    /// How long a tick is.
    pub(crate) tick: Duration,
}

impl Open {
    /// The application is done with it.
    pub(super) fn ack(&self) -> Result<(), AckError> {
        if self.settles.ack(&self.held) { Ok(()) } else { Err(AckError::TakenBack) }
    }
}

impl Delivery {
    /// The message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Who sent it.
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    /// Which message it is, however often it comes; `None` from a sender that does not ask for confirmation. Kept in one
    /// transaction with what the message does, it makes sure that that is done once.
    pub fn id(&self) -> Option<MessageId> {
        self.open.as_ref().map(|open| open.held.id)
    }

    /// The how-manieth delivery this is, from 1. After the sender was restarted, a message that may have been sent before
    /// begins at 2.
    pub fn attempt(&self) -> u32 {
        self.open.as_ref().map_or(1, |open| open.held.attempt)
    }

    /// All messages of the same stream with a smaller seq are done with: their identities need not be kept any longer, only
    /// the highest floor. What comes below it, because its sender crashed before it had written that down, is an old copy.
    pub fn floor(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.held.floor)
    }

    /// The application is done with it: the sender may forget it.
    ///
    /// `Ok` says that it is never handed out again by this socket (nor, with an [`inbox`](crate::Builder::inbox), by any
    /// later one of that directory, for it was written down). The sender hears of it soon; if it is lost before that, the
    /// message comes again and is passed over here. It may also go to another receiver then.
    ///
    /// # Errors
    /// It was taken back before, because its [`lease`](crate::Builder::lease) was over: another may have it now. Or it
    /// could not be written into the inbox: then it is given back.
    ///
    /// # Cancel safety
    /// Dropped when it was polled, it goes its way all the same, and the sender hears of it: it is for when the work is
    /// done. Only where the inbox had no room yet the message is given back.
    pub async fn ack(mut self) -> Result<(), AckError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        #[cfg(feature = "spool")]
        if let Some(inbox) = open.inbox.clone() {
            // What was taken back is not written down: it is handed out again. And from here on it is not taken back.
            return if open.settles.finish(&open.held) { inbox.ack(open).await } else { Err(AckError::TakenBack) };
        }
        open.ack()
    }

    /// The application could not do it now: the sender gives it to somebody again after this time, as another attempt. A
    /// long time may hold up others: a sender has at most 65,536 messages, or half of its `send_hwm_bytes`, between the
    /// oldest that is not settled and the newest that it gives to anybody.
    ///
    /// # Errors
    /// It was taken back before.
    pub fn nack(mut self, delay: Duration) -> Result<(), AckError> {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.give_up(What::Release { millis })
    }

    /// It is to be given to nobody again: the sender puts it to its dead letters, with this reason (at most 255 bytes of
    /// it).
    ///
    /// # Errors
    /// It was taken back before.
    pub fn reject(mut self, reason: impl AsRef<str>) -> Result<(), AckError> {
        let reason = reason.as_ref();
        let end = (0..=LONGEST_NAME.min(reason.len())).rev().find(|&end| reason.is_char_boundary(end));
        let reason = end.and_then(|end| reason.get(..end)).unwrap_or_default();
        self.give_up(What::Reject { reason: Bytes::copy_from_slice(reason.as_bytes()) })
    }

    /// The application needs more time: the [`lease`](crate::Builder::lease) lasts at least so long from now on.
    ///
    /// # Errors
    /// It was taken back before.
    pub fn extend(&self, time: Duration) -> Result<(), AckError> {
        let Some(open) = &self.open else { return Ok(()) };
        let ticks = time.as_nanos().div_ceil(open.tick.as_nanos().max(1)).saturating_add(1);
        match open.settles.extend(&open.held, u64::try_from(ticks).unwrap_or(u64::MAX)) {
            true => Ok(()),
            false => Err(AckError::TakenBack),
        }
    }

    fn give_up(&mut self, what: What) -> Result<(), AckError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        if open.settles.give_up(&open.held, what) { Ok(()) } else { Err(AckError::TakenBack) }
    }
}

impl Deref for Delivery {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        drop(self.open.take().map(GivesBack::from));
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("id", &self.id())
            .field("attempt", &self.attempt())
            .field("message", &self.message)
            .finish_non_exhaustive()
    }
}

/// Given back unless it is kept.
pub(super) struct GivesBack(Option<Open>);

impl From<Open> for GivesBack {
    fn from(open: Open) -> Self {
        Self(Some(open))
    }
}

impl GivesBack {
    #[cfg(feature = "spool")]
    pub(super) fn keep(mut self) -> Option<Open> {
        self.0.take()
    }
}

impl Drop for GivesBack {
    fn drop(&mut self) {
        if let Some(open) = &self.0 {
            // If it was taken back, somebody else has it already.
            let _taken_back = open.settles.give_up(&open.held, What::Release { millis: 0 });
        }
    }
}
