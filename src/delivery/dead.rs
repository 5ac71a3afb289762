//! Messages that are given to nobody any more, kept beside the spool they came from.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use ropewalk_patterns::{
    Message,
    delivery::{Flight, MessageId, StreamId, Why},
};
use tokio::{sync::OnceCell, time::timeout};

use crate::{
    events::DeadReason,
    spool::{Durability, OpenError, ReadError, Spool, SpoolError, SpoolOptions},
};

const CURSOR: &str = "dead";

/// The directory of dead letters in that of a spool.
const NAME: &str = "dead";

/// What a letter may have in its record besides the message, and more.
const BESIDES: u64 = 64 << 10;

/// A message that was given up, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its number among the dead letters, as [`Event::DeadLetter`](crate::Event::DeadLetter) says it; not that of the message.
    pub number: u64,
    /// Which message it was.
    pub id: MessageId,
    /// How often it was delivered.
    pub attempts: u32,
    /// Why, in words: the receiver's reason, or that it was tried too often. Of a publisher, whose subscriber it was for.
    pub reason: String,
    /// The message.
    pub message: Message,
}

/// The dead letters of a spool: a spool of their own in its directory, `dead`, that is made with the first of them. They
/// may take as much as the spool itself; when that is used up, what is to come to them stays in the spool and
/// [`DeadLetterNotKept`](crate::Event::DeadLetterNotKept) says so.
#[derive(Debug)]
pub struct DeadLetters {
    directory: PathBuf,
    options: SpoolOptions,
    spool: OnceCell<Spool>,
    /// Where they came from.
    main: Main,
}

#[derive(Debug)]
enum Main {
    /// A socket has it open.
    OfSocket(Spool),
    /// Opened when something is sent again.
    Own(OnceCell<Spool>),
}

impl DeadLetters {
    /// Those of the spool in this directory. Nobody else may have them open: a socket that runs on that directory has its
    /// own ([`Push::dead_letters`](crate::Push::dead_letters)).
    pub fn of(spool: impl AsRef<Path>) -> Self {
        Self::with(spool.as_ref(), &SpoolOptions::new(Durability::Always), None)
    }

    /// Those of a spool with these options: what that takes has room here, and they may have as much in all.
    pub(crate) fn with(spool: &Path, options: &SpoolOptions, main: Option<Spool>) -> Self {
        let main = main.map_or_else(|| Main::Own(OnceCell::new()), Main::OfSocket);
        Self { directory: spool.join(NAME), options: options.with_room_for(BESIDES), spool: OnceCell::new(), main }
    }

    async fn spool(&self) -> Result<&Spool, OpenError> {
        let open = async {
            let (spool, _) = Spool::open(&self.directory, self.options.clone()).await?;
            spool.cursor(CURSOR).await.map_err(|error| self.failed(error))?;
            Ok(spool)
        };
        self.spool.get_or_try_init(|| open).await
    }

    fn failed(&self, error: impl std::fmt::Display) -> OpenError {
        OpenError::Io { directory: self.directory.clone(), error: std::io::Error::other(error.to_string()) }
    }

    /// Puts one more to them, and gives its number. It returns when it is as durable as the policy says; it does not wait for
    /// room.
    pub(crate) async fn keep(
        &self,
        stream: StreamId,
        subscriber: Option<&str>,
        flight: &Flight,
        why: &Why,
    ) -> Result<u64, String> {
        let why = DeadReason::from(why);
        let reason = subscriber.map_or_else(|| why.to_string(), |name| format!("{name}: {why}"));
        let head = Head { stream, incarnation: flight.incarnation, seq: flight.seq, attempts: flight.attempt };
        let parts = [head.to_bytes(), Bytes::from(reason)].into_iter();
        let letter = Message::from_parts(parts.chain(flight.message.parts().iter().cloned()));
        let spool = self.spool().await.map_err(|error| error.to_string())?;
        // It is asked once, and has then been accepted or not.
        match timeout(Duration::ZERO, spool.accept(std::slice::from_ref(&letter), |_| ())).await {
            Ok(Ok((seqs, ()))) => {
                spool.reached(seqs.end).await.map_err(|error| error.to_string())?;
                Ok(seqs.start)
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("there is no room for another; purge some".to_owned()),
        }
    }

    /// The first `limit` of them from this number on.
    ///
    /// # Errors
    /// When their directory cannot be opened or read.
    pub async fn list(&self, from: u64, limit: usize) -> Result<Vec<DeadLetter>, OpenError> {
        if !self.directory.is_dir() {
            return Ok(Vec::new());
        }
        let spool = self.spool().await?;
        let mut reader = spool.read_from(from.max(spool.settled(CURSOR).unwrap_or(0)));
        let mut letters = Vec::new();
        while letters.len() < limit {
            match reader.try_next().await {
                Ok(Some(record)) if spool.is_settled(CURSOR, record.seq) == Some(true) => {}
                Ok(Some(record)) => letters.extend(read(record.seq, record.message)),
                Ok(None) => break,
                Err(ReadError::Damaged(damage)) => tracing::warn!(%damage, "dead letters are lost"),
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(letters)
    }

    /// Sends the letter of this [number](DeadLetter::number) again: it goes to the end of its spool, as a new message (of a
    /// publisher: for all subscribers), and is taken off the dead letters. False: there is none of this number. After a
    /// crash in between it may be in both.
    ///
    /// # Errors
    /// When a directory cannot be opened, or is full.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it may have been sent.
    pub async fn requeue(&self, number: u64) -> Result<bool, OpenError> {
        let letters = self.list(number, 1).await?;
        let Some(letter) = letters.into_iter().find(|letter| letter.number == number) else { return Ok(false) };
        let open = async {
            let main = self.directory.parent().unwrap_or(&self.directory);
            Spool::open(main, self.options.durability()).await.map(|(main, _)| main)
        };
        let main = match &self.main {
            Main::OfSocket(main) => main,
            Main::Own(main) => main.get_or_try_init(|| open).await?,
        };
        main.append([letter.message]).await.map_err(|error| self.failed(error))?;
        self.purge(number).await?;
        Ok(true)
    }

    /// Forgets the letter of this [number](DeadLetter::number).
    ///
    /// # Errors
    /// When their directory cannot be opened.
    pub async fn purge(&self, number: u64) -> Result<(), OpenError> {
        let spool = self.spool().await?;
        spool.settle(CURSOR, number..number + 1).map_err(|error| self.failed(error))?;
        spool.sync().await.map_err(|error| self.failed(error))
    }

    /// Closes what was opened for them, so that another may open it. Those of a socket close with it.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it goes on in the background.
    ///
    /// # Errors
    /// When it was closed before, or the disk fails.
    pub async fn close(&self) -> Result<(), SpoolError> {
        if let Some(spool) = self.spool.get() {
            spool.close().await?;
        }
        if let Main::Own(main) = &self.main
            && let Some(main) = main.get()
        {
            main.close().await?;
        }
        Ok(())
    }
}

/// What stands before the message: stream, incarnation, seq, attempts; little-endian.
struct Head {
    stream: StreamId,
    incarnation: u64,
    seq: u64,
    attempts: u32,
}

impl Head {
    fn to_bytes(&self) -> Bytes {
        let mut bytes = self.stream.to_vec();
        bytes.extend_from_slice(&self.incarnation.to_le_bytes());
        bytes.extend_from_slice(&self.seq.to_le_bytes());
        bytes.extend_from_slice(&self.attempts.to_le_bytes());
        bytes.into()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (stream, rest) = bytes.split_first_chunk()?;
        let (incarnation, rest) = rest.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (attempts, _) = rest.split_first_chunk()?;
        Some(Self {
            stream: *stream,
            incarnation: u64::from_le_bytes(*incarnation),
            seq: u64::from_le_bytes(*seq),
            attempts: u32::from_le_bytes(*attempts),
        })
    }
}

fn read(number: u64, record: Message) -> Option<DeadLetter> {
    let (head, rest) = record.split_first()?;
    let Head { stream, incarnation, seq, attempts } = Head::read(&head)?;
    let (reason, message) = rest.split_first()?;
    let id = MessageId { stream, incarnation, seq };
    Some(DeadLetter { number, id, attempts, reason: String::from_utf8_lossy(&reason).into_owned(), message })
}
