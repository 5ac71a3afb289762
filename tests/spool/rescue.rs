//! A segment of which little is wanted is rewritten with only that.

use std::time::UNIX_EPOCH;

use futures::executor::block_on;
use ropewalk::spool::{Durability, Retain, Spool, SpoolOptions, Storage};

use crate::{
    chance::{Chance, Choose},
    disk::{Fault, Sim},
    model::{message, read_all, read_all_from, small},
};

fn options() -> SpoolOptions {
    small(Durability::Always).tail(0)
}

fn open(disk: impl Storage + 'static, options: SpoolOptions) -> Spool {
    block_on(Spool::open_on(disk, options)).unwrap().0
}

/// Appends so many, and settles all but these.
fn fill(spool: &Spool, count: u64, wanted: &[u64]) {
    for _ in 0..count {
        let seq = spool.next_seq();
        block_on(spool.append([message(seq)])).unwrap();
        if !wanted.contains(&seq) {
            spool.settle("reader", seq..seq + 1).unwrap();
        }
    }
}

/// Some turns of the writer, in which nothing else is to be done.
fn tidy(spool: &Spool, turns: usize) {
    for _ in 0..turns {
        block_on(spool.sync()).unwrap();
    }
}

#[test]
fn stragglers_keep_little() {
    let wanted = [3, 4, 77, 300];
    let disk = Sim::default();
    let spool = open(disk.clone(), options());
    block_on(spool.cursor("reader")).unwrap();
    fill(&spool, 600, &wanted);
    tidy(&spool, 200);
    let check = |spool: &Spool, most: usize| {
        let (records, lost) = read_all(spool).unwrap();
        assert!(lost.is_empty());
        assert!(records.iter().all(|record| record.message == message(record.seq)));
        let seqs: Vec<u64> = records.iter().map(|record| record.seq).collect();
        assert!(wanted.iter().all(|seq| seqs.contains(seq)) && seqs.len() < most, "{seqs:?}");
        assert_eq!(spool.settled("reader"), Some(3));
        assert!(block_on(spool.verify()).unwrap().damage.is_empty());
    };
    check(&spool, 150);
    let stats = spool.stats();
    assert!(stats.bytes < 5000 * stats.segments as u64 + 8192, "{stats:?}");
    assert_eq!(stats.cursors["reader"].unsettled, 4);
    assert!(disk.world().rewritten > 20);
    // What all had settled is gone for who comes later, too.
    block_on(spool.cursor("late")).unwrap();
    assert!(spool.stats().cursors["late"].unsettled < 150);
    block_on(spool.close()).unwrap();
    let disk = disk.power_cut(&mut Chance(7));
    let spool = open(disk.clone(), options());
    check(&spool, 150);
    spool.settle("reader", 3..5).unwrap();
    assert_eq!(spool.settled("reader"), Some(77), "what is gone is settled");
    spool.settle("late", 0..600).unwrap();
    spool.settle("reader", 0..600).unwrap();
    tidy(&spool, 20);
    assert!(spool.stats().segments <= 2, "{:?}", spool.stats());
}

/// Readers that are anywhere in the log while it is rewritten get what is wanted, once and in order.
#[test]
fn readers_go_on_in_a_segment_that_is_rewritten() {
    for seed in 0..40 {
        let (mut chance, disk) = (Chance(seed), Sim::default());
        // Segments are larger than what a reader is given at once.
        let spool = open(disk.clone(), options().segment(600 << 10));
        block_on(spool.cursor("reader")).unwrap();
        let wanted: Vec<u64> = (0..300).filter(|_| chance.choose(20) == 0).collect();
        for _ in 0..300 {
            block_on(spool.append([vec![7; 4000]])).unwrap();
        }
        let mut readers: Vec<_> = (0..6)
            .map(|_| {
                let (mut reader, read) = (spool.read_from(0), chance.choose(200));
                let records: Vec<u64> = (0..read).map(|_| block_on(reader.next()).unwrap().seq).collect();
                (reader, records)
            })
            .collect();
        spool.settle_many("reader", (0..300).filter(|seq| !wanted.contains(seq)).map(|seq| seq..seq + 1)).unwrap();
        tidy(&spool, chance.choose(20));
        for (reader, records) in &mut readers {
            let (rest, lost, missed) = read_all_from(reader).unwrap();
            assert!(lost.is_empty() && missed.is_empty());
            records.extend(rest.iter().map(|record| record.seq));
            assert!(records.is_sorted_by(|a, b| a < b));
            assert!(wanted.iter().all(|seq| records.contains(seq)), "seed {seed}");
        }
    }
}

#[test]
fn a_full_quota_is_room_enough_when_half_of_it_is_settled() {
    let disk = Sim::default();
    let spool = open(disk.clone(), options().segment(32 << 10).quota(150_000));
    block_on(spool.cursor("reader")).unwrap();
    for _ in 0..2000 {
        let seq = spool.next_seq();
        block_on(spool.append([message(seq)])).unwrap();
        // One of eight stays, until it is old.
        spool.settle("reader", seq..seq + u64::from(seq % 8 != 0)).unwrap();
        if seq >= 800 {
            spool.settle("reader", seq - 800..seq - 799).unwrap();
        }
    }
    let (records, _) = read_all(&spool).unwrap();
    let wanted = (1200..2000).filter(|seq| seq % 8 == 0);
    assert!(wanted.clone().all(|seq| records.iter().any(|record| record.seq == seq)));
    assert!(spool.stats().bytes <= 150_000 && disk.world().rewritten > 3, "{}", disk.world().rewritten);
}

#[test]
fn what_is_retained_is_not_rewritten() {
    let disk = Sim::default();
    let spool = open(disk.clone(), options().retain(Retain::default().bytes(1 << 20)));
    block_on(spool.cursor("reader")).unwrap();
    fill(&spool, 300, &[3]);
    tidy(&spool, 50);
    assert_eq!(read_all(&spool).unwrap().0.len(), 300);
}

/// The power goes, or an operation fails, at each moment of a rewriting.
#[test]
fn every_crash_of_a_rewriting() {
    let wanted = [2, 3, 25, 45];
    let (disk, mut rewritten) = (Sim::default(), 0);
    {
        let spool = open(disk.clone(), options());
        block_on(spool.cursor("reader")).unwrap();
        for seq in 0..70 {
            block_on(spool.append([message(seq)])).unwrap();
        }
        block_on(spool.close()).unwrap();
    }
    for off in 1.. {
        let disk = disk.kill();
        disk.world().fault = Some(if off % 2 == 0 { Fault::Off(off / 2) } else { Fault::Fails(off / 2 + 1) });
        // What is only prepared may fail, and nobody hears of it.
        let through = work(&disk, &wanted).is_ok() && disk.world().operations < off / 2;
        rewritten += disk.world().rewritten;
        for seed in 0..6 {
            let after = if seed == 0 { disk.kill() } else { disk.power_cut(&mut Chance(seed)) };
            let spool = open(after.clone(), options());
            let (records, lost) = read_all(&spool).unwrap();
            assert!(lost.is_empty());
            for seq in wanted {
                let found: Vec<_> = records.iter().filter(|record| record.seq == seq).collect();
                assert!(found.len() == 1 && found[0].message == message(seq), "{off}: {seq}");
            }
            // Nobody waits for what is gone: what is not settled is there.
            let unsettled = (0..70).filter(|seq| spool.is_settled("reader", *seq) == Some(false));
            for seq in unsettled {
                assert!(records.iter().any(|record| record.seq == seq), "{off}: {seq}");
            }
            block_on(spool.close()).unwrap();
            assert!(!after.files().keys().any(|name| name.ends_with(".new")), "nothing is left lying about");
        }
        if through {
            break;
        }
    }
    assert!(rewritten > 50, "{rewritten}");
}

fn work(disk: &Sim, wanted: &[u64]) -> Result<(), ()> {
    let (spool, _) = block_on(Spool::open_on(disk.clone(), options())).map_err(drop)?;
    for seq in (0..70).filter(|seq| !wanted.contains(seq)) {
        spool.settle("reader", seq..seq + 1).map_err(drop)?;
    }
    for _ in 0..30 {
        // A turn of the writer that syncs nothing.
        block_on(spool.seq_at(UNIX_EPOCH)).map_err(drop)?;
    }
    block_on(spool.close()).map_err(drop)
}
