//! Messages become lines on standard output; all else goes to standard error.

use std::{
    fmt,
    io::{self, Write},
    time::{Duration, Instant},
};

use ropewalk::Message;
use tokio::io::{AsyncWrite, AsyncWriteExt, Stdout};

use crate::{args::Print, failure::Failure};

/// A line on standard error. If nobody reads that any more, there is nobody to tell.
pub(crate) fn note(line: fmt::Arguments<'_>) {
    let _unread = writeln!(io::stderr().lock(), "{line}");
}

/// What became of standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Who reads it has all that was written.
    Served,
    /// Nobody reads it any more: the tool ends quietly.
    Gone,
}

/// Standard output. What is printed waits here until `flush`, which may be dropped and called again.
pub(crate) struct Output<W = Stdout> {
    out: W,
    waiting: Vec<u8>,
    written: usize,
    separator: String,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(print: &Print) -> Self {
        Self::to(tokio::io::stdout(), print)
    }
}

impl<W: AsyncWrite + Unpin> Output<W> {
    fn to(out: W, print: &Print) -> Self {
        let Print { separator, quiet } = print;
        Self { out, waiting: Vec::new(), written: 0, separator: separator.clone(), quiet: *quiet }
    }

    /// A message and a newline.
    pub(crate) fn print(&mut self, message: &Message) {
        if !self.quiet {
            join(message, &self.separator, &mut self.waiting);
            self.waiting.push(b'\n');
        }
    }

    /// How many bytes were printed and are not written.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len() - self.written
    }

    /// Writes what was printed. Dropped before it is done, the next call goes on where it was.
    pub(crate) async fn flush(&mut self) -> Result<Reader, Failure> {
        let flushed = async {
            while self.written < self.waiting.len() {
                match self.out.write(&self.waiting[self.written..]).await? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    wrote => self.written += wrote,
                }
            }
            self.out.flush().await?;
            self.waiting.clear();
            self.written = 0;
            Ok::<_, io::Error>(())
        };
        match flushed.await {
            Ok(()) => Ok(Reader::Served),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
            Err(error) => Err(Failure::Failed(format!("cannot write: {error}"))),
        }
    }
}

/// The parts of a message with the separator between them.
pub(crate) fn join(message: &Message, separator: &str, into: &mut Vec<u8>) {
    for (index, part) in message.parts().iter().enumerate() {
        if index > 0 {
            into.extend_from_slice(separator.as_bytes());
        }
        into.extend_from_slice(part);
    }
}

/// What is said at the end.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) lost: u64,
    /// From the first message to the last, or to the end of what became of them.
    pub(crate) took: Duration,
    /// How many are in the spool and not settled; none where there is no spool.
    pub(crate) spooled: Option<u64>,
}

impl Summary {
    /// `received 1000 messages, 64000 bytes, 0 lost, 0.5 s, 2000 msg/s`, and with a spool `, 12 still spooled`.
    pub(crate) fn tell(&self, verb: &str) {
        note(format_args!("{verb} {self}"));
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, bytes, lost, took, spooled } = self;
        let seconds = took.as_secs_f64();
        let rate = if seconds > 0.0 { *messages as f64 / seconds } else { 0.0 };
        write!(f, "{messages} messages, {bytes} bytes, {lost} lost, {} s, {rate:.0} msg/s", Seconds(seconds))?;
        spooled.map_or(Ok(()), |spooled| write!(f, ", {spooled} still spooled"))
    }
}

/// Seconds to the millisecond, without zeros that say nothing: `0.5`, `12.0`, `0.034`.
struct Seconds(f64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.3}", self.0);
        let short = text.trim_end_matches('0');
        f.write_str(if short.ends_with('.') { &text[..=short.len()] } else { short })
    }
}

/// Counts what comes.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    pub(crate) messages: u64,
    bytes: u64,
    pub(crate) lost: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Counter {
    /// Time passes: something has come. Once for all that came together is enough.
    pub(crate) fn tick(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    pub(crate) fn count(&mut self, message: &Message) {
        self.messages += 1;
        self.bytes += message.bytes();
    }

    pub(crate) fn summary(&self) -> Summary {
        let took = match (self.first, self.last) {
            (Some(first), Some(last)) => last - first,
            _ => Duration::ZERO,
        };
        Summary { messages: self.messages, bytes: self.bytes, lost: self.lost, took, spooled: None }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ropewalk::Message;

    use super::{Output, Reader, Seconds, Summary};
    use crate::args::Print;

    #[test]
    fn the_summary_is_as_scripts_know_it() {
        let took = Duration::from_millis(500);
        let summary = Summary { messages: 1000, bytes: 64000, lost: 0, took, spooled: None };
        assert_eq!(summary.to_string(), "1000 messages, 64000 bytes, 0 lost, 0.5 s, 2000 msg/s");
        let spooled = Summary { spooled: Some(12), ..summary };
        assert_eq!(spooled.to_string(), "1000 messages, 64000 bytes, 0 lost, 0.5 s, 2000 msg/s, 12 still spooled");
        assert_eq!(Summary::default().to_string(), "0 messages, 0 bytes, 0 lost, 0.0 s, 0 msg/s");
    }

    #[test]
    fn seconds_are_short() {
        let cases = [(0.0, "0.0"), (0.5, "0.5"), (12.0, "12.0"), (100.0, "100.0"), (0.0342, "0.034"), (1.25, "1.25")];
        for (seconds, text) in cases {
            assert_eq!(Seconds(seconds).to_string(), text);
        }
    }

    #[tokio::test]
    async fn parts_are_joined_and_lines_ended() {
        let print = |quiet| Print { separator: "::".into(), quiet };
        let mut out = Vec::new();
        let mut output = Output::to(&mut out, &print(false));
        output.print(&Message::from(["a", "b", ""]));
        output.print(&Message::from("c"));
        assert_eq!(output.flush().await.unwrap(), Reader::Served);
        let mut silent = Output::to(Vec::new(), &print(true));
        silent.print(&Message::from("d"));
        assert_eq!(silent.flush().await.unwrap(), Reader::Served);
        assert!(silent.out.is_empty());
        assert_eq!(out, b"a::b::\nc\n");
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_no_failure() {
        let (near, far) = tokio::io::duplex(16);
        drop(far);
        let mut output = Output::to(near, &Print { separator: " ".into(), quiet: false });
        output.print(&Message::from("a"));
        assert_eq!(output.flush().await.unwrap(), Reader::Gone);
    }
}
