//! Drift of a stream of scores: how far the logits of late are spread otherwise than those of a reference.
//!
//! The measure is the population stability index Σ (p − q) · ln(p / q) over bins between the reference's deciles, p being the
//! share of the latest windows in a bin and q the reference's share, 0.1 where no deciles coincide. It is Jeffreys' divergence
//! of the binned distributions (Kullback, Leibler, "On information and sufficiency", 1951). The usual reading is that of
//! Siddiqi, "Credit Risk Scorecards" (2006): below [`DRIFT_MODERATE`] no change to speak of, up to [`DRIFT_LARGE`] a moderate
//! one that is worth a look, above it a large one: learn anew, or find out what happened to the machine.
//!
//! Shares below half a window, 0.5 / n, count as that much, so that an empty bin gives a large and not an infinite index.
//!
//! **Deciles that coincide.** A value on which r > 1 deciles stand is a bin of its own with r − 1 tenths for sure. The tenth on
//! either side of it may lie on the value or beside it: the deciles do not say. It is dealt out as the latest windows have it, as
//! far as a tenth reaches. So the reference's own data give an index of 0 also where they are constant or take few values. Only a
//! value that has more than one and up to two tenths of the data, with a single decile on it, is not known for one that repeats.
//!
//! **Windows that overlap** are no independent witnesses: two hundred of them may be twenty seconds of one mood of the machine.
//! What comes within [`DRIFT_SPACING`] of the window counted last is not counted: [`DRIFT_WINDOWS_MAX`] windows are 33
//! minutes at least. Of independent windows without drift the index is about 9 / n: 0.045 at [`DRIFT_WINDOWS_MIN`].
//!
//! Memory: one byte for each window, and the bins. Nothing is allocated after [`DriftMonitor::new`]; a push takes the same time however
//! many windows there are.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

/// Windows over which the index slides.
pub const DRIFT_WINDOWS_MAX: usize = 2000;
/// Windows below which there is no index.
pub const DRIFT_WINDOWS_MIN: usize = 200;
/// Shortest time from one counted window to the next.
pub const DRIFT_SPACING: Duration = Duration::from_secs(1);
/// An index from here on is a moderate change.
pub const DRIFT_MODERATE: f64 = 0.1;
/// An index above this is a large change.
pub const DRIFT_LARGE: f64 = 0.25;
/// Deciles cut the reference into this many parts.
const PARTS: usize = 10;

/// Deciles that no reference can have.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("decile {number} of the reference is {value}: deciles must be finite and not fall")]
pub struct DecilesFault {
    /// Which one, from 1.
    pub number: usize,
    /// Its value.
    pub value: f64,
}

/// What an index says, by the usual reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drift {
    /// No change to speak of.
    None,
    /// Worth a look.
    Moderate,
    /// Learn anew, or find out what happened.
    Large,
}

impl Drift {
    /// Reads an index.
    #[must_use]
    pub fn of(index: f64) -> Self {
        if index > DRIFT_LARGE {
            Self::Large
        } else if index >= DRIFT_MODERATE {
            Self::Moderate
        } else {
            Self::None
        }
    }

    /// The word shown to operators.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Moderate => "moderate",
            Self::Large => "large",
        }
    }
}

/// The index of one sensor in one condition, over its latest windows.
#[derive(Clone, Debug)]
pub struct DriftMonitor {
    /// Lowest values first.
    bins: [Bin; PARTS],
    /// Bins in use; deciles that coincide make them fewer.
    bin_count: usize,
    /// Number of the bin of each of the latest windows; the oldest at `next` once it is full.
    ring: Box<[u8]>,
    len: usize,
    next: usize,
    counted: Option<Instant>,
    not_finite: u64,
}

/// A bin reaches from the end of the one before it to its own.
#[derive(Clone, Copy, Debug)]
struct Bin {
    end: f64,
    /// Whether a logit that equals `end` belongs here.
    has_end: bool,
    /// Whether it is a single value on which deciles coincide.
    is_point: bool,
    /// The reference's share for sure, in tenths.
    tenths: usize,
    windows: usize,
}

impl Bin {
    const fn new(end: f64, has_end: bool, is_point: bool, tenths: usize) -> Self {
        Self { end, has_end, is_point, tenths, windows: 0 }
    }

    fn holds(&self, logit: f64) -> bool {
        logit < self.end || (self.has_end && logit == self.end)
    }
}

impl DriftMonitor {
    /// A monitor that has seen nothing; `deciles` are those of the reference's logits, lowest first.
    ///
    /// # Errors
    /// A decile that is not finite or below the one before.
    pub fn new(deciles: [f64; 9]) -> Result<Self, DecilesFault> {
        let mut before = f64::NEG_INFINITY;
        for (number, value) in (1..).zip(deciles) {
            if !value.is_finite() || value < before {
                return Err(DecilesFault { number, value });
            }
            before = value;
        }
        let (bins, bin_count) = bins_between(deciles);
        let ring = vec![0; DRIFT_WINDOWS_MAX].into_boxed_slice();
        Ok(Self { bins, bin_count, ring, len: 0, next: 0, counted: None, not_finite: 0 })
    }

    /// Takes the logit of a window. One that comes within [`DRIFT_SPACING`] of the one counted last, or is not finite, is not counted.
    pub fn push(&mut self, logit: f64, now: Instant) {
        if !logit.is_finite() {
            self.not_finite += 1;
            return;
        }
        let is_apart = |last: Instant| now.saturating_duration_since(last) >= DRIFT_SPACING;
        if !self.counted.is_none_or(is_apart) {
            return;
        }
        self.counted = Some(now);
        // The last bin is open: a logit is always in one.
        let last = self.bin_count - 1;
        let number = self.bins[..last].iter().position(|bin| bin.holds(logit)).unwrap_or(last);
        if self.len == self.ring.len() {
            self.bins[usize::from(self.ring[self.next])].windows -= 1;
        } else {
            self.len += 1;
        }
        self.ring[self.next] = u8::try_from(number).unwrap_or(u8::MAX);
        self.bins[number].windows += 1;
        self.next = (self.next + 1) % self.ring.len();
    }

    /// The population stability index; `None` before there are [`DRIFT_WINDOWS_MIN`] windows.
    #[must_use]
    pub fn index(&self) -> Option<f64> {
        if self.len < DRIFT_WINDOWS_MIN {
            return None;
        }
        let windows = self.len as f64;
        let floor = 0.5 / windows;
        let expected = self.expected();
        let term = |(bin, expected): (&Bin, f64)| {
            let (found, expected) =
                ((bin.windows as f64 / windows).max(floor), expected.max(floor));
            (found - expected) * (found / expected).ln()
        };
        Some(self.bins[..self.bin_count].iter().zip(expected).map(term).sum())
    }

    /// Windows that the index is of.
    #[must_use]
    pub const fn windows(&self) -> usize {
        self.len
    }

    /// Logits that were NaN or infinite, since the start.
    #[must_use]
    pub const fn not_finite(&self) -> u64 {
        self.not_finite
    }

    /// The reference's share of each bin. What may lie on a value or beside it is dealt out from the lowest on; where the latest
    /// windows are the reference's own, each bin gets what it needs, since the next has its turn only after this one is full.
    fn expected(&self) -> [f64; PARTS] {
        let tenth = 1.0 / PARTS as f64;
        let bins = &self.bins[..self.bin_count];
        let share = |bin: &Bin| bin.windows as f64 / self.len as f64;
        let mut expected = self.bins.map(|bin| bin.tenths as f64 / PARTS as f64);
        for (number, bin) in bins.iter().enumerate().filter(|(_, bin)| !bin.is_point) {
            let below = number.checked_sub(1).filter(|below| bins[*below].is_point);
            let above =
                Some(number + 1).filter(|above| bins.get(*above).is_some_and(|b| b.is_point));
            let spare = (tenth - share(bin)).max(0.0);
            let to_below = match (below, above) {
                (None, None) => continue,
                (None, Some(_)) => 0.0,
                (Some(_), None) => spare,
                (Some(below), Some(_)) => (share(&bins[below]) - expected[below]).clamp(0.0, spare),
            };
            expected[number] = tenth - spare;
            if let Some(below) = below {
                expected[below] += to_below;
            }
            if let Some(above) = above {
                expected[above] += spare - to_below;
            }
        }
        expected
    }
}

/// The bins between deciles that do not fall, and how many they are: never more than deciles and one.
fn bins_between(deciles: [f64; 9]) -> ([Bin; PARTS], usize) {
    let open = Bin::new(f64::INFINITY, true, false, 1);
    let (mut bins, mut count) = ([open; PARTS], 0);
    let mut put = |bin: Bin| {
        bins[count] = bin;
        count += 1;
    };
    for equal in deciles.chunk_by(|one, other| one == other) {
        let end = equal[0];
        if equal.len() == 1 {
            put(Bin::new(end, true, false, 1));
        } else {
            put(Bin::new(end, false, false, 1));
            put(Bin::new(end, true, true, equal.len() - 1));
        }
    }
    put(open);
    (bins, count)
}
