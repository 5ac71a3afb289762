//! Sockets that were opened and closed leave nothing behind: no task, no file.

#[path = "common/mod.rs"]
mod common;

use std::{sync::Arc, time::Duration};

use common::{Place, address_of, keyed, numbers, soon, until};
use ropewalk::{Pub, Pull, Push, Rep, Req, Sub};
use tokio::{runtime::Handle, sync::Mutex};

over_every_transport! {
    sockets_leave_nothing,
    sockets_take_what_they_kept_with_them,
    links_that_break_leave_nothing,
}

/// The open files are those of the whole process, so one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn files() -> usize {
    // Only Linux tells; elsewhere the tasks alone are counted.
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// The runtimes of the tests that wait their turn come and go; each has a few files. A leak would be hundreds.
const OF_RUNTIMES: usize = 20;

/// Waits until there are no more tasks and files than before.
async fn nothing_more(tasks_before: usize, files_before: usize) {
    until(format!("{tasks_before} tasks and {files_before} files"), || {
        tasks() <= tasks_before && files() <= files_before + OF_RUNTIMES
    })
    .await;
}

async fn sockets_leave_nothing(at: Place) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (tasks_before, files_before) = (tasks(), files());
    // Six a round, of every kind, in every way to end: 1,002.
    for round in 0..167u64 {
        let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder())).await;
        let (req, rep) = at.link(keyed(Req::builder()), keyed(Rep::builder())).await;
        let (sub, publisher) = at.link(keyed(Sub::builder()), keyed(Pub::builder())).await;
        push.send("1").await.unwrap();
        let events = push.events();
        assert_eq!(numbers(&pull, 1).await, [1]);
        match round % 3 {
            0 => {
                soon("all to close", async {
                    tokio::join!(push.close(), pull.close(), req.close(), rep.close(), sub.close(), publisher.close())
                })
                .await;
            }
            1 => {
                soon("one side", async { tokio::join!(push.close(), rep.close(), sub.close()) }).await;
                drop((pull, req, publisher));
            }
            _ => drop((push, pull, req, rep, sub, publisher)),
        }
        drop(events);
    }
    nothing_more(tasks_before, files_before).await;
}

/// Closed or dropped, with messages that nobody took: what it kept goes, too.
async fn sockets_take_what_they_kept_with_them(at: Place) {
    for closes in [true, false] {
        let kept = Arc::new(());
        let (held, gone) = (Arc::clone(&kept), Arc::downgrade(&kept));
        let pull = keyed(Pull::builder()).authorize(move |_, _| Arc::strong_count(&held) > 0);
        let (push, pull) = at.link(keyed(Push::builder()), pull).await;
        push.send("unread").await.unwrap();
        until("it to be there", || pull.stats().received == 1).await;
        soon("the end", push.close()).await;
        if closes {
            soon("the end", pull.close()).await;
        }
        drop((push, pull, kept));
        until("nobody to have it", || gone.strong_count() == 0).await;
    }
}

async fn links_that_break_leave_nothing(at: Place) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let address = address_of(&pull);
    let warm = keyed(Push::builder()).connect(&address).await.unwrap();
    soon("a link", warm.ready()).await.unwrap();
    soon("the end", warm.close()).await;
    until("no link", || pull.stats().peers.is_empty()).await;
    let (tasks_before, files_before) = (tasks(), files());
    for round in 0..300 {
        let push = keyed(Push::builder()).linger(Duration::ZERO).connect(&address).await.unwrap();
        if round % 2 == 0 {
            soon("a link", push.ready()).await.unwrap();
            push.send(vec![0; 100_000]).await.unwrap();
        }
        // In the handshake, or with a message half written.
        drop(push);
        while pull.try_recv().is_ok() {}
    }
    // Endpoints that come and go on a socket that stays.
    for _ in 0..100 {
        let second = pull.bind_to(at.address()).await.unwrap().to_string();
        pull.connect_to(&address).await.unwrap();
        soon("unbind", pull.unbind(&second)).await.unwrap();
        soon("disconnect", pull.disconnect(&address)).await.unwrap();
    }
    until("no link", || {
        while pull.try_recv().is_ok() {}
        pull.stats().peers.is_empty()
    })
    .await;
    nothing_more(tasks_before, files_before).await;
    // Those still in the handshake have a window until that ends.
    until("no window", || pull.stats().recv_reserved == 0).await;
}
