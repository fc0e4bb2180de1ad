//! The services and the two programs, started and stopped, with configuration files that stay for a look.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use super::embedded::{EmbeddedBroker, EmbeddedKafka};
use crate::eventually::eventually;
use crate::http;
use crate::kafka::{Kafka, TOPICS};
use crate::mosquitto::{Mosquitto, Persistence};
use crate::process::ChildProcess;
use crate::proxy::TcpProxy;

const READY_DEADLINE: Duration = Duration::from_secs(30);
const EXIT_DEADLINE: Duration = Duration::from_secs(15);
const BASH: &str = "/bin/bash";
/// Closes what a program inherits, then becomes the program in a session of its own.
///
/// The mock cluster accepts connections without close-on-exec: a program that is started later would hold those of one
/// that was started before, and a cut would not reach it. The session: a Ctrl-C in the terminal is meant for the demo,
/// which then ends both programs in order.
const LAUNCH: &str = r#"for entry in /proc/$$/fd/*; do
    fd=${entry##*/}
    if [ "$fd" -gt 2 ]; then eval "exec $fd>&-"; fi
done
exec setsid "$@""#;
/// Partitions of each topic of the real Kafka.
const PARTITIONS: i32 = 2;

/// Which services run between the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// Inside this process.
    Embedded,
    /// mosquitto and Apache Kafka as processes.
    Real,
}

/// The MQTT broker of the plant.
pub enum Broker {
    /// `rumqttd`.
    Embedded(EmbeddedBroker),
    /// mosquitto.
    Real(Mosquitto),
}

impl Broker {
    /// Starts it.
    ///
    /// # Errors
    /// It does not listen in time.
    pub fn start(stack: Stack, dir: &Path) -> anyhow::Result<Self> {
        Ok(match stack {
            Stack::Embedded => Self::Embedded(EmbeddedBroker::start()?),
            Stack::Real => Self::Real(Mosquitto::start(&dir.join("mosquitto"), Persistence::Off)?),
        })
    }

    /// Where it listens on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Embedded(broker) => broker.port(),
            Self::Real(broker) => broker.port(),
        }
    }
}

/// Kafka, and the line from the plant to it.
pub enum Upstream {
    /// librdkafka's mock cluster; a cut makes it unreachable for everybody.
    Embedded(EmbeddedKafka),
    /// Apache Kafka; a cut breaks the plant's line only.
    Real {
        /// The broker.
        kafka: Kafka,
        /// The plant's line.
        line: TcpProxy,
    },
}

impl Upstream {
    /// Starts it with its topics.
    ///
    /// # Errors
    /// It does not answer in time.
    pub fn start(stack: Stack, dir: &Path) -> anyhow::Result<Self> {
        Ok(match stack {
            Stack::Embedded => Self::Embedded(EmbeddedKafka::start(&TOPICS)?),
            Stack::Real => {
                let kafka = Kafka::start(&dir.join("kafka"))?;
                kafka.create_topics(&TOPICS, PARTITIONS)?;
                let line = kafka.take_link()?;
                Self::Real { kafka, line }
            }
        })
    }

    /// `bootstrap.servers` of the plant.
    #[must_use]
    pub fn plant_servers(&self) -> String {
        match self {
            Self::Embedded(kafka) => kafka.bootstrap_servers().to_owned(),
            Self::Real { line, .. } => format!("127.0.0.1:{}", line.port()),
        }
    }

    /// `bootstrap.servers` of the cloud.
    #[must_use]
    pub fn cloud_servers(&self) -> String {
        match self {
            Self::Embedded(kafka) => kafka.bootstrap_servers().to_owned(),
            Self::Real { kafka, .. } => kafka.bootstrap(),
        }
    }

    /// Cuts the network.
    ///
    /// # Errors
    /// The cluster refuses.
    pub fn cut(&self) -> anyhow::Result<()> {
        match self {
            Self::Embedded(kafka) => kafka.cut(),
            Self::Real { line, .. } => {
                line.cut();
                Ok(())
            }
        }
    }

    /// Mends the network.
    ///
    /// # Errors
    /// The cluster refuses.
    pub fn mend(&self) -> anyhow::Result<()> {
        match self {
            Self::Embedded(kafka) => kafka.restore(),
            Self::Real { line, .. } => {
                line.mend();
                Ok(())
            }
        }
    }
}

/// One of the two programs.
pub struct Program {
    process: ChildProcess,
    admin_port: u16,
}

impl Program {
    /// Writes `config` to `<dir>/<name>.toml`, starts the program with it and waits until it is ready.
    ///
    /// # Errors
    /// The program is not built, ends, or is not ready in time.
    pub fn start(
        name: &str,
        variable: &str,
        dir: &Path,
        admin_port: u16,
        config: &str,
    ) -> anyhow::Result<Self> {
        let path = dir.join(format!("{name}.toml"));
        std::fs::write(&path, config).with_context(|| path.display().to_string())?;
        let path = path.to_str().context("DEMO_DIR is not UTF-8")?;
        let binary = binary(name, variable)?;
        anyhow::ensure!(binary.exists(), "{} of {variable} is missing", binary.display());
        let binary = binary.to_str().context("the program's path is not UTF-8")?;
        let arguments = ["-c", LAUNCH, name, binary, "run", "--config", path];
        let process =
            ChildProcess::start(name, &dir.join("logs"), Path::new(BASH), &arguments, &[])?;
        let mut program = Self { process, admin_port };
        program.wait_until_ready(name)?;
        Ok(program)
    }

    fn wait_until_ready(&mut self, name: &str) -> anyhow::Result<()> {
        eventually(&format!("{name} is ready"), READY_DEADLINE, || {
            if !self.process.is_running()? {
                return Ok(Err(anyhow::anyhow!("{name} has ended:\n{}", self.process.tail())));
            }
            let (status, body) = http::get(self.admin_port, "/readyz")?;
            anyhow::ensure!(status == 200, "/readyz answers {status}: {}", body.trim());
            anyhow::Ok(Ok(()))
        })?
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.process.name()
    }

    /// Asks it to end and waits for that; gives the time it took.
    ///
    /// # Errors
    /// It does not end in time, or not with exit code 0.
    pub fn end(mut self) -> anyhow::Result<Duration> {
        let asked = std::time::Instant::now();
        self.process.terminate()?;
        let status = self.process.wait(EXIT_DEADLINE)?;
        if !status.success() {
            bail!("{} ended with {status}:\n{}", self.process.name(), self.process.tail());
        }
        Ok(asked.elapsed())
    }
}

/// The path in the environment variable, or beside this program.
fn binary(name: &str, variable: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(PathBuf::from(path));
    }
    let here = std::env::current_exe()?;
    // Test programs lie one folder deeper.
    let found = here.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    found.into_iter().find(|path| path.exists()).with_context(|| {
        format!("{name} is not built: cargo build -p {name}, or name it in {variable}")
    })
}
