//! Messages that are kept until the far application has confirmed them.
//!
//! A [`Push`](crate::Push) that is given a directory keeps what it accepts in a [spool](crate::spool) until some
//! [`Pull`](crate::Pull) says that it is done with it; one that is only asked for [`Guarantee::AtLeastOnce`] keeps it in
//! memory. The receiver needs no option for that: [`recv`](crate::Pull::recv) is done with a message when it is handed
//! out, [`recv_delivery`](crate::Pull::recv_delivery) when the application says so.
//!
//! ```
//! use ropewalk::{Pull, Push, spool::Durability};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! let push = Push::builder()
//!     .spool(directory.path().join("orders"), Durability::Always)
//!     .bind("tcp://127.0.0.1:0")
//!     .await?;
//! push.send("one coat").await?; // it is on the disk now, whoever crashes
//!
//! let pull = Pull::connect(push.address().unwrap().to_string()).await?;
//! let order = pull.recv_delivery().await?;
//! assert_eq!((order.text()?, order.attempt()), ("one coat", 1));
//! order.ack().await?; // done: it is taken off the disk over there
//!
//! let (delivered, confirmed) = tokio::join!(push.deliver("two hats"), async {
//!     pull.recv_delivery().await?.ack().await?;
//!     Ok::<_, Box<dyn std::error::Error>>(())
//! });
//! delivered?; // somebody has done it
//! confirmed?;
//! # push.close().await; pull.close().await; Ok(()) }
//! ```
//!
//! # What each level promises, and costs
//! | how it is sent | `send` returns when | a process killed | a power cut | costs |
//! |---|---|---|---|---|
//! | plain | it is in a queue | what is queued or in doubt is lost, and counted | same | nothing |
//! | [`Guarantee::AtLeastOnce`] | it is in a queue | the sender's: lost; a receiver's: goes to another | same | a copy in memory until it is confirmed |
//! | spool, `Durability::Os` | the system has it | nothing is lost | the last moments may be, and are named | a write for many |
//! | spool, `Durability::Every(d)` | the system has it | nothing is lost | at most what came in `d` | a sync each `d` |
//! | spool, `Durability::Always` | the disk has it | nothing is lost | nothing is lost | a sync for all that come while one runs |
//!
//! One who sends one message after another waits for each: [`send_all`](crate::Push::send_all) and
//! [`sink`](crate::Push::sink) take all in first and wait once; `benches/spool` has a row for each.
//!
//! | how it is received | a receiver killed |
//! |---|---|
//! | `recv` | a message that was handed out and not worked on is lost |
//! | `recv_delivery`, `ack` after the work | it comes again: done twice if the kill came between the work and `ack` |
//! | the same, with [`inbox`](crate::Builder::inbox) | the same; and what was confirmed is never done again, whatever the sender did not hear |
//! | the same, [`id`](Delivery::id) kept in one transaction with the work | done once: [`Inbox`], or a unique key in your database, tells what came before |
//!
//! A [`Req`](crate::Req) that is given a directory keeps its requests until they are answered:
//!
//! | how it is asked | the requester killed |
//! |---|---|
//! | `request` | it is asked again, and its answer is for [`recover`](crate::Req::recover); one whose answer was handed out is settled |
//! | `request(..).answered()`, `ack` after the work | the same; until `ack` it is asked again, and answered again |
//!
//! Whoever answers may be asked the same more than once, as the same [`Request::id`](crate::Request::id):
//!
//! | how it is answered | a request that comes again |
//! |---|---|
//! | `reply` | is handed out again, and may be done twice |
//! | the same, of a [`Rep`](crate::Rep) with a directory | is given the answer that was kept. It is done twice if the answer is not there (a kill between the work and `reply`, or a [`Request`](crate::Request) that was dropped after it; no room for more answers; a disk that failed; a power cut, unless `Durability::Always`), if another `Rep` is asked, or if the requester has another key |
//! | `id()` and the answer kept in one transaction with the work | is given that answer: done once. Those below [`Request::floor`](crate::Request::floor) come no more |
//!
//! Answers are kept for the key that the requester's transport has proven, where it does: nobody else is given them.
//! A plain ZeroMQ peer may be asked, too; it cannot tell. Nor can a `Rep` of whoever does not keep its requests.
//!
//! What no library can do: when a worker has done the work and dies before it could say so, the message goes to another.
//! Only work that keeps the message's identity where it keeps its result, in one transaction, is done once in effect.
//!
//! # What happens when
//! | what | then |
//! |---|---|
//! | no receiver is there | `send` accepts until the quota is used up, then waits |
//! | a receiver is lost, or drops a [`Delivery`] | what it had not confirmed goes to the next, as another attempt |
//! | a receiver keeps a message longer than its [`lease`](crate::Builder::lease) | it is taken back, and goes to another; its `ack` is refused |
//! | a message was tried [`max_attempts`](crate::Builder::max_attempts) times, or rejected | it goes to the dead letters, beside the spool, to be listed, sent again or purged |
//! | a receiver dies of a message, each time it gets it | all that it had is tried again. From half of the attempts on each of these goes alone, to a receiver that has nothing else: so only that one comes to the dead letters |
//! | the sender is killed | it goes on where it was when the directory is opened again; what was in doubt comes again, and receivers pass over what they have done |
//! | the disk is full | `send` waits; messages go on being delivered, which makes room |
//! | the disk fails | `send` fails and says so until the directory is opened again |
//! | the disk has lost what it had confirmed | where opening sees it (files that are gone, heads, the last segment) it refuses and names it, unless told to [skip](crate::spool::OnDamage::Skip) it. In the midst of a long log it is met when that is read: what is lost is passed over, and told ([`SpoolDamaged`](crate::Event::SpoolDamaged), and [`Lost`](crate::Event::Lost) or a gap); `ropewalk spool verify` reads all |
//! | the directory was copied, and both copies send | the receivers tell one of them, which takes another name for its stream; nobody tells one that asks: do not put back the directory of a `Req` from a copy |
//! | a peer cannot confirm (another ZeroMQ) | it is not linked, and an event says so; but it may be asked |
//! | a request is not answered in time, or its peer is lost or drops it | it is asked again, of the next, who has twice the time if it was the time; after [`max_attempts`](crate::Builder::max_attempts) tries in vain that is its answer |

#[cfg(feature = "spool")]
mod answered;
#[cfg(feature = "spool")]
mod answers;
#[cfg(feature = "spool")]
mod asking;
#[cfg(feature = "spool")]
mod dead;
#[cfg(feature = "spool")]
pub(crate) mod disk;
#[cfg(feature = "spool")]
mod followers;
#[cfg(feature = "spool")]
mod inbox;
mod keeper;
mod lane;
mod pacer;
mod received;
#[cfg(feature = "spool")]
mod requests;
#[cfg(feature = "spool")]
pub(crate) mod role;
mod tasks;

use std::{
    sync::{
        Arc, Once,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::timeout;

#[cfg(feature = "spool")]
pub use self::answered::Answered;
#[cfg(feature = "spool")]
pub use self::dead::{DeadLetter, DeadLetters};
#[cfg(feature = "spool")]
pub(crate) use self::inbox::InboxLog;
pub use self::received::Delivery;
#[cfg(feature = "spool")]
pub(crate) use self::{
    answers::{Answers, Todo, refuse},
    requests::Requests,
};
pub(crate) use self::{
    keeper::Keeper,
    lane::Fate,
    pacer::{Pacer, Turn},
    received::{Open, TICKS},
    tasks::Tasks,
};
#[cfg(feature = "spool")]
use crate::spool::{RecoveryReport, Spool};
pub use ropewalk_patterns::delivery::{Claim, Inbox, MessageId};

/// What a socket does about a message whose receiver is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Guarantee {
    /// It is in doubt, and counted: [`PeerDown`](crate::Event::PeerDown).
    #[default]
    AtMostOnce,
    /// It is kept until its receiver has confirmed it, and given to another if need be. It may be done twice.
    AtLeastOnce,
}

/// When a socket or a subscriber ends, who waits for a disk that is full or slow waits so long.
const FOR_A_DISK: Duration = Duration::from_secs(5);

/// What a socket has besides its hub.
#[derive(Debug)]
pub(crate) struct Kept {
    /// It keeps what it sends.
    pub(crate) keeper: Option<Arc<Keeper>>,
    /// It keeps what it asks.
    #[cfg(feature = "spool")]
    pub(crate) requests: Option<Arc<Requests>>,
    /// It keeps what it answers.
    #[cfg(feature = "spool")]
    pub(crate) answers: Option<Arc<Answers>>,
    /// It does more than receiving.
    pub(crate) receives: Option<Box<Receives>>,
    pub(crate) tasks: Tasks,
    /// What was done cannot be written down any more.
    failed: AtomicBool,
    /// Somebody looks after the leases of what was handed out.
    pub(crate) watches: Once,
}

/// What is done about each message that is received.
#[derive(Debug, Default)]
pub(crate) struct Receives {
    /// It is written down when the application is done with it.
    #[cfg(feature = "spool")]
    pub(crate) inbox: Option<Arc<InboxLog>>,
    /// It waits for its turn.
    pub(crate) pacer: Option<Pacer>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            keeper: None,
            #[cfg(feature = "spool")]
            requests: None,
            #[cfg(feature = "spool")]
            answers: None,
            receives: None,
            tasks: Tasks::default(),
            failed: AtomicBool::new(false),
            watches: Once::new(),
        }
    }
}

impl Kept {
    /// Of a socket that keeps what it sends.
    pub(crate) fn sending(keeper: Arc<Keeper>) -> Self {
        Self { keeper: Some(keeper), ..Self::default() }
    }

    /// Of a socket that does more than receiving.
    pub(crate) fn receiving(receives: Option<Receives>) -> Self {
        Self { receives: receives.map(Box::new), ..Self::default() }
    }

    /// Of a socket that keeps what it asks.
    #[cfg(feature = "spool")]
    pub(crate) fn asking(requests: Arc<Requests>) -> Self {
        Self { requests: Some(requests), ..Self::default() }
    }

    /// Of a socket that keeps what it answers.
    #[cfg(feature = "spool")]
    pub(crate) fn answering(answers: Arc<Answers>) -> Self {
        Self { answers: Some(answers), ..Self::default() }
    }

    /// The log of a socket that keeps what it sends, asks or answers, and what was found when it was opened.
    #[cfg(feature = "spool")]
    pub(crate) fn log(&self) -> Option<(&Spool, &RecoveryReport)> {
        match (&self.requests, &self.answers) {
            (Some(requests), _) => Some((&requests.spool, &requests.report)),
            (_, Some(answers)) => Some((&answers.spool, &answers.report)),
            _ => self.on_disk().map(|disk| (&disk.spool, &disk.report)),
        }
    }

    /// Whether it keeps what it asks.
    pub(crate) fn asks(&self) -> bool {
        #[cfg(feature = "spool")]
        return self.requests.is_some();
        #[cfg(not(feature = "spool"))]
        false
    }

    /// How many messages in its directory are not confirmed, or not answered, if it has one.
    pub(crate) fn spooled(&self) -> Option<u64> {
        #[cfg(feature = "spool")]
        if let Some(requests) = &self.requests {
            return Some(requests.unsettled());
        }
        self.keeper.as_ref()?.spooled()
    }

    /// The directory of a socket that sends.
    #[cfg(feature = "spool")]
    pub(crate) fn on_disk(&self) -> Option<&Arc<disk::OnDisk>> {
        self.keeper.as_ref()?.disk.as_ref()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// What was done cannot be written down any more. Whether that is new.
    pub(crate) fn fail(&self) -> bool {
        !self.failed.swap(true, Relaxed)
    }

    /// All links are gone: what was kept is put away.
    pub(crate) async fn end(&self) {
        // Those that have not ended by then do when their logs are closed.
        let _in_time = timeout(FOR_A_DISK, self.tasks.join()).await;
        #[cfg(feature = "spool")]
        if let Some(inbox) = self.receives.as_ref().and_then(|receives| receives.inbox.as_ref()) {
            inbox.end().await;
        }
        #[cfg(feature = "spool")]
        if let Some(requests) = &self.requests {
            requests.end().await;
        }
        #[cfg(feature = "spool")]
        if let Some(answers) = &self.answers {
            answers.end().await;
        }
        if let Some(keeper) = &self.keeper {
            keeper.end().await;
        }
        self.tasks.join().await;
    }
}
