//! Bodies of `POST /api/outcomes`, valid ones and those with one fault, written by hand where no writer of JSON would.

use e2e_tests::random::Random;
use serde_json::{Map, Value, json};

/// Every member, and its longest text in bytes. Of those that come first there must be one.
pub(super) const MEMBERS: [(&str, usize); 11] = [
    ("outcome_id", 256),
    ("verdict", 0),
    ("machine_id", 256),
    ("timestamp", 0),
    ("alert_id", 64),
    ("trip_id", 256),
    ("sensor_id", 256),
    ("ticket_id", 256),
    ("part", 256),
    ("note", 4_096),
    ("reported_by", 128),
];
const REQUIRED: usize = 4;
const VERDICTS: [&str; 4] = ["confirmed", "part-replaced", "false-alarm", "note"];
/// Of several lines, scripts and kinds, and with what other formats would stumble over.
const NOTES: [&str; 9] = [
    "Inner ring worn.",
    "two\nlines\r\nand\ta tab",
    "\"quotes\", \\back\\slashes/ and 'others'",
    "Lager außen – ausgetauscht ✓",
    "轴承已更换",
    "המסב הוחלף",
    "😀 👩‍🔧",
    "<script>alert(1)</script> '; DROP TABLE outcomes; --",
    "{\"outcome_id\":\"not-this\"}",
];
/// More than the reader goes into.
const DEPTH_MAX: u64 = 2_000;
/// Of one request.
const OUTCOMES_MAX: usize = 100;

/// A body with one fault, the statuses that it may be refused with, and what the refusal has to tell.
pub(super) type Faulty = (Vec<u8>, &'static [u16], Vec<String>);

pub(super) fn pick<'a, T>(random: &mut Random, from: &'a [T]) -> &'a T {
    &from[random.below(from.len() as u64) as usize]
}

fn alert_id(random: &mut Random) -> String {
    (0..4).map(|_| format!("{:016x}", random.number())).collect()
}

/// A valid outcome with some of the members that may be left out.
pub(super) fn outcome(random: &mut Random, id: &str) -> Value {
    let mut outcome = json!({
        "outcome_id": id,
        "verdict": *pick(random, &VERDICTS),
        "machine_id": format!("press-{}", random.below(100)),
        "timestamp": "2025-03-02T10:00:00Z",
    });
    for (name, _) in &MEMBERS[REQUIRED..] {
        if random.below(3) == 0 {
            outcome[*name] = match *name {
                "alert_id" => alert_id(random).into(),
                "note" => (*pick(random, &NOTES)).into(),
                name => format!("{name} {}", random.below(1_000)).into(),
            };
        }
    }
    outcome
}

/// The same outcome in one of the ways in which JSON can be written.
pub(super) fn written(random: &mut Random, outcome: &Value) -> Vec<u8> {
    let text = match random.below(3) {
        0 => outcome.to_string(),
        1 => format!(" \r\n\t{outcome:#} \n"),
        _ => escaped(&outcome.to_string()),
    };
    text.into_bytes()
}

/// Everything beyond ASCII as numbers, in pairs of surrogates if need be.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}

/// An object whose members are texts of JSON, so that they can be wrong, twice or anything.
fn object(members: &[(String, String)]) -> Vec<u8> {
    let members: Vec<_> = members.iter().map(|(name, json)| format!("\"{name}\":{json}")).collect();
    format!("{{{}}}", members.join(",")).into_bytes()
}

fn members_of(outcome: &Value) -> Vec<(String, String)> {
    let members = outcome.as_object().map_or_else(Map::new, Clone::clone);
    members.into_iter().map(|(name, value)| (name, value.to_string())).collect()
}

/// The outcome with another text of JSON for one member.
fn with(outcome: &Value, name: &str, json: &str) -> Vec<u8> {
    let mut members = members_of(outcome);
    members.retain(|(found, _)| found != name);
    members.push((name.to_owned(), json.to_owned()));
    object(&members)
}

fn told(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A body that must not be taken.
pub(super) fn faulty(random: &mut Random, id: &str) -> Faulty {
    let outcome = outcome(random, id);
    match random.below(12) {
        0 => wrong_type(random, &outcome),
        1 => missing(random, &outcome),
        2 => doubled(random, &outcome),
        3 => deep(random, &outcome),
        4 => no_number(random, &outcome),
        5 => no_text(random, &outcome),
        6 => control_character(random, &outcome),
        7 => too_long(random, &outcome),
        8 => no_json(random, &outcome),
        9 => wrong_value(random, &outcome),
        10 => unknown_member(random, &outcome),
        _ => faulty_array(random, &outcome),
    }
}

fn wrong_type(random: &mut Random, outcome: &Value) -> Faulty {
    let (name, _) = pick(random, &MEMBERS);
    let json = pick(
        random,
        &["0", "-1", "1.5", "1e300", "true", "false", "[]", "{}", "[\"a\"]", "{\"note\":null}"],
    );
    (with(outcome, name, json), &[422], told(&["invalid type", "line 1 column"]))
}

fn missing(random: &mut Random, outcome: &Value) -> Faulty {
    let (name, _) = pick(random, &MEMBERS[..REQUIRED]);
    let mut members = members_of(outcome);
    members.retain(|(found, _)| found != name);
    (object(&members), &[422], told(&["missing", &format!("`{name}`")]))
}

fn doubled(random: &mut Random, outcome: &Value) -> Faulty {
    let mut members = members_of(outcome);
    let (name, json) = pick(random, &members).clone();
    // The same again or another one: nobody can say which was meant.
    let json = if random.below(2) == 0 { json } else { "null".to_owned() };
    members.push((name.clone(), json));
    (object(&members), &[422], told(&["duplicate field", &format!("`{name}`")]))
}

fn deep(random: &mut Random, outcome: &Value) -> Faulty {
    let depth = 1 + random.below(DEPTH_MAX) as usize;
    let (name, _) = pick(random, &MEMBERS);
    let json = match random.below(2) {
        0 => format!("{}{}", "[".repeat(depth), "]".repeat(depth)),
        _ => format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth)),
    };
    match random.below(3) {
        0 => (json.into_bytes(), &[400, 422], Vec::new()),
        1 => ("[".repeat(depth).into_bytes(), &[400], told(&["no JSON"])),
        _ => (with(outcome, name, &json), &[422, 400], Vec::new()),
    }
}

fn no_number(random: &mut Random, outcome: &Value) -> Faulty {
    let (name, _) = pick(random, &MEMBERS);
    let huge = "9".repeat(400);
    let texts = [
        "NaN",
        "nan",
        "Infinity",
        "-Infinity",
        "undefined",
        "0x10",
        "01",
        ".5",
        "1.",
        "+1",
        "-",
        "1e",
        "1e999999",
        "-1e400",
        &huge,
        "'a'",
        "None",
        "True",
        "nul",
    ];
    let json = pick(random, &texts);
    (with(outcome, name, json), &[400], told(&["no JSON", "line 1 column"]))
}

/// What stands in quotes and is no text.
fn no_text(random: &mut Random, outcome: &Value) -> Faulty {
    let (name, _) = pick(random, &MEMBERS);
    let texts: [&[u8]; 15] = [
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf5\x80\x80\x80",
        b"\xe2\x82",
        b"\\ud800",
        b"\\udc00",
        b"\\ud800\\ud800",
        b"\\udbff\\u0041",
        b"\\u12",
        b"\\x41",
        b"\\ ",
        b"\x00",
        b"\x1b[31m",
        b"\n",
    ];
    let wrong = *pick(random, &texts);
    let body = with(outcome, name, "\"a@b\"");
    let place = body.iter().rposition(|byte| *byte == b'@').unwrap_or_default();
    ([&body[..place], wrong, &body[place + 1..]].concat(), &[400], told(&["no JSON"]))
}

fn control_character(random: &mut Random, outcome: &Value) -> Faulty {
    let named: Vec<_> = MEMBERS.iter().filter(|(_, limit)| *limit > 64).collect();
    let (name, _) = *pick(random, &named);
    let (characters, word): (&[u32], _) = match random.below(3) {
        0 if *name != "note" => (&[0x2028, 0x2029, 0x202a, 0x202e, 0x2066, 0x2069], "direction"),
        _ => (&[0, 1, 7, 8, 0xb, 0x1b, 0x1f, 0x7f, 0x80, 0x85, 0x9f], "control character"),
    };
    let json = format!("\"a\\u{:04x}b\"", pick(random, characters));
    (with(outcome, name, &json), &[422], told(&[name, word]))
}

fn too_long(random: &mut Random, outcome: &Value) -> Faulty {
    let named: Vec<_> = MEMBERS.iter().filter(|(_, limit)| *limit > 64).collect();
    let (name, limit) = *pick(random, &named);
    let more = 1 + random.below(1_000) as usize;
    let text = match random.below(2) {
        0 => "x".repeat(limit + more),
        // Fewer characters than bytes.
        _ => "€".repeat(limit / 3 + more),
    };
    let words = told(&[name, &format!("at most {limit}")]);
    (with(outcome, name, &format!("\"{text}\"")), &[422], words)
}

fn no_json(random: &mut Random, outcome: &Value) -> Faulty {
    let text = outcome.to_string();
    let body = match random.below(6) {
        0 => Vec::new(),
        1 => b" \r\n\t ".to_vec(),
        // Every object ends with its last byte.
        2 => text.as_bytes()[..random.below(text.len() as u64) as usize].to_vec(),
        3 => format!("{text}{text}").into_bytes(),
        4 => format!("\u{feff}{text}").into_bytes(),
        _ => (0..random.below(64)).map(|_| 0x80 | random.number() as u8).collect(),
    };
    (body, &[400], told(&["no JSON"]))
}

fn wrong_value(random: &mut Random, outcome: &Value) -> Faulty {
    let (name, text) = *pick(
        random,
        &[
            ("outcome_id", ""),
            ("machine_id", ""),
            ("machine_id", "  "),
            ("verdict", ""),
            ("verdict", "Confirmed"),
            ("verdict", "splendid"),
            ("timestamp", ""),
            ("timestamp", "yesterday"),
            ("timestamp", "2025-03-02"),
            ("timestamp", "1740909600"),
            ("timestamp", "2025-02-30T10:00:00Z"),
            ("timestamp", "9998-01-01T00:00:00Z"),
            ("timestamp", "99999-01-01T00:00:00Z"),
            ("timestamp", "-001-01-01T00:00:00Z"),
            ("timestamp", "2025-03-02T10:00:00"),
            ("alert_id", "a"),
            ("alert_id", "../../etc"),
            ("alert_id", "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"),
        ],
    );
    let word = if name == "verdict" { "variant" } else { name };
    (with(outcome, name, &json!(text).to_string()), &[422], told(&[word]))
}

fn unknown_member(random: &mut Random, outcome: &Value) -> Faulty {
    let name = *pick(random, &["Verdict", "outcomeId", "machine id", "", "__proto__", "größe"]);
    let json = *pick(random, &["null", "1", "\"a\"", "[]", "{\"a\":[{}]}"]);
    (with(outcome, name, json), &[422], told(&["unknown field", &format!("`{name}`")]))
}

/// An array of which nothing may be taken.
fn faulty_array(random: &mut Random, one: &Value) -> Faulty {
    let id = one["outcome_id"].as_str().unwrap_or_default().to_owned();
    let mut outcomes: Vec<Value> =
        (0..2 + random.below(6)).map(|number| outcome(random, &format!("{id}-{number}"))).collect();
    let place = random.below(outcomes.len() as u64) as usize;
    let words = told(&[&format!("#/{place}")]);
    let statuses: &[u16] = &[422];
    let written = |outcomes: Vec<Value>| Value::Array(outcomes).to_string().into_bytes();
    match random.below(5) {
        0 => {
            outcomes[place]["verdict"] = "splendid".into();
            (written(outcomes), statuses, words)
        }
        1 => {
            outcomes[place] = pick(random, &[json!(null), json!(1), json!([]), json!("a")]).clone();
            (written(outcomes), statuses, words)
        }
        2 => {
            outcomes.push(outcomes[place].clone());
            let words = told(&[&format!("that of outcome {place}")]);
            (written(outcomes), statuses, words)
        }
        3 => (b"[ ]".to_vec(), statuses, told(&["empty"])),
        _ => {
            let many = vec![one.clone(); OUTCOMES_MAX + 1];
            (written(many), statuses, told(&["101", "at most 100"]))
        }
    }
}
