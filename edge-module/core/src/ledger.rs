//! Pages of the journal's books, so that whoever receives the records can tell which are missing.
//!
//! A page says: these sequences were given since the page before, these of them are waveforms (which the tables of the lake
//! do not hold), and everything up to here was delivered or is told as lost. Pages follow one another without holes; the
//! record that carries a page is part of the next one.

use shared_proto::model::Sequence;

/// A page ends before it names more ranges of waveforms.
pub const WAVEFORM_RANGES_MAX: usize = 64;

/// One page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// First sequence of the page.
    pub first: Sequence,
    /// Last sequence of the page; one before `first` on a page without records.
    pub last: Sequence,
    /// Ranges of waveforms among them, both ends included.
    pub waveforms: Vec<(u64, u64)>,
}

/// The page that is being written.
#[derive(Clone, Debug)]
pub struct Ledger {
    first: Sequence,
    waveforms: Vec<(u64, u64)>,
}

impl Ledger {
    /// Books that go on at `first`.
    #[must_use]
    pub const fn starting_at(first: Sequence) -> Self {
        Self { first, waveforms: Vec::new() }
    }

    /// Where books go on after a restart. `last_page` is the last sequence of the last page that was journalled, `next` the sequence
    /// that the next record gets, `last_waveform` that of the last waveform. Where a waveform stands on the page that a
    /// crash cut off, its place among the others is not known any more: what is before `next` then is on no page.
    #[must_use]
    pub fn resumed(last_page: Option<Sequence>, next: Sequence, last_waveform: Sequence) -> Self {
        let first = match last_page {
            Some(last) if last < next && last_waveform <= last => last.next(),
            Some(_) | None => next,
        };
        Self::starting_at(first)
    }

    /// Takes note of waveforms that are durable now: `count` of them from `first`.
    pub fn handle_waveforms(&mut self, first: Sequence, count: u64) {
        let Some(last) = count.checked_sub(1).map(|more| first.0 + more) else { return };
        match self.waveforms.last_mut() {
            Some((_, before)) if *before + 1 == first.0 => *before = last,
            Some(_) | None => self.waveforms.push((first.0, last)),
        }
    }

    /// Whether the page is to end now.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.waveforms.len() >= WAVEFORM_RANGES_MAX
    }

    /// Ends the page before `next`, the sequence that the next record gets.
    pub fn end_page(&mut self, next: Sequence) -> Page {
        let first = std::mem::replace(&mut self.first, next);
        let last = Sequence(next.0.saturating_sub(1));
        Page { first, last, waveforms: std::mem::take(&mut self.waveforms) }
    }
}

/// Everything up to here is delivered: the last sequence given, or where the lane that is furthest behind stands. `lanes` are the last
/// record and the last one delivered of each.
#[must_use]
pub fn delivered_through(
    last: Sequence,
    lanes: impl IntoIterator<Item = (Sequence, Sequence)>,
) -> Sequence {
    let behind = lanes.into_iter().filter(|(last, acknowledged)| acknowledged < last);
    behind.map(|(_, acknowledged)| acknowledged).min().unwrap_or(last).min(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_one_another_and_name_their_waveforms() {
        let mut ledger = Ledger::starting_at(Sequence(1));
        ledger.handle_waveforms(Sequence(3), 2);
        ledger.handle_waveforms(Sequence(5), 1);
        ledger.handle_waveforms(Sequence(8), 1);
        ledger.handle_waveforms(Sequence(9), 0);
        let page = ledger.end_page(Sequence(11));
        assert_eq!((page.first, page.last), (Sequence(1), Sequence(10)));
        assert_eq!(page.waveforms, [(3, 5), (8, 8)]);
        let page = ledger.end_page(Sequence(12));
        assert_eq!((page.first, page.last), (Sequence(11), Sequence(11)));
        assert_eq!(page.waveforms, []);
    }

    #[test]
    fn page_is_full_at_its_limit_of_ranges() {
        let mut ledger = Ledger::starting_at(Sequence(1));
        for number in 1..=WAVEFORM_RANGES_MAX as u64 {
            assert!(!ledger.is_full());
            ledger.handle_waveforms(Sequence(2 * number), 1);
        }
        assert!(ledger.is_full());
        assert_eq!(ledger.end_page(Sequence(1000)).waveforms.len(), WAVEFORM_RANGES_MAX);
        assert!(!ledger.is_full());
    }

    #[test]
    fn books_go_on_after_the_last_page_unless_a_waveform_came_since() {
        let check = |last_page: Option<u64>, next, waveform, expected| {
            let last_page = last_page.map(Sequence);
            let mut ledger = Ledger::resumed(last_page, Sequence(next), Sequence(waveform));
            assert_eq!(ledger.end_page(Sequence(next)).first, Sequence(expected));
        };
        check(None, 1, 0, 1);
        check(None, 50, 0, 50);
        check(Some(40), 50, 0, 41);
        check(Some(40), 50, 40, 41);
        check(Some(40), 50, 41, 50);
        check(Some(49), 50, 3, 50);
        // A journal that knows less than its own ledger.
        check(Some(60), 50, 3, 50);
    }

    #[test]
    fn delivered_is_where_the_slowest_lane_stands() {
        let check = |last, lanes: &[(u64, u64)], expected| {
            let lanes = lanes.iter().map(|(last, done)| (Sequence(*last), Sequence(*done)));
            assert_eq!(delivered_through(Sequence(last), lanes), Sequence(expected));
        };
        check(100, &[(100, 100), (90, 90)], 100);
        check(100, &[(100, 98), (90, 90)], 98);
        check(100, &[(100, 98), (90, 12), (0, 0)], 12);
        check(100, &[(90, 0)], 0);
        check(0, &[], 0);
    }
}
