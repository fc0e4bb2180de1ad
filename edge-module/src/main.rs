//! Reads the command line and the settings; everything else is in `app`.

use std::process::ExitCode;

use clap::Parser as _;
use edge_module::cli::{Cli, Command, ConfigArgument, EXIT_CONFIG, say};
use edge_module::config::{Keys, Settings};
use edge_module::{app, baseline_tool, explain, journal_tool, judge, log_output};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(argument) => {
            let file = argument.config.clone();
            with_settings(&argument, |settings, keys| app::run(settings, keys, file))
        }
        Command::CheckConfig(argument) => {
            with_settings(&argument, |settings, _| app::check(settings))
        }
        Command::Healthcheck(argument) => {
            with_settings(&argument, |settings, _| app::healthcheck(settings))
        }
        Command::Judge(arguments) => with_settings(&arguments.config, |settings, _| {
            judge::run(&settings, arguments.output.as_deref())
        }),
        Command::Explain(arguments) => with_settings(&arguments.config, |settings, _| {
            explain::run(settings, &arguments.event, arguments.out.clone())
        }),
        Command::Baseline(arguments) => with_settings(&arguments.config, |settings, _| {
            baseline_tool::run(&settings, arguments.machine.as_deref())
        }),
        Command::Journal(arguments) => with_settings(&arguments.config, |settings, _| {
            journal_tool::run(&settings, &arguments.action)
        }),
    }
}

fn with_settings(
    argument: &ConfigArgument,
    act: impl FnOnce(Settings, Keys) -> ExitCode,
) -> ExitCode {
    match Settings::load_with_keys(argument.config.as_deref()) {
        Ok((settings, keys)) => {
            let code = act(settings, keys);
            log_output::flush();
            code
        }
        Err(faults) => {
            say(format_args!("wrong settings\n{faults}"));
            ExitCode::from(EXIT_CONFIG)
        }
    }
}
