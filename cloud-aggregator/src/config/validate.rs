//! What a value must be beyond its type.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aggregator_core::{Filter, GroupBy, OutputMode, SettingsFault, Threshold};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use shared_proto::model::EventTime;

use super::addresses::{check_brokers, check_location, check_storage_option, check_topic};
use super::event_hubs::property_faults;
use super::lake::{credential_faults, has_variable};
use super::{Fault, Rule, Settings, read_secret};

const FOLDERS_RESERVED: [&str; 5] = ["_state", "_maintenance", "_replays", "_forgotten", "_copy"];

#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn extend(&mut self, faults: Vec<Fault>) {
        self.0.extend(faults);
    }

    pub(super) fn add(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.0.push(Fault { path: path.into(), text: text.into() });
    }

    /// Of a key of a rule.
    fn rule(&mut self, (index, rule): (usize, &Rule), key: &str, text: impl std::fmt::Display) {
        self.add(format!("rules[{index}].{key}"), format!("rule {:?}: {text}", rule.name));
    }

    /// Of a key whose text was looked at.
    pub(super) fn text(&mut self, path: impl Into<String>, checked: Result<(), String>) {
        if let Err(text) = checked {
            self.add(path, text);
        }
    }

    pub(super) fn range<T: PartialOrd + std::fmt::Display>(
        &mut self,
        path: &str,
        value: T,
        low: T,
        high: T,
    ) {
        if value < low || value > high {
            self.add(path, format!("{value} is out of range: {low} to {high}"));
        }
    }

    pub(super) fn duration(&mut self, path: &str, value: Duration, low: Duration, high: Duration) {
        if value < low || value > high {
            self.add(path, format!("{value:?} is out of range: {low:?} to {high:?}"));
        }
    }

    pub(super) fn not_empty(&mut self, path: &str, value: &str) {
        if value.trim().is_empty() {
            self.add(path, "is empty");
        }
    }

    pub(super) fn files<'a>(
        &mut self,
        path: &str,
        files: impl IntoIterator<Item = (&'a String, &'a PathBuf)>,
    ) {
        for (key, file) in files {
            if let Err(text) = read_secret(file) {
                self.add(format!("{path}.{key}"), text);
            }
        }
    }
}

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
const MEBIBYTE: u64 = 1024 * 1024;

impl Settings {
    /// Every fault there is; empty means that the settings can be used.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        self.check_kafka(&mut faults);
        self.check_lake(&mut faults);
        self.check_maintenance(&mut faults);
        self.check_rules(&mut faults);
        self.check_trigger(&mut faults);
        self.check_counting(&mut faults);
        self.check_gaps(&mut faults);
        self.check_alerts(&mut faults);
        faults.extend(self.alerting.faults());
        faults.extend(self.api.faults());
        if self.api.is_on() && self.api.listen == self.admin.listen && self.api.listen.port() != 0 {
            faults.add("api.listen", "is admin.listen, too: each needs a port of its own");
        }
        if self.api.is_on() && self.kafka.topics.outcomes.is_empty() {
            faults.add("kafka.topics.outcomes", "is empty although api.token-file is set");
        }
        let millisecond = Duration::from_millis(1);
        faults.range("epoch.records-max", self.epoch.records_max, 1, 50_000_000);
        faults.range("epoch.refused-max", self.epoch.refused_max, 1, 50_000_000);
        faults.range("epoch.bytes-max", self.epoch.bytes_max, 1, 16_384 * MEBIBYTE);
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.telemetry.filter) {
            faults.add("telemetry.filter", error.to_string());
        }
        faults.duration("shutdown.drain-timeout", self.shutdown.drain_timeout, millisecond, DAY);
        faults.0
    }

    fn check_gaps(&self, faults: &mut Faults) {
        let gaps = &self.gaps;
        if !gaps.check_interval.is_zero() {
            faults.duration("gaps.check-interval", gaps.check_interval, SECOND, DAY);
        }
        faults.duration("gaps.patience", gaps.patience, SECOND, DAY);
        faults.duration("gaps.given-up-after", gaps.given_up_after, gaps.patience, DAY * 3_650);
        faults.duration("gaps.look-back", gaps.look_back, Duration::ZERO, DAY * 3_650);
        faults.range("gaps.ranges-max", gaps.ranges_max, 16, 10_000_000);
        faults.range("gaps.gaps-per-device-max", gaps.gaps_per_device_max, 1, 10_000);
    }

    fn check_kafka(&self, faults: &mut Faults) {
        let kafka = &self.kafka;
        faults.text("kafka.brokers", check_brokers(&kafka.brokers));
        faults.not_empty("kafka.group", &kafka.group);
        faults.duration("kafka.metadata-refresh", kafka.metadata_refresh, SECOND / 10, DAY);
        faults.duration("kafka.session-timeout", kafka.session_timeout, SECOND, DAY / 24);
        faults.duration("kafka.request-timeout", kafka.request_timeout, SECOND / 10, DAY / 24);
        faults.range("kafka.prefetch-bytes", kafka.prefetch_bytes, MEBIBYTE, 2_048 * MEBIBYTE);
        faults.range("kafka.batch-records-max", kafka.batch_records_max, 1, 1_000_000);
        faults.range("kafka.batch-bytes-max", kafka.batch_bytes_max, 1, 1 << 30);
        faults.range("kafka.batch-queue-length", kafka.batch_queue_length, 1, 10_000);
        faults.range("kafka.record-bytes-max", kafka.record_bytes_max, 1, 1 << 30);
        faults.files("kafka.property-files", &kafka.property_files);
        let plain = kafka.properties.keys().map(|name| ("properties", name));
        let of_files = kafka.property_files.keys().map(|name| ("property-files", name));
        for (table, property) in plain.chain(of_files) {
            if OWN_PROPERTIES.contains(&property.as_str()) {
                let text = match property.as_str() {
                    "partition.assignment.strategy" => "is decided by kafka.assignment",
                    _ => "is decided by this program and cannot be set",
                };
                faults.add(format!("kafka.{table}.{property}"), text);
            }
        }
        for (property, value) in &kafka.properties {
            let one = ClientConfig::from_iter([(property.clone(), value.clone())]);
            if let Err(KafkaError::ClientConfig(_, text, ..)) = one.create_native_config() {
                faults.add(format!("kafka.properties.{property}"), text);
            }
        }
        self.check_topics(faults);
    }

    fn check_topics(&self, faults: &mut Faults) {
        let topics = &self.kafka.topics;
        let mut seen = BTreeSet::new();
        for (key, topic) in [
            ("topics.temperature", &topics.temperature),
            ("topics.pressure", &topics.pressure),
            ("topics.vibration", &topics.vibration),
            ("topics.machine-events", &topics.machine_events),
            ("topics.dead-letters", &topics.dead_letters),
            ("topics.outcomes", &topics.outcomes),
            ("topics.waveforms", &topics.waveforms),
            ("hub.topic", &self.kafka.hub.topic),
        ] {
            if topic.is_empty() {
                continue;
            }
            faults.text(format!("kafka.{key}"), check_topic(topic));
            if !seen.insert(topic) {
                faults.add(
                    format!("kafka.{key}"),
                    format!("topic {topic:?} is named twice; each topic has one meaning"),
                );
            }
        }
        if seen.is_empty() {
            faults.add("kafka.topics", "every topic is switched off; name at least one");
        }
        self.kafka.hub.check(faults);
        if !self.alerts.topic.is_empty() {
            faults.text("alerts.topic", check_topic(&self.alerts.topic));
            if seen.contains(&self.alerts.topic) {
                faults.add("alerts.topic", "is also read from; name another topic");
            }
        }
    }

    fn check_lake(&self, faults: &mut Faults) {
        let lake = &self.lake;
        faults.text("lake.location", check_location(&lake.location));
        for reserved in FOLDERS_RESERVED {
            if lake.location.trim_end_matches('/').ends_with(reserved) {
                let text = format!("ends with {reserved}, a name this program uses itself");
                faults.add("lake.location", text);
            }
        }
        let plain = lake.storage_options.keys().map(|name| ("storage-options", name));
        let of_files = lake.storage_option_files.keys().map(|name| ("storage-option-files", name));
        for (table, name) in plain.chain(of_files) {
            faults.text(format!("lake.{table}.{name}"), check_storage_option(name));
        }
        faults.files("lake.storage-option-files", &lake.storage_option_files);
        faults.extend(credential_faults(lake, has_variable));
        faults.duration("lake.operation-timeout", lake.operation_timeout, SECOND, DAY);
        faults.duration("lake.retry-min", lake.retry_min, SECOND / 1000, DAY);
        faults.duration("lake.retry-max", lake.retry_max, lake.retry_min, DAY);
        faults.range("lake.file-bytes-max", lake.file_bytes_max, MEBIBYTE, 4_096 * MEBIBYTE);
        faults.range("lake.row-group-rows", lake.row_group_rows, 1, 10_000_000);
        faults.duration("lake.state-grace", lake.state_grace, Duration::ZERO, 365 * DAY);
    }

    fn check_maintenance(&self, faults: &mut Faults) {
        let set = &self.maintenance;
        faults.duration("maintenance.interval", set.interval, SECOND / 10, DAY);
        faults.duration("maintenance.lease", set.lease, SECOND, DAY);
        faults.duration("maintenance.retry-min", set.retry_min, SECOND / 1000, DAY);
        faults.duration("maintenance.retry-max", set.retry_max, set.retry_min, DAY);
        let most = 4_096 * MEBIBYTE;
        faults.range("maintenance.target-file-bytes", set.target_file_bytes, MEBIBYTE, most);
        faults.range("maintenance.files-min", set.files_min, 2, 256);
        faults.duration("maintenance.settle", set.settle, Duration::ZERO, 30 * DAY);
        let memory = set.memory_bytes_max as u64;
        faults.range("maintenance.memory-bytes-max", memory, MEBIBYTE, 16_384 * MEBIBYTE);
        faults.range("maintenance.row-group-rows", set.row_group_rows, 1000, 10_000_000);
        faults.range("maintenance.checkpoint-commits", set.checkpoint_commits, 1, 100_000);
        faults.duration("maintenance.log-retention", set.log_retention, DAY / 24, 3_650 * DAY);
        faults.duration("maintenance.vacuum-interval", set.vacuum_interval, SECOND, 365 * DAY);
        let precision = set.precision_interval;
        faults.duration("maintenance.precision-interval", precision, SECOND, 365 * DAY);
        // Files of an epoch that is being written are older than their commit by this much, at most.
        let waits = self.lake.operation_timeout.saturating_mul(10);
        let floor = self.trigger.epoch_length().saturating_add(waits).max(DAY / 24);
        faults.duration("maintenance.vacuum-retention", set.vacuum_retention, floor, 3_650 * DAY);
        for (table, retention) in set.retention.all() {
            let path = format!("maintenance.retention.{}", table.replace('_', "-"));
            if !retention.is_zero() {
                faults.duration(&path, retention, DAY, 36_500 * DAY);
            }
        }
    }

    fn check_rules(&self, faults: &mut Faults) {
        for (index, rule) in self.rules.iter().enumerate() {
            if let Err(error) = rule.filter.parse::<Filter>() {
                faults.rule((index, rule), "filter", error);
            }
            if let Err(error) = rule.threshold.parse::<Threshold>() {
                faults.rule((index, rule), "threshold", error);
            }
            if group_by(&rule.by).is_none() {
                let text = format!("{:?} is neither \"sensor\" nor \"machine\"", rule.by);
                faults.rule((index, rule), "by", text);
            }
            if output_mode(&rule.output_mode).is_none() {
                let mode = &rule.output_mode;
                let text = format!("{mode:?} is not \"append\", \"update\" or \"complete\"");
                faults.rule((index, rule), "output-mode", text);
            }
        }
    }

    /// Triggers, and which output modes go with them.
    fn check_trigger(&self, faults: &mut Faults) {
        let trigger = &self.trigger;
        let millisecond = Duration::from_millis(1);
        faults.duration("trigger.processing-time", trigger.processing_time, millisecond, DAY);
        let patience = trigger.available_now_patience;
        faults.duration("trigger.available-now-patience", patience, millisecond, DAY);
        if !trigger.is_continuous() {
            return;
        }
        faults.duration("trigger.continuous", trigger.continuous, 100 * millisecond, DAY);
        if trigger.available_now {
            faults.add(
                "trigger.available-now",
                "cannot be combined with trigger.continuous: a drain ends, continuous reading does not; set one of them",
            );
        }
        for (index, rule) in self.rules.iter().enumerate() {
            if output_mode(&rule.output_mode).is_some_and(|mode| mode != OutputMode::Append) {
                let text = format!(
                    "{:?} needs a trigger at which rows are made, and trigger.continuous has none: write \"append\", \
                     or set trigger.continuous to \"0s\"",
                    rule.output_mode
                );
                faults.rule((index, rule), "output-mode", text);
            }
        }
    }

    fn check_counting(&self, faults: &mut Faults) {
        let oldest = &self.counting.oldest_event_time;
        match EventTime::parse(oldest) {
            Some(time) if time > now() => faults.add(
                "counting.oldest-event-time",
                format!("{oldest} is in the future: every reading before it is a dead letter"),
            ),
            Some(_) => {}
            None => faults.add(
                "counting.oldest-event-time",
                format!("{oldest:?} is not RFC 3339 such as 2000-01-01T00:00:00Z"),
            ),
        }
        // Every rule is looked at, so that places are those of the file.
        let rules = self.rules.iter().map(judged_rule).collect();
        if let Err(core_faults) = (aggregator_core::Settings { rules, ..self.core() }).validate() {
            faults.0.extend(core_faults.iter().map(core_fault));
        }
    }

    /// The settings of the core. Faulty values, which [`Settings::faults`] reports, are left out.
    #[must_use]
    pub fn core(&self) -> aggregator_core::Settings {
        let counting = &self.counting;
        let defaults = aggregator_core::Settings::default();
        aggregator_core::Settings {
            rules: self.rules.iter().filter_map(core_rule).collect(),
            allowed_lateness: counting.allowed_lateness.into(),
            idle_timeout: counting.idle_timeout.into(),
            closed_window_retention: counting.closed_window_retention.into(),
            future_limit: counting.future_limit.into(),
            oldest_event_time: EventTime::parse(&counting.oldest_event_time)
                .unwrap_or(defaults.oldest_event_time),
            historical_after: counting.historical_after.into(),
            metric_types_max: counting.metric_types_max,
            sensors_max: counting.sensors_max,
            windows_per_sensor_max: counting.windows_per_sensor_max,
            windows_max: counting.windows_max,
            devices_max: counting.devices_max,
            generations_per_device_max: counting.generations_per_device_max,
            alerting: self.alerting.core(),
        }
    }

    fn check_alerts(&self, faults: &mut Faults) {
        self.alerts.check(faults);
        if self.alerts.topic.is_empty() || self.alerts.event_hubs.is_on() {
            return;
        }
        // Alerts are sent with the consumer's properties.
        for (property, text) in property_faults(&self.kafka.brokers, &self.kafka.properties) {
            faults.add(format!("kafka.properties.{property}"), text);
        }
    }
}

/// librdkafka properties on which the exactly-once protocol depends.
const OWN_PROPERTIES: [&str; 7] = [
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "group.id",
    "partition.assignment.strategy",
];

fn core_rule(rule: &Rule) -> Option<aggregator_core::Rule> {
    Some(aggregator_core::Rule {
        name: rule.name.clone(),
        filter: rule.filter.parse().ok()?,
        window: rule.window.into(),
        slide: rule.slide.unwrap_or(rule.window).into(),
        by: group_by(&rule.by)?,
        threshold: rule.threshold.parse().ok()?,
        output_mode: output_mode(&rule.output_mode)?,
        severity: rule.severity,
    })
}

/// The rule for the core to judge. If something in it is none, which [`Settings::faults`] tells, it asks for the seed's readings:
/// these hold no windows for sure.
fn judged_rule(rule: &Rule) -> aggregator_core::Rule {
    core_rule(rule).unwrap_or_else(|| aggregator_core::Rule {
        name: rule.name.clone(),
        window: rule.window.into(),
        slide: rule.slide.unwrap_or(rule.window).into(),
        severity: rule.severity,
        ..aggregator_core::Rule::seed()
    })
}

/// The time of this machine. Where its clock was never set, the default is no fault.
fn now() -> EventTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = EventTime::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
    now.max(aggregator_core::Settings::default().oldest_event_time)
}

fn group_by(word: &str) -> Option<GroupBy> {
    GroupBy::ALL.into_iter().find(|by| by.as_str() == word)
}

fn output_mode(word: &str) -> Option<OutputMode> {
    OutputMode::ALL.into_iter().find(|mode| mode.as_str() == word)
}

fn core_fault(fault: &SettingsFault) -> Fault {
    let of_rule = |index: &usize, key: &str| format!("rules[{index}].{key}");
    let path = match fault {
        SettingsFault::TooManyRules { .. } => "rules".to_owned(),
        SettingsFault::RuleName { index, .. } | SettingsFault::RuleNameTwice { index, .. } => {
            of_rule(index, "name")
        }
        SettingsFault::RuleWindow { index, .. } => of_rule(index, "window"),
        SettingsFault::RuleSlide { index, .. } | SettingsFault::RuleOverlap { index, .. } => {
            of_rule(index, "slide")
        }
        SettingsFault::RuleSeverity { index, .. } => of_rule(index, "severity"),
        SettingsFault::RuleWindows { .. } => "counting.windows-per-sensor-max".to_owned(),
        SettingsFault::Span { what, .. } | SettingsFault::Zero { what } => (*what).to_owned(),
    };
    let text = fault.to_string();
    // The path stands before it.
    let text = text.strip_prefix(&format!("{path} ")).unwrap_or(&text).to_owned();
    Fault { path, text }
}
