//! From blocks of samples to judged windows: features always, a score where a model is in force.
//!
//! The stop path and the journal's path each own one of these; the code is pure, so both see the same numbers.

use std::collections::{BTreeMap, BTreeSet};

use edge_core::features::{FeatureExtractor, Features};
use edge_core::interlock::{Action, Interlock, Moment};
use edge_core::vibration::{Window, WindowAssembler, WindowShape, WindowShapeError};
use shared_proto::model::{SensorId, WaveformBlock};
use tracing::{error, warn};

use crate::config::{Machine, Settings};
use crate::scoring::metadata::FeatureMetadata;
use crate::scoring::{AnomalyScore, Bundle, Scorer};
use crate::telemetry;

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

/// Windows, features and scores of many sensors.
pub struct Analysis {
    default_shape: WindowShape,
    sample_rate_max: f64,
    sensors_max: usize,
    model: Option<(Bundle, Box<dyn Scorer>)>,
    scored: Vec<SensorId>,
    /// Sensors with a limit on a band of their spectrum.
    band_limited: BTreeSet<SensorId>,
    sensors: BTreeMap<SensorId, SensorAnalysis>,
}

struct SensorAnalysis {
    assembler: WindowAssembler,
    extractor: Option<(f64, FeatureExtractor)>,
    /// Without bands, for [`Depth::Limits`].
    plain_extractor: Option<(f64, FeatureExtractor)>,
    discarded: u64,
    is_scored: bool,
    is_band_limited: bool,
    is_mismatch_reported: bool,
}

impl Analysis {
    /// An analysis that has seen nothing; sensors that machines name as scored get the model's windows.
    #[must_use]
    pub fn new(settings: &Settings, model: Option<&Bundle>) -> Self {
        let model = model.and_then(|bundle| match bundle.scorer() {
            Ok(scorer) => Some((bundle.clone(), scorer)),
            Err(error) => {
                error!(%error, "no interpreter for the model; limits alone protect");
                None
            }
        });
        let scored = settings.machines.iter().flat_map(|machine| machine.scored_sensors.clone());
        Self {
            default_shape: settings.window_shape(),
            sample_rate_max: settings.vibration.sample_rate_max,
            sensors_max: settings.vibration.sensors_max,
            scored: if model.is_some() { scored.collect() } else { Vec::new() },
            model,
            band_limited: band_limited(&settings.machines),
            sensors: BTreeMap::new(),
        }
    }

    /// Changes which sensors the model scores. One that is scored from now on, or no more, starts another window.
    pub fn set_scored(&mut self, scored: Vec<SensorId>) {
        self.scored = if self.model.is_some() { scored } else { Vec::new() };
        let scored = &self.scored;
        self.sensors.retain(|sensor, analysis| analysis.is_scored == scored.contains(sensor));
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

    /// Takes a block and hands each window that it completes to `judge`, oldest first.
    ///
    /// # Errors
    /// The block is over a limit; nothing of it was taken.
    pub fn handle_block(
        &mut self,
        block: &WaveformBlock,
        judge: impl FnMut(&Window, &Features, Option<AnomalyScore>),
    ) -> Result<(), AnalysisError> {
        self.handle_block_to(block, Depth::Full, judge)
    }

    /// Like [`Self::handle_block`], leaving out what `depth` does not ask for.
    ///
    /// # Errors
    /// The block is over a limit; nothing of it was taken.
    pub fn handle_block_to(
        &mut self,
        block: &WaveformBlock,
        depth: Depth,
        mut judge: impl FnMut(&Window, &Features, Option<AnomalyScore>),
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
        let model = self.model.as_mut().filter(|_| sensor.is_scored);
        let (bundle, mut scorer) = match (model, depth) {
            (Some((bundle, scorer)), Depth::Full) => (Some(&*bundle), Some(scorer)),
            (Some((bundle, _)), Depth::Limits) if sensor.is_band_limited => (Some(&*bundle), None),
            (Some(_), Depth::Limits) | (None, _) => (None, None),
        };
        let extractor = match (bundle, depth) {
            (None, Depth::Limits) => &mut sensor.plain_extractor,
            (Some(_), _) | (None, Depth::Full) => &mut sensor.extractor,
        };
        for window in sensor.assembler.handle_block(block) {
            let wanted = bundle.map(|bundle| &bundle.metadata().features);
            let Some(features) = features_of(extractor, &window, wanted) else {
                continue;
            };
            let mut score = None;
            if let (Some(bundle), Some(scorer)) = (bundle, scorer.as_mut()) {
                match bundle.check_sensor(
                    block.sensor_id.as_str(),
                    window.sample_rate_hz,
                    window.samples.len(),
                    block.unit.as_deref(),
                ) {
                    Ok(()) => score = scored(scorer.as_mut(), features, &block.sensor_id),
                    Err(error) => {
                        metrics::counter!(telemetry::SCORE_FAILURES, "reason" => "shape")
                            .increment(1);
                        if !std::mem::replace(&mut sensor.is_mismatch_reported, true) {
                            error!(sensor = %block.sensor_id, %error, "the model cannot score this sensor; limits alone protect");
                        }
                    }
                }
            }
            judge(&window, features, score);
        }
        let discarded = sensor.assembler.discarded().samples();
        if discarded > sensor.discarded {
            metrics::counter!(telemetry::VIBRATION_SAMPLES_DISCARDED)
                .increment(discarded - sensor.discarded);
            sensor.discarded = discarded;
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
        let is_scored = self.scored.contains(sensor_id);
        let shape = match &self.model {
            Some((bundle, _)) if is_scored => WindowShape {
                window_samples: bundle.metadata().input.window_samples,
                hop_samples: bundle.metadata().input.hop_samples,
                gap_tolerance_samples: self.default_shape.gap_tolerance_samples,
            },
            Some(_) | None => self.default_shape,
        };
        let assembler = WindowAssembler::new(shape)?;
        let analysis = SensorAnalysis {
            assembler,
            extractor: None,
            plain_extractor: None,
            discarded: 0,
            is_scored,
            is_band_limited: self.band_limited.contains(sensor_id),
            is_mismatch_reported: false,
        };
        self.sensors.insert(sensor_id.clone(), analysis);
        Ok(())
    }
}

/// Takes a block to the interlock and each window that it completes, with its features and score: the one way from samples to a decision, of the
/// stop path and of recordings. `seen` learns of each window.
///
/// Where the block is over a limit, the actions are those of the block itself.
pub fn judge_block(
    analysis: &mut Analysis,
    interlock: &mut Interlock,
    block: &WaveformBlock,
    depth: Depth,
    now: impl Fn() -> Moment,
    mut seen: impl FnMut(&Window, &Features, Option<AnomalyScore>),
) -> (Vec<Action>, Result<(), AnalysisError>) {
    let sensor = &block.sensor_id;
    let mut actions = interlock.handle_block(block, now());
    let result = analysis.handle_block_to(block, depth, |window, features, score| {
        seen(window, features, score);
        let now = now();
        let feature = |name: &str| features.get_by_text(name);
        actions.extend(interlock.handle_features(sensor, feature, now));
        if let Some(score) = score {
            actions.extend(interlock.handle_score(sensor, score.value(), now));
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
fn features_of<'a>(
    extractor: &'a mut Option<(f64, FeatureExtractor)>,
    window: &Window,
    wanted: Option<&FeatureMetadata>,
) -> Option<&'a Features> {
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
    extractor.extract(&window.samples).ok()
}

fn scored(scorer: &mut dyn Scorer, features: &Features, sensor: &SensorId) -> Option<AnomalyScore> {
    match scorer.score(features) {
        Ok(score) => Some(score),
        Err(error) => {
            metrics::counter!(telemetry::SCORE_FAILURES, "reason" => "inference").increment(1);
            warn!(%sensor, %error, "window not scored");
            None
        }
    }
}
