//! One pass over a lake: what the copy lacks is copied, what the source has deleted goes.
//!
//! All logs are looked at first, that of `telemetry` last: an epoch is in it before it is in the others. The states follow, since what
//! its commits name was there before them, and `telemetry` is copied last.

use std::collections::BTreeMap;

use deltalake::logstore::object_store::path::Path;

use super::files::{Check, Copied, End, Ends, FileError, Folder};
use super::table::{Lakes, TableCopy};
use super::{CopyError, mark};
use crate::sink::rows::TELEMETRY;

/// Who keeps house at the source is nothing to the copy.
const LEFT_OUT: [&str; 2] = ["_maintenance", mark::FOLDER];
/// Files that are written once; there are many of them.
const STATES: &str = "_state";
/// What a process writes to see whether it can.
const PROBE: &str = ".writable-";

/// Whether a file of a lake's root is part of the lake.
#[must_use]
pub fn is_of_lake(path: &Path) -> bool {
    path.filename().is_some_and(|name| !name.starts_with(PROBE))
}

/// What a pass has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// By table.
    pub tables: BTreeMap<String, TableCopy>,
    /// Files that belong to no table.
    pub others: Copied,
    /// Of these: files that the source has no more.
    pub deleted: u64,
}

impl Pass {
    /// Whether the copy is other than before.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.others.files + self.deleted > 0 || self.tables.values().any(TableCopy::has_changed)
    }
}

/// Copies what the copy lacks; of `telemetry` no more than went with a move.
///
/// # Errors
/// See [`CopyError`]. What was copied stays, and another pass goes on.
pub async fn pass(lakes: &Lakes<'_>) -> Result<Pass, CopyError> {
    let ends = lakes.ends;
    let root = ends.list(End::Source, &Path::default()).await?;
    let mut pass = Pass::default();
    let mut tables = Vec::new();
    let mut plain = Vec::new();
    for folder in &root.folders {
        let Some(name) = folder.filename().filter(|name| !LEFT_OUT.contains(name)) else {
            continue;
        };
        if name == TELEMETRY {
            continue;
        }
        match lakes.look_at(name).await? {
            Some(table) => tables.push(table),
            None => plain.push(folder.clone()),
        }
    }
    tables.push(lakes.look_at(TELEMETRY).await?.ok_or(CopyError::NoTable)?);
    let gone = copy_plain(ends, &root, plain, &mut pass.others).await?;
    for table in &tables {
        if let Some(done) = lakes.copy_table(table).await? {
            pass.tables.insert(table.name.clone(), done);
        }
    }
    // Last: commits of the copy may have named them until now.
    for path in &gone {
        ends.delete(path).await?;
        pass.deleted += 1;
    }
    Ok(pass)
}

/// Copies what belongs to no table. Gives what only the copy has in these folders.
async fn copy_plain(
    ends: &Ends,
    root: &Folder,
    mut folders: Vec<Path>,
    copied: &mut Copied,
) -> Result<Vec<Path>, FileError> {
    let files = root.files.iter().filter(|(path, _)| is_of_lake(path));
    let files = files.map(|(path, size)| (path.clone(), *size)).collect();
    let source = Folder { files, folders: Vec::new() };
    let copy = ends.list(End::Copy, &Path::default()).await?;
    copied.add(ends.copy_folder(&source, &copy, Check::Bytes).await?.0);
    let mut gone = Vec::new();
    while let Some(folder) = folders.pop() {
        let source = ends.list(End::Source, &folder).await?;
        let copy = ends.list(End::Copy, &folder).await?;
        let is_state = folder.as_ref() == STATES;
        let check = if is_state { ends.check } else { Check::Bytes };
        let (done, extra) = ends.copy_folder(&source, &copy, check).await?;
        copied.add(done);
        gone.extend(extra);
        folders.extend(source.folders);
    }
    Ok(gone)
}
