//! Layered deployments: only changes by dotted keys, on top of one base deployment.

use serde_json::{Map, Value};

const DESIRED: &str = "properties.desired";

/// What is wrong with a layer in itself.
#[must_use]
pub fn layer_faults(layer: &Value) -> Vec<String> {
    let Some(contents) = contents(layer) else {
        return vec!["modulesContent is missing".to_owned()];
    };
    let mut faults = Vec::new();
    for (name, content) in contents {
        let members = content.as_object();
        if members.is_none_or(Map::is_empty) {
            faults.push(format!("{name}: changes nothing"));
        }
        for key in members.into_iter().flat_map(Map::keys) {
            let path: Vec<&str> =
                key.strip_prefix(DESIRED).unwrap_or("?").split('.').skip(1).collect();
            let is_path = match (name.as_str(), path.as_slice()) {
                ("$edgeAgent", ["modules", module]) => !module.is_empty(),
                ("$edgeHub", ["routes", route]) => !route.is_empty(),
                ("$edgeAgent" | "$edgeHub", [..]) => false,
                // Without a path it would replace what the base desires.
                (_, path) => !path.is_empty() && path.iter().all(|part| !part.is_empty()),
            };
            if !is_path {
                faults.push(format!("{name}: a layer cannot have {key}"));
            }
        }
    }
    faults
}

/// What a gateway gets that both of them target.
///
/// # Errors
/// Either has no `modulesContent`.
pub fn applied(base: &Value, layer: &Value) -> anyhow::Result<Value> {
    let missing = || anyhow::anyhow!("modulesContent is missing");
    let mut result = contents(base).ok_or_else(missing)?.clone();
    for (name, content) in contents(layer).ok_or_else(missing)? {
        for (key, value) in content.as_object().into_iter().flatten() {
            let identity = object(result.entry(name));
            let desired = object(identity.entry(DESIRED));
            let path = key.strip_prefix(DESIRED).unwrap_or(key).trim_start_matches('.');
            put(desired, path, value.clone());
        }
    }
    Ok(serde_json::json!({ "modulesContent": result }))
}

fn contents(manifest: &Value) -> Option<&Map<String, Value>> {
    manifest.get("modulesContent")?.as_object()
}

fn put(members: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        Some((first, rest)) => put(object(members.entry(first)), rest, value),
        None => drop(members.insert(path.to_owned(), value)),
    }
}

/// The object at an entry; anything else gives way to one.
fn object(entry: serde_json::map::Entry<'_>) -> &mut Map<String, Value> {
    let value = entry.or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was made one")
}
