//! Sets of sequences as text: `5-9,12`. Ranges with both ends included, ascending, not touching.

use std::fmt::Write as _;

/// Most ranges that a text may hold; a ledger ends before it has more.
pub const RANGES_MAX: usize = 1024;

/// Writes ranges, which are in order.
#[must_use]
pub fn to_text(ranges: &[(u64, u64)]) -> String {
    let mut text = String::new();
    for (first, last) in ranges {
        if !text.is_empty() {
            text.push(',');
        }
        let written =
            if first == last { write!(text, "{first}") } else { write!(text, "{first}-{last}") };
        written.expect("a string takes everything");
    }
    text
}

/// Reads ranges; nothing of a text that [`to_text`] would not write.
#[must_use]
pub fn from_text(text: &str) -> Option<Vec<(u64, u64)>> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    if text.is_empty() {
        return Some(ranges);
    }
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let is_in_order = ranges.last().is_none_or(|(_, before)| before + 1 < first);
        if first > last || last == u64::MAX || !is_in_order || ranges.len() == RANGES_MAX {
            return None;
        }
        ranges.push((first, last));
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        let check = |ranges: &[(u64, u64)], text: &str| {
            assert_eq!(to_text(ranges), text);
            assert_eq!(from_text(text).as_deref(), Some(ranges), "{text}");
        };
        check(&[], "");
        check(&[(5, 5)], "5");
        check(&[(5, 9), (12, 12), (14, 20)], "5-9,12,14-20");
    }

    #[test]
    fn what_is_no_ascending_list_of_ranges_is_refused() {
        let last = u64::MAX.to_string();
        for text in ["x", "5-", "9-5", "5,6", "5-9,8", "12,5", "5;6", " 5", "-5", &last] {
            assert_eq!(from_text(text), None, "{text}");
        }
        let many: Vec<_> = (0..=RANGES_MAX as u64).map(|number| (2 * number, 2 * number)).collect();
        assert!(from_text(&to_text(&many[1..])).is_some());
        assert_eq!(from_text(&to_text(&many)), None);
    }
}
