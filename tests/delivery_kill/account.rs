//! What was promised, what was done, and whether the two agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use ropewalk::delivery::DeadLetters;

use crate::child::{Effect, Mode, number};

/// What is known of the messages of one socket that sends.
#[derive(Debug, Default)]
struct Sent {
    /// `send` or `deliver` has returned.
    given: BTreeSet<u64>,
    /// `deliver` has: it was done before that.
    delivered: BTreeSet<u64>,
    rejected: BTreeSet<u64>,
}

/// What one receiver has done, as far as its file was read.
struct Done {
    mode: Mode,
    /// Which socket's messages they are.
    of: &'static str,
    /// Which process it is.
    process: usize,
    path: PathBuf,
    read_to: u64,
    /// The effects of each message, in their order.
    effects: BTreeMap<u64, Vec<Effect>>,
    acked: BTreeSet<u64>,
    /// The seq of the latest that was done for the first time.
    newest: Option<u64>,
    /// The latest of each task of each life of the sender.
    tasks: BTreeMap<u64, u64>,
}

pub(crate) struct Account {
    directory: PathBuf,
    publishes: bool,
    sent: BTreeMap<&'static str, Sent>,
    done: Vec<Done>,
    /// Which life of each process has begun.
    pub(crate) opening: [u64; 3],
    pub(crate) kills: [u64; 3],
    pub(crate) receipts: u64,
    pub(crate) did: u64,
    pub(crate) drained: bool,
}

impl Account {
    pub(crate) fn new(directory: &Path, publishes: bool) -> Self {
        let done = |(mode, process): (Mode, usize)| Done {
            mode,
            of: if publishes { "pub" } else { mode.name() },
            process,
            path: directory.join(mode.name()).join("effects"),
            read_to: 0,
            effects: BTreeMap::new(),
            acked: BTreeSet::new(),
            newest: None,
            tasks: BTreeMap::new(),
        };
        let receivers =
            if publishes { vec![(Mode::Once, 1), (Mode::Inbox, 2)] } else { Mode::ALL.map(|mode| (mode, 1)).to_vec() };
        let done: Vec<Done> = receivers.into_iter().map(done).collect();
        let sent = done.iter().map(|done| (done.of, Sent::default())).collect();
        let directory = directory.into();
        Self { directory, publishes, sent, done, opening: [0; 3], kills: [0; 3], receipts: 0, did: 0, drained: false }
    }

    pub(crate) fn hear(&mut self, index: usize, life: u64, words: &[&str]) {
        let (word, rest) = words.split_first().expect("a word");
        match (*word, rest) {
            ("given" | "delivered" | "rejected", [of, number]) => {
                let number = number.parse().expect("a number");
                let sent = self.sent.iter_mut().find(|(name, _)| *name == of).expect("a socket").1;
                self.receipts += 1;
                assert!(sent.given.insert(number), "{number} was given twice");
                match *word {
                    "delivered" => _ = sent.delivered.insert(number),
                    "rejected" => _ = sent.rejected.insert(number),
                    _ => {}
                }
            }
            ("did", []) => self.did += 1,
            ("drained", []) => self.drained = true,
            ("opening" | "open" | "at", _) => {}
            _ => panic!("life {life} of process {index} said {words:?}, {self}"),
        }
    }

    /// Reads what was done meanwhile. What was said to be delivered was done before.
    pub(crate) fn look(&mut self) {
        for done in &mut self.done {
            done.look();
            let missing = self.sent[done.of].delivered.iter().find(|number| !done.effects.contains_key(number));
            assert_eq!(missing, None, "{:?}: delivered, and not done", done.mode);
        }
    }

    /// At the end: all of it.
    pub(crate) fn check(&self) -> String {
        for done in &self.done {
            let (sent, kills) = (&self.sent[done.of], self.kills[done.process]);
            let missing: Vec<_> = sent.given.iter().filter(|number| !done.effects.contains_key(number)).collect();
            let missing: Vec<_> = missing.into_iter().filter(|number| !done.mode.rejects(**number)).collect();
            assert!(missing.is_empty(), "{:?}: accepted, and lost: {missing:?}, {self}", done.mode);
            for (number, effects) in &done.effects {
                let most = match done.mode {
                    Mode::Once => 1,
                    // What a receiver has it is not given again while it lives, whatever happens to the sender.
                    _ => 1 + kills,
                };
                assert!(effects.len() as u64 <= most, "{:?}: {number} was done too often: {effects:?}", done.mode);
                assert!(!done.mode.rejects(*number), "{number} was rejected");
            }
        }
        let all: usize = self.done.iter().map(|done| done.effects.len()).sum();
        let most = self.kills.iter().max();
        assert!(most.is_some_and(|kills| all as u64 > 5 * kills), "much was done: {self}");
        self.check_dead();
        self.to_string()
    }

    /// Only what was rejected is there, and all of that; twice only if the sender was killed in between.
    fn check_dead(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        for (of, sent) in &self.sent {
            let spool =
                if self.publishes { self.directory.join("spool") } else { self.directory.join(of).join("spool") };
            let letters = runtime.block_on(DeadLetters::of(spool).list(0, usize::MAX)).expect("the dead letters");
            let mut dead = BTreeMap::<u64, u64>::new();
            for letter in letters {
                assert_eq!(letter.reason, "it was rejected: by three", "{of}");
                *dead.entry(number(letter.message.payload())).or_default() += 1;
            }
            let rejects = |number: &u64| *of == Mode::Buried.name() && Mode::Buried.rejects(*number);
            assert!(dead.keys().all(rejects), "{of}: {dead:?}");
            assert!(dead.values().all(|times| *times <= 1 + self.kills[0]), "{of}: {dead:?}");
            let missing: Vec<_> =
                sent.given.iter().filter(|number| rejects(number) && !dead.contains_key(number)).collect();
            assert!(missing.is_empty(), "{of}: rejected, and lost: {missing:?}");
            assert!(sent.rejected.iter().all(|number| dead.contains_key(number)));
        }
    }
}

impl Done {
    fn look(&mut self) {
        // It is made by the receiver's first life.
        let Ok(mut file) = fs::File::open(&self.path) else { return };
        let mut text = String::new();
        file.seek(SeekFrom::Start(self.read_to)).expect("the effects");
        file.read_to_string(&mut text).expect("the effects");
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read_to += whole as u64;
        text[..whole].lines().for_each(|line| self.see(Effect::read(line)));
    }

    fn see(&mut self, effect: Effect) {
        let (mode, Effect { number, life, attempt, id, .. }) = (self.mode, effect);
        if effect.acked {
            self.acked.insert(number);
            return;
        }
        let before = self.effects.entry(number).or_default();
        match before.last() {
            None => {
                // All links of one sender to one receiver follow one another, and each begins with the oldest that is not
                // confirmed: in whatever life of either, what comes for the first time comes in the order it was sent.
                let newest = self.newest.replace(id.seq);
                assert!(newest < Some(id.seq), "{mode:?}: {effect:?} comes after {newest:?}");
                let newest = self.tasks.insert(number >> 24, number);
                assert!(newest < Some(number), "{mode:?}: {effect:?} comes after {newest:?}");
            }
            Some(last) => {
                assert_eq!(last.id, id, "{mode:?}: who it is never changes");
                assert!(attempt > 1, "{mode:?}: {effect:?} comes again as if for the first time");
                assert!(last.life < life, "{mode:?}: {effect:?} was done in this life already");
                let known = mode == Mode::Inbox && self.acked.contains(&number);
                assert!(!known, "{effect:?} was in the inbox");
            }
        }
        before.push(effect);
    }
}

/// In short.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "killed {:?}, {} receipts", self.kills, self.receipts)?;
        for done in &self.done {
            let again = done.effects.values().map(|effects| effects.len() - 1).sum::<usize>();
            write!(f, ", {}: {} done, {again} again", done.mode.name(), done.effects.len())?;
        }
        Ok(())
    }
}
