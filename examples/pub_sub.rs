//! One publishes, those who subscribed to a prefix of the topic hear it. One who does not keep up is told how much it
//! missed.
//!
//! ```text
//! cargo run --example pub_sub
//! ```

use std::error::Error;

use ropewalk::{Pub, Sub, SubRecvError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // A short queue, so that this program can overrun it.
    let publisher = Pub::builder().send_hwm(10).bind("tcp://127.0.0.1:0").await?;
    let address = publisher.address().ok_or("it does not listen")?.to_string();

    let oslo = Sub::connect(&address).await?;
    oslo.subscribe("weather.oslo").await?;
    let all = Sub::builder().recv_hwm(10).connect(&address).await?;
    all.subscribe("weather.").await?;

    // Nobody has to sleep and hope: the publisher knows who has subscribed.
    publisher.subscribers("weather.oslo", 2).await?;
    publisher.publish("weather.oslo", "rain").await?;
    publisher.publish("weather.lima", "sun").await?;
    publisher.publish("weather.oslo", "snow").await?;

    for expected in ["rain", "snow"] {
        let message = oslo.recv().await?;
        println!("oslo heard {:?}", message.text()?);
        if message.topic() != b"weather.oslo" || message.text()? != expected {
            return Err("that was not published for Oslo next".into());
        }
    }
    for expected in ["rain", "sun", "snow"] {
        let message = all.recv().await?;
        println!("all heard {:?}", message.text()?);
        if message.text()? != expected {
            return Err("that was not published next".into());
        }
    }

    // More than the queues of `all` take while it does not read. The publisher never waits for it.
    for number in 0..100 {
        publisher.publish("weather.lima", format!("{number}")).await?;
    }
    let closing = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.close().await }
    });
    let (mut heard, mut missed) = (0, 0);
    while heard + missed < 100 {
        match all.recv().await {
            Ok(_) => heard += 1,
            Err(SubRecvError::Lagged(messages)) => missed += messages,
            Err(error) => return Err(error.into()),
        }
    }
    println!("then all heard {heard} and was told that it missed {missed}");
    if heard + missed != 100 || missed == 0 {
        return Err("the count is wrong".into());
    }

    let report = closing.await?;
    println!("the publisher counted {} dropped", report.dropped);
    if report.dropped != missed {
        return Err("publisher and subscriber do not agree".into());
    }
    oslo.close().await;
    all.close().await;
    Ok(())
}
