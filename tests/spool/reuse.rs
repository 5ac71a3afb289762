//! The file of a segment that goes is that of the next one.

use futures::executor::block_on;
use ropewalk::spool::{Durability, Spool, SpoolOptions, WhenFull};

use crate::{
    chance::{Chance, Choose},
    disk::{Fault, Sim},
    model::{message, read_all, small},
};

/// Appends so many and settles each, but for the last few. `end` is behind the last that was accepted, also when it fails.
fn go_round(spool: &Spool, count: u64, end: &mut u64) -> Result<(), ()> {
    block_on(spool.cursor("reader")).map_err(drop)?;
    let first = spool.next_seq();
    for seq in first..first + count {
        *end = block_on(spool.append([message(seq)])).map_err(drop)?.end;
        spool.settle("reader", 0..seq.saturating_sub(2)).map_err(drop)?;
    }
    Ok(())
}

/// Whether what was not settled, and nothing that is no message of this log, is there.
fn has(spool: &Spool, unsettled: std::ops::Range<u64>) {
    let (records, lost) = read_all(spool).unwrap();
    assert!(lost.is_empty(), "{lost:?}");
    assert!(records.iter().all(|record| record.message == message(record.seq)));
    assert!(records.is_sorted_by(|a, b| a.seq < b.seq));
    for seq in unsettled {
        assert!(records.iter().any(|record| record.seq == seq), "{seq}");
    }
    assert!(block_on(spool.verify()).unwrap().damage.is_empty());
}

/// Goes well beyond its quota in bytes, in the files of a directory.
#[cfg(unix)]
#[tokio::test]
async fn a_log_whose_readers_keep_up_goes_round_in_a_few_files() {
    use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt};

    let directory = tempfile::tempdir().unwrap();
    for durability in [Durability::Always, Durability::Os] {
        let options = SpoolOptions::new(durability).segment(64 << 10).quota(1 << 20);
        let (spool, _) = Spool::open(directory.path(), options.clone()).await.unwrap();
        spool.cursor("reader").await.unwrap();
        let (mut files, mut segments) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..2000 {
            let seqs = spool.append([vec![7; 1000]]).await.unwrap();
            spool.settle("reader", seqs).unwrap();
            for file in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
                let name = file.file_name().into_string().unwrap();
                // It may be renamed meanwhile.
                if let Some(metadata) = file.metadata().ok().filter(|_| name.ends_with(".seg")) {
                    files.insert(metadata.ino());
                    segments.insert(name);
                }
            }
        }
        assert!(segments.len() > 25, "{}", segments.len());
        assert!(files.len() < segments.len() / 2, "{} files for {} segments", files.len(), segments.len());
        spool.close().await.unwrap();
        let names = fs::read_dir(&directory).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let waits: Vec<String> = names.filter(|name| name.ends_with(".next")).collect();
        assert!(waits.is_empty(), "a file that waits to be used again does not stay: {waits:?}");
        let (spool, report) = Spool::open(directory.path(), options).await.unwrap();
        assert!(report.clean && report.torn_bytes == 0, "{report:?}");
        spool.close().await.unwrap();
    }
}

/// The power goes, or an operation fails, at each moment of a log that goes round: whatever was accepted is there until
/// it is settled.
#[test]
fn every_crash_while_a_file_is_used_again() {
    let (disk, mut before) = (Sim::default(), 0);
    {
        let spool = block_on(Spool::open_on(disk.clone(), small(Durability::Always))).unwrap().0;
        // The next file is prepared already, or will be that of a segment that goes.
        go_round(&spool, 55, &mut before).unwrap();
        block_on(spool.close()).unwrap();
    }
    let (mut reused, mut checked) = (0, 0);
    for off in 1.. {
        let disk = disk.kill();
        disk.world().fault = Some(if off % 2 == 0 { Fault::Off(off / 2) } else { Fault::Fails(off / 2 + 1) });
        let mut end = before;
        let done =
            block_on(Spool::open_on(disk.clone(), small(Durability::Always))).map_err(drop).and_then(|(spool, _)| {
                go_round(&spool, 130, &mut end)?;
                block_on(spool.close()).map_err(drop)
            });
        reused += disk.world().reused;
        for seed in 0..4 {
            let after = if seed == 0 { disk.kill() } else { disk.power_cut(&mut Chance(off << 8 | seed)) };
            let (spool, report) = block_on(Spool::open_on(after.clone(), small(Durability::Always))).unwrap();
            assert!(report.damage.is_empty(), "{off}, {seed}: {report:?}");
            let settled = spool.settled("reader").unwrap_or(0);
            has(&spool, settled..end);
            checked += end.saturating_sub(settled);
            let mut next = 0;
            go_round(&spool, 1 + seed, &mut next).unwrap();
            let again = after.power_cut(&mut Chance(seed));
            let (spool, _) = block_on(Spool::open_on(again, small(Durability::Always))).unwrap();
            has(&spool, spool.settled("reader").unwrap_or(0).max(next.saturating_sub(1 + seed))..next);
        }
        if done.is_ok() && disk.world().operations < off / 2 {
            break;
        }
    }
    assert!(reused > 100 && checked > 2000, "{reused}, {checked}");
}

/// Killed, or the power goes: nothing of an earlier segment comes back, though whole frames of it stand behind, and only
/// what is ours is told to be torn.
#[test]
fn what_an_earlier_segment_has_left_does_not_come_back() {
    for seed in 0..200 {
        let (disk, mut chance) = (Sim::default(), Chance(seed));
        let spool = block_on(Spool::open_on(disk.clone(), small(Durability::Os))).unwrap().0;
        let (count, mut end) = (100 + chance.choose(60) as u64, 0);
        go_round(&spool, count, &mut end).unwrap();
        let reused = disk.world().reused;
        assert!(reused > 0, "{reused}");
        let killed = seed % 2 == 0;
        let after = if killed { disk.kill() } else { disk.power_cut(&mut chance) };
        let (spool, report) = block_on(Spool::open_on(after, small(Durability::Os))).unwrap();
        assert!(report.damage.is_empty() && !report.clean, "{report:?}");
        assert!(!killed || report.torn_bytes == 0, "{report:?}");
        has(&spool, 0..0);
        let settled = spool.settled("reader").unwrap();
        let (records, _) = read_all(&spool).unwrap();
        let unsettled: Vec<u64> = records.iter().map(|record| record.seq).filter(|seq| *seq >= settled).collect();
        assert!(unsettled.iter().all(|seq| *seq < end), "{unsettled:?}");
        assert!(unsettled.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{unsettled:?}");
        assert!(!killed || unsettled.last() == Some(&(end - 1)), "{unsettled:?}");
    }
}

fn waits(disk: &Sim) -> bool {
    disk.files().keys().any(|name| name.ends_with(".next"))
}

/// No file is used again that would take more than the quota, and none waits where there is no room.
#[test]
fn what_is_used_again_stays_within_the_quota() {
    let mut reused = 0;
    for quota in [32 << 10, 36 << 10, 40 << 10, 48 << 10] {
        let disk = Sim::default();
        let options = small(Durability::Always).quota(quota);
        let spool = block_on(Spool::open_on(disk.clone(), options)).unwrap().0;
        block_on(spool.cursor("reader")).unwrap();
        let (mut chance, mut end) = (Chance(quota), 0);
        for _ in 0..100 {
            // As much as there is surely room for, and then a part of it is settled.
            while spool.stats().bytes + (6 << 10) < quota && chance.choose(20) > 0 {
                end = block_on(spool.append([message(end)])).unwrap().end;
                // The tidying behind the append has ended then.
                (0..2).for_each(|_| block_on(spool.sync()).unwrap());
                let used: usize = disk.files().values().map(Vec::len).sum();
                assert!(used as u64 <= quota, "{used} of {quota}");
                let bytes = spool.stats().bytes;
                assert!(!waits(&disk) || bytes + 2 * (8 << 10) <= quota, "{bytes} of {quota}");
            }
            let settled = spool.settled("reader").unwrap();
            spool.settle("reader", 0..settled + chance.choose((end - settled) as usize + 1) as u64).unwrap();
        }
        reused += disk.world().reused;
    }
    assert!(reused > 5, "{reused}");
}

/// A file that waits is given back to a full disk before anything is dropped for want of room.
#[test]
fn a_full_disk_drops_nothing_while_a_file_waits_to_be_used_again() {
    let disk = Sim::default();
    // Where each group is synced, room is made ready, and the disk is full later.
    let options = small(Durability::Os).when_full(WhenFull::DropOldest);
    let spool = block_on(Spool::open_on(disk.clone(), options)).unwrap().0;
    block_on(spool.cursor("reader")).unwrap();
    let append = || {
        block_on(spool.append([message(spool.next_seq())])).unwrap();
        // The tidying behind the append has ended then.
        (0..2).for_each(|_| block_on(spool.sync()).unwrap());
    };
    while spool.stats().segments < 3 {
        append();
    }
    let mut settled = 0;
    while !waits(&disk) {
        settled += 1;
        spool.settle("reader", 0..settled).unwrap();
        append();
    }
    let (first, used) = (spool.stats().seqs.start, disk.files().values().map(Vec::len).sum());
    disk.world().capacity = Some(used);
    while waits(&disk) {
        append();
    }
    let refused = disk.world().refused;
    assert!(refused > 0, "the file went because there was no room");
    assert_eq!(spool.stats().seqs.start, first, "nothing was dropped");
    // Where nothing waits, the oldest go.
    while spool.stats().seqs.start == first {
        append();
    }
}
