//! Who reads a spool.

use std::{collections::VecDeque, io, ops::Range};

use tokio::sync::{oneshot, watch};

use super::{
    Spool,
    error::{ReadError, SpoolError},
    read::{Chunk, Item, Place, Record},
    tail::Found,
    work::Request,
};

/// Reads the records of a spool in the order of their seqs: see [`Spool::read_from`].
///
/// One that keeps up gets them from memory; one that is behind by more than [`tail`](super::SpoolOptions::tail) has the
/// writer read them from the disk.
#[derive(Debug)]
pub struct Reader {
    spool: Spool,
    /// The next to be handed out, or the first behind it that there is.
    seq: u64,
    items: VecDeque<Item>,
    /// Behind the items.
    upto: u64,
    place: Option<Place>,
    asked: Option<(u64, oneshot::Receiver<io::Result<Chunk>>)>,
    accepted: watch::Receiver<u64>,
}

impl Reader {
    pub(super) fn new(spool: Spool, seq: u64, accepted: watch::Receiver<u64>) -> Self {
        Self { spool, seq, items: VecDeque::new(), upto: seq, place: None, asked: None, accepted }
    }

    /// The next record, waiting for one to be accepted.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// When records are lost or were dropped (and it goes on behind them), the disk fails, or the spool is closed.
    pub async fn next(&mut self) -> Result<Record, ReadError> {
        loop {
            if let Some(record) = self.try_next().await? {
                return Ok(record);
            }
            let seq = self.seq;
            self.accepted.wait_for(|&accepted| accepted > seq).await.map_err(|_| ReadError::Closed)?;
        }
    }

    /// Waits for the next record, and adds it and those behind it that are in memory already to `into`, at most `limit`
    /// of them. How many it added; none only if `limit` is 0.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: what it took is in `into`.
    ///
    /// # Errors
    /// As of [`next`](Self::next), when nothing was added.
    pub async fn next_many(&mut self, into: &mut Vec<Record>, limit: usize) -> Result<usize, ReadError> {
        if limit == 0 {
            return Ok(0);
        }
        into.push(self.next().await?);
        let mut added = 1;
        while added < limit && self.fill() {
            // An error is for the next call.
            let Some(Item::Records(unread)) = self.items.front_mut() else { break };
            while added < limit
                && let Some(record) = unread.next(self.seq)
            {
                match record {
                    Ok(record) => {
                        self.seq = record.seq + 1;
                        into.push(record);
                        added += 1;
                    }
                    Err(damage) => {
                        self.items.push_front(Item::Damaged(damage));
                        return Ok(added);
                    }
                }
            }
            if added < limit {
                self.items.pop_front();
            }
        }
        Ok(added)
    }

    /// How many records that it has not read were dropped.
    pub(crate) fn missed(&self) -> u64 {
        self.spool.shared().lock().cursors.missed(self.seq..u64::MAX).map_or(0, |(_, records)| records)
    }

    /// The next record that is there: it waits for the disk, but not for a record to be accepted.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// When records are lost or were dropped (and it goes on behind them), the disk fails, or the spool is closed.
    pub async fn try_next(&mut self) -> Result<Option<Record>, ReadError> {
        loop {
            while self.fill() {
                if let Some(record) = self.pop() {
                    return record.map(Some);
                }
            }
            if self.asked.is_none() {
                return Ok(None);
            }
            self.read().await?;
        }
    }

    /// What the first item has, which is gone when it has nothing more.
    fn pop(&mut self) -> Option<Result<Record, ReadError>> {
        // After damage the log may have less than was there before: what was given is not given again.
        if let Item::Records(unread) = self.items.front_mut()?
            && let Some(record) = unread.next(self.seq)
        {
            return match record {
                Ok(record) => {
                    self.seq = record.seq + 1;
                    Some(Ok(record))
                }
                Err(damage) => self.go_behind(damage.seqs.clone(), ReadError::Damaged(damage)),
            };
        }
        match self.items.pop_front()? {
            Item::Records(_) => None,
            Item::Damaged(damage) => self.go_behind(damage.seqs.clone(), ReadError::Damaged(damage)),
            Item::Missed(seqs, records) => self.go_behind(seqs.clone(), ReadError::Missed { seqs, records }),
        }
    }

    /// Says what became of these, if it still wants them.
    fn go_behind(&mut self, seqs: Range<u64>, error: ReadError) -> Option<Result<Record, ReadError>> {
        if seqs.end <= self.seq || seqs.is_empty() {
            return None;
        }
        self.seq = seqs.end;
        Some(Err(error))
    }

    /// Whether there is an item, perhaps from the tail. If not, and there is something to read from the disk, it was
    /// asked for.
    fn fill(&mut self) -> bool {
        if !self.items.is_empty() {
            return true;
        }
        if self.asked.is_some() {
            return false;
        }
        self.seq = self.seq.max(self.upto);
        match self.spool.shared().tail.find(self.seq) {
            Found::Here(unread) => {
                // Should this reader fall behind, it goes on there.
                self.place = Some(unread.after);
                self.items.push_back(Item::Records(unread));
                return true;
            }
            Found::NotYet => {}
            Found::OnDisk(upto) => {
                let (from, place) = (self.seq, self.place);
                let answer = self.spool.shared().request(|reply| Request::Read { from, place, reply });
                self.asked = Some((upto, answer.unwrap_or_else(|_: SpoolError| oneshot::channel().1)));
            }
        }
        false
    }

    /// Waits for what was asked for.
    async fn read(&mut self) -> Result<(), ReadError> {
        let Some((upto, answer)) = &mut self.asked else { return Ok(()) };
        let (upto, answer) = (*upto, answer.await);
        self.asked = None;
        let chunk = answer.map_err(|_| ReadError::Closed)?.map_err(ReadError::Io)?;
        self.place = chunk.next;
        self.items = chunk.items.into();
        // What was accepted before it was read, and is not there, is nowhere.
        self.upto = if chunk.end { upto } else { self.upto };
        Ok(())
    }
}
