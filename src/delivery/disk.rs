//! The spool of a socket that sends: read out to the rules of delivery, settled by what they say.

use std::{collections::VecDeque, path::Path, sync::Arc, time::Duration};

use ropewalk_patterns::{
    Message, Pattern, Tally,
    delivery::{Flight, Keeps, Why},
    ranges::Ranges,
};

use super::{DeadLetters, lane::Lane};
use crate::{
    error::SendError,
    events::Event,
    hub::Hub,
    spool::{CursorError, OpenError, ReadError, Reader, Record, RecoveryReport, Spool, SpoolError, SpoolOptions},
};

/// How far the receivers of a socket that pushes are.
pub(super) const PUSH: &str = "push";

/// At most so many records are given to the rules at once.
const AT_ONCE: u64 = 256;

/// How long until a disk that could not be read is read again.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct OnDisk {
    pub(crate) spool: Spool,
    pub(crate) report: RecoveryReport,
    pub(crate) dead: Arc<DeadLetters>,
    /// All its receivers share one cursor; else each subscriber has its own, whatever its name.
    pushes: bool,
}

impl OnDisk {
    /// Opens the directory of a socket, with a cursor for all its receivers if they share one.
    pub(crate) async fn open(directory: &Path, options: SpoolOptions, pushes: bool) -> Result<Self, OpenError> {
        let cursor = pushes.then_some(PUSH);
        let (spool, report) = open(directory, options.clone(), cursor).await?;
        let dead = Arc::new(DeadLetters::with(directory, &options, Some(spool.clone())));
        Ok(Self { spool, report, dead, pushes })
    }

    /// Accepts a message, and returns when it is as durable as the policy says.
    pub(crate) async fn append(&self, message: Message) -> Result<(), SendError> {
        let (taken, ()) = self.take(message, |_| ()).await?;
        self.reached(taken).await
    }

    /// The first half: takes the message, once there is room. `numbered` is told its seq before anybody can read it.
    pub(crate) async fn take<R>(
        &self,
        message: Message,
        numbered: impl FnOnce(u64) -> R,
    ) -> Result<(OnItsWay, R), SendError> {
        match self.spool.accept(std::slice::from_ref(&message), |seqs| numbered(seqs.start)).await {
            Ok((seqs, told)) => Ok((OnItsWay { message, end: seqs.end }, told)),
            Err(error) => Err(spool_failed(message, error)),
        }
    }

    /// The second half: returns when it, and so all before it, is as durable as the policy says.
    pub(crate) async fn reached(&self, OnItsWay { message, end }: OnItsWay) -> Result<(), SendError> {
        self.spool.reached(end).await.map_err(|error| spool_failed(message, error))
    }

    /// The first record that was pushed and is not settled.
    pub(crate) fn floor(&self) -> u64 {
        self.spool.settled(PUSH).unwrap_or(0)
    }

    /// Records that are not settled: by the receivers, if they share a cursor, for the application may have others in the
    /// same log; else by whoever is farthest behind.
    pub(crate) fn unsettled(&self) -> u64 {
        let cursors = self.spool.stats().cursors;
        let counts = cursors.iter().filter(|(name, _)| !self.pushes || **name == *PUSH);
        counts.map(|(_, cursor)| cursor.unsettled).max().unwrap_or(0)
    }

    /// How many messages that were pushed had to go before a receiver was done with them, and nobody was told of it.
    pub(super) fn take_missed(&self) -> u64 {
        self.spool.take_missed(PUSH)
    }

    /// Reads what this cursor has not settled.
    pub(super) fn source(&self, cursor: &str) -> Source {
        self.source_from(self.spool.settled(cursor).unwrap_or(0), self.report.next_seq)
    }

    /// Reads from this seq on; records below `known_to` may be settled.
    pub(super) fn source_from(&self, seq: u64, known_to: u64) -> Source {
        Source { reader: Some(self.spool.read_from(seq)), known_to, ..Source::none() }
    }

    /// The same for one that has no cursor: all that others settle may go before it has read it. It came when `since` was
    /// the next to be published; what went since then it has missed.
    pub(super) fn unheld_source_from(&self, seq: u64, since: u64) -> Source {
        let unheld = Unheld::new(seq, &self.spool.holes(), since);
        Source { unheld: Some(unheld), ..self.source_from(seq, 0) }
    }

    /// Which of these cannot be settled yet, because too many gaps are between what is.
    pub(super) fn settle(&self, cursor: &str, seqs: &Ranges) -> Ranges {
        let mut refused = Ranges::default();
        match self.spool.settle_many(cursor, seqs.iter()) {
            // If it has failed, it has said so: after the next opening these come again.
            Ok(()) | Err(CursorError::Closed) => {}
            Err(CursorError::TooScattered) => {
                let is_refused = |seqs| self.spool.settle(cursor, seqs) == Err(CursorError::TooScattered);
                seqs.iter().filter(|seqs| is_refused(seqs.clone())).for_each(|seqs| refused.insert(seqs));
            }
            Err(error) => tracing::error!(%error, "what was confirmed cannot be settled"),
        }
        refused
    }

    pub(super) async fn bury(&self, cursor: Option<&str>, flight: &Flight, why: &Why) -> Result<u64, String> {
        let of = cursor.filter(|_| !self.pushes);
        self.dead.keep(self.spool.stream(), of, flight, why).await
    }

    /// A receiver knows of another life of this stream: from now on it has another name.
    pub(super) async fn fork<P: Keeps>(&self, hub: &Hub<P>) {
        match self.spool.fork().await {
            Ok(()) => {
                let stream = self.spool.stream();
                hub.act(|pattern, core| pattern.rename(stream, core));
                hub.log.tell(Event::SpoolForked);
            }
            Err(error) => hub.log.tell(Event::SpoolFailed { error: error.to_string() }),
        }
    }

    pub(super) async fn end(&self) {
        for closed in [self.spool.close().await, self.dead.close().await] {
            was_closed(closed);
        }
    }
}

/// Opens a log, with a cursor of this name.
pub(super) async fn open(
    directory: &Path,
    options: SpoolOptions,
    cursor: Option<&str>,
) -> Result<(Spool, RecoveryReport), OpenError> {
    let (spool, report) = Spool::open(directory, options).await?;
    if let Some(cursor) = cursor {
        let failed = |error| OpenError::Io { directory: directory.into(), error: std::io::Error::other(error) };
        spool.cursor(cursor).await.map_err(failed)?;
    }
    Ok((spool, report))
}

/// Nobody waits any more for what became of a log that was closed.
pub(super) fn was_closed(closed: Result<(), SpoolError>) {
    match closed {
        Ok(()) | Err(SpoolError::Closed) => {}
        Err(error) => tracing::warn!(%error, "a spool was not closed in order"),
    }
}

/// A message that was taken, and where it ends in the log.
#[derive(Debug)]
pub(crate) struct OnItsWay {
    message: Message,
    end: u64,
}

fn spool_failed(message: Message, error: SpoolError) -> SendError {
    match error {
        SpoolError::Closed => SendError::Closed(message),
        SpoolError::TooLarge { .. } => SendError::TooLarge(message),
        error => SendError::SpoolFailed(message, error.to_string()),
    }
}

/// What came of feeding the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fed {
    Some,
    /// The source has no more.
    Nothing,
    /// The source has more behind a gap, which is told first.
    Gap,
    /// The rules have no room, and say when they have.
    NoRoom,
}

/// Where the records come from.
#[derive(Debug)]
pub(super) struct Source {
    /// None when there is no disk, or it has failed.
    reader: Option<Reader>,
    /// What was read, and there was no room for.
    next: VecDeque<Record>,
    /// Records below may have been settled before.
    known_to: u64,
    unheld: Option<Unheld>,
    /// So many records before the next were dropped, or had gone, and nobody was told.
    gap: u64,
    /// The disk has lost so many before the next, and nobody was told.
    damaged: u64,
}

/// How far one is for whom nothing is held, and the seqs of which there was no record when it came.
#[derive(Debug)]
struct Unheld {
    next: u64,
    holes: Ranges,
}

impl Unheld {
    /// It came when `since` was the next to be published. What has no record now and was published since then went meanwhile.
    fn new(next: u64, holes: &Ranges, since: u64) -> Self {
        let mut before = Ranges::default();
        holes.within(0..since).for_each(|hole| before.insert(hole));
        Self { next, holes: before }
    }

    /// It has come to this seq. How many records went before it got them.
    fn come_to(&mut self, seq: u64) -> u64 {
        let passed = self.next..seq.max(self.next);
        self.next = passed.end;
        let holes: u64 = self.holes.within(passed.clone()).map(|hole| hole.end - hole.start).sum();
        (passed.end - passed.start).saturating_sub(holes)
    }
}

impl Source {
    pub(super) fn none() -> Self {
        Self { reader: None, next: VecDeque::new(), known_to: 0, unheld: None, gap: 0, damaged: 0 }
    }

    /// Gives the rules what is there and they have room for.
    pub(super) async fn feed<P: Keeps>(&mut self, lane: &Lane, hub: &Hub<P>) -> Fed {
        let gap = self.has_gap();
        let room = hub.act(|pattern, core| {
            pattern.deliver(lane.only, core, |deliveries, _| {
                if gap && !deliveries.idle_or_told() {
                    // It is told behind what is before it.
                    return None;
                }
                let room = deliveries.room();
                if room.messages == 0 {
                    // What was under way has come back. They ask again when there is room.
                    deliveries.feed([]);
                    return None;
                }
                Some(room)
            })
        });
        let Some(room) = room else { return Fed::NoRoom };
        self.tell_gap(lane, hub);
        let (mut left, mut records) = (Tally { messages: room.messages.min(AT_ONCE), ..room }, Vec::new());
        while left.messages > 0 {
            let Some(record) = self.record(lane, hub).await else { break };
            let cost = record.message.cost();
            if self.has_gap() || (cost > left.bytes && !records.is_empty()) {
                self.next.push_front(record);
                break;
            }
            left.remove(cost);
            records.push(record);
        }
        if records.is_empty() {
            return if self.has_gap() { Fed::Gap } else { Fed::Nothing };
        }
        let flights = records.into_iter().map(|record| flight(lane, record)).collect();
        let unwanted = give(lane, hub, flights);
        lane.settle(&unwanted);
        Fed::Some
    }

    /// The next record that is there.
    async fn record<P: Keeps>(&mut self, lane: &Lane, hub: &Hub<P>) -> Option<Record> {
        loop {
            let record = match self.next.pop_front() {
                Some(record) => record,
                None => {
                    let read = self.reader.as_mut()?.try_next().await;
                    self.look(read, lane, hub).await?
                }
            };
            if let Some(unheld) = &mut self.unheld {
                self.gap += unheld.come_to(record.seq);
                unheld.next = unheld.next.max(record.seq + 1);
            }
            if record.seq >= self.known_to || !is_settled(lane, record.seq) {
                return Some(record);
            }
        }
    }

    /// Waits for a record beyond those that are there.
    pub(super) async fn more<P: Keeps>(&mut self, lane: &Lane, hub: &Hub<P>) {
        if !self.next.is_empty() {
            return;
        }
        match &mut self.reader {
            Some(reader) => {
                let read = reader.next().await.map(Some);
                let record = self.look(read, lane, hub).await;
                self.next.extend(record);
            }
            None => std::future::pending().await,
        }
    }

    /// The socket ends: what went before it was read is told now.
    pub(super) fn end<P: Keeps>(&self, lane: &Lane, hub: &Hub<P>) {
        if let (None, Some(reader), Some(disk)) = (lane.only, &self.reader, &lane.disk) {
            let _told_or_delivered = disk.take_missed();
            lane.miss(hub, self.gap + self.damaged + reader.missed());
        }
    }

    /// Says how many are not there, at the place where they would be: nothing waits that is before it.
    fn tell_gap<P: Keeps>(&mut self, lane: &Lane, hub: &Hub<P>) {
        let (gap, damaged) = (std::mem::take(&mut self.gap), std::mem::take(&mut self.damaged));
        if let (Some(disk), Some(cursor)) = (&lane.disk, &lane.cursor) {
            disk.spool.tell_missed(cursor, gap);
        }
        lane.miss(hub, gap + damaged);
    }

    fn has_gap(&self) -> bool {
        self.gap + self.damaged > 0
    }

    /// What is lost is said, and passed over.
    async fn look<P: Keeps>(
        &mut self,
        read: Result<Option<Record>, ReadError>,
        lane: &Lane,
        hub: &Hub<P>,
    ) -> Option<Record> {
        match read {
            Ok(record) => return record,
            Err(ReadError::Damaged(damage)) => {
                let seqs = damage.seqs.clone();
                self.damaged += match (&mut self.unheld, &lane.disk, &lane.cursor) {
                    (Some(unheld), ..) => unheld.come_to(seqs.end),
                    (None, Some(disk), Some(cursor)) => disk.spool.unsettled_of(cursor, seqs.clone()),
                    _ => 0,
                };
                lane.drop_those(&seqs);
                lane.settle(&Ranges::from(seqs));
                hub.log.tell(Event::SpoolDamaged { damage });
            }
            // The log has settled them for everybody.
            Err(ReadError::Missed { seqs, records }) => {
                self.gap += self.unheld.as_mut().map_or(records, |unheld| unheld.come_to(seqs.end));
                lane.drop_those(&seqs);
            }
            Err(error) => {
                if let Some(disk) = &lane.disk
                    && !may_read_on(error, &disk.spool, hub).await
                {
                    self.reader = None;
                }
            }
        }
        None
    }
}

/// Says why a log could not be read; waits a while, if it may be read again.
pub(super) async fn may_read_on<P: Pattern>(error: ReadError, spool: &Spool, hub: &Hub<P>) -> bool {
    if let ReadError::Io(error) = error {
        hub.log.tell(Event::SpoolUnreadable { error: Arc::new(error) });
        tokio::time::sleep(RETRY).await;
        return true;
    }
    if spool.is_failed() {
        hub.log.tell(Event::SpoolFailed { error: spool.failed().await.to_string() });
    }
    false
}

fn is_settled(lane: &Lane, seq: u64) -> bool {
    let (Some(disk), Some(cursor)) = (&lane.disk, &lane.cursor) else { return false };
    disk.spool.is_settled(cursor, seq) == Some(true)
}

/// What an earlier process may have sent begins at its second attempt. What ended the noted ones is not known: perhaps a
/// link was lost each time.
fn flight(lane: &Lane, Record { seq, incarnation, message, .. }: Record) -> Flight {
    let Some(disk) = &lane.disk else { return Flight::new(seq, incarnation, 1, message) };
    let noted = lane.cursor.as_ref().map_or(0, |cursor| disk.spool.noted(cursor, seq));
    let least = if disk.spool.incarnation() == incarnation { 1 } else { 2 };
    Flight { lost: noted.saturating_sub(1), ..Flight::new(seq, incarnation, noted.max(least), message) }
}

/// Feeds the rules; which messages are not for whom they are fed for.
fn give<P: Keeps>(lane: &Lane, hub: &Hub<P>, mut flights: Vec<Flight>) -> Ranges {
    hub.act(|pattern, core| {
        let mut unwanted = Ranges::default();
        flights.retain(|flight| {
            let wanted = pattern.is_for(lane.only, &flight.message);
            if !wanted {
                unwanted.insert(flight.seq..flight.seq + 1);
            }
            wanted
        });
        pattern.deliver(lane.only, core, |deliveries, _| deliveries.feed(flights));
        unwanted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_before_the_first_read_is_missed_unless_it_was_gone_before() {
        let holes = Ranges::from(0..7);
        assert_eq!(Unheld::new(4, &holes, 4).come_to(7), 3, "all three were published after it came");
        assert_eq!(Unheld::new(0, &holes, 4).come_to(9), 5, "four were gone, three went, two were passed over");
        assert_eq!(Unheld::new(0, &holes, 7).come_to(7), 0);
    }
}
