//! The part of JSON Schema that the triggers use. A keyword that is not checked here is a fault, not ignored.

use serde_json::{Map, Value};

use super::Fault;

/// Keywords that say something to people only.
const REMARKS: [&str; 6] = ["$schema", "title", "description", "default", "examples", "format"];

/// Checks a value: nothing where it fits, else what does not and where.
///
/// # Errors
/// When the schema has a keyword that is not understood, a reference for example: Logic Apps follow none.
pub fn validate(schema: &Value, value: &Value) -> Result<Vec<String>, Fault> {
    let mut complaints = Vec::new();
    check(schema, value, "$", &mut complaints)?;
    Ok(complaints)
}

fn check(
    schema: &Value,
    value: &Value,
    place: &str,
    complaints: &mut Vec<String>,
) -> Result<(), Fault> {
    let rules = match schema {
        Value::Bool(true) => return Ok(()),
        Value::Object(rules) => rules,
        Value::Bool(false)
        | Value::Null
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_) => {
            return Err(Fault::new(format!("{place}: {schema} is no schema")));
        }
    };
    for (keyword, rule) in rules {
        match keyword.as_str() {
            "type" => type_of(rule, value, place, complaints)?,
            "const" if rule != value => complaints.push(format!("{place}: not {rule}")),
            "enum" if !items(rule, place)?.contains(value) => {
                complaints.push(format!("{place}: none of {rule}"));
            }
            "const" | "enum" | "additionalProperties" => {}
            "required" => required(rule, value, place, complaints)?,
            "properties" => properties(rules, rule, value, place, complaints)?,
            "items" => elements(rule, value, place, complaints)?,
            "oneOf" | "anyOf" => alternatives(keyword, rule, value, place, complaints)?,
            "minimum" | "maximum" | "minLength" | "maxLength" | "minItems" | "maxItems" => {
                limit(keyword, rule, value, place, complaints)?;
            }
            remark if REMARKS.contains(&remark) => {}
            other => return Err(Fault::new(format!("{place}: keyword {other:?} is not checked"))),
        }
    }
    Ok(())
}

fn items<'a>(rule: &'a Value, place: &str) -> Result<&'a Vec<Value>, Fault> {
    rule.as_array().ok_or_else(|| Fault::new(format!("{place}: {rule} is no array")))
}

fn type_of(
    rule: &Value,
    value: &Value,
    place: &str,
    complaints: &mut Vec<String>,
) -> Result<(), Fault> {
    let one = [rule.clone()];
    let names = rule.as_array().map_or(&one[..], Vec::as_slice);
    let mut fits = false;
    for name in names {
        fits |= match name.as_str() {
            Some("null") => value.is_null(),
            Some("boolean") => value.is_boolean(),
            Some("number") => value.is_number(),
            Some("integer") => value.is_i64() || value.is_u64(),
            Some("string") => value.is_string(),
            Some("array") => value.is_array(),
            Some("object") => value.is_object(),
            Some(_) | None => return Err(Fault::new(format!("{place}: {name} is no type"))),
        };
    }
    if !fits {
        complaints.push(format!("{place}: not of type {rule}"));
    }
    Ok(())
}

fn required(
    rule: &Value,
    value: &Value,
    place: &str,
    complaints: &mut Vec<String>,
) -> Result<(), Fault> {
    let Some(members) = value.as_object() else { return Ok(()) };
    for name in items(rule, place)?.iter().filter_map(Value::as_str) {
        if !members.contains_key(name) {
            complaints.push(format!("{place}: {name:?} is missing"));
        }
    }
    Ok(())
}

fn properties(
    rules: &Map<String, Value>,
    rule: &Value,
    value: &Value,
    place: &str,
    complaints: &mut Vec<String>,
) -> Result<(), Fault> {
    let Some(members) = value.as_object() else { return Ok(()) };
    for (name, member) in members {
        let place = format!("{place}.{name}");
        match (rule.get(name), rules.get("additionalProperties")) {
            (Some(schema), _) => check(schema, member, &place, complaints)?,
            (None, Some(Value::Bool(false))) => complaints.push(format!("{place}: not known")),
            (None, None | Some(Value::Bool(true))) => {}
            (None, Some(schema)) => check(schema, member, &place, complaints)?,
        }
    }
    Ok(())
}

fn elements(
    rule: &Value,
    value: &Value,
    place: &str,
    complaints: &mut Vec<String>,
) -> Result<(), Fault> {
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(rule, item, &format!("{place}[{index}]"), complaints)?;
    }
    Ok(())
}

fn alternatives(
    keyword: &str,
    rule: &Value,
    value: &Value,
    place: &str,
    complaints: &mut Vec<String>,
) -> Result<(), Fault> {
    let mut fitting = 0;
    let mut reasons = Vec::new();
    for schema in items(rule, place)? {
        let mut of_this = Vec::new();
        check(schema, value, place, &mut of_this)?;
        fitting += usize::from(of_this.is_empty());
        reasons.push(of_this.join(", "));
    }
    if fitting == 0 {
        complaints.push(format!("{place}: fits none ({})", reasons.join("; ")));
    } else if keyword == "oneOf" && fitting > 1 {
        complaints.push(format!("{place}: fits {fitting} of those of which one may fit"));
    }
    Ok(())
}

fn limit(
    keyword: &str,
    rule: &Value,
    value: &Value,
    place: &str,
    complaints: &mut Vec<String>,
) -> Result<(), Fault> {
    let bound = rule
        .as_f64()
        .ok_or_else(|| Fault::new(format!("{place}: {keyword} {rule} is no number")))?;
    let size = match keyword {
        "minimum" | "maximum" => value.as_f64(),
        "minLength" | "maxLength" => value.as_str().map(|text| text.chars().count() as f64),
        _ => value.as_array().map(|items| items.len() as f64),
    };
    let Some(size) = size else { return Ok(()) };
    let below = keyword.starts_with("min") && size < bound;
    if below || (keyword.starts_with("max") && size > bound) {
        complaints.push(format!("{place}: {size} against {keyword} {bound}"));
    }
    Ok(())
}
