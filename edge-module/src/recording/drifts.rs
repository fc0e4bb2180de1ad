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
        let monitor = self.0.get_mut(machine_id).and_then(|sensors| sensors.get_mut(sensor));
        let Some(monitor) = monitor.and_then(|conditions| conditions.get_mut(condition)) else {
            match DriftMonitor::new(usual.logit_deciles) {
                Ok(monitor) => {
                    let sensors = self.0.entry(machine_id.clone()).or_default();
                    let conditions = sensors.entry(sensor.clone()).or_default();
                    conditions.insert(condition.to_owned(), monitor);
                }
                // A baseline is checked when it is read.
                Err(fault) => error!(%machine_id, %sensor, ?fault, "deciles of a baseline"),
            }
            return;
        };
        monitor.push(score.logit, now);
        if let Some(index) = monitor.index() {
            let (machine_id, sensor_id) = (machine_id.to_string(), sensor.to_string());
            metrics::gauge!(telemetry::SCORE_DRIFT, "machine_id" => machine_id, "sensor_id" => sensor_id)
                .set(index);
        }
    }

    /// Begins anew with a machine: something else was learnt of it.
    pub(super) fn forget(&mut self, machine_id: &MachineId) {
        self.0.remove(machine_id);
    }
}
