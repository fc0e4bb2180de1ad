//! The binary: command line in, exit code out.

use std::io::{BufWriter, StdoutLock, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use cloud_aggregator::app::{self, Failure};
use cloud_aggregator::causes::without_backtrace;
use cloud_aggregator::cli::{Alerts, Cli, Command, Format, Lake, Letters, Rules, RulesTest};
use cloud_aggregator::commands;
use cloud_aggregator::config::{Keys, Settings};
use cloud_aggregator::outcomes::report::Report;
use cloud_aggregator::trial::{self, Trial, TrialError};

/// Also for the C libraries: the Kafka client allocates each record on one thread and frees it on another.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The input holds nothing that can be read (`EX_DATAERR` of sysexits.h).
const EXIT_DATA: u8 = 65;
/// There is no input (`EX_NOINPUT`).
const EXIT_NO_INPUT: u8 = 66;
/// A table cannot be read or written (`EX_IOERR`).
const EXIT_STORAGE: u8 = 74;
/// Another instance is at it (`EX_TEMPFAIL`).
const EXIT_TEMPORARY: u8 = 75;
/// The configuration is wrong (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let file = match &command {
        // Of the program, not of a configuration.
        Command::Alerts(Alerts::Schema { event }) => {
            return look(|out| commands::schema(event, out));
        }
        Command::Lake(Lake::Contract { format }) => {
            return look(|out| commands::contract(*format, out));
        }
        Command::Lake(Lake::Forget(arguments)) => &arguments.config,
        Command::Lake(Lake::Copy(arguments)) => &arguments.config,
        Command::Lake(Lake::Offsets(arguments)) => &arguments.config,
        Command::Lake(Lake::TakeOver(arguments)) => &arguments.config,
        Command::Alerts(Alerts::List(list)) => &list.config,
        Command::Alerts(Alerts::Test(test)) => &test.config,
        Command::Alerts(Alerts::Replay(replay)) => &replay.config,
        Command::Report(Report::Precision(arguments)) => &arguments.config,
        Command::Run(file) | Command::CheckConfig(file) | Command::Healthcheck(file) => file,
        Command::Rules(Rules::Test(test)) => &test.config,
        Command::Maintain(maintain) => &maintain.config,
        Command::Audit(audit) => &audit.config,
        Command::DeadLetters(Letters::List(list)) => &list.config,
        Command::DeadLetters(Letters::Show(show)) => &show.config,
        Command::DeadLetters(Letters::Replay(replay)) => &replay.config,
    };
    match Settings::load_with_keys(file.config.as_deref()) {
        Ok((settings, keys)) => execute(command, settings, keys),
        Err(error) => {
            complain(&format!("configuration: {error}"));
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

fn execute(command: Command, settings: Settings, keys: Keys) -> ExitCode {
    match command {
        Command::Run(file) => run(settings, keys, file.config),
        Command::CheckConfig(_) => check_config(&settings),
        Command::Healthcheck(_) => healthcheck(&settings),
        Command::Rules(Rules::Test(test)) => try_rules(&settings, &test),
        Command::Maintain(which) => maintain(&settings, which.table.as_deref()),
        Command::Audit(audit) => look(|out| commands::audit(&settings, &audit, out)),
        Command::DeadLetters(letters) => {
            look(|out| commands::dead_letters(&settings, &letters, out))
        }
        Command::Report(Report::Precision(arguments)) => {
            look(|out| commands::precision(&settings, &arguments, out))
        }
        Command::Alerts(command) => look(|out| commands::alerts(&settings, &command, out)),
        Command::Lake(Lake::Contract { format }) => look(|out| commands::contract(format, out)),
        Command::Lake(Lake::Forget(arguments)) => {
            look(|out| commands::forget(&settings, &arguments, out))
        }
        Command::Lake(Lake::Copy(arguments)) => {
            look(|out| commands::copy(&settings, &arguments, out))
        }
        Command::Lake(Lake::Offsets(arguments)) => {
            look(|out| commands::offsets(&settings, &arguments, out))
        }
        Command::Lake(Lake::TakeOver(arguments)) => {
            look(|out| commands::take_over(&settings, &arguments, out))
        }
    }
}

/// Tells also what is no fault and may not be meant.
fn check_config(settings: &Settings) -> ExitCode {
    for rule in settings.spread_rules() {
        tell(&format!("warning: {rule}"));
    }
    for text in settings.lake.warnings(std::time::SystemTime::now()) {
        tell(&format!("warning: {text}"));
    }
    for text in settings.kafka.warnings() {
        tell(&format!("warning: {text}"));
    }
    say("configuration is valid")
}

fn run(settings: Settings, keys: Keys, file: Option<PathBuf>) -> ExitCode {
    match app::run(settings, keys, file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(without_backtrace(&format!("{:#}", error.cause)));
            ExitCode::from(error.exit_code)
        }
    }
}

fn maintain(settings: &Settings, table: Option<&str>) -> ExitCode {
    let reports = match app::maintain(settings, table) {
        Ok(Some(reports)) => reports,
        Ok(None) => {
            complain("another instance maintains this lake (maintenance.lease)");
            return ExitCode::from(EXIT_TEMPORARY);
        }
        Err(error) => {
            complain(without_backtrace(&format!("{:#}", error.cause)));
            return ExitCode::from(error.exit_code);
        }
    };
    let lines = reports.iter().map(|(table, report)| format!("{table}: {report}"));
    let said = say(&lines.collect::<Vec<_>>().join("\n"));
    match reports.values().any(|report| report.problem.is_some()) {
        true => ExitCode::from(EXIT_STORAGE),
        false => said,
    }
}

fn healthcheck(settings: &Settings) -> ExitCode {
    match app::healthcheck(settings.admin.listen) {
        Ok(()) => say("alive"),
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn try_rules(settings: &Settings, test: &RulesTest) -> ExitCode {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let result = trial::run(&settings.core(), &test.input, &mut tell)
        .and_then(|trial| {
            let trial = Trial { spread: settings.spread_rules(), ..trial };
            if test.format == Format::Json {
                // Standard output has one object a line and nothing else.
                trial.spread_notes().for_each(|note| tell(&note));
            }
            trial::print(&trial, (test.format, test.anomalies), &mut out)
        })
        .and_then(|()| Ok(out.flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let exit_code = match &error {
                TrialError::Input { .. } => EXIT_NO_INPUT,
                TrialError::NoReading { .. } => EXIT_DATA,
                TrialError::Output(_) => 1,
            };
            complain(&format!("{:#}", anyhow::Error::from(error)));
            ExitCode::from(exit_code)
        }
    }
}

/// A command that prints.
fn look(command: impl FnOnce(&mut BufWriter<StdoutLock<'_>>) -> Result<u8, Failure>) -> ExitCode {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let result = command(&mut out);
    let is_written = out.flush().is_ok();
    match result {
        Ok(exit_code) if is_written => ExitCode::from(exit_code),
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            complain(without_backtrace(&format!("{:#}", error.cause)));
            ExitCode::from(error.exit_code)
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

fn tell(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

fn complain(text: &str) {
    drop(writeln!(std::io::stderr(), "error: {text}"));
}
