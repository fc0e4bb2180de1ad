//! Readings that come to the stop path ready-made, from inputs of a hub.

use crate::backlog::Pieces;
use crate::telemetry;

use super::Protection;

impl Protection {
    /// Judges them at once, as small messages of sensors.
    pub(super) fn handle_input(&mut self, pieces: Pieces) {
        metrics::counter!(telemetry::MQTT_MESSAGES, "session" => "protection").increment(1);
        let pieces = self.backlog.watched_of(pieces);
        self.judge(pieces);
    }
}
