//! The program that makes manifests of templates: `deployment-manifests/edge/render`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

/// Folder of templates and program.
fn folder() -> PathBuf {
    crate::workspace_root().join("deployment-manifests/edge")
}

/// A template as it stands.
///
/// # Errors
/// It is no JSON.
pub fn template(name: &str) -> anyhow::Result<Value> {
    let path = folder().join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// The manifest of a template with the variables of `example.env`, by the program that people use.
///
/// # Errors
/// What the program says.
pub fn render(name: &str) -> anyhow::Result<Value> {
    let folder = folder();
    let done = Command::new(folder.join("render"))
        .arg(folder.join(name))
        .arg("--env")
        .arg(folder.join("example.env"))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .output()
        .context("render")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(serde_json::from_slice(&done.stdout)?)
}
