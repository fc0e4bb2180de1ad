//! A model beside the one in force, on the same samples, without a say: what would have been decided otherwise.
//!
//! Runs on the journal's path, whose blocks are those of the stop path, and never on the stop path itself.

use std::collections::BTreeMap;
use std::fmt;

use edge_core::interlock::WindowScore;
use serde::Serialize;
use shared_proto::model::{SensorId, WaveformBlock};

use crate::analysis::{Analysis, Judged, Latency, LatencySummary, Learnt};
use crate::config::Settings;
use crate::scoring::{Bundle, Models};

/// A model in its shadow time.
pub struct Shadow {
    analysis: Analysis,
    name: String,
    /// Votes that are enough, of so many windows, by sensor.
    votes: BTreeMap<SensorId, (u32, u32)>,
    /// Of the model in force and of the new one.
    tallies: BTreeMap<SensorId, [Tally; 2]>,
}

/// What one model said of one sensor.
#[derive(Clone, Debug, Default)]
struct Tally {
    windows: u64,
    abnormal: u64,
    /// One bit a window, the newest lowest.
    last: u64,
    is_enough: bool,
    decisions: u64,
    score_max: f64,
}

/// What one model said of one sensor in the shadow time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Said {
    /// Windows scored.
    pub windows: u64,
    /// Windows at or above the threshold.
    pub abnormal: u64,
    /// How often the votes of the machine were enough: so often it would have tripped, or alarmed.
    pub decisions: u64,
    /// Highest score.
    pub score_max: f64,
}

/// Both models on one sensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Compared {
    /// The model in force; no windows where none was.
    pub in_force: Said,
    /// The new one.
    pub new: Said,
}

/// What came of a shadow time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ShadowReport {
    /// By sensor.
    pub sensors: BTreeMap<SensorId, Compared>,
    /// What windows took with the new model, on the journal's path.
    pub latency: LatencySummary,
    /// Whether more than one in ten took longer than the budget.
    pub is_slow: bool,
}

impl Shadow {
    /// A shadow of the sensors that the settings give to the model called `name`.
    #[must_use]
    pub fn new(settings: &Settings, name: &str, bundle: Bundle) -> Self {
        let votes = settings.machines.iter().flat_map(|machine| {
            let of_model = machine.scored_sensors.iter().filter(|scored| scored.model == name);
            of_model.map(|scored| (scored.sensor.clone(), (machine.votes, machine.of)))
        });
        Self {
            votes: votes.collect(),
            analysis: Analysis::new(settings, &Models::from([(name.to_owned(), bundle)])),
            name: name.to_owned(),
            tallies: BTreeMap::new(),
        }
    }

    /// Whether the model would score this sensor.
    #[must_use]
    pub fn scores(&self, sensor: &SensorId) -> bool {
        self.votes.contains_key(sensor)
    }

    /// The bundle in the shadow.
    #[must_use]
    pub fn bundle_of(&self, sensor: &SensorId) -> Option<&Bundle> {
        self.analysis.bundle_of(sensor)
    }

    /// Takes what the model in force said of a window of the same block.
    pub fn note_in_force(&mut self, sensor: &SensorId, score: Option<WindowScore>) {
        self.note(sensor, score, 0);
    }

    /// Takes a block that the model in force has judged. `learnt` is what is known of the sensor's machine, if it was learnt with this model.
    pub fn handle_block(&mut self, block: &WaveformBlock, learnt: Option<Learnt<'_>>) {
        let mut scores = Vec::new();
        let judge = |judged: &Judged<'_>| scores.push(judged.score);
        // Over a limit: then neither model has judged it, and it was told.
        drop(self.analysis.handle_block(block, learnt, judge));
        for score in scores {
            self.note(&block.sensor_id, score, 1);
        }
    }

    fn note(&mut self, sensor: &SensorId, score: Option<WindowScore>, which: usize) {
        let (Some(score), Some((votes, of))) = (score, self.votes.get(sensor)) else { return };
        self.tallies.entry(sensor.clone()).or_default()[which].push(score, *votes, *of);
    }

    /// What was seen so far; `budget` is the longest time for a window.
    #[must_use]
    pub fn report(&self, budget: std::time::Duration) -> ShadowReport {
        let compared =
            |[in_force, new]: &[Tally; 2]| Compared { in_force: in_force.said(), new: new.said() };
        let latency = self.analysis.latency(&self.name);
        ShadowReport {
            sensors: self
                .tallies
                .iter()
                .map(|(sensor, tallies)| (sensor.clone(), compared(tallies)))
                .collect(),
            latency: latency.map(Latency::summary).unwrap_or_default(),
            is_slow: latency.is_some_and(|latency| latency.is_over(budget)),
        }
    }
}

impl Tally {
    fn push(&mut self, score: WindowScore, votes: u32, of: u32) {
        self.windows += 1;
        self.abnormal += u64::from(score.is_abnormal());
        self.score_max = self.score_max.max(score.score);
        self.last = (self.last << 1) | u64::from(score.is_abnormal());
        // `of` is 1 to 64.
        let count = (self.last << (u64::BITS - of)).count_ones();
        let was_enough = std::mem::replace(&mut self.is_enough, count >= votes);
        self.decisions += u64::from(self.is_enough && !was_enough);
    }

    fn said(&self) -> Said {
        let Self { windows, abnormal, decisions, score_max, .. } = *self;
        Said { windows, abnormal, decisions, score_max }
    }
}

impl ShadowReport {
    /// Windows that the new model scored.
    #[must_use]
    pub fn windows(&self) -> u64 {
        self.sensors.values().map(|compared| compared.new.windows).sum()
    }

    /// A sensor on which the new model decided something else than the one in force, where there was one.
    #[must_use]
    pub fn disagreement(&self) -> Option<String> {
        let differs = |compared: &Compared| {
            let (in_force, new) = (&compared.in_force, &compared.new);
            in_force.windows > 0 && (in_force.decisions > 0) != (new.decisions > 0)
        };
        let (sensor, compared) = self.sensors.iter().find(|(_, compared)| differs(compared))?;
        let (in_force, new) = (&compared.in_force, &compared.new);
        Some(format!(
            "on {sensor} it would have decided {} times where the model in force decided {} times ({} of {} windows abnormal, {} of {} before)",
            new.decisions,
            in_force.decisions,
            new.abnormal,
            new.windows,
            in_force.abnormal,
            in_force.windows
        ))
    }
}

impl fmt::Display for ShadowReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (sensor, Compared { in_force, new }) in &self.sensors {
            write!(
                formatter,
                "{sensor}: {} of {} windows abnormal, highest score {:.4}, {} decisions; before {} of {}, {:.4}, {}; ",
                new.abnormal,
                new.windows,
                new.score_max,
                new.decisions,
                in_force.abnormal,
                in_force.windows,
                in_force.score_max,
                in_force.decisions
            )?;
        }
        let LatencySummary { windows, p50_micros, p99_micros } = self.latency;
        write!(formatter, "{windows} windows took p50 {p50_micros} us, p99 {p99_micros} us")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(score: f64) -> WindowScore {
        WindowScore { logit: 0.0, score, threshold: 0.5 }
    }

    fn tally(scores: &[f64]) -> Tally {
        let mut tally = Tally::default();
        scores.iter().for_each(|score| tally.push(window(*score), 2, 3));
        tally
    }

    #[test]
    fn votes_are_counted_as_decisions_when_they_become_enough() {
        let check = |scores: &[f64], decisions: u64| {
            assert_eq!(tally(scores).said().decisions, decisions, "{scores:?}");
        };
        check(&[0.9], 0);
        check(&[0.9, 0.5], 1);
        check(&[0.9, 0.1, 0.9], 1);
        check(&[0.9, 0.1, 0.1, 0.9], 0);
        check(&[0.9, 0.9, 0.9, 0.9, 0.0, 0.0, 0.9, 0.9], 2);
    }

    #[test]
    fn a_disagreement_is_a_decision_that_only_one_took() {
        let check = |in_force: &[f64], new: &[f64], expected: bool| {
            let compared = Compared { in_force: tally(in_force).said(), new: tally(new).said() };
            let sensor = SensorId::new("m/a").expect("valid");
            let report =
                ShadowReport { sensors: [(sensor, compared)].into(), ..Default::default() };
            assert_eq!(report.disagreement().is_some(), expected, "{report}");
        };
        check(&[0.1, 0.1], &[0.1, 0.1], false);
        check(&[0.9, 0.9], &[0.9, 0.1, 0.9], false);
        check(&[0.1, 0.1], &[0.9, 0.9], true);
        check(&[0.9, 0.9], &[0.1, 0.1], true);
        // One abnormal window is no decision, and without a model in force there is nobody to disagree with.
        check(&[0.1, 0.1], &[0.9, 0.1], false);
        check(&[], &[0.9, 0.9], false);
    }
}
