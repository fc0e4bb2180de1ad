//! A machine behind Modbus TCP, made with pymodbus: `tests/modbus/machine.py` says what it does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::eventually::eventually_true;
use crate::process::ChildProcess;

const START_DEADLINE: Duration = Duration::from_secs(20);

/// What the machine does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Stops when its coil is released.
    Obeys,
    /// Answers, and goes on turning.
    Refuses,
    /// Takes requests and never answers.
    Hangs,
    /// Breaks each connection at its first request.
    Resets,
    /// Turns again after a stop, and obeys the next one.
    Restarts,
}

impl Mode {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Obeys => "obey",
            Self::Refuses => "refuse",
            Self::Hangs => "hang",
            Self::Resets => "reset",
            Self::Restarts => "restart",
        }
    }
}

/// A running Modbus server with a machine behind it: unit 1, coil 0 (the contactor, 0 releases it), discrete input 0 (1 at
/// standstill), holding register 0 (sign of life).
#[derive(Debug)]
pub struct ModbusMachine {
    process: ChildProcess,
    port: u16,
    mode_file: PathBuf,
}

impl ModbusMachine {
    /// Starts it in `dir` on a free port.
    ///
    /// # Errors
    /// It is not set up, or does not listen within 20 s.
    pub fn start(dir: &Path, mode: Mode) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let port = crate::ports::free_port()?;
        let mode_file = dir.join("mode");
        write_mode(&mode_file, mode)?;
        let python = crate::setup_dir().join("modbus-venv/bin/python");
        let script = crate::workspace_root().join("tests/modbus/machine.py").display().to_string();
        let (number, file) = (port.to_string(), mode_file.display().to_string());
        let arguments = [script.as_str(), &number, &file];
        let process = ChildProcess::start("modbus-machine", dir, &python, &arguments, &[])?;
        let machine = Self { process, port, mode_file };
        eventually_true("the Modbus machine listens", START_DEADLINE, || {
            machine.lines("listening").next().is_some()
        })
        .map_err(|error| error.context(machine.process.tail()))?;
        Ok(machine)
    }

    /// Where clients connect.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Changes what it does, from the next request on.
    ///
    /// # Errors
    /// The mode cannot be written.
    pub fn set_mode(&self, mode: Mode) -> anyhow::Result<()> {
        write_mode(&self.mode_file, mode)
    }

    /// How often its coil was released.
    #[must_use]
    pub fn stops(&self) -> usize {
        self.lines("coil 0 False").count()
    }

    /// The counts that its register has taken.
    #[must_use]
    pub fn heartbeats(&self) -> Vec<u64> {
        self.lines("register 0 ").filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect()
    }

    /// Ends it as a power cut would.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()
    }

    fn lines(&self, start: &str) -> impl Iterator<Item = String> {
        let lines: Vec<String> = self
            .process
            .stdout()
            .lines()
            .filter(|line| line.starts_with(start))
            .map(str::to_owned)
            .collect();
        lines.into_iter()
    }
}

/// Replaces the file at once: the machine never reads half a word.
fn write_mode(file: &Path, mode: Mode) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, mode.as_str())?;
    std::fs::rename(&new, file)?;
    Ok(())
}
