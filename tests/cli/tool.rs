//! The tool as a child of the test: what it is told, what it says, how it ends.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

/// Longer than anything here takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The tool while it runs; killed if it still does at the end of the test.
pub(super) struct Tool {
    pub(super) child: Child,
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Receiver<String>,
    pub(super) stderr: Receiver<String>,
    pub(super) told: Vec<String>,
}

/// What it left.
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) stdout: Vec<String>,
    pub(super) stderr: Vec<String>,
}

impl Ended {
    /// The one line that says why it failed.
    #[track_caller]
    pub(super) fn why(&self) -> &str {
        let why: Vec<&str> = self.stderr.iter().filter_map(|line| line.strip_prefix("ropewalk: ")).collect();
        assert_eq!(why.len(), 1, "{:?}", self.stderr);
        assert!(self.stderr.last().unwrap().starts_with("ropewalk: "), "{:?}", self.stderr);
        why[0]
    }

    /// It went well, and said in one line what it did.
    #[track_caller]
    pub(super) fn summary(&self) -> Summary {
        let summaries: Vec<Summary> = self.stderr.iter().filter_map(|line| Summary::read(line)).collect();
        assert_eq!(summaries.len(), 1, "{:?}", self.stderr);
        summaries[0].clone()
    }

    #[track_caller]
    pub(super) fn went_well(self) -> Self {
        assert_eq!(self.code, Some(0), "{:?}", self.stderr);
        assert!(!self.stderr.iter().any(|line| line.starts_with("ropewalk: ")), "{:?}", self.stderr);
        self
    }

    #[track_caller]
    pub(super) fn failed(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{:?}", self.stderr);
        self
    }
}

/// `received 1000 messages, 64000 bytes, 0 lost, 0.5 s, 2000 msg/s`, read strictly.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Summary {
    pub(super) verb: String,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) lost: u64,
    pub(super) seconds: f64,
    /// Where there is a spool.
    pub(super) spooled: Option<u64>,
}

impl Summary {
    pub(super) fn read(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(", ").collect();
        let (fields, spooled) = match fields.as_slice() {
            [fields @ .., spooled] if fields.len() == 5 => {
                (fields, Some(spooled.strip_suffix(" still spooled")?.parse().ok()?))
            }
            fields => (fields, None),
        };
        let [messages, bytes, lost, seconds, rate] = fields else { return None };
        let (verb, messages) = messages.strip_suffix(" messages")?.split_once(' ')?;
        let _rate: u64 = rate.strip_suffix(" msg/s")?.parse().ok()?;
        Some(Self {
            verb: verb.into(),
            messages: messages.parse().ok()?,
            bytes: bytes.strip_suffix(" bytes")?.parse().ok()?,
            lost: lost.strip_suffix(" lost")?.parse().ok()?,
            seconds: seconds.strip_suffix(" s")?.parse().ok()?,
            spooled,
        })
    }

    pub(super) fn is(&self, verb: &str, messages: u64, bytes: u64, lost: u64) -> bool {
        (self.verb.as_str(), self.messages, self.bytes, self.lost) == (verb, messages, bytes, lost)
    }
}

pub(super) fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (give, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { break };
            if give.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    lines
}

pub(super) fn spawn(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ropewalk"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

impl Tool {
    pub(super) fn start(args: &[&str]) -> Self {
        let (mut tool, stdout) = Self::start_unread(args);
        tool.stdout = lines(stdout);
        tool
    }

    /// Its standard output is not read yet.
    pub(super) fn start_unread(args: &[&str]) -> (Self, ChildStdout) {
        let mut child = spawn(args);
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().unwrap();
        let stderr = lines(child.stderr.take().unwrap());
        (Self { child, stdin, stdout: channel().1, stderr, told: Vec::new() }, stdout)
    }

    /// The next address it says it listens on.
    #[track_caller]
    pub(super) fn listening(&mut self) -> String {
        let line = self.hear("listening on ");
        line["listening on ".len()..].to_owned()
    }

    /// The next line on standard error that begins so.
    #[track_caller]
    pub(super) fn hear(&mut self, start: &str) -> String {
        loop {
            let line = match self.stderr.recv_timeout(PATIENCE) {
                Ok(line) => line,
                Err(error) => panic!("{error} before {start:?}; there was {:?}", self.told),
            };
            self.told.push(line.clone());
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// The next line on standard output.
    #[track_caller]
    pub(super) fn line(&mut self) -> String {
        self.stdout
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("{error}; {:?}", self.stderr.try_iter().collect::<Vec<_>>()))
    }

    pub(super) fn write(&mut self, text: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text).unwrap();
        stdin.flush().unwrap();
    }

    /// Ends its input.
    pub(super) fn end_input(&mut self) {
        self.stdin = None;
    }

    #[cfg(unix)]
    pub(super) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub(super) fn ended(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let rest = |lines: &Receiver<String>, into: &mut Vec<String>| {
            loop {
                match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(line) => into.push(line),
                    Err(RecvTimeoutError::Disconnected) => return true,
                    Err(RecvTimeoutError::Timeout) => return false,
                }
            }
        };
        let mut stdout = Vec::new();
        let mut stderr = std::mem::take(&mut self.told);
        let over = rest(&self.stdout, &mut stdout) && rest(&self.stderr, &mut stderr);
        assert!(over, "it does not end: {stdout:?} {stderr:?}");
        let code = self.child.wait().unwrap().code();
        Ended { code, stdout, stderr }
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// Starts the tool, gives it this input, and waits for its end.
#[track_caller]
pub(super) fn run(args: &[&str], input: &str) -> Ended {
    let mut tool = Tool::start(args);
    // What is refused at once does not read.
    let _unread = tool.stdin.as_mut().unwrap().write_all(input.as_bytes());
    tool.end_input();
    tool.ended()
}

pub(super) const ANY: &str = "tcp://127.0.0.1:0";
