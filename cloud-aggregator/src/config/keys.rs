//! All settings in one list: what differs between two versions.

use std::collections::BTreeMap;

use config::{Value, ValueKind};

/// Every key that is set, with its value as text. The values may be secret: only the keys are shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys(BTreeMap<String, String>);

impl Keys {
    pub(super) fn new(merged: &Value) -> Self {
        let mut keys = BTreeMap::new();
        flatten(String::new(), merged, &mut keys);
        Self(keys)
    }

    /// Keys whose values differ, and keys that only one of both has.
    #[must_use]
    pub fn changed(&self, other: &Self) -> Vec<String> {
        let differs = |(key, value): &(&String, &String)| other.0.get(*key) != Some(*value);
        let only_other = other.0.keys().filter(|key| !self.0.contains_key(*key));
        let mut changed: Vec<String> =
            self.0.iter().filter(differs).map(|(key, _)| key).chain(only_other).cloned().collect();
        changed.sort_unstable();
        changed
    }
}

fn flatten(path: String, value: &Value, keys: &mut BTreeMap<String, String>) {
    match &value.kind {
        ValueKind::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(path, value, keys);
            }
        }
        ValueKind::Array(elements) => {
            for (index, value) in elements.iter().enumerate() {
                flatten(format!("{path}[{index}]"), value, keys);
            }
        }
        ValueKind::Nil
        | ValueKind::Boolean(_)
        | ValueKind::I64(_)
        | ValueKind::I128(_)
        | ValueKind::U64(_)
        | ValueKind::U128(_)
        | ValueKind::Float(_)
        | ValueKind::String(_) => {
            keys.insert(path, value.to_string());
        }
    }
}
