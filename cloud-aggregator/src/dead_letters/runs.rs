//! What was sent again, as it is written down in `_replays/` beside the tables.
//!
//! Each run has one file, `<uuid>.json`:
//!
//! ```json
//! {"state":"sent","letters":["temperature/0/12 json 2026-03-01T08:15:30.000000Z"],
//!  "taken":{"temperature/0/12 json 2026-03-01T08:15:30.000000Z":"temperature/0/57"}}
//! ```
//!
//! Before anything is sent it names every letter with the state `sending`. When all is answered it is written anew: `letters` are those
//! that Kafka has, or may have; `taken` those that it has acknowledged, with the places where they stand now (null if it did not
//! say); the state is `sent` if none is in doubt. A run of which Kafka has nothing has no file. Whether a letter of a run in state
//! `sending` arrived that is not among `taken` nobody knows: the run was cut off, is not done yet, or Kafka did not answer.
//! Older versions wrote no `taken`: all letters of their runs in state `sent` arrived.
//!
//! A run that finds that another has begun to send one of its letters takes its file back and sends nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};

use super::{Letter, LettersError};
use crate::config;
use crate::sink::delta::{LakeError, Location};

const FOLDER: &str = "_replays";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Sending,
    Sent,
}

/// The file of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    state: State,
    letters: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    taken: BTreeMap<String, Option<String>>,
}

impl Run {
    /// Before anything is sent. `letters` are their names.
    pub(super) fn begun(letters: Vec<String>) -> Self {
        Self { state: State::Sending, letters, taken: BTreeMap::new() }
    }

    /// When all is answered: `taken` by name, with their places; of the `unknown` nobody knows. Nothing if there is neither.
    pub(super) fn ended(
        mut taken: BTreeMap<String, Option<String>>,
        unknown: &[String],
    ) -> Option<Self> {
        // Of two letters of one name the doubt of one holds.
        for name in unknown {
            taken.remove(name);
        }
        let state = if unknown.is_empty() { State::Sent } else { State::Sending };
        let letters: Vec<String> = taken.keys().chain(unknown).cloned().collect();
        (!letters.is_empty()).then_some(Self { state, letters, taken })
    }

    fn is_in_doubt(&self, name: &str) -> bool {
        match self.state {
            State::Sending => !self.taken.contains_key(name),
            State::Sent => false,
        }
    }
}

/// Runs by their files.
pub(super) type Runs = BTreeMap<String, Run>;

/// All runs that a lake knows of. Nothing is made.
///
/// # Errors
/// There is no lake, or a run cannot be read.
pub(super) async fn read(settings: &config::Lake) -> Result<Runs, LettersError> {
    match Book::existing(settings)? {
        Some(book) => book.read(|_| false).await,
        None => Ok(Runs::new()),
    }
}

/// How messages name a run.
pub(super) fn path_of(file: &str) -> String {
    format!("{FOLDER}/{file}")
}

/// Where runs are written down.
pub(super) struct Book {
    store: Arc<dyn ObjectStore>,
}

impl Book {
    fn existing(settings: &config::Lake) -> Result<Option<Self>, LakeError> {
        let location = Location::existing(settings)?;
        if location.local(FOLDER).is_some_and(|folder| !folder.exists()) {
            return Ok(None);
        }
        Ok(Some(Self { store: location.store(FOLDER)?.object_store() }))
    }

    /// To write a run down; the folder is made.
    pub(super) fn open(settings: &config::Lake) -> Result<Self, LakeError> {
        // A lake that is not there is not made.
        Location::existing(settings)?;
        let store = Location::open(settings)?.store(FOLDER)?.object_store();
        Ok(Self { store })
    }

    /// Runs, except those of `passed_over`.
    async fn read(&self, passed_over: impl Fn(&str) -> bool) -> Result<Runs, LettersError> {
        let listed = self.store.list_with_delimiter(None).await;
        let listed = listed.map_err(|error| book_error("", &error))?;
        let mut runs = Runs::new();
        for object in listed.objects {
            let file = object.location.filename().unwrap_or_default().to_owned();
            if passed_over(&file) {
                continue;
            }
            let bytes = match self.store.get(&object.location).await {
                Ok(got) => got.bytes().await.map_err(|error| book_error(&file, &error))?,
                // Its run has taken it back.
                Err(StoreError::NotFound { .. }) => continue,
                Err(error) => return Err(book_error(&file, &error)),
            };
            let run = serde_json::from_slice(&bytes).map_err(|error| book_error(&file, &error))?;
            runs.insert(file, run);
        }
        Ok(runs)
    }

    async fn write(&self, file: &str, run: &Run) -> Result<(), LettersError> {
        let bytes = serde_json::to_vec(run).map_err(|error| book_error(file, &error))?;
        let written = self.store.put(&Path::from(file), bytes.into()).await;
        written.map(drop).map_err(|error| book_error(file, &error))
    }

    async fn delete(&self, file: &str) -> Result<(), LettersError> {
        self.store.delete(&Path::from(file)).await.map_err(|error| book_error(file, &error))
    }

    /// Writes down what a run is about to send. If another run that is not among `known` has one of the letters, nothing is to be
    /// sent: of two that begin at once at least one sees the other.
    ///
    /// # Errors
    /// There is such a run, or the storage refuses.
    pub(super) async fn begin(
        &self,
        file: &str,
        run: &Run,
        known: &Runs,
    ) -> Result<(), LettersError> {
        self.write(file, run).await?;
        let others = self.read(|other| other == file || known.contains_key(other)).await;
        let problem = match others {
            Ok(others) => match shared_letters(run, &others) {
                Some(problem) => problem,
                None => return Ok(()),
            },
            Err(error) => error,
        };
        self.delete(file).await?;
        Err(problem)
    }

    /// Writes down what came of a run; what has sent nothing is forgotten.
    ///
    /// # Errors
    /// The storage refuses: then all its letters stay in doubt.
    pub(super) async fn end(&self, file: &str, run: Option<&Run>) -> Result<(), LettersError> {
        match run {
            Some(run) => self.write(file, run).await,
            None => self.delete(file).await,
        }
    }
}

fn book_error(file: &str, error: &dyn std::fmt::Display) -> LettersError {
    LettersError::Book {
        name: path_of(file),
        text: format!("{error}; without it nobody knows what was sent before"),
    }
}

fn shared_letters(run: &Run, others: &Runs) -> Option<LettersError> {
    let ours: BTreeSet<&String> = run.letters.iter().collect();
    others.iter().find_map(|(other, run)| {
        let count = run.letters.iter().filter(|letter| ours.contains(letter)).count();
        (count > 0).then(|| LettersError::Book {
            name: path_of(other),
            text: format!(
                "this run has begun to send {count} of the letters at the same time: nothing was sent here; \
                 see what it has sent, then start again"
            ),
        })
    })
}

/// Name of a letter in a run. It may share its place with an alert that was given up, or with one of a topic that was there before
/// under the same name.
pub(super) fn name_of(letter: &Letter) -> String {
    format!("{} {}", name_without_time(letter), letter.timestamp)
}

/// As versions named it that did not think of topics that are made anew.
fn name_without_time(letter: &Letter) -> String {
    format!("{} {}", letter.key, letter.reason)
}

/// What became of a letter after it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate<'a> {
    /// Nobody has sent it again.
    NotSent,
    /// Kafka has it again.
    Sent,
    /// Kafka may have it again: the run of this file did not end.
    Unfinished(&'a str),
}

/// The letter of which a record is a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin<'a> {
    /// As [`name_of`].
    pub(super) name: &'a str,
    /// Its name for people.
    pub(super) key: &'a str,
    /// Why it was refused.
    pub(super) reason: &'a str,
}

/// What all runs together say of letters.
#[derive(Debug, Default)]
pub(super) struct History<'a> {
    sent: BTreeSet<&'a str>,
    /// By name of a letter: a run.
    in_doubt: BTreeMap<&'a str, &'a str>,
    /// By place: the name of the letter that was sent there.
    places: BTreeMap<&'a str, &'a str>,
}

impl<'a> History<'a> {
    pub(super) fn of(runs: &'a Runs) -> Self {
        let mut history = Self::default();
        for (file, run) in runs {
            for name in &run.letters {
                if run.is_in_doubt(name) {
                    history.in_doubt.insert(name, file);
                } else {
                    history.sent.insert(name);
                }
            }
            for (name, place) in &run.taken {
                if let Some(place) = place {
                    history.places.insert(place, name);
                }
            }
        }
        history
    }

    /// What one run has sent holds, whatever another leaves in doubt.
    pub(super) fn fate(&self, letter: &Letter) -> Fate<'a> {
        if self.sent.is_empty() && self.in_doubt.is_empty() {
            return Fate::NotSent;
        }
        let names = [name_of(letter), name_without_time(letter)];
        if names.iter().any(|name| self.sent.contains(name.as_str())) {
            return Fate::Sent;
        }
        let run = names.iter().find_map(|name| self.in_doubt.get(name.as_str()).copied());
        run.map_or(Fate::NotSent, Fate::Unfinished)
    }

    /// The letter that was sent to the place of the refused record, if one was. After a topic was made anew another record may stand
    /// there.
    pub(super) fn origin(&self, letter: &Letter) -> Option<Origin<'a>> {
        // Others came in a record or because of one.
        if self.places.is_empty() || letter.source != letter.key.from.topic {
            return None;
        }
        let name = self.places.get(letter.key.to_string().as_str()).copied()?;
        let (key, rest) = name.split_once(' ')?;
        let (reason, _) = rest.rsplit_once(' ')?;
        Some(Origin { name, key, reason })
    }
}

#[cfg(test)]
mod tests {
    use deltalake::logstore::object_store::memory::InMemory;

    use super::super::tests::letter;
    use super::*;

    fn names(offsets: std::ops::Range<i64>) -> Vec<String> {
        offsets.map(|offset| name_of(&letter(offset, 7))).collect()
    }

    fn run(offsets: std::ops::Range<i64>) -> Run {
        Run::begun(names(offsets))
    }

    fn book() -> Book {
        Book { store: Arc::new(InMemory::new()) }
    }

    #[tokio::test]
    async fn of_two_runs_that_begin_at_once_with_the_same_letter_one_sends_nothing() {
        let book = book();
        let known = book.read(|_| false).await.expect("readable");
        book.begin("first", &run(0..3), &known).await.expect("nobody else has them");
        let error = book.begin("second", &run(2..5), &known).await.expect_err("2 is taken");
        let text = error.to_string();
        assert!(text.starts_with("_replays/first: ") && text.contains("send 1 of"), "{text}");
        book.begin("third", &run(3..5), &known).await.expect("the second has given them back");
        let known = book.read(|_| false).await.expect("readable");
        assert_eq!(known.keys().collect::<Vec<_>>(), ["first", "third"]);
        // Who knows of them and sends them all the same wants that.
        book.begin("again", &run(0..5), &known).await.expect("asked for");
    }

    #[tokio::test]
    async fn a_run_that_cannot_see_the_others_takes_its_file_back() {
        let book = book();
        book.store.put(&Path::from("odd"), b"{".to_vec().into()).await.expect("written");
        let error = book.begin("ours", &run(0..3), &Runs::new()).await.expect_err("odd");
        assert!(error.to_string().contains("nobody knows what was sent"), "{error}");
        let files = book.store.list_with_delimiter(None).await.expect("listed").objects;
        assert_eq!(files.len(), 1, "{files:?}");
    }

    #[tokio::test]
    async fn what_came_of_a_run_is_kept_and_a_run_that_sent_nothing_is_forgotten() {
        let book = book();
        let taken = BTreeMap::from([(name_of(&letter(0, 7)), Some("temperature/0/57".to_owned()))]);
        let ended = Run::ended(taken, &names(1..2));
        book.begin("half", &run(0..3), &Runs::new()).await.expect("begun");
        book.end("half", ended.as_ref()).await.expect("ended");
        book.begin("none", &run(5..6), &Runs::new()).await.expect("begun");
        book.end("none", Run::ended(BTreeMap::new(), &[]).as_ref()).await.expect("forgotten");
        let runs = book.read(|_| false).await.expect("readable");
        let history = History::of(&runs);
        let fates = [0, 1, 2, 5].map(|offset| history.fate(&letter(offset, 7)));
        assert_eq!(fates, [Fate::Sent, Fate::Unfinished("half"), Fate::NotSent, Fate::NotSent]);
        // Later it is sent after all.
        let later = Run::ended(BTreeMap::from([(name_of(&letter(1, 7)), None)]), &[]);
        let runs: Runs =
            runs.into_iter().chain([("later".to_owned(), later.expect("one"))]).collect();
        assert_eq!(History::of(&runs).fate(&letter(1, 7)), Fate::Sent);
    }

    #[test]
    fn of_two_letters_with_one_name_the_doubt_of_one_holds() {
        let name = name_of(&letter(1, 7));
        let ended = Run::ended(BTreeMap::from([(name.clone(), None)]), std::slice::from_ref(&name));
        assert_eq!(ended, Some(Run::begun(vec![name])));
    }

    #[test]
    fn letters_of_a_topic_that_was_made_anew_were_not_sent_before() {
        let sent = Run { state: State::Sent, ..run(0..3) };
        let runs = Runs::from([("one".to_owned(), sent)]);
        let history = History::of(&runs);
        assert_eq!(history.fate(&letter(2, 7)), Fate::Sent);
        assert_eq!(history.fate(&letter(3, 7)), Fate::NotSent, "another offset");
        assert_eq!(history.fate(&letter(2, 8)), Fate::NotSent, "refused at another time");
        // What an older version wrote down has no time, and no places.
        let old = br#"{"state":"sent","letters":["temperature/0/2 json"]}"#;
        let runs = Runs::from([("old".to_owned(), serde_json::from_slice(old).expect("a run"))]);
        assert_eq!(History::of(&runs).fate(&letter(2, 8)), Fate::Sent);
        let old = br#"{"state":"sending","letters":["temperature/0/2 json"]}"#;
        let runs = Runs::from([("old".to_owned(), serde_json::from_slice(old).expect("a run"))]);
        assert_eq!(History::of(&runs).fate(&letter(2, 8)), Fate::Unfinished("old"));
    }

    #[test]
    fn a_record_that_was_refused_again_is_known_as_a_copy() {
        let mut first = letter(2, 7);
        first.reason = "of two words".to_owned();
        let name = name_of(&first);
        let taken = BTreeMap::from([(name.clone(), Some("temperature/0/57".to_owned()))]);
        let runs = Runs::from([("one".to_owned(), Run::ended(taken, &[]).expect("one"))]);
        let history = History::of(&runs);
        let expected = Origin { name: &name, key: "temperature/0/2", reason: "of two words" };
        assert_eq!(history.origin(&letter(57, 9)), Some(expected));
        assert_eq!(history.origin(&letter(58, 9)), None);
        let alert = Letter { source: "alerts".to_owned(), ..letter(57, 9) };
        assert_eq!(history.origin(&alert), None, "it shares the record's place");
    }
}
