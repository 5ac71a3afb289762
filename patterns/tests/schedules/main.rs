//! Thousands of random schedules of joins, leaves, credit, sends and answers, each held against a plain model.
//!
//! The patterns are driven as the hub drives them, through their public API: [`net`] holds the far ends and the queues
//! between, the other files one conversation each.

mod delivery;
mod delivery_cases;
mod delivery_receiver;
mod delivery_sender;
mod net;
mod pub_sub;
mod push_pull;
mod rep;
mod req;
mod req_cases;
mod sub;
