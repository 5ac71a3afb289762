//! Values instead of bytes: anything that serde knows travels as a message, in postcard's format.
//!
//! ```text
//! cargo run --example typed
//! ```

use std::error::Error;

use ropewalk::{Message, Pub, Pull, Push, Sub};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Job {
    Resize { picture: String, width: u32, height: u32 },
    Remove { pictures: Vec<String> },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let jobs = [
        Job::Resize { picture: "cat.png".into(), width: 640, height: 480 },
        Job::Remove { pictures: vec!["dog.png".into(), "cow.png".into()] },
    ];

    let pull = Pull::bind("tcp://127.0.0.1:0").await?;
    let push = Push::connect(pull.address().ok_or("it does not listen")?.to_string()).await?;
    for job in &jobs {
        push.send(Message::encode(job)?).await?;
    }
    for job in &jobs {
        let message = pull.recv().await?;
        let received: Job = message.decode()?;
        println!("{} bytes are {received:?}", message.bytes());
        if received != *job {
            return Err("it changed on its way".into());
        }
    }

    // What is not such a value is an error, never a wrong value.
    push.send("resize cat.png").await?;
    match pull.recv().await?.decode::<Job>() {
        Ok(job) => return Err(format!("that was no job, but {job:?} came").into()),
        Err(error) => println!("{error}"),
    }

    // Published: the topic is a part of its own, and `decode` reads the payload.
    let publisher = Pub::bind("inproc://typed").await?;
    let subscriber = Sub::connect("inproc://typed").await?;
    subscriber.subscribe("jobs").await?;
    publisher.subscribers("jobs", 1).await?;
    publisher.publish("jobs", Message::encode(&jobs[0])?).await?;
    let heard = subscriber.recv().await?;
    println!("under {:?}: {:?}", str::from_utf8(heard.topic())?, heard.decode::<Job>()?);
    if heard.decode::<Job>()? != jobs[0] {
        return Err("it changed on its way".into());
    }

    let report = push.close().await;
    if !report.all_delivered() {
        return Err("not all was delivered".into());
    }
    pull.close().await;
    publisher.close().await;
    subscriber.close().await;
    Ok(())
}
