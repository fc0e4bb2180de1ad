//! Reads the command line and the settings; everything else is in `app`.

use std::process::ExitCode;

use clap::Parser as _;
use edge_module::cli::{Cli, Command, ConfigArgument, EXIT_CONFIG};
use edge_module::config::Settings;
use edge_module::{app, journal_tool};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(argument) => with_settings(&argument, app::run),
        Command::CheckConfig(argument) => with_settings(&argument, app::check),
        Command::Healthcheck(argument) => with_settings(&argument, app::healthcheck),
        Command::Journal(arguments) => with_settings(&arguments.config, |settings| {
            journal_tool::run(&settings, &arguments.action)
        }),
    }
}

fn with_settings(argument: &ConfigArgument, act: impl FnOnce(Settings) -> ExitCode) -> ExitCode {
    match Settings::load(argument.config.as_deref()) {
        Ok(settings) => act(settings),
        Err(faults) => {
            eprintln!("edge-module: wrong settings\n{faults}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}
