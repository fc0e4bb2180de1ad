//! Bicep files and the Container App.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use anyhow::{Context, ensure};
use e2e_tests::manifests::cloud::{bicep_facts, faults, folder};
use e2e_tests::process::ChildProcess;
use e2e_tests::{cloud_aggregator, kafka};

use super::{changed, check_config_and_its_opposite, scenario_dir, text_of};
use crate::plant::DEADLINE;

/// Files that belong to Bicep.
const KINDS: [&str; 4] = ["bicep", "bicepparam", "json", "toml"];

/// What must be found in files that are wrong in one place: file, change, and a piece of the fault.
const WRONG: [(&str, &str, &str, &str); 13] = [
    ("bicep/main.bicep", "principalId: identity", "principal: identity", "no parameter principal"),
    (
        "bicep/main.bicep",
        "    registryName: registryName\n",
        "",
        "needs the parameter registryName",
    ),
    ("bicep/main.bicep", "topics.outputs.host", "topics.outputs.hosts", "no output hosts"),
    ("bicep/main.bicep", "'modules/logs.bicep'", "'modules/log.bicep'", "is missing"),
    ("bicep/main.bicep", "'../actions/logic-app/main.bicep'", "'../logic-app.bicep'", "is missing"),
    ("bicep/modules/storage.bicep", "scope: lake", "scope: pond", "pond is not declared"),
    ("bicep/modules/storage.bicep", "ba92f5b4", "ba92f5b5", "no role of the list"),
    ("bicep/modules/key-vault.bicep", "2024-01-01", "2023-01-01", "elsewhere"),
    (
        "bicep/modules/key-vault.bicep",
        "output vaultName string = vault.name",
        "output vaultName string = reads.listKeys().primaryKey",
        "tells a secret",
    ),
    ("bicep/modules/logs.bicep", "\n}\n", "\n)\n", "is no Bicep"),
    ("bicep/example.bicepparam", "param namePrefix", "param prefix", "prefix is no parameter"),
    ("container-apps/main.bicep", "'cloud-aggregator.toml')", "'settings.toml')", "is missing"),
    ("container-apps/main.bicep", "empty(subnetId)", "emtpy(subnetId)", "emtpy is no function"),
];

/// Copies the files of a folder that belong to Bicep.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?;
        let is_one = path.extension().is_some_and(|kind| KINDS.iter().any(|known| kind == *known));
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else if is_one {
            std::fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

#[test]
fn bicep_files_fit_together() -> anyhow::Result<()> {
    let dir = scenario_dir("bicep")?;
    let cloud = folder().join("cloud");
    let mut folders = vec![cloud.clone()];
    for (index, (file, from, to, _)) in WRONG.iter().enumerate() {
        let wrong = dir.join(index.to_string());
        for part in ["bicep", "container-apps", "actions/logic-app"] {
            copy(&cloud.join(part), &wrong.join(part))?;
        }
        let text = changed(&std::fs::read_to_string(wrong.join(file))?, from, to)?;
        std::fs::write(wrong.join(file), text)?;
        folders.push(wrong);
    }
    let paths: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
    let found = faults("bicep", &paths)?;
    ensure!(found[0].is_empty(), "{:#?}", found[0]);
    for ((file, from, to, expected), found) in WRONG.iter().zip(&found[1..]) {
        let is_found = found.iter().any(|fault| fault.contains(expected));
        ensure!(is_found, "{file}: {from} -> {to}: {found:#?}");
    }
    Ok(())
}

/// One event hub for each topic, and no more than a namespace of the tier Standard may have.
#[test]
fn there_is_an_event_hub_for_each_topic() -> anyhow::Result<()> {
    let facts = bicep_facts(&folder().join("cloud/bicep/modules/event-hubs.bicep"))?;
    let inputs = facts["variables"]["inputs"].as_str().context("inputs")?;
    let alerts = facts["resources"]["alerts"].as_str().context("alerts")?;
    let names: BTreeSet<&str> = names_in(inputs).chain(names_in(alerts)).collect();
    assert_eq!(names, BTreeSet::from(kafka::TOPICS));
    let sends = facts["resources"]["maySend"].as_str().context("maySend")?;
    ensure!(
        sends.contains("scope: alerts\n"),
        "the right to send is not for alerts alone: {sends}"
    );
    let edge = facts["resources"]["edge"].as_str().context("edge")?;
    ensure!(edge.contains("rights: ['Send']"), "gateways may do more than send: {edge}");
    Ok(())
}

/// An instance has four partitions at least (BENCHMARKS.md), and one that has none is never ready.
#[test]
fn there_are_four_partitions_for_each_instance() -> anyhow::Result<()> {
    let number_behind = |text: &str, key: &str| -> anyhow::Result<u64> {
        let rest = text.split_once(key).with_context(|| key.to_owned())?.1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().with_context(|| format!("{key}{digits}"))
    };
    let topics = text_of("cloud/bicep/main.bicep")?;
    let partitions = number_behind(&topics, "param readingPartitions int = ")?;
    let app = text_of("cloud/container-apps/main.bicep")?;
    let cluster = text_of("cloud/kubernetes/components/keda/scaled-object.yaml")?;
    let of_app = number_behind(&app, "param instancesMax int = ")?;
    let of_cluster = number_behind(&cluster, "maxReplicaCount: ")?;
    assert_eq!((of_app * 4, of_cluster * 4), (partitions, partitions));
    Ok(())
}

fn names_in(text: &str) -> impl Iterator<Item = &str> {
    text.split("name: '").skip(1).filter_map(|rest| rest.split('\'').next())
}

/// Configuration and variables of the Container App, with all that is on request.
fn container_app(token_endpoint: &str) -> anyhow::Result<(String, Vec<(String, String)>)> {
    let bicep = text_of("cloud/container-apps/main.bicep")?;
    let mut configuration = text_of("cloud/container-apps/cloud-aggregator.toml")?;
    for (place, value) in [
        ("{event-hubs-host}", "plant.servicebus.windows.net"),
        ("{lake-location}", "abfss://lake@plant.dfs.core.windows.net/"),
        ("{client-id}", "11111111-2222-3333-4444-555555555555"),
    ] {
        ensure!(bicep.contains(&format!("'{place}'")), "main.bicep does not fill in {place}");
        ensure!(configuration.contains(place), "the configuration has no {place}");
        configuration = configuration.replace(place, value);
    }
    ensure!(!configuration.contains('{'), "something is not filled in: {configuration}");
    configuration += &text_of("cloud/container-apps/maintenance-target.toml")?;
    let value = |text: &str| match text {
        "identityClientId" => "11111111-2222-3333-4444-555555555555".to_owned(),
        "identityEndpoint" => token_endpoint.to_owned(),
        quoted => quoted.trim_matches('\'').to_owned(),
    };
    let variables: Vec<(String, String)> = bicep
        .lines()
        .filter_map(|line| line.trim().strip_prefix("{ name: '")?.strip_suffix(" }"))
        .filter_map(|pair| pair.split_once("', value: "))
        .map(|(name, text)| (name.to_owned(), value(text)))
        .collect();
    ensure!(variables.len() == 7, "{variables:?}");
    Ok((configuration, variables))
}

#[test]
fn the_program_takes_the_configuration_of_the_container_app() -> anyhow::Result<()> {
    let (configuration, variables) = container_app("http://127.0.0.1:1/msi/token")?;
    check_config_and_its_opposite(&scenario_dir("container-app")?, &configuration, &variables)
}

/// The storage library does not read IDENTITY_ENDPOINT, by which the platform tells where tokens are; the manifest tells it.
#[test]
fn in_a_container_app_the_lake_asks_the_platform_for_a_token() -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let endpoint = format!("http://127.0.0.1:{}/msi/token", listener.local_addr()?.port());
    let (_, variables) = container_app(&endpoint)?;
    let (sender, requests) = sync_channel(1);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let lines = BufReader::new(stream).lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            // The first one is looked at; the program asks again and again.
            sender.try_send(head).ok();
        }
    });
    let dir = scenario_dir("container-app-identity")?;
    // Only the lake: nothing else may ask.
    let configuration = "[lake]\nlocation = \"abfss://lake@plant.dfs.core.windows.net/plant\"\n";
    let file = dir.join("cloud-aggregator.toml");
    std::fs::write(&file, configuration)?;
    let is_azure = |(name, _): &&(String, String)| name.starts_with("AZURE_");
    let mut environment: Vec<(&str, &str)> = variables
        .iter()
        .filter(is_azure)
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(environment.len(), 2);
    environment.push(("IDENTITY_HEADER", "a-secret-of-the-platform"));
    let arguments = ["maintain", "--config", file.to_str().context("a path")?];
    let program = cloud_aggregator::program();
    let asking = ChildProcess::start("maintain", &dir, &program, &arguments, &environment)?;
    let head = requests.recv_timeout(DEADLINE).with_context(|| asking.tail())?.join("\n");
    let head = head.to_ascii_lowercase();
    for expected in [
        "get /msi/token?",
        "api-version=2019-08-01",
        "resource=https%3a%2f%2fstorage.azure.com",
        "client_id=11111111-2222-3333-4444-555555555555",
        "x-identity-header: a-secret-of-the-platform",
    ] {
        ensure!(head.contains(expected), "{expected}: {head}");
    }
    Ok(())
}

/// The secrets that the configuration reads are those that the template mounts.
#[test]
fn the_container_app_mounts_what_its_configuration_reads() -> anyhow::Result<()> {
    let facts = bicep_facts(&folder().join("cloud/container-apps/main.bicep"))?;
    let mounted: BTreeSet<&str> =
        names_in(facts["variables"]["vaultSecrets"].as_str().context("vaultSecrets")?).collect();
    let (configuration, variables) = container_app("http://127.0.0.1:1/msi/token")?;
    let values = variables.iter().map(|(_, value)| value.as_str());
    let read: BTreeSet<&str> = configuration
        .split('"')
        .chain(values)
        .filter_map(|text| text.strip_prefix(super::SECRETS)?.strip_prefix('/'))
        .collect();
    assert_eq!(read, mounted);
    Ok(())
}
