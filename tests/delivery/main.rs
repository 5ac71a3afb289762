//! What is kept until it is confirmed: every promise over every transport.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod answered;
mod asked;
mod damage;
mod kept;
mod others;
mod published;
mod untaken;
