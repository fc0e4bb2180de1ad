//! What a value must be beyond its type.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edge_core::interlock::DuringStartup;
use edge_core::vibration::WindowShape;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;

use super::{
    Actuator, DEFAULT_MODEL, Fault, Machine, ModbusTcp, Protection, ScoredSensor, Settings,
    read_secret,
};
use crate::intake::MACHINE_PLACEHOLDER;

/// Properties that the promises of the forwarder rest on.
const RESERVED_PROPERTIES: [&str; 6] = [
    "enable.gapless.guarantee",
    "enable.idempotence",
    "acks",
    "message.timeout.ms",
    "compression.codec",
    "linger.ms",
];

/// The latch's file is named by the id in hexadecimal, and file names have at most 255 bytes.
const MACHINE_ID_BYTES_MAX: usize = 120;

#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.0.push(Fault { path: path.into(), text: text.into() });
    }

    pub(super) fn range<T: PartialOrd + std::fmt::Display>(
        &mut self,
        path: &str,
        value: T,
        low: T,
        high: T,
    ) {
        if !(value >= low && value <= high) {
            self.add(path, format!("{value} is out of range: {low} to {high}"));
        }
    }

    pub(super) fn duration(&mut self, path: &str, value: Duration, low: Duration, high: Duration) {
        if value < low || value > high {
            self.add(path, format!("{value:?} is out of range: {low:?} to {high:?}"));
        }
    }

    fn not_empty(&mut self, path: &str, value: &str) {
        if value.trim().is_empty() {
            self.add(path, "is empty");
        }
    }
}

impl Protection {
    /// Its own topics, with their keys.
    pub(super) const fn topics(&self) -> [(&'static str, &String); 7] {
        [
            ("protection.command-topic", &self.command_topic),
            ("protection.state-topic", &self.state_topic),
            ("protection.reset-topic", &self.reset_topic),
            ("protection.shelve-topic", &self.shelve_topic),
            ("protection.learn-topic", &self.learn_topic),
            ("protection.interlock-topic", &self.interlock_topic),
            ("protection.heartbeat-topic", &self.heartbeat_topic),
        ]
    }
}

impl Settings {
    /// Everything that is wrong with the values.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        self.check_mqtt(&mut faults);
        self.check_protection(&mut faults);
        self.check_vibration(&mut faults);
        self.check_machines(&mut faults);
        for (key, text) in self.model.faults() {
            faults.add(key, text);
        }
        for (key, text) in self.learning.faults() {
            faults.add(key, text);
        }
        self.check_plausible(&mut faults);
        self.check_storage(&mut faults);
        self.check_filters(&mut faults);
        self.check_kafka(&mut faults);
        self.iot_hub.check(&mut faults);
        self.opc_publisher.check(&self.machines, &mut faults);
        self.upstream.check(&self.iot_hub, &mut faults);
        let drain = self.shutdown.drain_timeout;
        faults.duration("shutdown.drain-timeout", drain, Duration::ZERO, Duration::from_secs(60));
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.telemetry.filter) {
            faults.add("telemetry.filter", error.to_string());
        }
        faults.0
    }

    fn check_mqtt(&self, faults: &mut Faults) {
        let mqtt = &self.mqtt;
        faults.not_empty("mqtt.host", &mqtt.host);
        faults.range("mqtt.port", mqtt.port, 1, u16::MAX);
        let hour = Duration::from_secs(3600);
        faults.duration("mqtt.keep-alive", mqtt.keep_alive, Duration::from_secs(1), hour);
        faults.duration("mqtt.reconnect-min", mqtt.reconnect_min, Duration::from_millis(1), hour);
        faults.duration("mqtt.reconnect-max", mqtt.reconnect_max, mqtt.reconnect_min, hour);
        faults.range("mqtt.payload-bytes-max", mqtt.payload_bytes_max, 1, 256 << 20);
        let packet_min = mqtt.payload_bytes_max.saturating_add(1024);
        faults.range("mqtt.packet-bytes-max", mqtt.packet_bytes_max, packet_min, 268_435_455);
        if !mqtt.password_file.as_os_str().is_empty()
            && let Err(text) = read_secret(&mqtt.password_file)
        {
            faults.add("mqtt.password-file", text);
        }
        if mqtt.username.is_empty() && !mqtt.password_file.as_os_str().is_empty() {
            faults.add("mqtt.username", "is empty although there is a password-file");
        }
        let filters = [
            ("mqtt.reading-topics", &mqtt.reading_topics),
            ("mqtt.waveform-topics", &mqtt.waveform_topics),
        ];
        // What was written, and what it matches.
        let mut seen: Vec<(&String, String)> = Vec::new();
        for (path, filters) in filters {
            for filter in filters {
                let of_all = filter.replace(MACHINE_PLACEHOLDER, "+");
                if !rumqttc::valid_filter(&of_all) || of_all.contains(['{', '}']) {
                    faults.add(path, format!("{filter:?} is no MQTT topic filter"));
                } else if filter.matches(MACHINE_PLACEHOLDER).count() > 1 {
                    faults.add(path, format!("{filter:?} has {{machine}} more than once"));
                } else if let Some((other, _)) =
                    seen.iter().find(|(_, other)| overlap(other, &of_all))
                {
                    let text = format!("{filter:?} overlaps {other:?}: input would count twice");
                    faults.add(path, text);
                }
                seen.push((filter, of_all));
            }
        }
        if mqtt.reading_topics.is_empty() && mqtt.waveform_topics.is_empty() {
            faults
                .add("mqtt.reading-topics", "is empty, and so is waveform-topics: nothing to read");
        }
    }

    fn check_protection(&self, faults: &mut Faults) {
        let protection = &self.protection;
        let topics = protection.topics();
        let mut seen = BTreeSet::new();
        for (path, topic) in topics {
            if !topic.contains("{machine}") {
                faults.add(
                    path,
                    format!("{topic:?} lacks {{machine}}: machines need topics of their own"),
                );
            } else if !rumqttc::valid_topic(&topic.replace("{machine}", "m")) {
                faults.add(path, format!("{topic:?} is no MQTT topic"));
            }
            if !seen.insert(topic) {
                faults.add(path, format!("{topic:?} is used twice"));
            }
        }
        faults.range("protection.sessions-max", protection.sessions_max, 1, 4096);
        faults.range("protection.nice", protection.nice, -20, 0);
        faults.range("protection.background-nice", protection.background_nice, 0, 19);
        let interval = protection.heartbeat_interval;
        let minute = Duration::from_secs(60);
        faults.duration(
            "protection.heartbeat-interval",
            interval,
            Duration::from_millis(10),
            minute,
        );
        let length = protection.event_queue_length;
        faults.range("protection.event-queue-length", length, 16, 1_000_000);
        let length = protection.path_queue_length;
        faults.range("protection.path-queue-length", length, 16, 65_536);
        let length = protection.sensor_queue_length;
        faults.range("protection.sensor-queue-length", length, 1, 65_536);
        let bytes = protection.sensor_queue_bytes;
        faults.range("protection.sensor-queue-bytes", bytes, 1 << 10, 1 << 30);
        faults.range("protection.slice-bytes", protection.slice_bytes, 256, 1 << 20);
    }

    fn check_actuators(&self, path: &str, machine: &Machine, faults: &mut Faults) {
        for (index, actuator) in machine.actuators.iter().enumerate() {
            let path = format!("{path}.actuators[{index}]");
            if machine.actuators[..index].contains(actuator) {
                faults.add(&path, "is there twice: a second path must lead another way");
            }
            match actuator {
                Actuator::Mqtt { host, port } => {
                    if let Some(host) = host {
                        faults.not_empty(&format!("{path}.host"), host);
                    }
                    faults.range(&format!("{path}.port"), port.unwrap_or(1), 1, u16::MAX);
                }
                Actuator::ModbusTcp(modbus) => check_modbus(&path, modbus, faults),
            }
        }
    }

    fn check_vibration(&self, faults: &mut Faults) {
        if let Err(error) = self.window_shape().validate() {
            faults.add("vibration", error.to_string());
        }
        faults.range(
            "vibration.sample-rate-max",
            self.vibration.sample_rate_max,
            1.0,
            10_000_000.0,
        );
        faults.range("vibration.sensors-max", self.vibration.sensors_max, 1, 1_000_000);
    }

    fn check_machines(&self, faults: &mut Faults) {
        let mut ids = BTreeSet::new();
        let mut machine_of_sensor = BTreeMap::new();
        for (index, machine) in self.machines.iter().enumerate() {
            let path = format!("machines[{index}]");
            if !ids.insert(&machine.id) {
                faults.add(format!("{path}.id"), format!("{} is there twice", machine.id));
            }
            if machine.id.as_str().contains(['+', '#', '/']) {
                faults.add(
                    format!("{path}.id"),
                    format!("{} has a character that MQTT topics reserve: + # /", machine.id),
                );
            }
            if machine.id.as_str().chars().any(is_noncharacter) {
                let text = format!("{:?} has a character that brokers refuse", machine.id.as_str());
                faults.add(format!("{path}.id"), text);
            }
            if machine.id.as_str().len() > MACHINE_ID_BYTES_MAX {
                let (length, max) = (machine.id.as_str().len(), MACHINE_ID_BYTES_MAX);
                faults.add(format!("{path}.id"), format!("has {length} bytes, at most {max}"));
            }
            let limited = machine.limits.iter().map(|limit| &limit.sensor);
            let conditioned = machine.sensors.iter().map(|sensor| &sensor.id);
            let named = limited.chain(machine.scored()).chain(conditioned);
            for sensor in named.chain(machine.condition_sensors()) {
                let other = machine_of_sensor.entry(sensor).or_insert(&machine.id);
                if **other != machine.id {
                    faults.add(&path, format!("sensor {sensor} already protects {other}; a sensor belongs to one machine"));
                }
            }
            if let Err(found) = self.interlock(machine).validate() {
                for fault in found {
                    faults.add(&path, fault.to_string());
                }
            }
            self.check_actuators(&path, machine, faults);
            for limit in &machine.limits {
                self.check_quantity(&path, &limit.quantity, faults);
            }
            check_startup(&path, machine, faults);
            check_sensors(&path, machine, faults);
            self.check_models(&path, machine, faults);
            for (key, fault) in machine.bearing_faults() {
                faults.add(format!("{path}.{key}"), fault);
            }
            for fault in machine.condition_faults() {
                faults.add(format!("{path}.conditions"), fault);
            }
        }
    }

    fn check_models(&self, path: &str, machine: &Machine, faults: &mut Faults) {
        let key = format!("{path}.scored-sensors");
        let sources = self.model.sources();
        for (index, ScoredSensor { sensor, model }) in machine.scored_sensors.iter().enumerate() {
            if machine.scored_sensors[..index].iter().any(|other| other.sensor == *sensor) {
                faults.add(&key, format!("names {sensor} twice"));
            }
            if !sources.contains_key(model.as_str()) && !self.model.bundles.contains_key(model) {
                let remedy = match model.as_str() {
                    DEFAULT_MODEL => "set model.bundle-dir, or leave this empty".to_owned(),
                    name => format!("set model.bundles.{name}"),
                };
                faults.add(&key, format!("{sensor} needs the model {model:?}: {remedy}"));
            }
        }
    }

    fn check_quantity(&self, path: &str, quantity: &str, faults: &mut Faults) {
        use edge_core::features::FeatureName;

        if quantity != "value" && quantity.parse::<FeatureName>().is_err() {
            faults.add(
                format!("{path}.limits.quantity"),
                format!("{quantity:?} is neither value nor a feature: rms, peak, crest-factor, kurtosis, rms-steady, line, band-00 …"),
            );
        }
    }

    fn check_storage(&self, faults: &mut Faults) {
        if self.device.data_dir.as_os_str().is_empty() {
            faults.add("device.data-dir", "is empty");
        }
        let journal = &self.journal;
        // More than a segment's file takes: it is closed then, whatever is set here.
        faults.range("journal.segment-bytes", journal.segment_bytes, 1 << 20, 16 << 20);
        let two_segments = journal.segment_bytes.saturating_mul(2);
        faults.range("journal.bytes-max", journal.bytes_max, two_segments, u64::MAX);
        faults.range("journal.queue-length", journal.queue_length, 1, 1_000_000);
        faults.range(
            "journal.queue-bytes",
            journal.queue_bytes,
            self.mqtt.payload_bytes_max,
            1 << 31,
        );
        faults.range("journal.group-records-max", journal.group_records_max, 1, 100_000);
        faults.range("journal.cache-bytes", journal.cache_bytes, 1 << 20, 1 << 30);
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        faults.duration("journal.ledger-interval", journal.ledger_interval, second, day);
    }

    fn check_kafka(&self, faults: &mut Faults) {
        let kafka = &self.kafka;
        faults.not_empty("kafka.brokers", &kafka.brokers);
        faults.range("kafka.in-flight-max", kafka.in_flight_max, 1, 1_000_000);
        faults.duration("kafka.linger", kafka.linger, Duration::ZERO, Duration::from_secs(10));
        let topics = &kafka.topics;
        for (path, topic) in [
            ("kafka.topics.temperature", &topics.temperature),
            ("kafka.topics.pressure", &topics.pressure),
            ("kafka.topics.vibration", &topics.vibration),
            ("kafka.topics.other", &topics.other),
            ("kafka.topics.machine-events", &topics.machine_events),
            ("kafka.topics.dead-letters", &topics.dead_letters),
            ("kafka.topics.waveforms", &topics.waveforms),
        ] {
            faults.not_empty(path, topic);
        }
        for key in kafka.properties.keys().chain(kafka.property_files.keys()) {
            if RESERVED_PROPERTIES.contains(&key.as_str()) {
                faults.add(format!("kafka.properties.{key}"), "is set by the module itself");
            }
        }
        for (key, value) in &kafka.properties {
            let one = ClientConfig::from_iter([(key.clone(), value.clone())]);
            if let Err(KafkaError::ClientConfig(_, text, ..)) = one.create_native_config() {
                faults.add(format!("kafka.properties.{key}"), text);
            }
        }
        for (key, file) in &kafka.property_files {
            if let Err(text) = read_secret(file) {
                faults.add(format!("kafka.property-files.{key}"), text);
            }
        }
    }

    /// Shape of the windows of sensors that no model scores.
    #[must_use]
    pub fn window_shape(&self) -> WindowShape {
        WindowShape {
            window_samples: self.vibration.window_samples,
            hop_samples: self.vibration.hop_samples,
            gap_tolerance_samples: self.vibration.gap_tolerance_samples,
        }
    }
}

/// A rule that waits for a start that is never suppressed is a mistake.
fn check_startup(path: &str, machine: &Machine, faults: &mut Faults) {
    let waits = |during| match during {
        DuringStartup::Suppress => true,
        DuringStartup::Enforce => false,
    };
    let is_marked = waits(machine.score_during_startup)
        || machine.limits.iter().any(|limit| waits(limit.during_startup));
    if is_marked && machine.startup_suppression.is_zero() {
        faults.add(
            format!("{path}.startup-suppression"),
            "is 0 although a rule is suppressed during start-up: say for how long",
        );
    }
}

/// Settings of a sensor that do nothing without another.
fn check_sensors(path: &str, machine: &Machine, faults: &mut Faults) {
    for sensor in &machine.sensors {
        if sensor.full_scale.is_some() && sensor.saturation.is_none() {
            faults.add(
                format!("{path}.sensors.full-scale"),
                format!("{}: needs saturation, the share of samples that is a fault", sensor.id),
            );
        }
        let has_limit = machine
            .limits
            .iter()
            .any(|limit| limit.sensor == sensor.id && limit.quantity == "value");
        if has_limit && sensor.missing_samples_max.is_some() && sensor.sample_rate.is_none() {
            faults.add(
                format!("{path}.sensors.missing-samples-max"),
                format!("{}: readings can only be missing at a known sample-rate", sensor.id),
            );
        }
    }
}

fn check_modbus(path: &str, modbus: &ModbusTcp, faults: &mut Faults) {
    faults.not_empty(&format!("{path}.host"), &modbus.host);
    faults.range(&format!("{path}.port"), modbus.port, 1, u16::MAX);
    match (modbus.standstill_coil, modbus.standstill_input) {
        (Some(coil), None) if coil == modbus.stop_coil => faults.add(
            format!("{path}.standstill-coil"),
            "is the stop coil itself: it says what was ordered, not what the machine does",
        ),
        (Some(_), None) | (None, Some(_)) => {}
        (None, None) | (Some(_), Some(_)) => faults.add(
            path,
            "needs one of standstill-coil and standstill-input: a stop is confirmed by reading back",
        ),
    }
    let (low, high) = (Duration::from_millis(5), Duration::from_secs(60));
    faults.duration(&format!("{path}.poll-interval"), modbus.poll_interval, low, high);
    faults.duration(&format!("{path}.response-timeout"), modbus.response_timeout, low, high);
}

/// Code points that are no characters: mosquitto ends a connection that names a topic with one [MQTT-1.5.3].
fn is_noncharacter(character: char) -> bool {
    let code = u32::from(character);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

/// Whether a topic can match both filters.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('/'), other.split('/'));
    loop {
        match (one.next(), other.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(one), Some(other)) if one == other || one == "+" || other == "+" => {}
            (Some(_), Some(_)) | (Some(_), None) | (None, Some(_)) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn filters_overlap_where_a_topic_matches_both() {
        for (one, other, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/c", false),
            ("a/+", "a/c", true),
            ("a/+/x", "a/b/y", false),
            ("a/#", "a/b/y", true),
            ("a/#", "a", true),
            ("a/+", "a", false),
            ("#", "b/c", true),
            ("+/x/+", "a/+/y", true),
        ] {
            assert_eq!(overlap(one, other), expected, "{one} {other}");
            assert_eq!(overlap(other, one), expected, "{other} {one}");
        }
    }
}
