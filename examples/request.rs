//! Questions and answers: many at once on one socket, answered in any order, each with its own timeout.
//!
//! ```text
//! cargo run --example request
//! ```

use std::{error::Error, time::Duration};

use futures::future::try_join_all;
use ropewalk::{Message, RefusalReason, Rep, Req, RequestError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let rep = Rep::bind("tcp://127.0.0.1:0").await?;
    let req = Req::connect(rep.address().ok_or("it does not listen")?.to_string()).await?;

    // Both are under way at once, and the first is held until the second is answered.
    let answer = async {
        let first = rep.recv().await?;
        let second = rep.recv().await?;
        second.reply("answer to two").await?;
        first.reply("answer to one").await?;
        Ok::<(), Box<dyn Error>>(())
    };
    let (one, two) = (req.request("one").into_future(), req.request("two").into_future());
    let (one, two, answered) = tokio::join!(one, two, answer);
    answered?;
    let (one, two) = (one?, two?);
    println!("{:?}, {:?}", one.text()?, two.text()?);
    if one != "answer to one" || two != "answer to two" {
        return Err("the answers were mixed up".into());
    }

    // A request that is dropped is refused at once; nobody waits for a timeout.
    let ignore = async { rep.recv().await.map(drop) };
    let (refused, ignored) = tokio::join!(req.request("who?").into_future(), ignore);
    ignored?;
    println!("{refused:?}");
    if refused != Err(RequestError::Refused(RefusalReason::Dropped)) {
        return Err("it should have been refused".into());
    }

    // A server of many at once.
    let server = tokio::spawn({
        let rep = rep.clone();
        async move { rep.serve(16, square).await }
    });
    let requests = (0..100u64).map(|number| {
        let req = &req;
        async move {
            let question = Message::encode(&number).map_err(Box::<dyn Error>::from)?;
            let answer = req.request(question).timeout(Duration::from_secs(10)).await?;
            Ok::<u64, Box<dyn Error>>(answer.decode()?)
        }
    });
    let squares = try_join_all(requests).await?;
    println!("the squares of 0 to 99 add up to {}", squares.iter().sum::<u64>());
    if squares.iter().enumerate().any(|(number, &square)| square != (number * number) as u64) {
        return Err("an answer went to another's question".into());
    }

    req.close().await;
    rep.close().await;
    server.await?;
    Ok(())
}

async fn square(question: Message) -> Message {
    let squared = question.decode::<u64>().ok().and_then(|number| Message::encode(&(number * number)).ok());
    squared.unwrap_or_default()
}
