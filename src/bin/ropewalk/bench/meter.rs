//! Counting, checking, timing.

use std::{
    fmt,
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::job::{Job, Transport, What};
use crate::failure::Failure;

/// When nothing came for so long, nothing will.
const STALLED: Duration = Duration::from_secs(10);

/// What one run came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figures {
    /// From the last message that was not measured to the last that was.
    pub(super) took: Duration,
    /// How many were measured.
    pub(super) messages: u64,
    /// Processor time of the far end.
    pub(super) cpu: Option<Duration>,
    /// The most memory the far end had.
    pub(super) peak_kib: Option<u64>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u128>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let (cpu, peak) = (self.cpu.map(|cpu| cpu.as_nanos()), self.peak_kib.map(u128::from));
        write!(f, "done {} {} {} {}", self.took.as_nanos(), self.messages, number(cpu), number(peak))
    }
}

impl FromStr for Figures {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split(' ').collect();
        let ["done", took, messages, cpu, peak] = words[..] else { return Err(format!("no figures: {line}")) };
        let number = |word: &str| word.parse::<u64>().map_err(|_| format!("no figure: {word}"));
        Ok(Self {
            took: Duration::from_nanos(number(took)?),
            messages: number(messages)?,
            cpu: cpu.parse().ok().map(Duration::from_nanos),
            peak_kib: peak.parse().ok(),
        })
    }
}

/// What a run takes of one end's process.
#[derive(Debug)]
pub(super) struct Spent {
    cpu_before: Option<Duration>,
    /// Whether the peak is that of this run.
    fresh: bool,
}

impl Spent {
    pub(super) fn new(job: &Job) -> Self {
        // 5: forget the peak so far. Only Linux tells it at all.
        Self { fresh: std::fs::write("/proc/self/clear_refs", "5").is_ok(), cpu_before: cpu(job) }
    }

    /// Processor time since, and the most memory there was, in KiB.
    pub(super) fn so_far(&self, job: &Job) -> (Option<Duration>, Option<u64>) {
        let used = cpu(job).zip(self.cpu_before).and_then(|(now, before)| now.checked_sub(before));
        (used, peak_kib().filter(|_| self.fresh))
    }
}

fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// What all sockets of the far end have taken together.
#[derive(Debug)]
pub(super) struct Meter {
    taken: AtomicU64,
    numbers: AtomicU64,
    warm: u64,
    all: u64,
    /// When it was warm, and how many were taken then.
    start: OnceLock<(Instant, u64)>,
    end: OnceLock<Instant>,
    done: Notify,
}

impl Meter {
    pub(super) fn new(job: &Job) -> Self {
        Self {
            taken: AtomicU64::new(0),
            numbers: AtomicU64::new(0),
            warm: job.warm * job.copies(),
            all: job.all() * job.copies(),
            start: OnceLock::new(),
            end: OnceLock::new(),
            done: Notify::new(),
        }
    }

    /// So many messages were taken.
    #[inline]
    pub(super) fn taken(&self, messages: u64) {
        let before = self.taken.fetch_add(messages, Relaxed);
        let after = before + messages;
        if before < self.warm && after >= self.warm {
            self.start.get_or_init(|| (Instant::now(), after));
        }
        if before < self.all && after >= self.all {
            self.end.get_or_init(Instant::now);
            self.done.notify_one();
        }
    }

    /// One more number, where sockets share them.
    fn add(&self, number: u64) {
        self.numbers.fetch_add(number, Relaxed);
    }

    /// Waits until all were taken: how long it took, and how many were measured.
    pub(super) async fn finished(&self, job: &Job) -> Result<(Duration, u64), Failure> {
        let mut before = 0;
        while tokio::time::timeout(STALLED, self.done.notified()).await.is_err() {
            let taken = self.taken.load(Relaxed);
            if taken == before {
                return Err(Failure::Failed(format!("only {taken} of {} messages came", self.all)));
            }
            before = taken;
        }
        let taken = self.taken.load(Relaxed);
        if taken != self.all {
            return Err(Failure::Failed(format!("{taken} messages came, and only {} were sent", self.all)));
        }
        let each = u128::from(job.all() / job.senders);
        let sum = u128::from(job.senders) * (each * each.saturating_sub(1) / 2);
        if shared_numbers(job) && u128::from(self.numbers.load(Relaxed)) != sum {
            return Err(Failure::failed("some messages came twice and others not at all"));
        }
        match (self.start.get(), self.end.get()) {
            (Some((start, warm)), Some(end)) => Ok((*end - *start, self.all - warm)),
            _ => Err(Failure::failed("nothing was measured")),
        }
    }
}

/// Whether each message goes to only one of several sockets.
fn shared_numbers(job: &Job) -> bool {
    job.what == What::Thr && job.peers > 1
}

/// Several senders number their own, behind their place in the highest bits.
const SENDER: u32 = 48;

/// The first number of a sender.
pub(super) fn first_number(sender: u64) -> u64 {
    sender << SENDER
}

/// Checks that messages come whole, in order, and none twice.
#[derive(Debug)]
pub(super) struct Sequence<'m> {
    meter: &'m Meter,
    size: usize,
    /// What is due next of each sender.
    next: Vec<u64>,
    shared: bool,
}

impl<'m> Sequence<'m> {
    pub(super) fn new(job: &Job, meter: &'m Meter) -> Self {
        let next = (0..job.senders).map(first_number).collect();
        Self { meter, size: job.size, next, shared: shared_numbers(job) }
    }

    /// The next message of one socket.
    #[inline]
    pub(super) fn check(&mut self, body: &[u8]) -> Result<(), Failure> {
        let number = read_number(body);
        if body.len() != self.size {
            return Err(Failure::Failed(format!("a message of {} bytes came", body.len())));
        }
        let sender = if self.next.len() == 1 { 0 } else { (number >> SENDER) as usize };
        let Some(next) = self.next.get_mut(sender) else {
            return Err(Failure::Failed(format!("message {number} is of no sender")));
        };
        if self.shared {
            if number < *next {
                return Err(Failure::Failed(format!("message {number} came after {}", *next - 1)));
            }
            *next = number + 1;
            self.meter.add(number & (first_number(1) - 1));
            return Ok(());
        }
        if number != *next & mask(self.size) {
            return Err(Failure::Failed(format!("message {number} came in the place of {next}")));
        }
        *next += 1;
        Ok(())
    }
}

/// Numbers a message, as far as it has room for the number.
#[inline]
pub(super) fn write_number(body: &mut [u8], number: u64) {
    let bytes = number.to_le_bytes();
    let room = body.len().min(8);
    body[..room].copy_from_slice(&bytes[..room]);
}

#[inline]
fn read_number(body: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let room = body.len().min(8);
    bytes[..room].copy_from_slice(&body[..room]);
    u64::from_le_bytes(bytes)
}

fn mask(size: usize) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 }
}

/// Processor time of this process, whose runtime has only the first thread. Only Linux tells it without `unsafe`.
fn cpu(job: &Job) -> Option<Duration> {
    if !cfg!(target_os = "linux") || job.transport == Transport::Inproc || job.one_process {
        return None;
    }
    let text = std::fs::read_to_string("/proc/self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::{Figures, Meter, Sequence, first_number, write_number};
    use crate::bench::job::{Job, Transport, Way, What};

    fn job(what: What, size: usize, peers: u64) -> Job {
        let (way, transport) = (Way::Raw, Transport::Tcp);
        Job { what, way, transport, size, count: 1000, warm: 2, senders: 1, peers, busy: false, one_process: false }
    }

    #[test]
    fn figures_are_the_same_at_the_other_end() {
        for line in ["done 1 2 3 4", "done 1 2 - -"] {
            assert_eq!(line.parse::<Figures>().unwrap().to_string(), line);
        }
        for wrong in ["", "done", "done 1 2 3", "done - 2 3 4", "failed 1 2 3 4"] {
            assert!(wrong.parse::<Figures>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn senders_have_numbers_of_their_own() {
        let job = Job { senders: 2, ..job(What::Thr, 8, 1) };
        let meter = Meter::new(&job);
        let mut sequence = Sequence::new(&job, &meter);
        for number in [0, 1, first_number(1), 2, first_number(1) + 1] {
            sequence.check(&body(8, number)).unwrap();
        }
        for wrong in [1, 4, first_number(1), first_number(1) + 3, first_number(2)] {
            assert!(sequence.check(&body(8, wrong)).is_err(), "{wrong}");
        }
    }

    fn body(size: usize, number: u64) -> Vec<u8> {
        let mut body = vec![0; size];
        write_number(&mut body, number);
        body
    }

    #[test]
    fn a_gap_a_double_and_a_wrong_size_are_seen() {
        for size in [1, 2, 7, 8, 64] {
            let job = job(What::Thr, size, 1);
            let meter = Meter::new(&job);
            let mut sequence = Sequence::new(&job, &meter);
            for number in 0..1000 {
                sequence.check(&body(size, number)).unwrap();
            }
            assert!(sequence.check(&body(size, 999)).is_err());
            assert!(sequence.check(&body(size, 1001)).is_err());
            assert!(sequence.check(&body(size + 1, 1000)).is_err());
        }
    }

    #[tokio::test]
    async fn shared_numbers_must_all_be_there() {
        let job = job(What::Thr, 8, 2);
        for lost in [None, Some(500)] {
            let meter = Meter::new(&job);
            let mut sequences = [Sequence::new(&job, &meter), Sequence::new(&job, &meter)];
            for number in 0..job.all() {
                let number = if lost == Some(number) { number - 1 } else { number };
                sequences[usize::from(number % 3 == 0)].check(&body(8, number)).ok();
                meter.taken(1);
            }
            assert_eq!(meter.finished(&job).await.is_ok(), lost.is_none());
        }
    }
}
