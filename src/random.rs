//! Numbers that nobody else comes by. They need no secrecy: they keep streams, openings and requests apart.

use std::{
    hash::{BuildHasher, RandomState},
    process, thread,
    time::SystemTime,
};

/// From the standard library's hasher, which the system's random numbers have seeded, and the clock.
pub(crate) fn number() -> u64 {
    RandomState::new().hash_one((SystemTime::now(), process::id(), thread::current().id()))
}

/// The name of a new stream.
pub(crate) fn stream() -> [u8; 16] {
    (u128::from(number()) << 64 | u128::from(number())).to_le_bytes()
}
