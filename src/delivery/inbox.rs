//! What a receiver is done with, on disk: a log of identities, and now and then all of them at once.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use ropewalk_patterns::{
    Message,
    delivery::{Claim, Held, Inbox, MessageId},
};
use tokio::runtime::Handle;

use super::{
    received::{GivesBack, Open},
    tasks::Tasks,
};
use crate::{
    error::AckError,
    spool::{OpenError, ReadError, RecoveryReport, Spool, SpoolError, SpoolOptions, WhenFull},
};

/// All that is needed to read the log anew stands behind this cursor.
const CURSOR: &str = "inbox";

/// After so many identities all of them are written at once, and what stands before is let go.
const SNAPSHOT_EVERY: u64 = 1 << 16;

/// A segment of the log: small, for what is let go goes by segments.
const SEGMENT: u64 = 16 << 20;

/// An inbox in a directory.
#[derive(Debug)]
pub(crate) struct InboxLog {
    spool: Spool,
    pub(crate) report: RecoveryReport,
    known: Mutex<Known>,
    runtime: Handle,
    /// Those that go on with what somebody no longer waits for.
    tasks: Tasks,
}

/// All that was taken to be written, whether or not it has reached the disk.
#[derive(Debug, Default)]
struct Known {
    inbox: Inbox,
    since_snapshot: u64,
}

impl InboxLog {
    /// Opens the directory, or begins one; and what was done before.
    pub(crate) async fn open(directory: &Path, options: SpoolOptions) -> Result<(Self, Inbox), OpenError> {
        let (spool, report) = Spool::open(directory, options.segment(SEGMENT).when_full(WhenFull::Wait)).await?;
        let failed = |error: String| OpenError::Io { directory: directory.into(), error: std::io::Error::other(error) };
        spool.cursor(CURSOR).await.map_err(|error| failed(error.to_string()))?;
        let mut known = Known::default();
        let mut reader = spool.read_from(spool.settled(CURSOR).unwrap_or(0));
        loop {
            match reader.try_next().await {
                Ok(Some(record)) => known.read(&record.message),
                Ok(None) => break,
                // What is lost may be done once more; opening has said so, if it was to refuse that.
                Err(ReadError::Damaged(damage)) => tracing::warn!(%damage, "an inbox has lost what it knew"),
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        let inbox = known.inbox.clone();
        let (known, runtime, tasks) = (Mutex::new(known), Handle::current(), Tasks::default());
        Ok((Self { spool, report, known, runtime, tasks }, inbox))
    }

    /// Writes down that the application is done with this, and tells its sender. Dropped before there was room for it, it is
    /// given back; later, this goes on by itself.
    pub(super) async fn ack(self: &Arc<Self>, open: Open) -> Result<(), AckError> {
        let held = open.held;
        let open = GivesBack::from(open);
        // Under the spool's lock, so that a snapshot has whatever stands in the log before it.
        let taken = self.spool.accept(&[to_record(held)], |_| self.known().claim(held)).await;
        let (seqs, ()) = taken.map_err(|error| AckError::Inbox(error.to_string()))?;
        if self.known().since_snapshot >= SNAPSHOT_EVERY {
            let log = Arc::clone(self);
            self.go_on(async move {
                // Should the log have failed, the next to write into it hears so.
                if let Err(error) = log.snapshot().await {
                    tracing::warn!(%error, "what an inbox knows was not written at once");
                }
            });
        }
        Arriving { log: self, end: seqs.end, open: Some(open) }.arrive().await
    }

    /// After many identities all of them are written at once, and what stands before is let go.
    async fn snapshot(&self) -> Result<(), SpoolError> {
        // What is not in the snapshot is written from here on.
        let from = self.spool.next_seq();
        let all = {
            let mut known = self.known();
            if known.since_snapshot < SNAPSHOT_EVERY {
                // Another was faster.
                return Ok(());
            }
            known.since_snapshot = 0;
            Message::from([Bytes::new(), known.inbox.to_bytes().into()])
        };
        self.spool.append([all]).await?;
        // The cursor is there, and all it settles is one range.
        self.spool.settle(CURSOR, 0..from).map_err(|_| SpoolError::Closed)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with this when nobody waits for it.
    fn go_on(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.own(self.runtime.spawn(task));
    }

    /// Closes the log with all that was taken to be written. Nobody waits for room on the disk after that.
    pub(crate) async fn end(&self) {
        if let Err(error) = self.spool.close().await {
            tracing::warn!(%error, "an inbox was not closed in order");
        }
        self.tasks.join().await;
    }
}

/// An identity that was taken to be written. If nobody waits until it is, it still arrives.
struct Arriving<'a> {
    log: &'a Arc<InboxLog>,
    end: u64,
    open: Option<GivesBack>,
}

impl Arriving<'_> {
    async fn arrive(mut self) -> Result<(), AckError> {
        let reached = self.log.spool.reached(self.end).await;
        arrived(reached, self.open.take())
    }
}

fn arrived(reached: Result<(), SpoolError>, open: Option<GivesBack>) -> Result<(), AckError> {
    reached.map_err(|error| AckError::Inbox(error.to_string()))?;
    open.and_then(GivesBack::keep).map_or(Ok(()), |open| open.ack())
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        let (log, end) = (Arc::clone(self.log), self.end);
        self.log.go_on(async move {
            if let Err(error) = arrived(log.spool.reached(end).await, Some(open)) {
                tracing::warn!(%error, "what nobody waited for any more was not confirmed");
            }
        });
    }
}

impl Known {
    fn claim(&mut self, Held { id, floor, .. }: Held) {
        self.inbox.forget_below(&id.stream, floor);
        let _again: Claim = self.inbox.claim(id);
        self.since_snapshot += 1;
    }

    fn read(&mut self, message: &Message) {
        match message.parts() {
            [one] => {
                if let Some((id, floor)) = from_record(one) {
                    self.inbox.forget_below(&id.stream, floor);
                    let _again: Claim = self.inbox.claim(id);
                    self.since_snapshot += 1;
                }
            }
            [_, all] => {
                if let Some(all) = Inbox::from_bytes(all) {
                    self.inbox.merge(&all);
                    self.since_snapshot = 0;
                }
            }
            _ => {}
        }
    }
}

/// What one identity takes. All of them together are the second part of a message.
const ONE: usize = 40;

fn from_record(bytes: &[u8]) -> Option<(MessageId, u64)> {
    let (stream, rest) = bytes.split_first_chunk()?;
    let (incarnation, rest) = rest.split_first_chunk()?;
    let (seq, rest) = rest.split_first_chunk()?;
    let (floor, _) = rest.split_first_chunk()?;
    let [incarnation, seq, floor] = [incarnation, seq, floor].map(|bytes| u64::from_le_bytes(*bytes));
    Some((MessageId { stream: *stream, incarnation, seq }, floor))
}

fn to_record(Held { id, floor, .. }: Held) -> Message {
    let MessageId { stream, incarnation, seq } = id;
    let mut bytes = Vec::with_capacity(ONE);
    bytes.extend_from_slice(&stream);
    [incarnation, seq, floor].iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
    bytes.into()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        time::Duration,
    };

    use ropewalk_patterns::{
        delivery::{Claim, Held, MessageId},
        extension::delivery::What,
    };
    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::{CURSOR, InboxLog, Open, SNAPSHOT_EVERY, SpoolOptions};
    use crate::{delivery::received::Settles, spool::Durability};

    /// Counts what is acknowledged.
    #[derive(Default)]
    struct Acked(AtomicU64);

    impl Settles for Acked {
        fn ack(&self, _: &Held) -> bool {
            self.0.fetch_add(1, Relaxed);
            true
        }

        fn give_up(&self, held: &Held, _: What) -> bool {
            panic!("{held:?} is done with")
        }

        fn extend(&self, _: &Held, _: u64) -> bool {
            true
        }

        fn finish(&self, _: &Held) -> bool {
            true
        }
    }

    fn held(seq: u64) -> Held {
        Held { id: MessageId { stream: [7; 16], incarnation: 1, seq }, attempt: 1, floor: 0 }
    }

    #[tokio::test]
    async fn all_that_was_done_is_known_though_the_log_lets_go_of_its_beginning() {
        let directory = TempDir::new().unwrap();
        let open = async || InboxLog::open(directory.path(), SpoolOptions::new(Durability::Os)).await.unwrap();
        let done = SNAPSHOT_EVERY + 10;
        let (log, _) = open().await;
        let log = Arc::new(log);
        let acked = Arc::<Acked>::default();
        let seqs: Vec<u64> = (0..done).filter(|seq| *seq != 7).collect();
        for some in seqs.chunks(1000) {
            let open = |seq| Open { held: held(seq), settles: acked.clone(), inbox: None, tick: Duration::ZERO };
            let acks = some.iter().map(|&seq| log.ack(open(seq)));
            futures::future::try_join_all(acks).await.unwrap();
        }
        assert_eq!(acked.0.load(Relaxed), done - 1);
        let let_go = async {
            while log.spool.settled(CURSOR).unwrap() < SNAPSHOT_EVERY - 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), let_go).await.expect("the snapshot");
        log.end().await;
        drop(log);
        let (log, mut inbox) = open().await;
        assert!(log.spool.settled(CURSOR).unwrap() >= SNAPSHOT_EVERY - 1);
        for seq in 0..done {
            let claim = if seq == 7 { Claim::Fresh } else { Claim::Seen };
            assert_eq!(inbox.claim(held(seq).id), claim, "{seq}");
        }
        log.end().await;
    }
}
