//! Crash, recover, write, crash, recover.

use std::time::Duration;

use futures::executor::block_on;
use ropewalk::spool::{Durability, Retain, Spool, SpoolOptions, Storage, WhenFull};

use crate::{
    chance::{Chance, Choose, Every},
    disk::{Fault, Sim},
    model::{Model, message, read_all, small},
};

const POLICIES: [Durability; 3] = [Durability::Always, Durability::Every(Duration::from_millis(1)), Durability::Os];

/// Some lives have little room and drop what is old, some keep what is settled.
fn options(seed: u64, policy: Durability) -> SpoolOptions {
    match seed % 7 {
        0 | 1 => small(policy).quota(0).when_full(WhenFull::DropOldest),
        2 => small(policy).retain(Retain::default().bytes(20_000)),
        _ => small(policy),
    }
}

/// Some openings of one disk, each ended by a power cut or a kill at any operation, also while it recovers.
pub(crate) fn life<S: Storage + 'static>(seed: u64, wrap: impl Fn(Sim) -> S) -> Model {
    let mut chance = Chance(seed);
    let mut model = Model::default();
    let mut disk = Sim::default();
    // Whether something is confirmed that was perhaps not synced; whether a power cut took it.
    let (mut at_risk, mut may_lose) = (false, false);
    for _ in 0..5 {
        // The policy may be another each time; what an opening may lose depends on the one before.
        let policy = POLICIES[if seed.is_multiple_of(2) { 0 } else { chance.choose(3) }];
        let off = 1 + chance.choose(250) as u64;
        {
            let mut world = disk.world();
            world.fault = (chance.choose(4) > 0).then_some(Fault::Off(off));
            world.short = (chance.choose(3) == 0).then_some(1 + (seed as usize * 37) % 700);
        }
        let steps = chance.choose(25);
        let round = model.round(wrap(disk.clone()), &options(seed, policy), steps, may_lose, &mut chance);
        assert!(!disk.world().wrote_to_old, "a file of the log is never written to by another opening");
        model.reused += disk.world().reused;
        let cut = chance.choose(3) > 0;
        disk = if cut { disk.power_cut(&mut chance) } else { disk.kill() };
        // An opening that did not get so far as to say what it found leaves what the one before it left.
        at_risk = (at_risk && round.is_err()) || policy != Durability::Always;
        may_lose = (may_lose && round.is_err()) || (cut && at_risk);
    }
    let again = disk.clone();
    if model.round(wrap(disk), &options(seed, Durability::Always), 0, may_lose, &mut chance).is_ok() {
        let unsettled = model.unsettled();
        let again = again.power_cut(&mut chance);
        model.round(again, &small(Durability::Always), 0, false, &mut chance).unwrap();
        assert_eq!(model.unsettled(), unsettled, "recovering again finds the same");
    }
    model
}

#[test]
fn thousands_of_lives() {
    let (mut dropped, mut reused) = (0, 0);
    for seed in 0..3000 {
        let result = std::panic::catch_unwind(|| life(seed, |disk| disk));
        let model = result.unwrap_or_else(|_| panic!("seed {seed}"));
        (dropped, reused) = (dropped + model.dropped, reused + model.reused);
    }
    assert!(dropped > 1000 && reused > 300, "{dropped}, {reused}");
}

/// The power goes at every operation of a recovery that has something to copy.
pub(crate) fn stops_while_it_recovers<S: Storage + 'static>(seed: u64, wrap: impl Fn(Sim) -> S) -> u64 {
    let (disk, options) = (Sim::default(), small(Durability::Always));
    let mut model = Model::default();
    let (spool, _) = block_on(Spool::open_on(wrap(disk.clone()), options.clone())).unwrap();
    for id in 0..1 + seed % 20 {
        model.submit(id);
        model.given(id, block_on(spool.append([message(id)])).unwrap());
    }
    for off in 1.. {
        let before = disk.kill();
        before.world().fault = Some(Fault::Off(off));
        let through = model.clone().round(wrap(before.clone()), &options, 0, false, &mut Chance(1)).is_ok();
        for seed in 0..60 {
            let mut model = model.clone();
            let after = before.power_cut(&mut Chance(seed));
            model.round(wrap(after.clone()), &options, 1, false, &mut Chance(seed)).unwrap();
            let again = after.power_cut(&mut Chance(seed));
            model.round(wrap(again), &options, 0, false, &mut Chance(seed)).unwrap();
        }
        if through {
            return off;
        }
    }
    unreachable!("it ends")
}

#[test]
fn every_crash_inside_recovery() {
    for seed in 0..12 {
        let operations = stops_while_it_recovers(seed, |disk| disk);
        assert!(operations > 10, "{operations}");
    }
}

/// Two records are confirmed, and a third is on its way or confirmed, when the power goes: at every operation, with
/// everything that it can leave, or at least very much of it.
#[test]
fn every_crash_of_a_short_life() {
    for policy in [Durability::Always, Durability::Os] {
        every_crash_under(policy);
    }
}

fn every_crash_under(policy: Durability) {
    let options = small(policy);
    let may_lose = policy != Durability::Always;
    let work = |disk: &Sim, model: &mut Model| -> Result<(), ()> {
        let (spool, _) = block_on(Spool::open_on(disk.clone(), options.clone())).map_err(drop)?;
        block_on(spool.cursor("reader")).map_err(drop)?;
        for id in 0..3 {
            model.submit(id);
            let given = block_on(spool.append([message(id)])).map_err(drop)?;
            model.given(id, given);
        }
        Ok(())
    };
    let mut crashes = 0;
    for off in 1.. {
        let disk = Sim::default();
        disk.world().fault = Some(Fault::Off(off));
        disk.world().short = Some(700);
        let mut model = Model::default();
        let through = work(&disk, &mut model).is_ok();
        let mut every = Every::default();
        for left in (0..400_u64).rev() {
            let after = if left == 0 { disk.power_cut(&mut Chance(off)) } else { disk.power_cut(&mut every) };
            let mut model = model.clone();
            model.round(after.clone(), &options, 0, may_lose, &mut Chance(0)).unwrap();
            let again = after.power_cut(&mut Chance(off + left));
            model.round(again, &options, 1, may_lose, &mut Chance(off)).unwrap();
            crashes += 1;
            if !every.advance() {
                break;
            }
        }
        if through {
            break;
        }
    }
    assert!(crashes > 60, "{crashes}");
}

#[test]
fn what_was_settled_long_ago_goes_and_comes_back_only_if_the_crash_took_the_settling() {
    let disk = Sim::default();
    let (spool, _) = block_on(Spool::open_on(disk.clone(), small(Durability::Always))).unwrap();
    block_on(spool.cursor("reader")).unwrap();
    for id in 0..200 {
        let seqs = block_on(spool.append([message(id)])).unwrap();
        spool.settle("reader", seqs).unwrap();
    }
    assert!(spool.stats().segments < 6, "{:?}", spool.stats());
    assert_eq!(spool.settled("reader"), Some(200));
    block_on(spool.close()).unwrap();
    let (spool, report) = block_on(Spool::open_on(disk.power_cut(&mut Chance(1)), small(Durability::Os))).unwrap();
    assert!(report.clean && report.next_seq == 200);
    assert_eq!(spool.settled("reader"), Some(200));
    let (records, _) = read_all(&spool).unwrap();
    assert!(records.len() < 200 && records.last().is_some_and(|last| last.seq == 199));
}
