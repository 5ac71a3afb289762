//! The smallest program: one socket pushes jobs, another pulls them.
//!
//! ```text
//! cargo run --example hello
//! ```

use std::error::Error;

use ropewalk::{Pull, Push};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // Port 0 takes a free one; the socket knows which.
    let pull = Pull::bind("tcp://127.0.0.1:0").await?;
    let address = pull.address().ok_or("it does not listen")?;
    println!("pulling at {address}");

    // Dialled in the background: what is sent at once waits for the link.
    let push = Push::connect(address.to_string()).await?;
    for number in 1..=3 {
        push.send(format!("job {number}")).await?;
    }

    for number in 1..=3 {
        let job = pull.recv().await?;
        println!("pulled {:?}", job.text()?);
        if job.text()? != format!("job {number}") {
            return Err("that is not the next job".into());
        }
    }

    // Closing says goodbye, so it knows what became of everything that was sent.
    let report = push.close().await;
    println!("{} delivered, {} in doubt, {} unsent", report.delivered, report.in_doubt, report.unsent);
    if report.delivered != 3 || !report.all_delivered() {
        return Err("not all was delivered".into());
    }
    pull.close().await;
    Ok(())
}
