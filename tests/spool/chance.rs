//! Choices, by a seed or one after the other.

/// Who decides what a crash leaves.
pub(crate) trait Choose {
    /// One of `0..of`.
    fn choose(&mut self, of: usize) -> usize;
}

/// A small generator (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Chance(pub u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Choose for Chance {
    fn choose(&mut self, of: usize) -> usize {
        (self.next() % of as u64) as usize
    }
}

/// Every sequence of choices, depth first.
#[derive(Debug, Default)]
pub(crate) struct Every {
    path: Vec<(usize, usize)>,
    at: usize,
}

impl Every {
    /// On to the next sequence; whether there is one.
    pub(crate) fn advance(&mut self) -> bool {
        self.path.truncate(self.at);
        self.at = 0;
        while let Some((choice, of)) = self.path.pop() {
            if choice + 1 < of {
                self.path.push((choice + 1, of));
                return true;
            }
        }
        false
    }
}

impl Choose for Every {
    fn choose(&mut self, of: usize) -> usize {
        if self.at == self.path.len() {
            self.path.push((0, of));
        }
        self.at += 1;
        self.path[self.at - 1].0
    }
}

#[test]
fn every_sequence_comes_once() {
    let (mut every, mut seen) = (Every::default(), std::collections::BTreeSet::new());
    loop {
        let first = every.choose(2);
        let second = if first == 0 { every.choose(3) } else { 9 };
        assert!(seen.insert((first, second)));
        if !every.advance() {
            break;
        }
    }
    assert_eq!(seen.len(), 4);
}
