//! The model's vote on one sensor: one bit a window, the newest lowest.

use serde::Serialize;
use shared_proto::model::SensorId;

use super::action::TripCause;
use super::response::Response;
use super::settings::ScoreVote;

/// What a model says of one window, and what it is held against. Models differ by sensor, so each window brings its threshold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WindowScore {
    /// The model's answer as it gave it, in natural logarithmic odds.
    pub logit: f64,
    /// The answer from 0 to 1, on the scale of the threshold: what was learnt of the machine is in it.
    pub score: f64,
    /// At or above it the window is abnormal, 0 to 1.
    pub threshold: f64,
}

impl WindowScore {
    /// Whether the window is abnormal.
    #[must_use]
    pub fn is_abnormal(&self) -> bool {
        self.score >= self.threshold
    }
}

/// The last windows of a sensor and what they have come to.
#[derive(Debug, Default)]
pub(super) struct Votes {
    pub(super) response: Response,
    /// Score of the last window, and what it was held against.
    latest: (f64, f64),
    windows: u64,
}

impl Votes {
    /// Takes the finite score of a window.
    pub(super) fn push(&mut self, score: f64, threshold: f64) {
        self.latest = (score, threshold);
        self.windows = (self.windows << 1) | u64::from(score >= threshold);
    }

    /// Forgets the windows.
    pub(super) const fn restart(&mut self) {
        self.windows = 0;
    }

    /// Votes among the last `of` windows, `of` from 1 to 64.
    pub(super) const fn count(&self, of: u32) -> u32 {
        (self.windows << (u64::BITS - of)).count_ones()
    }

    /// What enough votes are reported as.
    pub(super) fn cause(&self, sensor: &SensorId, rule: &ScoreVote) -> TripCause {
        TripCause::Score {
            sensor: sensor.clone(),
            score: self.latest.0,
            threshold: self.latest.1,
            votes: self.count(rule.of),
        }
    }
}
