//! What the targets check: the same files as the tests with fixed seeds, `patterns/tests/fuzz_seeds.rs` and
//! `tests/spool/garbage.rs`.
//!
//! ```text
//! cargo +nightly fuzz run decoder --fuzz-dir tests/fuzz -- -dict=tests/fuzz/wire.dict -max_total_time=60
//! cargo +nightly fuzz run handshake --fuzz-dir tests/fuzz -- -dict=tests/fuzz/wire.dict -max_total_time=60
//! cargo +nightly fuzz run recovery --fuzz-dir tests/fuzz -- -max_len=4096 -malloc_limit_mb=64 -timeout=5 -max_total_time=60
//! ```

use std::sync::LazyLock;

#[path = "../../patterns/tests/invariants/mod.rs"]
mod invariants;

// What the tests of the spool share, with fewer users here.
#[path = "../spool/any_files.rs"]
mod any_files;
#[path = "../spool/chance.rs"]
#[allow(dead_code)]
mod chance;
#[path = "../spool/disk.rs"]
#[allow(dead_code)]
mod disk;
#[path = "../spool/model.rs"]
#[allow(dead_code)]
mod model;

/// The decoder finds the same however the bytes come and whatever room there is.
pub fn decoder(input: &[u8]) {
    let (choices, stream) = invariants::parted(input);
    invariants::decoder(choices, stream);
}

/// The handshake ends alike however the bytes come.
pub fn handshake(input: &[u8]) {
    let (choices, stream) = invariants::parted(input);
    invariants::handshake(choices, stream);
}

/// Any files in the directory of a spool: the first byte says whether they are a log with faults or just bytes.
pub fn recovery(input: &[u8]) {
    static LOG: LazyLock<disk::Sim> = LazyLock::new(any_files::log);
    let Some((kind, input)) = input.split_first() else { return };
    let files = match kind % 4 {
        0 => any_files::raw(input),
        _ => any_files::mutated(&LOG, &mut any_files::Input(input)),
    };
    files.are_survived();
}
