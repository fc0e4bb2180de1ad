//! Features of one vibration window: level, shape and spectrum.
//!
//! With x the samples minus their mean, N their number:
//!
//! - `rms` = sqrt(m2), `peak` = max |x|, `crest-factor` = peak / rms, `kurtosis` = m4 / m2², where mk is the mean of
//!   x^k. Normal noise has kurtosis 3 (not 0), a sine 1.5 and crest factor sqrt(2). (ISO 13373-2:2016 names these
//!   for condition monitoring.)
//! - `band-00`, `band-01`, …: ln(E + [`BAND_ENERGY_EPSILON`]), where E is the sum of P\[k\] over the bins k whose frequency
//!   k · rate / N lies in the band (lower edge included, upper not). P\[k\] = c · |X\[k\]|² / (N · Σw²), X the discrete
//!   Fourier transform of w · x, w the periodic Hann window, c = 2 except at 0 and at half the rate, where c = 1. This is the
//!   one-sided power spectral density of Heinzel, Rüdiger, Schilling, "Spectrum and spectral density estimation by the
//!   discrete Fourier transform" (2002), equation 23, times the bin width rate / N: by Parseval the sum over all bins is
//!   Σ(w·x)² / Σw², for a stationary signal its mean square.
//!
//! - `rms-steady`: the rms of each of ten equal consecutive parts of the window (what does not divide by ten is left out; the window's
//!   mean is removed, not the parts'), and of these the seventh smallest: a burst that is shorter than three parts does not move it. A
//!   window under ten samples has its rms here.
//! - `line`: ln(max L\[k\] + [`LINE_EPSILON`]) over the bins k between two frequencies with P\[k\] not below P\[k-1\] and P\[k+1\];
//!   L\[k\] = (P\[k-1\] + P\[k\] + P\[k+1\]) · (10 Hz / f)³. The strongest line where a shaft turns, whatever its speed: the force of an imbalance
//!   grows with the square of the speed, its power with the fourth power, and the third holds one limit for 600 to 3,000 rpm best.
//!
//! Defined answers where the formulas have none: a flat window (all samples equal) has rms and peak 0, crest factor
//! and kurtosis 0, and ln(epsilon) in each band and for the line, as has a window without any local maximum there. Windows of another length and samples that are not finite are errors.
//! No answer is ever NaN or infinite.
//!
//! The Python side of the model (`edge-module/model/machine_model/features.py`) computes the same; `tests/golden/features.json` holds
//! the two together.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

/// Version of the definitions above. A model bundle names the one that it was trained with. 2 added `rms-steady` and `line` and
/// changed nothing of 1.
pub const FEATURE_DEFINITION: u32 = 2;
/// Added to a band's energy before the logarithm, in the square of the samples' unit.
pub const BAND_ENERGY_EPSILON: f64 = 1e-12;
/// Added to a line's power before the logarithm, in the square of the samples' unit.
pub const LINE_EPSILON: f64 = 1e-14;
/// Where a line's weight is 1, in Hz.
const LINE_REFERENCE_HZ: f64 = 10.0;
/// Parts of a window for `rms-steady`, and which of their levels it is, counted from 0.
const PARTS: usize = 10;
const STEADY_PART: usize = 6;
/// Most bands of one extractor.
pub const BANDS_MAX: usize = 100;
/// Longest window, in samples.
pub const WINDOW_SAMPLES_MAX: usize = 1 << 20;

/// Name of one feature, in text `rms`, `peak`, `crest-factor`, `kurtosis`, `rms-steady`, `line` or `band-07`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FeatureName {
    /// Root of the mean square without the mean, in the samples' unit.
    Rms,
    /// Largest distance from the mean, in the samples' unit.
    Peak,
    /// Peak divided by rms.
    CrestFactor,
    /// Fourth moment over the square of the second; 3 for normal noise.
    Kurtosis,
    /// Root of the mean square without what is short, in the samples' unit.
    RmsSteady,
    /// Logarithm of the strongest weighted line's power.
    Line,
    /// Logarithm of the energy of the band with this index.
    Band(u8),
}

/// A text that names no feature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a feature: use rms, peak, crest-factor, kurtosis, rms-steady, line or band-00 to band-{last:02}",
    last = BANDS_MAX - 1
)]
pub struct UnknownFeature(pub String);

impl fmt::Display for FeatureName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rms => formatter.write_str("rms"),
            Self::Peak => formatter.write_str("peak"),
            Self::CrestFactor => formatter.write_str("crest-factor"),
            Self::Kurtosis => formatter.write_str("kurtosis"),
            Self::RmsSteady => formatter.write_str("rms-steady"),
            Self::Line => formatter.write_str("line"),
            Self::Band(index) => write!(formatter, "band-{index:02}"),
        }
    }
}

impl FromStr for FeatureName {
    type Err = UnknownFeature;

    fn from_str(text: &str) -> Result<Self, UnknownFeature> {
        match text {
            "rms" => Ok(Self::Rms),
            "peak" => Ok(Self::Peak),
            "crest-factor" => Ok(Self::CrestFactor),
            "kurtosis" => Ok(Self::Kurtosis),
            "rms-steady" => Ok(Self::RmsSteady),
            "line" => Ok(Self::Line),
            other => other
                .strip_prefix("band-")
                .filter(|digits| digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .map(Self::Band)
                .ok_or_else(|| UnknownFeature(text.to_owned())),
        }
    }
}

/// The features of one window; all finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Mean that was removed, in the samples' unit: a sensor's rest level, not a sign of wear.
    pub mean: f64,
    /// Root of the mean square without the mean, in the samples' unit.
    pub rms: f64,
    /// Largest distance from the mean, in the samples' unit.
    pub peak: f64,
    /// Peak divided by rms; 0 for a flat window.
    pub crest_factor: f64,
    /// Fourth moment over the square of the second; 0 for a flat window.
    pub kurtosis: f64,
    /// Seventh smallest of the rms of ten parts, in the samples' unit: bursts are not in it.
    pub rms_steady: f64,
    /// Natural logarithm of the strongest weighted line's power, in the square of the samples' unit; `None` where none was asked for.
    pub line_ln: Option<f64>,
    /// Natural logarithm of each band's energy, in the square of the samples' unit, lowest band first.
    pub band_energies_ln: Vec<f64>,
}

impl Features {
    /// A feature by its name; `None` for a band or line that the extractor did not have.
    #[must_use]
    pub fn get(&self, name: FeatureName) -> Option<f64> {
        match name {
            FeatureName::Rms => Some(self.rms),
            FeatureName::Peak => Some(self.peak),
            FeatureName::CrestFactor => Some(self.crest_factor),
            FeatureName::Kurtosis => Some(self.kurtosis),
            FeatureName::RmsSteady => Some(self.rms_steady),
            FeatureName::Line => self.line_ln,
            FeatureName::Band(index) => self.band_energies_ln.get(usize::from(index)).copied(),
        }
    }

    /// A feature by its text, for example `crest-factor`; `None` if the text names none of these features.
    #[must_use]
    pub fn get_by_text(&self, name: &str) -> Option<f64> {
        self.get(name.parse().ok()?)
    }

    /// All features with their names: the scalars, the line if there is one, then the bands.
    pub fn iter(&self) -> impl Iterator<Item = (FeatureName, f64)> + '_ {
        let scalars = [
            (FeatureName::Rms, self.rms),
            (FeatureName::Peak, self.peak),
            (FeatureName::CrestFactor, self.crest_factor),
            (FeatureName::Kurtosis, self.kurtosis),
            (FeatureName::RmsSteady, self.rms_steady),
        ];
        let line = self.line_ln.map(|line| (FeatureName::Line, line));
        let bands = (0_u8..).map(FeatureName::Band).zip(self.band_energies_ln.iter().copied());
        scalars.into_iter().chain(line).chain(bands)
    }
}

/// Why an extractor cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FeatureSettingsError {
    /// Too short for a spectrum, or too long.
    #[error("a window of {0} samples: 4 to {WINDOW_SAMPLES_MAX} are allowed")]
    WindowSamples(usize),
    /// No rate.
    #[error("a sample rate of {0} Hz: it must be finite and above 0")]
    SampleRate(f64),
    /// Too many bands, or one edge only.
    #[error("{0} band edges: none, or 2 to {max} are allowed", max = BANDS_MAX + 1)]
    BandEdgeCount(usize),
    /// Edges out of order.
    #[error("band edges must be finite, not negative and rising; edge {index} is {edge_hz} Hz")]
    BandEdgeOrder {
        /// Which edge.
        index: usize,
        /// Its frequency.
        edge_hz: f64,
    },
    /// A band narrower than the resolution.
    #[error(
        "band {index} from {low_hz} to {high_hz} Hz holds no frequency of the window, which resolves {resolution_hz} Hz"
    )]
    BandEmpty {
        /// Which band.
        index: usize,
        /// Its lower edge.
        low_hz: f64,
        /// Its upper edge.
        high_hz: f64,
        /// Sample rate over window length.
        resolution_hz: f64,
    },
    /// No line can be there.
    #[error(
        "a line from {low_hz} to {high_hz} Hz: the edges must be finite, not negative and rising, and a frequency of the window, which \
         resolves {resolution_hz} Hz, must lie between them and below half the sample rate"
    )]
    LineEmpty {
        /// Lower edge.
        low_hz: f64,
        /// Upper edge.
        high_hz: f64,
        /// Sample rate over window length.
        resolution_hz: f64,
    },
}

/// Why a window has no features.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// Not the length that was planned for.
    #[error("a window of {found} samples, features are defined for {expected}")]
    WindowLength {
        /// Samples given.
        found: usize,
        /// Samples planned for.
        expected: usize,
    },
    /// NaN or infinite.
    #[error("sample {index} of the window is not finite")]
    NotFinite {
        /// Which sample.
        index: usize,
    },
}

/// `bands + 1` edges, each higher than the one before by the same factor.
#[must_use]
pub fn log_spaced_edges_hz(low_hz: f64, high_hz: f64, bands: usize) -> Vec<f64> {
    (0..=bands).map(|index| low_hz * (high_hz / low_hz).powf(index as f64 / bands as f64)).collect()
}

/// Turns windows of one length and rate into features. Plans once; after that no window allocates.
pub struct FeatureExtractor {
    taper: Vec<f64>,
    transform: Arc<dyn RealToComplex<f64>>,
    centred: Vec<f64>,
    tapered: Vec<f64>,
    spectrum: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
    /// First bin and end of each band.
    bands: Vec<(usize, usize)>,
    line: Option<LineBins>,
    sample_rate_hz: f64,
    /// 1 / (N · Σw²).
    power_scale: f64,
    features: Features,
}

/// Where a line may be: each of these bins has a neighbour on both sides.
#[derive(Clone, Copy, Debug)]
struct LineBins {
    first: usize,
    end: usize,
}

impl fmt::Debug for FeatureExtractor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FeatureExtractor")
            .field("window_samples", &self.window_samples())
            .field("bands", &self.bands.len())
            .finish_non_exhaustive()
    }
}

impl FeatureExtractor {
    /// Plans for windows of `window_samples` at `sample_rate_hz`; `band_edges_hz` are the edges of adjacent bands (one
    /// more than bands), empty for no bands. Frequencies above half the rate are in no band.
    ///
    /// # Errors
    /// A length, rate or edge out of its range, or a band that no bin falls into.
    pub fn new(
        window_samples: usize,
        sample_rate_hz: f64,
        band_edges_hz: &[f64],
    ) -> Result<Self, FeatureSettingsError> {
        if !(4..=WINDOW_SAMPLES_MAX).contains(&window_samples) {
            return Err(FeatureSettingsError::WindowSamples(window_samples));
        }
        if !sample_rate_hz.is_finite() || sample_rate_hz <= 0.0 {
            return Err(FeatureSettingsError::SampleRate(sample_rate_hz));
        }
        let bands = bins_of_bands(window_samples, sample_rate_hz, band_edges_hz)?;
        let transform = RealFftPlanner::<f64>::new().plan_fft_forward(window_samples);
        let taper = periodic_hann(window_samples);
        let taper_power: f64 = taper.iter().map(|weight| weight * weight).sum();
        Ok(Self {
            power_scale: 1.0 / (window_samples as f64 * taper_power),
            taper,
            centred: vec![0.0; window_samples],
            tapered: transform.make_input_vec(),
            spectrum: transform.make_output_vec(),
            scratch: transform.make_scratch_vec(),
            transform,
            features: Features {
                mean: 0.0,
                rms: 0.0,
                peak: 0.0,
                crest_factor: 0.0,
                kurtosis: 0.0,
                rms_steady: 0.0,
                line_ln: None,
                band_energies_ln: vec![0.0; bands.len()],
            },
            bands,
            line: None,
            sample_rate_hz,
        })
    }

    /// Looks for a line from `low_hz` (included) to `high_hz` (not), too.
    ///
    /// # Errors
    /// No bin of the window lies there.
    pub fn with_line(mut self, low_hz: f64, high_hz: f64) -> Result<Self, FeatureSettingsError> {
        let samples = self.window_samples();
        let frequency = |bin: usize| bin as f64 * self.sample_rate_hz / samples as f64;
        let is_inside = |bin: &usize| frequency(*bin) >= low_hz && frequency(*bin) < high_hz;
        let inner = 1..samples / 2;
        let bins = inner.clone().find(is_inside).zip(inner.rev().find(is_inside));
        let Some((first, last)) = bins.filter(|_| low_hz >= 0.0 && high_hz.is_finite()) else {
            let resolution_hz = self.sample_rate_hz / samples as f64;
            return Err(FeatureSettingsError::LineEmpty { low_hz, high_hz, resolution_hz });
        };
        self.line = Some(LineBins { first, end: last + 1 });
        self.features.line_ln = Some(LINE_EPSILON.ln());
        Ok(self)
    }

    /// Samples that a window must have.
    #[must_use]
    pub fn window_samples(&self) -> usize {
        self.taper.len()
    }

    /// The features of one window; they stay valid until the next call.
    ///
    /// # Errors
    /// Another length than planned, or a sample that is not finite.
    pub fn extract(&mut self, samples: &[f32]) -> Result<&Features, FeatureError> {
        if samples.len() != self.window_samples() {
            return Err(FeatureError::WindowLength {
                found: samples.len(),
                expected: self.window_samples(),
            });
        }
        if let Some(index) = samples.iter().position(|sample| !sample.is_finite()) {
            return Err(FeatureError::NotFinite { index });
        }
        self.moments(samples);
        self.features.rms_steady = self.rms_steady();
        if !self.bands.is_empty() || self.line.is_some() {
            self.transform();
            self.band_energies();
            self.features.line_ln = self.line.map(|bins| self.line_ln(bins));
        }
        Ok(&self.features)
    }

    /// Of the window that was extracted last.
    #[must_use]
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// P of each bin from 0 to half the rate, by the definition above, of the window that was extracted last; in the square of the
    /// samples' unit. Empty without bands and a line, where no spectrum is computed.
    pub fn power_spectrum(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        let has_spectrum = !self.bands.is_empty() || self.line.is_some();
        let bins = if has_spectrum { self.spectrum.len() } else { 0 };
        (0..bins).map(|bin| self.power(bin))
    }

    /// Fills `centred` and the scalars.
    fn moments(&mut self, samples: &[f32]) {
        let count = samples.len() as f64;
        // A flat window's mean is exact, and so is its flatness: a sum of up to 2^20 equal f32 fits an f64.
        let mean = samples.iter().map(|sample| f64::from(*sample)).sum::<f64>() / count;
        let mut peak = 0.0_f64;
        for (centred, sample) in self.centred.iter_mut().zip(samples) {
            *centred = f64::from(*sample) - mean;
            peak = peak.max(centred.abs());
        }
        self.features.mean = mean;
        self.features.peak = peak;
        if peak == 0.0 {
            self.features.rms = 0.0;
            self.features.crest_factor = 0.0;
            self.features.kurtosis = 0.0;
            return;
        }
        // Relative to the peak, so that the fourth power of a tiny sample does not vanish.
        let (mut second, mut fourth) = (0.0, 0.0);
        for centred in &self.centred {
            let square = (centred / peak) * (centred / peak);
            second += square;
            fourth += square * square;
        }
        second /= count;
        fourth /= count;
        self.features.rms = peak * second.sqrt();
        self.features.crest_factor = 1.0 / second.sqrt();
        self.features.kurtosis = fourth / (second * second);
    }

    /// From `centred` and the rms.
    fn rms_steady(&self) -> f64 {
        let length = self.centred.len() / PARTS;
        if length == 0 {
            return self.features.rms;
        }
        let mut levels = [0.0; PARTS];
        for (level, part) in levels.iter_mut().zip(self.centred.chunks_exact(length)) {
            let squares: f64 = part.iter().map(|centred| centred * centred).sum();
            *level = (squares / length as f64).sqrt();
        }
        levels.sort_unstable_by(f64::total_cmp);
        levels[STEADY_PART]
    }

    /// Fills the spectrum from `centred`.
    fn transform(&mut self) {
        for ((tapered, centred), weight) in
            self.tapered.iter_mut().zip(&self.centred).zip(&self.taper)
        {
            *tapered = centred * weight;
        }
        self.transform
            .process_with_scratch(&mut self.tapered, &mut self.spectrum, &mut self.scratch)
            .expect("the buffers were made by the transform");
    }

    /// P of one bin, from the spectrum.
    fn power(&self, bin: usize) -> f64 {
        let samples = self.taper.len();
        let is_half = samples.is_multiple_of(2) && bin == samples / 2;
        let sides = if bin == 0 || is_half { 1.0 } else { 2.0 };
        sides * self.spectrum[bin].norm_sqr() * self.power_scale
    }

    /// Fills the bands from the spectrum.
    fn band_energies(&mut self) {
        for band in 0..self.bands.len() {
            let (first, end) = self.bands[band];
            let energy: f64 = (first..end).map(|bin| self.power(bin)).sum();
            self.features.band_energies_ln[band] = (energy + BAND_ENERGY_EPSILON).ln();
        }
    }

    /// From the spectrum.
    fn line_ln(&self, bins: LineBins) -> f64 {
        let mut strongest = 0.0_f64;
        let (mut below, mut here) = (self.power(bins.first - 1), self.power(bins.first));
        for bin in bins.first..bins.end {
            let above = self.power(bin + 1);
            if here >= below && here >= above {
                let frequency = bin as f64 * self.sample_rate_hz / self.taper.len() as f64;
                let weight = (LINE_REFERENCE_HZ / frequency).powi(3);
                strongest = strongest.max((below + here + above) * weight);
            }
            (below, here) = (here, above);
        }
        (strongest + LINE_EPSILON).ln()
    }
}

fn periodic_hann(samples: usize) -> Vec<f64> {
    let step = std::f64::consts::TAU / samples as f64;
    (0..samples).map(|index| 0.5 - 0.5 * (step * index as f64).cos()).collect()
}

/// First bin and end of each band.
fn bins_of_bands(
    window_samples: usize,
    sample_rate_hz: f64,
    edges_hz: &[f64],
) -> Result<Vec<(usize, usize)>, FeatureSettingsError> {
    if edges_hz.is_empty() {
        return Ok(Vec::new());
    }
    if !(2..=BANDS_MAX + 1).contains(&edges_hz.len()) {
        return Err(FeatureSettingsError::BandEdgeCount(edges_hz.len()));
    }
    let mut lowest = 0.0;
    for (index, &edge_hz) in edges_hz.iter().enumerate() {
        let rises = if index == 0 { edge_hz >= lowest } else { edge_hz > lowest };
        if !edge_hz.is_finite() || !rises {
            return Err(FeatureSettingsError::BandEdgeOrder { index, edge_hz });
        }
        lowest = edge_hz;
    }
    let resolution_hz = sample_rate_hz / window_samples as f64;
    let bin_count = window_samples / 2 + 1;
    let first_bin_from = |edge_hz: f64| {
        (0..bin_count)
            .find(|bin| *bin as f64 * sample_rate_hz / window_samples as f64 >= edge_hz)
            .unwrap_or(bin_count)
    };
    let mut bands = Vec::with_capacity(edges_hz.len() - 1);
    for (index, pair) in edges_hz.windows(2).enumerate() {
        let (low_hz, high_hz) = (pair[0], pair[1]);
        let (first, end) = (first_bin_from(low_hz), first_bin_from(high_hz));
        if first == end {
            return Err(FeatureSettingsError::BandEmpty { index, low_hz, high_hz, resolution_hz });
        }
        bands.push((first, end));
    }
    Ok(bands)
}

#[cfg(test)]
mod tests;
