//! Random numbers from a seed (SplitMix64: Steele, Lea, Flood, OOPSLA 2014).

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number of the range, which must not be empty.
    pub(crate) fn of(&mut self, range: Range<u64>) -> u64 {
        range.start + self.number() % (range.end - range.start)
    }

    pub(crate) fn is_one_in(&mut self, of: u64) -> bool {
        self.number().is_multiple_of(of)
    }
}

/// How often a test repeats itself: `JOURNAL_ROUNDS`, or what a change has to pass.
pub(crate) fn rounds(usual: u64) -> u64 {
    number_from_environment("JOURNAL_ROUNDS").unwrap_or(usual)
}

/// Where the random numbers of this run begin: `JOURNAL_SEED`, else the same as always, else, in a long run, new ones.
pub(crate) fn seed() -> u64 {
    number_from_environment("JOURNAL_SEED").unwrap_or_else(|| {
        if number_from_environment("JOURNAL_ROUNDS").is_none() {
            return 1;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        since.as_micros() as u64
    })
}

fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}
