//! Real power cuts: a file system in a file is shut down under a spool, and mounted again.
//!
//! `FS_IOC_SHUTDOWN` makes ext4 forget whatever it has not written, as a power cut does. The system call is made by a C
//! program of a few lines, compiled here: the crate forbids unsafe code for its tests, too, and a C compiler is needed
//! anyway by tests next door; a crate of its own would be one more that everybody builds. It needs root, loop devices
//! and mkfs.ext4; where one is missing, the tests say so and pass.
#![cfg(target_os = "linux")]

mod spool_child;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use ropewalk::spool::{Durability, Spool, SpoolOptions};
use spool_child::{Child, Dice, History, POLICIES};
use tokio::sync::{Mutex, MutexGuard};

const CYCLES: u64 = 12;

const CUT: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* cut power DIRECTORY: the file system forgets what is not on the disk, its journal included, and does no more.
   cut write FILE OFFSET: what stands in the file from there on goes to the disk; what stands before it need not. */
int main(int count, char **words) {
    int file = count < 3 ? -1 : open(words[2], O_RDONLY);
    if (file < 0) return perror("open"), 1;
    uint32_t without_the_journal = 2;
    if (strcmp(words[1], "power") == 0) {
        /* FS_IOC_SHUTDOWN, 0x8004587d */
        if (ioctl(file, _IOR('X', 125, uint32_t), &without_the_journal) < 0) return perror("shutdown"), 1;
        return 0;
    }
    unsigned how = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    if (sync_file_range(file, atoll(words[3]), 0, how) < 0) return perror("sync_file_range"), 1;
    return 0;
}
"#;

/// What the others cut off: see `spool_child`.
#[test]
#[ignore = "the other tests run it in a process of its own"]
fn child() {
    spool_child::work();
}

/// Runs a program to its end. What it said, when it failed.
fn run(program: &str, words: &[&Path]) -> Result<(), String> {
    let ran = Command::new(program).args(words).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ran.status.success().then_some(()).ok_or_else(|| format!("{program}: {}", said.trim()))
}

fn mount(image: &Path, place: &Path) -> Result<(), String> {
    run("mount", &["-o".as_ref(), "loop".as_ref(), image, place])
}

/// One machine at a time: a process that another test begins holds all files of this one for a moment, and then the file
/// system is busy.
static ONE: Mutex<()> = Mutex::const_new(());

/// A file system in a file, mounted. Neither mount nor loop device outlive it.
struct Machine {
    cut: PathBuf,
    image: PathBuf,
    mounted: PathBuf,
    // The last to go.
    _directory: tempfile::TempDir,
    _only: MutexGuard<'static, ()>,
}

impl Machine {
    /// `Err` says what is missing on this machine.
    fn new(only: MutexGuard<'static, ()>) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let inside = |name| directory.path().join(name);
        let (source, image, mounted) = (inside("cut.c"), inside("image"), inside("mounted"));
        fs::write(&source, CUT).and_then(|()| fs::create_dir(&mounted)).map_err(|error| error.to_string())?;
        run("cc", &[&source, "-o".as_ref(), &inside("cut")])?;
        let made = fs::File::create(&image).and_then(|file| file.set_len(96 << 20));
        made.map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &image])?;
        mount(&image, &mounted)?;
        let cut = inside("cut");
        let machine = Self { cut, image, mounted, _directory: directory, _only: only };
        machine.power_cut()?;
        Ok(machine)
    }

    async fn or_skipped() -> Option<Self> {
        let new = Self::new(ONE.lock().await);
        new.inspect_err(|why| eprintln!("skipped: no power can be cut here: {why}")).ok()
    }

    fn switch_on(&self) -> Result<(), String> {
        mount(&self.image, &self.mounted)
    }

    fn switch_off(&self) -> Result<(), String> {
        run("umount", &[&self.mounted])
    }

    fn shut_down(&self) -> Result<(), String> {
        run(&self.cut.to_string_lossy(), &["power".as_ref(), &self.mounted])
    }

    /// The power goes and comes back. Nobody may have a file open any more.
    fn power_cut(&self) -> Result<(), String> {
        self.shut_down()?;
        self.switch_off()?;
        self.switch_on()
    }

    fn spool(&self) -> PathBuf {
        self.mounted.join("orders")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.switch_off() {
            // Somebody still has a file open: it goes when that one ends.
            eprintln!("{error}, so later: {:?}", run("umount", &["-l".as_ref(), &self.mounted]));
        }
    }
}

#[tokio::test]
async fn a_power_cut_loses_nothing_that_was_synced() {
    let Some(machine) = Machine::or_skipped().await else { return };
    let (mut history, mut dice) = (History::default(), Dice(3));
    for cycle in 0..CYCLES {
        one_cut(&machine, &mut history, &mut dice, 0, cycle).await;
    }
    assert!(history.receipts > 20 * CYCLES && history.lost == 0, "{} promised", history.receipts);
    assert!(history.reused > 1, "some lives go round in their files: {}", history.reused);
}

#[tokio::test]
async fn without_a_sync_a_power_cut_takes_the_end_and_it_is_told() {
    let Some(machine) = Machine::or_skipped().await else { return };
    let (mut history, mut dice) = (History::default(), Dice(4));
    for cycle in 0..10 * CYCLES {
        let policy = dice.below(POLICIES.len() as u64) as usize;
        one_cut(&machine, &mut history, &mut dice, policy, cycle).await;
        // Each cut may find all of it on the disk already.
        if cycle + 1 >= CYCLES && history.lost > 0 {
            return;
        }
    }
    panic!("the power was never cut, or only where nothing was at stake: {} promised", history.receipts);
}

async fn one_cut(machine: &Machine, history: &mut History, dice: &mut Dice, policy: usize, cycle: u64) {
    let mut child = Child::begin(&machine.spool(), policy, cycle);
    // The first line says that it opens: some never get further.
    assert!(child.hear(history, 1 + dice.below(400)), "{:?}", history.stopped);
    // Nothing is waited for here: this chooses the moment.
    thread::sleep(Duration::from_micros(dice.below(3000)));
    child.catch_up(history);
    // A sync that runs while the file system is shut down may say that all is well, and it is not: in 150 rounds of a
    // bare loop of pwrite and fdatasync that was so 13 times. No sync that had ended before was ever lost. What was never
    // said to be synced is counted up to the last word: it is what the cut takes.
    let may_lose = POLICIES[policy] != Durability::Always;
    history.in_doubt = !may_lose;
    machine.shut_down().unwrap();
    child.kill(history);
    history.in_doubt = false;
    machine.switch_off().unwrap();
    machine.switch_on().unwrap();
    if may_lose || dice.below(3) > 0 {
        history.check(&machine.spool(), may_lose).await;
        // What was found once is there for good, whatever comes.
        machine.power_cut().unwrap();
        history.check(&machine.spool(), false).await;
    }
}

/// The newest file of a spool.
fn newest(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).max().unwrap()
}

/// One write puts a large record and a small one behind it; the power goes when the disk has only the small one.
#[tokio::test]
async fn a_whole_record_behind_a_hole_is_no_damage_and_does_not_rise_again() {
    let Some(machine) = Machine::or_skipped().await else { return };
    let large = || vec![2; 3 << 20];
    let (spool, _) = Spool::open(machine.spool(), SpoolOptions::new(Durability::Os)).await.unwrap();
    spool.append(["first"]).await.unwrap();
    spool.sync().await.unwrap();
    let lost = spool.append([large(), b"third".to_vec()]).await.unwrap();
    let file = newest(&machine.spool());
    let end = fs::metadata(&file).unwrap().len();
    let last_page = (end - 8) & !4095;
    run(&machine.cut.to_string_lossy(), &["write".as_ref(), &file, last_page.to_string().as_ref()]).unwrap();
    // Another file takes the journal along, and so the length of this one.
    let other = fs::File::create(machine.mounted.join("other")).unwrap();
    other.sync_all().unwrap();
    drop(other);
    machine.shut_down().unwrap();
    assert!(spool.close().await.is_err());
    machine.switch_off().unwrap();
    machine.switch_on().unwrap();

    let bytes = fs::read(&file).unwrap();
    let hole = bytes.windows(1 << 20).step_by(4096).any(|bytes| bytes.iter().all(|byte| *byte == 0));
    if !hole || bytes.len() as u64 != end || !bytes.windows(5).any(|bytes| bytes == b"third") {
        eprintln!("skipped: this system writes back in another order");
        return;
    }
    // Opened with the default: damage would be refused.
    let (spool, report) = Spool::open(machine.spool(), Durability::Always).await.unwrap();
    assert!(!report.clean && report.torn_bytes > 3 << 20, "{report:?}");
    assert_eq!(spool.verify().await.unwrap().records, 1);
    let again = spool.append([large(), b"fifth".to_vec()]).await.unwrap();
    assert!(again.start >= lost.end, "a seq is not given again");
    machine.shut_down().unwrap();
    assert!(spool.close().await.is_err());
    machine.switch_off().unwrap();
    machine.switch_on().unwrap();

    let (spool, _) = Spool::open(machine.spool(), Durability::Always).await.unwrap();
    let (mut reader, mut found) = (spool.read_from(0), Vec::new());
    while let Some(record) = reader.try_next().await.unwrap() {
        found.push((record.seq, record.message.parts()[0].clone()));
    }
    let expected = [(0, "first".into()), (again.start, large().into()), (again.start + 1, "fifth".into())];
    assert!(found == expected, "{:?}", found.iter().map(|(seq, part)| (*seq, part.len())).collect::<Vec<_>>());
    spool.close().await.unwrap();
}
