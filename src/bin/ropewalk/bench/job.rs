//! What is measured, as both ends must know it.

use std::{fmt, str::FromStr};

use clap::ValueEnum;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum What {
    Thr,
    Lat,
    Fan,
}

/// What carries the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Transport {
    /// Over loopback, or between two machines
    Tcp,
    /// The same, encrypted
    Tls,
    /// QUIC over loopback, or between two machines
    Quic,
    /// Over a Unix domain socket
    Ipc,
    /// Within one process
    Inproc,
}

/// By what means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// The library, message by message.
    Plain,
    /// The library, as many messages at once as are there.
    Many,
    /// A bare socket.
    Raw,
}

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) what: What,
    pub(super) way: Way,
    pub(super) transport: Transport,
    pub(super) size: usize,
    /// Messages that are measured, and those before them that are not; of all senders together.
    pub(super) count: u64,
    pub(super) warm: u64,
    /// Sockets at the near end.
    pub(super) senders: u64,
    /// Sockets at the far end.
    pub(super) peers: u64,
    /// Another link is kept busy meanwhile.
    pub(super) busy: bool,
    /// Both ends are in one process.
    pub(super) one_process: bool,
}

/// The size of the messages that keep a link busy.
const BUSY: usize = 1 << 10;

impl Job {
    pub(super) fn all(&self) -> u64 {
        self.warm + self.count
    }

    /// How many messages the far end gets for each that is sent.
    pub(super) fn copies(&self) -> u64 {
        if self.what == What::Fan { self.peers } else { 1 }
    }

    /// The largest message both ends accept; a request has parts of its own before it.
    pub(super) fn max_message(&self) -> u64 {
        (self.size as u64 + 64).max(4 << 20)
    }

    /// Sockets at the far end.
    pub(super) fn far_sockets(&self) -> usize {
        usize::try_from(self.peers).unwrap_or(usize::MAX)
    }

    /// What keeps a link busy beside this.
    pub(super) fn load(&self) -> Self {
        let all = u64::MAX / 2;
        Self { what: What::Thr, size: BUSY, count: all, warm: 1, senders: 1, peers: 1, busy: false, ..*self }
    }
}

/// As it is written on the command line.
pub(super) fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, count, warm, senders, peers, busy, one_process, .. } = self;
        let (what, way, transport) = (word(self.what), word(self.way), word(self.transport));
        write!(f, "{what} {way} {transport} {size} {count} {warm} {senders} {peers} {busy} {one_process}")
    }
}

impl FromStr for Job {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        fn field<T: FromStr>(word: &str) -> Result<T, String> {
            word.parse().map_err(|_| format!("not what a job says: {word}"))
        }
        let words: Vec<&str> = text.split(' ').collect();
        let [what, way, transport, size, count, warm, senders, peers, busy, one_process] = words.as_slice() else {
            return Err(format!("not a job: {text}"));
        };
        Ok(Self {
            what: What::from_str(what, false)?,
            way: Way::from_str(way, false)?,
            transport: Transport::from_str(transport, false)?,
            size: field(size)?,
            count: field(count)?,
            warm: field(warm)?,
            senders: field(senders)?,
            peers: field(peers)?,
            busy: field(busy)?,
            one_process: field(one_process)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Job, Transport, Way, What};

    #[test]
    fn a_job_is_the_same_at_the_other_end() {
        let (what, way, transport) = (What::Fan, Way::Many, Transport::Ipc);
        let job = Job {
            what,
            way,
            transport,
            size: 1,
            count: 2,
            warm: 3,
            senders: 4,
            peers: 5,
            busy: true,
            one_process: false,
        };
        assert_eq!(job.to_string().parse(), Ok(job));
        for wrong in [
            "",
            "thr",
            "thr plain tcp 1 2 3 4 5 true",
            "thr plain tcp 1 2 3 4 5 maybe true",
            "thr plain tcp -1 2 3 4 5 true true",
        ] {
            assert!(wrong.parse::<Job>().is_err(), "{wrong}");
        }
    }
}
