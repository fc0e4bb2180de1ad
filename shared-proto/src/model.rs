//! Domain types: validated once, at the edge of the program, and trusted from there on.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// Longest identifier of a sensor, machine or device, in bytes.
pub const IDENTIFIER_BYTES_MAX: usize = 256;
/// Longest metric type, in bytes.
pub const METRIC_TYPE_BYTES_MAX: usize = 64;
/// Longest unit, in bytes.
pub const UNIT_BYTES_MAX: usize = 32;
/// Most features of one reading.
pub const FEATURES_MAX: usize = 256;
/// Longest feature name, in bytes.
pub const FEATURE_NAME_BYTES_MAX: usize = 64;
/// Most readings of one JSON array.
pub const READINGS_PER_ARRAY_MAX: usize = 10_000;
/// Most raw bytes that a dead letter keeps.
pub const DEAD_LETTER_RAW_BYTES_MAX: usize = 65_536;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing but white space.
    #[error("{what} is empty")]
    Empty {
        /// What was to be named.
        what: &'static str,
    },
    /// Longer than the limit.
    #[error("{what} has {length} bytes, at most {limit} are allowed")]
    TooLong {
        /// What was to be named.
        what: &'static str,
        /// Bytes found.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A control character.
    #[error("{what} contains the control character {character:?}")]
    ControlCharacter {
        /// What was to be named.
        what: &'static str,
        /// The character found.
        character: char,
    },
    /// Anything but so many hexadecimal digits.
    #[error("{what} is not {digits} hexadecimal digits")]
    NotHexadecimal {
        /// What was to be named.
        what: &'static str,
        /// Digits that it has to have.
        digits: usize,
    },
}

fn check_name(what: &'static str, limit: usize, text: &str) -> Result<(), NameError> {
    if text.trim().is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > limit {
        return Err(NameError::TooLong { what, length: text.len(), limit });
    }
    match text.chars().find(|character| character.is_control()) {
        Some(character) => Err(NameError::ControlCharacter { what, character }),
        None => Ok(()),
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes over a name.
            ///
            /// # Errors
            /// Empty, too long, or with a control character.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check_name($what, $limit, text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }
    };
}

mod outcome;

pub use outcome::{
    ALERT_ID_DIGITS, AlertId, NOTE_BYTES_MAX, Note, OUTCOME_ID_BYTES_MAX, Outcome, OutcomeId,
    OutcomeVerdict, PART_BYTES_MAX, PartName, REPORTER_BYTES_MAX, Reporter, TICKET_ID_BYTES_MAX,
    TRIP_ID_BYTES_MAX, TicketId, TripId,
};

name_type!(
    /// A sensor, for example `press-1/spindle`. 1 to 256 bytes without control characters.
    SensorId, "sensor_id", IDENTIFIER_BYTES_MAX
);
name_type!(
    /// A machine, for example `press-1`. 1 to 256 bytes without control characters.
    MachineId, "machine_id", IDENTIFIER_BYTES_MAX
);
name_type!(
    /// A gateway that runs an edge module, for example `gw-07`. 1 to 256 bytes without control characters.
    DeviceId, "device_id", IDENTIFIER_BYTES_MAX
);
name_type!(
    /// What a reading measures: `temperature`, `pressure`, `vibration` or another. 1 to 64 bytes.
    MetricType, "metric_type", METRIC_TYPE_BYTES_MAX
);

/// First and last microsecond that RFC 3339 can write in UTC: those of the years 0 to 9999.
const RFC_3339_MICROS: std::ops::RangeInclusive<i64> =
    -62_167_219_200_000_000..=253_402_300_799_999_999;

/// When the sensor measured: microseconds since 1970-01-01T00:00:00Z. Never mixed with processing time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventTime(i64);

impl EventTime {
    /// Event time of so many microseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Parses RFC 3339; more than six fractional digits are cut off. Nothing if an offset leads out of the years 0 to 9999.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(micros) = parse_common(text.as_bytes()) {
            return Some(Self(micros));
        }
        let parsed = Self(DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros());
        parsed.is_in_rfc_3339().then_some(parsed)
    }

    /// Whether [`Self::parse`] reads what is written of it: the years 0 to 9999.
    #[must_use]
    pub fn is_in_rfc_3339(self) -> bool {
        RFC_3339_MICROS.contains(&self.0)
    }

    /// Later by so many microseconds; stops at the end of the range.
    #[must_use]
    pub const fn saturating_add_micros(self, micros: i64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// Earlier by so many microseconds; stops at the end of the range.
    #[must_use]
    pub const fn saturating_sub_micros(self, micros: i64) -> Self {
        Self(self.0.saturating_sub(micros))
    }

    /// Microseconds from `earlier` to here, negative if it is later.
    #[must_use]
    pub const fn micros_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Microseconds since 1970 of the form that nearly all producers write, `2026-03-01T08:15:30.123456Z` with no or up to nine
/// digits behind the point; nothing of any other, also where that is RFC 3339.
fn parse_common(text: &[u8]) -> Option<i64> {
    let (head, tail) = text.split_at_checked(19)?;
    let number = |from: usize, to: usize| {
        head[from..to].iter().try_fold(0_i64, |number, byte| {
            byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0'))
        })
    };
    if [head[4], head[7], head[10], head[13], head[16]] != *b"--T::" {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    // What is not in the calendar for sure is left to the calendar.
    if !(1..=12).contains(&month) || !(1..=28).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let fraction = match tail {
        [b'Z'] => 0,
        [b'.', digits @ .., b'Z'] if (1..=9).contains(&digits.len()) => {
            let mut micros = 0;
            for place in 0..6 {
                let digit = digits.get(place).copied().unwrap_or(b'0');
                micros = micros * 10 + i64::from(digit.wrapping_sub(b'0'));
            }
            digits.iter().all(u8::is_ascii_digit).then_some(micros)?
        }
        _ => return None,
    };
    // Days by the algorithm of Howard Hinnant, "chrono-compatible low-level date algorithms", days_from_civil; years from 0.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(seconds * 1_000_000 + fraction)
}

/// RFC 3339 in UTC with microseconds, for example `2026-03-01T08:15:30.123456Z`.
impl fmt::Display for EventTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::<Utc>::from_timestamp_micros(self.0) {
            Some(time) => formatter.write_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true)),
            None => write!(formatter, "{} us since 1970", self.0),
        }
    }
}

/// Which life of a device's journal a sequence belongs to. A lost disk starts a new one.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// Number of a record in its device's journal, without gaps within a generation, from 1.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The sequence of the following record.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Which record this is, for ever: a repeat carries the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The device whose journal numbered the record.
    pub device_id: DeviceId,
    /// The life of that journal.
    pub generation: Generation,
    /// The number within that life.
    pub sequence: Sequence,
}

/// What the producer thinks of a value (OPC UA's three classes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quality {
    /// Usable.
    Good,
    /// Usable with doubt.
    Uncertain,
    /// Not usable.
    Bad,
}

impl Quality {
    /// The word used in JSON and in the tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Uncertain => "uncertain",
            Self::Bad => "bad",
        }
    }
}

/// One measured value. The value and the features are finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Who measured.
    pub sensor_id: SensorId,
    /// When.
    pub timestamp: EventTime,
    /// What.
    pub metric_type: MetricType,
    /// How much, in `unit`.
    pub value: f64,
    /// Which machine the sensor sits on.
    pub machine_id: Option<MachineId>,
    /// Unit of `value`, for example `Cel`, `bar`, `mm/s`.
    pub unit: Option<Arc<str>>,
    /// What the producer thinks of it.
    pub quality: Option<Quality>,
    /// Which record of which device; absent from producers that number nothing.
    pub identity: Option<Identity>,
    /// Sent after its time, from a journal that had been waiting for the network.
    pub historical: bool,
    /// Derived numbers by name, such as `rms` or `score` of a vibration window.
    pub features: BTreeMap<String, f64>,
}

impl Reading {
    /// A reading with the four required fields only.
    #[must_use]
    pub fn new(
        sensor_id: SensorId,
        timestamp: EventTime,
        metric_type: MetricType,
        value: f64,
    ) -> Self {
        Self {
            sensor_id,
            timestamp,
            metric_type,
            value,
            machine_id: None,
            unit: None,
            quality: None,
            identity: None,
            historical: false,
            features: BTreeMap::new(),
        }
    }
}

/// Consecutive raw samples of one vibration sensor, in physical units.
#[derive(Clone, Debug, PartialEq)]
pub struct WaveformBlock {
    /// Which machine the sensor sits on.
    pub machine_id: MachineId,
    /// Who measured.
    pub sensor_id: SensorId,
    /// When the first sample was taken.
    pub first_sample: EventTime,
    /// Samples per second, finite and above 0.
    pub sample_rate_hz: f64,
    /// Unit of the samples.
    pub unit: Option<Arc<str>>,
    /// At least one sample; all finite.
    pub samples: Vec<f32>,
}

/// A piece of the raw samples around a trip: consecutive samples of one sensor.
#[derive(Clone, Debug, PartialEq)]
pub struct WaveformSnapshot {
    /// The samples, in physical units.
    pub block: WaveformBlock,
    /// Physical units per count, where every sample is a 16-bit count times this, computed in 32-bit floats. Samples that
    /// are not are written as floats.
    pub scale: Option<f64>,
    /// Name of the trip, or of the alarm, that the samples were taken around.
    pub trip_id: String,
    /// Number among the pieces of this trip and sensor, from 1, oldest samples first.
    pub piece: u32,
    /// Which record of which device; absent until journalled.
    pub identity: Option<Identity>,
}

/// What happened to a machine or to the device that watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineEventType {
    /// A rule asked for a stop; latched from here on.
    Trip,
    /// The machine side reported standstill.
    StopConfirmed,
    /// The deadline passed without a report of standstill: highest severity.
    StopNotConfirmed,
    /// A person cleared the latch.
    Reset,
    /// A person asked for a reset while the cause was present.
    ResetRefused,
    /// A sensor is silent, frozen or out of range.
    SensorFault,
    /// A sensor that was at fault delivers again.
    SensorRecovered,
    /// Another model bundle is in force.
    ModelChanged,
    /// A model bundle did not pass its checks; the one before stays in force.
    ModelRefused,
    /// A page of the journal's books: the sequences given since the last one, and how far delivery has come.
    Ledger,
    /// Sequences that will never come: evicted or lost.
    Gap,
    /// The edge module started.
    Started,
    /// The edge module stopped in an orderly way.
    Stopped,
    /// A rule that only warns was violated.
    Alarm,
    /// A rule that only warns is no longer violated.
    AlarmCleared,
    /// A machine moved although its trip is latched.
    MovedWhileTripped,
    /// A rule would have tripped, but is shelved, suppressed during start-up, or the machine is in dry run.
    TripSuppressed,
    /// A person took a rule out of force for a time.
    Shelved,
    /// A shelved rule is in force again.
    Unshelved,
    /// New settings are in force.
    SettingsChanged,
    /// New settings were refused whole; the ones before stay in force.
    SettingsRefused,
    /// Records that were missing have come, or are told as lost.
    GapClosed,
    /// A person lets the module learn what is usual of a machine.
    LearningStarted,
    /// What is usual of a machine was learnt and is in force.
    BaselineLearnt,
    /// Learning was refused or cut short; what was learnt before stays in force.
    LearningRefused,
}

impl MachineEventType {
    /// Every one, in the order in which they came to be.
    pub const ALL: [Self; 25] = [
        Self::Trip,
        Self::StopConfirmed,
        Self::StopNotConfirmed,
        Self::Reset,
        Self::ResetRefused,
        Self::SensorFault,
        Self::SensorRecovered,
        Self::ModelChanged,
        Self::ModelRefused,
        Self::Ledger,
        Self::Gap,
        Self::Started,
        Self::Stopped,
        Self::Alarm,
        Self::AlarmCleared,
        Self::MovedWhileTripped,
        Self::TripSuppressed,
        Self::Shelved,
        Self::Unshelved,
        Self::SettingsChanged,
        Self::SettingsRefused,
        Self::GapClosed,
        Self::LearningStarted,
        Self::BaselineLearnt,
        Self::LearningRefused,
    ];

    /// The word used in JSON and in the tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trip => "trip",
            Self::StopConfirmed => "stop-confirmed",
            Self::StopNotConfirmed => "stop-not-confirmed",
            Self::Reset => "reset",
            Self::ResetRefused => "reset-refused",
            Self::SensorFault => "sensor-fault",
            Self::SensorRecovered => "sensor-recovered",
            Self::ModelChanged => "model-changed",
            Self::ModelRefused => "model-refused",
            Self::Ledger => "ledger",
            Self::Gap => "gap",
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::Alarm => "alarm",
            Self::AlarmCleared => "alarm-cleared",
            Self::MovedWhileTripped => "moved-while-tripped",
            Self::TripSuppressed => "trip-suppressed",
            Self::Shelved => "shelved",
            Self::Unshelved => "unshelved",
            Self::SettingsChanged => "settings-changed",
            Self::SettingsRefused => "settings-refused",
            Self::GapClosed => "gap-closed",
            Self::LearningStarted => "learning-started",
            Self::BaselineLearnt => "baseline-learnt",
            Self::LearningRefused => "learning-refused",
        }
    }
}

/// One machine event with what is known about it.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineEvent {
    /// What happened.
    pub event_type: MachineEventType,
    /// To which machine; a device that speaks of itself uses its own name.
    pub machine_id: MachineId,
    /// When.
    pub timestamp: EventTime,
    /// Which record of which device; absent until journalled.
    pub identity: Option<Identity>,
    /// Sent after its time.
    pub historical: bool,
    /// What else is known.
    pub details: MachineEventDetails,
}

/// The optional fields of a machine event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineEventDetails {
    /// Why: `limit`, `score`, `silence`, or the class of what was evicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Sensor that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensor_id: Option<SensorId>,
    /// Metric that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric_type: Option<MetricType>,
    /// Value that decided, in the sensor's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Limit that it passed, in the same unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// The model's answer, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Model bundle in force, as `name@version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Last sample received to stop command written, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_latency_micros: Option<u64>,
    /// Last sample received to standstill confirmed, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmation_latency_micros: Option<u64>,
    /// First sequence that an outbox event speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_sequence: Option<u64>,
    /// Last sequence that an outbox event speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sequence: Option<u64>,
    /// How many records an outbox event speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_count: Option<u64>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Settings of the machine's rules in force: first twelve hexadecimal digits of their SHA-256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_version: Option<String>,
    /// Name of the trip that the event belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trip_id: Option<String>,
    /// Who asked, where a person did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// Of a ledger: every record up to this sequence was delivered, or is told as lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered_sequence: Option<u64>,
    /// Of a ledger: which sequences from `first_sequence` to `last_sequence` are waveforms, as ranges: `5-9,12`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waveform_sequences: Option<String>,
    /// Of a trip by a score: by how much the score's logit (natural logarithmic odds) would fall if a feature of the window were as usual,
    /// largest first: `band-06=2.10,band-07=0.80`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contributions: Option<String>,
}

/// Input that can never be processed, with its reason and its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// A short word, for counting.
    pub reason: String,
    /// A sentence for people.
    pub detail: String,
    /// Where it came from: an MQTT or Kafka topic.
    pub source: String,
    /// When it was refused.
    pub timestamp: EventTime,
    /// Which record of which device; absent until journalled.
    pub identity: Option<Identity>,
    /// At most the first [`DEAD_LETTER_RAW_BYTES_MAX`] bytes.
    pub raw: Vec<u8>,
    /// Length before the cut.
    pub raw_length: u64,
}

impl DeadLetter {
    /// A dead letter without identity that keeps the beginning of `raw`.
    #[must_use]
    pub fn new(
        reason: &str,
        detail: String,
        source: &str,
        timestamp: EventTime,
        raw: &[u8],
    ) -> Self {
        Self {
            reason: reason.to_owned(),
            detail,
            source: source.to_owned(),
            timestamp,
            identity: None,
            raw: raw[..raw.len().min(DEAD_LETTER_RAW_BYTES_MAX)].to_vec(),
            raw_length: raw.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::Datelike as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn event_time_keeps_microseconds_and_normalises_the_zone() {
        let check = |input: &str, expected: &str| {
            let time = EventTime::parse(input).expect(input);
            assert_eq!(time.to_string(), expected, "{input}");
        };
        check("2026-03-01T08:15:30.123456Z", "2026-03-01T08:15:30.123456Z");
        check("2026-03-01T10:15:30.5+02:00", "2026-03-01T08:15:30.500000Z");
        check("2026-03-01t08:15:30z", "2026-03-01T08:15:30.000000Z");
        check("2026-03-01T08:15:30.123456789Z", "2026-03-01T08:15:30.123456Z");
        check("1969-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999Z");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// The short way gives what the calendar gives, or leaves it to the calendar.
        #[test]
        fn common_forms_are_read_as_the_calendar_reads_them(
            micros in -62_167_219_200_000_000_i64..=253_402_300_799_999_999,
            digits in 0_usize..=10,
            spoilt in proptest::option::of((0_usize..32, any::<u8>())),
        ) {
            let time = DateTime::<Utc>::from_timestamp_micros(micros).expect("in the calendar");
            let mut text = time.format("%Y-%m-%dT%H:%M:%S").to_string().into_bytes();
            if digits > 0 {
                let fraction = format!(".{:06}0000", micros.rem_euclid(1_000_000));
                text.extend_from_slice(&fraction.as_bytes()[..=digits]);
            }
            text.push(b'Z');
            if let Some((place, byte)) = spoilt {
                let place = place % text.len();
                text[place] = byte & 0x7f;
            }
            if let Some(found) = parse_common(&text) {
                let text = std::str::from_utf8(&text).expect("ASCII");
                let expected = DateTime::parse_from_rfc3339(text).ok();
                prop_assert_eq!(Some(found), expected.map(|time| time.timestamp_micros()), "{}", text);
            } else if spoilt.is_none() && digits <= 9 {
                prop_assert!(time.day() > 28, "{:?} is a common form", text);
            }
        }
    }

    #[test]
    fn event_time_refuses_what_is_not_rfc_3339() {
        for input in ["", "yesterday", "2026-03-01", "2026-02-30T00:00:00Z", "1767225900"] {
            assert_eq!(EventTime::parse(input), None, "{input}");
        }
        // Years that would need a sign or a fifth digit in UTC.
        for input in [
            "0000-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            "9999-12-31T23:59:60.999999Z",
        ] {
            assert_eq!(EventTime::parse(input), None, "{input}");
        }
    }

    #[test]
    fn names_are_limited_at_below_and_above() {
        let at = "s".repeat(IDENTIFIER_BYTES_MAX);
        assert!(SensorId::new(&at).is_ok());
        assert_eq!(
            SensorId::new(&format!("{at}s")),
            Err(NameError::TooLong { what: "sensor_id", length: 257, limit: 256 })
        );
        assert_eq!(SensorId::new("  "), Err(NameError::Empty { what: "sensor_id" }));
        assert_eq!(
            MachineId::new("a\nb"),
            Err(NameError::ControlCharacter { what: "machine_id", character: '\n' })
        );
    }
}
