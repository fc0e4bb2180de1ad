//! `edge-module explain EVENT [--all] [--out FILE.svg]`: why the module stopped a machine, from what it kept of the window that decided.
//!
//! EVENT is the id of a trip or a beginning of it, the word `latest`, or a file with a machine event as JSON. The answer is text on
//! standard output, of the features that drove the score most or of all, and, if asked for, a picture. Nothing is changed, and the
//! module may run meanwhile: it renames whole files into the folder.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | explained |
//! | 64 | no such trip, or more than one; which there are is said |
//! | 65 | the file is no machine event with a trip |
//! | 74 | the folder or the file cannot be read, or the answer not be written |

mod lines;
mod picture;
mod text;

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use shared_proto::Encoding;
use shared_proto::codec;

use crate::cli::{ExplainOutput, say};
use crate::config::Settings;
use crate::explanations::{
    COUNT_MAX, Explanation, ExplanationError, ExplanationStore, FOLDER, Listing,
};
use crate::judge::{EXIT_DATA, EXIT_IO};

/// Exit code for a trip that is not there (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// The newest trip.
const LATEST: &str = "latest";
/// Largest file with an event that is read.
const EVENT_BYTES_MAX: u64 = 1 << 20;

/// Why nothing is explained.
#[derive(Debug, thiserror::Error)]
enum ExplainError {
    #[error(transparent)]
    Explanation(#[from] ExplanationError),
    #[error("{path} cannot be read: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}", path = path.display())]
    Event { path: PathBuf, reason: String },
    #[error("{path} cannot be written: {source}", path = path.display())]
    Picture { path: PathBuf, source: io::Error },
    #[error("the answer cannot be written: {0}")]
    Write(#[from] io::Error),
}

impl ExplainError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Explanation(
                ExplanationError::Empty
                | ExplanationError::Unknown { .. }
                | ExplanationError::Ambiguous { .. },
            ) => EXIT_USAGE,
            Self::Event { .. } => EXIT_DATA,
            Self::Explanation(ExplanationError::Folder { .. })
            | Self::Read { .. }
            | Self::Picture { .. }
            | Self::Write(_) => EXIT_IO,
        }
    }
}

/// Explains one trip of the settings' data folder.
#[must_use]
pub fn run(settings: Settings, event: &str, output: ExplainOutput) -> ExitCode {
    let store = ExplanationStore::new(settings.device.data_dir.join(FOLDER), COUNT_MAX);
    match explain(&store, event, &output, io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn explain(
    store: &ExplanationStore,
    event: &str,
    output: &ExplainOutput,
    mut answer: impl Write,
) -> Result<(), ExplainError> {
    let listing = store.list()?;
    for skipped in &listing.skipped {
        say(format_args!("{} is left out: {}", skipped.path.display(), skipped.reason));
    }
    let explanation = find(&listing, event)?;
    answer.write_all(text::report(explanation, output.all).as_bytes())?;
    answer.flush()?;
    let Some(path) = &output.out else { return Ok(()) };
    let failed = |source| ExplainError::Picture { path: path.clone(), source };
    fs::write(path, picture::draw(explanation)).map_err(failed)?;
    say(format_args!("{} is written", path.display()));
    Ok(())
}

fn find<'a>(listing: &'a Listing, event: &str) -> Result<&'a Explanation, ExplainError> {
    if event == LATEST {
        return Ok(listing.explanations.last().ok_or(ExplanationError::Empty)?);
    }
    let path = Path::new(event);
    // A trip's id may have a slash in it, too; only a file that is there is one.
    if path.is_file() {
        return Ok(listing.find(&trip_of(path)?)?);
    }
    Ok(listing.find(event)?)
}

/// The trip that a file with a machine event, or with one line of the journal's export, speaks of.
fn trip_of(path: &Path) -> Result<String, ExplainError> {
    let failed = |source| ExplainError::Read { path: path.to_owned(), source };
    let wrong = |reason: String| ExplainError::Event { path: path.to_owned(), reason };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(EVENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > EVENT_BYTES_MAX {
        return Err(wrong(format!("it is larger than {EVENT_BYTES_MAX} bytes")));
    }
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| wrong(format!("it is no JSON: {error}")))?;
    let event = match json.get("record") {
        Some(record) => record.to_string().into_bytes(),
        None => bytes,
    };
    let event = codec::decode_machine_event(&event, Encoding::Json)
        .map_err(|error| wrong(format!("it is no machine event: {error}")))?;
    event
        .details
        .trip_id
        .ok_or_else(|| wrong(format!("the event {:?} belongs to no trip", event.event_type)))
}

#[cfg(test)]
mod tests;
