//! Any bytes in the directory: no panic, no memory without bound, and a spool that works or an error that says why.

use futures::executor::block_on;
use ropewalk::spool::{Durability, OnDamage, OpenError, Spool};

use crate::{
    chance::{Chance, Choose},
    disk::Sim,
    model::{message, read_all, small},
};

fn name(number: usize) -> String {
    format!("{number:020}.seg")
}

/// Opens what is there in both ways; what opens can be written, closed and opened again.
fn survives(disk: &Sim) {
    for on_damage in [OnDamage::Refuse, OnDamage::Skip] {
        let (disk, options) = (disk.kill(), small(Durability::Always).on_damage(on_damage));
        let spool = match block_on(Spool::open_on(disk.clone(), options.clone())) {
            Ok((spool, _)) => spool,
            Err(OpenError::Damaged { .. }) if on_damage == OnDamage::Refuse => continue,
            Err(OpenError::Version { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        let seqs = block_on(spool.append([message(3)])).unwrap();
        let (records, _) = read_all(&spool).unwrap();
        assert_eq!(records.last().map(|last| (last.seq, &last.message)), Some((seqs.start, &message(3))));
        block_on(spool.verify()).unwrap();
        block_on(spool.close()).unwrap();
        let (spool, report) = block_on(Spool::open_on(disk, options.on_damage(OnDamage::Skip))).unwrap();
        assert!(report.clean);
        let (again, _) = read_all(&spool).unwrap();
        assert_eq!(again.last(), records.last());
    }
}

#[test]
fn random_bytes() {
    for seed in 0..300 {
        let (disk, mut chance) = (Sim::default(), Chance(seed));
        for number in 1..=1 + chance.choose(3) {
            let len = chance.choose(20_000);
            let bytes: Vec<u8> = (0..len).map(|_| chance.next() as u8).collect();
            disk.put(&name(number), &bytes);
        }
        disk.put("note.txt", b"not ours");
        survives(&disk);
    }
}

/// A log of several segments that holds what a log can hold.
fn log() -> Sim {
    let disk = Sim::default();
    for opening in 0..3 {
        let (spool, _) = block_on(Spool::open_on(disk.clone(), small(Durability::Os))).unwrap();
        block_on(spool.cursor(&format!("reader {opening}"))).unwrap();
        for id in 0..40 {
            block_on(spool.append([message(id)])).unwrap();
        }
        spool.settle("reader 0", opening * 9..opening * 9 + 5).unwrap();
        if opening == 0 {
            // Some segments are rewritten.
            spool.settle("reader 0", 9..30).unwrap();
            (0..20).for_each(|_| block_on(spool.sync()).unwrap());
            assert!(disk.world().renamed > 0);
        }
        block_on(spool.sync()).unwrap();
        if opening != 1 {
            block_on(spool.close()).unwrap();
        } else {
            return_power(&disk, spool);
        }
    }
    disk
}

/// Ends an opening without a seal.
fn return_power(disk: &Sim, spool: Spool) {
    disk.world().fault = Some(crate::disk::Fault::Off(0));
    assert!(block_on(spool.append(["lost"])).is_err());
    disk.world().fault = None;
}

#[test]
fn a_log_with_holes_cuts_swaps_and_strange_bytes() {
    let whole = log();
    for seed in 0..600 {
        let (disk, mut chance) = (Sim::default(), Chance(seed));
        let files: Vec<(String, Vec<u8>)> = whole.files().into_iter().collect();
        for (name, mut bytes) in files.clone() {
            match chance.choose(12) {
                0 => bytes.truncate(chance.choose(bytes.len() + 1)),
                1 => bytes = files[chance.choose(files.len())].1.clone(),
                2 => continue,
                3 => {
                    let from = chance.choose(bytes.len() + 1);
                    let to = bytes.len().min(from + chance.choose(3000));
                    bytes[from..to].fill(chance.next() as u8);
                }
                4..7 => {
                    for _ in 0..1 + chance.choose(5) {
                        let at = chance.choose(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
                        if let Some(byte) = bytes.get_mut(at) {
                            *byte = chance.next() as u8;
                        }
                    }
                }
                _ => {}
            }
            disk.put(&name, &bytes);
        }
        let result = std::panic::catch_unwind(|| survives(&disk));
        assert!(result.is_ok(), "seed {seed}");
    }
}
