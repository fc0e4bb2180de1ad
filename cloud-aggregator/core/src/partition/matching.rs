//! Which rules a reading matches, and in which windows.

use shared_proto::model::{EventTime, MetricType, Quality, Reading};

use super::Unmatched;
use crate::filter::Residual;
use crate::rule::{GroupBy, Rule};
use crate::window::{Match, RuleIndex, window_starts};

/// The rules that readings of one metric type may match.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct MatchingRules {
    rules: Vec<(RuleIndex, Residual)>,
    is_any_by_machine: bool,
}

/// What one reading matches.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) by_sensor: Vec<Match>,
    pub(super) by_machine: Vec<Match>,
}

impl Found {
    pub(super) fn is_empty(&self) -> bool {
        self.by_sensor.is_empty() && self.by_machine.is_empty()
    }
}

impl MatchingRules {
    pub(super) fn of(metric_type: &MetricType, rules: &[Rule]) -> Self {
        let left =
            |(index, rule): (RuleIndex, &Rule)| Some((index, rule.filter.given(metric_type)?));
        let matching: Vec<_> = (0..).zip(rules).filter_map(left).collect();
        let by_machine =
            |(index, _): &(RuleIndex, Residual)| rules[usize::from(*index)].by == GroupBy::Machine;
        Self { is_any_by_machine: matching.iter().any(by_machine), rules: matching }
    }

    pub(super) fn is_any_by_machine(&self) -> bool {
        self.is_any_by_machine
    }

    /// Collects the matches of a reading; windows of its machine that end at or before `machine_horizon` are forgotten.
    pub(super) fn find(
        &self,
        reading: &Reading,
        rules: &[Rule],
        since: &[EventTime],
        machine_horizon: Option<EventTime>,
        found: &mut Found,
        unmatched: &mut Unmatched,
    ) {
        found.by_sensor.clear();
        found.by_machine.clear();
        if reading.quality == Some(Quality::Bad) {
            return;
        }
        for (index, residual) in &self.rules {
            if !residual.matches(reading) {
                continue;
            }
            let position = usize::from(*index);
            let rule = &rules[position];
            let (timestamp, value) = (reading.timestamp, reading.value);
            let matches = window_starts(timestamp, rule, since[position]).map(|start| Match {
                rule: *index,
                start,
                timestamp,
                value,
            });
            match (rule.by, machine_horizon) {
                (GroupBy::Sensor, _) => found.by_sensor.extend(matches),
                (GroupBy::Machine, None) => unmatched.without_machine += 1,
                (GroupBy::Machine, Some(horizon)) => {
                    let (held, is_held) = (found.by_machine.len(), |found: &Match| {
                        found.start.saturating_add_micros(rule.window.get()) > horizon
                    });
                    let overlap = window_starts(timestamp, rule, since[position]).count();
                    found.by_machine.extend(matches.filter(is_held));
                    let behind = overlap - (found.by_machine.len() - held);
                    unmatched.behind_machine += behind as u64;
                }
            }
        }
    }
}

/// Where each old rule stands among the new ones, if it still counts the same readings in the same windows.
pub(super) fn new_positions(old: &[Rule], new: &[Rule]) -> Vec<Option<RuleIndex>> {
    old.iter()
        .map(|rule| (0..).zip(new).find(|(_, other)| rule.counts_like(other)).map(|(i, _)| i))
        .collect()
}
