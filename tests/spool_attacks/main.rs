//! What was tried against the spool: the order of what it asks of a disk, calls that fail, files that are gone, options
//! at their ends.

#[cfg(target_os = "linux")]
mod at_rest;
mod used_again;
mod watched;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures::{FutureExt, future::poll_fn};
use ropewalk::spool::{Disk, Durability, OnDamage, OpenError, ReadError, Spool, SpoolOptions, Storage};
use tokio::time::timeout;
use watched::{Call, Watched};

const LONG: Duration = Duration::from_secs(20);

/// Segments of 8 KiB, and a quota of four of them.
fn small(durability: Durability) -> SpoolOptions {
    SpoolOptions::new(durability).segment(8 << 10).frame(1 << 10).quota(0)
}

fn roomy(durability: Durability) -> SpoolOptions {
    small(durability).quota(64 << 20)
}

async fn open(storage: impl Storage + 'static, options: SpoolOptions) -> Spool {
    Spool::open_on(storage, options).await.unwrap().0
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|name| name == "seg")).collect();
    paths.sort();
    paths
}

/// What a killed process leaves: the files as they are at this moment.
fn killed(directory: &Path) -> tempfile::TempDir {
    let left = tempfile::tempdir().unwrap();
    for path in segments(directory) {
        fs::copy(&path, left.path().join(path.file_name().unwrap())).unwrap();
    }
    left
}

/// All records there are, and the seqs that reading says are lost.
async fn read_all(spool: &Spool) -> (Vec<u64>, Vec<std::ops::Range<u64>>) {
    let (mut reader, mut records, mut lost) = (spool.read_from(0), Vec::new(), Vec::new());
    loop {
        match reader.try_next().await {
            Ok(Some(record)) => records.push(record.seq),
            Ok(None) => return (records, lost),
            Err(ReadError::Damaged(damage)) => lost.push(damage.seqs),
            Err(error) => panic!("{error}"),
        }
    }
}

// ---- what holds -----------------------------------------------------------------------------------------------------

/// Recovery finds files by their names: one that a power cut takes has nothing in it that anybody was told of.
#[tokio::test]
async fn a_name_is_synced_before_anything_in_its_file_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let watched = Watched::new(directory.path());
    for _ in 0..3 {
        let spool = open(watched.clone(), roomy(Durability::Always)).await;
        spool.cursor("reader").await.unwrap();
        for _ in 0..40 {
            let seqs = spool.append([vec![7; 700], vec![8; 100]]).await.unwrap();
            watched.see(|seen| seen.calls.push(Call::Accepted));
            spool.settle("reader", 0..seqs.start).unwrap();
        }
        spool.close().await.unwrap();
    }
    // What has another name while it is prepared is the same file.
    let number = |name: String| name.split_once('.').map_or_else(String::new, |(number, _)| number.to_string());
    let calls = watched.see(|seen| seen.calls.clone());
    let (mut new, mut unsynced, mut written, mut removed) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for call in calls {
        match call {
            Call::Create(name) => new.push(number(name)),
            Call::Rename(_, to) if !to.ends_with(".next") => new.push(number(to)),
            Call::SyncDirectory => (new, removed) = (Vec::new(), 0),
            Call::Write(name) => {
                let name = number(name);
                // The head of a segment says that the one before is whole: that has been synced by then.
                assert!(unsynced.iter().all(|other| *other == name), "{name} begins before {unsynced:?} is synced");
                unsynced = vec![name.clone()];
                written.push(name);
            }
            Call::Sync(name) => {
                let name = number(name);
                unsynced.retain(|other| *other != name);
            }
            Call::Remove(name) | Call::Rename(name, _) => {
                // One that was only prepared was never there.
                removed += usize::from(written.contains(&number(name)));
                assert!(removed <= 1, "one is gone for good before the next goes");
            }
            Call::Begin(..) => {}
            Call::Accepted => {
                assert!(unsynced.is_empty(), "accepted before {unsynced:?} was synced");
                assert!(
                    written.iter().all(|name| !new.contains(name)),
                    "accepted, and the name is not synced: {new:?}"
                );
            }
        }
    }
    written.dedup();
    assert!(written.len() > 12, "it went through many segments: {}", written.len());
}

/// The end of a segment waits for a sync of all that is in it, unless it is on its way to the disk by then.
#[tokio::test]
async fn what_waits_for_a_sync_is_on_its_way_to_the_disk() {
    const MIB: u64 = 1 << 20;
    let directory = tempfile::tempdir().unwrap();
    let watched = Watched::new(directory.path());
    let spool = open(watched.clone(), SpoolOptions::new(Durability::Os)).await;
    let write = async |mib: u64| {
        for _ in 0..16 * mib {
            spool.append([vec![7; 64 << 10]]).await.unwrap();
        }
    };
    let begun = || {
        let calls = watched.see(|seen| std::mem::take(&mut seen.calls));
        let ranges = calls.into_iter().filter_map(|call| match call {
            Call::Begin(_, range) => Some(range),
            _ => None,
        });
        ranges.collect::<Vec<_>>()
    };
    write(18).await;
    let first = begun();
    assert!(first.windows(2).all(|next| next[0].end == next[1].start), "{first:?}");
    assert!((14 * MIB..18 * MIB).contains(&(first.last().unwrap().end - first[0].start)), "{first:?}");
    // What is synced is there: it stays in memory for whoever reads it.
    write(3).await;
    spool.sync().await.unwrap();
    let behind = fs::metadata(&segments(directory.path())[0]).unwrap().len();
    begun();
    write(5).await;
    let rest = begun();
    assert!(!rest.is_empty() && rest.iter().all(|range| range.start >= behind), "{rest:?} behind {behind}");
    // A page of which a part is still to come is left for later.
    assert!(first.iter().chain(&rest).all(|range| range.end.is_multiple_of(4096)));
    spool.close().await.unwrap();
}

/// Senders that give up at any moment, one reader that settles, and a quota that is always full: nobody waits for ever,
/// and who was told that a record is there, finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_that_give_up_leave_nobody_waiting() {
    const SENDERS: u64 = 12;
    for policy in [Durability::Os, Durability::Every(Duration::from_millis(1)), Durability::Always] {
        let directory = tempfile::tempdir().unwrap();
        let spool = open(Disk::new(directory.path()), small(policy)).await;
        spool.cursor("reader").await.unwrap();
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        for sender in 0..SENDERS {
            let (spool, told) = (spool.clone(), told.clone());
            tokio::spawn(async move {
                for n in 0..60 {
                    let message = vec![n as u8; 200 + (sender * 97 + n * 31) as usize % 900];
                    let append = spool.append([message]);
                    if (sender + n) % 3 == 0 {
                        let patience = Duration::from_micros((sender * 7 + n * 13) % 400);
                        let _given_up = timeout(patience, append).await;
                    } else {
                        told.send(append.await.unwrap().start).unwrap();
                    }
                }
            });
        }
        drop(told);
        let mut reader = spool.read_from(0);
        let (mut promised, mut found) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        timeout(LONG, async {
            loop {
                tokio::select! {
                    record = reader.next() => {
                        let seq = record.unwrap().seq;
                        assert!(found.insert(seq), "{seq} is there twice");
                        spool.settle("reader", seq..seq + 1).unwrap();
                    }
                    seq = heard.recv() => match seq {
                        Some(seq) => assert!(promised.insert(seq), "{seq} is promised twice"),
                        None => break,
                    },
                }
            }
        })
        .await
        .unwrap_or_else(|_| panic!("somebody waits for ever: {:?}", spool.stats()));
        while let Some(record) = reader.try_next().await.unwrap() {
            found.insert(record.seq);
        }
        assert!(promised.len() >= 12 * 40 && promised.is_subset(&found), "{} of {}", found.len(), promised.len());
    }
}

// ---- what did not hold ----------------------------------------------------------------------------------------------

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Fills a spool up to its quota. How many records went in.
async fn fill(spool: &Spool) -> u64 {
    let mut sent = 0;
    loop {
        let append = spool.append([vec![7; 1000]]);
        match timeout(Duration::from_millis(300), append).await {
            Ok(seqs) => sent = seqs.unwrap().end,
            Err(_) => return sent,
        }
    }
}

#[tokio::test]
async fn who_waits_for_room_is_not_woken_without_end() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(Disk::new(directory.path()), small(Durability::Os)).await;
    spool.cursor("reader").await.unwrap();
    fill(&spool).await;
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut append = Box::pin(spool.append([vec![7; 1000]]));
    let until = tokio::time::Instant::now() + Duration::from_millis(100);
    let (mut polls, mut seen) = (0, usize::MAX);
    while tokio::time::Instant::now() < until {
        let woken = count.0.load(SeqCst);
        if woken != seen {
            (seen, polls) = (woken, polls + 1);
            assert!(append.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        }
        tokio::task::yield_now().await;
    }
    assert!(polls < 30, "woken {polls} times in 100 ms, and nothing had changed");
}

#[tokio::test]
async fn openings_without_records_do_not_add_up() {
    let directory = tempfile::tempdir().unwrap();
    let watched = Watched::new(directory.path());
    let spool = open(watched.clone(), roomy(Durability::Always)).await;
    spool.cursor("reader").await.unwrap();
    spool.append(["nobody is there to take it"]).await.unwrap();
    spool.close().await.unwrap();
    for _ in 0..150 {
        let spool = open(watched.clone(), roomy(Durability::Always)).await;
        spool.close().await.unwrap();
    }
    let (files, open) = (segments(directory.path()).len(), watched.see(|seen| seen.most_open));
    assert!(files < 20, "{files} files for one record");
    assert!(open < 20, "{open} files open at once");
}

/// A quota of 100 GiB is 1,600 files, and a process may have 1,024 open.
#[tokio::test]
async fn opening_a_long_log_does_not_open_all_its_files_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(Disk::new(directory.path()), roomy(Durability::Os)).await;
    for _ in 0..100 {
        spool.append((0..8).map(|_| vec![7; 900])).await.unwrap();
    }
    spool.close().await.unwrap();
    let watched = Watched::new(directory.path());
    let spool = open(watched.clone(), roomy(Durability::Os)).await;
    assert!(spool.stats().segments > 90);
    let open = watched.see(|seen| seen.most_open);
    assert!(open < 20, "{open} files open at once");
}

/// Four segments that nobody has settled; closed in order.
async fn log() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(Disk::new(directory.path()), roomy(Durability::Always)).await;
    spool.cursor("reader").await.unwrap();
    for _ in 0..4 * 12 {
        spool.append([vec![7; 300]]).await.unwrap();
    }
    assert!(spool.stats().segments >= 4);
    spool.close().await.unwrap();
    directory
}

#[tokio::test]
async fn a_first_file_that_is_gone_and_was_not_settled_is_damage() {
    let directory = log().await;
    fs::remove_file(&segments(directory.path())[0]).unwrap();
    let opened = Spool::open(directory.path(), roomy(Durability::Always)).await;
    assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{opened:?}");
}

#[tokio::test]
async fn a_file_cut_between_two_frames_names_what_is_lost() {
    let directory = log().await;
    let second = &segments(directory.path())[1];
    let bytes = fs::read(second).unwrap();
    let mut frames = (4096..bytes.len()).step_by(8).filter(|at| bytes[*at..].starts_with(b"RwFr"));
    let middle = frames.nth(4).unwrap();
    fs::File::options().write(true).open(second).unwrap().set_len(middle as u64).unwrap();
    let options = roomy(Durability::Always).on_damage(OnDamage::Skip);
    let (spool, report) = Spool::open(directory.path(), options).await.unwrap();
    let (records, mut lost) = read_all(&spool).await;
    lost.extend(report.damage.iter().map(|damage| damage.seqs.clone()));
    let silent = (0..48).filter(|seq| !records.contains(seq) && !lost.iter().any(|lost| lost.contains(seq)));
    assert_eq!(silent.collect::<Vec<_>>(), [], "lost, and the report says {:?}", report.damage);
}

#[tokio::test]
async fn an_opening_that_fails_for_want_of_room_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(Disk::new(directory.path()), roomy(Durability::Os)).await;
    spool.append((0..6).map(|_| vec![7; 900])).await.unwrap();
    let left = killed(directory.path());
    let watched = Watched::new(left.path());
    let size = || segments(left.path()).iter().map(|path| path.metadata().unwrap().len()).sum::<u64>();
    let before = size();
    for _ in 0..5 {
        watched.see(|seen| seen.room = Some(2000));
        let opened = Spool::open_on(watched.clone(), roomy(Durability::Os)).await;
        assert!(matches!(opened, Err(OpenError::Io { .. })), "{opened:?}");
    }
    let files = segments(left.path()).len();
    assert!(size() <= before + 4096, "{} bytes more after five openings, in {files} files", size() - before);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_file_that_cannot_be_made_for_a_moment_is_no_failed_disk() {
    const EMFILE: i32 = 24;
    let directory = tempfile::tempdir().unwrap();
    let watched = Watched::new(directory.path());
    let spool = open(watched.clone(), roomy(Durability::Always)).await;
    watched.see(|seen| seen.refuses_to_create = Some(EMFILE));
    for n in 0..40 {
        let appended = spool.append([vec![7; 900]]).await;
        assert!(appended.is_ok(), "{n}: {appended:?}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_directory_that_has_no_room_is_a_full_disk() {
    const ENOSPC: i32 = 28;
    let directory = tempfile::tempdir().unwrap();
    let watched = Watched::new(directory.path());
    let spool = open(watched.clone(), roomy(Durability::Always)).await;
    watched.see(|seen| seen.refuses_to_sync_directory = Some(ENOSPC));
    for n in 0..40 {
        let appended = timeout(LONG, spool.append([vec![7; 900]])).await;
        assert!(matches!(appended, Ok(Ok(_))), "{n}: {appended:?}");
    }
}

#[tokio::test]
async fn a_cursor_that_another_is_just_making_is_there_only_when_it_is_synced() {
    let directory = tempfile::tempdir().unwrap();
    let watched = Watched::new(directory.path());
    let spool = open(watched.clone(), roomy(Durability::Always)).await;
    watched.see(|seen| seen.held = true);
    let (mut first, mut second) = (Box::pin(spool.cursor("reader")), Box::pin(spool.cursor("reader")));
    let both = poll_fn(|context| {
        let polled = (first.poll_unpin(context), second.poll_unpin(context));
        Poll::Ready(polled)
    });
    let polled = both.await;
    watched.see(|seen| seen.held = false);
    assert_eq!(polled, (Poll::Pending, Poll::Pending), "nothing can have been synced");
}

#[tokio::test]
async fn long_names_of_cursors_do_not_fill_the_quota_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(Disk::new(directory.path()), small(Durability::Os)).await;
    for n in 0..200 {
        let made = timeout(LONG, spool.cursor(&format!("{n:0200}"))).await;
        assert!(matches!(made, Ok(Ok(()))), "{made:?}");
    }
    for _ in 0..30 {
        let appended = timeout(Duration::from_secs(5), spool.append([vec![7; 900]])).await;
        let Ok(Ok(seqs)) = appended else {
            panic!("everything is settled, and {appended:?}: {} bytes", spool.stats().bytes)
        };
        for n in 0..200 {
            spool.settle(&format!("{n:0200}"), seqs.clone()).unwrap();
        }
    }
}

/// Once peers make cursors, this is how one fills the disk of another.
#[tokio::test]
async fn cursors_that_come_and_go_do_not_outgrow_the_quota() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(Disk::new(directory.path()), small(Durability::Os)).await;
    spool.cursor("reader").await.unwrap();
    spool.append(["not settled"]).await.unwrap();
    for _ in 0..500 {
        spool.cursor("guest").await.unwrap();
        spool.forget("guest").await.unwrap();
    }
    assert!(spool.stats().bytes <= 64 << 10, "{} bytes with a quota of 32 KiB", spool.stats().bytes);
}

/// The incarnation is part of a message's identity, and so known to peers; places in the log can be guessed, many in
/// one message.
#[tokio::test]
async fn frames_in_a_message_are_no_frames_of_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(Disk::new(directory.path()), SpoolOptions::new(Durability::Os)).await;
    spool.append(["first"]).await.unwrap();
    let file = segments(directory.path()).pop().unwrap();
    // Heads that claim that all before them was synced, at every place where one can stand.
    const HEAD: u64 = 64;
    let begins = fs::metadata(&file).unwrap().len() + HEAD + 4;
    let mut payload = Vec::new();
    while payload.len() < 20_000 {
        let at = begins + payload.len() as u64;
        payload.resize(payload.len() + (at.next_multiple_of(8) - at) as usize, 0);
        let at = at.next_multiple_of(8);
        let mut head = Vec::new();
        [0_u32, 0].iter().for_each(|number| head.extend_from_slice(&number.to_le_bytes()));
        [at, at, 1, spool.incarnation()].iter().for_each(|number| head.extend_from_slice(&number.to_le_bytes()));
        head.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        head.resize(HEAD as usize - 8, 0);
        payload.extend_from_slice(b"RwFr");
        payload.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
        payload.extend_from_slice(&head);
    }
    spool.append([payload]).await.unwrap();
    // The power goes while it is written: the end of it is not there.
    let left = killed(directory.path());
    let copy = left.path().join(file.file_name().unwrap());
    let len = fs::metadata(&copy).unwrap().len();
    fs::File::options().write(true).open(&copy).unwrap().set_len(len - 100).unwrap();
    let opened = Spool::open(left.path(), Durability::Os).await;
    assert!(opened.is_ok(), "what was never synced is no damage: {opened:?}");
}

#[tokio::test]
async fn what_crashes_leave_behind_counts_against_the_quota() {
    let mut directory = tempfile::tempdir().unwrap();
    for _ in 0..12 {
        let spool = open(Disk::new(directory.path()), roomy(Durability::Os).segment(64 << 10)).await;
        spool.append((0..50).map(|_| vec![7; 1000])).await.unwrap();
        directory = killed(directory.path());
    }
    let spool = open(Disk::new(directory.path()), roomy(Durability::Os).segment(64 << 10)).await;
    let on_disk = segments(directory.path()).iter().map(|path| path.metadata().unwrap().len()).sum::<u64>();
    let (said, segment) = (spool.stats().bytes, 64 << 10);
    assert!(on_disk <= said + 2 * segment, "{on_disk} bytes on the disk, {said} are counted");
}

#[tokio::test]
async fn a_time_without_end_is_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(Disk::new(directory.path()), small(Durability::Every(Duration::MAX))).await;
    spool.append(["first"]).await.unwrap();
    spool.append(["second"]).await.unwrap();
}

/// Also where somebody asked for frames of any size.
#[tokio::test]
async fn no_frame_is_larger_than_can_be_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let options = || SpoolOptions::new(Durability::Os).segment(256 << 20).frame(usize::MAX).queue(u64::MAX);
    let spool = open(Disk::new(directory.path()), options()).await;
    let seqs = spool.append([vec![1; 140 << 20], vec![2; 140 << 20]]).await.unwrap();
    spool.close().await.unwrap();
    let spool = open(Disk::new(directory.path()), options().on_damage(OnDamage::Skip)).await;
    let (records, _) = read_all(&spool).await;
    assert_eq!(records, seqs.collect::<Vec<_>>());
}
