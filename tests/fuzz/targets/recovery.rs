//! A log with faults and lies in it, and any bytes in its place: opening it never panics, hangs or takes memory without
//! bound, and what opens works.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ropewalk_fuzz::recovery(input));
