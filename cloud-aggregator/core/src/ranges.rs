//! Sets of sequences as ranges: small where the sequences are nearly complete.

use serde::{Deserialize, Serialize};

/// A set of numbers: ranges with both ends included, ascending, not touching.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Ranges(Vec<(u64, u64)>);

/// Saved ranges that are out of order are put in order: the set is the same.
impl<'de> Deserialize<'de> for Ranges {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<(u64, u64)>::deserialize(deserializer).map(|ranges| ranges.into_iter().collect())
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<T: IntoIterator<Item = (u64, u64)>>(ranges: T) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|(first, last)| first <= last).collect();
        sorted.sort_unstable();
        let mut merged = Self::default();
        sorted.into_iter().for_each(|range| merged.push(range));
        merged
    }
}

impl Ranges {
    /// The set of numbers in any order; the vector is used up.
    #[must_use]
    pub fn from_numbers(mut numbers: Vec<u64>) -> Self {
        if !numbers.is_sorted() {
            numbers.sort_unstable();
        }
        let mut merged = Self::default();
        numbers.into_iter().for_each(|number| merged.push((number, number)));
        merged
    }

    /// Adds a range that does not begin before the last one.
    fn push(&mut self, (first, last): (u64, u64)) {
        match self.0.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            Some(_) | None => self.0.push((first, last)),
        }
    }

    /// The ranges.
    #[must_use]
    pub fn as_slice(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Whether there is no number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers there are; one less than that if it is all of them.
    #[must_use]
    pub fn count(&self) -> u64 {
        let lengths = self.0.iter().map(|(first, last)| (last - first).saturating_add(1));
        lengths.fold(0, u64::saturating_add)
    }

    /// Lowest number.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.0.first().map(|(first, _)| *first)
    }

    /// Highest number.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.0.last().map(|(_, last)| *last)
    }

    /// Adds a set.
    pub fn add(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        if self.last().is_none_or(|last| other.first().is_some_and(|first| first >= last)) {
            other.0.iter().for_each(|range| self.push(*range));
            return;
        }
        let mut merged = Self(Vec::with_capacity(self.0.len() + other.0.len()));
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let Some(range) = match (left.peek(), right.peek()) {
            (Some(a), Some(b)) if a <= b => left.next(),
            (_, Some(_)) => right.next(),
            (_, None) => left.next(),
        } {
            merged.push(*range);
        }
        *self = merged;
    }

    /// The numbers that `other` does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut others = other.0.iter().peekable();
        for (first, last) in &self.0 {
            while others.next_if(|(_, end)| end < first).is_some() {}
            let mut next = Some(*first);
            while let Some(from) = next
                && let Some((start, end)) = others.peek().copied().copied()
                && start <= *last
            {
                if start > from {
                    left.push((from, start - 1));
                }
                next = end.checked_add(1).filter(|next| next <= last);
                if end <= *last {
                    others.next();
                }
            }
            left.extend(next.map(|from| (from, *last)));
        }
        Self(left)
    }

    /// The numbers from `first` to `last`.
    #[must_use]
    pub fn within(&self, first: u64, last: u64) -> Self {
        let cut = self.0.iter().map(|range| (range.0.max(first), range.1.min(last)));
        Self(cut.filter(|range| range.0 <= range.1).collect())
    }

    /// The lowest numbers, at most `count` of them.
    #[must_use]
    pub fn lowest(&self, mut count: u64) -> Self {
        let mut taken = Vec::new();
        for (first, last) in &self.0 {
            let Some(more) = count.checked_sub(1) else { break };
            let last = first.saturating_add(more).min(*last);
            taken.push((*first, last));
            count -= last - first + 1;
        }
        Self(taken)
    }

    /// Forgets the numbers up to `through`.
    pub fn forget_through(&mut self, through: u64) {
        let kept = self.0.partition_point(|(_, last)| *last <= through);
        self.0.drain(..kept);
        if let Some((first, _)) = self.0.first_mut() {
            *first = (*first).max(through.saturating_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.0.iter().flat_map(|(first, last)| *first..=*last).collect()
    }

    fn is_tidy(ranges: &Ranges) -> bool {
        ranges.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0)
            && ranges.0.iter().all(|(first, last)| first <= last)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn ranges_are_the_sets_that_they_stand_for(
            left in proptest::collection::vec(0_u64..60, 0..40),
            right in proptest::collection::vec(0_u64..60, 0..40),
            (first, last, count) in (0_u64..60, 0_u64..60, 0_u64..60),
            is_at_the_end in any::<bool>(),
        ) {
            let place = |number: u64| if is_at_the_end { u64::MAX - number } else { number };
            let placed = |numbers: Vec<u64>| numbers.into_iter().map(place).collect::<Vec<_>>();
            let (left, right, first, last) =
                (placed(left), placed(right), place(first), place(last));
            let (a, b) = (Ranges::from_numbers(left.clone()), Ranges::from_numbers(right.clone()));
            let (left, right): (BTreeSet<u64>, BTreeSet<u64>) =
                (left.into_iter().collect(), right.into_iter().collect());
            prop_assert!(is_tidy(&a));
            prop_assert_eq!(set(&a), left.clone());
            prop_assert_eq!(a.count(), left.len() as u64);
            prop_assert_eq!((a.first(), a.last()), (left.first().copied(), left.last().copied()));
            let mut sum = a.clone();
            sum.add(&b);
            prop_assert!(is_tidy(&sum));
            prop_assert_eq!(set(&sum), left.union(&right).copied().collect::<BTreeSet<_>>());
            let rest = a.without(&b);
            prop_assert!(is_tidy(&rest));
            prop_assert_eq!(set(&rest), left.difference(&right).copied().collect::<BTreeSet<_>>());
            let part: BTreeSet<u64> =
                left.iter().copied().filter(|number| (first..=last).contains(number)).collect();
            prop_assert_eq!(set(&a.within(first, last)), part);
            let lowest: BTreeSet<u64> = left.iter().copied().take(count as usize).collect();
            prop_assert_eq!(set(&a.lowest(count)), lowest);
            let mut kept = a.clone();
            kept.forget_through(first);
            prop_assert!(is_tidy(&kept));
            prop_assert_eq!(set(&kept), left.into_iter().filter(|number| *number > first).collect::<BTreeSet<_>>());
        }
    }

    #[test]
    fn ends_of_the_range_do_not_overflow() {
        let all = Ranges::from_iter([(0, u64::MAX)]);
        assert_eq!(all.without(&all), Ranges::default());
        let mut sum = all.clone();
        sum.add(&Ranges::from_iter([(u64::MAX, u64::MAX)]));
        assert_eq!(sum, all);
        assert_eq!(sum.without(&Ranges::from_iter([(5, u64::MAX)])), Ranges::from_iter([(0, 4)]));
        assert_eq!(all.count(), u64::MAX);
        assert_eq!(Ranges::from_iter([(0, 1), (3, u64::MAX)]).count(), u64::MAX);
        assert_eq!(all.lowest(u64::MAX), Ranges::from_iter([(0, u64::MAX - 1)]));
        assert_eq!(all.within(u64::MAX, u64::MAX).count(), 1);
        sum.forget_through(u64::MAX);
        assert!(sum.is_empty());
    }
}
