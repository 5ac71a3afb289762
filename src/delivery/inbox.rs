//! What a receiver is done with, on disk: a log of identities, and now and then all of them at once.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use ropewalk_patterns::{
    Message,
    delivery::{Claim, Held, Inbox, MessageId},
};

use crate::spool::{Durability, OpenError, ReadError, Spool, SpoolError, SpoolOptions};

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
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    inbox: Inbox,
    since_snapshot: u64,
}

impl InboxLog {
    /// Opens the directory, or begins one; and what was done before.
    pub(crate) async fn open(directory: &Path, durability: Durability) -> Result<(Self, Inbox), OpenError> {
        let (spool, _) = Spool::open(directory, SpoolOptions::new(durability).segment(SEGMENT)).await?;
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
        Ok((Self { spool, known: Mutex::new(known) }, inbox))
    }

    /// This message is done with. Returns when that is as durable as the policy says.
    pub(crate) async fn record(&self, held: Held) -> Result<(), SpoolError> {
        let snapshot = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.inbox.forget_below(&held.id.stream, held.floor);
            let _again: Claim = known.inbox.claim(held.id);
            known.since_snapshot += 1;
            let due = known.since_snapshot >= SNAPSHOT_EVERY;
            due.then(|| {
                known.since_snapshot = 0;
                // What is not in it is written from here on.
                (self.spool.stats().seqs.end, Message::from([Bytes::new(), known.inbox.to_bytes().into()]))
            })
        };
        match snapshot {
            None => self.spool.append([to_record(held)]).await.map(|_| ()),
            Some((from, all)) => {
                self.spool.append([all]).await?;
                self.spool.settle(CURSOR, 0..from).map_err(|_| SpoolError::Closed)
            }
        }
    }

    pub(crate) async fn end(&self) {
        if let Err(error) = self.spool.close().await {
            tracing::warn!(%error, "an inbox was not closed in order");
        }
    }
}

impl Known {
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
