//! Text and JSON with expressions in it: `@expression` is a value of any type, `text @{expression} text` is always text, and
//! `@@` at the beginning stands for one `@`.

use serde_json::{Map, Value};

use super::Fault;
use super::expression::{self, Expression};

/// A text, read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Template {
    Literal(String),
    Whole(Expression),
    Joined(Vec<Part>),
}

/// A piece of a text with expressions in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    Text(String),
    Value(Expression),
}

/// Reads a text of a definition.
pub(super) fn parse(text: &str) -> Result<Template, Fault> {
    if let Some(escaped) = text.strip_prefix("@@") {
        return Ok(Template::Literal(format!("@{escaped}")));
    }
    if !text.contains("@{") {
        return match text.strip_prefix('@') {
            Some(whole) => expression::parse(whole).map(Template::Whole),
            None => Ok(Template::Literal(text.to_owned())),
        };
    }
    if text.starts_with('@') && !text.starts_with("@{") {
        return expression::parse(&text[1..]).map(Template::Whole);
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("@{") {
        if at > 0 {
            parts.push(Part::Text(rest[..at].to_owned()));
        }
        let (value, after) = expression::parse_start(&rest[at + 2..])?;
        let Some(after) = after.trim_start().strip_prefix('}') else {
            return Err(Fault::new(format!("{text:?}: a closing brace is missing")));
        };
        parts.push(Part::Value(value));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(Template::Joined(parts))
}

/// Evaluates all texts of a value with `evaluate`. Keys are taken as they are.
pub(super) fn fill(
    value: &Value,
    evaluate: &mut dyn FnMut(&Expression) -> Result<Value, Fault>,
) -> Result<Value, Fault> {
    match value {
        Value::String(text) => fill_text(&parse(text)?, evaluate),
        Value::Array(items) => items
            .iter()
            .map(|item| fill(item, evaluate))
            .collect::<Result<_, _>>()
            .map(Value::Array),
        Value::Object(members) => members
            .iter()
            .map(|(key, member)| Ok((key.clone(), fill(member, evaluate)?)))
            .collect::<Result<Map<_, _>, _>>()
            .map(Value::Object),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(value.clone()),
    }
}

fn fill_text(
    template: &Template,
    evaluate: &mut dyn FnMut(&Expression) -> Result<Value, Fault>,
) -> Result<Value, Fault> {
    match template {
        Template::Literal(text) => Ok(Value::String(text.clone())),
        Template::Whole(expression) => evaluate(expression),
        Template::Joined(parts) => {
            let mut joined = String::new();
            for part in parts {
                match part {
                    Part::Text(text) => joined.push_str(text),
                    Part::Value(expression) => joined.push_str(&text_of(&evaluate(expression)?)),
                }
            }
            Ok(Value::String(joined))
        }
    }
}

/// A value as text: `null` is empty, a number without a fraction has no point, objects and arrays are compact JSON.
pub(super) fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => float.to_string(),
            Some(_) | None => number.to_string(),
        },
        Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// Every expression in a value, for checks before anything runs.
pub(super) fn expressions(value: &Value) -> Result<Vec<Expression>, Fault> {
    let mut found = Vec::new();
    let mut collect = |expression: &Expression| {
        found.push(expression.clone());
        Ok(Value::Null)
    };
    fill(value, &mut collect)?;
    Ok(found)
}
