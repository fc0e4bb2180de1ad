//! Every limit of the settings as a gauge, so that an operator sees how near each one is.
//!
//! `edge_limit{name="journal.queue-length"}` is the limit, `edge_in_use{name="journal.queue-length"}` what is in use of it,
//! where the program knows. Names are the keys of the settings; durations are in seconds.

use crate::config::Keys;
use crate::telemetry;

/// Numbers among the settings that limit nothing.
pub const NOT_LIMITS: [&str; 7] = [
    "deadband.absolute",
    "deadband.percent",
    "deadband.score",
    "mqtt.port",
    "protection.background-nice",
    "protection.nice",
    "vibration.hop-samples",
];
/// Tables whose numbers are rules of the plant, not limits of the program; their names are the plant's.
pub const NOT_LIMITS_BELOW: [&str; 5] =
    ["aggregation", "deadband.always-above", "deadband.rules", "kafka.properties", "machines"];

/// Whether a key of the settings is a limit.
#[must_use]
pub fn is_limit(key: &str) -> bool {
    let is_below =
        |table: &&str| key.strip_prefix(*table).is_some_and(|rest| rest.starts_with(['.', '[']));
    !NOT_LIMITS.contains(&key) && !NOT_LIMITS_BELOW.iter().any(is_below)
}

/// Shows the limits in force.
pub fn show(keys: &Keys) {
    for (key, limit) in keys.numbers().filter(|(key, _)| is_limit(key)) {
        metrics::gauge!(telemetry::LIMIT, "name" => key.to_owned()).set(limit);
    }
}

/// Shows what is in use of a limit; `name` is the key of its setting.
pub fn show_use(name: &'static str, in_use: usize) {
    metrics::gauge!(telemetry::IN_USE, "name" => name).set(in_use as f64);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Settings;

    /// Keys with numbers or durations in the text of the file, read without the program's own parser.
    fn numeric_keys(text: &str) -> Vec<String> {
        let mut table = String::new();
        let mut keys = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                table = format!("{name}.");
            } else if let Some((key, value)) = line.split_once(" = ") {
                let value = value.trim_matches('"');
                let is_number = value.parse::<f64>().is_ok();
                let unit = value.trim_start_matches(|c: char| c.is_ascii_digit());
                let is_duration =
                    unit != value && ["ns", "us", "ms", "s", "m", "h"].contains(&unit);
                if is_number || is_duration {
                    keys.push(format!("{table}{key}"));
                }
            }
        }
        keys
    }

    #[test]
    fn each_number_of_the_defaults_is_a_gauge_or_on_the_list_of_those_that_limit_nothing() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let (_, keys) = Settings::load_with_keys(None::<&Path>).expect("defaults are valid");
        metrics::with_local_recorder(&recorder, || show(&keys));
        let shown = recorder.handle().render();
        let numeric = numeric_keys(include_str!("../config/default.toml"));
        assert!(numeric.len() > 35, "{numeric:?}");
        for key in &numeric {
            let is_shown = shown.contains(&format!("{}{{name=\"{key}\"}}", telemetry::LIMIT));
            let is_listed = NOT_LIMITS.contains(&key.as_str());
            assert!(is_shown != is_listed, "{key}: shown {is_shown}, listed {is_listed}");
        }
        for key in NOT_LIMITS {
            assert!(numeric.iter().any(|numeric| numeric == key), "{key} is no setting any more");
        }
        let length = "edge_limit{name=\"journal.queue-length\"} 8192";
        assert!(shown.contains(length), "{shown}");
        assert!(shown.contains("edge_limit{name=\"protection.confirmation-deadline\"} 2"));
    }

    #[test]
    fn rules_of_the_plant_are_no_limits() {
        assert!(!is_limit("machines[0].limits[1].above"));
        assert!(!is_limit("deadband.always-above.temperature"));
        assert!(is_limit("deadband.sensors-max"));
    }
}
