//! How far the scores of each sensor have drifted from those that were learnt of its machine, on `/metrics`.

use std::collections::BTreeMap;
use std::time::Instant;

use edge_core::drift::DriftMonitor;
use edge_core::interlock::WindowScore;
use shared_proto::model::{MachineId, SensorId};
use tracing::error;

use crate::calibration::Calibration;
use crate::telemetry;

/// Monitors by machine, sensor and operating condition; made when the first window of a learnt condition comes.
#[derive(Default)]
pub(super) struct Drifts(BTreeMap<MachineId, BTreeMap<SensorId, BTreeMap<String, DriftMonitor>>>);

impl Drifts {
    /// Takes the score of a window. Nothing is known of a machine that was not learnt in the condition that it runs in.
    pub(super) fn note(
        &mut self,
        calibration: &Calibration,
        machine_id: &MachineId,
        sensor: &SensorId,
        score: WindowScore,
        now: Instant,
    ) {
        let Some(usual) = calibration.usual(machine_id, sensor, now) else { return };
        let Some(condition) = calibration.current(machine_id, now).name() else { return };
        if self.monitor(machine_id, sensor, condition).is_none() {
            match DriftMonitor::new(usual.logit_deciles) {
                Ok(monitor) => {
                    let sensors = self.0.entry(machine_id.clone()).or_default();
                    let conditions = sensors.entry(sensor.clone()).or_default();
                    conditions.insert(condition.to_owned(), monitor);
                }
                // A baseline is checked when it is read.
                Err(fault) => error!(%machine_id, %sensor, ?fault, "deciles of a baseline"),
            }
        }
        let Some(monitor) = self.monitor(machine_id, sensor, condition) else { return };
        monitor.push(score.logit, now);
        if let Some(index) = monitor.index() {
            gauge(machine_id, sensor, condition).set(index);
        }
    }

    fn monitor(
        &mut self,
        machine_id: &MachineId,
        sensor: &SensorId,
        condition: &str,
    ) -> Option<&mut DriftMonitor> {
        self.0.get_mut(machine_id)?.get_mut(sensor)?.get_mut(condition)
    }

    /// Begins anew with a machine: something else was learnt of it.
    pub(super) fn forget(&mut self, machine_id: &MachineId) {
        for (sensor, conditions) in self.0.remove(machine_id).unwrap_or_default() {
            for condition in conditions.keys() {
                // Nothing is known: a series cannot be taken back.
                gauge(machine_id, &sensor, condition).set(f64::NAN);
            }
        }
    }
}

fn gauge(machine_id: &MachineId, sensor: &SensorId, condition: &str) -> metrics::Gauge {
    let (machine_id, sensor_id) = (machine_id.to_string(), sensor.to_string());
    let condition = condition.to_owned();
    metrics::gauge!(telemetry::SCORE_DRIFT, "machine_id" => machine_id, "sensor_id" => sensor_id, "condition" => condition)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use edge_core::baseline::{BASELINE_FORMAT, Baseline, SensorBaseline, Spread};
    use edge_core::drift::{DRIFT_LARGE, DRIFT_MODERATE, DRIFT_SPACING, DRIFT_WINDOWS_MIN};
    use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
    use shared_proto::model::EventTime;

    use super::*;
    use crate::calibration::{KeptBaseline, MachineConditions};

    /// Lowest decile of the logits learnt, and the way to the next.
    const LOWEST: f64 = -5.0;
    const STEP: f64 = 0.5;

    fn machine() -> MachineId {
        MachineId::new("press-1").expect("a valid name")
    }

    fn sensor() -> SensorId {
        SensorId::new("press-1/x").expect("a valid name")
    }

    /// A machine without conditions that was learnt.
    fn learnt() -> Calibration {
        let settings = MachineConditions {
            conditions: Vec::new(),
            stale_after: Duration::from_secs(60),
            scored: vec![(sensor(), "default".to_owned())],
        };
        let conditions = settings.version();
        let usual = SensorBaseline {
            model: "motor@1".to_owned(),
            model_sha256: "0".repeat(64),
            windows: 1000,
            running_seconds: 600.0,
            features: BTreeMap::new(),
            logit: Spread { mean: -3.0, deviation: 1.4, min: -5.5, max: -0.5 },
            logit_deciles: std::array::from_fn(|number| LOWEST + STEP * number as f64),
            threshold_logit: 2.0,
        };
        let sensors = BTreeMap::from([(sensor(), usual)]);
        let baseline = Baseline {
            format: BASELINE_FORMAT,
            machine_id: machine(),
            learnt_at: EventTime::from_micros(0),
            operator: "J. Doe".to_owned(),
            conditions: [("any".to_owned(), sensors)].into(),
            not_learnt: BTreeMap::new(),
        };
        let mut calibration = Calibration::default();
        calibration.replace([(machine(), settings)].into());
        calibration.set_baseline(Arc::new(KeptBaseline { conditions, baseline }));
        calibration
    }

    /// Drifts of a machine, a clock, and what `/metrics` shows.
    struct Bench {
        drifts: Drifts,
        calibration: Calibration,
        recorder: PrometheusRecorder,
        now: Instant,
    }

    impl Bench {
        fn new(calibration: Calibration) -> Self {
            let recorder = PrometheusBuilder::new().build_recorder();
            Self { drifts: Drifts::default(), calibration, recorder, now: Instant::now() }
        }

        /// So many windows, spread over the tenths of what was learnt and moved by this much.
        fn note(&mut self, windows: usize, spacing: Duration, moved: f64) {
            for number in 0..windows {
                let logit = LOWEST - STEP / 2.0 + STEP * (number % 10) as f64 + moved;
                let score = WindowScore { logit, score: 0.1, threshold: 0.5 };
                let Self { drifts, calibration, recorder, now } = self;
                *now += spacing;
                metrics::with_local_recorder(recorder, || {
                    drifts.note(calibration, &machine(), &sensor(), score, *now);
                });
            }
        }

        fn index(&self) -> Option<f64> {
            let series = "score_drift_index{machine_id=\"press-1\",sensor_id=\"press-1/x\",condition=\"any\"} ";
            let shown = self.recorder.handle().render();
            let value = shown.lines().find_map(|line| line.strip_prefix(series))?;
            Some(value.parse().expect("a number"))
        }
    }

    #[test]
    fn the_index_is_shown_once_enough_windows_came_and_grows_with_the_scores() {
        let mut bench = Bench::new(learnt());
        bench.note(DRIFT_WINDOWS_MIN - 1, DRIFT_SPACING, 0.0);
        assert_eq!(bench.index(), None, "too few windows");
        bench.note(10, DRIFT_SPACING, 0.0);
        let usual = bench.index().expect("enough windows");
        assert!(usual < DRIFT_MODERATE, "{usual}");
        bench.note(DRIFT_WINDOWS_MIN, DRIFT_SPACING, 4.0 * STEP);
        let moved = bench.index().expect("enough windows");
        assert!(moved > DRIFT_LARGE, "{moved}");

        bench.drifts.forget(&machine());
        bench.note(DRIFT_WINDOWS_MIN + 10, DRIFT_SPACING, 0.0);
        let anew = bench.index().expect("enough windows");
        assert!(anew < DRIFT_MODERATE, "{anew} is of windows before");
    }

    #[test]
    fn windows_that_overlap_are_no_more_witnesses() {
        let mut bench = Bench::new(learnt());
        bench.note(5 * DRIFT_WINDOWS_MIN, DRIFT_SPACING / 10, 4.0 * STEP);
        assert_eq!(bench.index(), None);
    }

    #[test]
    fn of_a_machine_that_was_not_learnt_there_is_no_index() {
        let mut bench = Bench::new(Calibration::default());
        bench.note(2 * DRIFT_WINDOWS_MIN, DRIFT_SPACING, 0.0);
        assert_eq!(bench.index(), None);
    }
}
