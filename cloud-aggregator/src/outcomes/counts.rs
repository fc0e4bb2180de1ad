//! Counts outcomes as they pass, by verdict and by the rule of the alert that they judge.
//!
//! Which alert is of which rule is remembered for the last 10,000 alerts of this process: an outcome of an older one counts under
//! the rule `unknown`, and the report over the lake knows better.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use metrics::counter;
use shared_proto::model::Outcome;

use super::names;

/// Most alerts remembered.
const ALERTS_MAX: usize = 10_000;
/// Most rules that are a label of their own; the others are `other`.
const RULES_MAX: usize = 64;
const UNKNOWN: &str = "unknown";
const OTHER: &str = "other";

/// Rules of the last alerts, by the names of alerts and trips.
#[derive(Debug, Default)]
pub struct OutcomeCounts {
    rules: BTreeSet<Arc<str>>,
    by_alert: BTreeMap<String, Arc<str>>,
    by_trip: BTreeMap<String, Arc<str>>,
    /// The oldest first.
    order: VecDeque<(String, Option<String>)>,
}

impl OutcomeCounts {
    /// Remembers an alert.
    pub fn note_alert(&mut self, alert_id: &str, trip_id: Option<&str>, rule: &str) {
        if self.by_alert.contains_key(alert_id) {
            return;
        }
        let rule = self.label(rule);
        self.by_alert.insert(alert_id.to_owned(), Arc::clone(&rule));
        if let Some(trip_id) = trip_id {
            self.by_trip.insert(trip_id.to_owned(), rule);
        }
        self.order.push_back((alert_id.to_owned(), trip_id.map(str::to_owned)));
        if self.order.len() > ALERTS_MAX
            && let Some((alert_id, trip_id)) = self.order.pop_front()
        {
            self.by_alert.remove(&alert_id);
            if let Some(trip_id) = trip_id {
                self.by_trip.remove(&trip_id);
            }
        }
    }

    /// Counts one outcome. Returns the rule that it counts under.
    pub fn count(&self, outcome: &Outcome) -> Arc<str> {
        let alert_id = outcome.alert_id.as_ref().map(AsRef::as_ref);
        let trip_id = outcome.trip_id.as_ref().map(AsRef::as_ref);
        let rule = self.rule_of(alert_id, trip_id);
        let labels =
            [("verdict", outcome.verdict.as_str().to_owned()), ("rule", rule.as_ref().to_owned())];
        counter!(names::OUTCOMES_RECEIVED_TOTAL, &labels).increment(1);
        rule
    }

    fn rule_of(&self, alert_id: Option<&str>, trip_id: Option<&str>) -> Arc<str> {
        let by_alert = alert_id.and_then(|id| self.by_alert.get(id));
        let rule = by_alert.or_else(|| trip_id.and_then(|id| self.by_trip.get(id)));
        rule.cloned().unwrap_or_else(|| UNKNOWN.into())
    }

    /// Labels are bounded, though the names of rules come from many edge modules.
    fn label(&mut self, rule: &str) -> Arc<str> {
        if let Some(known) = self.rules.get(rule) {
            return Arc::clone(known);
        }
        if self.rules.len() >= RULES_MAX {
            return OTHER.into();
        }
        let rule: Arc<str> = rule.into();
        self.rules.insert(Arc::clone(&rule));
        rule
    }
}

#[cfg(test)]
mod tests {
    use shared_proto::model::{AlertId, EventTime, MachineId, OutcomeId, OutcomeVerdict, TripId};

    use super::*;

    fn outcome(alert: Option<&str>, trip: Option<&str>) -> Outcome {
        let id = OutcomeId::new("o").expect("valid");
        let machine = MachineId::new("m").expect("valid");
        let time = EventTime::from_micros(0);
        Outcome {
            alert_id: alert.map(|id| AlertId::new(id).expect("valid")),
            trip_id: trip.map(|id| TripId::new(id).expect("valid")),
            ..Outcome::new(id, OutcomeVerdict::Confirmed, machine, time)
        }
    }

    fn alert(number: usize) -> String {
        format!("{number:064x}")
    }

    #[test]
    fn outcomes_count_under_the_rule_of_their_alert_or_trip() {
        let mut counts = OutcomeCounts::default();
        counts.note_alert(&alert(1), None, "hot");
        counts.note_alert(&alert(2), Some("t-1"), "score");
        // Another revision changes nothing.
        counts.note_alert(&alert(1), None, "cold");
        let rule = |alert: Option<&str>, trip| counts.count(&outcome(alert, trip)).to_string();
        assert_eq!(rule(Some(&alert(1)), None), "hot");
        assert_eq!(rule(Some(&alert(2)), None), "score");
        assert_eq!(rule(None, Some("t-1")), "score");
        assert_eq!(rule(Some(&alert(9)), Some("t-1")), "score");
        assert_eq!(rule(Some(&alert(9)), Some("t-9")), UNKNOWN);
        assert_eq!(rule(None, None), UNKNOWN);
    }

    #[test]
    fn alerts_and_labels_are_bounded() {
        let mut counts = OutcomeCounts::default();
        for number in 0..=ALERTS_MAX {
            let trip = format!("t-{number}");
            counts.note_alert(&alert(number), Some(&trip), &format!("rule-{}", number % 100));
        }
        assert_eq!((counts.by_alert.len(), counts.by_trip.len()), (ALERTS_MAX, ALERTS_MAX));
        let rule = |number| counts.count(&outcome(Some(&alert(number)), None)).to_string();
        assert_eq!(rule(0), UNKNOWN, "the oldest is forgotten");
        assert_eq!(
            (rule(1), rule(63), rule(64)),
            ("rule-1".into(), "rule-63".into(), OTHER.into())
        );
    }
}
