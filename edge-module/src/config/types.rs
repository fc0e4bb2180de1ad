//! Which values have a wrong type.

use config::{Config, ConfigError, File, FileFormat, Value, ValueKind};

use super::{DEFAULTS, Fault, Settings, SettingsError, read_error};

/// All values of variables are text.
const OF_VARIABLES: &str = "the environment";

/// A value that the reader would take for one of another type: `true` for the number 1, 2.5 for the integer 3, "120" for a number. What
/// it would not take at all it reports itself.
pub(super) fn taken_for_another(path: &str, found: &Value, known: &Value) -> Option<Fault> {
    if found.origin() == Some(OF_VARIABLES) {
        return None;
    }
    let expected = match (&known.kind, &found.kind) {
        (ValueKind::Boolean(_), kind) if !matches!(kind, ValueKind::Boolean(_)) => "true or false",
        (ValueKind::String(_), kind) if !matches!(kind, ValueKind::String(_)) => "a text",
        (ValueKind::I64(_), kind) if !is_whole(kind) => "a whole number",
        (ValueKind::Float(_), kind) if !is_number(kind) => "a number",
        (_, _) => return None,
    };
    let origin = found.origin().unwrap_or("the settings");
    Some(Fault { path: path.to_owned(), text: format!("{found} is not {expected}, in {origin}") })
}

const fn is_number(kind: &ValueKind) -> bool {
    matches!(
        kind,
        ValueKind::I64(_)
            | ValueKind::I128(_)
            | ValueKind::U64(_)
            | ValueKind::U128(_)
            | ValueKind::Float(_)
    )
}

fn is_whole(kind: &ValueKind) -> bool {
    match kind {
        ValueKind::Float(number) => number.fract() == 0.0,
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => true,
        ValueKind::Nil
        | ValueKind::Boolean(_)
        | ValueKind::String(_)
        | ValueKind::Table(_)
        | ValueKind::Array(_) => false,
    }
}

/// Every value of a wrong type: the reader stops at the first, so each key is read alone, the others as by default.
pub(super) fn type_faults(found: &Value, first: &ConfigError) -> SettingsError {
    let fault = |key: &str, value: Value| {
        let defaults = File::from_str(DEFAULTS, FileFormat::Toml);
        let origin = value.origin().map(str::to_owned);
        let one = Config::builder().add_source(defaults).set_override(key, value);
        let read = one.and_then(|one| one.build()).and_then(Config::try_deserialize::<Settings>);
        let text = read.err()?.to_string();
        // The reader names it only where the value itself has the wrong type.
        let unnamed = origin.filter(|origin| !text.contains(origin.as_str()));
        Some(unnamed.map_or_else(|| text.clone(), |origin| format!("{text} in {origin}")))
    };
    let ValueKind::Table(tables) = &found.kind else { return read_error(first) };
    let mut texts = Vec::new();
    for (name, value) in tables {
        match &value.kind {
            ValueKind::Table(keys) => {
                texts.extend(
                    keys.iter()
                        .filter_map(|(key, value)| fault(&format!("{name}.{key}"), value.clone())),
                );
            }
            ValueKind::Array(elements) => {
                texts.extend(elements.iter().enumerate().filter_map(|(place, element)| {
                    let text = fault(name, Value::new(None, vec![element.clone()]))?;
                    let text = text.replace(&format!("{name}[0]"), &format!("{name}[{place}]"));
                    Some(with_dots(&text))
                }));
            }
            ValueKind::Nil
            | ValueKind::Boolean(_)
            | ValueKind::I64(_)
            | ValueKind::I128(_)
            | ValueKind::U64(_)
            | ValueKind::U128(_)
            | ValueKind::Float(_)
            | ValueKind::String(_) => texts.extend(fault(name, value.clone())),
        }
    }
    if texts.is_empty() { read_error(first) } else { SettingsError::Read(texts.join("\n")) }
}

/// The reader leaves the dot out behind an index, at times.
fn with_dots(text: &str) -> String {
    let mut whole = String::with_capacity(text.len());
    let mut last = ' ';
    for character in text.chars() {
        if last == ']' && (character.is_ascii_lowercase() || character == '_') {
            whole.push('.');
        }
        whole.push(character);
        last = character;
    }
    whole
}
