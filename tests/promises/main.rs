//! What Ropewalk promises, one function a promise, each run over every transport.

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod bounds;
mod closing;
mod flow;
mod life;
mod pub_sub;
mod req_rep;
mod verbs;
mod waiting;
