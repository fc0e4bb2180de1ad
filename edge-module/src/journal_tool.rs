//! `edge-module journal inspect | verify | export | repair`: for the journal of a module that does not run.
//!
//! | command | changes | exit code |
//! |---|---|---|
//! | `inspect` | nothing | 0 |
//! | `verify` | nothing | 0; 1 if something is damaged or missing |
//! | `export` | nothing | 0; 1 if something could not be read |
//! | `repair` | salvages and moves aside what is damaged, as a start would, in all segments | 0; 1 if records are lost |
//!
//! Losses that `repair` finds are reported to the cloud by the next run.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::value::RawValue;
use shared_proto::Encoding;
use shared_proto::codec;
use shared_proto::model::{DeviceId, Generation, Identity, Sequence};

use crate::app::journal_limits;
use crate::cli::{EXIT_DATA_DIR, EXIT_FAILURE, JournalAction, say};
use crate::config::Settings;
use crate::data_dir;
use crate::kafka::now;
use crate::store::{Journal as _, Lane, LaneReport, Loss, SegmentedJournal, Stored, Survey};

/// Does one of the actions.
#[must_use]
pub fn run(settings: &Settings, action: &JournalAction) -> ExitCode {
    let folder = &settings.device.data_dir;
    if !folder.join("journal").is_dir() {
        say(format_args!(
            "{} holds no journal; device.data-dir names the folder",
            folder.display()
        ));
        return ExitCode::from(EXIT_DATA_DIR);
    }
    let locked = match action {
        JournalAction::Repair => data_dir::open(folder).map(Some),
        JournalAction::Inspect | JournalAction::Verify | JournalAction::Export { .. } => {
            data_dir::share(folder)
        }
    };
    let _lock = match locked {
        Ok(lock) => lock,
        Err(error) => {
            say(format_args!("device.data-dir {}: {error:#}", folder.display()));
            return ExitCode::from(EXIT_DATA_DIR);
        }
    };
    let mut output = std::io::stdout().lock();
    let done = match action {
        JournalAction::Inspect => inspect(settings, &mut output).map(|()| true),
        JournalAction::Verify => verify(settings, &mut output),
        JournalAction::Export { output: path, all, generation } => {
            export(settings, path.as_ref(), *all, *generation, &mut output)
        }
        JournalAction::Repair => repair(settings, &mut output),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILURE),
        Err(error) => {
            say(format_args!("{error:#}"));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn surveys(settings: &Settings) -> anyhow::Result<Vec<Survey>> {
    let data_dir = &settings.device.data_dir;
    let generations = Survey::generations(data_dir)?;
    if generations.is_empty() {
        bail!("{} holds no generation of a journal", data_dir.join("journal").display());
    }
    let open = |generation| Survey::open(data_dir, generation, settings.journal.cache_bytes);
    Ok(generations.into_iter().map(open).collect::<Result<_, _>>()?)
}

fn inspect(settings: &Settings, output: &mut impl Write) -> anyhow::Result<()> {
    for survey in surveys(settings)? {
        show_books(&survey, output)?;
        writeln!(
            output,
            "{:<14}{:>10}{:>16}{:>18}{:>18}",
            "lane", "segments", "bytes", "delivered through", "last record"
        )?;
        for lane in Lane::ALL {
            let segments = survey.segments(lane)?;
            let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
            let (acknowledged, last) = survey.progress(lane);
            let name = lane.as_str();
            let count = segments.len();
            writeln!(
                output,
                "{name:<14}{count:>10}{bytes:>16}{:>18}{:>18}",
                acknowledged.0, last.0
            )?;
        }
    }
    for (path, bytes) in Survey::quarantine(&settings.device.data_dir)? {
        writeln!(output, "quarantine: {} ({bytes} bytes)", path.display())?;
    }
    Ok(())
}

fn show_books(survey: &Survey, output: &mut impl Write) -> anyhow::Result<()> {
    let generation = survey.generation().0;
    match survey.next_sequence() {
        Some(next) => writeln!(output, "generation {generation}, next sequence {}", next.0)?,
        None => writeln!(output, "generation {generation}, its head cannot be read")?,
    }
    for (loss, is_reported) in survey.losses() {
        let state = if is_reported { "reported" } else { "not reported yet" };
        writeln!(output, "{}, {state}", describe(&loss))?;
    }
    Ok(())
}

fn describe(loss: &Loss) -> String {
    let records =
        loss.records.map_or("unknown number of".to_owned(), |records| records.to_string());
    format!(
        "lost: lane {}, sequences {} to {}, {records} records, {}",
        loss.lane.as_str(),
        loss.first.0,
        loss.last.0,
        loss.cause.as_str()
    )
}

fn verify(settings: &Settings, output: &mut impl Write) -> anyhow::Result<bool> {
    let mut is_whole = true;
    for survey in surveys(settings)? {
        show_books(&survey, output)?;
        is_whole &= survey.has_books();
        for lane in Lane::ALL {
            let report = survey.read(lane, |_, _| anyhow::Ok(()))?;
            show_report(lane, &report, output)?;
            is_whole &= report.is_whole();
        }
    }
    let verdict =
        if is_whole { "whole" } else { "damaged: `journal repair` saves what can be read" };
    writeln!(output, "{verdict}")?;
    Ok(is_whole)
}

fn show_report(lane: Lane, report: &LaneReport, output: &mut impl Write) -> anyhow::Result<()> {
    let (name, waiting, delivered) = (lane.as_str(), report.waiting, report.delivered);
    writeln!(output, "{name}: {waiting} records wait, {delivered} delivered are still on disk")?;
    for loss in &report.holes {
        writeln!(output, "  {}", describe(loss))?;
    }
    for (path, reason) in &report.unreadable {
        writeln!(output, "  {}: {reason}", path.display())?;
    }
    Ok(())
}

/// One line for each record: lane, identity and the record as it would leave for Kafka.
fn export(
    settings: &Settings,
    path: Option<&PathBuf>,
    is_all: bool,
    generation: Option<u64>,
    output: &mut impl Write,
) -> anyhow::Result<bool> {
    let mut file;
    let target: &mut dyn Write = match path {
        Some(path) => {
            let created = File::create_new(path)
                .with_context(|| format!("{} cannot be created", path.display()))?;
            file = BufWriter::new(created);
            &mut file
        }
        None => output,
    };
    let wanted = generation.map(Generation);
    let mut is_whole = true;
    let mut count = 0_u64;
    for survey in surveys(settings)? {
        if wanted.is_some_and(|wanted| wanted != survey.generation()) {
            continue;
        }
        for lane in Lane::ALL {
            let report = survey.read(lane, |record, is_delivered| {
                if is_delivered && !is_all {
                    return anyhow::Ok(());
                }
                count += 1;
                let line = line_of(lane, &record, &settings.device.id, survey.generation());
                Ok(writeln!(target, "{line}")?)
            })?;
            for (path, reason) in &report.unreadable {
                say(format_args!("{}: {reason}", path.display()));
            }
            report.holes.iter().for_each(|loss| say(describe(loss)));
            is_whole &= report.is_whole();
        }
    }
    target.flush()?;
    say(format_args!("{count} records exported"));
    Ok(is_whole)
}

fn line_of(lane: Lane, record: &Stored, device_id: &DeviceId, generation: Generation) -> String {
    let identity =
        Some(Identity { device_id: device_id.clone(), generation, sequence: record.sequence });
    let bytes = &record.payload;
    let json = match lane {
        Lane::Events => codec::decode_machine_event(bytes, Encoding::Protobuf).map(|mut event| {
            event.identity = identity;
            codec::encode_machine_event(&event, Encoding::Json)
        }),
        Lane::Readings => codec::decode_reading(bytes, Encoding::Protobuf).map(|decoded| {
            let mut reading = decoded.reading;
            reading.identity = identity;
            codec::encode_reading(&reading, Encoding::Json)
        }),
        Lane::DeadLetters => {
            codec::decode_dead_letter(bytes, Encoding::Protobuf).map(|mut letter| {
                letter.identity = identity;
                codec::encode_dead_letter(&letter, Encoding::Json)
            })
        }
        // Samples stay as they are.
        Lane::Waveforms => return raw_line(lane, record),
    };
    let json = json.ok().and_then(|json| String::from_utf8(json).ok());
    let Some(record_json) = json.and_then(|json| RawValue::from_string(json).ok()) else {
        return raw_line(lane, record);
    };
    format!("{{\"lane\":\"{}\",\"record\":{record_json}}}", lane.as_str())
}

/// A record that is not text, or cannot be decoded.
fn raw_line(lane: Lane, record: &Stored) -> String {
    use base64::Engine as _;

    let payload = base64::engine::general_purpose::STANDARD.encode(&record.payload);
    let sequence = record.sequence.0;
    let lane = lane.as_str();
    format!("{{\"lane\":\"{lane}\",\"sequence\":{sequence},\"payload_base64\":\"{payload}\"}}")
}

fn repair(settings: &Settings, output: &mut impl Write) -> anyhow::Result<bool> {
    let mut journal =
        SegmentedJournal::open(&settings.device.data_dir, journal_limits(settings), now())?;
    let through = Sequence(journal.next_sequence().0 - 1);
    let reader = journal.reader();
    for lane in Lane::ALL {
        let mut after = journal.acknowledged(lane);
        let mut count = 0;
        loop {
            let batch = reader.read(lane, after, through, 1_024);
            if let Some(obstacle) = batch.obstacle {
                return Err(obstacle)
                    .context("the disk refuses: nothing was changed in this segment");
            }
            let last_lost = batch.losses.last().map(|loss| loss.last);
            let last = batch.records.last().map(|record| record.sequence).max(last_lost);
            count += batch.records.len();
            for loss in &batch.losses {
                journal.add_loss(loss);
            }
            match last {
                Some(last) => after = last,
                None => break,
            }
        }
        writeln!(output, "{}: {count} records wait", lane.as_str())?;
    }
    journal.save()?;
    let losses = journal.losses();
    for loss in &losses {
        writeln!(output, "{}; reported by the next run", describe(loss))?;
    }
    for (path, bytes) in Survey::quarantine(&settings.device.data_dir)? {
        writeln!(output, "quarantine: {} ({bytes} bytes)", path.display())?;
    }
    Ok(losses.is_empty())
}
