//! The command line says where and which; what the pipeline does stands in the configuration alone.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::sink::maintenance::table_names;

/// Counts anomalies from Kafka in event-time windows, writes Delta tables exactly once, alerts.
#[derive(Debug, Parser)]
#[command(name = "cloud-aggregator", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run until SIGTERM, or until all is read when `trigger.available-now` is set.
    Run(ConfigFile),
    /// Check the configuration: exit code 0, or 78 with every fault.
    CheckConfig(ConfigFile),
    /// Ask a running aggregator whether it lives: exit code 0 or 1.
    Healthcheck(ConfigFile),
    /// Try the rules of the configuration.
    #[command(subcommand)]
    Rules(Rules),
    /// Maintain the tables once and print what was done: exit code 0; 74 if a table failed, 75 if another instance is at it.
    Maintain(Maintain),
}

/// Which tables.
#[derive(Args, Debug)]
pub struct Maintain {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// This table alone.
    #[arg(long, value_parser = PossibleValuesParser::new(table_names()))]
    pub table: Option<String>,
}

/// What to do with rules.
#[derive(Debug, Subcommand)]
pub enum Rules {
    /// Run the rules over a file and print the windows: exit code 0; 65 if no line is a reading, 66 if the file cannot be read.
    ///
    /// Every window of the file is judged as if all its readings had come in time. Lines that are no readings are told on
    /// standard error and left out.
    Test(RulesTest),
}

/// Which file, and how the windows are printed.
#[derive(Args, Debug)]
pub struct RulesTest {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Readings, one JSON object a line, as on the Kafka topics; "-" is standard input.
    #[arg(long)]
    pub input: PathBuf,
    /// How the windows are printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Print the anomalies alone.
    #[arg(long)]
    pub anomalies: bool,
}

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Which configuration.
#[derive(Args, Debug)]
pub struct ConfigFile {
    /// TOML file over the defaults; AGGREGATOR__… variables override both.
    #[arg(long)]
    pub config: Option<PathBuf>,
}
