//! What a trip by a model's score is explained with: the spectrum that is usual of each scored sensor, its last abnormal window, and what
//! drove that. Written to the data folder for `edge-module explain`.
//!
//! The stop path tells of a trip at once; the window that decided may be a little behind on this path. So an explanation is made
//! [`DELAY`] later, of the newest abnormal window of its sensor.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_core::explanation::{ReducedSpectrum, SpectrumAverage};
use edge_core::features::Features;
use edge_core::interlock::{TripCause, WindowScore};
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
}

/// What is known of one sensor.
struct Known {
    usual: SpectrumAverage,
    abnormal: Option<Abnormal>,
}

/// The last window that voted.
struct Abnormal {
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

    /// Takes a window that a model has scored.
    pub(super) fn handle_window(&mut self, sensor: &SensorId, judged: &Judged<'_>) {
        let Some(score) = judged.score else { return };
        let (window, power) = (judged.window, judged.extractor.power_spectrum());
        let resolution_hz = window.sample_rate_hz / window.samples.len() as f64;
        if !self.known.contains_key(sensor) {
            let known = Known { usual: SpectrumAverage::new(USUAL_WINDOWS), abnormal: None };
            self.known.insert(sensor.clone(), known);
        }
        let Some(known) = self.known.get_mut(sensor) else { return };
        if score.is_abnormal() {
            known.abnormal = Some(Abnormal {
                features: judged.features().clone(),
                spectrum: ReducedSpectrum::of(resolution_hz, power),
                score,
                sample_rate_hz: window.sample_rate_hz,
                window_samples: window.samples.len(),
            });
        } else {
            known.usual.handle_window(resolution_hz, power);
        }
    }

    /// Takes note of a trip; one that no score brought about needs no explanation.
    pub(super) fn handle_trip(
        &mut self,
        machine_id: MachineId,
        trip_id: String,
        cause: TripCause,
        time: EventTime,
    ) {
        match &cause {
            TripCause::Score { .. } => {}
            TripCause::Limit { .. }
            | TripCause::Silence { .. }
            | TripCause::SensorFault { .. }
            | TripCause::UnknownLatch
            | TripCause::Restart => return,
        }
        if self.waiting.len() >= WAITING_MAX {
            warn!(%machine_id, trip_id, "trip not explained: {WAITING_MAX} others wait for it");
            return;
        }
        let due = Instant::now() + DELAY;
        self.waiting.push_back(Trip { machine_id, trip_id, cause, time, due });
    }

    /// When the next trip is due to be explained.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.front().map(|trip| trip.due)
    }

    /// Explains what is due, on a thread that may wait for the disk.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        analysis: &mut Analysis,
        calibration: &Calibration,
    ) {
        while let Some(trip) = self.waiting.pop_front_if(|trip| trip.due <= now) {
            let Some(explanation) = self.explain(&trip, analysis, calibration, now) else {
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

    fn explain(
        &self,
        trip: &Trip,
        analysis: &mut Analysis,
        calibration: &Calibration,
        now: Instant,
    ) -> Option<Explanation> {
        let sensor = trip.cause.sensor()?;
        let known = self.known.get(sensor)?;
        let abnormal = known.abnormal.as_ref()?;
        let usual = calibration.usual(&trip.machine_id, sensor, now);
        let contributions = analysis.contributions(sensor, &abnormal.features, usual);
        let bundle = analysis.bundle_of(sensor)?;
        let machine = self.machines.get(&trip.machine_id)?;
        let bearings = machine.bearings.iter().filter_map(|bearing| {
            let frequencies = bearing.geometry().frequencies().ok()?;
            Some(NamedBearing { name: bearing.name.clone(), frequencies })
        });
        let measured = machine.shaft_speed_sensor.as_ref();
        let measured = measured.and_then(|sensor| self.speeds.get(sensor).copied().flatten());
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
            usual: known.usual.spectrum().map(|spectrum| UsualSpectrum {
                windows: known.usual.windows(),
                spectrum: spectrum.clone(),
            }),
            shaft_hz: measured.or(machine.shaft_rpm).map(|rpm| rpm / 60.0),
            bearings: bearings.collect(),
        })
    }
}
