//! The precision of rules and models as metrics, from the lake, by the instance that maintains it.

use metrics::gauge;
use shared_proto::model::EventTime;

use super::lake;
use super::names;
use super::precision::{Group, precision};
use crate::config;
use crate::sink::delta::LakeError;

/// Alerts and trips that are older count no more.
const REACH_DAYS: i64 = 90;
const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Names of models come from devices: of more, those that come first in the alphabet.
const NAMES_MAX: usize = 100;

/// Reads the alerts, outcomes and trips of the last 90 days and sets the gauges.
///
/// # Errors
/// The lake cannot be read.
pub async fn measure(settings: &config::Lake, now: EventTime) -> Result<(), LakeError> {
    let since = now.saturating_add_micros(-REACH_DAYS * MICROS_PER_DAY);
    let rows = lake::read(settings, Some(since)).await?;
    let report = precision(&rows.alerts, &rows.outcomes, &rows.trips);
    tell("rule", &report.rules);
    tell("model", &report.models);
    Ok(())
}

fn tell(kind: &'static str, groups: &[Group]) {
    for group in groups.iter().take(NAMES_MAX) {
        let labels = |verdict: &'static str| {
            [
                ("kind", kind.to_owned()),
                ("name", group.name.clone()),
                ("verdict", verdict.to_owned()),
            ]
        };
        let found = &group.figures;
        let counts = [
            ("confirmed", found.confirmed),
            ("false-alarm", found.false_alarms),
            ("none", found.without_outcome),
        ];
        for (verdict, count) in counts {
            gauge!(names::JUDGED_ALERTS, &labels(verdict)).set(count as f64);
        }
        // Without verdicts there is none.
        if let Some(precision) = found.precision {
            gauge!(names::PRECISION_RATIO, "kind" => kind, "name" => group.name.clone())
                .set(precision);
        }
    }
}
