//! From blocks of samples to judged windows: features always, a score where a model is in force.
//!
//! The stop path and the journal's path each own one of these; the code is pure, so both see the same numbers.

mod latency;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use edge_core::baseline::SensorBaseline;
use edge_core::explanation::{Contribution, Spread, contributions};
use edge_core::features::{FeatureExtractor, FeatureName, Features};
use edge_core::interlock::{Action, Interlock, Moment, WindowScore};
use edge_core::vibration::{Window, WindowAssembler, WindowShape, WindowShapeError};
use shared_proto::model::{SensorId, WaveformBlock};
use tracing::{error, warn};

use crate::config::{Machine, ScoredBy, Settings};
use crate::scoring::metadata::{BundleMetadata, FeatureMetadata};
use crate::scoring::{AnomalyScore, Bundle, Models, Scorer};
use crate::telemetry;

pub use latency::{Latency, LatencySummary};

/// How far a block is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Features and score.
    Full,
    /// What limits need: level and shape, bands where a limit names one; no score.
    Limits,
}

/// Why a block was refused.
#[derive(Debug, thiserror::Error)]
pub enum AnalysisError {
    /// A sensor more than the limit.
    #[error("sensor {sensor} would be one more than the {limit} of vibration.sensors-max")]
    TooManySensors {
        /// The sensor.
        sensor: SensorId,
        /// The limit.
        limit: usize,
    },
    /// A rate over the limit.
    #[error("{sensor} samples at {rate} Hz, vibration.sample-rate-max is {limit} Hz")]
    SampleRate {
        /// The sensor.
        sensor: SensorId,
        /// Its rate.
        rate: f64,
        /// The limit.
        limit: f64,
    },
    /// A shape that was checked at the start after all.
    #[error(transparent)]
    Shape(#[from] WindowShapeError),
}

impl AnalysisError {
    /// A short word for counters.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooManySensors { .. } => "too-many-sensors",
            Self::SampleRate { .. } => "sample-rate",
            Self::Shape(_) => "window-shape",
        }
    }
}

/// What was learnt of one sensor's machine: the logit that the model's threshold moves to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learnt<'a> {
    /// Of the model that it was learnt with; it says nothing of another one.
    pub model_sha256: &'a str,
    /// Windows at or above it are abnormal on this machine.
    pub threshold_logit: f64,
}

impl Learnt<'_> {
    /// Whether it was learnt with this model.
    #[must_use]
    pub fn is_of(&self, bundle: &Bundle) -> bool {
        self.model_sha256 == bundle.metadata().model_sha256
    }
}

/// A window with all that was found of it.
pub struct Judged<'a> {
    /// The samples.
    pub window: &'a Window,
    /// Whose features, and spectrum if it has one, are those of the window.
    pub extractor: &'a FeatureExtractor,
    /// Where a model is in force and was asked.
    pub score: Option<WindowScore>,
}

impl Judged<'_> {
    /// The window's features.
    #[must_use]
    pub const fn features(&self) -> &Features {
        self.extractor.features()
    }
}

/// Windows, features and scores of many sensors.
pub struct Analysis {
    default_shape: WindowShape,
    sample_rate_max: f64,
    sensors_max: usize,
    /// Models that sensors are scored by; a place is free when nobody needs its model any more.
    models: Vec<Option<Loaded>>,
    /// Places in `models` by name.
    places: BTreeMap<String, usize>,
    /// How sensors are scored.
    scored: BTreeMap<SensorId, ScoredBy>,
    /// Sensors with a limit on a band of their spectrum.
    band_limited: BTreeSet<SensorId>,
    sensors: BTreeMap<SensorId, SensorAnalysis>,
}

struct Loaded {
    bundle: Bundle,
    scorer: Box<dyn Scorer>,
    /// The bundle's threshold as score and as logit.
    threshold: (f64, f64),
    /// From the samples of a window to its score.
    latency: Latency,
}

struct SensorAnalysis {
    assembler: WindowAssembler,
    /// Place of its model.
    model: Option<usize>,
    /// Instead of the model's.
    threshold: Option<f64>,
    /// The model that scores it from its first whole window on, where windows of another shape have to fill first.
    successor: Option<(usize, WindowAssembler)>,
    extractor: Option<(f64, FeatureExtractor)>,
    /// Without bands, for [`Depth::Limits`].
    plain_extractor: Option<(f64, FeatureExtractor)>,
    discarded: u64,
    is_band_limited: bool,
    is_mismatch_reported: bool,
}

impl Analysis {
    /// An analysis that has seen nothing; sensors that machines name as scored get their model's windows.
    #[must_use]
    pub fn new(settings: &Settings, models: &Models) -> Self {
        let mut this = Self {
            default_shape: settings.window_shape(),
            sample_rate_max: settings.vibration.sample_rate_max,
            sensors_max: settings.vibration.sensors_max,
            models: Vec::new(),
            places: BTreeMap::new(),
            scored: settings.scored_sensors(),
            band_limited: band_limited(&settings.machines),
            sensors: BTreeMap::new(),
        };
        for (name, bundle) in models {
            match bundle.scorer() {
                Ok(scorer) => this.set_model(name, bundle.clone(), scorer),
                Err(error) => {
                    error!(model = name, %error, "no interpreter for the model; limits alone protect");
                }
            }
        }
        this
    }

    /// Puts a model in force under this name; its scorer comes ready, so that nothing is waited for here. No window is lost: sensors whose
    /// windows have another shape now are scored by the model before until the first whole window of the new one.
    pub fn set_model(&mut self, name: &str, bundle: Bundle, scorer: Box<dyn Scorer>) {
        let threshold = (bundle.threshold().value(), bundle.threshold().logit());
        let shape = shape_of(&bundle, self.default_shape);
        let latency = Latency::default();
        let loaded = Some(Loaded { bundle, scorer, threshold, latency });
        let place = match self.models.iter().position(Option::is_none) {
            Some(free) => {
                self.models[free] = loaded;
                free
            }
            None => {
                self.models.push(loaded);
                self.models.len() - 1
            }
        };
        let before = self.places.insert(name.to_owned(), place);
        for (sensor, analysis) in &mut self.sensors {
            if self.scored.get(sensor).is_none_or(|scored| scored.model != name) {
                continue;
            }
            let has_same_shape = analysis.assembler.shape() == shape;
            analysis.successor = match WindowAssembler::new(shape) {
                Ok(assembler) if !has_same_shape => Some((place, assembler)),
                Ok(_) | Err(_) => {
                    analysis.follow(place);
                    None
                }
            };
        }
        if let Some(before) = before {
            self.free_unused(before);
        }
    }

    /// Drops a model that no sensor is scored by any more.
    fn free_unused(&mut self, place: usize) {
        let is_used = self.sensors.values().any(|sensor| sensor.model == Some(place));
        if !is_used && !self.places.values().any(|used| *used == place) {
            self.models[place] = None;
        }
    }

    /// Changes which sensors are scored, and by which model. One whose model is another starts another window.
    pub fn set_scored(&mut self, scored: BTreeMap<SensorId, ScoredBy>) {
        let before = std::mem::replace(&mut self.scored, scored);
        let scored = &self.scored;
        self.sensors.retain(|sensor, analysis| {
            let (before, now) = (before.get(sensor), scored.get(sensor));
            analysis.threshold = now.and_then(|by| by.threshold);
            before.map(|by| &by.model) == now.map(|by| &by.model)
        });
    }

    /// Changes which sensors have a limit on a band of their spectrum.
    pub fn set_band_limited(&mut self, band_limited: BTreeSet<SensorId>) {
        for (sensor, analysis) in &mut self.sensors {
            analysis.is_band_limited = band_limited.contains(sensor);
        }
        self.band_limited = band_limited;
    }

    /// Sensors whose windows are kept.
    #[must_use]
    pub fn sensors(&self) -> usize {
        self.sensors.len()
    }

    /// What the last windows took that the model of this name has scored.
    #[must_use]
    pub fn latency(&self, name: &str) -> Option<&Latency> {
        Some(&self.models.get(*self.places.get(name)?)?.as_ref()?.latency)
    }

    /// Takes a model out of force; its sensors are not scored.
    pub fn remove_model(&mut self, name: &str) {
        let Some(place) = self.places.remove(name) else { return };
        self.models[place] = None;
        self.sensors.retain(|_, sensor| sensor.model != Some(place));
    }

    /// Whether the settings give a sensor to the model of this name.
    #[must_use]
    pub fn is_scored_by(&self, sensor: &SensorId, name: &str) -> bool {
        self.scored.get(sensor).is_some_and(|scored| scored.model == name)
    }

    /// The bundle that scores a sensor now.
    #[must_use]
    pub fn bundle_of(&self, sensor: &SensorId) -> Option<&Bundle> {
        let place = match self.sensors.get(sensor) {
            Some(sensor) => sensor.model,
            None => self.places.get(&self.scored.get(sensor)?.model).copied(),
        };
        Some(&self.models.get(place?)?.as_ref()?.bundle)
    }

    /// By how much each feature drove the score of a window of this sensor; nothing where that is not known. What is usual was learnt of the
    /// machine, or else it is the bundle's. Runs the model once for each of its features: not before a stop is ordered.
    pub fn contributions(
        &mut self,
        sensor: &SensorId,
        features: &Features,
        learnt: Option<&SensorBaseline>,
    ) -> Vec<Contribution> {
        let place = self.sensors.get(sensor).and_then(|sensor| sensor.model);
        let model = place.and_then(|place| self.models.get_mut(place)?.as_mut());
        let Some(Loaded { bundle, scorer, .. }) = model else { return Vec::new() };
        let metadata = bundle.metadata();
        let learnt = learnt.filter(|learnt| learnt.model_sha256 == metadata.model_sha256);
        let usual = |name: FeatureName| {
            let text = name.to_string();
            if let Some(spread) = learnt.and_then(|learnt| learnt.features.get(&text)) {
                return Some(Spread { mean: spread.mean, deviation: spread.deviation });
            }
            usual_of_training(metadata, &text)
        };
        let mut logit = |features: &Features| scorer.logit(features).ok();
        contributions(features, &metadata.features.order, &usual, &mut logit)
    }

    /// Takes a block and hands each window that it completes to `judge`, oldest first. `learnt` is what is known of the sensor's machine.
    ///
    /// # Errors
    /// The block is over a limit; nothing of it was taken.
    pub fn handle_block(
        &mut self,
        block: &WaveformBlock,
        learnt: Option<Learnt<'_>>,
        judge: impl FnMut(&Judged<'_>),
    ) -> Result<(), AnalysisError> {
        self.handle_block_to(block, Depth::Full, learnt, judge)
    }

    /// Like [`Self::handle_block`], leaving out what `depth` does not ask for.
    ///
    /// # Errors
    /// The block is over a limit; nothing of it was taken.
    pub fn handle_block_to(
        &mut self,
        block: &WaveformBlock,
        depth: Depth,
        learnt: Option<Learnt<'_>>,
        mut judge: impl FnMut(&Judged<'_>),
    ) -> Result<(), AnalysisError> {
        if block.sample_rate_hz > self.sample_rate_max {
            return Err(AnalysisError::SampleRate {
                sensor: block.sensor_id.clone(),
                rate: block.sample_rate_hz,
                limit: self.sample_rate_max,
            });
        }
        if !self.sensors.contains_key(&block.sensor_id) {
            self.admit(&block.sensor_id)?;
        }
        let Some(sensor) = self.sensors.get_mut(&block.sensor_id) else { return Ok(()) };
        let task = Task { block, depth, learnt };
        let model = sensor.model.and_then(|place| self.models.get_mut(place)?.as_mut());
        sensor.judge_windows(model, task, &mut judge);
        let discarded = sensor.assembler.discarded().samples();
        if discarded > sensor.discarded {
            metrics::counter!(telemetry::VIBRATION_SAMPLES_DISCARDED)
                .increment(discarded - sensor.discarded);
            sensor.discarded = discarded;
        }
        if let Some(successor) = &mut sensor.successor
            && successor.1.handle_block(block).count() > 0
            && let Some((place, assembler)) = sensor.successor.take()
        {
            let before = sensor.model;
            sensor.assembler = assembler;
            sensor.discarded = sensor.assembler.discarded().samples();
            sensor.follow(place);
            if let Some(before) = before {
                self.free_unused(before);
            }
        }
        Ok(())
    }

    fn admit(&mut self, sensor_id: &SensorId) -> Result<(), AnalysisError> {
        if self.sensors.len() >= self.sensors_max {
            return Err(AnalysisError::TooManySensors {
                sensor: sensor_id.clone(),
                limit: self.sensors_max,
            });
        }
        let scored = self.scored.get(sensor_id);
        let model = scored.and_then(|scored| self.places.get(&scored.model)).copied();
        let threshold = scored.and_then(|scored| scored.threshold);
        let loaded = model.and_then(|place| self.models.get(place)?.as_ref());
        let shape =
            loaded.map_or(self.default_shape, |it| shape_of(&it.bundle, self.default_shape));
        let assembler = WindowAssembler::new(shape)?;
        let analysis = SensorAnalysis {
            assembler,
            model,
            threshold,
            successor: None,
            extractor: None,
            plain_extractor: None,
            discarded: 0,
            is_band_limited: self.band_limited.contains(sensor_id),
            is_mismatch_reported: false,
        };
        self.sensors.insert(sensor_id.clone(), analysis);
        Ok(())
    }
}

/// A block, and how it is to be judged.
#[derive(Clone, Copy)]
struct Task<'a> {
    block: &'a WaveformBlock,
    depth: Depth,
    learnt: Option<Learnt<'a>>,
}

impl SensorAnalysis {
    /// Is scored by another model from the next window on.
    fn follow(&mut self, place: usize) {
        self.model = Some(place);
        self.extractor = None;
        self.plain_extractor = None;
        self.is_mismatch_reported = false;
    }

    fn judge_windows(
        &mut self,
        model: Option<&mut Loaded>,
        task: Task<'_>,
        judge: &mut impl FnMut(&Judged<'_>),
    ) {
        let Task { block, depth, learnt } = task;
        let (mut model, is_scored) = match (model, depth) {
            (Some(model), Depth::Full) => (Some(model), true),
            (Some(model), Depth::Limits) if self.is_band_limited => (Some(model), false),
            (Some(_), Depth::Limits) | (None, _) => (None, false),
        };
        let extractor = match (&model, depth) {
            (None, Depth::Limits) => &mut self.plain_extractor,
            (Some(_), _) | (None, Depth::Full) => &mut self.extractor,
        };
        for window in self.assembler.handle_block(block) {
            let began = Instant::now();
            let wanted = model.as_ref().map(|model| &model.bundle.metadata().features);
            let Some(extractor) = extract(extractor, &window, wanted) else { continue };
            let features = extractor.features();
            let mut score = None;
            if let Some(model) = model.as_mut().filter(|_| is_scored) {
                let unit = block.unit.as_deref();
                let (rate, samples) = (window.sample_rate_hz, window.samples.len());
                let sensor = &block.sensor_id;
                match model.bundle.check_sensor(sensor.as_str(), rate, samples, unit) {
                    Ok(()) if model.bundle.metadata().input.is_step(&window.samples) => {
                        metrics::counter!(telemetry::SCORE_FAILURES, "reason" => "step")
                            .increment(1);
                    }
                    Ok(()) => {
                        score = model.score(features, sensor, learnt).map(|score| {
                            let threshold = self.threshold.unwrap_or(score.threshold);
                            WindowScore { threshold, ..score }
                        });
                        let took = began.elapsed();
                        model.latency.push(took);
                        metrics::histogram!(telemetry::SCORE_LATENCY).record(took);
                    }
                    Err(error) => {
                        metrics::counter!(telemetry::SCORE_FAILURES, "reason" => "shape")
                            .increment(1);
                        if !std::mem::replace(&mut self.is_mismatch_reported, true) {
                            error!(%sensor, %error, "the model cannot score this sensor; limits alone protect");
                        }
                    }
                }
            }
            judge(&Judged { window: &window, extractor, score });
        }
    }
}

impl Loaded {
    /// The score of one window, moved to the scale of the bundle's threshold by as much as the learnt one differs from it.
    fn score(
        &mut self,
        features: &Features,
        sensor: &SensorId,
        learnt: Option<Learnt<'_>>,
    ) -> Option<WindowScore> {
        let logit = match self.scorer.logit(features) {
            Ok(logit) => logit,
            Err(error) => {
                metrics::counter!(telemetry::SCORE_FAILURES, "reason" => "inference").increment(1);
                warn!(%sensor, %error, "window not scored");
                return None;
            }
        };
        let (threshold, threshold_logit) = self.threshold;
        let of_this_model = learnt.filter(|learnt| learnt.is_of(&self.bundle));
        let moved = of_this_model
            .filter(|_| threshold_logit.is_finite())
            .map_or(0.0, |learnt| learnt.threshold_logit - threshold_logit);
        let score = AnomalyScore::from_logit(logit - moved)?.value();
        Some(WindowScore { logit, score, threshold })
    }
}

fn shape_of(bundle: &Bundle, default: WindowShape) -> WindowShape {
    let input = &bundle.metadata().input;
    WindowShape {
        window_samples: input.window_samples,
        hop_samples: input.hop_samples,
        gap_tolerance_samples: default.gap_tolerance_samples,
    }
}

/// What is usual by the healthy windows that a bundle was trained on; bundles of before have it by operating condition.
fn usual_of_training(metadata: &BundleMetadata, feature: &str) -> Option<Spread> {
    if let Some(calibration) = &metadata.calibration {
        let (mean, deviation) =
            (*calibration.mean.get(feature)?, *calibration.deviation.get(feature)?);
        return Some(Spread { mean, deviation });
    }
    let conditions = metadata.healthy_reference.values();
    let known: Vec<(f64, f64)> = conditions
        .filter_map(|it| Some((*it.mean.get(feature)?, *it.deviation.get(feature)?)))
        .collect();
    let count = known.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| known.iter().map(of).sum::<f64>() / count;
    (!known.is_empty()).then(|| Spread { mean: mean(|it| it.0), deviation: mean(|it| it.1) })
}

/// Takes a block to the interlock and each window that it completes, with its features and score: the one way from samples to a decision, of the
/// stop path and of recordings. `seen` learns of each window.
///
/// Where the block is over a limit, the actions are those of the block itself.
pub fn judge_block(
    analysis: &mut Analysis,
    interlock: &mut Interlock,
    block: &WaveformBlock,
    (depth, learnt): (Depth, Option<Learnt<'_>>),
    now: impl Fn() -> Moment,
    mut seen: impl FnMut(&Judged<'_>),
) -> (Vec<Action>, Result<(), AnalysisError>) {
    let sensor = &block.sensor_id;
    let mut actions = interlock.handle_block(block, now());
    let result = analysis.handle_block_to(block, depth, learnt, |judged| {
        seen(judged);
        let now = now();
        let feature = |name: &str| judged.features().get_by_text(name);
        actions.extend(interlock.handle_features(sensor, feature, now));
        if let Some(score) = judged.score {
            actions.extend(interlock.handle_score(sensor, score, now));
        }
    });
    (actions, result)
}

/// Sensors with a limit on a band of their spectrum.
#[must_use]
pub fn band_limited(machines: &[Machine]) -> BTreeSet<SensorId> {
    let limits = machines.iter().flat_map(|machine| &machine.limits);
    let is_of_spectrum = |quantity: &str| quantity.starts_with("band-") || quantity == "line";
    let of_bands = limits.filter(|limit| is_of_spectrum(&limit.quantity));
    of_bands.map(|limit| limit.sensor.clone()).collect()
}

/// Plans anew when the sensor's rate changes.
fn extract<'a>(
    extractor: &'a mut Option<(f64, FeatureExtractor)>,
    window: &Window,
    wanted: Option<&FeatureMetadata>,
) -> Option<&'a FeatureExtractor> {
    let rate = window.sample_rate_hz;
    if extractor.as_ref().is_none_or(|(planned_rate, _)| *planned_rate != rate) {
        let samples = window.samples.len();
        let plain = || FeatureExtractor::new(samples, rate, &[]);
        // Bands that this rate does not reach are no reason to lose the limits.
        let planned = wanted
            .map_or_else(plain, |wanted| wanted.extractor(samples, rate).or_else(|_| plain()));
        match planned {
            Ok(planned) => *extractor = Some((rate, planned)),
            Err(error) => {
                warn!(%error, "window without features");
                return None;
            }
        }
    }
    let (_, extractor) = extractor.as_mut()?;
    extractor.extract(&window.samples).ok()?;
    Some(extractor)
}

#[cfg(test)]
mod tests;
