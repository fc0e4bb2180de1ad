//! Starts the program `cloud-aggregator` with settings of its own.

use std::path::{Path, PathBuf};

use crate::edge_module::wait_ready;
use crate::http;
use crate::process::ChildProcess;

/// The program: `CLOUD_AGGREGATOR_BIN`, or the one of the dev profile.
#[must_use]
pub fn program() -> PathBuf {
    std::env::var_os("CLOUD_AGGREGATOR_BIN").map_or_else(
        || crate::workspace_root().join("target/debug/cloud-aggregator"),
        PathBuf::from,
    )
}

/// What differs from test to test. Windows close 3 s after a sensor falls silent; an epoch lasts half a second.
#[derive(Clone, Debug)]
pub struct CloudAggregatorSettings {
    /// `bootstrap.servers`.
    pub kafka_bootstrap: String,
    /// Consumer group.
    pub group: String,
    /// Put before each Kafka topic's default name.
    pub topic_prefix: String,
    /// Folder of the tables.
    pub lake: PathBuf,
    /// Where alerts are posted; empty: nowhere.
    pub webhook_url: String,
    /// What becomes one alert: `window`, `machine` or `sensor`.
    pub group_by: &'static str,
    /// Other settings as environment variables.
    pub environment: Vec<(String, String)>,
    /// More tables of the file.
    pub more: String,
}

impl CloudAggregatorSettings {
    /// The configuration file.
    #[must_use]
    pub fn to_toml(&self, admin_port: u16) -> String {
        let prefix = &self.topic_prefix;
        format!(
            "[kafka]\nbrokers = \"{}\"\ngroup = \"{}\"\nmetadata-refresh = \"2s\"\nsession-timeout = \"6s\"\n\n\
             [kafka.topics]\ntemperature = \"{prefix}temperature\"\n\
             pressure = \"{prefix}pressure\"\nvibration = \"{prefix}vibration\"\n\
             machine-events = \"{prefix}machine-events\"\ndead-letters = \"{prefix}dead-letters\"\n\
             outcomes = \"{prefix}outcomes\"\nwaveforms = \"{prefix}waveforms\"\n\n\
             [lake]\nlocation = \"{}\"\n\n[trigger]\nprocessing-time = \"500ms\"\n\n\
             [counting]\nidle-timeout = \"3s\"\n\n\
             [alerting]\ngroup-by = \"{}\"\n\n\
             [alerts]\ntopic = \"{prefix}alerts\"\nwebhook-url = \"{}\"\n\n\
             [admin]\nlisten = \"127.0.0.1:{admin_port}\"\n\n{}",
            self.kafka_bootstrap,
            self.group,
            self.lake.display(),
            self.group_by,
            self.webhook_url,
            self.more,
        )
    }
}

/// What a command printed and how it ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

/// Runs one of the program's other commands with the settings in `dir`, to its end.
///
/// # Errors
/// The program is not there, or its output is no text.
pub fn run_command(dir: &Path, arguments: &[&str]) -> anyhow::Result<Finished> {
    let output = std::process::Command::new(program())
        .args(arguments)
        .arg("--config")
        .arg(dir.join("cloud-aggregator.toml"))
        .output()?;
    Ok(Finished {
        code: output.status.code(),
        output: String::from_utf8(output.stdout)?,
        errors: String::from_utf8(output.stderr)?,
    })
}

/// A running aggregator.
#[derive(Debug)]
pub struct CloudAggregator {
    process: ChildProcess,
    dir: PathBuf,
    admin_port: u16,
    environment: Vec<(String, String)>,
}

impl CloudAggregator {
    /// Writes the settings to `dir` and starts the program; see [`Self::wait_ready`].
    ///
    /// # Errors
    /// The program is not there or cannot be started.
    pub fn start(dir: &Path, settings: &CloudAggregatorSettings) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let admin_port = crate::ports::free_port()?;
        std::fs::write(dir.join("cloud-aggregator.toml"), settings.to_toml(admin_port))?;
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

    /// Value of a metric, summed over its labels; 0 while it is not there.
    ///
    /// # Errors
    /// The program does not answer.
    pub fn metric(&self, name: &str) -> anyhow::Result<f64> {
        Ok(http::metric(&self.metrics()?, name, "").unwrap_or_default())
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
    let config = dir.join("cloud-aggregator.toml").display().to_string();
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let arguments = ["run", "--config", &config];
    ChildProcess::start("cloud-aggregator", dir, &program(), &arguments, &environment)
}
