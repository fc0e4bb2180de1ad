//! Azurite: the storage emulator that Microsoft publishes, from the packages of the set-up step.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::eventually::eventually;
use crate::ports::free_port;
use crate::process::ChildProcess;

const START_DEADLINE: Duration = Duration::from_secs(30);

/// A running blob service.
#[derive(Debug)]
pub struct Azurite {
    port: u16,
    _process: ChildProcess,
}

impl Azurite {
    /// Starts it with its data in `dir` and waits until it answers.
    ///
    /// # Errors
    /// Node or the package is missing, or it is not up within 30 s.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let program = crate::setup_dir().join("azurite/node_modules/azurite/dist/src/blob/main.js");
        if !program.exists() {
            bail!("{} is missing: run deployment-manifests/local/setup test", program.display());
        }
        let port = free_port()?;
        let (port_text, program) = (port.to_string(), program.display().to_string());
        let data = dir.display().to_string();
        let arguments = [
            program.as_str(),
            "--blobPort",
            &port_text,
            "--location",
            &data,
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ];
        let mut process = ChildProcess::start("azurite", dir, &find_node()?, &arguments, &[])?;
        eventually("Azurite answers", START_DEADLINE, || {
            if !process.is_running()? {
                return Ok(Err(anyhow::anyhow!("Azurite ended:\n{}", process.tail())));
            }
            crate::http::get(port, "/devstoreaccount1?comp=list")?;
            anyhow::Ok(Ok(()))
        })??;
        Ok(Self { port, _process: process })
    }

    /// Port of the blob service.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its account as the lake reader takes it; a container's name follows.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/devstoreaccount1", self.port)
    }
}

fn find_node() -> anyhow::Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("node"))
        .find(|program| program.exists())
        .context("node is missing: run deployment-manifests/local/setup test")
}
