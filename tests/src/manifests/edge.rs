//! Deployment manifests of IoT Edge, as they go to IoT Hub: `createOptions` is text. Unknown members are faults here, although the
//! runtime passes over them: a misspelt member is a setting that does not hold, and nobody is told.
//!
//! Members, values and limits: github Azure/iotedge (Agent.Core, Agent.Docker, Hub.Core) and "Understand and use device twins in IoT
//! Hub" of its documentation.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value};

mod create_options;
mod layers;
mod modules;
mod render;
mod routes;
mod settings;
mod twins;

pub use create_options::CreateOptions;
pub use layers::{applied, layer_faults};
pub use modules::Module;
pub use render::{render, template};
pub use routes::{Endpoint, Route, Source};
pub use settings::{Gateway, TEST_SECRET, environment, settings_faults};

/// Name of our module in the manifests.
pub const OUR_MODULE: &str = "edge-module";

/// A whole manifest.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Manifest {
    modules_content: BTreeMap<String, Content>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(rename = "properties.desired")]
    desired: Map<String, Value>,
}

/// Desired properties of `$edgeAgent`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Agent {
    schema_version: String,
    runtime: Runtime,
    system_modules: BTreeMap<String, Module>,
    modules: BTreeMap<String, Module>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Runtime {
    r#type: String,
    settings: RuntimeSettings,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuntimeSettings {
    min_docker_version: String,
    #[serde(default)]
    logging_options: String,
    #[serde(default)]
    registry_credentials: BTreeMap<String, RegistryCredential>,
}

/// Readable by whoever may read the twin, and the only way to a private registry: an account that may pull and nothing else.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryCredential {
    address: String,
    username: String,
    password: String,
}

/// Desired properties of `$edgeHub`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Hub {
    schema_version: String,
    routes: BTreeMap<String, routes::Entry>,
    store_and_forward_configuration: StoreAndForward,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StoreAndForward {
    time_to_live_secs: i64,
}

/// What is wrong, each with its place.
#[must_use]
pub fn faults(manifest: &Value) -> Vec<String> {
    let mut faults = twins::text_faults(manifest);
    match Manifest::deserialize(manifest) {
        Ok(manifest) => check(&manifest, &mut faults),
        Err(error) => faults.push(format!("modulesContent: {error}")),
    }
    faults
}

fn check(manifest: &Manifest, faults: &mut Vec<String>) {
    for (name, content) in &manifest.modules_content {
        faults.extend(twins::faults(name, &content.desired));
    }
    let agent: Option<Agent> = part(manifest, "$edgeAgent", faults);
    let hub: Option<Hub> = part(manifest, "$edgeHub", faults);
    let Some(agent) = agent else { return };
    check_agent(&agent, faults);
    let own = |name: &&String| !name.starts_with('$') && !agent.modules.contains_key(*name);
    let strangers = manifest.modules_content.keys().filter(own);
    faults.extend(strangers.map(|name| format!("{name}: has properties and is no module")));
    if let Some(hub) = hub {
        check_hub(&hub, &agent.modules.keys().cloned().collect(), faults);
    }
}

fn part<T: for<'a> Deserialize<'a>>(
    manifest: &Manifest,
    name: &str,
    faults: &mut Vec<String>,
) -> Option<T> {
    let Some(content) = manifest.modules_content.get(name) else {
        faults.push(format!("{name} is missing"));
        return None;
    };
    match T::deserialize(Value::Object(content.desired.clone())) {
        Ok(part) => Some(part),
        Err(error) => {
            faults.push(format!("{name}: {error}"));
            None
        }
    }
}

fn check_agent(agent: &Agent, faults: &mut Vec<String>) {
    if !["1.0", "1.1"].contains(&agent.schema_version.as_str()) {
        faults.push(format!("$edgeAgent: schemaVersion {} is refused", agent.schema_version));
    }
    if agent.runtime.r#type != "docker" || agent.runtime.settings.min_docker_version.is_empty() {
        faults.push("$edgeAgent: the runtime is docker, of a version".to_owned());
    }
    if !agent.runtime.settings.logging_options.is_empty() {
        faults.push("$edgeAgent: loggingOptions: each module has its own LogConfig".to_owned());
    }
    for (name, login) in &agent.runtime.settings.registry_credentials {
        let is_empty = login.username.is_empty() || login.password.is_empty();
        let is_used = agent.modules.values().any(|module| module.is_from(&login.address));
        if is_empty || !is_used {
            faults.push(format!("$edgeAgent: registryCredentials {name}: empty, or for no image"));
        }
    }
    for name in ["edgeAgent", "edgeHub"] {
        if !agent.system_modules.contains_key(name) {
            faults.push(format!("$edgeAgent: the system module {name} is missing"));
        }
    }
    if agent.system_modules.len() > 2 {
        faults.push("$edgeAgent: there are two system modules".to_owned());
    }
    let mut ports = BTreeMap::new();
    for (name, module) in agent.system_modules.iter().chain(&agent.modules) {
        faults.extend(module.faults(name, &agent.schema_version));
        for port in module.host_ports() {
            if let Some(other) = ports.insert(port.clone(), name) {
                faults.push(format!("{name}: host port {port} is {other}'s already"));
            }
        }
    }
    match agent.modules.get(OUR_MODULE) {
        Some(module) => faults.extend(modules::our_faults(module)),
        None => faults.push(format!("$edgeAgent: the module {OUR_MODULE} is missing")),
    }
}

fn check_hub(hub: &Hub, modules: &BTreeSet<String>, faults: &mut Vec<String>) {
    if !["1.1", "1.2", "1.3"].contains(&hub.schema_version.as_str()) {
        let version = &hub.schema_version;
        faults.push(format!("$edgeHub: schemaVersion {version} has no routes as objects"));
    }
    if !routes::is_time_to_live(hub.store_and_forward_configuration.time_to_live_secs) {
        faults.push("$edgeHub: timeToLiveSecs is -1, for ever, or more than a minute".to_owned());
    }
    for (name, entry) in &hub.routes {
        faults.extend(entry.faults(name, modules));
    }
    let is_served = |source: &Source| {
        hub.routes
            .values()
            .filter_map(|entry| entry.parse().ok())
            .any(|route| route.endpoint == Endpoint::Upstream && route.source.includes(source))
    };
    // What matches no route is dropped by edgeHub, and acknowledged.
    let ours = Source::Outputs { module: OUR_MODULE.to_owned(), output: None };
    if !is_served(&ours) {
        faults.push(format!("$edgeHub: nothing takes what {OUR_MODULE} sends to the hub"));
    }
}
