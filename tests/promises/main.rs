//! What Ropewalk promises, one function a promise, each run over every transport.

#[path = "../common/mod.rs"]
mod common;

mod bounds;
mod closing;
mod flow;
mod pub_sub;
mod req_rep;
mod verbs;
