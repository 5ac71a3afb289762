//! The words of the command line.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ropewalk::{PeerId, Replay, spool::Durability};

use crate::bench::BenchCommand;

/// Talk to any Ropewalk or ZeroMQ process from a shell.
///
/// Messages go to standard output, all else to standard error. Exit status: 0 done, 1 failed, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "ropewalk", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Give each message to one of the pulling peers, in turn
    Push(PushArgs),
    /// Take messages from all pushing peers
    Pull(PullArgs),
    /// Give each message to every peer that subscribed to its topic
    Pub(PubArgs),
    /// Take the messages whose topic begins with a prefix
    Sub(SubArgs),
    /// Ask, and print the replies in the order of the requests
    Req(ReqArgs),
    /// Answer requests, and print them
    Rep(RepArgs),
    /// Measure this machine, beside bare sockets in the same run
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Make keys, and show whose they are
    #[command(subcommand)]
    Key(KeyCommand),
    /// Look into the directory of a spool that no running process has open; what a crash has left there is tidied up by that
    #[command(subcommand)]
    Spool(SpoolCommand),
}

/// What to do with a key.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Write a new secret key into a new file that only its owner may read, and print its peer id
    New {
        /// Where; a file that is there already is left as it is
        file: PathBuf,
    },
    /// Print the peer id of the secret key in a file
    Show {
        /// Where
        file: PathBuf,
    },
}

/// What to do with a spool.
#[derive(Debug, Subcommand)]
pub(crate) enum SpoolCommand {
    /// Say how much is in it, how far its readers are, and how many dead letters it has
    Stat {
        /// The directory
        directory: PathBuf,
    },
    /// Read all of it and check it
    Verify {
        /// The directory
        directory: PathBuf,
    },
    /// Print its messages in their order: those that are not settled
    Cat(CatArgs),
    /// Print the messages that were given up, send them again, or forget them
    Dead {
        /// The directory
        directory: PathBuf,
        #[command(subcommand)]
        command: Option<DeadCommand>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CatArgs {
    /// The directory
    pub(crate) directory: PathBuf,

    /// Print all that is there from this number on, also what is settled
    #[arg(long, value_name = "SEQ")]
    pub(crate) from: Option<u64>,

    /// End after so many messages
    #[arg(short = 'n', value_name = "COUNT")]
    pub(crate) count: Option<u64>,

    #[command(flatten)]
    pub(crate) print: Print,
}

/// What to do with dead letters. Without a word they are listed.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// Print each: its number, how often it was delivered, why it was given up, the message; a tab in between
    List,
    /// Send it again, as a new message at the end of the spool
    Requeue {
        /// The number of one, or `all`
        which: Which,
    },
    /// Forget it
    Purge {
        /// The number of one, or `all`
        which: Which,
    },
}

/// Which dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    One(u64),
}

impl std::str::FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            number => number.parse().map(Self::One).map_err(|_| "neither a number nor `all`".to_owned()),
        }
    }
}

/// Where to listen and dial.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Endpoints {
    /// Listen on this address: tcp://127.0.0.1:7000, ipc://a.sock; port 0 takes a free one. May repeat
    #[arg(short, long, value_name = "ADDR")]
    pub(crate) bind: Vec<String>,

    /// Dial this address, again and again until it answers. May repeat
    #[arg(short, long, value_name = "ADDR")]
    pub(crate) connect: Vec<String>,
}

/// What all sockets take.
#[derive(Debug, Args)]
pub(crate) struct Shared {
    #[command(flatten)]
    pub(crate) endpoints: Endpoints,

    /// How many messages may wait for each peer here, and how many each may have on their way to us [default: 1000]
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) hwm: Option<u64>,

    /// How many bytes those may be; a message counts its bytes plus 64 [default: 8388608]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) hwm_bytes: Option<u64>,

    /// How long to wait at the end for peers to take what was accepted [default: 5]
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub(crate) linger: Option<Duration>,

    /// What `pub` does about a subscriber that does not keep up [default: drop-newest]; all others always block
    #[arg(long, value_name = "POLICY")]
    pub(crate) overflow: Option<Policy>,

    /// The key that proves who we are to tls:// and quic:// peers; `ropewalk key new FILE` makes one
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,

    /// Let this peer link to the tls:// and quic:// addresses that are listened on. May repeat
    #[arg(long, value_name = "PEERID")]
    pub(crate) allow: Vec<PeerId>,

    /// Let anybody link to them who has a key, whatever it is
    #[arg(long, conflicts_with = "allow")]
    pub(crate) allow_any: bool,

    /// Let plain text leave this machine: tcp:// addresses that are not loopback
    #[arg(long)]
    pub(crate) plaintext: bool,

    /// Tell on standard error what happens to the socket
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// What is done about a subscriber that does not keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// The newest message is left out for it
    DropNewest,
    /// The oldest waiting message is left out for it
    DropOldest,
    /// The publisher waits for it
    Block,
    /// Its link is closed
    Disconnect,
}

impl From<Policy> for ropewalk::Overflow {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::DropNewest => Self::DropNewest,
            Policy::DropOldest => Self::DropOldest,
            Policy::Block => Self::Block,
            Policy::Disconnect => Self::Disconnect,
        }
    }
}

/// Where what is sent is kept.
#[derive(Debug, Args)]
pub(crate) struct Keep {
    /// Keep messages in this directory until they are confirmed; what is there already goes first
    #[arg(long, value_name = "DIR")]
    pub(crate) spool: Option<PathBuf>,

    /// When a message counts as kept: when it is on the disk, when the system has it, or when the system has it and the
    /// disk within so many milliseconds [default: always]
    #[arg(long, value_name = "always|os|MILLIS", value_parser = durability, requires = "spool")]
    pub(crate) durability: Option<Durability>,
}

/// Where it is written down what was received.
#[derive(Debug, Args)]
pub(crate) struct Done {
    /// Write into this directory which messages were printed, so that none is printed again that was confirmed
    #[arg(long, value_name = "DIR")]
    pub(crate) inbox: Option<PathBuf>,

    /// When that counts as written: when it is on the disk, when the system has it, or when the system has it and the
    /// disk within so many milliseconds [default: always]
    #[arg(long, value_name = "always|os|MILLIS", value_parser = durability, requires = "inbox")]
    pub(crate) durability: Option<Durability>,
}

/// Where messages come from, and how fast.
#[derive(Debug, Args)]
pub(crate) struct Feed {
    /// At most so many messages
    #[arg(short = 'n', value_name = "COUNT")]
    pub(crate) count: Option<u64>,

    /// Make the messages: each its number, from 0, padded with zeros on the left to BYTES
    #[arg(long, value_name = "BYTES", requires = "count", conflicts_with = "file")]
    pub(crate) size: Option<usize>,

    /// So many messages a second
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) rate: Option<f64>,

    /// One message per line of this file; `-` is standard input
    #[arg(default_value = "-")]
    pub(crate) file: String,
}

/// How what comes is printed.
#[derive(Debug, Args)]
pub(crate) struct Print {
    /// What joins the parts of a message
    #[arg(long, value_name = "TEXT", default_value = " ")]
    pub(crate) separator: String,

    /// Print no messages
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// When taking ends.
#[derive(Debug, Args)]
pub(crate) struct Until {
    /// End after so many messages
    #[arg(short = 'n', value_name = "COUNT")]
    pub(crate) count: Option<u64>,

    /// End when no message came for so long
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(flatten)]
    pub(crate) keep: Keep,
    #[command(flatten)]
    pub(crate) feed: Feed,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(flatten)]
    pub(crate) done: Done,
    #[command(flatten)]
    pub(crate) until: Until,
    #[command(flatten)]
    pub(crate) print: Print,
}

#[derive(Debug, Args)]
pub(crate) struct PubArgs {
    #[command(flatten)]
    pub(crate) shared: Shared,

    /// The topic of every message
    #[arg(long)]
    pub(crate) topic: String,

    /// Publish nothing until so many peers would get it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) wait_subscribers: usize,

    #[command(flatten)]
    pub(crate) keep: Keep,
    #[command(flatten)]
    pub(crate) feed: Feed,
}

#[derive(Debug, Args)]
pub(crate) struct SubArgs {
    #[command(flatten)]
    pub(crate) shared: Shared,

    /// Take what has a topic that begins so; may repeat [default: everything]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) topic: Vec<String>,

    /// Go on where the subscriber of this name was, at publishers that keep what they publish
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Begin with what publishers with a spool have kept: all of it, from a number on, or of the last so many seconds, if the
    /// clocks of both agree. A NAME that they know goes on where it was
    #[arg(long, value_name = "earliest|SEQ|SECSs", value_parser = replay)]
    pub(crate) replay: Option<Replay>,

    #[command(flatten)]
    pub(crate) done: Done,
    #[command(flatten)]
    pub(crate) until: Until,
    #[command(flatten)]
    pub(crate) print: Print,
}

#[derive(Debug, Args)]
#[command(mut_arg("spool", |spool| spool.help(
    "Keep requests in this directory until their replies are printed; what is there already is asked first",
)))]
pub(crate) struct ReqArgs {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(flatten)]
    pub(crate) keep: Keep,

    /// How long each request waits for its reply [default: 30]
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,

    /// At most so many requests
    #[arg(short = 'n', value_name = "COUNT", conflicts_with = "message")]
    pub(crate) count: Option<u64>,

    /// Make the requests: each its number, from 0, padded with zeros on the left to BYTES
    #[arg(long, value_name = "BYTES", requires = "count", conflicts_with = "message")]
    pub(crate) size: Option<usize>,

    #[command(flatten)]
    pub(crate) print: Print,

    /// The request; without it, one request per line of standard input
    pub(crate) message: Option<String>,
}

#[derive(Debug, Args)]
#[command(mut_arg("spool", |spool| spool.help(
    "Keep replies in this directory: a request that is kept, too, and comes again is given the reply it was given",
)))]
pub(crate) struct RepArgs {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(flatten)]
    pub(crate) keep: Keep,
    #[command(flatten)]
    pub(crate) answer: Answer,

    /// End after so many requests
    #[arg(short = 'n', value_name = "COUNT")]
    pub(crate) count: Option<u64>,

    #[command(flatten)]
    pub(crate) print: Print,
}

/// What is replied.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Answer {
    /// Reply with the request
    #[arg(long)]
    pub(crate) echo: bool,

    /// Reply with what this command of the shell prints when it is given the request on its standard input
    #[arg(long, value_name = "COMMAND")]
    pub(crate) exec: Option<String>,
}

/// Seconds, perhaps with a fraction.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "not a time that can be waited for".to_owned())
}

/// Messages a second, perhaps less than one.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("not a number greater than 0".to_owned()),
    }
}

/// `earliest`, a number, or so many seconds ago.
fn replay(text: &str) -> Result<Replay, String> {
    if text == "earliest" {
        return Ok(Replay::Earliest);
    }
    if let Ok(seq) = text.parse() {
        return Ok(Replay::Seq(seq));
    }
    let ago = text.strip_suffix('s').and_then(|ago| seconds(ago).ok());
    let ago = ago.ok_or("neither `earliest` nor a number nor seconds like `90s`")?;
    Ok(Replay::Time(SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)))
}

/// `always`, `os`, or within so many milliseconds.
fn durability(text: &str) -> Result<Durability, String> {
    match text {
        "always" => Ok(Durability::Always),
        "os" => Ok(Durability::Os),
        millis => match millis.parse() {
            Ok(millis @ 1..) => Ok(Durability::Every(Duration::from_millis(millis))),
            _ => Err("neither `always` nor `os` nor a number of milliseconds".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory;
    use ropewalk::{Replay, spool::Durability};

    use super::{Cli, durability, rate, replay, seconds};

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_and_rates_are_checked() {
        assert_eq!(seconds("0.5").unwrap().as_millis(), 500);
        for wrong in ["", "-1", "nan", "inf", "1e300", "5s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!(rate("0.25").unwrap(), 0.25);
        for wrong in ["", "0", "-1", "nan", "inf"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        assert_eq!(durability("always"), Ok(Durability::Always));
        assert_eq!(durability("20"), Ok(Durability::Every(Duration::from_millis(20))));
        for wrong in ["", "0", "-1", "never", "1.5"] {
            assert!(durability(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn replays_begin_where_it_says() {
        assert_eq!(replay("earliest"), Ok(Replay::Earliest));
        assert_eq!(replay("7"), Ok(Replay::Seq(7)));
        let Ok(Replay::Time(then)) = replay("90s") else { panic!("not a time") };
        assert!((90..150).contains(&then.elapsed().unwrap().as_secs()), "{then:?}");
        for wrong in ["", "s", "-1", "-1s", "soon", "1e300s", "latest"] {
            assert!(replay(wrong).is_err(), "{wrong}");
        }
    }
}
