//! Rows that are taken out of the tables on request, file by file, while others append and merge.

use std::collections::BTreeSet;
use std::time::Duration;

use aggregator_core::ProcessingTime;
use deltalake::logstore::object_store::path::Path;

use super::upkeep::{Rewritten, Upkeep};
use super::{Clock, TABLES};
use crate::config;
use crate::forget::book::{Book, app_id};
use crate::forget::edit::{Edit, Touched};
use crate::lake_copy::mark::{check_finished, check_not_moved, load_telemetry};
use crate::lake_reader::{DataFile, TableReader};
use crate::sink::delta::{LakeError, Location};

/// How often a table is read again because rows have come or files were merged meanwhile.
const ROUNDS_MAX: u32 = 20;
/// Commits that are younger stay when a log is shortened at once: who writes the table reads them within an epoch.
const LOG_GRACE: Duration = Duration::from_secs(60);
/// Tables that are not merged are put into the order of their rules.
const KEYS: &[&str] = &["rule"];

/// What was done in one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgot {
    /// Rows that were deleted or changed, or would be.
    pub touched: Touched,
    /// Files that held them.
    pub files: u64,
    /// Files deleted at once.
    pub purged_files: u64,
    /// Commits and log checkpoints deleted at once.
    pub log_files: u64,
}

/// Takes rows out of one lake.
#[derive(Debug)]
pub struct Forgetting {
    location: Location,
    book: Book,
    settings: config::Maintenance,
    operation_timeout: Duration,
}

impl Forgetting {
    /// Opens a lake that is there, and where aggregators write.
    ///
    /// # Errors
    /// It is not, or was moved, or the storage's options are wrong.
    pub async fn open(
        lake: &config::Lake,
        settings: &config::Maintenance,
        is_dry_run: bool,
    ) -> Result<Self, LakeError> {
        // A lake that is not there must not be made, and who only counts need not be able to write.
        let existing = Location::existing(lake)?;
        let location = if is_dry_run { existing } else { Location::open(lake)? };
        check_finished(&location).await?;
        if let Some(telemetry) = load_telemetry(&location).await? {
            check_not_moved(&telemetry)?;
        }
        Ok(Self {
            book: Book::open(&location)?,
            location,
            settings: settings.clone(),
            operation_timeout: lake.operation_timeout,
        })
    }

    /// Which files of a table hold rows that `edit` touches, and how many. `None`: there is no such table. Files in `clean` are not
    /// read; those that hold none are added to it.
    async fn look(
        &self,
        name: &'static str,
        edit: &Edit,
        clean: &mut BTreeSet<Path>,
    ) -> Result<Option<Vec<(DataFile, Touched)>>, LakeError> {
        let Some(mut table) = TableReader::find(&self.location, name).await? else {
            return Ok(None);
        };
        table.load().await?;
        let columns = |source| LakeError::Columns { table: name.to_owned(), source };
        let mut found = Vec::new();
        for file in table.files()? {
            if clean.contains(&file.path) {
                continue;
            }
            let mut touched = Touched::default();
            let columns_read = edit.columns();
            let reading = table.read(&file, &columns_read, |batch| {
                touched.add(&edit.apply(batch).map_err(columns)?.1);
                Ok(())
            });
            reading.await?;
            if touched.is_empty() {
                clean.insert(file.path);
            } else {
                found.push((file, touched));
            }
        }
        Ok(Some(found))
    }

    /// Counts the rows that would be touched. `None`: there is no such table.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn count(
        &self,
        name: &'static str,
        edit: &Edit,
    ) -> Result<Option<Forgot>, LakeError> {
        let Some(found) = self.look(name, edit, &mut BTreeSet::new()).await? else {
            return Ok(None);
        };
        let mut forgot = Forgot::default();
        for (_, touched) in &found {
            forgot.files += 1;
            forgot.touched.add(touched);
        }
        Ok(Some(forgot))
    }

    /// Writes every file that holds such rows again without them. `None`: there is no such table.
    ///
    /// # Errors
    /// The storage refuses, or such rows keep coming.
    pub async fn run(
        &self,
        clock: &Clock,
        name: &'static str,
        edit: &Edit,
    ) -> Result<Option<Forgot>, LakeError> {
        let mut forgot = Forgot::default();
        let mut clean = BTreeSet::new();
        let Some(mut upkeep) = self.upkeep(name).await? else { return Ok(None) };
        for _ in 0..ROUNDS_MAX {
            let Some(found) = self.look(name, edit, &mut clean).await? else { return Ok(None) };
            if found.is_empty() {
                return Ok(Some(forgot));
            }
            for (file, touched) in found {
                if self.rewrite(&mut upkeep, clock(), &file, edit, &touched).await? {
                    forgot.files += 1;
                    forgot.touched.add(&touched);
                }
            }
        }
        Err(LakeError::Rows {
            table: name.to_owned(),
            text: format!(
                "rows to be forgotten were still found in round {ROUNDS_MAX}: stop who sends them, and run this again"
            ),
        })
    }

    async fn upkeep(&self, name: &'static str) -> Result<Option<Upkeep>, LakeError> {
        let keys = TABLES.iter().find(|(table, _)| *table == name).map_or(KEYS, |(_, keys)| keys);
        let keys = if keys.is_empty() { KEYS } else { keys };
        Upkeep::open(&self.location, name, keys, self.operation_timeout).await
    }

    /// False: the file is gone; its rows stand in another.
    async fn rewrite(
        &self,
        upkeep: &mut Upkeep,
        now: ProcessingTime,
        file: &DataFile,
        edit: &Edit,
        touched: &Touched,
    ) -> Result<bool, LakeError> {
        let entry = self.book.write(upkeep.name(), touched).await?;
        let app_id = app_id(&entry);
        let apply = |batch| Ok(edit.apply(&batch)?.0);
        let rows_less = touched.deleted;
        let settings = &self.settings;
        let done = upkeep.rewrite(&file.path, rows_less, &app_id, settings, now, apply).await?;
        match done {
            Rewritten::Done => Ok(true),
            Rewritten::Gone => {
                self.book.take_back(&entry).await?;
                Ok(false)
            }
        }
    }

    /// Deletes at once what commits have removed from a table.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn purge(
        &self,
        clock: &Clock,
        name: &'static str,
        forgot: &mut Forgot,
    ) -> Result<(), LakeError> {
        let Some(mut upkeep) = self.upkeep(name).await? else { return Ok(()) };
        let (files, log_files) = upkeep.purge(clock(), LOG_GRACE).await?;
        forgot.purged_files += files;
        forgot.log_files += log_files;
        Ok(())
    }
}
