//! What is collected of one sensor in one condition, in memory that does not grow with time.

use std::time::Duration;

use super::settings::is_number;
use super::{SensorBaseline, Spread};
use crate::features::{FeatureName, Features};

/// Most logits kept for the deciles. Beyond it every second one is dropped, and from then on only every second (fourth, eighth, …)
/// window's is kept: evenly over the run and the same in every run. At least half as many are kept, of which a decile errs by 0.5 % of the
/// windows; their minimum, maximum and mean are of all windows.
pub(super) const LOGITS_KEPT_MAX: usize = 8192;
/// Most pieces that a run is cut into to compare its halves; a piece has as many windows as any other but the last.
const PIECES_MAX: usize = 16;
/// A difference of halves below this many spreads (pooled standard deviations of single windows) is none. The means of but ten
/// independent windows differ by 0.45 spreads by chance, so this is more than three times that. A level that rises steadily
/// passes it when the whole rise is 3.3 times the spread around it.
pub(super) const STEADY_SPREADS: f64 = 1.5;
/// A difference of levels below 3 dB, in the logarithm of power, is none: it is half of the 6 dB by which a doubled amplitude shows.
pub(super) const STEADY_POWER_LN: f64 = std::f64::consts::LN_2;
/// A difference of logits below half the margin is none, nor one below this: the odds change by less than the factor 1.65.
pub(super) const STEADY_LOGIT: f64 = 0.5;
/// Levels below this count as this, in the samples' unit: a dead sensor has no logarithm.
const RMS_MIN: f64 = 1e-9;
/// A logit beyond this, either way, is no answer of a model that works.
pub(super) const LOGIT_MAX: f64 = 1e6;
/// Decibels in one unit of the logarithm of power.
const DECIBELS_PER_POWER_LN: f64 = 10.0 * std::f64::consts::LOG10_E;

/// Count, mean and sum of squared deviations, streamed (Welford, "Note on a method for calculating corrected sums of squares and
/// products", 1962; two together by Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm", 1979).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Moments {
    pub(super) count: u64,
    pub(super) mean: f64,
    squares: f64,
}

impl Moments {
    pub(super) fn add(&mut self, value: f64) {
        self.count += 1;
        let delta = value - self.mean;
        self.mean += delta / self.count as f64;
        self.squares += delta * (value - self.mean);
    }

    pub(super) fn merge(self, other: Self) -> Self {
        if self.count == 0 || other.count == 0 {
            return if self.count == 0 { other } else { self };
        }
        let count = self.count + other.count;
        let (own, share) = (self.count as f64, other.count as f64 / count as f64);
        let delta = other.mean - self.mean;
        let squares = self.squares + other.squares + delta * delta * own * share;
        Self { count, mean: self.mean + delta * share, squares }
    }

    pub(super) fn deviation(&self) -> f64 {
        if self.count < 2 { 0.0 } else { (self.squares.max(0.0) / (self.count - 1) as f64).sqrt() }
    }
}

/// Moments and extremes of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    moments: Moments,
    min: f64,
    max: f64,
}

impl Stream {
    const fn new() -> Self {
        let moments = Moments { count: 0, mean: 0.0, squares: 0.0 };
        Self { moments, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }

    fn add(&mut self, value: f64) {
        self.moments.add(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Of at least one value. Rounding must not put the mean beside the extremes.
    fn spread(&self) -> Spread {
        let Self { moments, min, max } = *self;
        let mean = moments.mean.max(min).min(max);
        Spread { mean, deviation: moments.deviation(), min, max }
    }
}

/// Logits for the deciles.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    logits: Vec<f64>,
    seen: u64,
    /// Every how many windows one is kept.
    stride: u64,
}

impl Kept {
    pub(super) const fn new() -> Self {
        Self { logits: Vec::new(), seen: 0, stride: 1 }
    }

    pub(super) fn add(&mut self, logit: f64) {
        if self.seen.is_multiple_of(self.stride) {
            if self.logits.len() == LOGITS_KEPT_MAX {
                let mut keeps = false;
                self.logits.retain(|_| {
                    keeps = !keeps;
                    keeps
                });
                self.stride *= 2;
            }
            // The number of kept ones is even here, so this window is one that the wider stride keeps, too.
            self.logits.push(logit);
        }
        self.seen += 1;
    }

    /// Nearest rank: the lowest kept logit that at least so many tenths do not exceed. Of at least one.
    pub(super) fn deciles(&self) -> [f64; 9] {
        let mut sorted = self.logits.clone();
        sorted.sort_by(f64::total_cmp);
        std::array::from_fn(|index| sorted[((index + 1) * sorted.len()).div_ceil(10) - 1])
    }
}

/// Levels over the run, in pieces of equally many windows: enough to compare its halves whenever it ends.
#[derive(Clone, Debug)]
pub(super) struct Course {
    pieces: Vec<Vec<Moments>>,
    piece_windows: u64,
}

/// The two halves of a run, as to one level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Halves {
    pub(super) first: f64,
    pub(super) second: f64,
    /// Pooled standard deviation of single windows around their half's mean.
    pub(super) spread: f64,
}

impl Course {
    pub(super) const fn new() -> Self {
        Self { pieces: Vec::new(), piece_windows: 1 }
    }

    /// Takes the levels of a window, always the same ones in the same order.
    pub(super) fn add(&mut self, levels: impl Iterator<Item = f64>) {
        let is_full =
            |piece: &Vec<Moments>| piece.first().is_none_or(|one| one.count >= self.piece_windows);
        if self.pieces.last().is_none_or(is_full) {
            if self.pieces.len() == PIECES_MAX {
                self.join_pairs();
            }
            self.pieces.push(Vec::new());
        }
        let Some(piece) = self.pieces.last_mut() else { return };
        let is_first = piece.is_empty();
        for (index, level) in levels.enumerate() {
            if is_first {
                piece.push(Moments::default());
            }
            if let Some(moments) = piece.get_mut(index) {
                moments.add(level);
            }
        }
    }

    /// The halves as to the level with this number; `None` of a single piece.
    pub(super) fn halves(&self, level: usize) -> Option<Halves> {
        let middle = self.pieces.len() / 2;
        let joined = |pieces: &[Vec<Moments>]| {
            let of_level = pieces.iter().filter_map(|piece| piece.get(level).copied());
            of_level.reduce(Moments::merge)
        };
        let first = joined(&self.pieces[..middle])?;
        let second = joined(&self.pieces[middle..])?;
        let freedom = (first.count + second.count).saturating_sub(2).max(1) as f64;
        let spread = ((first.squares + second.squares).max(0.0) / freedom).sqrt();
        Some(Halves { first: first.mean, second: second.mean, spread })
    }

    fn join_pairs(&mut self) {
        let join = |pair: &[Vec<Moments>]| {
            let [one, other] = pair else { return pair.concat() };
            one.iter().zip(other).map(|(one, other)| one.merge(*other)).collect()
        };
        self.pieces = self.pieces.chunks(2).map(join).collect();
        self.piece_windows *= 2;
    }
}

/// A level that is not the same in both halves of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    /// `logit`, or the feature's name.
    pub(super) what: String,
    /// `logits`, or `dB`.
    pub(super) unit: &'static str,
    /// From the first half's mean to the second's, in that unit.
    pub(super) change: f64,
    /// What is allowed, in that unit.
    pub(super) limit: f64,
}

/// One sensor in one condition.
#[derive(Clone, Debug)]
pub(super) struct Track {
    /// Running time of the windows learnt.
    pub(super) running: Duration,
    /// Windows at or above the model's own threshold, not learnt.
    pub(super) above_model: u64,
    /// Windows at or above the previous baseline's threshold, not learnt.
    pub(super) above_previous: u64,
    /// Windows that were above one of the thresholds or both.
    pub(super) set_aside: u64,
    logit: Stream,
    features: Vec<(FeatureName, Stream)>,
    kept: Kept,
    course: Course,
}

impl Track {
    pub(super) const fn new() -> Self {
        Self {
            running: Duration::ZERO,
            above_model: 0,
            above_previous: 0,
            set_aside: 0,
            logit: Stream::new(),
            features: Vec::new(),
            kept: Kept::new(),
            course: Course::new(),
        }
    }

    /// Windows learnt.
    pub(super) const fn windows(&self) -> u64 {
        self.logit.moments.count
    }

    /// Windows judged, learnt or not.
    pub(super) const fn judged(&self) -> u64 {
        self.windows() + self.set_aside
    }

    /// Mean and highest of the logits learnt; `None` before the first.
    pub(super) fn logit(&self) -> Option<Spread> {
        (self.windows() > 0).then(|| self.logit.spread())
    }

    /// Whether a window can be learnt: finite, with the features that the first one had.
    pub(super) fn accepts(&self, features: &Features, logit: f64) -> bool {
        logit.abs() <= LOGIT_MAX
            && features.iter().all(|(_, value)| is_number(value))
            && (self.windows() == 0
                || features
                    .iter()
                    .map(|(name, _)| name)
                    .eq(self.features.iter().map(|(name, _)| *name)))
    }

    /// Learns a window that it accepts.
    pub(super) fn learn(&mut self, features: &Features, logit: f64, running: Duration) {
        if self.windows() == 0 {
            self.features = features.iter().map(|(name, _)| (name, Stream::new())).collect();
        }
        self.running += running;
        self.logit.add(logit);
        self.kept.add(logit);
        for ((_, stream), (_, value)) in self.features.iter_mut().zip(features.iter()) {
            stream.add(value);
        }
        let levels = features.iter().filter_map(|(name, value)| power_ln(name, value));
        self.course.add(std::iter::once(logit).chain(levels));
    }

    /// The level that differs most, for what is allowed, between the halves of the run; `None` of a steady one.
    pub(super) fn unsteady(&self, margin_logit: f64) -> Option<Change> {
        let levels = self.features.iter().map(|(name, _)| *name);
        let levels = levels.filter(|name| power_ln(*name, 1.0).is_some()).map(Some);
        let changes = std::iter::once(None).chain(levels).enumerate();
        let change_of = |(number, name): (usize, Option<FeatureName>)| {
            let halves = self.course.halves(number)?;
            let (what, unit, floor, scale) = match name {
                None => {
                    let floor = STEADY_LOGIT.max(margin_logit / 2.0);
                    ("logit".to_owned(), "logits", floor, 1.0)
                }
                Some(name) => (name.to_string(), "dB", STEADY_POWER_LN, DECIBELS_PER_POWER_LN),
            };
            let limit = scale * floor.max(STEADY_SPREADS * halves.spread);
            Some(Change { what, unit, change: scale * (halves.second - halves.first), limit })
        };
        let excess = |change: &Change| change.change.abs() / change.limit;
        changes
            .filter_map(change_of)
            .filter(|change| excess(change) > 1.0)
            .max_by(|one, other| excess(one).total_cmp(&excess(other)))
    }

    /// Of a track that has learnt windows.
    pub(super) fn baseline(&self, model: &str, sha256: &str, margin_logit: f64) -> SensorBaseline {
        let spread_of =
            |(name, stream): &(FeatureName, Stream)| (name.to_string(), stream.spread());
        SensorBaseline {
            model: model.to_owned(),
            model_sha256: sha256.to_ascii_lowercase(),
            windows: self.windows(),
            running_seconds: self.running.as_secs_f64(),
            features: self.features.iter().map(spread_of).collect(),
            logit: self.logit.spread(),
            logit_deciles: self.kept.deciles(),
            threshold_logit: self.logit.max + margin_logit,
        }
    }
}

/// A level as the logarithm of power; `None` of a feature that is none, or one that single bursts move.
fn power_ln(name: FeatureName, value: f64) -> Option<f64> {
    match name {
        FeatureName::Rms | FeatureName::RmsSteady => Some(2.0 * value.max(RMS_MIN).ln()),
        FeatureName::Line | FeatureName::Band(_) => Some(value),
        FeatureName::Peak | FeatureName::CrestFactor | FeatureName::Kurtosis => None,
    }
}
