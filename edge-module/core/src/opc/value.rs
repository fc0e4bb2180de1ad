//! One value of a node: its number, its times, its quality.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use shared_proto::model::{EventTime, Quality};

use super::{OpcError, shown};

/// 1601-01-01T00:00:00Z, where OPC UA begins to count (OPC 10000-6, 5.2.2.5): a time that says that there is none, as does any before.
const NO_TIME_MICROS: i64 = -11_644_473_600_000_000;
/// Where the severity stands in a status code: the top two bits (OPC 10000-4, 7.39.1).
const SEVERITY_SHIFT: u32 = 30;

/// What a field of a data set or the value of a sample says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Field<'a> {
    /// Nothing, or the text of the value.
    value: Option<&'a str>,
    source_time: Option<&'a str>,
    server_time: Option<&'a str>,
    pub(super) status: Option<&'a str>,
}

/// `{"Value": …, "SourceTimestamp": …}`; the value alone has none of these members.
#[derive(Deserialize)]
struct DataValue<'a> {
    #[serde(rename = "Value", borrow, default)]
    value: Option<&'a RawValue>,
    #[serde(rename = "SourceTimestamp", borrow, default)]
    source_time: Option<&'a RawValue>,
    #[serde(rename = "ServerTimestamp", borrow, default)]
    server_time: Option<&'a RawValue>,
    #[serde(rename = "StatusCode", borrow, default)]
    status_code: Option<&'a RawValue>,
    #[serde(rename = "Status", borrow, default)]
    status: Option<&'a RawValue>,
    #[serde(rename = "Body", borrow, default)]
    body: Option<&'a RawValue>,
}

impl<'a> Field<'a> {
    pub(super) fn read(text: &'a str) -> Self {
        let text = text.trim();
        let alone = Self { value: Some(text), ..Self::default() };
        if !text.starts_with('{') {
            return alone;
        }
        let Ok(field) = serde_json::from_str::<DataValue<'a>>(text) else { return alone };
        // `{"Type", "Body"}` is a value, a reversible one.
        if field.body.is_some() {
            return alone;
        }
        let is_event = [field.value, field.source_time, field.server_time, field.status_code]
            .iter()
            .all(Option::is_none)
            && field.status.is_none();
        if is_event && text != "{}" {
            return alone;
        }
        let get = |raw: Option<&'a RawValue>| raw.map(RawValue::get);
        Self {
            value: get(field.value),
            source_time: get(field.source_time),
            server_time: get(field.server_time),
            status: get(field.status_code.or(field.status)),
        }
    }
}

/// The times of a value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) event_time: EventTime,
    /// When somebody last said that it is so.
    newest: EventTime,
}

impl Times {
    /// `message`: of the message that the value is in.
    pub(super) fn read(
        node: &str,
        field: &Field<'_>,
        message: Option<&str>,
    ) -> Result<Self, OpcError> {
        let mut times = [None; 3];
        let texts = [field.source_time, field.server_time, message];
        for (time, text) in times.iter_mut().zip(texts) {
            *time = text.map_or(Ok(None), |text| read_time(node, text))?;
        }
        let mut known = times.into_iter().flatten();
        let no_time = || OpcError::NoTime { node: node.to_owned() };
        let event_time = known.next().ok_or_else(no_time)?;
        Ok(Self { event_time, newest: known.fold(event_time, Ord::max) })
    }

    pub(super) const fn age_micros(&self, now: EventTime) -> i64 {
        now.micros_since(self.newest)
    }
}

fn read_time(node: &str, text: &str) -> Result<Option<EventTime>, OpcError> {
    if text == "null" {
        return Ok(None);
    }
    let time = serde_json::from_str::<Cow<'_, str>>(text).ok();
    let time = time.and_then(|time| EventTime::parse(&time));
    match time {
        Some(time) if time.micros() > NO_TIME_MICROS => Ok(Some(time)),
        Some(_) => Ok(None),
        None => Err(OpcError::Time { node: node.to_owned(), text: shown(text) }),
    }
}

/// The number and what the server thinks of it. `status` is the field's or its data set's.
pub(super) fn read(
    node: &str,
    field: &Field<'_>,
    status: Option<&str>,
) -> Result<(f64, Quality), OpcError> {
    let quality = match status {
        None | Some("null") => Quality::Good,
        Some(text) => read_quality(text)
            .ok_or_else(|| OpcError::Status { node: node.to_owned(), status: shown(text) })?,
    };
    match field.value.filter(|text| *text != "null") {
        Some(text) => Ok((read_number(node, text)?, quality)),
        None => Err(match quality {
            Quality::Good | Quality::Uncertain => OpcError::NoValue { node: node.to_owned() },
            Quality::Bad => {
                let status = shown(status.unwrap_or_default());
                OpcError::BadStatus { node: node.to_owned(), status }
            }
        }),
    }
}

/// `2150694912`, `{"Code": 2150694912, "Symbol": "BadNoCommunication"}`, or the symbol alone.
fn read_quality(text: &str) -> Option<Quality> {
    match serde_json::from_str(text).ok()? {
        Value::Number(number) => of_code(&number),
        Value::String(symbol) => of_symbol(&symbol),
        Value::Object(members) => match (members.get("Code"), members.get("Symbol")) {
            (Some(Value::Number(number)), _) => of_code(number),
            (None | Some(Value::Null), Some(Value::String(symbol))) => of_symbol(symbol),
            // Part 6 leaves the code 0 out.
            (None | Some(Value::Null), None | Some(Value::Null)) => Some(Quality::Good),
            (Some(_), _) | (None, Some(_)) => None,
        },
        Value::Null | Value::Bool(_) | Value::Array(_) => None,
    }
}

/// By the top two bits; 11 is reserved and taken as bad.
fn of_code(number: &serde_json::Number) -> Option<Quality> {
    let code = u32::try_from(number.as_u64()?).ok()?;
    Some(match code >> SEVERITY_SHIFT {
        0 => Quality::Good,
        1 => Quality::Uncertain,
        _ => Quality::Bad,
    })
}

fn of_symbol(symbol: &str) -> Option<Quality> {
    [("Good", Quality::Good), ("Uncertain", Quality::Uncertain), ("Bad", Quality::Bad)]
        .into_iter()
        .find(|(word, _)| symbol.starts_with(word))
        .map(|(_, quality)| quality)
}

/// `{"Type": 11, "Body": 4.5}`.
#[derive(Deserialize)]
struct Variant<'a> {
    #[serde(rename = "Body", borrow)]
    body: &'a RawValue,
}

fn read_number(node: &str, text: &str) -> Result<f64, OpcError> {
    if !text.starts_with('{') {
        return read_scalar(node, text);
    }
    match serde_json::from_str::<Variant<'_>>(text) {
        Ok(variant) => read_scalar(node, variant.body.get()),
        Err(_) => Err(OpcError::ValueType { node: node.to_owned(), what: "an object" }),
    }
}

fn read_scalar(node: &str, text: &str) -> Result<f64, OpcError> {
    let refused = |what| Err(OpcError::ValueType { node: node.to_owned(), what });
    match text.as_bytes().first() {
        Some(b't') => Ok(1.0),
        Some(b'f') => Ok(0.0),
        Some(b'[') => Err(OpcError::Array { node: node.to_owned() }),
        Some(b'{') => refused("an object"),
        Some(b'"') => read_text(node, text),
        Some(b'-' | b'0'..=b'9') => finite(node, text),
        Some(_) | None => Err(OpcError::NoValue { node: node.to_owned() }),
    }
}

/// Integers of 64 bits are texts, and so are NaN and infinities (OPC 10000-6, 5.4.2.3 and 5.4.2.4).
fn read_text(node: &str, text: &str) -> Result<f64, OpcError> {
    let words = ["NaN", "Infinity", "-Infinity"];
    let text: Cow<'_, str> = serde_json::from_str(text).unwrap_or_default();
    if words.contains(&text.as_ref()) {
        return Err(OpcError::NotFinite { node: node.to_owned(), text: text.into_owned() });
    }
    // The standard parser takes words as well, such as "inf" and "nan".
    let is_number = !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    if !is_number {
        return Err(OpcError::ValueType { node: node.to_owned(), what: "a text" });
    }
    finite(node, &text)
}

fn finite(node: &str, text: &str) -> Result<f64, OpcError> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(_) => Err(OpcError::NotFinite { node: node.to_owned(), text: shown(text) }),
        Err(_) => Err(OpcError::ValueType { node: node.to_owned(), what: "a text" }),
    }
}
