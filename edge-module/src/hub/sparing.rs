//! Lines of the log about what a hub does: a hub that floods must not fill the disk with them. What is not told is counted in metrics.

use std::time::{Duration, Instant};

use tracing::warn;

const LINES_MAX: u32 = 20;
const INTERVAL: Duration = Duration::from_secs(10);

/// So many lines in an interval; how many were left out is told at its end.
#[derive(Debug)]
pub(super) struct Sparing {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl Default for Sparing {
    fn default() -> Self {
        Self { since: Instant::now(), lines: 0, left_out: 0 }
    }
}

impl Sparing {
    /// Whether one more line may be written.
    pub(super) fn may(&mut self) -> bool {
        if self.lines < LINES_MAX {
            self.lines += 1;
            return true;
        }
        self.left_out += 1;
        false
    }

    /// Begins the next interval if this one is over.
    pub(super) fn look(&mut self) {
        if self.since.elapsed() < INTERVAL {
            return;
        }
        if self.left_out > 0 {
            let left_out = self.left_out;
            warn!(left_out, "lines about the hub were left out: it sends more than can be told");
        }
        *self = Self::default();
    }
}

/// The beginning of a text.
pub(super) fn cut(text: &str, characters_max: usize) -> String {
    match text.char_indices().nth(characters_max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_writes_so_many_lines_and_no_more() {
        let mut sparing = Sparing::default();
        let told = (0..1_000).filter(|_| sparing.may()).count();
        assert_eq!((told, sparing.left_out), (LINES_MAX as usize, 1_000 - u64::from(LINES_MAX)));
        sparing.since = Instant::now() - INTERVAL;
        sparing.look();
        assert!(sparing.may(), "the next interval");
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("grün", 4), "grün");
        assert_eq!(cut("grüner", 3), "grü…");
    }
}
