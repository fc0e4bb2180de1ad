//! What is deployed on a gateway: the manifests of IoT Edge, the broker's settings, the systemd unit. Manifests are made by the
//! program that people use, checked against what IoT Edge and IoT Hub take, and their settings by the edge module itself.
//! For each rule of the check there is a wrong variant that it must refuse.

mod broker;
mod unit;
mod variants;

use std::process::Command;

use anyhow::ensure;
use e2e_tests::manifests::edge::{
    Endpoint, OUR_MODULE, Route, applied, faults, layer_faults, render, settings_faults, template,
};
use e2e_tests::workspace_root;
use serde_json::{Value, json};

const BASE: &str = "deployment.template.json";
const LAYER: &str = "layered-deployment.template.json";

fn expect_none(faults: &[String]) -> anyhow::Result<()> {
    ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}

#[test]
fn the_manifest_is_one_that_iot_edge_and_the_edge_module_take() -> anyhow::Result<()> {
    let manifest = render(BASE)?;
    expect_none(&faults(&manifest))?;
    let root = tempfile::tempdir()?;
    expect_none(&settings_faults(&manifest, root.path())?)
}

/// A message to an input that nobody reads is acknowledged and lost.
#[test]
fn routes_end_at_inputs_that_our_module_reads() -> anyhow::Result<()> {
    let manifest = render(BASE)?;
    let routes = &manifest["modulesContent"]["$edgeHub"]["properties.desired"]["routes"];
    let mut inputs = Vec::new();
    for entry in routes.as_object().into_iter().flat_map(|routes| routes.values()) {
        let text = entry["route"].as_str().unwrap_or_default();
        match Route::parse(text).map_err(anyhow::Error::msg)?.endpoint {
            Endpoint::Input { module, input } if module == OUR_MODULE => inputs.push(input),
            Endpoint::Input { .. } | Endpoint::Upstream => {}
        }
    }
    ensure!(!inputs.is_empty(), "{routes}");
    let defaults = workspace_root().join("edge-module/config/default.toml");
    let defaults = std::fs::read_to_string(defaults)?;
    let section = defaults.split("\n[opc-publisher]\n").nth(1).unwrap_or_default();
    let read = section.lines().find(|line| line.starts_with("inputs = ")).unwrap_or_default();
    for input in inputs {
        ensure!(read.contains(&format!("\"{input}\"")), "{input}: {read:?} are read");
    }
    Ok(())
}

#[test]
fn an_account_for_a_private_registry_is_taken() -> anyhow::Result<()> {
    let mut manifest = render(BASE)?;
    let agent = &mut manifest["modulesContent"]["$edgeAgent"]["properties.desired"];
    agent["runtime"]["settings"]["registryCredentials"]["ours"] =
        json!({"address": "registry.example.com", "username": "gateways", "password": "for pulls"});
    expect_none(&faults(&manifest))
}

#[test]
fn the_layer_adds_to_the_manifest_and_is_taken_too() -> anyhow::Result<()> {
    let (base, layer) = (render(BASE)?, render(LAYER)?);
    expect_none(&layer_faults(&layer))?;
    let both = applied(&base, &layer)?;
    expect_none(&faults(&both))?;
    let desired = &both["modulesContent"]["edge-module"]["properties.desired"];
    ensure!(desired["learning"]["within"] == "24h", "{desired}");
    ensure!(desired["machines"][0]["id"] == "press-1", "the base's own are gone: {desired}");
    let root = tempfile::tempdir()?;
    expect_none(&settings_faults(&both, root.path())?)
}

#[test]
fn a_layer_with_whole_properties_is_refused() -> anyhow::Result<()> {
    let layer = render(LAYER)?;
    let keys = [
        ("edge-module", "properties.desired"),
        ("edge-module", "properties.desired."),
        ("edge-module", "properties.reported.learning"),
        ("$edgeHub", "properties.desired.storeAndForwardConfiguration"),
        ("$edgeAgent", "properties.desired.modules"),
        ("$edgeAgent", "properties.desired"),
    ];
    for (identity, key) in keys {
        let mut wrong = layer.clone();
        wrong["modulesContent"][identity][key] = json!({});
        let found = layer_faults(&wrong);
        ensure!(found.iter().any(|fault| fault.contains(key)), "{key}: {found:?}");
    }
    Ok(())
}

/// What an operator would mistype is told by the program, with the key's path.
#[test]
fn wrong_settings_of_our_module_are_refused_by_itself() -> anyhow::Result<()> {
    let manifest = render(BASE)?;
    let desired = "/modulesContent/edge-module/properties.desired";
    let variables = "/modulesContent/$edgeAgent/properties.desired/modules/edge-module/env";
    let wrong: [(&str, Value, &str); 7] = [
        ("deadbnad", json!({"percent": 1.0}), "deadbnad: unknown key"),
        ("deadband", json!({"percent": "half"}), "deadband.percent"),
        ("kafka", json!({"brokers": "elsewhere:9092"}), "kafka.brokers: may not be set by the hub"),
        ("machines", json!([{"id": "press-1", "limit": []}]), "machines[0].limit: unknown key"),
        ("machines", json!([{"id": "press-1", "trip-on-silence": 5}]), "trip-on-silence"),
        ("EDGE__MQTT__PROT", json!({"value": "1883"}), "mqtt.prot: unknown key"),
        ("EDGE__MQTT__PASSWORD_FILE", json!({"value": "/run/other"}), "mqtt.password-file"),
    ];
    for (key, value, expected) in wrong {
        let mut wrong = manifest.clone();
        let place = if key.starts_with("EDGE__") { variables } else { desired };
        let members = wrong.pointer_mut(place).and_then(Value::as_object_mut);
        members.expect("a part of the manifest").insert(key.to_owned(), value);
        let root = tempfile::tempdir()?;
        let refused = settings_faults(&wrong, root.path())?.join("\n");
        ensure!(refused.contains(expected), "{key}: {refused:?}");
    }
    Ok(())
}

#[test]
fn a_template_that_is_not_filled_in_makes_no_manifest() -> anyhow::Result<()> {
    let folder = workspace_root().join("deployment-manifests/edge");
    let dir = tempfile::tempdir()?;
    let (env, out) = (dir.path().join("variables"), dir.path().join("manifest.json"));
    let complete = std::fs::read_to_string(folder.join("example.env"))?;
    let mut long = template(BASE)?;
    let modules = "/modulesContent/$edgeAgent/properties.desired/modules";
    let modules = long.pointer_mut(modules).expect("modules of the template");
    modules["edge-module"]["settings"]["createOptions"]["Cmd"] = json!(["x".repeat(4096)]);
    let too_long = dir.path().join("long.json");
    std::fs::write(&too_long, long.to_string())?;
    let base = folder.join(BASE);
    let cases = [
        (&base, complete.replace("KAFKA_BROKERS=", "KAFKA="), "KAFKA_BROKERS is not set"),
        (&base, format!("{complete}\nno pair\n"), "is no NAME=value"),
        (&too_long, complete, "at most 4096"),
    ];
    for (template, variables, expected) in cases {
        std::fs::write(&env, variables)?;
        let done = Command::new(folder.join("render"))
            .arg(template)
            .arg("--env")
            .arg(&env)
            .arg("--out")
            .arg(&out)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.code() == Some(65) && said.contains(expected), "{expected}: {said}");
        ensure!(!out.exists(), "{expected}: a manifest was written all the same");
    }
    Ok(())
}
