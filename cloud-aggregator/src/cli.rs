//! The command line says where and which; what the pipeline does stands in the configuration alone.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
}

/// Which configuration.
#[derive(Args, Debug)]
pub struct ConfigFile {
    /// TOML file over the defaults; AGGREGATOR__… variables override both.
    #[arg(long)]
    pub config: Option<PathBuf>,
}
