//! Reads the command line and the settings; everything else is in `app`.

use std::process::ExitCode;

use clap::Parser as _;
use edge_module::cli::{Cli, Command, ConfigArgument, EXIT_CONFIG, say};
use edge_module::config::{Settings, SettingsError};
use edge_module::reload::Loaded;
use edge_module::{app, baseline_tool, explain, journal_tool, judge, log_output};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(argument) => {
            let file = argument.config.clone();
            with_loaded(&argument, |loaded| app::run(loaded, file))
        }
        Command::CheckConfig(argument) => with_loaded(&argument, app::check),
        Command::Healthcheck(argument) => with_settings(&argument, app::healthcheck),
        Command::Judge(arguments) => with_settings(&arguments.config, |settings| {
            judge::run(&settings, arguments.output.as_deref())
        }),
        Command::Explain(arguments) => with_settings(&arguments.config, |settings| {
            explain::run(settings, &arguments.event, arguments.out.clone())
        }),
        Command::Baseline(arguments) => with_loaded(&arguments.config, |loaded| {
            baseline_tool::run(&loaded.settings, arguments.machine.as_deref())
        }),
        Command::Journal(arguments) => with_settings(&arguments.config, |settings| {
            journal_tool::run(&settings, &arguments.action)
        }),
    }
}

/// With file and variables alone.
fn with_settings(argument: &ConfigArgument, act: impl FnOnce(Settings) -> ExitCode) -> ExitCode {
    with(Settings::load(argument.config.as_deref()), act)
}

/// Also with what the hub desired last.
fn with_loaded(argument: &ConfigArgument, act: impl FnOnce(Loaded) -> ExitCode) -> ExitCode {
    with(Loaded::read(argument.config.as_deref()), act)
}

fn with<T>(found: Result<T, SettingsError>, act: impl FnOnce(T) -> ExitCode) -> ExitCode {
    match found {
        Ok(found) => {
            let code = act(found);
            log_output::flush();
            code
        }
        Err(faults) => {
            say(format_args!("wrong settings\n{faults}"));
            ExitCode::from(EXIT_CONFIG)
        }
    }
}
