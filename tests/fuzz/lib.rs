//! What the targets check: the same file as the tests with fixed seeds, `patterns/tests/fuzz_seeds.rs`.
//!
//! ```text
//! cargo +nightly fuzz run decoder --fuzz-dir tests/fuzz -- -dict=tests/fuzz/wire.dict -max_total_time=60
//! cargo +nightly fuzz run handshake --fuzz-dir tests/fuzz -- -dict=tests/fuzz/wire.dict -max_total_time=60
//! ```

#[path = "../../patterns/tests/invariants/mod.rs"]
mod invariants;

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
