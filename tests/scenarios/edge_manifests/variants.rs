//! Wrong variants of the manifest, one for each rule of the check.

use anyhow::{Context, ensure};
use e2e_tests::manifests::edge::{faults, render};
use serde_json::{Value, json};

use super::BASE;

const AGENT: &str = "/modulesContent/$edgeAgent/properties.desired";
const HUB: &str = "/modulesContent/$edgeHub/properties.desired";
const TWIN: &str = "/modulesContent/edge-module/properties.desired";
const OURS: &str = "/modulesContent/$edgeAgent/properties.desired/modules/edge-module";

/// A place below one of the parts above, what is put there, and what is said of it.
type Variant = (&'static str, &'static str, Value, &'static str);

/// With every wrong value put into a manifest that is right, one at a time.
fn expect_refusals(variants: Vec<Variant>) -> anyhow::Result<()> {
    let manifest = render(BASE)?;
    for (part, path, value, expected) in variants {
        let mut wrong = manifest.clone();
        put(&mut wrong, &format!("{part}{path}"), value)?;
        let found = faults(&wrong);
        ensure!(found.iter().any(|it| it.contains(expected)), "{path}: {expected}: {found:?}");
    }
    Ok(())
}

/// The same with what containers are made with: a module, a place below its createOptions, what is put there, what is said.
fn expect_option_refusals(variants: Vec<Variant>) -> anyhow::Result<()> {
    let manifest = render(BASE)?;
    for (module, path, value, expected) in variants {
        let mut wrong = manifest.clone();
        let settings = format!("{AGENT}/modules/{module}/settings");
        let mut options = create_options(&wrong, &settings)?;
        put(&mut options, path, value)?;
        set_create_options(&mut wrong, &settings, &options.to_string())?;
        let found = faults(&wrong);
        ensure!(found.iter().any(|it| it.contains(expected)), "{path}: {expected}: {found:?}");
    }
    Ok(())
}

/// Null takes the member away.
fn put(manifest: &mut Value, pointer: &str, value: Value) -> anyhow::Result<()> {
    let (parent, key) = pointer.rsplit_once('/').context("a path")?;
    let parent = manifest.pointer_mut(parent).with_context(|| pointer.to_owned())?;
    let members = parent.as_object_mut().context("an object")?;
    let key = key.replace("~1", "/");
    match value {
        Value::Null => drop(members.remove(&key).with_context(|| pointer.to_owned())?),
        value @ (Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_)) => drop(members.insert(key, value)),
    }
    Ok(())
}

#[test]
fn wrong_parts_of_the_runtime_are_refused() -> anyhow::Result<()> {
    let of_none = json!({"acr": {"address": "a.azurecr.io", "username": "u", "password": "p"}});
    let address = "registry.example.com";
    let empty = json!({"acr": {"address": address, "username": "u", "password": ""}});
    let half = json!({"acr": {"address": address, "username": "u"}});
    let registries = "/runtime/settings/registryCredentials";
    expect_refusals(vec![
        ("/modulesContent", "/$edgeHub", Value::Null, "$edgeHub is missing"),
        ("/modulesContent", "/other", json!({"properties.desired": {}}), "is no module"),
        (
            "/modulesContent",
            "/edge-module",
            json!({"properties": {}}),
            "unknown field `properties`",
        ),
        (AGENT, "/schemaVersion", json!("1.2"), "schemaVersion 1.2 is refused"),
        (AGENT, "/schemaVersion", json!("1.0"), "startupOrder needs schemaVersion 1.1"),
        (AGENT, "/runtime/type", json!("podman"), "the runtime is docker"),
        (AGENT, registries, of_none, "acr: empty, or for no image"),
        (AGENT, registries, empty, "acr: empty, or for no image"),
        (AGENT, registries, half, "missing field `password`"),
        (AGENT, "/systemModules/edgeHub", Value::Null, "system module edgeHub is missing"),
        (AGENT, "/modules/edge-module", Value::Null, "module edge-module is missing"),
        (HUB, "/schemaVersion", json!("1.0"), "has no routes as objects"),
        (HUB, "/storeAndForwardConfiguration/timeToLiveSecs", json!(7), "timeToLiveSecs"),
        (HUB, "/routes/edge-module-to-hub", Value::Null, "nothing takes what edge-module sends"),
    ])
}

#[test]
fn wrong_routes_are_refused() -> anyhow::Result<()> {
    let route = "/routes/opc-to-edge-module";
    let input = "BrokeredEndpoint(\"/modules/edge-module/inputs/opc\")";
    let from = |source: &str| json!({"route": format!("FROM {source} INTO {input}")});
    let to = |sink: &str| json!({"route": format!("FROM /messages/modules/opc-publisher/* INTO {sink}")});
    expect_refusals(vec![
        (HUB, route, from("/messages/modules/publisher/*"), "there is no module publisher"),
        (HUB, route, from("/messages/modules/edge-module/*"), "would hear itself"),
        (HUB, route, from("messages/*"), "is no source"),
        (HUB, route, to("upstream"), "is no sink"),
        (
            HUB,
            route,
            to("BrokeredEndpoint(\"/modules/edge/inputs/opc\")"),
            "there is no module edge",
        ),
        (HUB, route, json!({"route": "FROM /messages/*"}), "ends after its source"),
        (HUB, route, json!("FROM /messages/* INTO $upstream"), "$edgeHub: invalid type"),
        (HUB, "/routes/opc-to-edge-module/priority", json!(10), "priority is 0"),
        (HUB, "/routes/opc-to-edge-module/timeToLiveSecs", json!(0), "timeToLiveSecs is -1"),
        (HUB, "/routes/opc-to-edge-module/ttl", json!(60), "unknown field `ttl`"),
    ])
}

#[test]
fn wrong_modules_are_refused() -> anyhow::Result<()> {
    let image = "/settings/image";
    expect_refusals(vec![
        (OURS, "/type", json!("process"), "type process is unknown"),
        (OURS, "/status", json!("stopped"), "status is not running"),
        (OURS, "/status", json!("up"), "unknown variant `up`"),
        (OURS, "/restartPolicy", json!("on-failure"), "restartPolicy is not always"),
        (OURS, "/restartPolicy", json!("unless-stopped"), "unknown variant"),
        (OURS, "/startupOrder", json!(-1), "invalid value"),
        (OURS, "/imagePullPolicy", json!("never"), "imagePullPolicy never"),
        (OURS, "/imagePullPolicy", Value::Null, "is pulled at each start"),
        (OURS, "/restart", json!("always"), "unknown field `restart`"),
        (OURS, image, json!("registry.example.com/edge-module"), "has no tag"),
        (OURS, image, json!("registry.example.com/edge-module:latest"), "another one tomorrow"),
        (OURS, image, json!("registry.example.com:5000/edge-module"), "has no tag"),
        (OURS, image, json!("edge-module:0.1.0"), "registry/path:tag"),
        (OURS, image, json!("registry.example.com/Edge:0.1.0"), "registry/path:tag"),
        (OURS, image, json!("registry.example.com/edge@sha256:12"), "has no tag"),
        (OURS, image, json!("${REGISTRY}/edge-module:1"), "a text has \"${\""),
        (OURS, image, Value::Null, "settings has no image"),
        (OURS, "/env/EDGE__X", json!({"value": 1}), "invalid type"),
        (OURS, "/env/EDGE__X", json!({"value": ""}), "env EDGE__X is empty"),
        (OURS, "/env/MQTT_PASSWORD", json!({"value": "p"}), "a secret is readable"),
        (OURS, "/env/IOTEDGE_DEVICEID", json!({"value": "d"}), "is the runtime's own"),
        (OURS, "/env/X", json!({"value": "a;SharedAccessKey=b"}), "SharedAccessKey"),
        (
            OURS,
            "/env/EDGE__MQTT__PASSWORD_FILE",
            json!({"value": "/run/secrets/mqtt-password"}),
            "is not bound",
        ),
    ])
}

#[test]
fn twins_that_iot_hub_refuses_are_refused() -> anyhow::Result<()> {
    let deep = (0..12).fold(json!(1), |inner, _| json!({"a": inner}));
    let many = json!(vec!["x".repeat(4_000); 9]);
    expect_refusals(vec![
        (TWIN, "/a.b", json!(1), "a key without"),
        (TWIN, "/a b", json!(1), "a key without"),
        (TWIN, "/a", json!({"$b": 1}), "a key without"),
        (TWIN, "/a", deep, "deeper than 10"),
        (TWIN, "/a", json!("x".repeat(5_000)), "5000 bytes"),
        (TWIN, "/a", many, "a twin has 32768"),
        (TWIN, "/a", json!(9_007_199_254_740_993_i64), "not kept exactly"),
        (TWIN, "/a", json!([null]), "null deletes it"),
    ])
}

#[test]
fn wrong_create_options_are_refused() -> anyhow::Result<()> {
    expect_option_refusals(vec![
        ("edge-module", "/User", json!("0:0"), "User is not 1000:1000"),
        ("edge-module", "/User", json!(1000), "invalid type"),
        ("edge-module", "/Privileged", json!(true), "unknown field `Privileged`"),
        ("edge-module", "/Env", json!(["EDGE__X=1"]), "unknown field `Env`"),
        ("edge-module", "/StopTimeout", json!(5), "shorter than the journal needs"),
        ("edge-module", "/Healthcheck", Value::Null, "Healthcheck is missing"),
        ("edge-module", "/Healthcheck/Test", json!(["CMD-SHELL", "x"]), "there is no shell"),
        ("edge-module", "/Healthcheck/Interval", json!(30), "times are nanoseconds"),
        ("edge-module", "/Healthcheck/Retries", json!(0), "Retries above 0"),
    ])
}

#[test]
fn more_of_the_host_than_our_module_needs_is_refused() -> anyhow::Result<()> {
    expect_option_refusals(vec![
        ("edge-module", "/HostConfig/Privileged", json!(true), "unknown field `Privileged`"),
        ("edge-module", "/HostConfig/NetworkMode", json!("host"), "unknown field `NetworkMode`"),
        ("edge-module", "/HostConfig/CapAdd", json!(["SYS_NICE"]), "unknown field `CapAdd`"),
        ("edge-module", "/HostConfig/CapDrop", json!(["CHOWN"]), "CapDrop is not ALL"),
        ("edge-module", "/HostConfig/SecurityOpt", Value::Null, "no no-new-privileges"),
        ("edge-module", "/HostConfig/ReadonlyRootfs", json!(false), "ReadonlyRootfs is not set"),
        ("edge-module", "/HostConfig/Memory", Value::Null, "MemorySwap is not Memory"),
        ("edge-module", "/HostConfig/PidsLimit", Value::Null, "PidsLimit are missing"),
        ("edge-module", "/HostConfig/LogConfig", Value::Null, "would fill the disk"),
        ("edge-module", "/HostConfig/LogConfig/Config/max-size", Value::Null, "has no max-size"),
        ("edge-module", "/HostConfig/Tmpfs", json!({"/tmp": "rw"}), "with size="),
        ("edge-module", "/HostConfig/Ulimits", json!([]), "cannot go first"),
        (
            "edge-module",
            "/HostConfig/Ulimits",
            json!([{"Name": "nofile", "Soft": 2, "Hard": 1}]),
            "Soft is above Hard",
        ),
        (
            "edge-module",
            "/HostConfig/Binds",
            json!(["data:/var/lib/edge-module"]),
            "absolute paths",
        ),
        ("edge-module", "/HostConfig/Binds", json!(["/srv/x"]), "is no source:target"),
        ("edge-module", "/HostConfig/Binds", json!(["/srv/x:/x:rx"]), "ro or rw"),
        (
            "edge-module",
            "/HostConfig/Binds",
            json!(["/srv/x:/var/lib/edge-module:ro"]),
            "no folder for the journal",
        ),
        ("edge-module", "/HostConfig/Binds", json!(["/srv/a:/x", "/srv/b:/x"]), "/x: twice"),
    ])
}

#[test]
fn wrong_create_options_of_other_modules_are_refused() -> anyhow::Result<()> {
    expect_option_refusals(vec![
        ("mosquitto", "/HostConfig/Binds", json!(["/var/run/docker.sock:/s"]), "more of the host"),
        ("mosquitto", "/HostConfig/Binds", json!(["/etc:/host"]), "more of the host"),
        ("mosquitto", "/HostConfig/GroupAdd", json!(["docker"]), "a group with all rights"),
        (
            "mosquitto",
            "/HostConfig/Devices",
            json!([{"PathOnHost": "/srv", "PathInContainer": "/dev/x", "CgroupPermissions": "rw"}]),
            "below /dev",
        ),
        ("mosquitto", "/ExposedPorts", Value::Null, "ExposedPorts lacks 8883/tcp"),
        ("mosquitto", "/ExposedPorts/1883", json!({}), "is no number/tcp"),
        (
            "mosquitto",
            "/HostConfig/PortBindings",
            json!({"8883/tcp": [{"HostPort": "many"}]}),
            "a host port",
        ),
        (
            "opc-publisher",
            "/HostConfig/PortBindings",
            json!({"443/tcp": [{"HostPort": "8883"}]}),
            "host port 8883/tcp is mosquitto's already",
        ),
        ("opc-publisher", "/Cmd", json!([""]), "an empty argument"),
        ("opc-publisher", "/Hostname", json!(""), "Hostname has 1 to 63"),
    ])
}

#[test]
fn create_options_in_wrong_pieces_are_refused() -> anyhow::Result<()> {
    let manifest = render(BASE)?;
    let settings = format!("{AGENT}/modules/edge-module/settings");
    let whole = create_options(&manifest, &settings)?.to_string();
    let mut in_one = manifest.clone();
    put(&mut in_one, &format!("{settings}/createOptions01"), Value::Null)?;
    put(&mut in_one, &format!("{settings}/createOptions"), json!(whole))?;
    let mut torn = manifest.clone();
    put(&mut torn, &format!("{settings}/createOptions01"), Value::Null)?;
    let mut gap = manifest.clone();
    put(&mut gap, &format!("{settings}/createOptions03"), json!("{}"))?;
    let mut as_object = manifest.clone();
    put(&mut as_object, &format!("{settings}/createOptions"), json!({}))?;
    let cases = [
        (in_one, "longer than 512"),
        (torn, "createOptions: EOF"),
        (gap, "its pieces are not"),
        (as_object, "invalid type: map, expected a string"),
    ];
    for (wrong, expected) in cases {
        let found = faults(&wrong);
        ensure!(found.iter().any(|it| it.contains(expected)), "{expected}: {found:?}");
    }
    Ok(())
}

fn create_options(manifest: &Value, settings: &str) -> anyhow::Result<Value> {
    let settings = manifest.pointer(settings).and_then(Value::as_object).context("settings")?;
    let pieces = settings.iter().filter(|(name, _)| name.starts_with("createOptions"));
    let text: String = pieces.filter_map(|(_, piece)| piece.as_str()).collect();
    Ok(serde_json::from_str(&text)?)
}

fn set_create_options(manifest: &mut Value, settings: &str, text: &str) -> anyhow::Result<()> {
    let settings =
        manifest.pointer_mut(settings).and_then(Value::as_object_mut).context("settings")?;
    settings.retain(|name, _| !name.starts_with("createOptions"));
    for (index, piece) in text.as_bytes().chunks(512).enumerate() {
        let name = if index == 0 {
            "createOptions".to_owned()
        } else {
            format!("createOptions{index:02}")
        };
        settings.insert(name, json!(String::from_utf8(piece.to_vec())?));
    }
    Ok(())
}
