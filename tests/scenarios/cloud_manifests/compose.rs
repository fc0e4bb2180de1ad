//! `local/compose.yaml`. Its containers are run where containers are at hand; here it is read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use e2e_tests::manifests::cloud::{faults, folder, yaml};
use e2e_tests::{edge_module, workspace_root};
use serde_json::Value;

use super::{changed, check_config, check_config_and_its_opposite, scenario_dir, text_of};

const FILE: &str = "local/compose.yaml";
const OURS: [&str; 2] = ["edge-module", "cloud-aggregator"];

/// What must be found in a file that is wrong in one place: the change, and a piece of the fault.
const WRONG: [(&str, &str, &str); 10] = [
    ("./mosquitto.conf", "./mosquitto.cfg", "is missing"),
    ("network_mode: host\n    restart", "ports: [\"9092:9092\"]\n    restart", "network"),
    ("PLAINTEXT://127.0.0.1:9092,", "PLAINTEXT://0.0.0.0:9092,", "every address"),
    ("GF_SERVER_HTTP_ADDR: 127.0.0.1", "GF_SERVER_HTTP_ADDR: \"\"", "GF_SERVER_HTTP_ADDR"),
    ("--web.listen-address=127.0.0.1:9090", "--web.listen-address=:9090", "every address"),
    ("\"--blobHost\", \"127.0.0.1\"", "\"--blobHost\", \"0.0.0.0\"", "every address"),
    ("eclipse-mosquitto:2.0.22", "eclipse-mosquitto", "no version"),
    ("user: \"1000:1000\"", "user: \"0:0\"", "as root"),
    ("read_only: true", "read_only: false", "can be written"),
    ("prom/prometheus:v3.5.0", "prom/prometheus:latest", "no version"),
];

fn list(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// What is wrong with a Compose file beyond its schema.
fn found_in(compose: &Value) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for (name, service) in compose["services"].as_object().context("services")? {
        let image = service["image"].as_str().unwrap_or_default();
        let version = image.rsplit_once(':').map(|(_, version)| version);
        if version.is_none_or(|version| version == "latest") {
            found.push(format!("{name}: {image:?} has no version"));
        }
        // What is on the host's network listens where it is told to.
        let network = service["network_mode"].as_str();
        if !matches!(network, Some("host" | "none")) || !service["ports"].is_null() {
            found.push(format!("{name}: another network than the host's"));
        }
        let text = service.to_string();
        if text.contains("0.0.0.0") || text.contains("listen-address=:") {
            found.push(format!("{name}: listens on every address"));
        }
        for volume in list(&service["volumes"]) {
            let source = volume.split(':').next().unwrap_or_default();
            let is_there = match source.strip_prefix("./") {
                Some(file) => folder().join("local").join(file).exists(),
                None => is_named(compose, source),
            };
            if !is_there {
                found.push(format!("{name}: {source} is missing"));
            }
        }
        if OURS.contains(&name.as_str()) {
            found.extend(found_in_ours(name, service));
        }
    }
    let grafana = &compose["services"]["grafana"]["environment"];
    if grafana["GF_SERVER_HTTP_ADDR"] != "127.0.0.1" {
        found.push("grafana: GF_SERVER_HTTP_ADDR is not 127.0.0.1".to_owned());
    }
    Ok(found)
}

fn is_named(compose: &Value, volume: &str) -> bool {
    compose["volumes"].as_object().is_some_and(|volumes| volumes.contains_key(volume))
}

fn found_in_ours(name: &str, service: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if service["user"] != "1000:1000" {
        found.push(format!("{name}: runs as root"));
    }
    if service["read_only"] != true {
        found.push(format!("{name}: the root file system can be written"));
    }
    if list(&service["cap_drop"]).ne(["ALL"]) {
        found.push(format!("{name}: keeps capabilities"));
    }
    let image = service["image"].as_str().unwrap_or_default();
    if !image.starts_with("${REGISTRY:?") || !image.contains(&format!("}}/{name}:${{VERSION:?")) {
        found.push(format!("{name}: {image} is not ours"));
    }
    let configuration = format!("/etc/{name}/{name}.toml");
    if list(&service["command"]).ne(["run", "--config", &configuration]) {
        found.push(format!("{name}: another command"));
    }
    let mounted = format!(":{configuration}:ro");
    if !list(&service["volumes"]).any(|volume| volume.ends_with(&mounted)) {
        found.push(format!("{name}: {configuration} is not mounted"));
    }
    found
}

#[test]
fn a_compose_file_is_one_and_keeps_to_this_machine() -> anyhow::Result<()> {
    let dir = scenario_dir("compose")?;
    let text = text_of(FILE)?;
    let mut files = vec![folder().join(FILE)];
    for (index, (from, to, _)) in WRONG.iter().enumerate() {
        let file = dir.join(format!("{index}.yaml"));
        std::fs::write(&file, changed(&text, from, to)?)?;
        files.push(file);
    }
    let no_compose = dir.join("no-compose.yaml");
    std::fs::write(&no_compose, changed(&text, "read_only: true", "readonly: true")?)?;
    let by_schema = faults("compose", &[&files[0], &no_compose])?;
    ensure!(by_schema[0].is_empty(), "{:#?}", by_schema[0]);
    ensure!(!by_schema[1].is_empty(), "a key that there is not is taken");
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let read = yaml(&paths)?;
    let found = found_in(&read[0][0])?;
    ensure!(found.is_empty(), "{found:#?}");
    for ((from, to, expected), compose) in WRONG.iter().zip(&read[1..]) {
        let found = found_in(&compose[0])?;
        let is_found = found.iter().any(|fault| fault.contains(expected));
        ensure!(is_found, "{from} -> {to}: {found:#?}");
    }
    Ok(())
}

/// File on this side that a service sees as its configuration, and its variables.
fn settings_of(service: &str) -> anyhow::Result<(PathBuf, Vec<(String, String)>)> {
    let read = yaml(&[&folder().join(FILE)])?;
    let service_value = &read[0][0]["services"][service];
    let mounted = format!(":/etc/{service}/{service}.toml:ro");
    let file = list(&service_value["volumes"])
        .find_map(|volume| volume.strip_suffix(&mounted)?.strip_prefix("./"));
    let file = folder().join("local").join(file.context("a configuration")?);
    let variables = service_value["environment"].as_object().into_iter().flatten();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok((file, variables.map(|(name, value)| (name.clone(), text(value))).collect()))
}

#[test]
fn the_programs_take_the_configurations_of_compose() -> anyhow::Result<()> {
    let dir = scenario_dir("compose-settings")?;
    let (file, variables) = settings_of("cloud-aggregator")?;
    check_config_and_its_opposite(&dir, &std::fs::read_to_string(file)?, &variables)?;
    let (file, variables) = settings_of("edge-module")?;
    let check = |variables: &[(String, String)]| {
        let program = edge_module::program();
        let arguments = ["check-config", "--config"];
        let environment = variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut command = Command::new(program);
        command.args(arguments).arg(&file).envs(environment).output()
    };
    let output = check(&variables)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(!variables.is_empty(), "no variable is tried");
    let output = check(&[("EDGE__JOURNAL__BYTES".to_owned(), "1".to_owned())])?;
    ensure!(output.status.code() == Some(super::CONFIGURATION_REFUSED), "{}", output.status);
    Ok(())
}

/// Prometheus reads where the programs listen unless they are told otherwise, and the rules name these jobs.
#[test]
fn prometheus_reads_the_ports_of_the_programs() -> anyhow::Result<()> {
    let read = yaml(&[&folder().join("local/prometheus/prometheus.yml")])?;
    let jobs = read[0][0]["scrape_configs"].as_array().context("scrape_configs")?;
    let mut found = BTreeSet::new();
    for job in jobs {
        let name = job["job_name"].as_str().context("job_name")?;
        let target = &job["static_configs"][0]["targets"][0];
        let defaults = workspace_root().join(name).join("config/default.toml");
        let defaults = std::fs::read_to_string(defaults)?;
        let admin = defaults.split_once("[admin]\n").context("[admin]")?.1;
        let listens = format!("\nlisten = {target}\n");
        let section = admin.split_once("\n[").map_or(admin, |(section, _)| section);
        ensure!(format!("\n{section}\n").contains(&listens), "{name}: {target} is not {section}");
        found.insert(name);
    }
    assert_eq!(found, BTreeSet::from(OURS));
    Ok(())
}

/// The demo without containers has the same file.
#[test]
fn the_aggregator_of_a_folder_is_taken_too() -> anyhow::Result<()> {
    let dir = scenario_dir("folder-settings")?;
    check_config(&dir, &text_of("local/aggregator.toml")?, &[])?.map_err(anyhow::Error::msg)
}
