//! Commands that look at the lake beside a running aggregator, and what their exit codes say.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use aggregator_core::ProcessingTime;
use aggregator_core::checkpoint::Nonce;
use shared_proto::model::EventTime;

use crate::alerts::commands::{self as alert_commands, AlertsError};
use crate::app::Failure;
use crate::audit::{self, AuditError};
use crate::backoff::random_number;
use crate::cli::{
    Alerts, AuditArguments, ContractFormat, LakeCopy, LakeForget, LakeOffsets, LakeTakeOver,
    Letters, LettersReplay,
};
use crate::config::Settings;
use crate::dead_letters::{self, LettersError, ReplayError, Replayed, Selection, replay};
use crate::forget::edit::Whom;
use crate::forget::{self, ForgetError};
use crate::hand_over::{self, HandOverError};
use crate::lake_contract::{self, Contract, dictionary};
use crate::lake_copy::{self, CopyError};
use crate::outcomes;
use crate::outcomes::report::{self, PrecisionArguments};
use crate::sink::alert::{self, EventKind};
use crate::sink::maintenance::system_clock;

/// The command line asks for something that cannot be (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;
/// There is no such letter (`EX_NOINPUT`).
const EXIT_NO_INPUT: u8 = 66;
/// Kafka does not take the letters (`EX_UNAVAILABLE`).
const EXIT_UNAVAILABLE: u8 = 69;
/// The program is wrong (`EX_SOFTWARE`).
const EXIT_SOFTWARE: u8 = 70;
/// The storage cannot be read (`EX_IOERR`).
const EXIT_STORAGE: u8 = 74;
/// The lake does not hold still (`EX_TEMPFAIL`).
const EXIT_TEMPORARY: u8 = 75;
/// The configuration is wrong (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;

/// `dead-letters`. Gives the exit code.
///
/// # Errors
/// What cannot be read, or sent.
pub fn dead_letters(
    settings: &Settings,
    command: &Letters,
    out: &mut impl Write,
) -> Result<u8, Failure> {
    match command {
        Letters::List(list) => {
            let selection = Selection::new(&list.filter, &[], now()).map_err(letters_failure)?;
            let how = (list.format, list.limit);
            block_on(dead_letters::list(&settings.lake, &selection, how, out))?
                .map_err(letters_failure)?;
            Ok(0)
        }
        Letters::Show(show) => {
            block_on(dead_letters::show(&settings.lake, &show.letter, show.format, out))?
                .map_err(letters_failure)?;
            Ok(0)
        }
        Letters::Replay(arguments) => replay_letters(settings, arguments, out),
    }
}

fn replay_letters(
    settings: &Settings,
    arguments: &LettersReplay,
    out: &mut impl Write,
) -> Result<u8, Failure> {
    let selection = Selection::new(&arguments.filter, &arguments.letters, now());
    let selection = selection.map_err(letters_failure)?;
    let is_all = arguments.all || arguments.unfinished;
    if arguments.letters.is_empty() && arguments.filter.is_empty() && !is_all {
        let cause = anyhow::anyhow!(
            "no letters are selected: name them, give --reason, --source, --since or --until, --unfinished, or --all"
        );
        return Err(Failure { cause, exit_code: EXIT_USAGE });
    }
    let options = dead_letters::Options {
        topic: arguments.topic.clone(),
        again: arguments.again,
        unfinished: arguments.unfinished,
        yes: arguments.yes,
        dry_run: arguments.dry_run,
        limit: arguments.limit,
    };
    let replayed = block_on(replay(settings, &selection, &options, out))?;
    let replayed = replayed.map_err(replay_failure)?;
    let verb = if arguments.dry_run { "would be sent" } else { "sent" };
    let Replayed { sent, before, refused, unfinished, returned } = replayed;
    let mut text = format!("{sent} {verb}, {before} were sent before, {refused} cannot be sent");
    if unfinished > 0 {
        text += &format!(", {unfinished} may have been sent");
    }
    if returned > 0 {
        text += &format!(", {returned} came back");
    }
    writeln!(out, "{text}").map_err(|error| letters_failure(error.into()))?;
    Ok(u8::from(replayed.is_incomplete()))
}

/// `audit`. Gives the exit code.
///
/// # Errors
/// The lake cannot be read.
pub fn audit(
    settings: &Settings,
    arguments: &AuditArguments,
    out: &mut impl Write,
) -> Result<u8, Failure> {
    let failed = |error: AuditError| {
        let exit_code = match &error {
            AuditError::Lake(error) if error.is_wrong_place() => EXIT_CONFIG,
            AuditError::Lake(_) | AuditError::NoTable { .. } => EXIT_STORAGE,
            AuditError::WithoutReadings => EXIT_CONFIG,
            AuditError::Restless { .. } => EXIT_TEMPORARY,
            AuditError::Output(_) => 1,
        };
        Failure { cause: error.into(), exit_code }
    };
    let report = block_on(audit::audit(settings, arguments.limit))?.map_err(failed)?;
    audit::print(&report, arguments.format, out).map_err(|error| failed(error.into()))?;
    Ok(u8::from(report.differences > 0))
}

/// `report precision`. Gives the exit code.
///
/// # Errors
/// The lake cannot be read.
pub fn precision(
    settings: &Settings,
    arguments: &PrecisionArguments,
    out: &mut impl Write,
) -> Result<u8, Failure> {
    block_on(report::run(&settings.lake, arguments, out))?.map_err(|error| {
        let exit_code = error.exit_code();
        Failure { cause: error.into(), exit_code }
    })?;
    Ok(0)
}

/// `alerts`. Gives the exit code.
///
/// # Errors
/// What cannot be read, or sent.
pub fn alerts(settings: &Settings, command: &Alerts, out: &mut impl Write) -> Result<u8, Failure> {
    match command {
        Alerts::Schema { event } => schema(event, out),
        Alerts::List(list) => {
            block_on(alert_commands::list(&settings.lake, list, now(), out))?
                .map_err(alerts_failure)?;
            Ok(0)
        }
        Alerts::Test(test) => {
            block_on(alert_commands::test(settings, &test.target, now(), out))?
                .map_err(alerts_failure)?;
            Ok(0)
        }
        Alerts::Replay(replay) => {
            let is_complete = block_on(alert_commands::replay(settings, replay, now(), out))?
                .map_err(alerts_failure)?;
            Ok(u8::from(!is_complete))
        }
    }
}

fn alerts_failure(error: AlertsError) -> Failure {
    if let AlertsError::Letters(error) = error {
        return letters_failure(error);
    }
    let exit_code = error.exit_code();
    Failure { cause: error.into(), exit_code }
}

/// `alerts schema`. Gives the exit code.
///
/// # Errors
/// The output cannot be written.
pub fn schema(event: &str, out: &mut impl Write) -> Result<u8, Failure> {
    let schema = match EventKind::ALL.into_iter().find(|kind| kind.as_str() == event) {
        Some(kind) => alert::schema(kind),
        None => outcomes::schema(),
    };
    let written = writeln!(out, "{schema:#}");
    written.map_err(|error| Failure { cause: error.into(), exit_code: 1 })?;
    Ok(0)
}

/// `lake contract`. Gives the exit code.
///
/// # Errors
/// The output cannot be written.
pub fn contract(format: ContractFormat, out: &mut impl Write) -> Result<u8, Failure> {
    let software = |cause: anyhow::Error| Failure { cause, exit_code: EXIT_SOFTWARE };
    let text = match format {
        ContractFormat::Odcs => lake_contract::TEXT.to_owned(),
        ContractFormat::Markdown => {
            let contract = Contract::parse(lake_contract::TEXT);
            dictionary::markdown(&contract.map_err(|error| software(error.into()))?)
        }
    };
    let written = out.write_all(text.as_bytes());
    written.map_err(|error| Failure { cause: error.into(), exit_code: 1 })?;
    Ok(0)
}

/// `lake forget`. Gives the exit code.
///
/// # Errors
/// What is asked for cannot be, or the lake cannot be read or written.
pub fn forget(
    settings: &Settings,
    arguments: &LakeForget,
    out: &mut impl Write,
) -> Result<u8, Failure> {
    let LakeForget { sensor, person, now, yes, dry_run, .. } = arguments;
    let whom = match (sensor, person) {
        (Some(sensor), _) => Whom::Sensor(sensor.clone()),
        (None, Some(person)) => Whom::Person(person.clone()),
        (None, None) => {
            let cause = anyhow::anyhow!("give --sensor or --person");
            return Err(Failure { cause, exit_code: EXIT_USAGE });
        }
    };
    let options = forget::Options { yes: *yes, dry_run: *dry_run, now: *now };
    let (lake, maintenance) = (&settings.lake, &settings.maintenance);
    let clock = system_clock();
    let work = forget::forget(lake, maintenance, &whom, options, &clock, out);
    block_on(work)?.map_err(|error| {
        let exit_code = match &error {
            ForgetError::Lake(error) if error.is_wrong_place() => EXIT_CONFIG,
            ForgetError::Lake(_) | ForgetError::NoTable { .. } => EXIT_STORAGE,
            ForgetError::Name | ForgetError::NotConfirmed => EXIT_USAGE,
            ForgetError::Output(_) => 1,
        };
        Failure { cause: error.into(), exit_code }
    })?;
    Ok(0)
}

/// `lake copy`. Gives the exit code.
///
/// # Errors
/// What is asked for cannot be, or a storage refuses.
pub fn copy(
    settings: &Settings,
    arguments: &LakeCopy,
    out: &mut impl Write,
) -> Result<u8, Failure> {
    let failed = |error: CopyError| {
        let exit_code = error.exit_code();
        Failure { cause: error.into(), exit_code }
    };
    let LakeCopy { to, to_config, is_final, compare, reopen, .. } = arguments;
    let target = lake_copy::target(&settings.lake, to.as_deref(), to_config.as_deref());
    let target = target.map_err(failed)?;
    let options = lake_copy::Options { is_final: *is_final, compares_bytes: *compare };
    let lake = &settings.lake;
    match reopen {
        true => block_on(lake_copy::reopen(lake, &target, out))?.map_err(failed)?,
        false => block_on(lake_copy::copy(lake, &target, options, out))?.map_err(failed)?,
    }
    Ok(0)
}

/// `lake offsets`. Gives the exit code.
///
/// # Errors
/// The lake cannot be read or marked.
pub fn offsets(
    settings: &Settings,
    arguments: &LakeOffsets,
    out: &mut impl Write,
) -> Result<u8, Failure> {
    let now = ProcessingTime::from_micros(now().micros());
    let LakeOffsets { hand_over, format, .. } = arguments;
    block_on(hand_over::offsets(settings, *hand_over, *format, now, out))?
        .map_err(hand_over_failure)?;
    Ok(0)
}

/// `lake take-over`. Gives the exit code.
///
/// # Errors
/// What cannot be taken over.
pub fn take_over(
    settings: &Settings,
    arguments: &LakeTakeOver,
    out: &mut impl Write,
) -> Result<u8, Failure> {
    let now = ProcessingTime::from_micros(now().micros());
    let nonce = Nonce(random_number());
    block_on(hand_over::take_over(settings, &arguments.checkpoint, now, nonce, out))?
        .map_err(hand_over_failure)?;
    Ok(0)
}

fn hand_over_failure(error: HandOverError) -> Failure {
    let exit_code = error.exit_code();
    Failure { cause: error.into(), exit_code }
}

fn letters_failure(error: LettersError) -> Failure {
    let exit_code = match &error {
        LettersError::Lake(_) | LettersError::NoTable { .. } | LettersError::Book { .. } => {
            EXIT_STORAGE
        }
        LettersError::NotFound { .. } => EXIT_NO_INPUT,
        LettersError::When { .. }
        | LettersError::Interval { .. }
        | LettersError::Reason { .. }
        | LettersError::Key { .. } => EXIT_USAGE,
        LettersError::Output(_) => 1,
    };
    Failure { cause: error.into(), exit_code }
}

fn replay_failure(error: ReplayError) -> Failure {
    let exit_code = match error {
        ReplayError::Letters(error) => return letters_failure(error),
        ReplayError::NotFound { .. } => EXIT_NO_INPUT,
        ReplayError::TooMany | ReplayError::NotConfirmed { .. } | ReplayError::TopicName { .. } => {
            EXIT_USAGE
        }
        ReplayError::Settings(_) => EXIT_CONFIG,
        ReplayError::NoTopic { .. }
        | ReplayError::Unreachable { .. }
        | ReplayError::Send { .. } => EXIT_UNAVAILABLE,
    };
    Failure { cause: error.into(), exit_code }
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure { cause: error.into(), exit_code: EXIT_SOFTWARE })?;
    Ok(runtime.block_on(work))
}

fn now() -> EventTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    EventTime::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
