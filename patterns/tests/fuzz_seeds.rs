//! What the fuzz targets check, with fixed seeds: bytes at random, and valid streams with faults put in.

mod invariants;

use bytes::{Bytes, BytesMut};
use ropewalk_patterns::{
    Role, Tally,
    extension::{
        Credit, Gap, Goodbye, Hello, Refusal, RefusalReason,
        delivery::{Ack, Attach, Fence, Floor, Resume, Start, Verdict, What},
    },
    ranges::Ranges,
    zmtp::{Command, Ready, encode_error, encode_part, greeting},
};

/// SplitMix64: small, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() % end.max(1) as u64).unwrap()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.roll().to_le_bytes()[0]).collect()
    }

    /// A number of any size.
    fn number(&mut self) -> u64 {
        self.roll() >> self.below(64)
    }
}

fn command(dice: &mut Dice) -> Command {
    let bytes = |dice: &mut Dice, most| Bytes::from(dice.bytes(most));
    match dice.below(14) {
        0 => Command::Subscribe(bytes(dice, 30)),
        1 => Command::Cancel(bytes(dice, 30)),
        2 => Command::Ping { ttl: u16::try_from(dice.below(65_536)).unwrap(), context: bytes(dice, 20) },
        3 => Command::Pong { context: bytes(dice, 20) },
        4 => Command::Credit(Credit { taken: dice.number(), messages: dice.number(), bytes: dice.number() }),
        5 => {
            let other = RefusalReason::Other(u32::try_from(3 + dice.below(1_000)).unwrap());
            let reason = [RefusalReason::Dropped, RefusalReason::TooLarge, RefusalReason::Denied, other][dice.below(4)];
            Command::Refusal(Refusal { reason, id: bytes(dice, 20) })
        }
        6 => Command::Gap(Gap { missed: dice.number() }),
        7..13 => of_delivery(dice),
        _ => {
            let (sent, received, taken) = (dice.number(), dice.number(), dice.number());
            Command::Goodbye(Goodbye { sent, received, taken, answer: dice.below(2) == 0 })
        }
    }
}

fn of_delivery(dice: &mut Dice) -> Command {
    match dice.below(6) {
        0 => {
            let stream = [dice.roll().to_le_bytes(), dice.roll().to_le_bytes()].concat().try_into().unwrap();
            Command::Attach(Attach { stream, incarnation: dice.number(), floor: dice.number() })
        }
        1 => {
            let at = dice.number();
            let start = [Start::Cursor, Start::Earliest, Start::Seq(at), Start::Time(at)][dice.below(4)];
            let done = (0..dice.below(3)).map(|_| (dice.number(), ranges(dice))).collect();
            Command::Resume(Resume { name: dice.bytes(10).into(), start, done })
        }
        2 => Command::Ack(Ack { places: ranges(dice) }),
        3 => {
            let reject = What::Reject { reason: dice.bytes(20).into() };
            let what = [What::Release { millis: dice.number() }, reject][dice.below(2)].clone();
            Command::Verdict(Verdict { place: dice.number(), what })
        }
        4 => Command::Floor(Floor { seq: dice.number() }),
        _ => Command::Fence(Fence { incarnation: dice.number() }),
    }
}

fn ranges(dice: &mut Dice) -> Ranges {
    let mut ranges = Ranges::default();
    for _ in 0..dice.below(5) {
        let start = dice.number() >> 3;
        ranges.insert(start..start + dice.below(300) as u64);
    }
    ranges
}

/// Messages and commands as peers send them, some with lengths needlessly long.
fn traffic(dice: &mut Dice) -> Vec<u8> {
    let mut out = BytesMut::new();
    for _ in 0..dice.below(12) {
        if dice.below(3) == 0 {
            let legacy = dice.below(4) == 0;
            command(dice).encode(legacy, &mut out);
            continue;
        }
        for left in (0..=dice.below(4)).rev() {
            let most = [0, 5, 90, 300][dice.below(4)];
            let part = dice.bytes(most);
            if dice.below(8) == 0 {
                out.extend_from_slice(&[2 | u8::from(left > 0)]);
                out.extend_from_slice(&(part.len() as u64).to_be_bytes());
            } else {
                encode_part(&mut out, left > 0, part.len());
            }
            out.extend_from_slice(&part);
        }
    }
    out.to_vec()
}

fn opening(dice: &mut Dice) -> Vec<u8> {
    let mut out = greeting().to_vec();
    let role = [Role::REQ, Role::PULL, Role::ROUTER, Role::new("OTHER")][dice.below(4)].clone();
    let hello = (dice.below(2) == 0).then(|| Hello::new(Tally::new(dice.number(), dice.number()), dice.number()));
    if dice.below(5) == 0 {
        out.extend_from_slice(&encode_error(["", "no", &"x".repeat(255)][dice.below(3)]));
    } else {
        let most = [0, 10, 250][dice.below(3)];
        let identity = dice.bytes(most).into();
        out.extend_from_slice(&Ready { role, identity, hello }.encode());
    }
    out.extend_from_slice(&traffic(dice));
    out
}

/// Puts some faults in: none, often.
fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>) {
    for _ in 0..dice.below(4) {
        let at = dice.below(bytes.len());
        if bytes.is_empty() {
            return;
        }
        match dice.below(6) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = [0, 1, 2, 3, 4, 6, 0x7F, 0x80, 0xFF][dice.below(9)],
            2 => bytes.truncate(at),
            3 => drop(bytes.remove(at)),
            4 => bytes.insert(at, dice.roll().to_le_bytes()[0]),
            _ => {
                let copy = bytes[at..(at + dice.below(40)).min(bytes.len())].to_vec();
                let to = dice.below(bytes.len());
                bytes.splice(to..to, copy);
            }
        }
    }
}

#[test]
fn any_bytes_are_decoded_alike_in_any_pieces() {
    let mut dice = Dice(1);
    for _ in 0..10_000 {
        let (choices, mut stream) = (dice.bytes(31), dice.bytes(400));
        // Most flags do not exist; let some inputs get further.
        stream.iter_mut().for_each(|byte| *byte %= if choices.len() % 2 == 0 { 255 } else { 7 });
        invariants::decoder(&choices, &stream);
    }
}

#[test]
fn streams_with_faults_are_decoded_alike_in_any_pieces() {
    let mut dice = Dice(2);
    for _ in 0..10_000 {
        let (choices, mut stream) = (dice.bytes(31), traffic(&mut dice));
        mutate(&mut dice, &mut stream);
        invariants::decoder(&choices, &stream);
    }
}

#[test]
fn handshakes_with_and_without_faults_end_alike_in_any_pieces() {
    let mut dice = Dice(3);
    for _ in 0..20_000 {
        let (choices, mut stream) = (dice.bytes(31), opening(&mut dice));
        mutate(&mut dice, &mut stream);
        invariants::handshake(&choices, &stream);
    }
}

#[test]
fn inputs_of_the_fuzzer_are_parted_without_a_panic() {
    let mut dice = Dice(4);
    for _ in 0..5_000 {
        let input = dice.bytes(120);
        let (choices, stream) = invariants::parted(&input);
        assert!(choices.len() < 32 && choices.len() + stream.len() <= input.len());
        invariants::decoder(choices, stream);
        invariants::handshake(choices, stream);
    }
}
