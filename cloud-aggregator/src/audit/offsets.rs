//! Which offsets of a Kafka partition have rows: two bytes each while a block has few of them, then a bit, and nothing for a full block.

use std::collections::BTreeMap;

const BLOCK_BITS: i64 = 65_536;
const WORDS: usize = 1_024;
/// More take as much memory as a bit for each that there may be.
const FEW_MAX: usize = 4_096;

#[derive(Debug)]
enum Block {
    /// Sorted.
    Few(Vec<u16>),
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
        let place = u16::try_from(offset.rem_euclid(BLOCK_BITS)).unwrap_or(0);
        let block = self.blocks.entry(offset.div_euclid(BLOCK_BITS));
        let is_new = block.or_insert_with(|| Block::Few(Vec::new())).insert(place);
        self.count += u64::from(is_new);
        is_new
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
            Block::Few(places) => i64::from(*places.first()?),
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

    /// How many are in both.
    pub(super) fn count_common(&self, other: &Self) -> u64 {
        let both = self.blocks.iter().filter_map(|(number, block)| {
            let other = other.blocks.get(number)?;
            let (few, many) =
                if block.count() <= other.count() { (block, other) } else { (other, block) };
            Some(few.places().filter(|place| many.holds(*place)).count() as u64)
        });
        both.sum()
    }
}

impl Block {
    fn insert(&mut self, place: u16) -> bool {
        match self {
            Self::Full => false,
            Self::Few(places) => {
                // They mostly come in order.
                let at = if places.last().is_none_or(|last| *last < place) {
                    places.len()
                } else if let Err(at) = places.binary_search(&place) {
                    at
                } else {
                    return false;
                };
                places.insert(at, place);
                if places.len() > FEW_MAX {
                    *self = Self::of(places);
                }
                true
            }
            Self::Some(words, held) => {
                let (word, bit) = word_and_bit(place);
                if words[word] & bit != 0 {
                    return false;
                }
                words[word] |= bit;
                *held += 1;
                if i64::from(*held) == BLOCK_BITS {
                    *self = Self::Full;
                }
                true
            }
        }
    }

    fn of(places: &[u16]) -> Self {
        let mut words = Box::new([0; WORDS]);
        for place in places {
            let (word, bit) = word_and_bit(*place);
            words[word] |= bit;
        }
        Self::Some(words, u32::try_from(places.len()).unwrap_or(u32::MAX))
    }

    fn count(&self) -> usize {
        match self {
            Self::Few(places) => places.len(),
            Self::Some(_, held) => *held as usize,
            Self::Full => BLOCK_BITS as usize,
        }
    }

    fn holds(&self, place: u16) -> bool {
        match self {
            Self::Few(places) => places.binary_search(&place).is_ok(),
            Self::Some(words, _) => {
                let (word, bit) = word_and_bit(place);
                words[word] & bit != 0
            }
            Self::Full => true,
        }
    }

    fn places(&self) -> impl Iterator<Item = u16> {
        (0..=u16::MAX).filter(|place| self.holds(*place))
    }
}

fn word_and_bit(place: u16) -> (usize, u64) {
    (usize::from(place / 64), 1_u64 << (place % 64))
}

fn count_in(start: i64, block: &Block, first: i64, end: i64) -> u64 {
    let (from, to) = (first.max(start) - start, end.min(start + BLOCK_BITS) - start);
    match block {
        Block::Full => u64::try_from(to - from).unwrap_or(0),
        Block::Few(places) => {
            places.iter().filter(|place| (from..to).contains(&i64::from(**place))).count() as u64
        }
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
            let odd: Vec<i64> = expected.iter().copied().filter(|it| it % 2 == 1).collect();
            let mut others = OffsetSet::default();
            odd.iter().chain(&[300_001]).for_each(|offset| assert!(others.insert(*offset)));
            assert_eq!(set.count_common(&others), odd.len() as u64);
        }
    }

    #[test]
    fn blocks_of_many_are_the_sets_that_they_stand_for() {
        let (mut set, mut other) = (OffsetSet::default(), OffsetSet::default());
        let limit = FEW_MAX as i64;
        for number in (0..limit + 2).rev() {
            assert!(set.insert(number * 3), "{number}");
            assert!(!set.insert(number * 3), "{number}");
        }
        assert!(matches!(set.blocks[&0], Block::Some(..)));
        assert_eq!((set.count(), set.first()), (FEW_MAX as u64 + 2, Some(0)));
        assert_eq!(set.count_within(1, 10), 3);
        for number in 0..limit * 2 {
            other.insert(number * 2 + 70_000);
            other.insert(number * 2);
        }
        let common = (0..limit + 2).filter(|number| number * 3 % 2 == 0).count() as u64;
        assert_eq!((set.count_common(&other), other.count_common(&set)), (common, common));
        assert_eq!(set.count_common(&OffsetSet::default()), 0);
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
