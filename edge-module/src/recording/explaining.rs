//! What a trip by a model's score is explained with: the spectrum that is usual of each scored sensor, the abnormal window that decided,
//! and what drove that. Written to the data folder for `edge-module explain`.
//!
//! The stop path tells of a trip at once. The window that decided may be a little behind on this path, and is waited for; or this path is
//! ahead, since a block may complete many windows, and has it among the last [`ABNORMAL_MAX`] abnormal ones. What else was known is that
//! of the moment of the trip: a second later the machine stands. An explanation is written [`DELAY`] after the trip.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_core::baseline::SensorBaseline;
use edge_core::explanation::{ReducedSpectrum, SpectrumAverage};
use edge_core::features::Features;
use edge_core::interlock::{TripCause, WindowScore};
use edge_core::operation::Current;
use shared_proto::model::{EventTime, MachineId, SensorId};
use tracing::{info, warn};

use crate::analysis::{Analysis, Judged};
use crate::calibration::Calibration;
use crate::config::{Machine, Settings};
use crate::explanations::{
    COUNT_MAX, Explanation, ExplanationStore, FOLDER, FORMAT, NamedBearing, UsualSpectrum,
};

/// From a trip to its explanation.
const DELAY: Duration = Duration::from_secs(1);
/// Windows after which one that was counted weighs a third of what it did.
const USUAL_WINDOWS: u32 = 256;
/// Abnormal windows of a sensor that are kept, some 10 KiB each: the one that decided a trip is among them when this path hears of it.
const ABNORMAL_MAX: usize = 8;
/// An abnormal window that was seen longer ago decided nothing now, whatever its score.
const ABNORMAL_AGE_MAX: Duration = Duration::from_secs(60);
/// Trips that may wait for their explanation.
const WAITING_MAX: usize = 64;

/// A trip by a score.
#[derive(Clone, Debug, PartialEq)]
struct Trip {
    machine_id: MachineId,
    trip_id: String,
    cause: TripCause,
    time: EventTime,
    due: Instant,
    /// What was learnt of the sensor in the condition of that moment.
    learnt: Option<SensorBaseline>,
    shaft_hz: Option<f64>,
    /// What was usual of the sensor in that condition.
    usual: Option<UsualSpectrum>,
    /// The window that decided, when it was seen here.
    window: Option<Abnormal>,
    /// The last abnormal one before, or else the first one since: it says much the same.
    nearest: Option<Abnormal>,
}

/// What is known of one sensor.
#[derive(Default)]
struct Known {
    /// By operating condition; the empty name where none is known.
    usual: BTreeMap<String, SpectrumAverage>,
    /// The last ones, oldest first.
    abnormal: VecDeque<Abnormal>,
}

/// A window that voted.
#[derive(Clone, Debug, PartialEq)]
struct Abnormal {
    seen: Instant,
    features: Features,
    spectrum: ReducedSpectrum,
    score: WindowScore,
    sample_rate_hz: f64,
    window_samples: usize,
}

/// Explains the trips of all machines.
pub(super) struct Explaining {
    store: Arc<ExplanationStore>,
    machines: BTreeMap<MachineId, Machine>,
    /// Turns a minute by the sensor that measures them.
    speeds: BTreeMap<SensorId, Option<f64>>,
    known: BTreeMap<SensorId, Known>,
    waiting: VecDeque<Trip>,
}

impl Explaining {
    /// Knows nothing yet.
    pub(super) fn new(settings: &Settings) -> Self {
        let folder = Path::join(&settings.device.data_dir, FOLDER);
        let mut this = Self {
            store: Arc::new(ExplanationStore::new(folder, COUNT_MAX)),
            machines: BTreeMap::new(),
            speeds: BTreeMap::new(),
            known: BTreeMap::new(),
            waiting: VecDeque::new(),
        };
        this.set_machines(settings);
        this
    }

    /// Takes other settings.
    pub(super) fn set_machines(&mut self, settings: &Settings) {
        self.machines =
            settings.machines.iter().map(|machine| (machine.id.clone(), machine.clone())).collect();
        let speeds = settings.machines.iter().filter_map(|it| it.shaft_speed_sensor.clone());
        let known = |sensor: &SensorId| self.speeds.get(sensor).copied().flatten();
        self.speeds = speeds.map(|sensor| (sensor.clone(), known(&sensor))).collect();
        let scored = settings.scored_sensors();
        self.known.retain(|sensor, _| scored.contains_key(sensor));
    }

    /// Takes a reading, which may be of a shaft's speed.
    pub(super) fn handle_reading(&mut self, sensor: &SensorId, value: f64) {
        if let Some(speed) = self.speeds.get_mut(sensor) {
            *speed = Some(value).filter(|value| value.is_finite());
        }
    }

    /// Takes a window that a model has scored, of a machine that ran in this condition.
    pub(super) fn handle_window(
        &mut self,
        sensor: &SensorId,
        judged: &Judged<'_>,
        condition: Current<'_>,
    ) {
        let Some(score) = judged.score else { return };
        let (window, power) = (judged.window, judged.extractor.power_spectrum());
        let resolution_hz = window.sample_rate_hz / window.samples.len() as f64;
        if !self.known.contains_key(sensor) {
            self.known.insert(sensor.clone(), Known::default());
        }
        let Some(known) = self.known.get_mut(sensor) else { return };
        if !score.is_abnormal() {
            let name = condition.name().unwrap_or_default();
            match known.usual.get_mut(name) {
                Some(usual) => usual.handle_window(resolution_hz, power),
                None => {
                    let mut usual = SpectrumAverage::new(USUAL_WINDOWS);
                    usual.handle_window(resolution_hz, power);
                    known.usual.insert(name.to_owned(), usual);
                }
            }
            return;
        }
        let abnormal = Abnormal {
            seen: Instant::now(),
            features: judged.features().clone(),
            spectrum: ReducedSpectrum::of(resolution_hz, power),
            score,
            sample_rate_hz: window.sample_rate_hz,
            window_samples: window.samples.len(),
        };
        let is_waited_for = |trip: &&mut Trip| {
            trip.window.is_none() && trip.cause.sensor().is_some_and(|of| of == sensor)
        };
        for trip in self.waiting.iter_mut().filter(is_waited_for) {
            if is_of(&trip.cause, &abnormal) {
                trip.window = Some(abnormal.clone());
                break;
            }
            if trip.nearest.is_none() {
                trip.nearest = Some(abnormal.clone());
            }
        }
        if known.abnormal.len() == ABNORMAL_MAX {
            known.abnormal.pop_front();
        }
        known.abnormal.push_back(abnormal);
    }

    /// Takes note of a trip; one that no score brought about needs no explanation.
    pub(super) fn handle_trip(
        &mut self,
        machine_id: MachineId,
        trip_id: String,
        cause: TripCause,
        time: EventTime,
        calibration: &Calibration,
    ) {
        let sensor = match &cause {
            TripCause::Score { sensor, .. } => sensor,
            TripCause::Limit { .. }
            | TripCause::Silence { .. }
            | TripCause::SensorFault { .. }
            | TripCause::UnknownLatch
            | TripCause::Restart
            | TripCause::Ordered { .. } => return,
        };
        if self.waiting.len() >= WAITING_MAX {
            warn!(%machine_id, trip_id, "trip not explained: {WAITING_MAX} others wait for it");
            return;
        }
        let now = Instant::now();
        let known = self.known.get(sensor);
        let is_recent = |it: &&Abnormal| now.saturating_duration_since(it.seen) <= ABNORMAL_AGE_MAX;
        let recent = || known.into_iter().flat_map(|known| &known.abnormal).filter(is_recent);
        // Of two that are equal to the last digit the later one may be behind the trip.
        let window = recent().find(|it| is_of(&cause, it)).cloned();
        let nearest = recent().next_back().cloned();
        let learnt = calibration.usual(&machine_id, sensor, now).cloned();
        let condition = calibration.current(&machine_id, now).name().unwrap_or_default();
        let usual = known.and_then(|known| {
            let usual = known.usual.get(condition)?;
            let (windows, spectrum) = (usual.windows(), usual.spectrum()?.clone());
            Some(UsualSpectrum { windows, spectrum })
        });
        let machine = self.machines.get(&machine_id);
        let speed = machine.and_then(|machine| machine.shaft_speed_sensor.as_ref());
        let measured = speed.and_then(|sensor| self.speeds.get(sensor).copied().flatten());
        let fixed = machine.and_then(|machine| machine.shaft_rpm);
        let shaft_hz = measured.or(fixed).map(|rpm| rpm / 60.0);
        let due = now + DELAY;
        self.waiting.push_back(Trip {
            machine_id,
            trip_id,
            cause,
            time,
            due,
            learnt,
            shaft_hz,
            usual,
            window,
            nearest,
        });
    }

    /// When the next trip is due to be explained.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.front().map(|trip| trip.due)
    }

    /// Explains what is due, on a thread that may wait for the disk.
    pub(super) fn handle_timeout(&mut self, now: Instant, analysis: &mut Analysis) {
        while let Some(trip) = self.waiting.pop_front_if(|trip| trip.due <= now) {
            let Some(explanation) = self.explain(&trip, analysis) else {
                warn!(trip_id = trip.trip_id, "trip not explained: its windows were not seen here");
                continue;
            };
            let store = Arc::clone(&self.store);
            // Nobody waits: the file is for people.
            drop(tokio::task::spawn_blocking(move || match store.write(&explanation) {
                Ok(()) => {
                    info!(trip_id = explanation.trip_id, "trip explained: edge-module explain")
                }
                Err(error) => warn!(trip_id = explanation.trip_id, %error, "explanation not kept"),
            }));
        }
    }

    fn explain(&self, trip: &Trip, analysis: &mut Analysis) -> Option<Explanation> {
        let sensor = trip.cause.sensor()?;
        // The window that decided was perhaps not judged here, after a loss of the connection.
        let abnormal = trip.window.as_ref().or(trip.nearest.as_ref())?;
        let learnt = trip.learnt.as_ref();
        let contributions = analysis.contributions(sensor, &abnormal.features, learnt);
        let bundle = analysis.bundle_of(sensor)?;
        let machine = self.machines.get(&trip.machine_id)?;
        let bearings = machine.bearings.iter().filter_map(|bearing| {
            let frequencies = bearing.geometry().frequencies().ok()?;
            Some(NamedBearing { name: bearing.name.clone(), frequencies })
        });
        Some(Explanation {
            format: FORMAT,
            trip_id: trip.trip_id.clone(),
            machine_id: trip.machine_id.clone(),
            sensor_id: sensor.clone(),
            time: trip.time,
            rule: trip.cause.rule().to_owned(),
            cause: trip.cause.as_str().to_owned(),
            score: abnormal.score.score,
            threshold: abnormal.score.threshold,
            model: bundle.identity(),
            band_edges_hz: bundle.metadata().features.band_edges_hz.clone(),
            contributions,
            sample_rate_hz: abnormal.sample_rate_hz,
            window_samples: abnormal.window_samples,
            unit: Some(bundle.metadata().input.unit.clone()),
            spectrum: abnormal.spectrum.clone(),
            usual: trip.usual.clone(),
            shaft_hz: trip.shaft_hz,
            bearings: bearings.collect(),
        })
    }
}

/// Whether a window of the sensor that tripped is the one that decided.
fn is_of(cause: &TripCause, abnormal: &Abnormal) -> bool {
    match cause {
        TripCause::Score { score, .. } => *score == abnormal.score.score,
        TripCause::Limit { .. }
        | TripCause::Silence { .. }
        | TripCause::SensorFault { .. }
        | TripCause::UnknownLatch
        | TripCause::Restart
        | TripCause::Ordered { .. } => false,
    }
}

#[cfg(all(test, feature = "tflite"))]
mod tests;
