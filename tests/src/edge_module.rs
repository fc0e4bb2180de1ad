//! Starts the program `edge-module` with settings of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::eventually::eventually;
use crate::http;
use crate::process::ChildProcess;

const START_DEADLINE: Duration = Duration::from_secs(30);

/// The program: `EDGE_MODULE_BIN`, or the one of the dev profile.
#[must_use]
pub fn program() -> PathBuf {
    std::env::var_os("EDGE_MODULE_BIN")
        .map_or_else(|| crate::workspace_root().join("target/debug/edge-module"), PathBuf::from)
}

/// What differs from test to test.
#[derive(Clone, Debug)]
pub struct EdgeModuleSettings {
    /// Name of the gateway.
    pub device_id: String,
    /// Folder of the journal.
    pub data_dir: PathBuf,
    /// The local broker.
    pub mqtt_port: u16,
    /// `bootstrap.servers`.
    pub kafka_bootstrap: String,
    /// Put before each Kafka topic's default name.
    pub topic_prefix: String,
    /// Folder of the model bundle; none: limits alone.
    pub bundle_dir: Option<PathBuf>,
    /// `[[machines]]` tables as TOML.
    pub machines: String,
    /// Other settings as environment variables.
    pub environment: Vec<(String, String)>,
}

impl EdgeModuleSettings {
    /// The configuration file.
    #[must_use]
    pub fn to_toml(&self, admin_port: u16) -> String {
        let prefix = &self.topic_prefix;
        let bundle =
            self.bundle_dir.as_ref().map_or_else(String::new, |dir| dir.display().to_string());
        format!(
            "[device]\nid = \"{}\"\ndata-dir = \"{}\"\n\n[mqtt]\nport = {}\n\n[model]\nbundle-dir = \"{bundle}\"\n\n\
             [kafka]\nbrokers = \"{}\"\n\n[kafka.topics]\ntemperature = \"{prefix}temperature\"\n\
             pressure = \"{prefix}pressure\"\nvibration = \"{prefix}vibration\"\nother = \"{prefix}vibration\"\n\
             machine-events = \"{prefix}machine-events\"\ndead-letters = \"{prefix}dead-letters\"\n\
             waveforms = \"{prefix}waveforms\"\n\n[admin]\nlisten = \"127.0.0.1:{admin_port}\"\n\n{}",
            self.device_id,
            self.data_dir.display(),
            self.mqtt_port,
            self.kafka_bootstrap,
            self.machines,
        )
    }
}

/// A running edge module.
#[derive(Debug)]
pub struct EdgeModule {
    process: ChildProcess,
    dir: PathBuf,
    admin_port: u16,
    environment: Vec<(String, String)>,
}

impl EdgeModule {
    /// Writes the settings to `dir` and starts the program; see [`Self::wait_ready`].
    ///
    /// # Errors
    /// The program is not there or cannot be started.
    pub fn start(dir: &Path, settings: &EdgeModuleSettings) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let admin_port = crate::ports::free_port()?;
        std::fs::write(dir.join("edge-module.toml"), settings.to_toml(admin_port))?;
        let environment = settings.environment.clone();
        let process = launch(dir, &environment)?;
        Ok(Self { process, dir: dir.to_owned(), admin_port, environment })
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// It does not within 30 s, or the program ends.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        wait_ready(&mut self.process, self.admin_port)
    }

    /// Starts the program again with the same settings, after it has ended or was killed.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process = launch(&self.dir, &self.environment)?;
        Ok(())
    }

    /// The process.
    pub fn process(&mut self) -> &mut ChildProcess {
        &mut self.process
    }

    /// What it says of itself, for the report of a failure: its last lines, its pages, its counters.
    pub fn describe(&self) -> String {
        let page = |path: &str| match self.get(path) {
            Ok((status, text)) => format!("{path} {status}\n{text}"),
            Err(error) => format!("{path}: {error:#}"),
        };
        let is_telling = |line: &&str| {
            ["journal_", "kafka_", "outbox_", "mqtt_", "input_", "task_"]
                .iter()
                .any(|name| line.contains(name) && !line.starts_with('#'))
        };
        let metrics = page("/metrics");
        let metrics: Vec<&str> = metrics.lines().filter(is_telling).collect();
        format!("{}\n{}\n{}", self.process.tail(), page("/readyz"), metrics.join("\n"))
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// The program does not answer.
    pub fn metrics(&self) -> anyhow::Result<String> {
        Ok(http::get(self.admin_port, "/metrics")?.1)
    }

    /// Status and body of one of its pages.
    ///
    /// # Errors
    /// The program does not answer.
    pub fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        http::get(self.admin_port, path)
    }
}

fn launch(dir: &Path, environment: &[(String, String)]) -> anyhow::Result<ChildProcess> {
    let config = dir.join("edge-module.toml").display().to_string();
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    ChildProcess::start("edge-module", dir, &program(), &["run", "--config", &config], &environment)
}

/// Waits until a program answers 200 on `/readyz`; tells its output when it ends before.
pub(crate) fn wait_ready(process: &mut ChildProcess, admin_port: u16) -> anyhow::Result<()> {
    let name = process.name().to_owned();
    let ready = eventually(&format!("{name} is ready"), START_DEADLINE, || {
        if !process.is_running()? {
            return Ok(false);
        }
        match http::get(admin_port, "/readyz")? {
            (200, _) => anyhow::Ok(true),
            (status, body) => anyhow::bail!("/readyz answers {status}: {body}"),
        }
    });
    match ready {
        Ok(true) => Ok(()),
        Ok(false) => anyhow::bail!("{name} ended before it was ready:\n{}", process.tail()),
        Err(error) => Err(error.context(process.tail())),
    }
}
