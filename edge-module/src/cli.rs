//! The command line says where and which; what the pipeline does stands in the configuration alone.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Exit code for wrong settings (`EX_CONFIG` of sysexits.h).
pub const EXIT_CONFIG: u8 = 78;
/// Exit code for a folder that cannot be used (`EX_CANTCREAT` of sysexits.h).
pub const EXIT_DATA_DIR: u8 = 73;
/// Exit code for anything else that went wrong.
pub const EXIT_FAILURE: u8 = 1;

/// Reads machine sensors, stops the machine at once, journals, forwards to Kafka.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run until SIGTERM or SIGINT.
    Run(ConfigArgument),
    /// Check the settings, the secrets' files and the model bundle, then exit: 0, or 78 with every fault.
    CheckConfig(ConfigArgument),
    /// Ask a running module whether it is alive: 0 or 1. For container health checks.
    Healthcheck(ConfigArgument),
    /// Judge recordings as the machine's sensors would be: windows, features, scores and trips as lines of JSON.
    ///
    /// Standard input is any number of blocks, ordered by time: a line {"sensor": "press-1/x", "start": "2026-03-01T08:00:00Z",
    /// "sample-rate-hz": 20000, "samples": 40000} and so many 32-bit floats, little-endian, in the sensor's unit. "unit" and "recording" may be added: another
    /// recording begins anew, at any time. Lines are "window", "trip", "alarm" (a rule that only warns) and "suppressed" (dry run, or a start); "at" is the
    /// end of the block that decided, or of a delay. As on the machine, a trip is latched: for the rest of its recording nothing more trips. Nothing is
    /// journalled, sent or stopped. Thresholds are those of the bundles and settings, not what was learnt of a machine. Exit code 65: the input is not of this form.
    Judge(JudgeArguments),
    /// Say what drove a trip by a model's score, and draw its spectrum: works beside a running module.
    Explain(ExplainArguments),
    /// Show what was learnt of the machines: spreads and thresholds by operating condition and sensor.
    Baseline(BaselineArguments),
    /// Look at, check, export or repair the journal of a module that does not run.
    Journal(JournalArguments),
}

/// Which trip, and where the picture goes.
#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// Where the settings are; explanations lie in `device.data-dir`.
    #[command(flatten)]
    pub config: ConfigArgument,
    /// A trip's id or its beginning, the file of a machine event, or "latest".
    pub event: String,
    /// What is wanted.
    #[command(flatten)]
    pub out: ExplainOutput,
}

/// How much is said of a trip, and in which form.
#[derive(Clone, Debug, Default, Args)]
pub struct ExplainOutput {
    /// Also a picture, as SVG.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// All features of the model, not only the ten that drove the score most.
    #[arg(long)]
    pub all: bool,
}

/// Which machine.
#[derive(Debug, Args)]
pub struct BaselineArguments {
    /// Where the settings are; baselines lie in `device.data-dir`.
    #[command(flatten)]
    pub config: ConfigArgument,
    /// A machine of the settings; without one, all of them.
    pub machine: Option<String>,
}

/// Which rules, and where the answer goes.
#[derive(Debug, Args)]
pub struct JudgeArguments {
    /// Where the settings are.
    #[command(flatten)]
    pub config: ConfigArgument,
    /// A file that is written anew; without it, standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What to do with which journal.
#[derive(Debug, Args)]
pub struct JournalArguments {
    /// Where the settings are; `device.data-dir` is the folder.
    #[command(flatten)]
    pub config: ConfigArgument,
    /// What to do.
    #[command(subcommand)]
    pub action: JournalAction,
}

/// What to do with the journal.
#[derive(Debug, Subcommand)]
pub enum JournalAction {
    /// Show lanes, segments, progress, losses and the quarantine. Changes nothing.
    Inspect,
    /// Read everything and compare it with the books: exit code 1 if something is damaged or missing.
    Verify,
    /// Write the records that wait as JSON, one a line.
    Export {
        /// A new file; without it, standard output.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Also records that were delivered and are still on disk.
        #[arg(long)]
        all: bool,
        /// Only this generation.
        #[arg(long, value_name = "NUMBER")]
        generation: Option<u64>,
    },
    /// Salvage what can be read of damaged segments and move them to the quarantine: exit code 1 if records are lost.
    Repair,
}

/// Where the settings are.
#[derive(Debug, Args)]
pub struct ConfigArgument {
    /// TOML file; without one the defaults and the EDGE__… variables hold.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
}

/// Says something to the person at the terminal. Where nobody listens, or the disk behind it is full, nothing is said.
pub fn say(text: impl std::fmt::Display) {
    use std::io::Write as _;

    drop(writeln!(std::io::stderr(), "edge-module: {text}"));
}
