//! A disk that has lost, in the midst of what is kept, what it had confirmed.

use std::{fs, path::Path, time::Duration};

use ropewalk::{
    Event, Pub, Pull, Push, Sub, SubRecvError,
    spool::{Durability, SpoolOptions},
};
use tempfile::TempDir;

use crate::common::{address_of, event, run, soon, until};

const ALL: u64 = 60;

/// Segments of which the first are not looked through when they are opened.
fn options() -> SpoolOptions {
    SpoolOptions::new(Durability::Os).segment(8 << 10).frame(1 << 10)
}

fn text(number: u64) -> String {
    format!("{number:0>600}")
}

/// A bit of the message with this number is another.
fn damage(directory: &Path, number: u64) {
    let wanted = text(number);
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap_or_default();
        if let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted.as_bytes()) {
            bytes[at] ^= 1;
            return fs::write(&path, bytes).unwrap();
        }
    }
    panic!("message {number} is not there");
}

/// All others are delivered, and what is lost is named, counted, and at the end not among what arrived.
#[test]
fn what_the_disk_has_lost_of_a_sender_is_counted() {
    run(async {
        let directory = TempDir::new().unwrap();
        let push = Push::builder().spool(directory.path(), options()).bind("tcp://127.0.0.1:0").await.unwrap();
        for number in 0..ALL {
            push.send(text(number)).await.unwrap();
        }
        push.close().await;
        damage(directory.path(), 20);

        let push = Push::builder().spool(directory.path(), options()).linger(Duration::from_secs(20));
        let push = push.bind("tcp://127.0.0.1:0").await.unwrap();
        let pull = Pull::connect(address_of(&push)).await.unwrap();
        let mut came = Vec::new();
        while came.last() != Some(&(ALL - 1)) {
            let message = soon("a message", pull.recv()).await.unwrap();
            came.push(message.text().unwrap().parse().unwrap());
        }
        let lost = ALL - came.len() as u64;
        assert!(lost > 0 && came.is_sorted() && !came.contains(&20), "{came:?}");
        // Told long ago, and nobody could ask for it before its directory was open.
        let mut events = push.events();
        let named = event(&mut events, "damage", |event| match event {
            Event::SpoolDamaged { damage } => Some(damage.seqs),
            _ => None,
        });
        assert_eq!(named.await, (20..20 + lost));
        let counted = event(&mut events, "loss", |event| match event {
            Event::Lost { messages } => Some(messages),
            _ => None,
        });
        assert_eq!((counted.await, push.stats().lost), (lost, lost));
        let report = soon("the end", push.close()).await;
        assert_eq!((report.delivered, report.unsent, report.spooled), (ALL - lost, lost, 0), "{report:?}");
        pull.close().await;
    });
}

/// A subscriber hears how many, where they would have come.
#[test]
fn what_the_disk_has_lost_of_a_publisher_is_a_gap() {
    run(async {
        let directory = TempDir::new().unwrap();
        let open = async || {
            let publisher = Pub::builder().spool(directory.path(), options()).linger(Duration::ZERO);
            let publisher = publisher.bind("tcp://127.0.0.1:0").await.unwrap();
            let address = address_of(&publisher);
            let named = Sub::builder().name("billing").subscribe("").connect(&address).await.unwrap();
            let known = || publisher.spool_stats().unwrap().cursors.contains_key("billing");
            until("the name to be known", || known() && publisher.stats().peers.len() == 1).await;
            (publisher, named)
        };
        let (publisher, named) = open().await;
        named.close().await;
        for number in 0..ALL {
            publisher.publish(text(number), "x").await.unwrap();
        }
        publisher.close().await;
        damage(directory.path(), 20);

        let (publisher, named) = open().await;
        let (mut came, mut gaps) = (Vec::new(), Vec::new());
        while came.last() != Some(&(ALL - 1)) {
            match soon("a message", named.recv()).await {
                Ok(message) => came.push(std::str::from_utf8(message.topic()).unwrap().parse().unwrap()),
                Err(SubRecvError::Lagged(missed)) => gaps.push((came.len() as u64, missed)),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(came.is_sorted() && !came.contains(&20), "{came:?}");
        assert_eq!(gaps, [(20, ALL - came.len() as u64)]);
        named.close().await;
        publisher.close().await;
    });
}
