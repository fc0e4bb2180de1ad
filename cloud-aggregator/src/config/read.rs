//! From the merged layers to settings, with every key that nobody knows and every value of another type: the reader itself stops at
//! the first.
//!
//! What cannot be read is told and gives way to its default, so that the rest is read and checked as well.

use config::{Config, ConfigError, File, FileFormat, Map, Value, ValueKind};

use super::{DEFAULTS, FREE_TABLES, Fault, Rule, Settings, SettingsError};

/// Gives the settings and what could not be read, sorted by path.
pub(super) fn read(merged: &Value) -> Result<(Settings, Vec<Fault>), SettingsError> {
    let failed = |error: ConfigError| SettingsError::Read(error.to_string());
    let defaults = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
    let defaults = defaults.build().map_err(failed)?.cache;
    let mut found = merged.clone();
    let mut faults = Vec::new();
    drop_unknown("", &mut found, &defaults, &mut faults);
    if found.clone().try_deserialize::<Settings>().is_err() {
        replace_unreadable("", &mut found, &defaults, &defaults, &mut faults);
    }
    faults.sort_by(|left, right| left.path.cmp(&right.path));
    let settings = found.try_deserialize::<Settings>().map_err(failed)?;
    Ok((settings, faults))
}

/// Takes the keys out that the default file does not have.
fn drop_unknown(path: &str, found: &mut Value, known: &Value, faults: &mut Vec<Fault>) {
    if FREE_TABLES.contains(&path) {
        return;
    }
    match (&mut found.kind, &known.kind) {
        (ValueKind::Table(found), ValueKind::Table(known)) => found.retain(|key, value| {
            let path = joined(path, key);
            if let Some(known) = known.get(key) {
                drop_unknown(&path, value, known, faults);
                return true;
            }
            faults.push(unknown_key(path, value, known));
            false
        }),
        (ValueKind::Array(found), ValueKind::Array(known)) => {
            let Some(known) = known.first() else { return };
            for (index, value) in found.iter_mut().enumerate() {
                drop_unknown(&format!("{path}[{index}]"), value, known, faults);
            }
        }
        // A value of another type, which is told below.
        (_, _) => {}
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn unknown_key(path: String, value: &Value, known: &Map<String, Value>) -> Fault {
    let origin = deepest_origin(value).unwrap_or("the settings").to_owned();
    let mut names: Vec<&str> = known.keys().map(String::as_str).collect();
    names.sort_unstable();
    Fault { path, text: format!("unknown key in {origin}; known here: {}", names.join(", ")) }
}

fn deepest_origin(value: &Value) -> Option<&str> {
    if let Some(origin) = value.origin() {
        return Some(origin);
    }
    if let ValueKind::Table(table) = &value.kind {
        return table.values().find_map(deepest_origin);
    }
    if let ValueKind::Array(array) = &value.kind {
        return array.iter().find_map(deepest_origin);
    }
    None
}

/// " in FILE", as far as it is known.
fn origin_of(value: &Value) -> String {
    deepest_origin(value).map_or_else(String::new, |origin| format!(" in {origin}"))
}

/// Sets each value of another type to its default. Each is read alone, the others as by default.
fn replace_unreadable(
    path: &str,
    found: &mut Value,
    known: &Value,
    defaults: &Value,
    faults: &mut Vec<Fault>,
) {
    if path == "rules" {
        replace_rules(found, known, faults);
        return;
    }
    if !FREE_TABLES.contains(&path)
        && let (ValueKind::Table(found), ValueKind::Table(known)) = (&mut found.kind, &known.kind)
    {
        for (key, value) in found.iter_mut() {
            if let Some(known) = known.get(key) {
                replace_unreadable(&joined(path, key), value, known, defaults, faults);
            }
        }
        return;
    }
    let mut probe = defaults.clone();
    let Some(place) = value_at(&mut probe, path) else { return };
    *place = found.clone();
    let Err(error) = probe.try_deserialize::<Settings>() else { return };
    let (place, text) = said(&error);
    let path = place.unwrap_or(path).to_owned();
    faults.push(Fault { path, text: format!("{text}{}", origin_of(found)) });
    *found = known.clone();
}

fn value_at<'a>(root: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut value = root;
    for key in path.split('.') {
        let ValueKind::Table(table) = &mut value.kind else { return None };
        value = table.get_mut(key)?;
    }
    Some(value)
}

/// Where a value is wrong, which may be inside of a list or a table, and what is wrong with it.
fn said(error: &ConfigError) -> (Option<&str>, String) {
    if let ConfigError::Type { unexpected, expected, key, .. } = error {
        return (key.as_deref(), format!("invalid type: {unexpected}, expected {expected}"));
    }
    if let ConfigError::At { error, key, .. } = error {
        return (key.as_deref(), error.to_string());
    }
    (None, error.to_string())
}

/// The same for rules, which have keys without a default, too.
fn replace_rules(found: &mut Value, known: &Value, faults: &mut Vec<Fault>) {
    let ValueKind::Array(seeds) = &known.kind else { return };
    let Some(ValueKind::Table(seed)) = seeds.first().map(|seed| &seed.kind) else { return };
    let origin = origin_of(found);
    let ValueKind::Array(rules) = &mut found.kind else {
        let text = format!(
            "is no list of tables{origin}: write [[rules]] in the file, a variable cannot set rules"
        );
        faults.push(Fault { path: "rules".to_owned(), text });
        *found = known.clone();
        return;
    };
    for (index, rule) in rules.iter_mut().enumerate() {
        replace_rule(&format!("rules[{index}]"), rule, seed, faults);
    }
}

fn replace_rule(path: &str, rule: &mut Value, seed: &Map<String, Value>, faults: &mut Vec<Fault>) {
    let mut stand_in = seed.clone();
    // Nobody else is called so.
    stand_in.insert("name".to_owned(), Value::new(None, path));
    let origin = origin_of(rule);
    let ValueKind::Table(keys) = &mut rule.kind else {
        faults.push(Fault { path: path.to_owned(), text: format!("is no table{origin}") });
        rule.kind = ValueKind::Table(stand_in);
        return;
    };
    let name = keys.get("name").and_then(|name| name.clone().into_string().ok());
    let name = name.map_or_else(String::new, |name| format!("rule {name:?}: "));
    for (key, value) in keys.iter_mut() {
        let Some(other) = stand_in.get(key) else { continue };
        let mut probe = stand_in.clone();
        probe.insert(key.clone(), value.clone());
        if let Err(error) = read_rule(probe) {
            let (_, text) = said(&error);
            let text = format!("{name}{text}{origin}");
            faults.push(Fault { path: format!("{path}.{key}"), text });
            *value = other.clone();
        }
    }
    while let Err(ConfigError::NotFound(key)) = read_rule(keys.clone()) {
        let Some(other) = stand_in.get(&key) else { break };
        let text = format!("{name}is missing{origin}, every rule needs it");
        faults.push(Fault { path: format!("{path}.{key}"), text });
        keys.insert(key, other.clone());
    }
    let window = format!("{path}.window");
    if faults.iter().any(|fault| fault.path == window) {
        // It would be held against a window that is not its own.
        keys.remove("slide");
    }
}

fn read_rule(keys: Map<String, Value>) -> Result<Rule, ConfigError> {
    Value::new(None, ValueKind::Table(keys)).try_deserialize()
}
