//! `bundle.json`: what a bundle says of itself. Kebab-case keys; an unknown key is an error, so that nothing that a
//! later version means is silently left out.

use std::collections::BTreeMap;

use edge_core::baseline::MARGIN_LOGIT_MIN;
use edge_core::features::{
    FEATURE_DEFINITION, FeatureExtractor, FeatureName, FeatureSettingsError, Features,
    UnknownFeature,
};
use serde::{Deserialize, Serialize};

/// Version of the metadata's form.
pub const FORMAT: u32 = 1;
/// Fewest feature vectors of a self-test.
pub const SELF_TEST_SCORES_MIN: usize = 6;
/// Fewest raw windows of a self-test.
pub const SELF_TEST_WINDOWS_MIN: usize = 2;
/// Widest tolerance of a self-test's score.
pub const SCORE_TOLERANCE_MAX: f64 = 0.01;
/// Widest tolerance of a self-test's feature, relative to it or, below 1, absolute.
pub const FEATURE_TOLERANCE_MAX: f64 = 1e-3;
/// Widest margin of commissioning: odds of 1 to 10^21, which no window of any machine reaches.
pub use edge_core::baseline::MARGIN_LOGIT_MAX;

/// What is wrong with a bundle's metadata.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// No JSON, a key missing, a key unknown, a wrong type.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A later or earlier form.
    #[error("format is {0}, this program reads {FORMAT}")]
    Format(u32),
    /// Trained with other features.
    #[error(
        "features.definition is {0}, this program computes definitions 1 to {FEATURE_DEFINITION}: train again"
    )]
    Definition(u32),
    /// A feature that does not exist.
    #[error("features.order: {0}")]
    UnknownFeature(#[from] UnknownFeature),
    /// A band that does not exist.
    #[error("features.order names {0}, features.band-edges-hz has no such band")]
    NoSuchBand(FeatureName),
    /// A line that is not looked for.
    #[error("features.order names line, features.line-hz does not say where it is looked for")]
    NoLine,
    /// A value out of its range.
    #[error("{key} is {found}, it must be {range}")]
    Range {
        /// Which key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        range: String,
    },
    /// Too few self-test vectors.
    #[error("{key} has {found} entries, at least {min} are needed")]
    TooFew {
        /// Which key.
        key: &'static str,
        /// Entries found.
        found: usize,
        /// Entries needed.
        min: usize,
    },
    /// A self-test vector of another length.
    #[error("self-test.scores {label:?} has {found} features, features.order has {expected}")]
    VectorLength {
        /// Which vector.
        label: String,
        /// Values found.
        found: usize,
        /// Values needed.
        expected: usize,
    },
    /// A self-test that asks for one answer only.
    #[error(
        "self-test.scores are all {side} the threshold: healthy and abnormal vectors are needed"
    )]
    OneSided {
        /// `below`, or `at or above`.
        side: &'static str,
    },
}

/// What a window must be.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Input {
    /// Samples per second.
    pub sample_rate_hz: f64,
    /// Samples in a window.
    pub window_samples: usize,
    /// Samples from the start of a window to the start of the next.
    pub hop_samples: usize,
    /// Unit of the samples, for example `V`.
    pub unit: String,
    /// Largest distance of the means of a window's two halves, in the samples' unit. A window that is beyond it holds a step of the
    /// sensor's rest level, which a low line is made of as well, and is not scored. Absent: none is beyond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_max: Option<f64>,
}

impl Input {
    /// Whether a window holds a step of the sensor's rest level.
    #[must_use]
    pub fn is_step(&self, samples: &[f32]) -> bool {
        let Some(step_max) = self.step_max else { return false };
        let mean = |half: &[f32]| {
            half.iter().map(|sample| f64::from(*sample)).sum::<f64>() / half.len().max(1) as f64
        };
        let (first, second) = samples.split_at(samples.len() / 2);
        (mean(second) - mean(first)).abs() > step_max
    }
}

/// What the model takes.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureMetadata {
    /// Edges of the bands, one more than bands.
    pub band_edges_hz: Vec<f64>,
    /// Between which frequencies the feature `line` is looked for, in Hz.
    pub line_hz: Option<(f64, f64)>,
    /// Features in the order of the model's input.
    pub order: Vec<FeatureName>,
}

impl FeatureMetadata {
    /// An extractor of these features for windows of another length and rate than the model's, too.
    ///
    /// # Errors
    /// The window or the rate does not go with the bands or the line.
    pub fn extractor(
        &self,
        window_samples: usize,
        sample_rate_hz: f64,
    ) -> Result<FeatureExtractor, FeatureSettingsError> {
        extractor(window_samples, sample_rate_hz, &self.band_edges_hz, self.line_hz)
    }
}

pub(super) fn extractor(
    window_samples: usize,
    sample_rate_hz: f64,
    band_edges_hz: &[f64],
    line_hz: Option<(f64, f64)>,
) -> Result<FeatureExtractor, FeatureSettingsError> {
    let extractor = FeatureExtractor::new(window_samples, sample_rate_hz, band_edges_hz)?;
    match line_hz {
        Some((low_hz, high_hz)) => extractor.with_line(low_hz, high_hz),
        None => Ok(extractor),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawFeatures {
    definition: u32,
    band_edges_hz: Vec<f64>,
    line_hz: Option<(f64, f64)>,
    order: Vec<String>,
    #[expect(dead_code, reason = "only its being one of the known words counts")]
    normalisation: Normalisation,
}

/// Where features are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Normalisation {
    /// By the model's first layers.
    InGraph,
}

/// What the model's output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Output {
    /// The logistic function makes it a score.
    Logit,
}

/// Where the training data came from.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TrainingData {
    /// Maker, name, version.
    pub origin: String,
    /// Licence, or what is known of it.
    pub licence: String,
}

/// A feature vector with the score it had at the export.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SelfTestScore {
    /// What it is, for people.
    pub label: String,
    /// Values in the order of the model's input.
    pub features: Vec<f64>,
    /// 0 to 1.
    pub score: f64,
}

impl SelfTestScore {
    /// The vector as features; those that are not in `order` are 0.
    #[must_use]
    pub fn as_features(&self, order: &[FeatureName]) -> Features {
        let mut features = Features {
            mean: 0.0,
            rms: 0.0,
            peak: 0.0,
            crest_factor: 0.0,
            kurtosis: 0.0,
            rms_steady: 0.0,
            line_ln: None,
            band_energies_ln: Vec::new(),
        };
        for (name, value) in order.iter().zip(&self.features) {
            match name {
                FeatureName::Rms => features.rms = *value,
                FeatureName::Peak => features.peak = *value,
                FeatureName::CrestFactor => features.crest_factor = *value,
                FeatureName::Kurtosis => features.kurtosis = *value,
                FeatureName::RmsSteady => features.rms_steady = *value,
                FeatureName::Line => features.line_ln = Some(*value),
                FeatureName::Band(index) => {
                    let index = usize::from(*index);
                    let bands = features.band_energies_ln.len().max(index + 1);
                    features.band_energies_ln.resize(bands, 0.0);
                    features.band_energies_ln[index] = *value;
                }
            }
        }
        features
    }
}

/// Raw samples with the features they had at the export.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SelfTestWindow {
    /// What it is, for people.
    pub label: String,
    /// Samples at the input's rate.
    pub samples: Vec<f32>,
    /// Edges of the bands of this test.
    pub band_edges_hz: Vec<f64>,
    /// Where this test looks for a line, in Hz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_hz: Option<(f64, f64)>,
    /// Expected values by feature name.
    pub features: BTreeMap<String, f64>,
}

/// What the bundle must reproduce before it is used.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SelfTest {
    /// Largest difference of a score.
    pub score_tolerance: f64,
    /// Largest difference of a feature, relative to it or, below 1, absolute.
    pub feature_tolerance: f64,
    /// Feature vectors, healthy and abnormal.
    pub scores: Vec<SelfTestScore>,
    /// Raw windows.
    pub windows: Vec<SelfTestWindow>,
}

/// Healthy windows of one operating condition, for whoever simulates them.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HealthyReference {
    /// Mean by feature name.
    pub mean: BTreeMap<String, f64>,
    /// Standard deviation by feature name.
    pub deviation: BTreeMap<String, f64>,
    /// Middle score of these windows, which the model was trained on.
    pub score_median: f64,
    /// Highest score of these windows.
    pub score_max: f64,
}

/// The healthy windows that the threshold was held against.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Calibration {
    /// Recordings that they are from.
    pub recordings: u64,
    /// How many windows.
    pub windows: u64,
    /// Mean by feature name.
    pub mean: BTreeMap<String, f64>,
    /// Standard deviation by feature name.
    pub deviation: BTreeMap<String, f64>,
}

/// How the threshold of a machine follows from what was learnt on it.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Commissioning {
    /// How far above the highest logit learnt (natural-log odds) the threshold is set, [`MARGIN_LOGIT_MIN`] to
    /// [`MARGIN_LOGIT_MAX`].
    pub margin_logit: f64,
    /// The model judges an absolute level, which differs from machine to machine: its own threshold says nothing of a new one.
    /// Otherwise (a shape) windows above its own threshold are abnormal on a new machine, too.
    pub judges_level: bool,
}

/// A bundle's metadata after all checks that need no model.
#[derive(Clone, Debug, PartialEq)]
pub struct BundleMetadata {
    /// For example `motor`.
    pub name: String,
    /// For example `1.0.0`.
    pub version: String,
    /// A sentence for people.
    pub description: String,
    /// Of the model's file, lower-case hexadecimal.
    pub model_sha256: String,
    /// Axis of the accelerometer that it judges, for people; empty if that does not matter.
    pub axis: String,
    /// What a window must be.
    pub input: Input,
    /// What the model takes.
    pub features: FeatureMetadata,
    /// Score at or above which a window counts as abnormal, 0 to 1.
    pub threshold: f64,
    /// Share of healthy windows, unseen in training, that were above the threshold when it was chosen.
    pub false_alarm_rate: f64,
    /// Figures for people; how they came about stands in the model's README.
    pub evaluation: serde_json::Value,
    /// Where the training data came from.
    pub training_data: TrainingData,
    /// What the bundle must reproduce.
    pub self_test: SelfTest,
    /// Healthy windows by operating condition.
    pub healthy_reference: BTreeMap<String, HealthyReference>,
    /// Healthy windows together; bundles of before do not have it.
    pub calibration: Option<Calibration>,
    /// How a machine's own threshold is set; bundles of before do not have it.
    pub commissioning: Option<Commissioning>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawMetadata {
    format: u32,
    name: String,
    version: String,
    description: String,
    model_sha256: String,
    #[serde(default)]
    axis: String,
    input: Input,
    features: RawFeatures,
    #[expect(dead_code, reason = "only its being one of the known words counts")]
    output: Output,
    threshold: f64,
    false_alarm_rate: f64,
    evaluation: serde_json::Value,
    training_data: TrainingData,
    self_test: SelfTest,
    healthy_reference: BTreeMap<String, HealthyReference>,
    calibration: Option<Calibration>,
    commissioning: Option<Commissioning>,
}

impl BundleMetadata {
    /// Reads and checks `bundle.json`.
    ///
    /// # Errors
    /// The first fault; see [`MetadataError`].
    pub fn parse(text: &[u8]) -> Result<Self, MetadataError> {
        let raw: RawMetadata = serde_json::from_slice(text)?;
        if raw.format != FORMAT {
            return Err(MetadataError::Format(raw.format));
        }
        // 2 changed nothing of 1.
        if !(1..=FEATURE_DEFINITION).contains(&raw.features.definition) {
            return Err(MetadataError::Definition(raw.features.definition));
        }
        let order = parse_order(&raw.features)?;
        let metadata = Self {
            name: raw.name,
            version: raw.version,
            description: raw.description,
            model_sha256: raw.model_sha256,
            axis: raw.axis,
            input: raw.input,
            features: FeatureMetadata {
                band_edges_hz: raw.features.band_edges_hz,
                line_hz: raw.features.line_hz,
                order,
            },
            threshold: raw.threshold,
            false_alarm_rate: raw.false_alarm_rate,
            evaluation: raw.evaluation,
            training_data: raw.training_data,
            self_test: raw.self_test,
            healthy_reference: raw.healthy_reference,
            calibration: raw.calibration,
            commissioning: raw.commissioning,
        };
        metadata.check_ranges()?;
        metadata.check_self_test()?;
        Ok(metadata)
    }

    fn check_ranges(&self) -> Result<(), MetadataError> {
        let input = &self.input;
        let hex = self.model_sha256.len() == 64
            && self.model_sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        range("name", &self.name, is_word(&self.name), WORD)?;
        range("version", &self.version, is_word(&self.version), WORD)?;
        range("model-sha256", &self.model_sha256, hex, "64 digits of lower-case hexadecimal")?;
        range("input.unit", &input.unit, !input.unit.is_empty(), "not empty")?;
        let rate = input.sample_rate_hz;
        range("input.sample-rate-hz", &rate, rate.is_finite() && rate > 0.0, "above 0")?;
        let hop = input.hop_samples;
        range("input.hop-samples", &hop, hop > 0, "above 0")?;
        let step = input.step_max;
        let is_step = step.is_none_or(|step| step.is_finite() && step > 0.0);
        range("input.step-max", &step.unwrap_or_default(), is_step, "above 0")?;
        let threshold = self.threshold;
        range("threshold", &threshold, threshold > 0.0 && threshold <= 1.0, "above 0, at most 1")?;
        let alarms = self.false_alarm_rate;
        range("false-alarm-rate", &alarms, (0.0..=1.0).contains(&alarms), "0 to 1")?;
        if let Some(Commissioning { margin_logit: margin, judges_level: _ }) = self.commissioning {
            range(
                "commissioning.margin-logit",
                &margin,
                (MARGIN_LOGIT_MIN..=MARGIN_LOGIT_MAX).contains(&margin),
                &format!("{MARGIN_LOGIT_MIN} to {MARGIN_LOGIT_MAX}"),
            )?;
        }
        let tolerance = self.self_test.score_tolerance;
        range(
            "self-test.score-tolerance",
            &tolerance,
            (0.0..=SCORE_TOLERANCE_MAX).contains(&tolerance),
            &format!("0 to {SCORE_TOLERANCE_MAX}"),
        )?;
        let tolerance = self.self_test.feature_tolerance;
        range(
            "self-test.feature-tolerance",
            &tolerance,
            (0.0..=FEATURE_TOLERANCE_MAX).contains(&tolerance),
            &format!("0 to {FEATURE_TOLERANCE_MAX}"),
        )
    }

    fn check_self_test(&self) -> Result<(), MetadataError> {
        let self_test = &self.self_test;
        let few = |key, found, min| MetadataError::TooFew { key, found, min };
        if self_test.scores.len() < SELF_TEST_SCORES_MIN {
            let found = self_test.scores.len();
            return Err(few("self-test.scores", found, SELF_TEST_SCORES_MIN));
        }
        if self_test.windows.len() < SELF_TEST_WINDOWS_MIN {
            let found = self_test.windows.len();
            return Err(few("self-test.windows", found, SELF_TEST_WINDOWS_MIN));
        }
        for vector in &self_test.scores {
            let (found, expected) = (vector.features.len(), self.features.order.len());
            if found != expected {
                let label = vector.label.clone();
                return Err(MetadataError::VectorLength { label, found, expected });
            }
            let score = vector.score;
            range("self-test.scores.score", &score, (0.0..=1.0).contains(&score), "0 to 1")?;
        }
        let abnormal = self_test.scores.iter().filter(|test| test.score >= self.threshold).count();
        if abnormal == 0 {
            return Err(MetadataError::OneSided { side: "below" });
        }
        if abnormal == self_test.scores.len() {
            return Err(MetadataError::OneSided { side: "at or above" });
        }
        Ok(())
    }
}

const WORD: &str = "1 to 64 letters, digits, '-', '_' or '.'";

fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn range(
    key: &'static str,
    found: &dyn std::fmt::Display,
    holds: bool,
    range: &str,
) -> Result<(), MetadataError> {
    if holds {
        return Ok(());
    }
    Err(MetadataError::Range { key, found: found.to_string(), range: range.to_owned() })
}

fn parse_order(features: &RawFeatures) -> Result<Vec<FeatureName>, MetadataError> {
    let bands = features.band_edges_hz.len().saturating_sub(1);
    let mut order = Vec::with_capacity(features.order.len());
    for text in &features.order {
        let name: FeatureName = text.parse()?;
        if let FeatureName::Band(index) = name
            && usize::from(index) >= bands
        {
            return Err(MetadataError::NoSuchBand(name));
        }
        if name == FeatureName::Line && features.line_hz.is_none() {
            return Err(MetadataError::NoLine);
        }
        order.push(name);
    }
    range("features.order", &"empty", !order.is_empty(), "a list of features")?;
    Ok(order)
}
