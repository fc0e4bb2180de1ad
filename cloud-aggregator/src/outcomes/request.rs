//! The outcomes of a request's body.

use std::collections::BTreeMap;

use serde_json::error::Category;
use serde_json::value::RawValue;
use shared_proto::DecodeError;
use shared_proto::codec::decode_outcome_of_request;
use shared_proto::model::{EventTime, Outcome, OutcomeId, Reporter};

use super::OUTCOMES_PER_REQUEST_MAX;
use super::problem::{Fault, Problem, shortened};

/// How far ahead of this machine's clock an outcome may lie. One from the future could not be corrected until then, since the newest
/// counts.
const FUTURE_MICROS_MAX: i64 = 5 * 60 * 1_000_000;

/// Who asks, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// The system that the token belongs to: it reports what nobody has put a name to.
    pub(super) system: &'a Reporter,
    /// The header idempotency-key.
    pub(super) key: Option<&'a OutcomeId>,
    /// This machine's clock.
    pub(super) now: EventTime,
}

/// Reads an object or an array of them: all are valid, or none is taken.
pub(super) fn outcomes_of(body: &[u8], asked: Asked<'_>) -> Result<Vec<Outcome>, Problem> {
    let not_json = |text: &dyn std::fmt::Display| Problem::NotJson { text: text.to_string() };
    let text = std::str::from_utf8(body).map_err(|error| not_json(&error))?;
    let first = text.bytes().find(|byte| !byte.is_ascii_whitespace());
    match first {
        None => Err(Problem::NotJson { text: "it is empty".to_owned() }),
        Some(b'[') => {
            let elements: Vec<&RawValue> =
                serde_json::from_str(text).map_err(|error| not_json(&error))?;
            if asked.key.is_some() {
                return Err(Problem::KeyOfArray);
            }
            outcomes_of_array(&elements, asked)
        }
        Some(_) => match outcome_of(text, asked) {
            Ok(outcome) => Ok(vec![outcome]),
            Err(Refusal::Problem(problem)) => Err(problem),
            Err(Refusal::Text(text)) => Err(Problem::Invalid(vec![Fault { index: None, text }])),
        },
    }
}

fn outcomes_of_array(elements: &[&RawValue], asked: Asked<'_>) -> Result<Vec<Outcome>, Problem> {
    if elements.is_empty() {
        return Err(Problem::NoOutcome);
    }
    if elements.len() > OUTCOMES_PER_REQUEST_MAX {
        return Err(Problem::TooManyOutcomes { found: elements.len() });
    }
    let mut places = BTreeMap::<OutcomeId, usize>::new();
    let (mut outcomes, mut faults) = (Vec::new(), Vec::new());
    for (index, element) in elements.iter().enumerate() {
        match outcome_of(element.get(), asked) {
            Ok(outcome) => {
                if let Some(before) = places.insert(outcome.outcome_id.clone(), index) {
                    let text =
                        format!("outcome_id is that of outcome {before}, too: give each its own");
                    faults.push(Fault { index: Some(index), text });
                }
                outcomes.push(outcome);
            }
            Err(Refusal::Text(text)) => faults.push(Fault { index: Some(index), text }),
            Err(Refusal::Problem(problem)) => return Err(problem),
        }
    }
    if faults.is_empty() { Ok(outcomes) } else { Err(Problem::Invalid(faults)) }
}

enum Refusal {
    /// Of the request as a whole.
    Problem(Problem),
    /// Of this outcome.
    Text(String),
}

fn outcome_of(text: &str, asked: Asked<'_>) -> Result<Outcome, Refusal> {
    let decoded = decode_outcome_of_request(text.as_bytes(), asked.key);
    let mut outcome = decoded.map_err(|error| refusal(&error))?;
    if asked.key.is_some_and(|key| *key != outcome.outcome_id) {
        return Err(Refusal::Problem(Problem::KeyDiffers));
    }
    if outcome.timestamp > asked.now.saturating_add_micros(FUTURE_MICROS_MAX) {
        return Err(Refusal::Text(format!(
            "timestamp {} is more than 5 minutes ahead of the aggregator's clock ({}): set the clock of who reports",
            outcome.timestamp, asked.now
        )));
    }
    check_names(&outcome).map_err(Refusal::Text)?;
    outcome.reported_by.get_or_insert_with(|| asked.system.clone());
    Ok(outcome)
}

/// Names are read in lists and logs, and compared by eye: none may end a line there or turn it round. A note is a text of its own,
/// and what somebody copies into one may hold such characters.
fn check_names(outcome: &Outcome) -> Result<(), String> {
    fn text<T: AsRef<str>>(name: Option<&T>) -> &str {
        name.map_or("", AsRef::as_ref)
    }
    let names = [
        ("outcome_id", outcome.outcome_id.as_str()),
        ("machine_id", outcome.machine_id.as_str()),
        ("trip_id", text(outcome.trip_id.as_ref())),
        ("sensor_id", text(outcome.sensor_id.as_ref())),
        ("ticket_id", text(outcome.ticket_id.as_ref())),
        ("part", text(outcome.part.as_ref())),
        ("reported_by", text(outcome.reported_by.as_ref())),
    ];
    for (field, name) in names {
        if let Some(character) = name.chars().find(|character| moves_text(*character)) {
            let code = character.escape_unicode();
            return Err(format!(
                "{field} contains the character {code}, which ends a line or changes the direction of the text: leave it out"
            ));
        }
    }
    Ok(())
}

/// Separators of lines and paragraphs, and what embeds, overrides or isolates a direction (Unicode Standard Annex 9, section 2).
fn moves_text(character: char) -> bool {
    matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn refusal(error: &DecodeError) -> Refusal {
    if let DecodeError::Json(source) = error {
        let text = shortened(&source.to_string());
        return match source.classify() {
            Category::Io | Category::Syntax | Category::Eof => {
                Refusal::Problem(Problem::NotJson { text })
            }
            Category::Data => Refusal::Text(text),
        };
    }
    Refusal::Text(shortened(&error.detail()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(id: &str) -> Value {
        json!({
            "outcome_id": id, "verdict": "confirmed", "machine_id": "press-1",
            "timestamp": "2026-03-02T10:00:00Z",
        })
    }

    fn name<T>(checked: Result<T, shared_proto::model::NameError>) -> T {
        checked.expect("valid")
    }

    fn read(body: &str, key: Option<&str>) -> Result<Vec<Outcome>, Problem> {
        let system = name(Reporter::new("flow"));
        let key = key.map(|key| name(OutcomeId::new(key)));
        // 2026-03-02T10:00:00Z.
        let now = EventTime::from_micros(1_772_445_600_000_000);
        outcomes_of(body.as_bytes(), Asked { system: &system, key: key.as_ref(), now })
    }

    fn code(body: &str, key: Option<&str>) -> (&'static str, u16) {
        read(body, key)
            .map_or_else(|problem| (problem.code(), problem.status().as_u16()), |_| ("taken", 202))
    }

    #[test]
    fn bodies_have_a_named_fate() {
        let one = object("a").to_string();
        let without = json!({
            "verdict": "note", "machine_id": "m", "timestamp": "2026-03-02T10:00:00Z",
        });
        let without = without.to_string();
        let many = |count: usize| {
            Value::Array((0..count).map(|number| object(&number.to_string())).collect()).to_string()
        };
        let check = |body: &str, key: Option<&str>, expected: (&str, u16)| {
            assert_eq!(code(body, key), expected, "{body} {key:?}");
        };
        check(&one, None, ("taken", 202));
        check(&one, Some("a"), ("taken", 202));
        check(&one, Some("b"), ("idempotency-key-differs", 422));
        check(&without, Some("b"), ("taken", 202));
        check(&without, None, ("invalid-outcome", 422));
        check(&many(1), Some("0"), ("idempotency-key-of-array", 422));
        check(&many(100), None, ("taken", 202));
        check(&many(101), None, ("too-many-outcomes", 422));
        check("[]", None, ("no-outcome", 422));
        check("", None, ("json", 400));
        check(" \n", None, ("json", 400));
        check("hello", None, ("json", 400));
        check("{\"outcome_id\":", None, ("json", 400));
        check("[{},", None, ("json", 400));
        check("\u{feff}{}", None, ("json", 400));
        check("null", None, ("invalid-outcome", 422));
        check("4711", None, ("invalid-outcome", 422));
        check("[[]]", None, ("invalid-outcome", 422));
        check("[null]", None, ("invalid-outcome", 422));
        check(&format!("[{one},{one}]"), None, ("invalid-outcome", 422));
        check(&one.replace("confirmed", "splendid"), None, ("invalid-outcome", 422));
        check(&one.replace("verdict", "Verdict"), None, ("invalid-outcome", 422));
        check(&one.replace("T10:00:00Z", "T10:05:00Z"), None, ("taken", 202));
        check(&one.replace("T10:00:00Z", "T10:05:01Z"), None, ("invalid-outcome", 422));
        check(&"[".repeat(100_000), None, ("json", 400));
    }

    #[test]
    fn the_faults_of_an_array_are_told_with_their_places() {
        let body = json!([object("a"), {"verdict": "note"}, object("b"), object("a")]);
        let problem = read(&body.to_string(), None).expect_err("refused");
        let Problem::Invalid(faults) = problem else { panic!("{problem:?}") };
        let places: Vec<_> = faults.iter().map(|fault| fault.index).collect();
        assert_eq!(places, [Some(1), Some(3)]);
        assert!(faults[1].text.contains("that of outcome 0"), "{}", faults[1].text);
    }

    #[test]
    fn who_has_the_token_reports_what_nobody_has_signed() {
        let by = |body: &Value| {
            let outcomes = read(&body.to_string(), None).expect("valid");
            outcomes[0].reported_by.as_ref().map(ToString::to_string)
        };
        let mut body = object("a");
        assert_eq!(by(&body).as_deref(), Some("flow"));
        body["reported_by"] = "".into();
        assert_eq!(by(&body).as_deref(), Some("flow"));
        body["reported_by"] = "Kim".into();
        assert_eq!(by(&body).as_deref(), Some("Kim"));
    }

    #[test]
    fn names_neither_end_a_line_nor_turn_it_round_and_notes_may() {
        let fields = [
            "outcome_id",
            "machine_id",
            "trip_id",
            "sensor_id",
            "ticket_id",
            "part",
            "reported_by",
        ];
        let moving = ['\u{2028}', '\u{2029}', '\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}'];
        let with = |field: &str, character: char| {
            let mut body = object("a");
            body[field] = format!("a{character}b").into();
            read(&body.to_string(), None)
        };
        for character in moving {
            for field in fields {
                let text = with(field, character).expect_err("refused").to_string();
                let code = character.escape_unicode().to_string();
                assert!(text.contains(field) && text.contains(&code), "{text}");
                assert!(!text.contains(character), "{text}");
            }
            assert!(with("note", character).is_ok(), "{character:?}");
        }
        // Other scripts, marks and joined pictures are names as any other.
        for character in ['ä', 'ש', '\u{200f}', '\u{200d}', '\u{fe0f}', '\u{2027}', '\u{206a}'] {
            assert!(fields.iter().all(|field| with(field, character).is_ok()), "{character:?}");
        }
        let nameless = object("a").to_string().replace("\"outcome_id\":\"a\",", "");
        assert_eq!(code(&nameless, Some("a\u{202e}b")), ("invalid-outcome", 422));
    }

    #[test]
    fn what_an_explanation_repeats_is_cut() {
        let body = object("a").to_string().replace("confirmed", &"ä".repeat(100_000));
        let problem = read(&body, None).expect_err("refused").to_string();
        assert!(problem.starts_with("the outcome cannot be taken: unknown variant `ää"));
        assert!(problem.chars().count() < 600, "{}", problem.chars().count());
    }
}
