//! Reading the log, in pieces, on the writer's thread; what is read is checked.

use std::{collections::VecDeque, io, ops::Range};

use bytes::Bytes;
use ropewalk_patterns::Message;
use tokio::sync::{oneshot, watch};

use super::{
    Spool,
    error::{Damage, ReadError, SpoolError},
    record::{Kind, Records, Take},
    segment::{BODY, Frame, Segment, Step, Walk},
    shared::Request,
    storage::File,
};

/// After so many bytes a piece ends, that the writer may go on writing.
const PIECE: u64 = 256 << 10;

/// A message of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Its number. Numbers grow, but not always by one: what an unfinished opening may have used is not used again.
    pub seq: u64,
    /// The opening of the spool that accepted it.
    pub incarnation: u64,
    /// The message.
    pub message: Message,
}

#[derive(Debug)]
pub(super) enum Item {
    Record(Record),
    Damaged(Damage),
}

/// How far a reader has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    segment: u64,
    at: u64,
    /// The seq that is expected next.
    seq: u64,
}

/// A piece of the log.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    items: Vec<Item>,
    next: Option<Place>,
    /// There is no more at the moment.
    end: bool,
}

/// Reads the next piece of these segments from `place` on, leaving out what is below `from`.
pub(super) fn read(
    segments: &VecDeque<Segment>,
    from: u64,
    place: Option<Place>,
    mut open: impl FnMut(&Segment) -> io::Result<Box<dyn File>>,
) -> io::Result<Chunk> {
    let known = place.and_then(|place| segments.iter().position(|segment| segment.number == place.segment));
    let wanted = || segments.iter().position(|segment| segment.end_seq > from);
    let Some(mut index) = known.or_else(wanted).or(segments.len().checked_sub(1)) else {
        return Ok(Chunk { end: true, ..Chunk::default() });
    };
    let mut chunk = Chunk { next: place.filter(|_| known.is_some()), ..Chunk::default() };
    let mut left = PIECE;
    while let Some(segment) = segments.get(index) {
        let begin = Place { segment: segment.number, at: BODY, seq: segment.base_seq };
        let place = chunk.next.filter(|place| place.segment == segment.number).unwrap_or(begin);
        let place = read_segment(&*open(segment)?, segment, place, from, &mut left, &mut chunk.items)?;
        chunk.next = Some(place);
        if left == 0 {
            return Ok(chunk);
        }
        index += 1;
    }
    chunk.end = true;
    Ok(chunk)
}

fn read_segment(
    file: &dyn File,
    segment: &Segment,
    mut place: Place,
    from: u64,
    left: &mut u64,
    items: &mut Vec<Item>,
) -> io::Result<Place> {
    let mut walk = Walk::new(file, segment, place.at, segment.len);
    let mut damaged: Option<u64> = None;
    while *left > 0 || damaged.is_some() {
        match walk.next()? {
            Step::Frame(frame) => {
                let records = frame.head.kind.has_records();
                if let Some(at) = damaged.take() {
                    items.push(damage(segment, at, place.seq..frame.head.first_seq));
                }
                *left = left.saturating_sub(frame.head.frame_len());
                if records && frame.head.end_seq() > from {
                    let whole = unpack(&frame, from, items);
                    if !whole {
                        items.push(damage(segment, frame.at, place.seq..frame.head.end_seq()));
                    }
                }
                if records {
                    place.seq = frame.head.end_seq();
                }
            }
            Step::Bad => {
                damaged.get_or_insert(walk.at);
                if !walk.resync()? {
                    walk.at = segment.len;
                }
            }
            Step::End => break,
        }
    }
    if let Some(at) = damaged {
        items.push(damage(segment, at, place.seq..segment.end_seq));
    }
    place.at = walk.at;
    Ok(place)
}

fn damage(segment: &Segment, at: u64, seqs: Range<u64>) -> Item {
    Item::Damaged(Damage { segment: segment.number, at, seqs: seqs.start..seqs.end.max(seqs.start) })
}

/// The records of a frame; whether there are as many as its head says.
fn unpack(frame: &Frame, from: u64, items: &mut Vec<Item>) -> bool {
    let Some((incarnation, body)) = origin(frame) else { return false };
    let mut records = Records::new(body);
    for seq in frame.head.first_seq..frame.head.end_seq() {
        let Some(message) = records.next() else { return false };
        if seq >= from {
            items.push(Item::Record(Record { seq, incarnation, message }));
        }
    }
    true
}

/// Which incarnation the records of a frame are of, and the bytes of them.
pub(super) fn origin(frame: &Frame) -> Option<(u64, Bytes)> {
    match frame.head.kind {
        Kind::Copied => Some((Take(&frame.body).u64()?, frame.body.slice(8..))),
        _ => Some((frame.head.incarnation, frame.body.clone())),
    }
}

/// Reads the records of a spool in the order of their seqs: see [`Spool::read_from`].
#[derive(Debug)]
pub struct Reader {
    spool: Spool,
    seq: u64,
    place: Option<Place>,
    items: VecDeque<Item>,
    /// There was no more when the last piece was read, at this count of accepted records.
    ended_at: Option<u64>,
    asked: Option<(u64, oneshot::Receiver<io::Result<Chunk>>)>,
    accepted: watch::Receiver<u64>,
}

impl Reader {
    pub(super) fn new(spool: Spool, seq: u64, accepted: watch::Receiver<u64>) -> Self {
        Self { spool, seq, place: None, items: VecDeque::new(), ended_at: None, asked: None, accepted }
    }

    /// The next record, waiting for one to be accepted.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// When records are lost (and it goes on behind them), the disk fails, or the spool is closed.
    pub async fn next(&mut self) -> Result<Record, ReadError> {
        loop {
            if let Some(record) = self.try_next().await? {
                return Ok(record);
            }
            let ended_at = self.ended_at;
            let more = self.accepted.wait_for(|&accepted| Some(accepted) != ended_at).await;
            more.map_err(|_| ReadError::Closed)?;
        }
    }

    /// The next record that is there: it waits for the disk, but not for a record to be accepted.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// When records are lost (and it goes on behind them), the disk fails, or the spool is closed.
    pub async fn try_next(&mut self) -> Result<Option<Record>, ReadError> {
        loop {
            match self.next_item().await? {
                None => return Ok(None),
                // After damage the log may have less than was there before: what was given is not given again.
                Some(Item::Record(record)) if record.seq >= self.seq => {
                    self.seq = record.seq + 1;
                    return Ok(Some(record));
                }
                Some(Item::Damaged(damage)) if damage.seqs.end > self.seq && !damage.seqs.is_empty() => {
                    self.seq = damage.seqs.end;
                    return Err(ReadError::Damaged(damage));
                }
                Some(_) => {}
            }
        }
    }

    /// What stands next in the log, also where only bookkeeping is damaged.
    pub(super) async fn next_item(&mut self) -> Result<Option<Item>, ReadError> {
        loop {
            if let Some(item) = self.items.pop_front() {
                return Ok(Some(item));
            }
            let accepted = *self.accepted.borrow();
            if self.asked.is_none() {
                if self.ended_at == Some(accepted) {
                    return Ok(None);
                }
                let (from, place) = (self.seq, self.place);
                let answer = self.spool.shared().request(|reply| Request::Read { from, place, reply });
                self.asked = Some((accepted, answer.map_err(|_: SpoolError| ReadError::Closed)?));
            }
            let Some((asked_at, answer)) = &mut self.asked else { continue };
            let (asked_at, answer) = (*asked_at, answer.await);
            self.asked = None;
            let chunk = answer.map_err(|_| ReadError::Closed)?.map_err(ReadError::Io)?;
            self.place = chunk.next;
            self.items = chunk.items.into();
            self.ended_at = chunk.end.then_some(asked_at);
        }
    }
}
