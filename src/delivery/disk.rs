//! The spool of a socket that sends: read out to the rules of delivery, settled by what they say.

use std::{path::Path, sync::Arc, time::Duration};

use ropewalk_patterns::{
    Message, Tally,
    delivery::{Flight, Why},
    push_pull::Push,
    ranges::Ranges,
};

use super::DeadLetters;
use crate::{
    events::Event,
    hub::Hub,
    spool::{CursorError, OpenError, ReadError, Reader, Record, RecoveryReport, Spool, SpoolError, SpoolOptions},
};

/// How far the receivers of a socket that pushes are.
const CURSOR: &str = "push";

/// At most so many records are given to the rules at once.
const AT_ONCE: u64 = 256;

/// How long until a disk that could not be read is read again.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct OnDisk {
    pub(crate) spool: Spool,
    pub(crate) report: RecoveryReport,
    pub(crate) dead: Arc<DeadLetters>,
}

impl OnDisk {
    pub(crate) async fn open(directory: &Path, options: SpoolOptions) -> Result<Self, OpenError> {
        let durability = options.durability();
        let (spool, report) = Spool::open(directory, options).await?;
        let dead = Arc::new(DeadLetters::with(directory, durability, Some(spool.clone())));
        let made = spool.cursor(CURSOR).await;
        made.map_err(|error| OpenError::Io { directory: directory.into(), error: std::io::Error::other(error) })?;
        Ok(Self { spool, report, dead })
    }

    /// The first record that is not settled.
    pub(crate) fn floor(&self) -> u64 {
        self.spool.settled(CURSOR).unwrap_or(0)
    }

    /// Records that are not settled.
    pub(crate) fn unsettled(&self) -> u64 {
        self.spool.stats().cursors.get(CURSOR).map_or(0, |cursor| cursor.unsettled)
    }

    pub(crate) fn source(&self) -> Source {
        Source {
            reader: Some(self.spool.read_from(self.floor())),
            spool: Some(self.spool.clone()),
            next: None,
            known_to: self.report.next_seq,
        }
    }

    pub(super) fn settle(&self, seqs: &Ranges) {
        match self.spool.settle_many(CURSOR, seqs.iter()) {
            // If it has failed, it has said so: after the next opening these come again.
            Ok(()) | Err(CursorError::Closed) => {}
            Err(error) => tracing::error!(%error, "what was confirmed cannot be settled"),
        }
    }

    pub(super) fn note(&self, seq: u64, attempt: u32) {
        // One that is not noted is counted from the second again after a restart.
        let _not_noted = self.spool.note(CURSOR, seq, attempt);
    }

    pub(super) async fn bury(&self, flight: &Flight, why: &Why) -> Result<(), OpenError> {
        self.dead.keep(self.spool.stream(), flight, why).await
    }

    /// A receiver knows of another life of this stream.
    pub(super) async fn fork(&self, hub: &Hub<Push>, incarnation: u64) {
        let _ = (hub, incarnation);
    }

    pub(super) async fn end(&self) {
        for closed in [self.spool.close().await, self.dead.end().await] {
            match closed {
                Ok(()) | Err(SpoolError::Closed) => {}
                Err(error) => tracing::warn!(%error, "a spool was not closed in order"),
            }
        }
    }
}

/// Where the records come from.
#[derive(Debug)]
pub(crate) struct Source {
    /// None when there is no disk, or it has failed.
    reader: Option<Reader>,
    spool: Option<Spool>,
    next: Option<Record>,
    /// Records below may have been settled, or sent, by an earlier opening.
    known_to: u64,
}

impl Source {
    pub(super) fn none() -> Self {
        Self { reader: None, spool: None, next: None, known_to: 0 }
    }

    /// Gives the rules what is there and they have room for. Whether that was anything.
    pub(super) async fn feed(&mut self, hub: &Hub<Push>) -> bool {
        let mut room = hub.act(|pattern, _| pattern.deliveries().map_or(Tally::ZERO, |deliveries| deliveries.room()));
        room.messages = room.messages.min(AT_ONCE);
        let mut flights = Vec::new();
        while room.messages > 0 {
            let Some(record) = self.record(hub).await else { break };
            let Record { seq, incarnation, message, .. } = record;
            let cost = Message::cost(&message);
            if cost > room.bytes && !flights.is_empty() {
                self.next = Some(Record { message, ..record });
                break;
            }
            room.remove(cost);
            flights.push(Flight { seq, incarnation, attempt: self.attempt(seq, incarnation), message });
        }
        let some = !flights.is_empty();
        if some {
            hub.act(|pattern, core| pattern.deliver(core, |deliveries, _| deliveries.feed(flights)));
        }
        some
    }

    /// What an earlier process may have sent begins at its second attempt.
    fn attempt(&self, seq: u64, incarnation: u64) -> u32 {
        let own = self.spool.as_ref().is_some_and(|spool| spool.incarnation() == incarnation);
        let noted = self.spool.as_ref().map_or(0, |spool| spool.noted(CURSOR, seq));
        if own || seq >= self.known_to { noted.max(1) } else { noted.max(2) }
    }

    /// The next record that is there.
    async fn record(&mut self, hub: &Hub<Push>) -> Option<Record> {
        loop {
            let record = match self.next.take() {
                Some(record) => record,
                None => {
                    let read = self.reader.as_mut()?.try_next().await;
                    self.look(read, hub).await?
                }
            };
            let spool = self.spool.as_ref()?;
            let settled = record.seq < self.known_to && spool.is_settled(CURSOR, record.seq) == Some(true);
            if !settled {
                return Some(record);
            }
        }
    }

    /// Waits for a record beyond those that are there.
    pub(super) async fn more(&mut self, hub: &Hub<Push>) {
        if self.next.is_some() {
            return;
        }
        match &mut self.reader {
            Some(reader) => {
                let read = reader.next().await.map(Some);
                self.next = self.look(read, hub).await;
            }
            None => std::future::pending().await,
        }
    }

    /// What is lost is said, and passed over.
    async fn look(&mut self, read: Result<Option<Record>, ReadError>, hub: &Hub<Push>) -> Option<Record> {
        match read {
            Ok(record) => return record,
            Err(ReadError::Damaged(damage)) => {
                if let Some(spool) = &self.spool
                    && let Err(error) = spool.settle(CURSOR, damage.seqs.clone())
                {
                    tracing::debug!(%error, "what is lost cannot be settled");
                }
                hub.log.tell(Event::SpoolDamaged { damage });
            }
            Err(ReadError::Io(error)) => {
                hub.log.tell(Event::SpoolUnreadable { error: Arc::new(error) });
                tokio::time::sleep(RETRY).await;
            }
            Err(_) => self.reader = None,
        }
        None
    }
}
