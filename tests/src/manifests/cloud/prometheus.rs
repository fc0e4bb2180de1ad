//! Prometheus and promtool as the distribution has them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::eventually::eventually;
use crate::http;
use crate::ports::free_port;
use crate::process::ChildProcess;

const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running server that scrapes each second.
#[derive(Debug)]
pub struct Prometheus {
    port: u16,
    process: ChildProcess,
}

impl Prometheus {
    /// Starts it in `dir` with rules and one target for each job, by port, and waits until it answers.
    ///
    /// # Errors
    /// It is not installed, refuses the rules, or is not up within a minute.
    pub fn start(dir: &Path, rules: &Path, targets: &BTreeMap<&str, u16>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let jobs: String = targets
            .iter()
            .map(|(job, port)| {
                format!(
                    "  - job_name: {job}\n    static_configs: [{{ targets: [\"127.0.0.1:{port}\"] }}]\n"
                )
            })
            .collect();
        let config = dir.join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [\"{}/*.rules.yml\"]\nscrape_configs:\n{jobs}",
            rules.display()
        );
        std::fs::write(&config, text)?;
        let port = free_port()?;
        let arguments = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", dir.join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let process =
            ChildProcess::start("prometheus", dir, &installed("prometheus")?, &arguments, &[])?;
        let mut server = Self { port, process };
        server.wait_ready()?;
        Ok(server)
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let port = self.port;
        eventually("Prometheus answers", START_DEADLINE, || {
            if !self.process.is_running()? {
                return Ok(Err(anyhow::anyhow!("it ended:\n{}", self.process.tail())));
            }
            let (status, body) = http::get(port, "/-/ready")?;
            ensure!(status == 200, "{status}: {body}");
            anyhow::Ok(Ok(()))
        })?
    }

    /// Answer of its API to a GET: the member `data`.
    ///
    /// # Errors
    /// It does not answer, or with an error, which is told.
    pub fn api(&self, path: &str) -> anyhow::Result<Value> {
        let (_, body) = http::get(self.port, &format!("/api/v1/{path}"))?;
        let mut answer: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        ensure!(answer["status"] == "success", "{path}: {}", answer["error"]);
        Ok(answer["data"].take())
    }

    /// Series that an expression gives now.
    ///
    /// # Errors
    /// As [`Self::api`].
    pub fn query(&self, expression: &str) -> anyhow::Result<Vec<Value>> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let mut data = self.api(&format!("query?query={escaped}"))?;
        let Value::Array(series) = data["result"].take() else {
            bail!("{expression}: no series: {data}");
        };
        Ok(series)
    }
}

/// Runs promtool in `dir`: whether all is well, and what it said.
///
/// # Errors
/// It is not installed.
pub fn promtool(dir: &Path, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
    let output = Command::new(installed("promtool")?).args(arguments).current_dir(dir).output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

fn installed(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.exists())
        .with_context(|| format!("{name} is missing: run deployment-manifests/local/setup test"))
}
