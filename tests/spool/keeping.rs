//! What stays in the log and what goes: retention, a full quota, notes, and another name.

use std::time::{Duration, Instant};

use futures::{FutureExt, executor::block_on};
use ropewalk::spool::{CursorError, Durability, ReadError, Reader, Retain, Spool, SpoolError, SpoolOptions, WhenFull};

use crate::{
    chance::Chance,
    disk::{Fault, Sim},
    model::{message, read_all, read_all_from, small},
};

fn open(disk: &Sim, options: SpoolOptions) -> Spool {
    block_on(Spool::open_on(disk.clone(), options)).unwrap().0
}

fn append(spool: &Spool, count: u64) -> std::ops::Range<u64> {
    let first = spool.next_seq();
    for seq in first..first + count {
        assert_eq!(block_on(spool.append([message(seq)])).unwrap(), seq..seq + 1);
    }
    first..first + count
}

/// A turn of the writer, in which it tidies up, and the one before it, whose tidying may be under way.
fn tidy(spool: &Spool) {
    block_on(spool.sync()).unwrap();
    block_on(spool.sync()).unwrap();
}

#[test]
fn what_is_settled_is_kept_to_be_read_again() {
    let disk = Sim::default();
    let spool = open(&disk, small(Durability::Always).tail(0).retain(Retain::default().bytes(30_000)));
    block_on(spool.cursor("reader")).unwrap();
    let seqs = append(&spool, 400);
    spool.settle("reader", seqs).unwrap();
    tidy(&spool);
    let (stats, (records, _)) = (spool.stats(), read_all(&spool).unwrap());
    assert!((30_000..30_000 + 2 * 8192).contains(&stats.bytes), "{stats:?}");
    assert!(records.len() > 30 && records.len() < 400 && records[0].seq == stats.seqs.start);
    assert_eq!(spool.settled("reader"), Some(400));
}

#[test]
fn what_is_settled_goes_when_it_is_old_enough() {
    let disk = Sim::default();
    let keep = Retain::default().age(Duration::from_millis(200));
    let spool = open(&disk, small(Durability::Os).retain(keep));
    block_on(spool.cursor("reader")).unwrap();
    let began = Instant::now();
    let seqs = append(&spool, 100);
    spool.settle("reader", seqs).unwrap();
    tidy(&spool);
    if began.elapsed() < Duration::from_millis(200) {
        assert!(spool.stats().segments > 4, "{:?}", spool.stats());
    }
    // Nobody does anything, and it goes.
    while spool.stats().segments > 1 {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
}

#[test]
fn what_is_settled_makes_room_before_anybody_waits() {
    let disk = Sim::default();
    let keep = Retain::default().age(Duration::from_secs(3600));
    let spool = open(&disk, small(Durability::Os).quota(0).retain(keep));
    block_on(spool.cursor("reader")).unwrap();
    for _ in 0..30 {
        let seqs = append(&spool, 10);
        spool.settle("reader", seqs).unwrap();
    }
    assert!(spool.stats().bytes <= 32 << 10, "{:?}", spool.stats());
}

fn tight() -> SpoolOptions {
    small(Durability::Always).quota(0).tail(0).when_full(WhenFull::DropOldest)
}

fn missed(reader: &mut Reader) -> (std::ops::Range<u64>, u64) {
    match block_on(reader.next()) {
        Err(ReadError::Missed { seqs, records }) => (seqs, records),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_oldest_are_dropped_and_everybody_is_told_exactly() {
    let disk = Sim::default();
    let spool = open(&disk, tight());
    for name in ["none", "some", "all"] {
        block_on(spool.cursor(name)).unwrap();
    }
    append(&spool, 9);
    let mut readers: Vec<Reader> = [0, 0, 3].map(|seq| spool.read_from(seq)).into();
    for _ in 0..5 {
        block_on(readers[1].next()).unwrap();
    }
    // A crash: seqs that were never given.
    disk.world().fault = Some(Fault::Off(0));
    let fails = block_on(spool.append(["lost"]));
    assert!(matches!(fails, Err(SpoolError::Failed(_))));
    drop((readers, spool));
    let disk = disk.power_cut(&mut Chance(3));
    let spool = open(&disk, tight());
    assert!(spool.next_seq() > 1000, "{}", spool.next_seq());
    let mut readers: Vec<Reader> = [0, 5, 500, 1000].map(|seq| spool.read_from(seq)).into();
    spool.settle("some", 2..6).unwrap();
    let mut given: Vec<u64> = (0..9).collect();
    for _ in 0..200 {
        given.extend(append(&spool, 1));
        spool.settle("all", 0..spool.next_seq()).unwrap();
        assert!(spool.stats().bytes <= 32 << 10);
    }
    let front = spool.stats().seqs.start;
    let gone = given.iter().filter(|seq| **seq < front).count() as u64;
    assert!(gone > 100);
    for (reader, (from, already)) in readers.iter_mut().zip([(0, 0), (5, 5), (500, 9), (1000, 9)]) {
        let first = *given.iter().find(|seq| **seq >= from).unwrap();
        assert_eq!(missed(reader), (first..front, gone - already));
        let (records, _, again) = read_all_from(reader).unwrap();
        let there: Vec<u64> = given.iter().copied().filter(|seq| *seq >= front).collect();
        assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), there);
        assert!(again.is_empty(), "it is said once");
    }
    let check = |spool: &Spool| {
        let stats = spool.stats().cursors;
        assert_eq!((stats["none"].missed, stats["none"].settled), (gone, front));
        assert_eq!(stats["none"].unsettled, given.len() as u64 - gone);
        assert_eq!((stats["some"].missed, stats["all"].missed), (gone - 4, 0));
        assert_eq!(missed(&mut spool.read_from(7)), (7..front, gone - 7));
    };
    check(&spool);
    block_on(spool.close()).unwrap();
    drop((readers, spool));
    check(&open(&disk.power_cut(&mut Chance(1)), tight()));
}

#[test]
fn without_a_cursor_everything_stays_until_there_is_no_room() {
    let disk = Sim::default();
    let spool = open(&disk, small(Durability::Os).quota(120_000));
    let kept = append(&spool, 100).count();
    assert_eq!(read_all(&spool).unwrap().0.len(), kept);
    let disk = Sim::default();
    let spool = open(&disk, small(Durability::Os).quota(120_000).when_full(WhenFull::DropOldest));
    append(&spool, 900);
    let stats = spool.stats();
    assert!(stats.bytes <= 120_000 && stats.seqs.start > 100, "{stats:?}");
}

#[test]
fn a_full_disk_drops_the_oldest_too() {
    let disk = Sim::default();
    disk.world().capacity = Some(40_000);
    let spool = open(&disk, small(Durability::Always).tail(0).when_full(WhenFull::DropOldest));
    block_on(spool.cursor("reader")).unwrap();
    let seqs = append(&spool, 300);
    assert!(disk.world().refused > 0);
    let stats = spool.stats();
    assert!(stats.cursors["reader"].missed > 100, "{stats:?}");
    let mut reader = spool.read_from(0);
    let (gone, records) = missed(&mut reader);
    assert_eq!((gone.start, gone.end), (0, records));
    let (rest, ..) = read_all_from(&mut reader).unwrap();
    assert_eq!(rest.len() as u64 + records, seqs.end);
}

#[test]
fn notes_last_until_the_record_is_settled() {
    let disk = Sim::default();
    let spool = open(&disk, small(Durability::Always));
    block_on(spool.cursor("a")).unwrap();
    block_on(spool.cursor("b")).unwrap();
    append(&spool, 10);
    assert_eq!(spool.note("c", 1, 1), Err(CursorError::Unknown));
    spool.note("a", 3, 1).unwrap();
    spool.note_many("a", [(3, 2), (4, 7), (5, 1), (99, 1)]).unwrap();
    spool.note("b", 3, 9).unwrap();
    spool.settle_many("a", [5..6, 8..10]).unwrap();
    spool.note("a", 5, 3).unwrap();
    let check = |spool: &Spool| {
        let found = [3, 4, 5, 99].map(|seq| spool.noted("a", seq));
        assert_eq!((found, spool.noted("b", 3), spool.noted("c", 3)), ([2, 7, 0, 0], 9, 0));
    };
    check(&spool);
    // They travel with the next record.
    append(&spool, 1);
    let disk = disk.power_cut(&mut Chance(0));
    let spool = open(&disk, small(Durability::Always));
    check(&spool);
    // And by the checkpoints.
    spool.settle("b", 0..1).unwrap();
    block_on(spool.close()).unwrap();
    let spool = open(&disk, small(Durability::Always));
    check(&spool);
    assert_eq!(spool.settle_many("a", [3..4, 4..5, 5..7]), Ok(()));
    assert_eq!((spool.noted("a", 3), spool.noted("a", 4)), (0, 0));
}

#[test]
fn what_is_only_noted_or_settled_is_not_synced() {
    let disk = Sim::default();
    let spool = open(&disk, small(Durability::Always));
    block_on(spool.cursor("a")).unwrap();
    append(&spool, 20);
    let syncs = disk.world().syncs;
    for seq in 0..10 {
        spool.settle("a", seq..seq + 1).unwrap();
        spool.note("a", seq + 10, 1).unwrap();
    }
    let began = Instant::now();
    let bytes = spool.stats().bytes;
    while spool.stats().bytes == bytes {
        assert!(began.elapsed() < Duration::from_secs(20), "it is written in its time");
        std::thread::yield_now();
    }
    assert_eq!(disk.world().syncs, syncs);
}

#[test]
fn a_forked_log_has_another_name_for_good() {
    let disk = Sim::default();
    let spool = open(&disk, small(Durability::Os));
    append(&spool, 5);
    let (old, incarnation) = (spool.stream(), spool.incarnation());
    block_on(spool.fork()).unwrap();
    let new = spool.stream();
    assert!(new != old && spool.incarnation() == incarnation);
    append(&spool, 5);
    let spool = open(&disk.power_cut(&mut Chance(5)), small(Durability::Os));
    assert_eq!(spool.stream(), new);
    let (records, _) = read_all(&spool).unwrap();
    assert!(records.len() >= 5, "what stood there before the fork was synced by it");
    assert!(records[..5].iter().all(|record| record.incarnation == incarnation));
}

#[test]
fn who_waits_for_a_failure_hears_of_it() {
    let disk = Sim::default();
    let spool = open(&disk, small(Durability::Always));
    assert!(spool.failed().now_or_never().is_none() && !spool.is_failed());
    disk.world().fault = Some(Fault::Off(0));
    assert!(block_on(spool.append([message(0)])).is_err());
    assert!(matches!(block_on(spool.failed()), SpoolError::Failed(_)));
    assert!(spool.is_failed());
    let spool = open(&Sim::default(), small(Durability::Always));
    block_on(spool.close()).unwrap();
    assert!(matches!(block_on(spool.failed()), SpoolError::Closed));
    assert!(!spool.is_failed());
}
