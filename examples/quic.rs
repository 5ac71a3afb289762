//! Two peers that know each other by their keys, over QUIC: encrypted, and nobody else gets in.
//!
//! ```text
//! cargo run --example quic
//! ```

use ropewalk::{DownReason, Event, Pull, Push, SecretKey};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Each keeps its own, with `save` and `load`; what others know of it is its id.
    let (worker, boss, stranger) = (SecretKey::generate(), SecretKey::generate(), SecretKey::generate());

    let jobs = Pull::builder().key(worker).allow([boss.id()]).bind("quic://127.0.0.1:0").await?;
    // The address says whose it is: who dials it talks to nobody else.
    let address = jobs.address().ok_or("it does not listen")?.to_string();
    println!("jobs go to {address}");

    let sender = Push::builder().key(boss).connect(&address).await?;
    sender.send("mend the rope").await?;
    println!("the worker has: {}", jobs.recv().await?.text()?);

    let unknown = Push::builder().key(stranger).build();
    let mut events = unknown.events();
    unknown.connect_to(&address).await?;
    match events.next().await {
        Some(Event::HandshakeFailed { reason: reason @ DownReason::Denied, .. }) => {
            println!("the stranger hears: {reason}");
        }
        other => return Err(format!("the stranger was not refused: {other:?}").into()),
    }

    unknown.close().await;
    sender.close().await;
    jobs.close().await;
    Ok(())
}
