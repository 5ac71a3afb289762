//! Senders and receivers are killed at any moment, under load: what was accepted is done, and as often as is promised.
//!
//! ```text
//!   the test --- starts, kills, starts again ---> a sender      "given 17"        over a pipe, when `send` has returned
//!        |                                          |           "delivered 18"    when `deliver` has
//!        |                                          v
//!        +------ starts, kills, starts again ---> a receiver    effects/...       in a file: what it has done
//! ```
//! A process that pushes has a socket for each [`Mode`](child::Mode), and so has the one that pulls; one that publishes
//! has two subscribers, each in a process of its own. Their spools are small, so that the senders wait for room most of
//! the time and segments come and go. Linux, where all of 127/8 is this machine.
#![cfg(target_os = "linux")]

mod account;
mod child;
mod parent;

use parent::{Run, Victim};

/// What the others start: see `child`.
#[test]
#[ignore = "the other tests run it in a process of its own"]
fn child() {
    child::work();
}

/// One test for each victim, over each transport, with each durability.
macro_rules! kills {
    ($($transport:ident $durability:ident),*) => {$(
        mod $transport {
            pub(super) mod $durability {
                kills! { @ $transport $durability [
                    a_sender_that_pushes: false Sender,
                    a_receiver_that_pulls: false Receiver,
                    a_sender_and_its_receiver: false Both,
                    a_publisher: true Sender,
                    a_subscriber: true Receiver,
                    a_publisher_and_its_subscribers: true Both,
                ] }
            }
        }
    )*};
    (@ $transport:ident $durability:ident [$($name:ident: $publishes:literal $victim:ident,)*]) => {
        $(#[test]
        fn $name() {
            crate::kill($publishes, stringify!($transport), stringify!($durability), crate::Victim::$victim, 20);
        })*

        mod two_hundred {
            $(#[test]
            #[ignore = "takes minutes"]
            fn $name() {
                crate::kill($publishes, stringify!($transport), stringify!($durability), crate::Victim::$victim, 200);
            })*
        }
    };
}

mod to_the_system {
    kills!(tcp os, quic os);
}

mod to_the_disk {
    kills!(tcp always, quic always);
}

fn kill(publishes: bool, transport: &str, durability: &str, victim: Victim, cycles: u64) {
    let mut run = Run::begin(publishes, transport, durability);
    for _ in 0..cycles {
        run.cycle(victim);
    }
    let told = run.end();
    println!("{transport}, {durability}, {victim:?}: {told}");
}
