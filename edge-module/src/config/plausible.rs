//! Settings that are valid one by one and cannot do together what somebody expects of them.

use std::collections::BTreeSet;

use super::validate::{Faults, overlap};
use super::{DEFAULT_MODEL, Limit, Machine, ScoredSensor, Settings};

const MACHINE: &str = "{machine}";

impl Settings {
    /// Rules that could never act, and topics that are read twice.
    pub(super) fn check_plausible(&self, faults: &mut Faults) {
        for (index, machine) in self.machines.iter().enumerate() {
            for (number, limit) in machine.limits.iter().enumerate() {
                let path = format!("machines[{index}].limits[{number}]");
                check_limit(&path, machine, limit, faults);
            }
        }
        let own = self.protection.topics();
        for filter in self.mqtt.reading_topics.iter().chain(&self.mqtt.waveform_topics) {
            for (path, topic) in own {
                if overlap(&filter.replace(MACHINE, "+"), &topic.replace(MACHINE, "+")) {
                    faults.add(path, format!("{topic:?} is also read as input, by {filter:?}"));
                }
            }
        }
    }

    /// What each machine is watched for, in a line, and what a person may have meant otherwise.
    #[must_use]
    pub fn describe_machines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for machine in &self.machines {
            let limits = machine.limits.iter().map(describe_limit).collect::<Vec<_>>();
            let limits = if limits.is_empty() { "none".to_owned() } else { limits.join("; ") };
            let scored = machine.scored_sensors.iter().map(|ScoredSensor { sensor, model }| {
                let is_named = model != DEFAULT_MODEL;
                let by = if is_named { format!(" by {model}") } else { String::new() };
                format!("{sensor}{by}")
            });
            let scored = scored.collect::<Vec<_>>().join(", ");
            let scored = if scored.is_empty() { "none".to_owned() } else { scored };
            let votes = format!(" ({} votes of {})", machine.votes, machine.of);
            let votes = if machine.scored_sensors.is_empty() { String::new() } else { votes };
            let names = machine.conditions.iter().map(|condition| condition.name.as_str());
            let names = names.collect::<Vec<_>>().join(", ");
            let conditions =
                if names.is_empty() { names } else { format!(", operating conditions {names}") };
            let dry = if machine.dry_run { ", DRY RUN: nothing is stopped" } else { "" };
            lines.push(format!(
                "{}: limits {limits}, scored sensors {scored}{votes}{conditions}{dry}",
                machine.id
            ));
            lines.extend(notes(machine).map(|note| format!("note: {}: {note}", machine.id)));
        }
        lines
    }

    /// Limits on what the model of their sensor does not compute: bands by their number, and the line. `computes` says of a model's
    /// name how many bands it has and whether it looks for a line; nothing of one that is not there.
    #[must_use]
    pub fn beyond_models(&self, computes: impl Fn(&str) -> Option<(usize, bool)>) -> Vec<String> {
        let limits = self
            .machines
            .iter()
            .flat_map(|machine| machine.limits.iter().map(move |limit| (machine, limit)));
        let complaint = |(machine, limit): (&Machine, &Limit)| {
            let (bands, has_line) = computes(machine.model_of(&limit.sensor)?)?;
            let (machine, name, quantity) = (&machine.id, &limit.name, &limit.quantity);
            if quantity == "line" && !has_line {
                return Some(format!(
                    "machine {machine}, limit {name}: line: the model does not look for one (features.line-hz of its bundle)"
                ));
            }
            let number: usize = quantity.strip_prefix("band-")?.parse().ok()?;
            (number >= bands).then(|| {
                format!("machine {machine}, limit {name}: {quantity}: the model has {bands} bands, from band-00")
            })
        };
        limits.filter_map(complaint).collect()
    }
}

fn check_limit(path: &str, machine: &Machine, limit: &Limit, faults: &mut Faults) {
    let is_of_model = limit.quantity.starts_with("band-") || limit.quantity == "line";
    if is_of_model && machine.model_of(&limit.sensor).is_none() {
        let text = format!(
            "{:?}: bands and line are those of the model: add {} to scored-sensors",
            limit.quantity, limit.sensor
        );
        faults.add(format!("{path}.quantity"), text);
    }
    let sensor = machine.sensors.iter().find(|sensor| sensor.id == limit.sensor);
    let Some(range) = sensor.and_then(|sensor| sensor.range) else { return };
    if limit.quantity != "value" {
        return;
    }
    let (min, max, by) = (range.min, range.max, limit.hysteresis);
    if let Some(above) = limit.above {
        if above >= max {
            let text = format!(
                "{above} is never passed: what is over the sensor's range.max of {max} is a sensor fault"
            );
            faults.add(format!("{path}.above"), text);
        } else if above - by < min {
            let text = format!(
                "{by} lets nobody reset: back at {} is below the sensor's range.min of {min}",
                above - by
            );
            faults.add(format!("{path}.hysteresis"), text);
        }
    }
    if let Some(below) = limit.below {
        if below <= min {
            let text = format!(
                "{below} is never passed: what is under the sensor's range.min of {min} is a sensor fault"
            );
            faults.add(format!("{path}.below"), text);
        } else if below + by > max {
            let text = format!(
                "{by} lets nobody reset: back at {} is above the sensor's range.max of {max}",
                below + by
            );
            faults.add(format!("{path}.hysteresis"), text);
        }
    }
}

fn describe_limit(limit: &Limit) -> String {
    let Limit { name, sensor, quantity, above, below, hysteresis, .. } = limit;
    let above = above.map(|above| format!("above {above}, back at {}", above - hysteresis));
    let below = below.map(|below| format!("below {below}, back at {}", below + hysteresis));
    let bounds = above.into_iter().chain(below).collect::<Vec<_>>().join(", or ");
    format!("{name} ({quantity} of {sensor} {bounds})")
}

fn notes(machine: &Machine) -> impl Iterator<Item = String> {
    let named: BTreeSet<_> =
        machine.limits.iter().map(|limit| &limit.sensor).chain(machine.scored()).collect();
    let unnamed = machine.sensors.iter().filter(move |sensor| !named.contains(&sensor.id));
    let unnamed = unnamed.map(|sensor| {
        format!("sensor {} has conditions, and no limit or model looks at it", sensor.id)
    });
    let is_bare = machine.limits.is_empty() && machine.scored_sensors.is_empty();
    let bare = is_bare.then(|| "no limit and no model watches it: nothing stops it".to_owned());
    bare.into_iter().chain(unnamed)
}

#[cfg(test)]
mod tests {
    use crate::config::Settings;
    use crate::config::tests::load as load_text;

    fn load(machine: &str) -> Result<Settings, String> {
        load_text(&format!("[[machines]]\nid = \"press-1\"\n{machine}"))
    }

    fn limit(bound: &str) -> String {
        format!(
            "[[machines.limits]]\nname = \"hot\"\nsensor = \"s\"\nquantity = \"value\"\n{bound}\n\
             [[machines.sensors]]\nid = \"s\"\nrange = {{ min = -50.0, max = 300.0 }}\n"
        )
    }

    #[test]
    fn a_limit_that_could_never_act_or_never_be_reset_is_refused() {
        for (bound, complaint) in [
            ("above = 299.9", ""),
            ("above = 300.0", "machines[0].limits[0].above: 300 is never passed"),
            ("above = 120.0\nhysteresis = 170.0", ""),
            ("above = 120.0\nhysteresis = 171.0", "hysteresis: 171 lets nobody reset"),
            ("below = -50.0", "below: -50 is never passed"),
            ("below = 0.0\nhysteresis = 301.0", "back at 301 is above the sensor's range.max"),
        ] {
            match load(&limit(bound)) {
                Ok(_) => assert_eq!(complaint, "", "{bound} is taken"),
                Err(faults) => {
                    assert!(
                        !complaint.is_empty() && faults.contains(complaint),
                        "{bound}: {faults}"
                    );
                }
            }
        }
    }

    #[test]
    fn bands_need_a_model_that_has_them() {
        let band = "[[machines.limits]]\nname = \"hum\"\nsensor = \"s\"\nquantity = \"band-08\"\nabove = 1.0\n";
        let faults = load(band).expect_err("no model scores it");
        assert!(faults.contains("add s to scored-sensors"), "{faults}");
        let settings =
            load(&format!("scored-sensors = [\"s\"]\n{band}[model]\nbundle-dir = \"b\"\n"))
                .expect("valid");
        assert_eq!(settings.beyond_models(|_| Some((9, false))), [""; 0]);
        let beyond = settings.beyond_models(|_| Some((8, true))).concat();
        assert!(beyond.contains("limit hum: band-08: the model has 8 bands"), "{beyond}");
        let line = band.replace("band-08", "line");
        let faults = load(&line).expect_err("no model scores it");
        assert!(faults.contains("add s to scored-sensors"), "{faults}");
        let settings =
            load(&format!("scored-sensors = [\"s\"]\n{line}[model]\nbundle-dir = \"b\"\n"))
                .expect("valid");
        assert_eq!(settings.beyond_models(|_| Some((0, true))), [""; 0]);
        let beyond = settings.beyond_models(|_| Some((8, false))).concat();
        assert!(beyond.contains("limit hum: line: the model does not look for one"), "{beyond}");
    }

    #[test]
    fn machines_are_described_with_what_may_be_a_mistake() {
        let settings = load("dry-run = true\n[[machines.sensors]]\nid = \"press-1/oli\"\n");
        let lines = settings.expect("valid").describe_machines().join("\n");
        for expected in ["DRY RUN", "press-1/oli has conditions, and no limit", "nothing stops it"]
        {
            assert!(lines.contains(expected), "{expected}: {lines}");
        }
        let lines = load(&limit("above = 120.0\nhysteresis = 10.0")).expect("valid");
        let lines = lines.describe_machines();
        assert_eq!(
            lines,
            ["press-1: limits hot (value of s above 120, back at 110), scored sensors none"]
        );
    }

    #[test]
    fn the_modules_own_topics_are_no_input() {
        let text =
            "[mqtt]\nreading-topics = [\"plant/{machine}/readings\", \"plant/{machine}/state\"]\n";
        let faults = load_text(text).expect_err("refused");
        assert!(
            faults.contains(
                "protection.state-topic: \"plant/{machine}/state\" is also read as input"
            ),
            "{faults}"
        );
    }
}
