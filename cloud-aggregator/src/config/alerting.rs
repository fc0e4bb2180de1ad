//! `[alerting]`: when people are told, and when not.

use std::collections::BTreeMap;
use std::time::Duration;

use aggregator_core::alert::{
    AlertingEvent, Suppression, SuppressionKind, SuppressionTime, Weekday,
};
use aggregator_core::{AlertGroup, AlertSettings, ProcessingTime};
use serde::Deserialize;
use shared_proto::model::{EventTime, MachineId};

use super::Fault;

/// `[alerting]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Alerting {
    /// What becomes one alert.
    pub group_by: Grouping,
    /// When an alert is over.
    #[serde(with = "humantime_serde")]
    pub resolve_after: Duration,
    /// Alerts open at once in one Kafka partition.
    pub open_max: usize,
    /// Machine events that fire alerts, with their severities.
    pub machine_events: BTreeMap<String, EventSeverity>,
    /// Planned work.
    pub maintenance: Vec<MaintenanceWindow>,
    /// What people do not want to be told for a time.
    pub shelved: Vec<Shelved>,
}

/// How severe an alert of a machine event is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum EventSeverity {
    /// 0 (critical) to 4.
    Severity(u8),
    /// `"off"`: it is no alert. Tables of a file are merged with the defaults, so that leaving it out says nothing.
    Off(Off),
}

/// The word `off`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Off {
    /// No alert.
    Off,
}

/// What becomes one alert.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Grouping {
    /// Findings of a machine and rule, while they last.
    Machine,
    /// Findings of a sensor and rule, while they last.
    Sensor,
    /// Each finding, at once; nothing resolves it, and machine events fire none.
    Window,
}

/// One entry of `[[alerting.maintenance]]`: once, or each week.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MaintenanceWindow {
    /// Unique.
    pub name: String,
    /// Empty: all.
    #[serde(default)]
    pub rules: Vec<String>,
    /// Empty: all.
    #[serde(default)]
    pub machines: Vec<String>,
    /// Once: RFC 3339.
    #[serde(default)]
    pub from: Option<String>,
    /// Once: RFC 3339.
    #[serde(default)]
    pub until: Option<String>,
    /// Each week on these days.
    #[serde(default)]
    pub days: Vec<Weekday>,
    /// `22:00`.
    #[serde(default)]
    pub from_time: Option<String>,
    /// `06:00`, on the next day if it is not after `from-time`.
    #[serde(default)]
    pub to_time: Option<String>,
    /// `+01:00`; absent: UTC.
    #[serde(default)]
    pub utc_offset: Option<String>,
}

/// One entry of `[[alerting.shelved]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Shelved {
    /// Unique.
    pub name: String,
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
    /// RFC 3339.
    pub from: String,
    /// RFC 3339.
    pub until: String,
    /// Empty: all.
    #[serde(default)]
    pub rules: Vec<String>,
    /// Empty: all.
    #[serde(default)]
    pub machines: Vec<String>,
}

impl Alerting {
    /// For the core; what is faulty is left out. `None`: each finding is an alert of its own.
    pub(super) fn core(&self) -> Option<AlertSettings> {
        self.read(&mut Vec::new())
    }

    /// Everything that is wrong.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Some(settings) = self.read(&mut faults) {
            let found = settings.validate().err().unwrap_or_default();
            faults.extend(
                found
                    .iter()
                    .map(|fault| Fault { path: "alerting".to_owned(), text: fault.to_string() }),
            );
        }
        faults
    }

    fn read(&self, faults: &mut Vec<Fault>) -> Option<AlertSettings> {
        let by = match self.group_by {
            Grouping::Machine => AlertGroup::Machine,
            Grouping::Sensor => AlertGroup::Sensor,
            Grouping::Window => return None,
        };
        let mut event_severities = BTreeMap::new();
        for (word, severity) in &self.machine_events {
            let found = AlertingEvent::ALL.into_iter().find(|it| it.event_type().as_str() == word);
            match (found, severity) {
                (Some(event), EventSeverity::Severity(severity)) => {
                    event_severities.insert(event, *severity);
                }
                (Some(_), EventSeverity::Off(Off::Off)) => {}
                (None, _) => faults.push(Fault {
                    path: format!("alerting.machine-events.{word}"),
                    text: format!("fires no alert; there are {}", words()),
                }),
            }
        }
        let mut suppressions = Vec::new();
        for (index, window) in self.maintenance.iter().enumerate() {
            let path = format!("alerting.maintenance[{index}]");
            keep(window.suppression(), path, &mut suppressions, faults);
        }
        for (index, shelved) in self.shelved.iter().enumerate() {
            let path = format!("alerting.shelved[{index}]");
            keep(shelved.suppression(), path, &mut suppressions, faults);
        }
        Some(AlertSettings {
            by,
            resolve_after: self.resolve_after.into(),
            open_max: self.open_max,
            suppressions,
            event_severities,
        })
    }
}

fn keep(
    found: Result<Suppression, String>,
    path: String,
    suppressions: &mut Vec<Suppression>,
    faults: &mut Vec<Fault>,
) {
    match found {
        Ok(suppression) => suppressions.push(suppression),
        Err(text) => faults.push(Fault { path, text }),
    }
}

fn words() -> String {
    let words: Vec<&str> = AlertingEvent::ALL.iter().map(|it| it.event_type().as_str()).collect();
    words.join(", ")
}

impl MaintenanceWindow {
    fn suppression(&self) -> Result<Suppression, String> {
        let once = (&self.from, &self.until);
        let weekly = (&self.from_time, &self.to_time);
        let when = match (once, weekly) {
            ((Some(from), Some(until)), (None, None)) if self.days.is_empty() => {
                SuppressionTime::At { from: moment("from", from)?, until: moment("until", until)? }
            }
            ((None, None), (Some(from), Some(to))) if !self.days.is_empty() => {
                SuppressionTime::Weekly {
                    days: self.days.clone(),
                    from_minute: minute("from-time", from)?,
                    // Midnight is the end of the day.
                    to_minute: match minute("to-time", to)? {
                        0 => 24 * 60,
                        minute => minute,
                    },
                    offset_minutes: offset(self.utc_offset.as_deref().unwrap_or("+00:00"))?,
                }
            }
            (_, _) => {
                return Err("needs from and until, or days, from-time and to-time".to_owned());
            }
        };
        Ok(Suppression {
            name: self.name.clone(),
            kind: SuppressionKind::Maintenance,
            rules: self.rules.clone(),
            machines: machines(&self.machines)?,
            when,
        })
    }
}

impl Shelved {
    fn suppression(&self) -> Result<Suppression, String> {
        let (from, until) = (moment("from", &self.from)?, moment("until", &self.until)?);
        Ok(Suppression {
            name: self.name.clone(),
            kind: SuppressionKind::Shelved { by: self.by.clone(), reason: self.reason.clone() },
            rules: self.rules.clone(),
            machines: machines(&self.machines)?,
            when: SuppressionTime::At { from, until },
        })
    }
}

fn machines(names: &[String]) -> Result<Vec<MachineId>, String> {
    names
        .iter()
        .map(|name| MachineId::new(name).map_err(|error| format!("machines: {error}")))
        .collect()
}

fn moment(key: &str, text: &str) -> Result<ProcessingTime, String> {
    let parsed = EventTime::parse(text).map(|time| ProcessingTime::from_micros(time.micros()));
    parsed.ok_or_else(|| format!("{key}: {text:?} is no time such as 2026-03-01T08:00:00Z"))
}

fn minute(key: &str, text: &str) -> Result<u16, String> {
    let wrong = || format!("{key}: {text:?} is no time of day such as 22:00");
    let (hours, minutes) = text.split_once(':').ok_or_else(wrong)?;
    if text.bytes().any(|byte| !byte.is_ascii_digit() && byte != b':') {
        return Err(wrong());
    }
    let (hours, minutes): (u16, u16) = match (hours.parse(), minutes.parse()) {
        (Ok(hours), Ok(minutes)) => (hours, minutes),
        (_, _) => return Err(wrong()),
    };
    let minute = hours.saturating_mul(60).saturating_add(minutes);
    if minutes < 60 && minute <= 24 * 60 { Ok(minute) } else { Err(wrong()) }
}

fn offset(text: &str) -> Result<i16, String> {
    let wrong = || format!("utc-offset: {text:?} is no offset such as +01:00");
    let (sign, rest) = match text.split_at_checked(1) {
        Some(("+", rest)) => (1, rest),
        Some(("-", rest)) => (-1, rest),
        Some(_) | None => return Err(wrong()),
    };
    let minutes = i16::try_from(minute("utc-offset", rest)?).map_err(|_| wrong())?;
    Ok(sign * minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Alerting {
        let settings = config::Config::builder()
            .add_source(config::File::from_str(text, config::FileFormat::Toml))
            .build()
            .expect("TOML");
        settings.try_deserialize().expect("of the form")
    }

    const REST: &str = "group-by = \"machine\"\nresolve-after = \"5m\"\nopen-max = 10\n\
                        machine-events = { trip = 1 }\nmaintenance = []\nshelved = []\n";

    #[test]
    fn weekly_and_single_windows_are_read() {
        let text = REST.replace(
            "maintenance = []",
            "maintenance = [{ name = \"night\", days = [\"saturday\"], from-time = \"22:00\", to-time = \"06:00\", utc-offset = \"+01:00\" }, \
             { name = \"once\", machines = [\"press-1\"], from = \"2026-03-01T08:00:00Z\", until = \"2026-03-01T10:00:00Z\" }]",
        );
        let alerting = read(&text);
        assert_eq!(alerting.faults(), []);
        let settings = alerting.core().expect("grouped");
        assert_eq!(
            settings.suppressions[0].when,
            SuppressionTime::Weekly {
                days: vec![Weekday::Saturday],
                from_minute: 22 * 60,
                to_minute: 6 * 60,
                offset_minutes: 60,
            }
        );
        assert_eq!(settings.suppressions[1].machines.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |from: &str, to: &str, path: &str, words: &str| {
            let faults = read(&REST.replace(from, to)).faults();
            let found = faults.iter().any(|it| it.path == path && it.text.contains(words));
            assert!(found, "{faults:?}");
        };
        let maintenance = "maintenance = []";
        let of = |entry: &str| format!("maintenance = [{{ name = \"n\", {entry} }}]");
        let path = "alerting.maintenance[0]";
        check(maintenance, &of("days = [\"monday\"]"), path, "needs from and until");
        let days = "days = [\"monday\"], from-time = \"25:00\", to-time = \"06:00\"";
        check(maintenance, &of(days), path, "from-time");
        let days = "days = [\"monday\"], from-time = \"+2:+0\", to-time = \"06:00\"";
        check(maintenance, &of(days), path, "from-time");
        check(maintenance, &of("from = \"noon\", until = \"later\""), path, "noon");
        let event = "alerting.machine-events.started";
        check("trip = 1", "started = 1", event, "stop-not-confirmed");
        check("trip = 1", "trip = 7", "alerting", "7");
        let off = read(&REST.replace("trip = 1", "trip = \"off\"")).core().expect("grouped");
        assert!(off.event_severities.is_empty());
    }

    #[test]
    fn each_window_can_be_an_alert_of_its_own() {
        assert!(read(&REST.replace("\"machine\"", "\"window\"")).core().is_none());
    }
}
