//! Any bytes in the directory: no panic, no memory without bound, and a spool that works or an error that says why.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{
    any_files::{Input, log, mend, mutated, raw},
    chance::{Chance, Choose},
};

fn each_seed(seeds: u64, run: impl Fn(Chance)) {
    for seed in std::env::var("SEED").map_or(0..seeds, |seed| {
        let seed = seed.parse().unwrap();
        seed..seed + 1
    }) {
        let result = catch_unwind(AssertUnwindSafe(|| run(Chance(seed))));
        assert!(result.is_ok(), "seed {seed}");
    }
}

fn bytes(chance: &mut Chance, most: usize) -> Vec<u8> {
    (0..chance.choose(most)).map(|_| chance.next() as u8).collect()
}

#[test]
fn random_bytes() {
    each_seed(300, |mut chance| raw(&bytes(&mut chance, 40_000)).are_survived());
}

#[test]
fn a_log_with_holes_cuts_swaps_and_strange_bytes() {
    let whole = log();
    each_seed(1500, |mut chance| mutated(&whole, &mut chance).are_survived());
}

/// As the fuzzer chooses: what is not said is the first of what can be.
#[test]
fn choices_of_the_fuzzer() {
    let whole = log();
    each_seed(500, |mut chance| mutated(&whole, &mut Input(&bytes(&mut chance, 30))).are_survived());
}

/// Else nobody would believe the lies.
#[test]
fn checksums_are_mended_as_they_are_made() {
    for (name, bytes) in log().files() {
        let mut mended = bytes.clone();
        mend(&mut mended);
        assert!(mended == bytes, "{name}");
    }
}
