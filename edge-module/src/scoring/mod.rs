//! The model's answer for a window: a [`Bundle`] is a folder with a model and all that must be known to use it, a
//! [`Scorer`] turns features into a score.
//!
//! A bundle is `model.tflite` and `bundle.json` ([`metadata`] describes it). Nothing of a bundle is used before all of
//! it was checked: size, sha256, keys, ranges, the shape of the model, then a self-test against the feature vectors and
//! scores that were recorded when it was exported. A bundle that fails is refused whole, the one before stays in force.
//!
//! The model takes raw features: its first layers normalise them. So what was trained, tested and hashed is one
//! file, and no second copy of the numbers can disagree with it.

pub mod metadata;
#[cfg(feature = "tflite")]
pub mod tflite;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_core::features::{FeatureError, FeatureName, FeatureSettingsError, Features};
use sha2::{Digest, Sha256};

use metadata::{BundleMetadata, MetadataError, extractor};

use crate::bundle_store::{ARCHIVE_BYTES_MAX, ArchiveHash, BundleSource, archive};
use crate::config::Settings;

/// File of the model in a bundle.
pub const MODEL_FILE: &str = "model.tflite";
/// File of the metadata in a bundle.
pub const METADATA_FILE: &str = "bundle.json";
/// Largest model accepted, in bytes.
pub const MODEL_BYTES_MAX: u64 = 1 << 20;
/// Largest metadata accepted, in bytes.
pub const METADATA_BYTES_MAX: u64 = 1 << 20;

/// The model's answer for one window, 0 (as in healthy training data) to 1: the logistic function of its logit.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct AnomalyScore(f64);

impl AnomalyScore {
    /// A score from 0 to 1; `None` for anything else, NaN among it.
    #[must_use]
    pub fn new(score: f64) -> Option<Self> {
        (0.0..=1.0).contains(&score).then_some(Self(score))
    }

    /// The score of a logit; `None` for a NaN.
    #[must_use]
    pub fn from_logit(logit: f64) -> Option<Self> {
        Self::new(1.0 / (1.0 + (-logit).exp()))
    }

    /// 0 to 1.
    #[must_use]
    pub const fn value(self) -> f64 {
        self.0
    }

    /// In natural logarithmic odds; infinite at 0 and 1.
    #[must_use]
    pub fn logit(self) -> f64 {
        (self.0 / (1.0 - self.0)).ln()
    }
}

impl fmt::Display for AnomalyScore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.6}", self.0)
    }
}

/// Why a window has no score. None of these passes with time: the window is lost to the model, the limits still protect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScoreError {
    /// The features come from an extractor with other bands.
    #[error(
        "the features have no {0}, which the model needs: extract them with the bundle's band edges"
    )]
    FeatureMissing(FeatureName),
    /// The model's answer is NaN or infinite.
    #[error("the model's answer is not a finite number")]
    NotFinite,
    /// The library failed.
    #[error("the model could not be run: {0}")]
    Inference(String),
}

/// Scores windows by their features. One for each thread: it keeps buffers.
pub trait Scorer: Send {
    /// The model's answer to one window, in natural logarithmic odds; finite.
    ///
    /// # Errors
    /// A feature is missing, the answer is not finite, or the library fails.
    fn logit(&mut self, features: &Features) -> Result<f64, ScoreError>;

    /// The score of one window.
    ///
    /// # Errors
    /// As [`Self::logit`].
    fn score(&mut self, features: &Features) -> Result<AnomalyScore, ScoreError> {
        AnomalyScore::from_logit(self.logit(features)?).ok_or(ScoreError::NotFinite)
    }
}

/// Models in force, by the names that the settings give them.
pub type Models = BTreeMap<String, Bundle>;

/// Loads every bundle of the settings that is on this device: those that pass, and why others do not. Archives are read where they
/// are, and nothing is written; one that would have to be downloaded is in neither answer.
#[must_use]
pub fn load_models(settings: &Settings) -> (Models, BTreeMap<String, String>) {
    let (mut models, mut refused) = (Models::new(), BTreeMap::new());
    for (name, source) in settings.model.sources() {
        let loaded = match &source {
            BundleSource::Folder(folder) => Bundle::load(folder).map_err(|error| error.to_string()),
            BundleSource::Archive { file, sha256 } => load_archive(file, sha256.as_ref()),
            BundleSource::Download { .. } => continue,
        };
        match loaded {
            Ok(bundle) => drop(models.insert(name, bundle)),
            Err(reason) => drop(refused.insert(name, reason)),
        }
    }
    (models, refused)
}

fn load_archive(file: &Path, expected: Option<&ArchiveHash>) -> Result<Bundle, String> {
    let content = read_limited(file, ARCHIVE_BYTES_MAX).map_err(|error| error.to_string())?;
    let found = ArchiveHash::of(&content);
    if let Some(expected) = expected.filter(|expected| **expected != found) {
        return Err(format!("{} has sha256 {found}, {expected} is asked for", file.display()));
    }
    let files = archive::read(&content).map_err(|fault| format!("{}: {fault}", file.display()))?;
    Bundle::from_files(files.metadata, files.model, file).map_err(|error| error.to_string())
}

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file is missing or cannot be read.
    #[error("{path} cannot be read: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is larger than any bundle needs.
    #[error("{path} is larger than {limit} bytes", path = path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Bytes allowed.
        limit: u64,
    },
    /// The metadata is not what a bundle needs.
    #[error("{path}: {source}", path = path.display())]
    Metadata {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: MetadataError,
    },
    /// The model is not the one that the metadata speaks of.
    #[error(
        "{MODEL_FILE} has sha256 {found}, {METADATA_FILE} names {expected}: the file is damaged or of another bundle"
    )]
    Hash {
        /// Of the file.
        found: String,
        /// Of the metadata.
        expected: String,
    },
    /// TensorFlow Lite does not take the file.
    #[error("{MODEL_FILE} is no model that TensorFlow Lite can run: {0}")]
    Model(String),
    /// Inputs or outputs other than the metadata says.
    #[error("{MODEL_FILE} has the {what} {found}, the bundle needs {expected}")]
    Shape {
        /// `input` or `output`.
        what: &'static str,
        /// Type and shape found.
        found: String,
        /// Type and shape needed.
        expected: String,
    },
    /// The self-test could not be run.
    #[error("self-test {label:?}: {source}")]
    SelfTestScore {
        /// Which vector.
        label: String,
        /// Why.
        #[source]
        source: ScoreError,
    },
    /// Another score than recorded.
    #[error(
        "self-test {label:?}: score {found}, recorded {expected}: the model or the library computes differently"
    )]
    SelfTestDiffers {
        /// Which vector.
        label: String,
        /// Score now.
        found: AnomalyScore,
        /// Score when it was exported.
        expected: f64,
    },
    /// The same answer for everything.
    #[error(
        "self-test: the model answers {0} to healthy and abnormal windows alike: it has lost its weights"
    )]
    ConstantOutput(AnomalyScore),
    /// The features of a recorded window cannot be computed.
    #[error("self-test window {label:?}: {reason}")]
    SelfTestWindow {
        /// Which window.
        label: String,
        /// What is wrong.
        reason: String,
    },
    /// Built without TensorFlow Lite.
    #[error(
        "this program was built without the feature `tflite` and cannot run a model: set model.bundle-dir to \"\""
    )]
    NotBuiltIn,
}

/// Why a bundle cannot judge a sensor. The sensor stays under its limits.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelMismatch {
    /// Trained at another rate.
    #[error("model {model} was trained at {model_hz} Hz, sensor {sensor} delivers {sensor_hz} Hz")]
    SampleRate {
        /// Bundle as name@version.
        model: String,
        /// Sensor refused.
        sensor: String,
        /// Rate of the bundle.
        model_hz: f64,
        /// Rate of the sensor.
        sensor_hz: f64,
    },
    /// Trained on windows of another length.
    #[error(
        "model {model} needs windows of {model_samples} samples, those of sensor {sensor} have {sensor_samples}"
    )]
    WindowSamples {
        /// Bundle as name@version.
        model: String,
        /// Sensor refused.
        sensor: String,
        /// Window of the bundle.
        model_samples: usize,
        /// Window of the sensor.
        sensor_samples: usize,
    },
    /// Trained on another unit.
    #[error(
        "model {model} was trained on samples in {model_unit}, sensor {sensor} delivers {sensor_unit}"
    )]
    Unit {
        /// Bundle as name@version.
        model: String,
        /// Sensor refused.
        sensor: String,
        /// Unit of the bundle.
        model_unit: String,
        /// Unit of the sensor.
        sensor_unit: String,
    },
}

/// A bundle that passed every check.
#[derive(Clone, Debug)]
pub struct Bundle {
    metadata: Arc<BundleMetadata>,
    /// The metadata as they were read.
    text: Arc<[u8]>,
    model: Arc<[u8]>,
}

impl Bundle {
    /// Reads a bundle's folder and checks all of it, the self-test included. Reads two files of at most 1 MiB each and runs
    /// the model a dozen times: do it outside the stop path.
    ///
    /// # Errors
    /// The first check that fails; see [`BundleError`].
    pub fn load(dir: &Path) -> Result<Self, BundleError> {
        let metadata_path = dir.join(METADATA_FILE);
        let text = read_limited(&metadata_path, METADATA_BYTES_MAX)?;
        let model = read_limited(&dir.join(MODEL_FILE), MODEL_BYTES_MAX)?;
        Self::from_files(&text, &model, &metadata_path)
    }

    /// Checks the contents of a bundle's two files as [`Self::load`] does; `path` names the metadata in errors.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_files(text: &[u8], model: &[u8], path: &Path) -> Result<Self, BundleError> {
        // The crate that binds TensorFlow Lite panics at names that are not UTF-8; a model is foreign data.
        let checked = std::panic::catch_unwind(|| Self::checked(text, model, path));
        checked.unwrap_or_else(|_| {
            Err(BundleError::Model("the library that reads it has given up (a panic)".to_owned()))
        })
    }

    fn checked(text: &[u8], model: &[u8], path: &Path) -> Result<Self, BundleError> {
        let metadata = BundleMetadata::parse(text)
            .map_err(|source| BundleError::Metadata { path: path.to_owned(), source })?;
        let found = hex(&Sha256::digest(model));
        if found != metadata.model_sha256 {
            return Err(BundleError::Hash { found, expected: metadata.model_sha256 });
        }
        let bundle = Self { metadata: Arc::new(metadata), text: text.into(), model: model.into() };
        bundle.test_windows()?;
        bundle.test_scores(bundle.scorer()?.as_mut())?;
        Ok(bundle)
    }

    /// What the bundle says of itself.
    #[must_use]
    pub fn metadata(&self) -> &BundleMetadata {
        &self.metadata
    }

    /// Contents of [`METADATA_FILE`] and [`MODEL_FILE`].
    #[must_use]
    pub fn files(&self) -> [(&'static str, &[u8]); 2] {
        [(METADATA_FILE, &self.text), (MODEL_FILE, &self.model)]
    }

    /// Whether both are the same to the byte.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.text == other.text && self.model == other.model
    }

    /// `name@version`, as machine events name it.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{}@{}", self.metadata.name, self.metadata.version)
    }

    /// Score at or above which a window counts as abnormal.
    #[must_use]
    pub fn threshold(&self) -> AnomalyScore {
        AnomalyScore::new(self.metadata.threshold).expect("the threshold was checked")
    }

    /// A scorer of its own interpreter, for one thread.
    ///
    /// # Errors
    /// The model cannot be run or has another shape; or the program was built without TensorFlow Lite.
    pub fn scorer(&self) -> Result<Box<dyn Scorer>, BundleError> {
        #[cfg(feature = "tflite")]
        {
            let order = self.metadata.features.order.clone();
            Ok(Box::new(tflite::TfliteScorer::new(&self.model, order)?))
        }
        #[cfg(not(feature = "tflite"))]
        Err(BundleError::NotBuiltIn)
    }

    /// An extractor of the features that the model was trained on.
    ///
    /// # Errors
    /// Never after [`Bundle::load`], which makes one.
    pub fn extractor(&self) -> Result<edge_core::features::FeatureExtractor, FeatureSettingsError> {
        self.metadata
            .features
            .extractor(self.metadata.input.window_samples, self.metadata.input.sample_rate_hz)
    }

    /// May the model judge windows of this sensor? `unit` is compared if the sensor names one.
    ///
    /// # Errors
    /// The rate, the window or the unit is not the model's.
    pub fn check_sensor(
        &self,
        sensor: &str,
        sample_rate_hz: f64,
        window_samples: usize,
        unit: Option<&str>,
    ) -> Result<(), ModelMismatch> {
        let input = &self.metadata.input;
        // A tenth of a percent moves no frequency by a whole bin of the bands.
        let is_rate_equal = (sample_rate_hz / input.sample_rate_hz - 1.0).abs() <= 1e-3;
        if !is_rate_equal {
            return Err(ModelMismatch::SampleRate {
                model: self.identity(),
                sensor: sensor.to_owned(),
                model_hz: input.sample_rate_hz,
                sensor_hz: sample_rate_hz,
            });
        }
        if window_samples != input.window_samples {
            return Err(ModelMismatch::WindowSamples {
                model: self.identity(),
                sensor: sensor.to_owned(),
                model_samples: input.window_samples,
                sensor_samples: window_samples,
            });
        }
        match unit {
            Some(unit) if unit != input.unit => Err(ModelMismatch::Unit {
                model: self.identity(),
                sensor: sensor.to_owned(),
                model_unit: input.unit.clone(),
                sensor_unit: unit.to_owned(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Are these the features that the model was trained on?
    fn test_windows(&self) -> Result<(), BundleError> {
        let self_test = &self.metadata.self_test;
        for window in &self_test.windows {
            let fail = |reason: String| BundleError::SelfTestWindow {
                label: window.label.clone(),
                reason,
            };
            let planned = extractor(
                window.samples.len(),
                self.metadata.input.sample_rate_hz,
                &window.band_edges_hz,
                window.line_hz,
            );
            let mut extractor = planned.map_err(|error| fail(error.to_string()))?;
            let features = extractor
                .extract(&window.samples)
                .map_err(|error: FeatureError| fail(error.to_string()))?;
            for (name, expected) in &window.features {
                let found = features
                    .get_by_text(name)
                    .ok_or_else(|| fail(format!("no feature is called {name:?}")))?;
                let tolerance = self_test.feature_tolerance * expected.abs().max(1.0);
                let is_equal = (found - expected).abs() <= tolerance;
                if !is_equal {
                    return Err(fail(format!("{name} is {found}, recorded {expected}")));
                }
            }
        }
        self.extractor().map(drop).map_err(|error| BundleError::SelfTestWindow {
            label: "input".to_owned(),
            reason: error.to_string(),
        })
    }

    /// Does the model answer as it did when it was exported?
    fn test_scores(&self, scorer: &mut dyn Scorer) -> Result<(), BundleError> {
        let self_test = &self.metadata.self_test;
        let mut range: Option<(AnomalyScore, AnomalyScore)> = None;
        for vector in &self_test.scores {
            let features = vector.as_features(&self.metadata.features.order);
            let found = scorer.score(&features).map_err(|source| BundleError::SelfTestScore {
                label: vector.label.clone(),
                source,
            })?;
            let (low, high) = range.unwrap_or((found, found));
            range = Some((
                if found < low { found } else { low },
                if found > high { found } else { high },
            ));
        }
        // Before the comparison, because it says more about the cause.
        if let Some((low, high)) = range
            && high.value() - low.value() < 1e-6
        {
            return Err(BundleError::ConstantOutput(low));
        }
        for vector in &self_test.scores {
            let features = vector.as_features(&self.metadata.features.order);
            let found = scorer.score(&features).map_err(|source| BundleError::SelfTestScore {
                label: vector.label.clone(),
                source,
            })?;
            let is_equal = (found.value() - vector.score).abs() <= self_test.score_tolerance;
            if !is_equal {
                return Err(BundleError::SelfTestDiffers {
                    label: vector.label.clone(),
                    found,
                    expected: vector.score,
                });
            }
        }
        Ok(())
    }
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, BundleError> {
    let failed = |source| BundleError::Read { path: path.to_owned(), source };
    let mut content = Vec::new();
    // A pipe or a device would be waited for.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        let kind = std::io::Error::new(std::io::ErrorKind::InvalidInput, "is no regular file");
        return Err(failed(kind));
    }
    let file = File::open(path).map_err(failed)?;
    file.take(limit + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > limit {
        return Err(BundleError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(content)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
