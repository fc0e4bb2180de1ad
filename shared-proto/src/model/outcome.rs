//! What people found at a machine after an alert or a trip.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{EventTime, MachineId, NameError, SensorId, check_name};

/// Longest name of an outcome, in bytes.
pub const OUTCOME_ID_BYTES_MAX: usize = 256;
/// Hexadecimal digits of an alert's name: a SHA-256.
pub const ALERT_ID_DIGITS: usize = 64;
/// Longest name of a trip that an outcome speaks of, in bytes.
pub const TRIP_ID_BYTES_MAX: usize = 256;
/// Longest name of a ticket, in bytes.
pub const TICKET_ID_BYTES_MAX: usize = 256;
/// Longest description of a part, in bytes.
pub const PART_BYTES_MAX: usize = 256;
/// Longest note, in bytes.
pub const NOTE_BYTES_MAX: usize = 4_096;
/// Longest name of who reports, in bytes.
pub const REPORTER_BYTES_MAX: usize = 128;

name_type!(
    /// An outcome, for example `ticket-4711`: what carries the same name corrects it. 1 to 256 bytes without control characters.
    OutcomeId, "outcome_id", OUTCOME_ID_BYTES_MAX
);
name_type!(
    /// A trip, for example `press-1-1772352930123456-1`. 1 to 256 bytes without control characters.
    TripId, "trip_id", TRIP_ID_BYTES_MAX
);
name_type!(
    /// A ticket of the maintenance system, for example `4711`. 1 to 256 bytes without control characters.
    TicketId, "ticket_id", TICKET_ID_BYTES_MAX
);
name_type!(
    /// A part of a machine, for example `bearing 6205 drive end`. 1 to 256 bytes without control characters.
    PartName, "part", PART_BYTES_MAX
);
name_type!(
    /// A person or a system that reports. 1 to 128 bytes without control characters.
    Reporter, "reported_by", REPORTER_BYTES_MAX
);

/// An alert: 64 hexadecimal digits, kept in lower case, as the aggregator writes them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AlertId(Arc<str>);

impl AlertId {
    /// Checks and takes over the name of an alert, in either case.
    ///
    /// # Errors
    /// Anything but 64 hexadecimal digits.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let what = "alert_id";
        let is_digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if text.len() != ALERT_ID_DIGITS || !is_digits {
            return Err(NameError::NotHexadecimal { what, digits: ALERT_ID_DIGITS });
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AlertId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl AsRef<str> for AlertId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AlertId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(&text)
    }
}

impl From<AlertId> for String {
    fn from(id: AlertId) -> String {
        id.0.as_ref().to_owned()
    }
}

/// A text for people, of several lines perhaps. 1 to 4,096 bytes; of control characters only tabs and the ends of lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Note(Arc<str>);

impl Note {
    /// Checks and takes over a note.
    ///
    /// # Errors
    /// Empty, too long, or with a control character that is neither a tab nor the end of a line.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let what = "note";
        if text.trim().is_empty() {
            return Err(NameError::Empty { what });
        }
        if text.len() > NOTE_BYTES_MAX {
            return Err(NameError::TooLong { what, length: text.len(), limit: NOTE_BYTES_MAX });
        }
        let is_refused =
            |character: &char| character.is_control() && !matches!(character, '\t' | '\n' | '\r');
        match text.chars().find(is_refused) {
            Some(character) => Err(NameError::ControlCharacter { what, character }),
            None => Ok(Self(text.into())),
        }
    }

    /// The note as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl AsRef<str> for Note {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Note {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(&text)
    }
}

impl From<Note> for String {
    fn from(note: Note) -> String {
        note.0.as_ref().to_owned()
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeVerdict {
    /// There was something wrong with the machine.
    Confirmed,
    /// There was nothing wrong with the machine.
    FalseAlarm,
    /// There was something wrong with the machine, and a part was replaced.
    PartReplaced,
    /// Neither: something worth knowing.
    Note,
}

impl OutcomeVerdict {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Confirmed, Self::FalseAlarm, Self::PartReplaced, Self::Note];

    /// The word used in JSON and in the tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::FalseAlarm => "false-alarm",
            Self::PartReplaced => "part-replaced",
            Self::Note => "note",
        }
    }

    /// The verdict of a word, if it is one.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.as_str() == word)
    }

    /// Whether the alert was right; nothing if the verdict does not say so.
    #[must_use]
    pub const fn is_right(self) -> Option<bool> {
        match self {
            Self::Confirmed | Self::PartReplaced => Some(true),
            Self::FalseAlarm => Some(false),
            Self::Note => None,
        }
    }
}

/// What people found at a machine. Of several with one [`OutcomeId`] the newest counts, by `timestamp` and then by its place in
/// the topic: a person may correct.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Name, chosen by who reports.
    pub outcome_id: OutcomeId,
    /// What was found.
    pub verdict: OutcomeVerdict,
    /// At which machine.
    pub machine_id: MachineId,
    /// When it was found.
    pub timestamp: EventTime,
    /// The alert that it judges.
    pub alert_id: Option<AlertId>,
    /// The trip that it judges.
    pub trip_id: Option<TripId>,
    /// The sensor that it speaks of.
    pub sensor_id: Option<SensorId>,
    /// The ticket of the maintenance system.
    pub ticket_id: Option<TicketId>,
    /// What was broken or was replaced.
    pub part: Option<PartName>,
    /// What else there is to say.
    pub note: Option<Note>,
    /// Who says so.
    pub reported_by: Option<Reporter>,
}

impl Outcome {
    /// An outcome with the four required fields only.
    #[must_use]
    pub fn new(
        outcome_id: OutcomeId,
        verdict: OutcomeVerdict,
        machine_id: MachineId,
        timestamp: EventTime,
    ) -> Self {
        Self {
            outcome_id,
            verdict,
            machine_id,
            timestamp,
            alert_id: None,
            trip_id: None,
            sensor_id: None,
            ticket_id: None,
            part: None,
            note: None,
            reported_by: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alert_names_are_64_hexadecimal_digits_in_either_case() {
        let lower = "0123456789abcdef".repeat(4);
        for text in [lower.clone(), lower.to_uppercase()] {
            assert_eq!(AlertId::new(&text).expect("valid").as_str(), lower);
        }
        let expected = "alert_id is not 64 hexadecimal digits";
        for text in ["", &lower[1..], &format!("{lower}0"), &lower.replace('a', "g")] {
            assert_eq!(AlertId::new(text).expect_err("refused").to_string(), expected, "{text:?}");
        }
        // As many bytes, not as many characters.
        assert!(AlertId::new(&"é".repeat(32)).is_err());
    }

    #[test]
    fn notes_may_have_lines_and_are_limited_at_below_and_above() {
        assert!(Note::new("first\r\n\tsecond\n").is_ok());
        assert!(Note::new(&"n".repeat(NOTE_BYTES_MAX)).is_ok());
        let above = Note::new(&"n".repeat(NOTE_BYTES_MAX + 1)).expect_err("refused");
        assert_eq!(above.to_string(), "note has 4097 bytes, at most 4096 are allowed");
        assert_eq!(Note::new(" \n"), Err(NameError::Empty { what: "note" }));
        let bell = NameError::ControlCharacter { what: "note", character: '\u{7}' };
        assert_eq!(Note::new("a\u{7}"), Err(bell));
    }

    #[test]
    fn names_of_an_outcome_have_the_limits_of_the_contract() {
        let text = |length: usize| "x".repeat(length);
        assert!(OutcomeId::new(&text(256)).is_ok() && OutcomeId::new(&text(257)).is_err());
        assert!(TripId::new(&text(256)).is_ok() && TripId::new(&text(257)).is_err());
        assert!(TicketId::new(&text(256)).is_ok() && TicketId::new(&text(257)).is_err());
        assert!(PartName::new(&text(256)).is_ok() && PartName::new(&text(257)).is_err());
        assert!(Reporter::new(&text(128)).is_ok() && Reporter::new(&text(129)).is_err());
        assert!(Reporter::new("Kim\n").is_err());
    }

    #[test]
    fn every_verdict_has_its_word_and_says_whether_the_alert_was_right() {
        for verdict in OutcomeVerdict::ALL {
            assert_eq!(OutcomeVerdict::from_word(verdict.as_str()), Some(verdict));
            let json = serde_json::to_string(&verdict).expect("a word");
            assert_eq!(json, format!("{:?}", verdict.as_str()));
        }
        assert_eq!(OutcomeVerdict::from_word("Confirmed"), None);
        let right = OutcomeVerdict::ALL.map(OutcomeVerdict::is_right);
        assert_eq!(right, [Some(true), Some(false), Some(true), None]);
    }
}
