//! Manifests of the cloud side: Kubernetes (as Kustomize builds it), Container Apps and Bicep, Compose, rules of Prometheus and
//! dashboards of Grafana. Read by `cloud.py`, with the readers of those who take them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{setup_dir, workspace_root};

pub mod kubernetes;
pub mod metrics;
pub mod prometheus;

/// Where the manifests are.
#[must_use]
pub fn folder() -> PathBuf {
    workspace_root().join("deployment-manifests")
}

/// The documents of each YAML file.
///
/// # Errors
/// One is no YAML, or has a key twice.
pub fn yaml(files: &[&Path]) -> anyhow::Result<Vec<Vec<Value>>> {
    read("yaml", files)
}

/// What is wrong with each file or folder. `kind`: `kubernetes`, `compose` or `bicep`.
///
/// # Errors
/// The reader is missing, or one cannot be read at all.
pub fn faults(kind: &str, paths: &[&Path]) -> anyhow::Result<Vec<Vec<String>>> {
    read(kind, paths)
}

/// Text of the declarations of a Bicep file, by kind and name.
///
/// # Errors
/// As [`faults`].
pub fn bicep_facts(file: &Path) -> anyhow::Result<Value> {
    let facts: Vec<Value> = read("bicep-facts", &[file])?;
    facts.into_iter().next().context("one answer for one file")
}

/// An overlay as Kustomize builds it: its text.
///
/// # Errors
/// kubectl is missing, or Kustomize refuses it.
pub fn kustomize(overlay: &Path) -> anyhow::Result<String> {
    let output = run(Command::new(tool("kubectl")?).arg("kustomize").arg(overlay))?;
    Ok(String::from_utf8(output.stdout)?)
}

fn read<T: DeserializeOwned>(command: &str, paths: &[&Path]) -> anyhow::Result<Vec<T>> {
    let script = workspace_root().join("tests/src/manifests/cloud.py");
    let output = run(Command::new(tool("python")?).arg(script).arg(command).args(paths))?;
    let answers: Vec<T> = serde_json::from_slice(&output.stdout)?;
    ensure!(answers.len() == paths.len(), "{} answers for {} files", answers.len(), paths.len());
    Ok(answers)
}

fn tool(name: &str) -> anyhow::Result<PathBuf> {
    let program = setup_dir().join("manifests-venv/bin").join(name);
    if !program.exists() {
        bail!("{} is missing: run deployment-manifests/local/setup test", program.display());
    }
    Ok(program)
}

fn run(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {errors}", output.status);
    Ok(output)
}
