//! What our module makes of its environment and its desired properties: asked of the program itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Agent, Manifest, OUR_MODULE};
use crate::edge_module;

/// What stands in each file of a secret.
pub const TEST_SECRET: &str = "secret of a test";
/// Exit code of the program for wrong settings.
const EXIT_CONFIG: i32 = 78;
/// What IoT Edge sets on a container. Nobody listens there: settings are checked without it.
const BY_THE_RUNTIME: [(&str, &str); 8] = [
    ("IOTEDGE_WORKLOADURI", "unix:///nowhere/workload.sock"),
    ("IOTEDGE_MODULEID", OUR_MODULE),
    ("IOTEDGE_MODULEGENERATIONID", "1"),
    ("IOTEDGE_DEVICEID", "gw-1"),
    ("IOTEDGE_IOTHUBHOSTNAME", "plant.azure-devices.net"),
    ("IOTEDGE_GATEWAYHOSTNAME", "gw-1.plant.example.com"),
    ("IOTEDGE_APIVERSION", "2022-08-03"),
    ("IOTEDGE_AUTHSCHEME", "sasToken"),
];

/// The folders of the host that our module has, below a folder of a test.
#[derive(Debug)]
pub struct Gateway {
    /// Where binds end, by their path in the container.
    folders: BTreeMap<String, PathBuf>,
    environment: BTreeMap<String, String>,
}

/// Makes the folders of the host below `root`, with the settings file that the documents show, a secret in each file that the
/// environment names, and the desired properties as the module keeps them.
///
/// # Errors
/// The manifest has no such module, or the disk refuses.
pub fn environment(manifest: &Value, root: &Path) -> anyhow::Result<Gateway> {
    let manifest = Manifest::deserialize(manifest)?;
    let agent = &manifest.modules_content.get("$edgeAgent").context("$edgeAgent")?.desired;
    let agent = Agent::deserialize(Value::Object(agent.clone()))?;
    let module = agent.modules.get(OUR_MODULE).context(OUR_MODULE)?;
    let options = module.create_options().map_err(anyhow::Error::msg)?;
    let mut gateway = Gateway { folders: BTreeMap::new(), environment: BTreeMap::new() };
    for bind in options.binds().map_err(anyhow::Error::msg)? {
        let folder = root.join(bind.source.trim_start_matches('/'));
        std::fs::create_dir_all(&folder)?;
        gateway.folders.insert(bind.target, folder);
    }
    let example = crate::workspace_root().join("deployment-manifests/edge/edge-module.toml");
    std::fs::copy(&example, gateway.path("/etc/edge-module/edge-module.toml")?)
        .with_context(|| example.display().to_string())?;
    for (name, value) in module.environment() {
        let value = match gateway.path(value) {
            Ok(path) if name.ends_with("_FILE") => {
                std::fs::write(&path, TEST_SECRET)?;
                path.display().to_string()
            }
            Ok(_) | Err(_) => value.to_owned(),
        };
        gateway.environment.insert(name.to_owned(), value);
    }
    let data = gateway.path("/var/lib/edge-module")?;
    let desired = manifest.modules_content.get(OUR_MODULE).map(|content| &content.desired);
    let kept = json!({ "version": 1, "properties": desired });
    std::fs::write(data.join("desired-properties.json"), kept.to_string())?;
    gateway.set("EDGE__DEVICE__DATA_DIR", &data.display().to_string());
    for (name, value) in BY_THE_RUNTIME {
        gateway.set(name, value);
    }
    Ok(gateway)
}

impl Gateway {
    /// Where a path in the container lies here.
    ///
    /// # Errors
    /// It is in no folder of the host.
    pub fn path(&self, in_container: &str) -> anyhow::Result<PathBuf> {
        let found = self.folders.iter().find_map(|(target, folder)| {
            let rest = in_container.strip_prefix(target.as_str())?;
            (rest.is_empty() || rest.starts_with('/'))
                .then(|| folder.join(rest.trim_start_matches('/')))
        });
        found.with_context(|| format!("{in_container} is in no folder of the host"))
    }

    /// Changes a variable.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// All of them.
    #[must_use]
    pub fn variables(&self) -> Vec<(&str, &str)> {
        self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
}

/// What the program refuses of its environment and its desired properties.
///
/// # Errors
/// The program cannot be asked.
pub fn settings_faults(manifest: &Value, root: &Path) -> anyhow::Result<Vec<String>> {
    let gateway = environment(manifest, root)?;
    let done = Command::new(edge_module::program())
        .args(["check-config", "--config"])
        .arg(gateway.path("/etc/edge-module/edge-module.toml")?)
        .envs(gateway.variables())
        .output()
        .context("edge-module")?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    match done.status.code() {
        Some(0) => {
            ensure!(said.contains("with desired properties of version 1"), "{said}");
            Ok(Vec::new())
        }
        Some(EXIT_CONFIG) => Ok(said.lines().skip(1).map(str::to_owned).collect()),
        Some(_) | None => anyhow::bail!("edge-module check-config: {}\n{said}", done.status),
    }
}
