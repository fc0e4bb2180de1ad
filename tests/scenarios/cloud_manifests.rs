//! The manifests of the cloud side: each is read by the one who takes it or by its schema, what it sets is accepted by the real
//! programs, and what it refers to is there. Each check is held against manifests that are wrong in one place.

mod azure;
mod compose;
mod kubernetes;
mod monitoring;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use e2e_tests::cloud_aggregator;
use e2e_tests::manifests::cloud::folder;

use crate::plant::run_dir;

/// Exit code of a configuration that is refused.
const CONFIGURATION_REFUSED: i32 = 78;
/// Where manifests mount secrets.
const SECRETS: &str = e2e_tests::manifests::cloud::kubernetes::SECRETS;

/// Folder of one of these scenarios.
fn scenario_dir(name: &str) -> anyhow::Result<PathBuf> {
    let dir = run_dir().join(format!("cloud-manifests-{name}"));
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn text_of(file: &str) -> anyhow::Result<String> {
    let path = folder().join(file);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// What differs from one version to another: the text with one piece changed.
fn changed(text: &str, from: &str, to: &str) -> anyhow::Result<String> {
    ensure!(text.contains(from), "{from:?} is not in it: the change changes nothing");
    Ok(text.replacen(from, to, 1))
}

/// Asks the real program whether it takes a configuration with these variables. Secrets, whose files are not here, get others.
fn check_config(
    dir: &Path,
    configuration: &str,
    environment: &[(String, String)],
) -> anyhow::Result<Result<(), String>> {
    let secrets = dir.join("secrets");
    std::fs::create_dir_all(&secrets)?;
    for (name, secret) in [
        ("kafka-password", "Endpoint=sb://plant.servicebus.windows.net/;SharedAccessKey=x"),
        ("maintenance-url", "https://prod-00.westeurope.logic.azure.com/workflows/1?sig=x"),
        ("outcome-tokens", "mes:0123456789abcdef0123456789abcdef"),
    ] {
        std::fs::write(secrets.join(name), secret)?;
    }
    let here = |text: &str| text.replace(SECRETS, &secrets.display().to_string());
    let file = dir.join("cloud-aggregator.toml");
    std::fs::write(&file, here(configuration))?;
    let output = Command::new(cloud_aggregator::program())
        .args(["check-config", "--config"])
        .arg(file)
        .envs(environment.iter().map(|(name, value)| (name.clone(), here(value))))
        .output()?;
    let said = String::from_utf8(output.stderr)?;
    match output.status.code() {
        Some(0) => Ok(Ok(())),
        Some(CONFIGURATION_REFUSED) => Ok(Err(said)),
        code => anyhow::bail!("check-config ended with {code:?}: {said}"),
    }
}

/// It must be taken; with a key that there is not it must be refused, by the key's name.
fn check_config_and_its_opposite(
    dir: &Path,
    configuration: &str,
    environment: &[(String, String)],
) -> anyhow::Result<()> {
    check_config(dir, configuration, environment)?.map_err(anyhow::Error::msg)?;
    let wrong = changed(configuration, "[lake]\nlocation", "[lake]\nplace = \"x\"\nlocation")?;
    let refusal = check_config(dir, &wrong, environment)?.err().context("a wrong key is taken")?;
    ensure!(refusal.contains("lake.place"), "{refusal}");
    let mut wrong = environment.to_vec();
    wrong.push(("AGGREGATOR__LAKE__PLACE".to_owned(), "x".to_owned()));
    let refusal = check_config(dir, configuration, &wrong)?.err();
    let refusal = refusal.context("a wrong variable is taken")?;
    ensure!(refusal.contains("lake.place"), "{refusal}");
    Ok(())
}
