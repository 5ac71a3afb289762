//! The spool on a disk that loses, tears, fails and fills, and on the real one.
#![cfg(feature = "spool")]

mod any_files;
mod broken;
mod chance;
mod crashes;
mod disk;
mod faults;
mod garbage;
mod keeping;
mod model;
mod reading;
mod real;
mod rescue;
mod reuse;
