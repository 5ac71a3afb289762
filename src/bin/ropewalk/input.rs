//! Where messages come from: lines or numbers, at a pace.

use std::{cell::Cell, convert::Infallible, future::pending, io, time::Duration};

use ropewalk::SendError;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt},
    time::Instant,
};

use crate::{args::Feed, failure::Failure, output::note, stop::Stop};

/// The longest line; what a message may have at most.
const LONGEST_LINE: usize = 4 << 20;

/// How much is read at once.
const READ: usize = 64 << 10;

/// Twice so long one message may wait without a word.
const WAITS: Duration = Duration::from_millis(500);

/// After so many messages in a row others get a turn, so that a signal is heard.
const TURN: u64 = 256;

/// One message after another.
pub(crate) enum Source {
    One { message: Vec<u8>, given: bool },
    Lines(Lines<Box<dyn AsyncRead + Send + Unpin>>),
    Numbers(Numbers),
}

impl Source {
    /// This one message.
    pub(crate) fn one(message: Vec<u8>) -> Self {
        Self::One { message, given: false }
    }

    /// What the options say.
    pub(crate) async fn of(file: &str, size: Option<usize>, count: Option<u64>) -> Result<Self, Failure> {
        if let (Some(size), Some(count)) = (size, count) {
            return Ok(Self::Numbers(Numbers::new(size, count)?));
        }
        let reader: Box<dyn AsyncRead + Send + Unpin> = match file {
            "-" => Box::new(tokio::io::stdin()),
            file => match File::open(file).await {
                Ok(opened) => Box::new(opened),
                Err(error) => return Err(Failure::Failed(format!("cannot open {file}: {error}"))),
            },
        };
        Ok(Self::Lines(Lines::new(reader)))
    }

    /// The next message, or none when the input has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        match self {
            Self::One { message, given } => Ok((!std::mem::replace(given, true)).then_some(message)),
            Self::Lines(lines) => lines.next().await.map_err(|error| Failure::Failed(format!("cannot read: {error}"))),
            Self::Numbers(numbers) => Ok(numbers.next()),
        }
    }
}

/// Lines of a stream, without their newlines. The last one needs none.
pub(crate) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// `buffer[start..end]` was read and not handed out; no newline is before `looked`.
    start: usize,
    looked: usize,
    end: usize,
    number: u64,
    over: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(reader: R) -> Self {
        Self { reader, buffer: vec![0; READ], start: 0, looked: 0, end: 0, number: 0, over: false }
    }

    async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let line = loop {
            if let Some(at) = self.buffer[self.looked..self.end].iter().position(|byte| *byte == b'\n') {
                let line = self.start..self.looked + at;
                self.start = line.end + 1;
                break line;
            }
            if self.over {
                if self.start == self.end {
                    return Ok(None);
                }
                let line = self.start..self.end;
                self.start = self.end;
                break line;
            }
            self.looked = self.end;
            self.read().await?;
        };
        self.looked = self.start;
        self.number += 1;
        if line.len() > LONGEST_LINE {
            return Err(self.too_long());
        }
        Ok(Some(&self.buffer[line]))
    }

    async fn read(&mut self) -> io::Result<()> {
        if self.end - self.start > LONGEST_LINE {
            self.number += 1;
            return Err(self.too_long());
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.looked -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let read = self.reader.read(&mut self.buffer[self.end..]).await?;
        self.end += read;
        self.over = read == 0;
        Ok(())
    }

    fn too_long(&self) -> io::Error {
        let number = self.number;
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("line {number} is longer than the {LONGEST_LINE} bytes a message may have"),
        )
    }
}

/// Numbers from 0, padded with zeros on the left.
pub(crate) struct Numbers {
    text: Vec<u8>,
    next: u64,
    count: u64,
}

impl Numbers {
    fn new(size: usize, count: u64) -> Result<Self, Failure> {
        let last = count.saturating_sub(1);
        if last.checked_ilog10().map_or(1, |digits| digits as usize + 1) > size && count > 0 {
            return Err(Failure::Usage(format!("--size {size} has no room for the number {last}")));
        }
        Ok(Self { text: vec![b'0'; size], next: 0, count })
    }

    fn next(&mut self) -> Option<&[u8]> {
        if self.next == self.count {
            return None;
        }
        if self.next > 0 {
            // One more, digit by digit from the right.
            for digit in self.text.iter_mut().rev() {
                *digit += 1;
                if *digit <= b'9' {
                    break;
                }
                *digit = b'0';
            }
        }
        self.next += 1;
        Some(&self.text)
    }
}

/// So many messages a second. Each has its own due time from the start, so nothing adds up.
#[derive(Debug)]
struct Pace {
    rate: f64,
    start: Instant,
}

impl Pace {
    async fn due(&self, number: u64) {
        let since = Duration::try_from_secs_f64(number as f64 / self.rate).unwrap_or(Duration::MAX);
        match self.start.checked_add(since) {
            Some(due) => tokio::time::sleep_until(due).await,
            None => pending().await,
        }
    }
}

/// What was given to a socket.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// Gives messages to a socket until there are no more, there were enough, or a signal says stop. What was accepted is
/// counted in `given`, also when it fails.
pub(crate) async fn feed(
    feed: &Feed,
    source: &mut Source,
    stop: &Stop,
    given: &mut Given,
    mut give: impl AsyncFnMut(&[u8]) -> Result<(), SendError>,
) -> Result<(), Failure> {
    let pace = feed.rate.map(|rate| Pace { rate, start: Instant::now() });
    let count = feed.count.unwrap_or(u64::MAX);
    // Whether a message is in hand, and how many came before it.
    let in_hand = Cell::new(None);
    let all = async {
        while given.messages < count {
            let Some(message) = source.next().await? else { break };
            if let Some(pace) = &pace {
                pace.due(given.messages).await;
            }
            in_hand.set(Some(given.messages));
            give(message).await.map_err(|error| Failure::Failed(error.to_string()))?;
            in_hand.set(None);
            given.messages += 1;
            given.bytes += message.len() as u64;
            if given.messages.is_multiple_of(TURN) {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    };
    let stopped = tokio::select! {
        biased;
        () = stop.once() => feed.count,
        done = all => return done,
        never = tell_if_it_waits(&in_hand) => match never {},
    };
    match stopped {
        Some(count) => Err(Failure::Failed(format!("stopped after {} of {count} messages", given.messages))),
        None => Ok(()),
    }
}

/// Says once that a message waits, so that nobody wonders.
async fn tell_if_it_waits(in_hand: &Cell<Option<u64>>) -> Infallible {
    let mut before = None;
    loop {
        tokio::time::sleep(WAITS).await;
        match in_hand.get() {
            Some(message) if before == Some(message) => {
                note(format_args!("waiting for a peer that takes messages"));
                return pending().await;
            }
            message => before = message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_LINE, Lines, Numbers};

    async fn lines(input: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(input);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            all.push(line.to_vec());
        }
        all
    }

    #[tokio::test]
    async fn lines_lose_their_newline_and_nothing_else() {
        assert_eq!(lines(b"").await, [b""; 0]);
        assert_eq!(lines(b"\n").await, [b""]);
        assert_eq!(lines(b"a\n\nb c\r\nlast").await, [&b"a"[..], b"", b"b c\r", b"last"]);
        let long = vec![b'x'; 300_000];
        let mut input = long.clone();
        input.extend_from_slice(b"\ny\n");
        input.extend_from_slice(&long);
        assert_eq!(lines(&input).await, [long.clone(), b"y".to_vec(), long]);
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused_before_it_takes_the_memory() {
        let longest = vec![b'x'; LONGEST_LINE];
        assert_eq!(lines(&longest).await, [longest]);
        let mut lines = Lines::new(tokio::io::repeat(b'x'));
        assert!(lines.next().await.unwrap_err().to_string().contains("line 1 is longer"));
        assert!(lines.buffer.len() <= 4 * LONGEST_LINE);
    }

    #[test]
    fn numbers_are_padded_and_must_fit() {
        let mut numbers = Numbers::new(3, 1000).unwrap();
        for number in 0..1000 {
            assert_eq!(numbers.next(), Some(format!("{number:03}").as_bytes()));
        }
        assert_eq!(numbers.next(), None);
        assert!(Numbers::new(3, 1001).is_err());
        assert!(Numbers::new(0, 1).is_err());
        assert!(Numbers::new(0, 0).unwrap().next().is_none());
    }
}
