//! Rules whose windows may stand in several topics.
//!
//! Windows are counted within one Kafka partition: readings that match one rule and stand in several topics make several windows,
//! each of a part of them. Nothing ties a metric type to a topic but the keys of `[kafka.topics]`: `temperature`, `pressure` and
//! `vibration` are taken for the topics of these types, and that of `vibration` for the topic of all others too, since an
//! edge module sends them there unless its `kafka.topics.other` says something else. The topic of a hub has readings of any type.
//!
//! Where producers send all that a machine measures to one topic, such a rule is right: it is told, and no fault.

use std::collections::BTreeSet;
use std::fmt;

use aggregator_core::{Filter, GroupBy};
use tracing::warn;

use super::{Hub, Settings, Topics};

/// A rule whose filter can match readings of several topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpreadRule {
    /// Its place among the rules, from 0.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Whose readings are counted together.
    pub by: GroupBy,
    /// The topics, sorted: two or more.
    pub topics: Vec<String>,
}

impl fmt::Display for SpreadRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, name, by, topics } = self;
        write!(
            formatter,
            "rules[{index}].filter: rule {name:?}: can match readings of several topics ({}), and each topic counts windows by \
             itself: ask for one metric type (metric_type = NAME), or let producers send all that a {} measures to one topic",
            topics.join(", "),
            by.as_str()
        )
    }
}

impl Settings {
    /// Rules whose filters can match readings of several topics.
    #[must_use]
    pub fn spread_rules(&self) -> Vec<SpreadRule> {
        let rules = self.core().rules.into_iter().enumerate();
        let spread = rules.map(|(index, rule)| {
            let topics = topics_matched(&rule.filter, &self.kafka.topics, &self.kafka.hub);
            let topics = topics.into_iter().map(str::to_owned).collect();
            SpreadRule { index, name: rule.name, by: rule.by, topics }
        });
        spread.filter(|rule| rule.topics.len() > 1).collect()
    }

    /// Tells them in the log.
    pub fn warn_of_spread_rules(&self) {
        for rule in self.spread_rules() {
            warn!(text = %rule, "a rule may count windows in parts");
        }
    }
}

/// Topics that are read and may have readings that the filter matches.
fn topics_matched<'a>(filter: &Filter, topics: &'a Topics, hub: &'a Hub) -> BTreeSet<&'a str> {
    let of_types = [
        ("temperature", &topics.temperature),
        ("pressure", &topics.pressure),
        ("vibration", &topics.vibration),
    ];
    let is_other = |metric_type: &&str| of_types.iter().all(|(name, _)| name != metric_type);
    let types = filter.matched_metric_types();
    let matches_others = types.as_ref().is_none_or(|types| types.iter().any(is_other));
    let mut matched = BTreeSet::new();
    for (name, topic) in of_types {
        let is_matched = filter.can_match(name) || (name == "vibration" && matches_others);
        if is_matched && !topic.is_empty() {
            matched.insert(topic.as_str());
        }
    }
    if hub.is_on() && types.is_none_or(|types| !types.is_empty()) {
        matched.insert(hub.topic.as_str());
    }
    matched
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 3] = ["temperature", "pressure", "vibration"];

    /// The rule of the defaults with another filter, and the topics that are read: the others are switched off.
    fn settings(filter: &str, read: &[&str]) -> Settings {
        let mut settings = Settings::load(None).expect("valid defaults");
        settings.rules[0].filter = filter.to_owned();
        let topics = &mut settings.kafka.topics;
        for topic in [&mut topics.temperature, &mut topics.pressure, &mut topics.vibration] {
            if !read.contains(&topic.as_str()) {
                topic.clear();
            }
        }
        let faults = settings.faults();
        assert!(faults.is_empty(), "{filter}: {faults:?}");
        settings
    }

    #[test]
    fn rules_whose_readings_may_stand_in_several_topics_are_known() {
        let check = |filter: &str, read: &[&str], expected: &[&str]| {
            let spread = settings(filter, read).spread_rules();
            let found: Vec<&str> =
                spread.iter().flat_map(|rule| &rule.topics).map(String::as_str).collect();
            assert_eq!(found, expected, "{filter} {read:?}");
        };
        let all = ["pressure", "temperature", "vibration"];
        check("value > 100", &ALL, &all);
        check("sensor_id = s", &ALL, &all);
        check("features.rms > 1", &ALL, &all);
        check("metric_type = temperature or value > 100", &ALL, &all);
        check("metric_type = temperature or metric_type = pressure", &ALL, &all[..2]);
        check("metric_type != temperature", &ALL, &["pressure", "vibration"]);
        check("metric_type = temperature or metric_type = humidity", &ALL, &all[1..]);
        // All other types stand in the topic of vibration too.
        check("metric_type != vibration", &ALL, &all);
        check("value > 100", &["temperature", "pressure"], &all[..2]);

        check("metric_type = temperature and value > 100", &ALL, &[]);
        check("metric_type = humidity", &ALL, &[]);
        check("metric_type = vibration or metric_type = humidity", &ALL, &[]);
        check("metric_type = humidity or metric_type = current", &ALL, &[]);
        check("metric_type = temperature and metric_type = pressure", &ALL, &[]);
        check("metric_type = temperature or metric_type = pressure", &["pressure"], &[]);
        check("metric_type != temperature", &["temperature", "pressure"], &[]);
        for topic in ALL {
            check("value > 100", &[topic], &[]);
        }
    }

    #[test]
    fn topic_of_a_hub_has_readings_of_every_type() {
        let mut settings = settings("metric_type = temperature and value > 100", &ALL);
        settings.kafka.hub.topic = "iothub".to_owned();
        assert_eq!(settings.spread_rules()[0].topics, ["iothub", "temperature"]);
        settings.kafka.topics.temperature.clear();
        assert!(settings.spread_rules().is_empty(), "it is the only one");
        settings.rules[0].filter = "metric_type = humidity or value > 100".to_owned();
        assert_eq!(settings.spread_rules()[0].topics, ["iothub", "pressure", "vibration"]);
    }

    #[test]
    fn warning_names_the_rule_the_topics_and_what_helps() {
        let mut settings = settings("metric_type = temperature and value > 100", &ALL);
        settings.kafka.topics.pressure = "plant.pressure".to_owned();
        let mut hot = settings.rules[0].clone();
        hot.name = "hot".to_owned();
        hot.filter = "metric_type != vibration and value > 100".to_owned();
        hot.by = "machine".to_owned();
        settings.rules.push(hot);
        let spread = settings.spread_rules();
        assert_eq!(spread.len(), 1, "{spread:?}");
        let expected = "rules[1].filter: rule \"hot\": can match readings of several topics (plant.pressure, temperature, \
            vibration), and each topic counts windows by itself: ask for one metric type (metric_type = NAME), or let producers \
            send all that a machine measures to one topic";
        assert_eq!(spread[0].to_string(), expected);
        settings.rules[1].by = "sensor".to_owned();
        let text = settings.spread_rules()[0].to_string();
        assert!(text.ends_with("send all that a sensor measures to one topic"), "{text}");
    }

    #[test]
    fn shipped_configuration_warns_of_nothing() {
        let settings = Settings::load(None).expect("valid defaults");
        let spread = settings.spread_rules();
        assert!(spread.is_empty(), "{spread:?}");
    }
}
