//! Functions of expressions whose value depends on their arguments alone. What is not in the list is not known.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::Fault;
use super::template::text_of;
use super::time::Moment;

type Function = fn(&[Value]) -> Result<Value, Fault>;

/// Name in lower case, fewest and most arguments, the function.
const FUNCTIONS: [(&str, usize, usize, Function); 29] = [
    ("add", 2, 2, add),
    ("and", 1, usize::MAX, |values| all(values).map(Value::Bool)),
    ("base64", 1, 1, |values| Ok(STANDARD.encode(text(&values[0])?).into())),
    ("base64tostring", 1, 1, base64_to_string),
    ("coalesce", 1, usize::MAX, coalesce),
    ("concat", 1, usize::MAX, |values| Ok(values.iter().map(text_of).collect::<String>().into())),
    ("contains", 2, 2, contains),
    ("converttimezone", 4, 4, convert_time_zone),
    ("createarray", 0, usize::MAX, |values| Ok(Value::Array(values.to_vec()))),
    ("empty", 1, 1, |values| Ok(length(&values[0])?.is_none_or(|length| length == 0).into())),
    ("encodeuricomponent", 1, 1, |values| Ok(encode(text(&values[0])?).into())),
    ("equals", 2, 2, |values| Ok(same(&values[0], &values[1]).into())),
    ("first", 1, 1, first),
    ("formatdatetime", 2, 2, format_date_time),
    ("formatnumber", 2, 2, format_number),
    ("greater", 2, 2, |values| Ok((number(&values[0])? > number(&values[1])?).into())),
    ("if", 3, 3, |values| Ok(values[if truth(&values[0])? { 1 } else { 2 }].clone())),
    ("int", 1, 1, int),
    ("join", 2, 2, join),
    ("json", 1, 1, json),
    ("length", 1, 1, |values| Ok(length(&values[0])?.unwrap_or_default().into())),
    ("not", 1, 1, |values| Ok((!truth(&values[0])?).into())),
    ("or", 1, usize::MAX, or),
    ("replace", 3, 3, replace),
    ("setproperty", 3, 3, set_property),
    ("string", 1, 1, |values| Ok(text_of(&values[0]).into())),
    ("substring", 3, 3, substring),
    ("take", 2, 2, take),
    ("trim", 1, 1, |values| Ok(text(&values[0])?.trim().into())),
];

/// Whether there is such a function and it takes so many arguments.
pub(super) fn takes(name: &str, arguments: usize) -> Option<bool> {
    find(name).map(|&(_, fewest, most, _)| (fewest..=most).contains(&arguments))
}

/// Calls a function.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, Fault> {
    match (find(name), takes(name, arguments.len())) {
        (Some((_, _, _, function)), Some(true)) => {
            function(arguments).map_err(|fault| fault.within(name))
        }
        (Some(_), _) => {
            Err(Fault::new(format!("{name} does not take {} arguments", arguments.len())))
        }
        (None, _) => Err(Fault::new(format!("function {name:?} is not known"))),
    }
}

fn find(name: &str) -> Option<&'static (&'static str, usize, usize, Function)> {
    FUNCTIONS.iter().find(|(known, ..)| *known == name)
}

fn text(value: &Value) -> Result<&str, Fault> {
    value.as_str().ok_or_else(|| Fault::new(format!("{value} is no text")))
}

fn truth(value: &Value) -> Result<bool, Fault> {
    value.as_bool().ok_or_else(|| Fault::new(format!("{value} is neither true nor false")))
}

fn number(value: &Value) -> Result<f64, Fault> {
    value.as_f64().ok_or_else(|| Fault::new(format!("{value} is no number")))
}

fn whole(value: &Value) -> Result<usize, Fault> {
    value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok())
        .ok_or_else(|| Fault::new(format!("{value} is no whole number from 0")))
}

fn array(value: &Value) -> Result<&Vec<Value>, Fault> {
    value.as_array().ok_or_else(|| Fault::new(format!("{value} is no array")))
}

/// Characters, items or members; `None` for `null`.
fn length(value: &Value) -> Result<Option<usize>, Fault> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.encode_utf16().count())),
        Value::Array(items) => Ok(Some(items.len())),
        Value::Object(members) => Ok(Some(members.len())),
        Value::Bool(_) | Value::Number(_) => Err(Fault::new(format!("{value} has no length"))),
    }
}

/// Numbers are the same by value: 1 and 1.0.
fn same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one.total_cmp(&other).is_eq(),
        (Some(_), None) | (None, Some(_)) | (None, None) => one == other,
    }
}

fn all(values: &[Value]) -> Result<bool, Fault> {
    values.iter().try_fold(true, |so_far, value| Ok(so_far & truth(value)?))
}

fn or(values: &[Value]) -> Result<Value, Fault> {
    values.iter().try_fold(false, |so_far, value| Ok(so_far | truth(value)?)).map(Value::Bool)
}

fn add(values: &[Value]) -> Result<Value, Fault> {
    match (values[0].as_i64(), values[1].as_i64()) {
        (Some(one), Some(other)) => one
            .checked_add(other)
            .map(Value::from)
            .ok_or_else(|| Fault::new("the sum is out of range")),
        (Some(_), None) | (None, Some(_)) | (None, None) => {
            Err(Fault::new(format!("{} and {} are no whole numbers", values[0], values[1])))
        }
    }
}

fn base64_to_string(values: &[Value]) -> Result<Value, Fault> {
    let bytes =
        STANDARD.decode(text(&values[0])?).map_err(|error| Fault::new(error.to_string()))?;
    String::from_utf8(bytes).map(Value::String).map_err(|error| Fault::new(error.to_string()))
}

fn coalesce(values: &[Value]) -> Result<Value, Fault> {
    Ok(values.iter().find(|value| !value.is_null()).cloned().unwrap_or_default())
}

fn contains(values: &[Value]) -> Result<Value, Fault> {
    match &values[0] {
        Value::String(whole) => Ok(whole.contains(text(&values[1])?).into()),
        Value::Array(items) => Ok(items.contains(&values[1]).into()),
        Value::Object(members) => Ok(members.contains_key(text(&values[1])?).into()),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_)) => {
            Err(Fault::new(format!("{other} contains nothing")))
        }
    }
}

/// Only UTC is known here: the other zones are names of Windows, whose rules this has not.
fn convert_time_zone(values: &[Value]) -> Result<Value, Fault> {
    if values[1] != "UTC" || values[2] != "UTC" {
        return Err(Fault::new(format!("from {} to {} is not known here", values[1], values[2])));
    }
    format_date_time(&[values[0].clone(), values[3].clone()])
}

fn format_date_time(values: &[Value]) -> Result<Value, Fault> {
    Moment::parse(text(&values[0])?)?.format(text(&values[1])?).map(Value::String)
}

/// Only `0000`: whole numbers with zeros in front.
fn format_number(values: &[Value]) -> Result<Value, Fault> {
    let (number, format) = (whole(&values[0])?, text(&values[1])?);
    if format.is_empty() || format.bytes().any(|byte| byte != b'0') {
        return Err(Fault::new(format!("format {format:?} is not known")));
    }
    Ok(format!("{number:0width$}", width = format.len()).into())
}

/// All but what RFC 3986 calls unreserved.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The first item; `null` of an empty array.
fn first(values: &[Value]) -> Result<Value, Fault> {
    Ok(array(&values[0])?.first().cloned().unwrap_or_default())
}

fn int(values: &[Value]) -> Result<Value, Fault> {
    let text = text_of(&values[0]);
    text.parse::<i64>().map(Value::from).map_err(|_| Fault::new(format!("{text:?} is no number")))
}

fn join(values: &[Value]) -> Result<Value, Fault> {
    let parts: Vec<_> = array(&values[0])?.iter().map(text_of).collect();
    Ok(parts.join(text(&values[1])?).into())
}

fn json(values: &[Value]) -> Result<Value, Fault> {
    serde_json::from_str(text(&values[0])?).map_err(|error| Fault::new(error.to_string()))
}

fn replace(values: &[Value]) -> Result<Value, Fault> {
    let old = text(&values[1])?;
    if old.is_empty() {
        return Err(Fault::new("nothing cannot be replaced"));
    }
    Ok(text(&values[0])?.replace(old, text(&values[2])?).into())
}

fn set_property(values: &[Value]) -> Result<Value, Fault> {
    let mut members = values[0]
        .as_object()
        .cloned()
        .ok_or_else(|| Fault::new(format!("{} is no object", values[0])))?;
    members.insert(text(&values[1])?.to_owned(), values[2].clone());
    Ok(Value::Object(members))
}

fn substring(values: &[Value]) -> Result<Value, Fault> {
    let (from, length) = (whole(&values[1])?, whole(&values[2])?);
    let units: Vec<_> = text(&values[0])?.encode_utf16().collect();
    units
        .get(from..from.saturating_add(length))
        .map(|units| String::from_utf16_lossy(units).into())
        .ok_or_else(|| Fault::new(format!("{} is shorter than {from} and {length}", values[0])))
}

/// At most so many from the beginning: UTF-16 units of a text, as .NET counts them, or items.
fn take(values: &[Value]) -> Result<Value, Fault> {
    let count = whole(&values[1])?;
    match &values[0] {
        Value::String(text) => {
            let units: Vec<_> = text.encode_utf16().take(count).collect();
            Ok(String::from_utf16_lossy(&units).into())
        }
        Value::Array(items) => Ok(items.iter().take(count).cloned().collect()),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
            Err(Fault::new(format!("nothing can be taken from {other}")))
        }
    }
}
