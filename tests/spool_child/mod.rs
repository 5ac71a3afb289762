//! A process that appends to a spool and says on a pipe what it was promised, and the account its parent keeps.
//!
//! The test program runs itself as the child: [`Child::begin`] names the hidden test that calls [`work`].

#![allow(dead_code, reason = "each test program uses its own part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{self, ChildStdout, Command, Stdio},
    time::Duration,
};

use ropewalk::{
    Message,
    spool::{Durability, Record, RecoveryReport, Spool, SpoolOptions},
};

/// Where the child finds its directory; without it the hidden test does nothing.
const DIRECTORY: &str = "ROPEWALK_SPOOL_DIRECTORY";
const POLICY: &str = "ROPEWALK_SPOOL_POLICY";
const CYCLE: &str = "ROPEWALK_SPOOL_CYCLE";
/// What has all been promised, and stays unsettled at the end of the log.
const UNSETTLED: u64 = 300;
pub(crate) const POLICIES: [Durability; 3] =
    [Durability::Always, Durability::Every(Duration::from_millis(3)), Durability::Os];

/// Small numbers at random, the same for the same seed (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

/// Segments are small, so that some begin and some go in every life of a child.
pub(crate) fn options(policy: Durability) -> SpoolOptions {
    SpoolOptions::new(policy).segment(64 << 10).frame(4 << 10).quota(16 << 20)
}

/// The message of this number: its bytes say which, and that they are all there.
pub(crate) fn message(id: u64) -> Message {
    let mut dice = Dice(id);
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend((0..dice.below(700)).map(|_| dice.roll() as u8));
    if id % 7 == 3 { Message::from([&bytes[..8], &bytes[8..]]) } else { Message::from(bytes) }
}

fn id(record: &Record) -> u64 {
    let bytes: Vec<u8> = record.message.parts().concat();
    let id = u64::from_le_bytes(bytes[..8].try_into().expect("a number"));
    assert_eq!(record.message, message(id), "a record is what was given, bit by bit");
    id
}

// ---- the child ------------------------------------------------------------------------------------------------------

/// What the hidden test does: opens the spool and appends until it is killed.
pub(crate) fn work() {
    let Ok(directory) = env::var(DIRECTORY) else { return };
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok()).expect("a number");
    let (policy, cycle) = (POLICIES[number(POLICY) as usize], number(CYCLE));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        say("opening");
        let opened = Spool::open(&directory, options(policy)).await;
        let (spool, _) = opened.unwrap_or_else(|error| stop(&error.to_string()));
        spool.cursor("reader").await.unwrap_or_else(|error| stop(&error.to_string()));
        say("open");
        let senders = (0..6).map(|sender| send(&spool, cycle << 32 | sender << 24));
        futures::future::join_all(senders).await;
    });
}

/// Says why there will be no more, and ends. After a power cut there is nothing else to do.
fn stop(error: &str) -> ! {
    say(&format!("stopped {error}"));
    process::exit(0)
}

/// One line, whole or not at all.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The test harness has put the name of the test on the line already.
    let told = out.write_all(format!("\n= {line}\n").as_bytes()).and_then(|()| out.flush());
    if told.is_err() {
        process::exit(0);
    }
}

async fn send(spool: &Spool, mut next: u64) {
    let mut dice = Dice(next);
    loop {
        let count = 1 + dice.below(4);
        let appended = spool.append((next..next + count).map(message)).await;
        let seqs = appended.unwrap_or_else(|error| stop(&error.to_string()));
        say(&format!("given {} {next} {count}", seqs.start));
        next += count;
        let settled = match dice.below(8) {
            0 => seqs,
            1 => 0..seqs.start.saturating_sub(UNSETTLED),
            _ => continue,
        };
        // Said before it is done: from here on it may be gone.
        say(&format!("settles {} {}", settled.start, settled.end));
        if let Err(error) = spool.settle("reader", settled) {
            stop(&error.to_string());
        }
    }
}

// ---- its parent -----------------------------------------------------------------------------------------------------

pub(crate) struct Child {
    process: process::Child,
    lines: BufReader<ChildStdout>,
}

impl Child {
    /// Runs the test `child` of this program in a process of its own.
    pub(crate) fn begin(directory: &Path, policy: usize, cycle: u64) -> Self {
        let mut process = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory)
            .env(POLICY, policy.to_string())
            .env(CYCLE, cycle.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let lines = BufReader::new(process.stdout.take().expect("its output"));
        Self { process, lines }
    }

    /// Reads on until it has said so much, or has ended. Whether it goes on.
    pub(crate) fn hear(&mut self, history: &mut History, words: u64) -> bool {
        let mut heard = 0;
        while heard < words {
            let Some(said) = self.line(history) else { return false };
            heard += u64::from(said);
        }
        true
    }

    /// What it has said already, as far as it is here.
    pub(crate) fn catch_up(&mut self, history: &mut History) {
        while self.lines.buffer().contains(&b'\n') {
            self.line(history);
        }
    }

    /// Reads a line. Whether it is the child's own, for the test harness says something, too; `None` at the end.
    fn line(&mut self, history: &mut History) -> Option<bool> {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("its output");
        // What the kill cut off has no end, and was not said.
        let line = line.strip_suffix('\n')?;
        Some(line.strip_prefix("= ").map(|said| history.hear(said)).is_some())
    }

    /// SIGKILL, and then what it had still said.
    pub(crate) fn kill(mut self, history: &mut History) {
        self.process.kill().expect("it can be killed");
        while self.hear(history, u64::MAX) {}
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself; but nothing is left behind when a test fails.
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

/// What was promised, and what was seen, over all lives of a spool.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Promised, and to be there until it is settled.
    promised: BTreeMap<u64, u64>,
    /// Everything that ever had a seq: no seq is another message later.
    seen: BTreeMap<u64, u64>,
    settled_below: u64,
    settled: BTreeSet<u64>,
    /// What is promised now may not hold: the power goes at this moment.
    pub(crate) in_doubt: bool,
    /// Why the child stopped by itself.
    pub(crate) stopped: Option<String>,
    pub(crate) receipts: u64,
    pub(crate) lost: u64,
    /// Segments found in a file that another one had before.
    pub(crate) reused: u64,
}

/// How many segments say that their file was another's.
fn reused(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).into_iter().flatten().map(|file| file.expect("a file").path());
    let heads = files.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).map(fs::read);
    let said = heads.filter_map(|bytes| bytes.expect("its bytes").get(128..136).map(|said| said != [0; 8]));
    said.filter(|said| *said).count() as u64
}

impl History {
    fn hear(&mut self, said: &str) {
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        let numbers: Vec<u64> = rest.split(' ').filter_map(|number| number.parse().ok()).collect();
        match (word, &*numbers) {
            ("given", &[seq, id, count]) => {
                self.receipts += 1;
                for n in 0..count {
                    self.see(seq + n, id + n);
                    if !self.in_doubt {
                        self.promised.insert(seq + n, id + n);
                    }
                }
            }
            ("settles", &[0, to]) => self.settled_below = self.settled_below.max(to),
            ("settles", &[from, to]) => self.settled.extend(from..to),
            ("stopped", _) => self.stopped = Some(rest.into()),
            ("opening" | "open", _) => {}
            _ => panic!("the child said {said:?}"),
        }
    }

    fn see(&mut self, seq: u64, id: u64) {
        let before = self.seen.insert(seq, id);
        assert!(before.is_none_or(|before| before == id), "seq {seq} was {before:?} and is {id}");
    }

    fn is_settled(&self, seq: u64) -> bool {
        seq < self.settled_below || self.settled.contains(&seq)
    }

    /// Opens the spool and compares. Only what `may_lose` says may be missing, and only from the end.
    pub(crate) async fn check(&mut self, directory: &Path, may_lose: bool) -> RecoveryReport {
        self.reused += reused(directory);
        // The lock of a process that was killed is free at once, or at least in the time that opening waits for it.
        let opened = Spool::open(directory, options(Durability::Always)).await;
        let (spool, report) = opened.unwrap_or_else(|error| panic!("{error}"));
        assert!(report.damage.is_empty(), "a crash is no damage: {report:?}");
        let (mut reader, mut found) = (spool.read_from(0), BTreeMap::new());
        // Of each sender of each life, the last: what one sender gave stands in its order.
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        let mut highest = None;
        while let Some(record) = reader.try_next().await.expect("a crash is no damage") {
            assert!(highest.replace(record.seq) < Some(record.seq), "seqs grow");
            let id = id(&record);
            assert!(last.insert(id >> 24, id).is_none_or(|before| before < id), "{id} is twice or out of order");
            self.see(record.seq, id);
            found.insert(record.seq, id);
        }
        self.compare(&found, &spool, &report, may_lose);
        // What was read is synced, and must be there from now on.
        self.promised = found;
        spool.close().await.expect("it closes");
        report
    }

    fn compare(&mut self, found: &BTreeMap<u64, u64>, spool: &Spool, report: &RecoveryReport, may_lose: bool) {
        let gone = |seq: &&u64| !found.contains_key(seq) && !self.is_settled(**seq);
        let missing: Vec<u64> = self.promised.keys().filter(gone).copied().collect();
        if let Some(first) = missing.first() {
            assert!(may_lose, "promised and lost: {missing:?}, {report:?}");
            assert!(!report.clean, "what is lost is not passed over in silence: {report:?}");
            assert_eq!(found.range(first..).next(), None, "{first} is lost, but not what came behind it");
            self.lost += missing.len() as u64;
        }
        for seq in found.keys() {
            let settled = spool.is_settled("reader", *seq) == Some(true);
            assert!(!settled || self.is_settled(*seq), "nobody has settled {seq}");
        }
    }
}
