//! Which offsets of a Kafka partition have rows: a bit each, and nothing for a full block of them.

use std::collections::BTreeMap;

const BLOCK_BITS: i64 = 65_536;
const WORDS: usize = 1_024;

#[derive(Debug)]
enum Block {
    Some(Box<[u64; WORDS]>, u32),
    Full,
}

/// A set of offsets.
#[derive(Debug, Default)]
pub(super) struct OffsetSet {
    blocks: BTreeMap<i64, Block>,
    count: u64,
}

impl OffsetSet {
    /// Adds one; says whether it is new.
    pub(super) fn insert(&mut self, offset: i64) -> bool {
        let place = usize::try_from(offset.rem_euclid(BLOCK_BITS)).unwrap_or(0);
        let block = self.blocks.entry(offset.div_euclid(BLOCK_BITS));
        let block = block.or_insert_with(|| Block::Some(Box::new([0; WORDS]), 0));
        let Block::Some(words, held) = block else { return false };
        let (word, bit) = (&mut words[place / 64], 1_u64 << (place % 64));
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        *held += 1;
        if i64::from(*held) == BLOCK_BITS {
            *block = Block::Full;
        }
        self.count += 1;
        true
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The lowest.
    pub(super) fn first(&self) -> Option<i64> {
        let (number, block) = self.blocks.first_key_value()?;
        let place = match block {
            Block::Full => 0,
            Block::Some(words, _) => {
                let word = words.iter().position(|word| *word != 0)?;
                i64::try_from(word).ok()? * 64 + i64::from(words[word].trailing_zeros())
            }
        };
        Some(number * BLOCK_BITS + place)
    }

    /// How many there are from `first` to before `end`.
    pub(super) fn count_within(&self, first: i64, end: i64) -> u64 {
        if first >= end {
            return 0;
        }
        let blocks =
            self.blocks.range(first.div_euclid(BLOCK_BITS)..=(end - 1).div_euclid(BLOCK_BITS));
        blocks.map(|(number, block)| count_in(number * BLOCK_BITS, block, first, end)).sum()
    }
}

fn count_in(start: i64, block: &Block, first: i64, end: i64) -> u64 {
    let (from, to) = (first.max(start) - start, end.min(start + BLOCK_BITS) - start);
    match block {
        Block::Full => u64::try_from(to - from).unwrap_or(0),
        Block::Some(_, held) if to - from == BLOCK_BITS => u64::from(*held),
        Block::Some(words, _) => {
            let is_set = |place: &i64| {
                let place = usize::try_from(*place).unwrap_or(0);
                words[place / 64] & (1 << (place % 64)) != 0
            };
            (from..to).filter(is_set).count() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn set_is_the_set_that_it_stands_for() {
        // Numbers as a linear congruential generator gives them (Knuth's MMIX constants).
        let mut state = 1_u64;
        let mut next = |below: i64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            i64::try_from(state >> 33).expect("31 bits") % below
        };
        for _ in 0..200 {
            let (mut set, mut expected) = (OffsetSet::default(), BTreeSet::new());
            for _ in 0..next(300) {
                let offset = next(200_000);
                assert_eq!(set.insert(offset), expected.insert(offset));
            }
            let (first, end) = (next(200_000), next(200_000));
            assert_eq!(set.count(), expected.len() as u64);
            assert_eq!(set.first(), expected.first().copied());
            let within = expected.iter().filter(|offset| (first..end).contains(*offset)).count();
            assert_eq!(set.count_within(first, end), within as u64);
        }
    }

    #[test]
    fn full_blocks_hold_nothing_and_refuse_repeats() {
        let mut set = OffsetSet::default();
        for offset in 0..BLOCK_BITS + 3 {
            assert!(set.insert(offset));
        }
        assert!(matches!(set.blocks[&0], Block::Full));
        assert!(!set.insert(7));
        assert_eq!((set.count(), set.first()), (65_539, Some(0)));
        assert_eq!(set.count_within(10, BLOCK_BITS + 2), 65_528);
    }
}
