//! A pattern that the library does not have, made outside of it: a round.
//!
//! ```text
//!                        +------> PLAYER 1        Players sit around a HOST. What a player says, the host may pass
//!   PLAYER 3 <---> HOST -+------> PLAYER 2        to the next player, in the order in which they came; after the
//!                                                 last comes the first.
//! ```
//!
//! The two types below only decide. Links, queues, bounds, credit, reconnection, events and `close` are the library's:
//! it tells them what happened, and does what they say.
//!
//! ```text
//! cargo run --example own_pattern
//! ```

use std::error::Error;

use ropewalk::{
    Body, Message, Misbehaved, Role, Socket, VerbError,
    patterns::{Outgoing, Pattern, Peer, Room, Turn, Why, zmtp::Ready},
};

/// The deciding half of a host.
#[derive(Debug, Default)]
struct Host {
    /// In the order they came.
    players: Vec<Peer>,
}

/// What a host's application may ask for: that the player after `from` gets these words.
#[derive(Debug)]
struct Pass<'a> {
    from: Peer,
    words: Body<'a>,
}

impl Pattern for Host {
    const ROLE: Role = Role::new("HOST");
    type Verb<'a> = Pass<'a>;
    type Event = (Peer, Message);

    fn accepts(role: &Role) -> bool {
        *role == Player::ROLE
    }

    fn on_join<T: Turn<Event = Self::Event>>(&mut self, player: Peer, _: &Ready, turn: &mut T) {
        self.players.push(player);
        turn.ready();
    }

    /// What was on its way to a player that is gone is lost, and said to be.
    fn on_leave<T: Turn<Event = Self::Event>>(&mut self, player: Peer, unsent: Vec<Message>, turn: &mut T) {
        self.players.retain(|&other| other != player);
        turn.lose(unsent.len() as u64);
        turn.ready();
    }

    fn on_verb<'a, T: Turn<Event = Self::Event>>(
        &mut self,
        Pass { from, words }: Self::Verb<'a>,
        turn: &mut T,
    ) -> Result<(), (Self::Verb<'a>, Why)> {
        let place = self.players.iter().position(|&player| player == from).map_or(0, |place| place + 1);
        let next = self.players.get(place).or(self.players.first());
        let words = Outgoing::from(words);
        let why = match next.map(|&next| (next, turn.room(next, &words))) {
            Some((next, Room::Fits)) => {
                turn.send(next, &words);
                return Ok(());
            }
            Some((_, Room::Never)) => Why::TooLarge,
            // The library tries again when `on_room`, `on_join` or `on_leave` say that it may.
            _ => Why::Full,
        };
        Err((Pass { from, words: words.body }, why))
    }

    fn on_room<T: Turn<Event = Self::Event>>(&mut self, _: Peer, turn: &mut T) {
        turn.ready();
    }

    fn on_message<T: Turn<Event = Self::Event>>(
        &mut self,
        from: Peer,
        words: Message,
        _: &mut T,
    ) -> Result<Option<Self::Event>, Misbehaved> {
        Ok(Some((from, words)))
    }
}

/// The deciding half of a player: it talks with one host, and hears only it.
#[derive(Debug, Default)]
struct Player {
    host: Option<Peer>,
}

impl Pattern for Player {
    const ROLE: Role = Role::new("PLAYER");
    type Verb<'a> = Body<'a>;
    type Event = Message;

    fn accepts(role: &Role) -> bool {
        *role == Host::ROLE
    }

    fn on_join<T: Turn<Event = Message>>(&mut self, host: Peer, _: &Ready, turn: &mut T) {
        if self.host.is_some() {
            return turn.disconnect(host);
        }
        self.host = Some(host);
        turn.ready();
    }

    fn on_leave<T: Turn<Event = Message>>(&mut self, host: Peer, unsent: Vec<Message>, turn: &mut T) {
        self.host.take_if(|mine| *mine == host);
        turn.lose(unsent.len() as u64);
    }

    fn on_verb<'a, T: Turn<Event = Message>>(
        &mut self,
        words: Self::Verb<'a>,
        turn: &mut T,
    ) -> Result<(), (Self::Verb<'a>, Why)> {
        let words = Outgoing::from(words);
        match self.host.map(|host| (host, turn.room(host, &words))) {
            Some((host, Room::Fits)) => {
                turn.send(host, &words);
                Ok(())
            }
            Some((_, Room::Never)) => Err((words.body, Why::TooLarge)),
            _ => Err((words.body, Why::Full)),
        }
    }

    fn on_room<T: Turn<Event = Message>>(&mut self, _: Peer, turn: &mut T) {
        turn.ready();
    }

    fn on_message<T: Turn<Event = Message>>(
        &mut self,
        _: Peer,
        words: Message,
        _: &mut T,
    ) -> Result<Option<Message>, Misbehaved> {
        Ok(Some(words))
    }
}

const ROUNDS: usize = 2;

/// Hears the story so far, adds a word and says it; as often as there are rounds.
async fn play(player: Socket<Player>, word: &'static str) -> Result<(), Box<dyn Error + Send + Sync>> {
    for _ in 0..ROUNDS {
        let story = player.next().await?;
        let story = format!("{} {word}", story.text()?);
        player.verb(story.into()).await.map_err(|error| error.to_string())?;
    }
    let report = player.close().await;
    if report.all_delivered() { Ok(()) } else { Err("a player was not heard".into()) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let host = Socket::with_pattern(Host::default()).bind("tcp://127.0.0.1:0").await?;
    let address = host.address().ok_or("it does not listen")?.to_string();

    let words = ["a", "rope", "walks"];
    let mut players = Vec::new();
    for (place, word) in words.into_iter().enumerate() {
        let player = Socket::with_pattern(Player::default()).connect(&address).await?;
        // One after the other, so that they sit in this order.
        host.ready_with(place + 1).await?;
        players.push(tokio::spawn(play(player, word)));
    }

    // The host begins: nobody is before the first player, so the first of all is next.
    let nobody = Peer { slot: u32::MAX, generation: u32::MAX };
    host.verb(Pass { from: nobody, words: "once".into() }).await.map_err(|error| error.to_string())?;
    let mut story = String::new();
    for said in 1..=ROUNDS * words.len() {
        let (from, words_so_far) = host.next().await?;
        story = words_so_far.text()?.to_owned();
        println!("{story}");
        if said < ROUNDS * words.len() {
            match host.verb(Pass { from, words: words_so_far.into() }).await {
                Ok(()) => {}
                Err(VerbError::Undone(pass, why)) => return Err(format!("{pass:?} was not done: {why:?}").into()),
                Err(error) => return Err(error.to_string().into()),
            }
        }
    }
    for player in players {
        player.await??;
    }
    host.close().await;
    if story != "once a rope walks a rope walks" {
        return Err("the story went another way".into());
    }
    Ok(())
}
