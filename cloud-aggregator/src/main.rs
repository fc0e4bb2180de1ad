//! The binary: command line in, exit code out.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use cloud_aggregator::app;
use cloud_aggregator::cli::{Cli, Command};
use cloud_aggregator::config::Settings;

/// The configuration is wrong (`EX_CONFIG` of sysexits.h).
const EXIT_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let (file, command): (_, fn(Settings) -> ExitCode) = match Cli::parse().command {
        Command::Run(file) => (file.config, run),
        Command::CheckConfig(file) => (file.config, |_| say("configuration is valid")),
        Command::Healthcheck(file) => (file.config, healthcheck),
    };
    match Settings::load(file.as_deref()) {
        Ok(settings) => command(settings),
        Err(error) => {
            complain(&format!("configuration: {error}"));
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

fn run(settings: Settings) -> ExitCode {
    match app::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{:#}", error.cause));
            ExitCode::from(error.exit_code)
        }
    }
}

fn healthcheck(settings: Settings) -> ExitCode {
    match app::healthcheck(settings.admin.listen) {
        Ok(()) => say("alive"),
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> ExitCode {
    if writeln!(std::io::stdout(), "{text}").is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn complain(text: &str) {
    drop(writeln!(std::io::stderr(), "error: {text}"));
}
