//! One table: its data files, then its log, then a look whether the copy holds what its log names.

use std::collections::{BTreeMap, BTreeSet};

use deltalake::kernel::Action;
use deltalake::logstore::get_actions;
use deltalake::logstore::object_store::path::Path;
use futures_util::stream::{self, StreamExt as _};
use serde::Deserialize;

use super::CopyError;
use super::files::{Check, Copied, End, Ends, FILES_AT_ONCE, FileError, Folder};
use super::mark::{self, Moved};
use super::plan::{HINT, LogPlan, commit_name, is_of_log, plan};
use crate::lake_reader::TableReader;
use crate::sink::delta::{LakeError, Location};
use crate::sink::maintenance::table_names;
use crate::sink::rows::TELEMETRY;

/// Folder of a table's log.
pub const LOG: &str = "_delta_log";
/// How often a table is begun anew because maintenance has deleted what was to be copied.
const ATTEMPTS_MAX: u32 = 5;

/// A table that is to be copied.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Files of its log.
    pub log: Folder,
    /// The last version that is copied.
    pub limit: u64,
}

/// What was done for one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCopy {
    /// Data files.
    pub data: Copied,
    /// Files of the log.
    pub log: Copied,
    /// Files of the copy that the source has no more.
    pub deleted: u64,
    /// The version that the copy has.
    pub version: u64,
}

impl TableCopy {
    /// Whether the copy is other than before.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.data.files + self.log.files + self.deleted > 0
    }
}

/// Source and copy of the whole lake, and how the copy is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Lakes<'a> {
    /// The storages.
    pub ends: &'a Ends,
    /// What is copied.
    pub source: &'a Location,
    /// The copy.
    pub copy: &'a Location,
    /// Every data file is looked at.
    pub is_full: bool,
}

impl Lakes<'_> {
    /// Looks at the log of a table; `None`: it is none.
    ///
    /// # Errors
    /// A storage refuses.
    pub async fn look_at(&self, name: &str) -> Result<Option<Wanted>, CopyError> {
        let log = self.ends.list(End::Source, &log_folder(name)).await?;
        if !log.names().any(is_of_log) {
            return Ok(None);
        }
        // After the listing: a mark that comes later is not among what was listed. The copy must not have it.
        let limit = if name == TELEMETRY { self.limit().await? } else { u64::MAX };
        Ok(Some(Wanted { name: name.to_owned(), log, limit }))
    }

    async fn limit(&self) -> Result<u64, LakeError> {
        let Some(table) = mark::load_telemetry(self.source).await? else { return Ok(u64::MAX) };
        Ok(mark::moved(&table)?.map_or(u64::MAX, |Moved { version, .. }| version))
    }

    /// Copies what the copy of a table lacks. `None`: the table has no log.
    ///
    /// # Errors
    /// A storage refuses, or somebody has written to the copy.
    pub async fn copy_table(&self, wanted: &Wanted) -> Result<Option<TableCopy>, CopyError> {
        let mut done = TableCopy::default();
        let mut wanted = wanted.clone();
        let mut is_full = self.is_full;
        let mut missing = String::new();
        for _ in 0..ATTEMPTS_MAX {
            match self.attempt(&wanted, is_full, &mut done).await? {
                Attempt::NoTable => return Ok(None),
                Attempt::Done => return Ok(Some(done)),
                // A newer version is as good: it names what took the place of what is gone.
                Attempt::Vanished(path) => {
                    missing = path;
                    let Some(newer) = self.look_at(&wanted.name).await? else { return Ok(None) };
                    wanted = newer;
                    is_full = true;
                }
            }
        }
        Err(CopyError::Missing { path: missing })
    }

    async fn attempt(
        &self,
        wanted: &Wanted,
        is_full: bool,
        done: &mut TableCopy,
    ) -> Result<Attempt, CopyError> {
        let Wanted { name, log, limit } = wanted;
        let copied_log = self.ends.list(End::Copy, &log_folder(name)).await?;
        let planned = plan(log.names(), copied_log.names(), *limit);
        let planned = planned.map_err(|source| CopyError::Log { table: name.clone(), source })?;
        let Some(plan) = planned else { return Ok(Attempt::NoTable) };
        self.check_same_log(name, log, &copied_log, plan.version).await?;
        done.version = plan.version;
        let mut is_walked = is_full || plan.begins_anew;
        if !is_walked {
            match self.added(name, &plan).await? {
                Added::Files(files) => done.data.add(self.copy_added(files).await?),
                Added::Vanished(path) => return Ok(Attempt::Vanished(path)),
                Added::Unknown => is_walked = true,
            }
        }
        if is_walked {
            done.data.add(self.walk(name).await?);
        }
        if let Some(path) = self.copy_log(name, &plan, &mut done.log).await? {
            return Ok(Attempt::Vanished(path));
        }
        self.copy_hint(name, log, &plan, &mut done.log).await?;
        for file in &plan.deletions {
            self.ends.delete(&log_folder(name).join(file.as_str())).await?;
            done.deleted += 1;
        }
        // What has vanished must not be in force: maintenance deletes only what is not.
        let has_vanished = std::mem::take(&mut done.data.vanished) > 0;
        if (is_walked || has_vanished) && table_names().contains(&name.as_str()) {
            return self.verify(name, plan.version, is_walked, done).await;
        }
        Ok(Attempt::Done)
    }

    /// The newest commit that both have is the same, or the copy has gone on by itself.
    async fn check_same_log(
        &self,
        name: &str,
        log: &Folder,
        copied_log: &Folder,
        version: u64,
    ) -> Result<(), CopyError> {
        let folder = log_folder(name);
        let is_common = |path: &&Path| log.files.contains_key(*path);
        let newest = commit_name(version);
        let commits = copied_log.files.keys().filter(|path| {
            path.filename().is_some_and(|name| name.len() == newest.len() && *name <= *newest)
        });
        let Some(path) = commits.filter(is_common).max() else { return Ok(()) };
        let (source, copy) = (End::Source, End::Copy);
        let (source, copy) =
            (self.ends.read(source, path).await?, self.ends.read(copy, path).await?);
        // One that was deleted meanwhile is summed up by a checkpoint.
        if source.is_some() && copy.is_some() && source != copy {
            let path = folder.join(path.filename().unwrap_or_default());
            return Err(CopyError::Diverged { path: path.to_string() });
        }
        Ok(())
    }

    /// Data files that the plan's commits name.
    async fn added(&self, name: &str, plan: &LogPlan) -> Result<Added, CopyError> {
        let mut files = BTreeSet::new();
        for version in &plan.continuation {
            let path = log_folder(name).join(commit_name(*version));
            let Some(bytes) = self.ends.read(End::Source, &path).await? else {
                return Ok(Added::Vanished(path.to_string()));
            };
            let actions = get_actions(*version, &bytes);
            let actions = actions.map_err(|source| LakeError::Table {
                table: name.to_owned(),
                source: Box::new(source),
            })?;
            for action in actions {
                match action {
                    Action::Add(add) if add.deletion_vector.is_some() => return Ok(Added::Unknown),
                    Action::Add(add) => drop(files.insert(below(name, &add.path))),
                    Action::Cdc(cdc) => drop(files.insert(below(name, &cdc.path))),
                    Action::Metadata(_)
                    | Action::Remove(_)
                    | Action::Txn(_)
                    | Action::Protocol(_)
                    | Action::CommitInfo(_)
                    | Action::DomainMetadata(_) => {}
                }
            }
        }
        Ok(Added::Files(files))
    }

    /// Copies files that are not there yet: a pass before may have been cut off.
    async fn copy_added(&self, files: BTreeSet<Path>) -> Result<Copied, FileError> {
        let asked = files.iter().map(|path| async move {
            let size = self.ends.size_of_copy(path).await?;
            Ok::<_, FileError>((path, size))
        });
        let mut asked = stream::iter(asked).buffer_unordered(FILES_AT_ONCE);
        let mut missing = Vec::new();
        while let Some(answer) = asked.next().await {
            let (path, size) = answer?;
            // A file of the copy is there as a whole or not at all.
            if size.is_none()
                || (self.ends.check == Check::Bytes && !self.ends.is_same(path).await?)
            {
                missing.push(path);
            }
        }
        self.ends.copy_files(missing).await
    }

    /// Copies every file below a table that is not of its log, folder by folder.
    async fn walk(&self, name: &str) -> Result<Copied, FileError> {
        let mut copied = Copied::default();
        let log = log_folder(name);
        let mut folders = vec![Path::from(name)];
        while let Some(folder) = folders.pop() {
            let source = self.ends.list(End::Source, &folder).await?;
            if folder != log {
                let copy = self.ends.list(End::Copy, &folder).await?;
                copied.add(self.ends.copy_folder(&source, &copy, self.ends.check).await?.0);
            }
            folders.extend(source.folders);
        }
        Ok(copied)
    }

    /// Commits one by one, so that a copy that is cut off has no hole. Gives the one that was deleted meanwhile.
    async fn copy_log(
        &self,
        name: &str,
        plan: &LogPlan,
        done: &mut Copied,
    ) -> Result<Option<String>, FileError> {
        let folder = log_folder(name);
        for file in &plan.copies {
            let path = folder.clone().join(file.as_str());
            let copied = self.ends.copy_files(vec![&path]).await?;
            if copied.vanished > 0 {
                return Ok(Some(path.to_string()));
            }
            done.add(copied);
        }
        Ok(None)
    }

    /// The hint may name a checkpoint only that is there.
    async fn copy_hint(
        &self,
        name: &str,
        log: &Folder,
        plan: &LogPlan,
        done: &mut Copied,
    ) -> Result<(), FileError> {
        #[derive(Deserialize)]
        struct Hint {
            version: u64,
        }
        let path = log_folder(name).join(HINT);
        if !log.files.contains_key(&path) {
            return Ok(());
        }
        let Some(bytes) = self.ends.read(End::Source, &path).await? else { return Ok(()) };
        // One that cannot be read is none for readers, too.
        let Ok(hint) = serde_json::from_slice::<Hint>(&bytes) else { return Ok(()) };
        let copied = self.ends.list(End::Copy, &log_folder(name)).await?;
        let begin = format!("{:020}.checkpoint.", hint.version);
        let is_there = copied.names().any(|file| file.starts_with(&begin));
        if hint.version > plan.version || !is_there {
            return Ok(());
        }
        if self.ends.read(End::Copy, &path).await?.as_ref() != Some(&bytes) {
            let size = bytes.len() as u64;
            self.ends.write(&path, bytes).await?;
            done.add(Copied { files: 1, bytes: size, vanished: 0 });
        }
        Ok(())
    }

    /// Loads the copy as any reader does and looks whether each file in force is there with its size. Files that neither the
    /// source nor the copy's log has go: they hold what was deleted since.
    async fn verify(
        &self,
        name: &str,
        version: u64,
        is_walked: bool,
        done: &mut TableCopy,
    ) -> Result<Attempt, CopyError> {
        let found = TableReader::find(self.copy, name).await?;
        let Some(mut table) = found else {
            return Ok(Attempt::Vanished(log_folder(name).to_string()));
        };
        let loaded = table.load().await?;
        if loaded != version {
            return Err(CopyError::Version { table: name.to_owned(), found: loaded, version });
        }
        let mut active: BTreeMap<Path, BTreeMap<Path, u64>> = BTreeMap::new();
        for file in table.files()? {
            let path = below(name, file.path.as_ref());
            let folder = parent(&path);
            active.entry(folder).or_default().insert(path, file.bytes);
        }
        let log = log_folder(name);
        let mut folders = vec![Path::from(name)];
        while let Some(folder) = folders.pop() {
            if folder == log {
                continue;
            }
            let copy = self.ends.list(End::Copy, &folder).await?;
            let wanted = active.remove(&folder).unwrap_or_default();
            let missing = wanted.iter().find(|(path, size)| copy.files.get(*path) != Some(*size));
            if let Some((path, _)) = missing {
                return Ok(Attempt::Vanished(path.to_string()));
            }
            if is_walked {
                let source = self.ends.list(End::Source, &folder).await?;
                let files = copy.files.keys();
                let gone = files.filter(|path| {
                    !source.files.contains_key(*path) && !wanted.contains_key(*path)
                });
                for path in gone {
                    self.ends.delete(path).await?;
                    done.deleted += 1;
                }
            }
            folders.extend(copy.folders);
        }
        // Folders that the copy does not have.
        Ok(match active.into_values().flat_map(BTreeMap::into_keys).next() {
            Some(path) => Attempt::Vanished(path.to_string()),
            None => Attempt::Done,
        })
    }
}

/// What came of one attempt.
enum Attempt {
    Done,
    NoTable,
    /// This was deleted before it could be copied.
    Vanished(String),
}

/// Which files commits have added.
enum Added {
    Files(BTreeSet<Path>),
    /// They do not name all that belongs to them.
    Unknown,
    /// This commit is gone.
    Vanished(String),
}

/// Folder of a table's log, below the lake.
#[must_use]
pub fn log_folder(table: &str) -> Path {
    Path::from(table).join(LOG)
}

/// A path of a table's log, below the lake. What stands in it is kept as it is.
fn below(table: &str, path: &str) -> Path {
    let whole = format!("{table}/{path}");
    Path::parse(&whole).unwrap_or_else(|_| Path::from(whole.as_str()))
}

fn parent(path: &Path) -> Path {
    let text = path.as_ref();
    let folder = text.rfind('/').map_or("", |end| &text[..end]);
    Path::parse(folder).unwrap_or_default()
}
