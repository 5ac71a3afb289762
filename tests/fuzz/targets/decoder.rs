//! Any bytes, in any pieces, into whatever room: the decoder finds what it finds when all is given at once.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ropewalk_fuzz::decoder(input));
