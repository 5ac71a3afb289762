//! Readers of the tail and of the disk, and when records were appended.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{FutureExt, executor::block_on};
use ropewalk::spool::{Durability, ReadError, Reader, Record, Spool};

use crate::{
    chance::{Chance, Choose},
    disk::Sim,
    model::{message, small},
};

fn open(disk: &Sim, tail: usize) -> Spool {
    block_on(Spool::open_on(disk.clone(), small(Durability::Always).tail(tail))).unwrap().0
}

fn append(spool: &Spool, ids: std::ops::Range<u64>) {
    assert_eq!(block_on(spool.append(ids.clone().map(message))).unwrap(), ids);
}

#[test]
fn who_keeps_up_reads_no_disk() {
    let disk = Sim::default();
    let spool = open(&disk, 1 << 20);
    let mut readers: Vec<Reader> = (0..3).map(|_| spool.read_from(0)).collect();
    for round in 0..50 {
        append(&spool, 4 * round..4 * round + 4);
        let reads = disk.world().reads;
        for reader in &mut readers {
            for seq in 4 * round..4 * round + 4 {
                let record = reader.next().now_or_never().expect("it is there").unwrap();
                assert_eq!((record.seq, record.message), (seq, message(seq)));
            }
            assert!(reader.try_next().now_or_never().expect("there is no more").unwrap().is_none());
        }
        assert_eq!(disk.world().reads, reads);
    }
    // One that comes late finds in memory what is not older.
    let mut late = spool.read_from(190);
    let reads = disk.world().reads;
    assert_eq!(late.next().now_or_never().unwrap().unwrap().seq, 190);
    assert_eq!(disk.world().reads, reads);
}

/// Readers that are behind now and then, by any number, get every record once, from wherever it is.
#[test]
fn who_falls_behind_joins_the_tail_at_the_right_seq() {
    for seed in 0..60 {
        let (disk, mut chance) = (Sim::default(), Chance(seed));
        let spool = open(&disk, [0, 300, 2000, 6000][chance.choose(4)]);
        let mut readers: Vec<(u64, Reader)> = (0..4).map(|_| (0, spool.read_from(0))).collect();
        let (mut end, mut many) = (0, Vec::new());
        for _ in 0..60 {
            let count = 1 + chance.choose(6) as u64;
            append(&spool, end..end + count);
            end += count;
            for (seq, reader) in &mut readers {
                let limit = chance.choose(12);
                if chance.choose(2) == 0 {
                    many.clear();
                    while *seq < end && many.len() < limit {
                        let left = limit - many.len();
                        let added = block_on(reader.next_many(&mut many, left)).unwrap();
                        assert!((1..=left).contains(&added));
                        *seq += added as u64;
                    }
                    let first = *seq - many.len() as u64;
                    let right = |(seq, record): (u64, &Record)| record.seq == seq && record.message == message(seq);
                    assert!((first..).zip(&many).all(right));
                } else {
                    for _ in 0..limit {
                        let record = block_on(reader.try_next()).unwrap();
                        assert_eq!(record.as_ref().map(|record| record.seq), (*seq < end).then_some(*seq));
                        if let Some(record) = record {
                            assert_eq!(record.message, message(*seq));
                            *seq += 1;
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_reader_that_is_dropped_while_it_waits_for_the_disk_loses_nothing() {
    let disk = Sim::default();
    let spool = open(&disk, 0);
    append(&spool, 0..30);
    let (mut reader, mut seq) = (spool.read_from(0), 0);
    while seq < 30 {
        // Often it is not there at once: then the future is dropped.
        if let Some(record) = reader.next().now_or_never() {
            assert_eq!(record.unwrap().seq, seq);
            seq += 1;
        }
        let mut many = Vec::new();
        if let Some(added) = reader.next_many(&mut many, 3).now_or_never() {
            assert_eq!(added.unwrap(), many.len());
            assert!(many.iter().all(|record| std::mem::replace(&mut seq, record.seq + 1) == record.seq));
        }
    }
    assert!(reader.next().now_or_never().is_none());
    block_on(spool.close()).unwrap();
    assert!(matches!(block_on(reader.next_many(&mut Vec::new(), 1)), Err(ReadError::Closed)));
}

fn ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

#[test]
fn records_say_when_and_are_found_by_it() {
    let disk = Sim::default();
    let began = SystemTime::now();
    let mut times = Vec::new();
    let spool = open(&disk, 1000);
    for id in 0..80 {
        append(&spool, id..id + 1);
        // The clock goes on in between, now and then.
        let at = SystemTime::now();
        while id % 9 == 0 && ms(SystemTime::now()) == ms(at) {}
        if id == 40 {
            block_on(spool.sync()).unwrap();
        }
    }
    let mut reader = spool.read_from(0);
    while let Some(record) = block_on(reader.try_next()).unwrap() {
        times.push(record.appended_ms);
    }
    assert_eq!(times.len(), 80);
    assert!(times.is_sorted() && times[0] >= ms(began) && times[79] <= ms(SystemTime::now()) && times[79] > times[0]);
    let check = |spool: &Spool| {
        for at in times[0] - 1..=times[79] + 1 {
            let expected = times.partition_point(|&time| time < at) as u64;
            let time = UNIX_EPOCH + Duration::from_millis(at);
            let found = block_on(spool.seq_at(time)).unwrap();
            assert!(found == expected || (expected == 80 && found >= 80), "{at}: {found} for {expected}");
            let earlier = block_on(spool.seq_at(time - Duration::from_micros(1))).unwrap();
            assert_eq!(earlier, found, "a time between two milliseconds");
        }
    };
    check(&spool);
    drop(reader);
    // Over a crash that leaves records to copy, too.
    let disk = disk.kill();
    let spool = open(&disk, 1000);
    check(&spool);
    append_anyhow(&spool, 80);
    let mut reader = spool.read_from(80);
    let last = block_on(reader.next()).unwrap();
    assert!(last.appended_ms >= times[79], "it does not go back");
}

fn append_anyhow(spool: &Spool, id: u64) {
    block_on(spool.append([message(id)])).unwrap();
}

/// A log from a time to come: what is appended now is not said to be older.
#[test]
fn a_clock_that_was_set_back_does_not_go_back_in_the_log() {
    let disk = Sim::default();
    let spool = open(&disk, 1000);
    append(&spool, 0..1);
    block_on(spool.close()).unwrap();
    let future = ms(SystemTime::now()) + 1_000_000_000;
    let disk = disk.kill();
    for (name, mut bytes) in disk.files() {
        for at in (4096..bytes.len().saturating_sub(63)).step_by(8) {
            let frame = &mut bytes[at..at + 64];
            if frame[..4] == *b"RwFr" {
                let salt = u32::from_le_bytes(frame[4..8].try_into().unwrap()) ^ crc32c::crc32c(&frame[8..]);
                frame[56..64].copy_from_slice(&future.to_le_bytes());
                let crc = crc32c::crc32c(&frame[8..]) ^ salt;
                frame[4..8].copy_from_slice(&crc.to_le_bytes());
            }
        }
        disk.put(&name, &bytes);
    }
    let spool = open(&disk, 1000);
    append(&spool, 1..60);
    let mut reader = spool.read_from(0);
    for _ in 0..60 {
        assert!(block_on(reader.next()).unwrap().appended_ms >= future);
    }
    assert_eq!(block_on(spool.seq_at(UNIX_EPOCH + Duration::from_millis(future))).unwrap(), 0);
    assert_eq!(block_on(spool.seq_at(UNIX_EPOCH + Duration::from_millis(future + 1))).unwrap(), 60);
}
