//! Why a window had its score: which features drove it, and which lines of the spectrum grew.
//!
//! [`contributions`] asks the model itself, by occlusion: one feature at a time is put back to what is usual, and what the logit
//! falls by is that feature's contribution. What this can say: without this feature's departure, all else as it is, the score would
//! have been so much lower. What it cannot: the contributions of features that act together do not add up to the logit (two that say
//! the same each look small, two that need each other both look large); a crest factor put back keeps its peak; and a model
//! that takes the mean of the bands off each of them sees all bands move a little when one is put back. Usual values of another
//! speed or load blame that speed or load.
//!
//! [`ReducedSpectrum`] is P\[k\] of [`crate::features`] in at most [`POINTS_MAX`] points, [`SpectrumAverage`] the usual one of a sensor,
//! [`peaks`] what differs between the two.

use serde::{Deserialize, Serialize};

use crate::features::{FeatureName, Features};

/// Most points of a reduced spectrum.
pub const POINTS_MAX: usize = 1_024;
/// Least growth of a peak, as a ratio of powers: of a thousand points of noise the largest is about seven times its mean.
pub const GROWTH_MIN: f64 = 10.0;
/// Powers below this share of the strongest point are as good as nothing: 60 dB below.
const FLOOR_SHARE: f64 = 1e-6;

/// How a feature is distributed as long as nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// In the feature's unit.
    pub mean: f64,
    /// Standard deviation, in the same unit.
    pub deviation: f64,
}

/// What one feature had to do with a score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Contribution {
    /// Which; `band-06` and the like in JSON.
    #[serde(with = "feature_text")]
    pub feature: FeatureName,
    /// What it was, in its unit.
    pub value: f64,
    /// What it usually is.
    pub usual: f64,
    /// Its usual standard deviation.
    pub deviation: f64,
    /// What the model's logit falls by when the feature is as usual; below 0 if the feature spoke for health.
    pub logit: f64,
}

mod feature_text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::FeatureName;

    pub(super) fn serialize<S: Serializer>(
        feature: &FeatureName,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(feature)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<FeatureName, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// What each feature of the model's input had to do with its answer, largest contribution first, equal ones by name. A feature
/// without a usual value, or one that the window or the model has no answer for, is left out. Calls `logit` once, and once for
/// each feature of `order`.
#[must_use]
pub fn contributions(
    features: &Features,
    order: &[FeatureName],
    usual: &dyn Fn(FeatureName) -> Option<Spread>,
    logit: &mut dyn FnMut(&Features) -> Option<f64>,
) -> Vec<Contribution> {
    let mut occluded = features.clone();
    let Some(whole) = logit(features).filter(|logit| logit.is_finite()) else {
        return Vec::new();
    };
    let mut contributions = Vec::with_capacity(order.len());
    for feature in order.iter().copied() {
        let Some(value) = features.get(feature) else { continue };
        let Some(Spread { mean, deviation }) = usual(feature) else { continue };
        set(&mut occluded, feature, mean);
        let without = logit(&occluded);
        set(&mut occluded, feature, value);
        let Some(without) = without else { continue };
        let logit = whole - without;
        if [value, mean, deviation, logit].iter().all(|number| number.is_finite()) {
            contributions.push(Contribution { feature, value, usual: mean, deviation, logit });
        }
    }
    contributions.sort_by(|left, right| {
        right.logit.total_cmp(&left.logit).then_with(|| left.feature.cmp(&right.feature))
    });
    contributions
}

/// A band that is not there stays away.
fn set(features: &mut Features, name: FeatureName, value: f64) {
    match name {
        FeatureName::Rms => features.rms = value,
        FeatureName::Peak => features.peak = value,
        FeatureName::CrestFactor => features.crest_factor = value,
        FeatureName::Kurtosis => features.kurtosis = value,
        FeatureName::RmsSteady => features.rms_steady = value,
        FeatureName::Line => features.line_ln = Some(value),
        FeatureName::Band(index) => {
            if let Some(energy) = features.band_energies_ln.get_mut(usize::from(index)) {
                *energy = value;
            }
        }
    }
}

/// A spectrum in at most [`POINTS_MAX`] points: each is the largest P of neighbouring bins, so that a line stays as high as it is.
/// Points are single bins at first and become wider with the frequency, at most 1 % of it; bin 0 is left out.
///
/// A spectrum that is read is checked: one bin more than points, rising, powers finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", try_from = "RawSpectrum")]
pub struct ReducedSpectrum {
    resolution_hz: f64,
    /// First bin of each point, and the end of the last.
    first_bins: Vec<u32>,
    power: Vec<f32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawSpectrum {
    resolution_hz: f64,
    first_bins: Vec<u32>,
    power: Vec<f32>,
}

/// A spectrum that cannot be one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpectrumFault {
    /// No frequency.
    #[error("resolution-hz is {0}: it must be finite and above 0")]
    Resolution(f64),
    /// Points without bins.
    #[error(
        "{bins} first-bins for {points} points: one more is needed, and {POINTS_MAX} points \
         are allowed"
    )]
    Points {
        /// Entries of `first-bins`.
        bins: usize,
        /// Entries of `power`.
        points: usize,
    },
    /// Bins out of order.
    #[error("first-bins must begin at 1 or above and rise")]
    BinOrder,
    /// A power that is none.
    #[error("power of point {0} must be finite and not negative")]
    Power(usize),
}

impl TryFrom<RawSpectrum> for ReducedSpectrum {
    type Error = SpectrumFault;

    fn try_from(raw: RawSpectrum) -> Result<Self, SpectrumFault> {
        let RawSpectrum { resolution_hz, first_bins, power } = raw;
        if !resolution_hz.is_finite() || resolution_hz <= 0.0 {
            return Err(SpectrumFault::Resolution(resolution_hz));
        }
        let (bins, points) = (first_bins.len(), power.len());
        if bins != points + 1 || points > POINTS_MAX {
            return Err(SpectrumFault::Points { bins, points });
        }
        if first_bins.first() == Some(&0) || first_bins.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(SpectrumFault::BinOrder);
        }
        if let Some(point) = power.iter().position(|power| !power.is_finite() || *power < 0.0) {
            return Err(SpectrumFault::Power(point));
        }
        Ok(Self { resolution_hz, first_bins, power })
    }
}

/// One point of a reduced spectrum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The middle of its bins.
    pub frequency_hz: f64,
    /// Of all its bins together.
    pub width_hz: f64,
    /// The largest P of its bins, in the square of the samples' unit.
    pub power: f64,
}

impl ReducedSpectrum {
    /// Reduces a spectrum: `power` is P of all bins from 0 on, `resolution_hz` the distance of two.
    pub fn of(resolution_hz: f64, power: impl ExactSizeIterator<Item = f64>) -> Self {
        let mut reduced = Self::empty(resolution_hz, power.len());
        let values = &mut reduced.power;
        largest_of_groups(&reduced.first_bins, power, |point, power| values[point] = power);
        reduced
    }

    fn empty(resolution_hz: f64, bins: usize) -> Self {
        let first_bins = first_bins(bins);
        let power = vec![0.0; first_bins.len() - 1];
        Self { resolution_hz, first_bins, power }
    }

    /// Distance of two bins.
    #[must_use]
    pub const fn resolution_hz(&self) -> f64 {
        self.resolution_hz
    }

    /// All points, lowest frequency first.
    pub fn points(&self) -> impl ExactSizeIterator<Item = Point> + '_ {
        (0..self.power.len()).map(|point| {
            let first = f64::from(self.first_bins[point]);
            let end = f64::from(self.first_bins[point + 1]);
            Point {
                frequency_hz: (first + end - 1.0) / 2.0 * self.resolution_hz,
                width_hz: (end - first) * self.resolution_hz,
                power: f64::from(self.power[point]),
            }
        })
    }

    /// Whether the points of both are at the same frequencies.
    #[must_use]
    pub fn has_points_of(&self, other: &Self) -> bool {
        self.resolution_hz == other.resolution_hz && self.first_bins == other.first_bins
    }

    fn strongest(&self) -> f64 {
        self.power.iter().copied().fold(0.0, f32::max).into()
    }

    fn is_of(&self, resolution_hz: f64, bins: usize) -> bool {
        let end = self.first_bins.last().copied().unwrap_or_default();
        self.resolution_hz == resolution_hz && end as usize == bins
    }
}

/// First bin of each point and the end of the last: as fine as [`POINTS_MAX`] points allow.
fn first_bins(bins: usize) -> Vec<u32> {
    let count = |divisor: usize| {
        let mut next = 1;
        std::iter::from_fn(move || {
            let first = next;
            next += (first / divisor).max(1);
            (first < bins).then_some(first)
        })
    };
    // The largest divisor that needs no more points than allowed; 1 takes one for each doubling.
    let (mut good, mut bad) = (1, bins.max(2));
    while bad - good > 1 {
        let middle = good.midpoint(bad);
        if count(middle).take(POINTS_MAX + 1).count() <= POINTS_MAX {
            good = middle;
        } else {
            bad = middle;
        }
    }
    count(good).chain([bins.max(1)]).map(|bin| u32::try_from(bin).unwrap_or(u32::MAX)).collect()
}

fn largest_of_groups(
    first_bins: &[u32],
    power: impl Iterator<Item = f64>,
    mut put: impl FnMut(usize, f32),
) {
    let mut power = power.skip(1);
    for (point, pair) in first_bins.windows(2).enumerate() {
        let bins = (pair[1] - pair[0]) as usize;
        let largest = power.by_ref().take(bins).fold(0.0, f64::max);
        put(point, largest.min(f64::from(f32::MAX)) as f32);
    }
}

/// The usual spectrum of a sensor: the mean of the first windows, then one that forgets slowly. At most 9 kB; no window but the first
/// of a shape allocates.
#[derive(Clone, Debug)]
pub struct SpectrumAverage {
    constant_windows: u32,
    windows: u64,
    average: Option<ReducedSpectrum>,
}

impl SpectrumAverage {
    /// Nothing is usual yet. A window counts for 1/e of itself after `constant_windows` more; 0 is taken as 1.
    #[must_use]
    pub const fn new(constant_windows: u32) -> Self {
        Self { constant_windows, windows: 0, average: None }
    }

    /// Takes a window that was not abnormal: `power` is P of all its bins from 0 on, `resolution_hz` the distance of two. A window of
    /// another length or rate begins anew; one without a spectrum changes nothing.
    pub fn handle_window(&mut self, resolution_hz: f64, power: impl ExactSizeIterator<Item = f64>) {
        let bins = power.len();
        if bins < 2 {
            return;
        }
        if self.average.as_ref().is_some_and(|average| !average.is_of(resolution_hz, bins)) {
            self.restart();
        }
        let average =
            self.average.get_or_insert_with(|| ReducedSpectrum::empty(resolution_hz, bins));
        self.windows = self.windows.saturating_add(1);
        let counted = self.windows.min(u64::from(self.constant_windows.max(1)));
        let weight = 1.0 / counted as f32;
        let values = &mut average.power;
        largest_of_groups(&average.first_bins, power, |point, power| {
            values[point] += (power - values[point]) * weight;
        });
    }

    /// Forgets everything.
    pub fn restart(&mut self) {
        self.average = None;
        self.windows = 0;
    }

    /// Windows taken since the last restart.
    #[must_use]
    pub const fn windows(&self) -> u64 {
        self.windows
    }

    /// The usual spectrum; `None` before the first window.
    #[must_use]
    pub const fn spectrum(&self) -> Option<&ReducedSpectrum> {
        self.average.as_ref()
    }
}

/// A line that grew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Where, and how exactly that is known: half of the point's width to both sides.
    pub frequency_hz: f64,
    /// Width of its point.
    pub width_hz: f64,
    /// P now, in the square of the samples' unit.
    pub power: f64,
    /// P as usual.
    pub usual: f64,
}

/// At most `count` local maxima that grew most, [`GROWTH_MIN`] at least, largest growth first. Powers that are nothing beside the
/// strongest count as that nothing. Empty if the two spectra have not the same points.
#[must_use]
pub fn peaks(now: &ReducedSpectrum, usual: &ReducedSpectrum, count: usize) -> Vec<Peak> {
    if !now.has_points_of(usual) {
        return Vec::new();
    }
    let floor_now = now.strongest() * FLOOR_SHARE;
    let floor_usual = (usual.strongest() * FLOOR_SHARE).max(f64::MIN_POSITIVE);
    let growth = |peak: &Peak| peak.power / peak.usual.max(floor_usual);
    let power = |point: usize| now.power.get(point).copied().unwrap_or_default();
    let is_maximum = |point: usize| {
        // Of equal neighbours the lower one.
        let below = point.checked_sub(1).map(power).unwrap_or_default();
        power(point) > below && power(point) >= power(point + 1)
    };
    let pairs = now.points().zip(usual.points()).enumerate();
    let mut peaks: Vec<Peak> = pairs
        .filter(|(point, _)| is_maximum(*point))
        .map(|(_, (now, usual))| Peak {
            frequency_hz: now.frequency_hz,
            width_hz: now.width_hz,
            power: now.power,
            usual: usual.power,
        })
        .filter(|peak| peak.power > floor_now && growth(peak) >= GROWTH_MIN)
        .collect();
    // The sort is stable: equal ones stay in the order of their frequencies.
    peaks.sort_by(|left, right| growth(right).total_cmp(&growth(left)));
    peaks.truncate(count);
    peaks
}

#[cfg(test)]
mod tests;
