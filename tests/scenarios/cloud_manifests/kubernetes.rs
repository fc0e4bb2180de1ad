//! The overlays as Kustomize builds them.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use e2e_tests::manifests::cloud::kubernetes::Objects;
use e2e_tests::manifests::cloud::{faults, folder, kustomize, yaml};

use super::{changed, check_config_and_its_opposite, scenario_dir, text_of};

const OVERLAYS: [&str; 2] = ["azure", "on-prem"];

/// What the schemas must find in an overlay that is wrong in one place: the change, and whom the fault names.
const AGAINST_SCHEMAS: [(&str, &str, &str); 7] = [
    ("readOnlyRootFilesystem", "readOnlyRootFileSystem", "Deployment"),
    ("memory: 1Gi", "memory: []", "Deployment"),
    ("lagThreshold: \"25000000\"", "lagThreshold: 25000000", "ScaledObject"),
    ("pollingInterval", "pollInterval", "ScaledObject"),
    ("scrapeTimeout", "scrapeTime", "PodMonitor"),
    ("unhealthyPodEvictionPolicy: AlwaysAllow", "minAvailable: []", "PodDisruptionBudget"),
    ("podSelector: {}", "selector: {}", "NetworkPolicy"),
];

/// What the rules between objects must find in it.
const AGAINST_RULES: [(&str, &str, &str); 21] = [
    ("runAsNonRoot: true", "runAsNonRoot: false", "another user"),
    ("type: RuntimeDefault", "type: Unconfined", "seccomp"),
    ("- ALL", "- NET_RAW", "capabilities"),
    ("cloud-aggregator:0.1.0", "cloud-aggregator:latest", "without a version"),
    ("enforce: restricted", "enforce: baseline", "takes any pod"),
    ("value: 0.0.0.0:9465", "value: 0.0.0.0:9475", "AGGREGATOR__ADMIN__LISTEN"),
    ("path: /readyz", "path: /healthz", "readinessProbe"),
    ("terminationGracePeriodSeconds: 40", "terminationGracePeriodSeconds: 30", "a stop gets"),
    ("targetPort: api", "targetPort: admin", "Service"),
    ("port: admin\n    scrapeTimeout", "port: api\n    scrapeTimeout", "PodMonitor"),
    (
        "podSelector: {}\n  policyTypes",
        "podSelector: {}\n  egress: [{}]\n  policyTypes",
        "deny-all",
    ),
    ("port: 9093", "port: 9094", "Kafka"),
    (
        "- from:\n    - namespaceSelector:\n        matchLabels:\n          \
         kubernetes.io/metadata.name: monitoring\n    ports",
        "- ports",
        "open to all",
    ),
    ("consumerGroup: cloud-aggregator", "consumerGroup: other", "consumerGroup"),
    ("bootstrapServers: ", "bootstrapServers: other.", "bootstrapServers"),
    ("username: ", "username: other", "KEDA's user"),
    ("sasl: ", "sasl: other", "sasl"),
    ("minReadySeconds", "replicas: 1\n  minReadySeconds", "replicas"),
    ("mountPath: /run/secrets/cloud-aggregator", "mountPath: /run/secrets", "is not at"),
    ("/kafka-password\"", "/kafka-passwort\"", "the configuration reads"),
    ("kind: ServiceAccount", "kind: Secret", "a secret stands"),
];

fn build(dir: &Path, overlay: &str) -> anyhow::Result<(PathBuf, String)> {
    let text = kustomize(&folder().join("cloud/kubernetes/overlays").join(overlay))?;
    let file = dir.join(format!("{overlay}.yaml"));
    std::fs::write(&file, &text)?;
    Ok((file, text))
}

/// A file for each change.
fn with_changes(
    dir: &Path,
    text: &str,
    changes: &[(&str, &str, &str)],
) -> anyhow::Result<Vec<PathBuf>> {
    let write = |(index, (from, to, _)): (usize, &(&str, &str, &str))| {
        let file = dir.join(format!("change-{index}.yaml"));
        std::fs::write(&file, changed(text, from, to)?)?;
        Ok(file)
    };
    changes.iter().enumerate().map(write).collect()
}

#[test]
fn every_object_has_the_schema_of_its_kind() -> anyhow::Result<()> {
    let dir = scenario_dir("schemas")?;
    let mut files = Vec::new();
    for overlay in OVERLAYS {
        files.push(build(&dir, overlay)?.0);
    }
    let text = std::fs::read_to_string(&files[0])?;
    files.extend(with_changes(&dir, &text, &AGAINST_SCHEMAS)?);
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let found = faults("kubernetes", &paths)?;
    for (overlay, found) in OVERLAYS.iter().zip(&found) {
        ensure!(found.is_empty(), "{overlay}: {found:#?}");
    }
    for ((from, to, whom), found) in AGAINST_SCHEMAS.iter().zip(&found[OVERLAYS.len()..]) {
        let is_named = found.iter().any(|fault| fault.starts_with(whom));
        ensure!(is_named, "{from} -> {to}: {found:#?}");
    }
    Ok(())
}

#[test]
fn the_objects_of_an_overlay_fit_together() -> anyhow::Result<()> {
    let dir = scenario_dir("rules")?;
    for overlay in OVERLAYS {
        let (file, text) = build(&dir, overlay)?;
        let mut files = vec![file];
        files.extend(with_changes(&dir, &text, &AGAINST_RULES)?);
        let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        let read = yaml(&paths)?;
        let found = Objects::new(&read[0]).faults();
        ensure!(found.is_empty(), "{overlay}: {found:#?}");
        for ((from, to, expected), objects) in AGAINST_RULES.iter().zip(&read[1..]) {
            let found = Objects::new(objects).faults();
            let is_found = found.iter().any(|fault| fault.contains(expected));
            ensure!(is_found, "{overlay}: {from} -> {to}: {found:#?}");
        }
    }
    Ok(())
}

#[test]
fn the_program_takes_the_configuration_of_each_overlay() -> anyhow::Result<()> {
    let dir = scenario_dir("overlays")?;
    for overlay in OVERLAYS {
        let (file, _) = build(&dir, overlay)?;
        let read = yaml(&[&file])?;
        let objects = Objects::new(&read[0]);
        check_config_and_its_opposite(&dir, objects.configuration(), &objects.environment())?;
    }
    Ok(())
}

/// The Prometheus operator reads the same rules that promtool tests.
#[test]
fn the_rules_of_the_cluster_are_those_that_are_tested() -> anyhow::Result<()> {
    let dir = scenario_dir("cluster-rules")?;
    let rules = folder().join("local/prometheus/rules/cloud-aggregator.rules.yml");
    let (file, text) = build(&dir, "azure")?;
    let changes = with_changes(&dir, &text, &[("for: 2m", "for: 3m", "")])?;
    let read = yaml(&[&rules, &file, &changes[0]])?;
    let groups = |objects| {
        &Objects::new(objects).get("PrometheusRule", "cloud-aggregator")["spec"]["groups"]
    };
    ensure!(read[0][0]["groups"] == *groups(&read[1]), "write them into prometheus-rule.yaml");
    ensure!(read[0][0]["groups"] != *groups(&read[2]), "a change is not seen");
    Ok(())
}

#[test]
fn a_version_is_that_of_the_workspace() -> anyhow::Result<()> {
    let manifest = std::fs::read_to_string(e2e_tests::workspace_root().join("Cargo.toml"))?;
    let line = |line: &str| line.strip_prefix("version = \"")?.strip_suffix('"').map(str::to_owned);
    let version = manifest.lines().find_map(line).unwrap_or_default();
    for overlay in OVERLAYS {
        let file = format!("cloud/kubernetes/overlays/{overlay}/kustomization.yaml");
        ensure!(text_of(&file)?.contains(&format!("newTag: {version}\n")), "{file}: {version:?}");
    }
    for file in ["cloud/bicep/main.bicep", "cloud/bicep/example.bicepparam"] {
        ensure!(text_of(file)?.contains(&format!("= '{version}'")), "{file}: {version:?}");
    }
    Ok(())
}
