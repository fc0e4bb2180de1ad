//! `[kafka.hub]`: messages of an IoT Hub, read by the Kafka protocol.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::addresses::check_topic;
use super::event_hubs::is_event_hubs;
use super::validate::Faults;
use super::{Kafka, Topics};
use crate::source::TopicKind;

/// `[kafka.hub]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Hub {
    /// The topic; empty: none is read.
    pub topic: String,
    /// Values of the property `topic` for readings.
    pub readings: Vec<String>,
    /// For machine events.
    pub machine_events: String,
    /// For what edge modules refused.
    pub dead_letters: String,
    /// For raw samples around trips.
    pub waveforms: String,
}

impl Hub {
    /// Whether such a topic is read.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.topic.is_empty()
    }

    /// Whether a topic is the hub's.
    #[must_use]
    pub fn is_of(&self, topic: &str) -> bool {
        self.is_on() && self.topic == topic
    }

    /// What records are that a message names so. What people found comes from no device.
    #[must_use]
    pub fn kind_of(&self, name: &str) -> Option<TopicKind> {
        if self.readings.iter().any(|known| known == name) {
            return Some(TopicKind::Readings);
        }
        let others = [
            (&self.machine_events, TopicKind::MachineEvents),
            (&self.dead_letters, TopicKind::DeadLetters),
            (&self.waveforms, TopicKind::Waveforms),
        ];
        others.into_iter().find(|(known, _)| *known == name).map(|(_, kind)| kind)
    }

    /// All names that are known.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let others = [&self.machine_events, &self.dead_letters, &self.waveforms];
        self.readings.iter().chain(others).map(String::as_str)
    }

    pub(super) fn check(&self, faults: &mut Faults) {
        if !self.is_on() {
            return;
        }
        if self.readings.is_empty() {
            faults
                .add("kafka.hub.readings", "is empty: name at least one, such as \"temperature\"");
        }
        let others = [
            ("machine-events", &self.machine_events),
            ("dead-letters", &self.dead_letters),
            ("waveforms", &self.waveforms),
        ];
        let readings = self.readings.iter().enumerate();
        let readings = readings.map(|(index, name)| (format!("readings[{index}]"), name));
        let others = others.map(|(key, name)| (key.to_owned(), name));
        let mut seen = BTreeSet::new();
        for (key, name) in readings.chain(others) {
            let path = format!("kafka.hub.{key}");
            faults.text(path.clone(), check_topic(name));
            if !seen.insert(name) {
                let text = format!("{name:?} is named twice; each name has one meaning");
                faults.add(path, text);
            }
        }
    }
}

impl Kafka {
    /// What is no fault and may not be meant.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        if !self.hub.is_on() {
            return Vec::new();
        }
        let mut warnings = Vec::new();
        let beside = named(&self.topics);
        if !beside.is_empty() {
            warnings.push(format!(
                "kafka.hub.topic: kafka.topics.{} are read from the same brokers: the built-in endpoint of an IoT Hub has none of them, so \
                 set them to \"\"; where they are there, a sensor whose readings change from one way to the other has windows in two parts",
                beside.join(", ")
            ));
        }
        let has = |names: &[&str]| {
            let is_set = |name: &&str| {
                self.properties.contains_key(*name) || self.property_files.contains_key(*name)
            };
            names.iter().any(is_set)
        };
        let protocol = self.properties.get("security.protocol");
        let is_secured = protocol.is_some_and(|it| it.eq_ignore_ascii_case("sasl_ssl"));
        let is_complete = is_secured
            && has(&["sasl.mechanism", "sasl.mechanisms"])
            && has(&["sasl.username"])
            && has(&["sasl.password"]);
        if is_event_hubs(&self.brokers) && !is_complete {
            warnings.push(
                "kafka.hub.topic: the endpoint refuses whoever has no key: set kafka.properties \"security.protocol\" = \"sasl_ssl\", \
                 \"sasl.mechanisms\" = \"PLAIN\", \"sasl.username\" = \"$ConnectionString\", and in kafka.property-files \"sasl.password\" = a \
                 file with the Event Hub-compatible connection string"
                    .to_owned(),
            );
        }
        warnings
    }
}

/// Keys of the topics that are read.
fn named(topics: &Topics) -> Vec<&'static str> {
    let all = [
        ("temperature", &topics.temperature),
        ("pressure", &topics.pressure),
        ("vibration", &topics.vibration),
        ("machine-events", &topics.machine_events),
        ("dead-letters", &topics.dead_letters),
        ("outcomes", &topics.outcomes),
        ("waveforms", &topics.waveforms),
    ];
    all.into_iter().filter(|(_, topic)| !topic.is_empty()).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn settings() -> Settings {
        let mut settings = Settings::load(None).expect("valid defaults");
        settings.kafka.hub.topic = "hub".to_owned();
        settings
    }

    /// As against the endpoint of an IoT Hub.
    fn alone() -> Settings {
        let mut settings = settings();
        let topics = &mut settings.kafka.topics;
        for topic in [
            &mut topics.temperature,
            &mut topics.pressure,
            &mut topics.vibration,
            &mut topics.machine_events,
            &mut topics.dead_letters,
            &mut topics.outcomes,
            &mut topics.waveforms,
        ] {
            topic.clear();
        }
        settings
    }

    #[test]
    fn names_say_what_records_are_and_none_says_that_people_found_them() {
        let hub = settings().kafka.hub;
        let check = |name: &str, expected| assert_eq!(hub.kind_of(name), expected, "{name}");
        check("temperature", Some(TopicKind::Readings));
        check("pressure", Some(TopicKind::Readings));
        check("vibration", Some(TopicKind::Readings));
        check("machine-events", Some(TopicKind::MachineEvents));
        check("dead-letters", Some(TopicKind::DeadLetters));
        check("waveforms", Some(TopicKind::Waveforms));
        check("outcomes", None);
        check("", None);
        check("hub", None);
        assert_eq!(hub.names().count(), 6);
        assert!(hub.is_of("hub") && !hub.is_of("temperature"));
        let off = Settings::load(None).expect("valid defaults").kafka.hub;
        assert!(!off.is_on() && !off.is_of(""));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_key() {
        let check = |change: fn(&mut Hub), expected: &[&str]| {
            let mut settings = alone();
            change(&mut settings.kafka.hub);
            let faults = settings.faults();
            let paths: Vec<&str> = faults.iter().map(|fault| fault.path.as_str()).collect();
            assert_eq!(paths, expected, "{faults:?}");
        };
        check(|_| {}, &[]);
        check(|hub| hub.topic.clear(), &["kafka.topics"]);
        check(|hub| "a b".clone_into(&mut hub.topic), &["kafka.hub.topic"]);
        check(|hub| hub.readings.clear(), &["kafka.hub.readings"]);
        check(|hub| hub.readings.push("pressure".to_owned()), &["kafka.hub.readings[3]"]);
        check(|hub| hub.waveforms.clear(), &["kafka.hub.waveforms"]);
        check(|hub| "pressure".clone_into(&mut hub.dead_letters), &["kafka.hub.dead-letters"]);
        let mut settings = settings();
        "temperature".clone_into(&mut settings.kafka.hub.topic);
        assert_eq!(settings.faults()[0].path, "kafka.hub.topic", "it is a topic of readings");
        let mut settings = alone();
        "hub".clone_into(&mut settings.alerts.topic);
        assert_eq!(settings.faults()[0].path, "alerts.topic");
    }

    #[test]
    fn what_may_not_be_meant_is_told() {
        let check = |settings: &Settings, expected: &[&str]| {
            let warnings = settings.kafka.warnings();
            assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
            for (warning, part) in warnings.iter().zip(expected) {
                assert!(warning.contains(part), "{part}: {warning}");
            }
        };
        check(&Settings::load(None).expect("valid defaults"), &[]);
        check(&alone(), &[]);
        check(&settings(), &["kafka.topics.temperature, pressure, vibration, machine-events"]);
        let mut endpoint = alone();
        "iothub-ns-plant.servicebus.windows.net:9093".clone_into(&mut endpoint.kafka.brokers);
        check(&endpoint, &["$ConnectionString"]);
        let properties = [
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanisms", "PLAIN"),
            ("sasl.username", "$ConnectionString"),
        ];
        for (name, value) in properties {
            endpoint.kafka.properties.insert(name.to_owned(), value.to_owned());
        }
        check(&endpoint, &["$ConnectionString"]);
        endpoint.kafka.property_files.insert("sasl.password".to_owned(), "/run/key".into());
        check(&endpoint, &[]);
    }
}
