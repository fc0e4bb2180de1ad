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
}

/// Where the settings are.
#[derive(Debug, Args)]
pub struct ConfigArgument {
    /// TOML file; without one the defaults and the EDGE__… variables hold.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}
