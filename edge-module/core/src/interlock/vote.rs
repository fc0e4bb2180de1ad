//! The model's vote on one sensor: one bit a window, the newest lowest.

use shared_proto::model::SensorId;

use super::action::TripCause;
use super::response::Response;
use super::settings::ScoreVote;

/// The last windows of a sensor and what they have come to.
#[derive(Debug, Default)]
pub(super) struct Votes {
    pub(super) response: Response,
    /// Score of the last window.
    latest: f64,
    windows: u64,
}

impl Votes {
    /// Takes the finite score of a window.
    pub(super) fn push(&mut self, score: f64, threshold: f64) {
        self.latest = score;
        self.windows = (self.windows << 1) | u64::from(score >= threshold);
    }

    /// Votes among the last `of` windows, `of` from 1 to 64.
    pub(super) const fn count(&self, of: u32) -> u32 {
        (self.windows << (u64::BITS - of)).count_ones()
    }

    /// What enough votes are reported as.
    pub(super) fn cause(&self, sensor: &SensorId, rule: &ScoreVote) -> TripCause {
        TripCause::Score {
            sensor: sensor.clone(),
            score: self.latest,
            threshold: rule.threshold,
            votes: self.count(rule.of),
        }
    }
}
