//! A request that survives its requester, and an answer that is given again: nothing is lost, and nothing done twice.
//!
//! ```text
//! cargo run --example kept_request
//! ```
//! A till asks for a payment and is gone before it hears of it. When it is back, it is told the answer; the bank has not
//! paid twice.

use std::{error::Error, time::Duration};

use ropewalk::{Message, Rep, Req, RequestError, spool::Durability};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let (till, bank) = (directory.path().join("till"), directory.path().join("bank"));

    // Nobody is there to answer yet: the request is on the disk.
    let bank_is_at = format!("ipc://{}", directory.path().join("socket").display());
    let req = Req::builder().spool(&till, Durability::Always).connect(&bank_is_at).await?;
    let unheard = req.request("pay 12 for the coat").timeout(Duration::from_millis(100)).await;
    println!("the till heard: {unheard:?}");
    if unheard != Err(RequestError::NotYet) {
        return Err("nobody can have answered".into());
    }
    req.close().await;

    // The till is back, and so is the bank. The till takes the answer, and dies before it is done with it.
    let rep = Rep::builder().spool(&bank, Durability::Always).bind(&bank_is_at).await?;
    let req = Req::builder().spool(&till, Durability::Always).connect(&bank_is_at).await?;
    let request = rep.recv().await?;
    println!("the bank is asked: {:?}, {}", request.message().text()?, request.id().ok_or("it is not kept")?);
    request.reply("paid").await?;
    drop(req.recover().await?);
    req.close().await;

    // It is back again, and asks again: the bank knows the request.
    let req = Req::builder().spool(&till, Durability::Always).connect(&bank_is_at).await?;
    let answered = tokio::select! {
        answered = req.recover() => answered?,
        request = rep.recv() => return Err(format!("the bank is asked twice: {request:?}").into()),
    };
    println!("the till is told: {:?}", answered.answer());
    if answered.answer() != Ok(&Message::from("paid")) {
        return Err("the bank has said something else before".into());
    }
    answered.ack()?;
    println!("{} requests are left in the till", req.close().await.spooled);
    rep.close().await;
    Ok(())
}
