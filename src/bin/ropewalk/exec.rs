//! A command of the shell answers a request.

use std::{io, process::Stdio};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use crate::output::note;

/// The longest output; what a message may have at most.
const LONGEST_OUTPUT: u64 = 4 << 20;

/// What the command prints when it is given this input. Its exit status does not matter, as `grep` says 1 when it found
/// nothing; but if it was killed, what it printed is not its answer. Dropped, it kills the command.
pub(crate) async fn exec(command: &str, input: &[u8], verbose: bool) -> io::Result<Vec<u8>> {
    let mut child = shell(command).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let give = async {
        if let Some(mut stdin) = stdin {
            // A command need not read all it is given.
            let _unread = stdin.write_all(input).await;
        }
        Ok(())
    };
    let take = async {
        let mut output = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(LONGEST_OUTPUT + 1).read_to_end(&mut output).await?;
        }
        if output.len() as u64 > LONGEST_OUTPUT {
            return Err(io::Error::other("the command printed more than a message may have"));
        }
        Ok(output)
    };
    let ((), output) = tokio::try_join!(give, take)?;
    let status = child.wait().await?;
    if status.code().is_none() {
        return Err(io::Error::other(format!("the command was killed: {status}")));
    }
    if verbose && !status.success() {
        note(format_args!("the command ended with {status}"));
    }
    Ok(output)
}

#[cfg(unix)]
fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    // In a group of its own: what a terminal tells the tool is not for commands, which the tool lets end.
    shell.arg("-c").arg(command).process_group(0);
    shell
}

#[cfg(not(unix))]
fn shell(command: &str) -> Command {
    let mut shell = Command::new("cmd");
    shell.arg("/C").arg(command);
    shell
}
