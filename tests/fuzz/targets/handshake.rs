//! Any bytes, in any pieces: greeting and READY are read, or refused, as when all is given at once.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ropewalk_fuzz::handshake(input));
