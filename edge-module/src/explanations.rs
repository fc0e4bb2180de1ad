//! Explanations of trips on disk: `<folder>/<micros>-<trip id>-<hash>.json`, one [`Explanation`] each.
//!
//! The name begins with the time of the trip, in twenty digits of microseconds, so that names sort by time; of the trip's id what is
//! safe in a name and at most a hundred bytes; then the beginning of its sha256, which keeps cut names apart.
//!
//! One writer at a time: a new file, synced, renamed, folder synced. What a crash leaves behind is `writing.new`, which the next
//! write replaces; so readers need no lock and see whole files only. At most `count_max` files are kept, the oldest go first. A file
//! that is torn, or none of ours, is left alone and named by [`ExplanationStore::list`]; links are not followed. An explanation is for
//! people: losing one loses no record.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use edge_core::bearing::BearingFrequencies;
use edge_core::explanation::{Contribution, ReducedSpectrum};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shared_proto::model::{EventTime, MachineId, SensorId};

use crate::durable;

/// Version of the form.
pub const FORMAT: u32 = 1;
/// Folder of the explanations in the data folder.
pub const FOLDER: &str = "explanations";
/// How many are kept.
pub const COUNT_MAX: usize = 64;
/// Largest file that is read.
pub const EXPLANATION_BYTES_MAX: u64 = 1 << 20;
/// Most bytes of a trip's id in a file's name.
const NAME_BYTES_MAX: usize = 100;
const TIME_DIGITS: usize = 20;
const WRITING: &str = "writing.new";

/// What drove one trip by a model's score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// [`FORMAT`].
    pub format: u32,
    /// Name of the trip.
    pub trip_id: String,
    /// What was stopped.
    pub machine_id: MachineId,
    /// Whose window it was.
    pub sensor_id: SensorId,
    /// When, in microseconds since 1970.
    pub time: EventTime,
    /// Which rule.
    pub rule: String,
    /// For example `score`.
    pub cause: String,
    /// The model's answer, 0 to 1.
    pub score: f64,
    /// From which on a window counts.
    pub threshold: f64,
    /// Bundle as `name@version`.
    pub model: String,
    /// Edges of the model's bands, one more than bands.
    pub band_edges_hz: Vec<f64>,
    /// Largest first; empty if nothing is known of what is usual.
    pub contributions: Vec<Contribution>,
    /// Samples per second of the window.
    pub sample_rate_hz: f64,
    /// Samples of the window.
    pub window_samples: usize,
    /// Unit of the samples.
    #[serde(default)]
    pub unit: Option<String>,
    /// Of the window that decided.
    pub spectrum: ReducedSpectrum,
    /// Before.
    #[serde(default)]
    pub usual: Option<UsualSpectrum>,
    /// Turns of the shaft in a second.
    #[serde(default)]
    pub shaft_hz: Option<f64>,
    /// Bearings whose geometry is known.
    #[serde(default)]
    pub bearings: Vec<NamedBearing>,
}

/// What a sensor's spectrum usually is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UsualSpectrum {
    /// Windows that it is the mean of; the later ones count more.
    pub windows: u64,
    /// Their mean.
    pub spectrum: ReducedSpectrum,
}

/// A bearing of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NamedBearing {
    /// For people.
    pub name: String,
    /// Multiples of the shaft's speed.
    pub frequencies: BearingFrequencies,
}

/// What is in the folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// Oldest first.
    pub explanations: Vec<Explanation>,
    /// Everything else.
    pub skipped: Vec<Skipped>,
}

/// Something in the folder that is no explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Which file.
    pub path: PathBuf,
    /// Why it is none.
    pub reason: String,
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplanationError {
    /// The disk refuses.
    #[error("{folder} cannot be read: {source}", folder = folder.display())]
    Folder {
        /// Which folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody has written one.
    #[error("no trip is explained: only trips by a model's score are, the newest of them")]
    Empty,
    /// None of this name.
    #[error("trip {event} is not explained; these are: {known}", known = known.join(", "))]
    Unknown {
        /// What was asked for.
        event: String,
        /// Trips, oldest first.
        known: Vec<String>,
    },
    /// More than one of this beginning.
    #[error("{event} may be any of {candidates}", candidates = candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        event: String,
        /// Trips, oldest first.
        candidates: Vec<String>,
    },
}

/// The explanations of the newest trips.
#[derive(Clone, Debug)]
pub struct ExplanationStore {
    folder: PathBuf,
    count_max: usize,
}

impl ExplanationStore {
    /// A store in this folder, which the first write creates; at least one explanation is kept.
    #[must_use]
    pub fn new(folder: PathBuf, count_max: usize) -> Self {
        Self { folder, count_max: count_max.max(1) }
    }

    /// Makes an explanation durable, in place of one of the same trip, then deletes the oldest ones that are too many. Waits for the
    /// disk: not for the stop path.
    ///
    /// # Errors
    /// The disk refuses. The explanations of before are still there.
    pub fn write(&self, explanation: &Explanation) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let (name, new) = (file_name(explanation), self.folder.join(WRITING));
        durable::write(&new, &serde_json::to_vec(explanation)?)?;
        fs::rename(&new, self.folder.join(&name))?;
        self.delete_oldest(&name)?;
        durable::sync_folder(&self.folder)
    }

    /// The explanation of a trip by its id, or by a beginning that only one has.
    ///
    /// # Errors
    /// There is none, or more than one, or the folder cannot be read.
    pub fn read(&self, event: &str) -> Result<Explanation, ExplanationError> {
        self.list()?.find(event).cloned()
    }

    /// The explanation of the newest trip.
    ///
    /// # Errors
    /// There is none, or the folder cannot be read.
    pub fn latest(&self) -> Result<Explanation, ExplanationError> {
        self.list()?.explanations.pop().ok_or(ExplanationError::Empty)
    }

    /// Everything in the folder; nothing if there is no folder.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Listing, ExplanationError> {
        let failed = |source| ExplanationError::Folder { folder: self.folder.clone(), source };
        let mut listing = Listing::default();
        for path in self.paths().map_err(failed)? {
            match read_file(&path) {
                Ok(explanation) => listing.explanations.push(explanation),
                Err(reason) => listing.skipped.push(Skipped { path, reason }),
            }
        }
        Ok(listing)
    }

    /// Sorted by name.
    fn paths(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut paths =
            entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
        paths.sort();
        Ok(paths)
    }

    /// Never the one just written, which a clock that was put back makes look old.
    fn delete_oldest(&self, written: &str) -> io::Result<()> {
        let mut others = self.paths()?;
        others.retain(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name != written && is_file_name(name))
        });
        let surplus = (others.len() + 1).saturating_sub(self.count_max);
        others.into_iter().take(surplus).try_for_each(fs::remove_file)
    }
}

impl Listing {
    /// The explanation of a trip by its id, or by a beginning that only one has.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(&self, event: &str) -> Result<&Explanation, ExplanationError> {
        if let Some(exact) = self.explanations.iter().find(|it| it.trip_id == event) {
            return Ok(exact);
        }
        // Every id begins with nothing.
        let begins_so = |it: &&Explanation| !event.is_empty() && it.trip_id.starts_with(event);
        let begins: Vec<&Explanation> = self.explanations.iter().filter(begins_so).collect();
        let ids = |explanations: &mut dyn Iterator<Item = &Explanation>| {
            explanations.map(|it| it.trip_id.clone()).collect()
        };
        match begins.as_slice() {
            [only] => Ok(only),
            [] if self.explanations.is_empty() => Err(ExplanationError::Empty),
            [] => Err(ExplanationError::Unknown {
                event: event.to_owned(),
                known: ids(&mut self.explanations.iter()),
            }),
            [_, _, ..] => Err(ExplanationError::Ambiguous {
                event: event.to_owned(),
                candidates: ids(&mut begins.iter().copied()),
            }),
        }
    }
}

/// A name without any character that means something to a file system.
fn file_name(explanation: &Explanation) -> String {
    let micros = explanation.time.micros().max(0);
    let is_safe = |character: char| character.is_ascii_alphanumeric() || character == '-';
    let id: String = explanation
        .trip_id
        .chars()
        .map(|character| if is_safe(character) { character } else { '_' })
        .take(NAME_BYTES_MAX)
        .collect();
    let hash: String = Sha256::digest(explanation.trip_id.as_bytes())
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{micros:0width$}-{id}-{hash}.json", width = TIME_DIGITS)
}

fn is_file_name(name: &str) -> bool {
    let time = name.bytes().take_while(u8::is_ascii_digit).count();
    time == TIME_DIGITS && name.as_bytes().get(time) == Some(&b'-') && name.ends_with(".json")
}

/// What is read before anything else: a later form may differ in all the rest.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

fn read_file(path: &Path) -> Result<Explanation, String> {
    let text = |error: io::Error| error.to_string();
    // Not through a link: it may lead anywhere.
    if !fs::symlink_metadata(path).map_err(text)?.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(text)?;
    file.take(EXPLANATION_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(text)?;
    if bytes.len() as u64 > EXPLANATION_BYTES_MAX {
        return Err(format!("it is larger than {EXPLANATION_BYTES_MAX} bytes"));
    }
    let version: Version = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if version.format != FORMAT {
        return Err(format!("format is {}, this program reads {FORMAT}", version.format));
    }
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
pub(crate) mod tests;
