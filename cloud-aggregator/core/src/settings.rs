//! Rules and limits, validated as a whole.

use std::collections::BTreeSet;

use shared_proto::model::{EventTime, MetricType};

use crate::alert::AlertSettings;
use crate::rule::GroupBy;
pub use crate::rule::{Comparison, Rule};
use crate::time::Micros;

/// Most rules at once.
pub const RULES_MAX: usize = 256;
/// Longest name of a rule, in bytes.
pub const RULE_NAME_BYTES_MAX: usize = 64;
/// Shortest window of a rule, and shortest time between two of them.
pub const WINDOW_MIN: Micros = Micros::from_seconds(1);
/// Most windows of one rule that a reading is in.
pub const OVERLAP_MAX: u64 = 1_440;
/// Longest window of a rule, and longest of every other span.
pub const SPAN_MAX: Micros = Micros::from_seconds(366 * 24 * 3600);
/// Least severe alert, as Azure Monitor counts: 0 is critical, 4 is verbose.
pub const SEVERITY_MAX: u8 = 4;

/// Everything the core is told. All `*_max` are per Kafka partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Rules, all at once.
    pub rules: Vec<Rule>,
    /// Event time: a sensor's watermark stays this far behind its newest reading.
    pub allowed_lateness: Micros,
    /// Processing time: the windows of a sensor silent for this long are closed.
    pub idle_timeout: Micros,
    /// Event time: closed windows can be corrected this far behind the watermark; older readings are late.
    pub closed_window_retention: Micros,
    /// Readings further ahead of the aggregator's clock are dead letters.
    pub future_limit: Micros,
    /// Readings before this are dead letters.
    pub oldest_event_time: EventTime,
    /// Processing time: an alert for a window that ended longer ago is historical.
    pub historical_after: Micros,
    /// Metric types known; readings of one more are dead letters (each is a folder of the lake).
    pub metric_types_max: usize,
    /// Sensors known; readings of one more are dead letters.
    pub sensors_max: usize,
    /// Windows held of one sensor, or of one machine, open or kept for correction; a match that needs one more is a dead letter.
    /// [`Settings::windows_per_sensor_needed`] of them are never exceeded.
    pub windows_per_sensor_max: usize,
    /// Windows held altogether; a match that needs one more is a dead letter.
    pub windows_max: usize,
    /// Devices whose high-water marks are held; one more evicts the one not heard from longest.
    pub devices_max: usize,
    /// Generations held of one device; one more evicts the one not heard from longest.
    pub generations_per_device_max: usize,
    /// How findings become alerts; `None`: each finding is an alert of its own, which nobody resolves.
    pub alerting: Option<AlertSettings>,
}

/// The seed rule and limits for a plant of some thousand sensors.
impl Default for Settings {
    fn default() -> Self {
        Self {
            rules: vec![Rule::seed()],
            allowed_lateness: Micros::from_seconds(10),
            idle_timeout: Micros::from_seconds(120),
            closed_window_retention: Micros::from_seconds(24 * 3600),
            future_limit: Micros::from_seconds(300),
            // 2000-01-01T00:00:00Z: before it a clock was not set.
            oldest_event_time: EventTime::from_micros(946_684_800_000_000),
            historical_after: Micros::from_seconds(3600),
            metric_types_max: 64,
            sensors_max: 100_000,
            windows_per_sensor_max: 10_000,
            windows_max: 2_000_000,
            devices_max: 10_000,
            generations_per_device_max: 4,
            alerting: Some(AlertSettings::default()),
        }
    }
}

/// One thing wrong with the settings. Keys are named as they are written in the configuration.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SettingsFault {
    /// More than [`RULES_MAX`].
    #[error("{count} rules, at most {RULES_MAX} are allowed: remove some")]
    TooManyRules {
        /// Rules found.
        count: usize,
    },
    /// Empty or longer than [`RULE_NAME_BYTES_MAX`].
    #[error(
        "rules[{index}].name has {length} bytes, 1 to {RULE_NAME_BYTES_MAX} are allowed: rename it"
    )]
    RuleName {
        /// Position of the rule, from 0.
        index: usize,
        /// Bytes found.
        length: usize,
    },
    /// Two rules of one name would share alerts.
    #[error("rule name {name:?} is used twice: rename one")]
    RuleNameTwice {
        /// Position of the second rule, from 0.
        index: usize,
        /// The name.
        name: String,
    },
    /// Outside [`WINDOW_MIN`] to [`SPAN_MAX`].
    #[error(
        "window of rule {name:?} is {window}, {WINDOW_MIN} to {SPAN_MAX} are allowed: change it"
    )]
    RuleWindow {
        /// Position of the rule, from 0.
        index: usize,
        /// The rule.
        name: String,
        /// Found.
        window: Micros,
    },
    /// Shorter than [`WINDOW_MIN`] or longer than the window.
    #[error(
        "slide of rule {name:?} is {slide}, {WINDOW_MIN} to its window of {window} are allowed: change it"
    )]
    RuleSlide {
        /// Position of the rule, from 0.
        index: usize,
        /// The rule.
        name: String,
        /// Found.
        slide: Micros,
        /// The window.
        window: Micros,
    },
    /// More than [`OVERLAP_MAX`].
    #[error(
        "each reading is in {overlap} windows of rule {name:?}, at most {OVERLAP_MAX} are allowed: make its slide longer"
    )]
    RuleOverlap {
        /// Position of the rule, from 0.
        index: usize,
        /// The rule.
        name: String,
        /// Found.
        overlap: u64,
    },
    /// Above [`SEVERITY_MAX`].
    #[error(
        "severity of rule {name:?} is {severity}, 0 (critical) to {SEVERITY_MAX} are allowed: change it"
    )]
    RuleSeverity {
        /// Position of the rule, from 0.
        index: usize,
        /// The rule.
        name: String,
        /// Found.
        severity: u8,
    },
    /// Windows that are held whatever the values are, above [`Settings::windows_per_sensor_max`]: sooner or later every match
    /// would be a dead letter.
    #[error(
        "{needed} windows of one {by} are held for the rules {rules} whatever the values are, counting.windows-per-sensor-max is \
         {limit} and readings beyond it are dead letters: raise it, shorten counting.closed-window-retention, or make the slides of \
         the rules longer"
    )]
    RuleWindows {
        /// Names of the rules.
        rules: String,
        /// "sensor" or "machine".
        by: &'static str,
        /// Windows needed.
        needed: u64,
        /// Windows allowed.
        limit: u64,
    },
    /// A span that is negative, above [`SPAN_MAX`], or 0 where something must pass.
    #[error("{what} is {span}, {least} to {SPAN_MAX} are allowed: change it")]
    Span {
        /// The key.
        what: &'static str,
        /// Found.
        span: Micros,
        /// Least allowed.
        least: Micros,
    },
    /// A limit of 0 would refuse everything.
    #[error("{what} is 0: give at least 1")]
    Zero {
        /// The key.
        what: &'static str,
    },
}

impl Settings {
    /// Looks at everything.
    ///
    /// # Errors
    /// All faults at once.
    pub fn validate(&self) -> Result<(), Vec<SettingsFault>> {
        let mut faults = Vec::new();
        self.check_rules(&mut faults);
        self.check_spans(&mut faults);
        self.check_limits(&mut faults);
        if faults.is_empty() {
            self.check_windows(&mut faults);
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Windows of one sensor that can be held at the same time if it always matches all rules: with `windows_per_sensor_max` at
    /// least this, that limit is never reached.
    #[must_use]
    pub fn windows_per_sensor_needed(&self) -> u64 {
        let needed = self.rules.iter().map(|rule| self.windows_needed(rule));
        needed.fold(0, u64::saturating_add)
    }

    fn windows_needed(&self, rule: &Rule) -> u64 {
        let span = self.allowed_lateness.get().saturating_add(self.closed_window_retention.get());
        let between = u64::try_from(span / rule.slide.get().max(1)).unwrap_or(0);
        between.saturating_add(rule.overlap()).saturating_add(1)
    }

    /// Refuses what would be full of certainty. How often readings match that are asked for their values, nobody knows before.
    fn check_windows(&self, faults: &mut Vec<SettingsFault>) {
        let limit = u64::try_from(self.windows_per_sensor_max).unwrap_or(u64::MAX);
        if self.windows_per_sensor_needed() <= limit {
            return;
        }
        for by in GroupBy::ALL {
            let rules: Vec<&Rule> = self.rules.iter().filter(|rule| rule.by == by).collect();
            let held = metric_types(&rules).into_iter().map(|name| self.surely_held(&rules, &name));
            if let Some((needed, rules)) = held.max_by_key(|(needed, _)| *needed)
                && needed > limit
            {
                faults.push(SettingsFault::RuleWindows { rules, by: by.as_str(), needed, limit });
            }
        }
    }

    /// Windows held of a sensor (or machine) that measures this metric type all the time, whatever its values are, and the names of
    /// the rules that they are for.
    fn surely_held(&self, rules: &[&Rule], metric_type: &MetricType) -> (u64, String) {
        let (mut needed, mut names) = (0_u64, Vec::new());
        // Two rules that look at some senders alone may look at different ones: one counts.
        let mut of_some: Option<(u64, &str)> = None;
        for rule in rules {
            let Some(residual) = rule.filter.given(metric_type) else { continue };
            let windows = self.windows_needed(rule);
            if residual.is_everything() {
                needed = needed.saturating_add(windows);
                names.push(format!("{:?}", rule.name));
            } else if residual.is_by_sender() && of_some.is_none_or(|(most, _)| windows > most) {
                of_some = Some((windows, rule.name.as_str()));
            }
        }
        if let Some((windows, name)) = of_some {
            needed = needed.saturating_add(windows);
            names.push(format!("{name:?}"));
        }
        (needed, names.join(", "))
    }

    fn check_rules(&self, faults: &mut Vec<SettingsFault>) {
        if self.rules.len() > RULES_MAX {
            faults.push(SettingsFault::TooManyRules { count: self.rules.len() });
        }
        let mut names = BTreeSet::new();
        for (index, rule) in self.rules.iter().enumerate() {
            let name = &rule.name;
            if name.trim().is_empty() || name.len() > RULE_NAME_BYTES_MAX {
                faults.push(SettingsFault::RuleName { index, length: name.len() });
            }
            if !names.insert(name) {
                faults.push(SettingsFault::RuleNameTwice { index, name: name.clone() });
            }
            let (slide, window) = (rule.slide, rule.window);
            if window < WINDOW_MIN || window > SPAN_MAX {
                faults.push(SettingsFault::RuleWindow { index, name: name.clone(), window });
            }
            if slide < WINDOW_MIN || slide > window {
                faults.push(SettingsFault::RuleSlide { index, name: name.clone(), slide, window });
            } else if rule.overlap() > OVERLAP_MAX {
                let overlap = rule.overlap();
                faults.push(SettingsFault::RuleOverlap { index, name: name.clone(), overlap });
            }
            if rule.severity > SEVERITY_MAX {
                let severity = rule.severity;
                faults.push(SettingsFault::RuleSeverity { index, name: name.clone(), severity });
            }
        }
    }

    fn check_spans(&self, faults: &mut Vec<SettingsFault>) {
        let none = Micros::new(0);
        let some = Micros::new(1);
        let spans = [
            ("counting.allowed-lateness", self.allowed_lateness, none),
            ("counting.idle-timeout", self.idle_timeout, some),
            ("counting.closed-window-retention", self.closed_window_retention, none),
            ("counting.future-limit", self.future_limit, none),
            ("counting.historical-after", self.historical_after, none),
        ];
        for (what, span, least) in spans {
            if span < least || span > SPAN_MAX {
                faults.push(SettingsFault::Span { what, span, least });
            }
        }
    }

    fn check_limits(&self, faults: &mut Vec<SettingsFault>) {
        let limits = [
            ("counting.metric-types-max", self.metric_types_max),
            ("counting.sensors-max", self.sensors_max),
            ("counting.windows-per-sensor-max", self.windows_per_sensor_max),
            ("counting.windows-max", self.windows_max),
            ("counting.devices-max", self.devices_max),
            ("counting.generations-per-device-max", self.generations_per_device_max),
        ];
        for (what, limit) in limits {
            if limit == 0 {
                faults.push(SettingsFault::Zero { what });
            }
        }
    }
}

/// Metric types that the rules name, and one that they do not.
fn metric_types(rules: &[&Rule]) -> Vec<MetricType> {
    let named: BTreeSet<&str> = rules.iter().flat_map(|rule| rule.filter.metric_types()).collect();
    let mut names = (0_u32..).map(|number| format!("other-{number}"));
    let other = names.find(|name| !named.contains(name.as_str()));
    let all = named.iter().copied().chain(other.as_deref());
    all.filter_map(|name| MetricType::new(name).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_settings_at_every_limit_are_valid() {
        assert_eq!(Settings::default().validate(), Ok(()));
        let rule = |number: usize, window, severity| Rule {
            name: format!("{number:064}"),
            window,
            slide: window,
            severity,
            ..Rule::seed()
        };
        let mut rules: Vec<Rule> = (1..RULES_MAX).map(|i| rule(i, WINDOW_MIN, 0)).collect();
        rules.push(rule(0, SPAN_MAX, SEVERITY_MAX));
        let settings = Settings {
            rules,
            allowed_lateness: Micros::new(0),
            idle_timeout: Micros::new(1),
            closed_window_retention: SPAN_MAX,
            future_limit: Micros::new(0),
            historical_after: Micros::new(0),
            metric_types_max: 1,
            sensors_max: 1,
            windows_per_sensor_max: 1,
            windows_max: 1,
            devices_max: 1,
            generations_per_device_max: 1,
            ..Settings::default()
        };
        assert_eq!(settings.validate(), Ok(()));
    }

    #[test]
    fn each_fault_is_named_with_its_limit_and_its_remedy() {
        let check = |spoil: &dyn Fn(&mut Settings), expected: &str| {
            let mut settings = Settings::default();
            spoil(&mut settings);
            let faults = settings.validate().expect_err(expected);
            let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
            assert_eq!(texts, [expected]);
        };
        check(
            &|settings| settings.rules[0].name = "r".repeat(65),
            "rules[0].name has 65 bytes, 1 to 64 are allowed: rename it",
        );
        check(
            &|settings| settings.rules[0].name = String::new(),
            "rules[0].name has 0 bytes, 1 to 64 are allowed: rename it",
        );
        check(
            &|settings| settings.rules.push(Rule::seed()),
            r#"rule name "temperature-above-100" is used twice: rename one"#,
        );
        check(
            &|settings| settings.rules[0].slide = Micros::new(999_999),
            r#"slide of rule "temperature-above-100" is 0.999999s, 1s to its window of 60s are allowed: change it"#,
        );
        check(
            &|settings| settings.rules[0].slide = Micros::from_seconds(61),
            r#"slide of rule "temperature-above-100" is 61s, 1s to its window of 60s are allowed: change it"#,
        );
        check(
            &|settings| {
                settings.rules[0].window = Micros::from_seconds(1_441);
                settings.rules[0].slide = Micros::from_seconds(1);
            },
            r#"each reading is in 1441 windows of rule "temperature-above-100", at most 1440 are allowed: make its slide longer"#,
        );
        check(
            &|settings| {
                settings.rules[0].window = Micros::new(SPAN_MAX.get() + 1);
                settings.rules[0].slide = SPAN_MAX;
            },
            r#"window of rule "temperature-above-100" is 31622400.000001s, 1s to 31622400s are allowed: change it"#,
        );
        check(
            &|settings| settings.rules[0].severity = 5,
            r#"severity of rule "temperature-above-100" is 5, 0 (critical) to 4 are allowed: change it"#,
        );
        check(
            &|settings| settings.idle_timeout = Micros::new(0),
            "counting.idle-timeout is 0s, 0.000001s to 31622400s are allowed: change it",
        );
        check(
            &|settings| settings.allowed_lateness = Micros::new(-1),
            "counting.allowed-lateness is -0.000001s, 0s to 31622400s are allowed: change it",
        );
        check(&|settings| settings.sensors_max = 0, "counting.sensors-max is 0: give at least 1");
    }

    /// Name, filter, slide and window in seconds, grouping.
    type Sketch<'a> = (&'a str, &'a str, i64, GroupBy);

    fn with_rules(rules: &[Sketch<'_>]) -> Settings {
        let rules = rules.iter().map(|(name, filter, seconds, by)| Rule {
            name: (*name).to_owned(),
            filter: filter.parse().expect("a valid filter"),
            window: Micros::from_seconds(*seconds),
            slide: Micros::from_seconds(*seconds),
            by: *by,
            ..Rule::seed()
        });
        Settings { rules: rules.collect(), ..Settings::default() }
    }

    #[test]
    fn rules_whose_windows_fill_up_whatever_the_values_are_are_refused() {
        use crate::rule::GroupBy::{Machine, Sensor};
        let check = |rules: &[Sketch<'_>], expected: Option<(&str, &'static str, u64)>| {
            let expected = expected.map(|(rules, by, needed)| {
                let (rules, limit) = (rules.to_owned(), 10_000);
                vec![SettingsFault::RuleWindows { rules, by, needed, limit }]
            });
            assert_eq!(with_rules(rules).validate().err(), expected, "{rules:?}");
        };
        let each = |filters: &[&'static str], seconds: i64, by: GroupBy| {
            let rules = ["a", "b", "c", "d", "e", "f", "g"].into_iter().zip(filters);
            rules.map(|(name, filter)| (name, *filter, seconds, by)).collect::<Vec<_>>()
        };
        // 86,410 s in slides, the one that is cut, and the one that is open.
        let hot = "metric_type = temperature";
        check(&[("a", hot, 5, Sensor)], Some(("\"a\"", "sensor", 17_284)));
        check(&[("a", hot, 5, Machine)], Some(("\"a\"", "machine", 17_284)));
        check(&[("a", "metric_type != temperature", 5, Sensor)], Some(("\"a\"", "sensor", 17_284)));
        check(&[("a", hot, 10, Sensor)], None);
        // Nobody knows how often these match.
        for filter in
            ["metric_type = temperature and value > -300", "quality = good", "features.rms > 0"]
        {
            check(&[("a", filter, 5, Sensor)], None);
        }
        let all = "\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\"";
        check(&each(&[hot; 7], 60, Sensor), Some((all, "sensor", 7 * 1_442)));
        check(&each(&[hot; 6], 60, Sensor), None);
        let others = ["metric_type = a", "metric_type = b", "metric_type = c", "metric_type = d"];
        check(&each(&others, 10, Sensor), None);
        let of_each = [each(&[hot; 4], 60, Sensor), each(&[hot; 4], 60, Machine)].concat();
        let of_each: Vec<_> = ["1", "2", "3", "4", "5", "6", "7", "8"]
            .into_iter()
            .zip(of_each)
            .map(|(name, (_, filter, seconds, by))| (name, filter, seconds, by))
            .collect();
        check(&of_each, None);
        // All readings of one sensor, none of another.
        check(&[("a", "sensor_id = x", 5, Sensor)], Some(("\"a\"", "sensor", 17_284)));
        let two = [("a", "sensor_id = x", 10, Sensor), ("b", "sensor_id = y", 10, Sensor)];
        check(&two, None);
        let both = [two[0], ("c", hot, 60, Sensor)];
        check(&both, Some(("\"c\", \"a\"", "sensor", 8_643 + 1_442)));
    }

    #[test]
    fn each_remedy_for_too_many_windows_helps() {
        let refused = with_rules(&[("mean", "metric_type = temperature", 5, GroupBy::Sensor)]);
        let faults = refused.validate().expect_err("too many windows");
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let expected = "17284 windows of one sensor are held for the rules \"mean\" whatever the values are, counting.windows-per-sensor-max \
            is 10000 and readings beyond it are dead letters: raise it, shorten counting.closed-window-retention, or make the slides of \
            the rules longer";
        assert_eq!(texts, [expected]);
        let more = Settings { windows_per_sensor_max: 17_284, ..refused.clone() };
        assert_eq!(more.validate(), Ok(()));
        let closed_window_retention = Micros::from_seconds(12 * 3600);
        let shorter = Settings { closed_window_retention, ..refused.clone() };
        assert_eq!(shorter.validate(), Ok(()));
        let mut longer = refused;
        longer.rules[0].window = Micros::from_seconds(60);
        longer.rules[0].slide = Micros::from_seconds(60);
        assert_eq!(longer.validate(), Ok(()));
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let settings = Settings {
            rules: (0..=RULES_MAX)
                .map(|number| Rule { name: number.to_string(), ..Rule::seed() })
                .collect(),
            windows_max: 0,
            devices_max: 0,
            future_limit: Micros::new(-1),
            ..Settings::default()
        };
        assert_eq!(settings.validate().expect_err("four faults").len(), 4);
    }
}
