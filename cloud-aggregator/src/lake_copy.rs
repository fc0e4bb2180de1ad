//! `lake copy`: takes a lake from one storage to another while aggregators write it.
//!
//! A pass copies what the copy lacks; it can be cut off anywhere and repeated any number of times, and each later one has less to do.
//! Of a table the data files come first, then the commits in their order, then the checkpoints: what a log of the copy names is there.
//!
//! `--final` ends the move. A commit at exactly the version of `telemetry` that was copied marks the old place (`mark`): whoever writes
//! there runs into it, since every epoch begins with a commit on `telemetry`, and stops. What its last epoch still brings to other tables
//! is copied after the mark, or rolled forward at the new place from the state file. Until all is there the new place is marked as
//! unfinished, and no aggregator starts on it. `--reopen` takes a move back as long as nothing was written at the new place.

pub mod files;
pub mod mark;
pub mod pass;
pub mod plan;
pub mod table;

use std::io::{self, Write};
use std::path::Path as FolderPath;

use deltalake::logstore::object_store::path::Path;

use crate::config::{self, Settings, SettingsError};
use crate::lake_reader::TableReader;
use crate::sink::delta::{LakeError, Location};
use crate::sink::maintenance::table_names;
use crate::sink::rows::TELEMETRY;
use files::{Check, End, Ends, FileError};
use mark::Moved;
use pass::{Pass, is_of_lake, pass};
use plan::PlanError;
use table::{Lakes, TableCopy, Wanted, log_folder};

/// So many passes may find something new before it is told that the source does not hold still.
const ROUNDS_MAX: u32 = 20;
/// So often `telemetry` may be committed to while its last commits are copied, before it is told the same.
const MARK_ATTEMPTS_MAX: u32 = 100;
const MEBIBYTE: f64 = 1_048_576.0;
/// The command line asks for something that cannot be (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;
/// A storage cannot be read or written (`EX_IOERR`).
const EXIT_STORAGE: u8 = 74;
/// The lake does not hold still (`EX_TEMPFAIL`).
const EXIT_TEMPORARY: u8 = 75;
/// It is the wrong place (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;

/// Why a lake was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A table cannot be read or marked.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A file was not copied.
    #[error(transparent)]
    File(#[from] FileError),
    /// The settings of the new place are wrong.
    #[error("configuration of the copy")]
    Settings(#[from] SettingsError),
    /// Nobody said where to.
    #[error("give --to, --to-config, or both")]
    NoPlace,
    /// A place cannot be named.
    #[error("{location}")]
    Place {
        /// The place.
        location: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A copy into itself would never end.
    #[error("{to} and {from} are the same place, or one lies in the other")]
    SamePlace {
        /// What is copied.
        from: String,
        /// Where to.
        to: String,
    },
    /// There is no lake.
    #[error("there is no table {TELEMETRY}: check lake.location")]
    NoTable,
    /// Something is there that is no copy of ours.
    #[error("{to} is not empty and no unfinished copy of a lake: give an empty place")]
    NotEmpty {
        /// Where to.
        to: String,
    },
    /// A copy of another lake is there.
    #[error("{to} is an unfinished copy of {other}: give an empty place")]
    OtherSource {
        /// Where to.
        to: String,
        /// What it is a copy of.
        other: String,
    },
    /// The lake has gone elsewhere.
    #[error("this lake was moved to {to}")]
    MovedElsewhere {
        /// Where to.
        to: String,
    },
    /// There is no move to take back.
    #[error("this lake was not moved: there is nothing to take back")]
    NotMoved,
    /// Both places would count the same records.
    #[error(
        "{to} has gone on since the move ({table}): copy it back into an empty place instead, or records would be counted twice"
    )]
    GoneOn {
        /// The new place.
        to: String,
        /// The table that has.
        table: String,
    },
    /// The log of a table cannot be copied.
    #[error("table {table}")]
    Log {
        /// Name of the table.
        table: String,
        /// Why.
        #[source]
        source: PlanError,
    },
    /// Somebody has written to the copy.
    #[error(
        "{path} is another commit in the copy: somebody has written to it, give an empty place"
    )]
    Diverged {
        /// The commit.
        path: String,
    },
    /// The copy is not what it should be.
    #[error("table {table} is at version {found} in the copy, {version} was copied")]
    Version {
        /// Name of the table.
        table: String,
        /// The version that a reader finds.
        found: u64,
        /// The version that was copied.
        version: u64,
    },
    /// A table names what cannot be copied.
    #[error(
        "{path} is not there, or not with the size that its table names: it is damaged, or deleted faster than it is copied"
    )]
    Missing {
        /// The file or folder.
        path: String,
    },
    /// Others write faster than is copied.
    #[error(
        "{what} does not hold still: stop who writes or maintains the lake, and run this again"
    )]
    Restless {
        /// What.
        what: String,
    },
    /// Nobody takes the output.
    #[error("the report cannot be written")]
    Output(#[from] io::Error),
}

impl CopyError {
    /// What the process ends with (sysexits.h).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoPlace | Self::SamePlace { .. } => EXIT_USAGE,
            Self::Lake(_)
            | Self::File(_)
            | Self::Place { .. }
            | Self::NoTable
            | Self::Log { .. }
            | Self::Diverged { .. }
            | Self::Missing { .. }
            | Self::Version { .. } => EXIT_STORAGE,
            Self::Restless { .. } => EXIT_TEMPORARY,
            Self::Settings(_)
            | Self::NotEmpty { .. }
            | Self::OtherSource { .. }
            | Self::MovedElsewhere { .. }
            | Self::NotMoved
            | Self::GoneOn { .. } => EXIT_CONFIG,
            Self::Output(_) => 1,
        }
    }
}

/// How it is done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Ends the move.
    pub is_final: bool,
    /// Also compares the bytes of data files that are there already, and copies those anew that differ.
    pub compares_bytes: bool,
}

/// The settings of the new place: those of another file, or those of this lake with another location.
///
/// # Errors
/// Neither is given, or the file is wrong.
pub fn target(
    lake: &config::Lake,
    to: Option<&str>,
    to_config: Option<&FolderPath>,
) -> Result<config::Lake, CopyError> {
    let mut target = match (to_config, to) {
        (Some(file), _) => Settings::load(Some(file))?.lake,
        (None, Some(_)) => lake.clone(),
        (None, None) => return Err(CopyError::NoPlace),
    };
    if let Some(to) = to {
        to.clone_into(&mut target.location);
    }
    Ok(target)
}

/// The two places, opened.
#[derive(Debug)]
struct Places {
    from: String,
    to: String,
    source: Location,
    copy: Location,
    ends: Ends,
}

impl Places {
    fn open(
        from: &config::Lake,
        to: &config::Lake,
        options: Options,
        marks_source: bool,
    ) -> Result<Self, CopyError> {
        check_apart(&place_of(&from.location)?, &place_of(&to.location)?)?;
        // A lake that is not there must not be made.
        let source = Location::existing(from)?;
        let source = if marks_source { Location::open(from)? } else { source };
        let copy = Location::open(to)?;
        // Once more: a link may lead to the same folder.
        let (from_place, to_place) = (real_place(from, &source)?, real_place(to, &copy)?);
        check_apart(&from_place, &to_place)?;
        let ends = Ends {
            source: source.store("")?.object_store(),
            copy: copy.store("")?.object_store(),
            copy_folder: copy.folder.clone(),
            limit: from.operation_timeout.max(to.operation_timeout),
            check: if options.compares_bytes { Check::Bytes } else { Check::Size },
        };
        Ok(Self { from: from_place, to: to_place, source, copy, ends })
    }

    /// Where the source was moved to, if it was.
    async fn moved(&self) -> Result<Option<Moved>, CopyError> {
        let table = mark::load_telemetry(&self.source).await?.ok_or(CopyError::NoTable)?;
        mark::moved(&table)?.map(|moved| self.checked(moved)).transpose()
    }

    /// A mark that leads to this copy.
    fn checked(&self, moved: Moved) -> Result<Moved, CopyError> {
        if moved.to == self.to {
            return Ok(moved);
        }
        Err(CopyError::MovedElsewhere { to: moved.to })
    }

    /// Takes an empty place, or goes on with a copy of the same lake. False: it is finished.
    async fn begin(&self, moved: Option<&Moved>) -> Result<bool, CopyError> {
        match mark::unfinished(&self.copy).await? {
            Some(found) if found.from == self.from => return Ok(true),
            Some(found) => {
                return Err(CopyError::OtherSource { to: self.to.clone(), other: found.from });
            }
            None => {}
        }
        let present = self.ends.list(End::Copy, &Path::default()).await?;
        let has_files = present.files.keys().any(is_of_lake);
        if !has_files && !self.has_files(present.folders).await? {
            let (path, bytes) = mark::unfinished_file(&self.from)?;
            self.ends.write(&path, bytes).await?;
            return Ok(true);
        }
        match moved {
            Some(_) => Ok(false),
            None => Err(CopyError::NotEmpty { to: self.to.clone() }),
        }
    }

    /// Whether anything but folders is there, as a storage that knows folders keeps them.
    async fn has_files(&self, mut folders: Vec<Path>) -> Result<bool, FileError> {
        while let Some(folder) = folders.pop() {
            let found = self.ends.list(End::Copy, &folder).await?;
            if !found.files.is_empty() {
                return Ok(true);
            }
            folders.extend(found.folders);
        }
        Ok(false)
    }

    async fn pass(&self, is_full: bool) -> Result<Pass, CopyError> {
        let Self { ends, source, copy, .. } = self;
        pass(&Lakes { ends, source, copy, is_full }).await
    }

    /// A pass, then `telemetry` alone until it stands still for as long as it takes to mark it. Gives the version that goes along.
    async fn mark(&self, out: &mut impl Write) -> Result<Moved, CopyError> {
        if let Some(moved) = self.moved().await? {
            return Ok(moved);
        }
        tell(&self.pass(true).await?, out)?;
        let Self { ends, source, copy, .. } = self;
        let lakes = Lakes { ends, source, copy, is_full: false };
        let mut table = mark::load_telemetry(source).await?.ok_or(CopyError::NoTable)?;
        for _ in 0..MARK_ATTEMPTS_MAX {
            let log = ends.list(End::Source, &log_folder(TELEMETRY)).await?;
            mark::refresh(source, &mut table).await?;
            // A mark whose answer was lost is found here.
            if let Some(moved) = mark::moved(&table)? {
                return self.checked(moved);
            }
            let wanted = Wanted { name: TELEMETRY.to_owned(), log, limit: u64::MAX };
            let done = lakes.copy_table(&wanted).await?.ok_or(CopyError::NoTable)?;
            let version = done.version;
            if table.version() == Some(version)
                && mark::mark_loaded(source, table.clone(), version, Some(&self.to)).await?
            {
                return Ok(Moved { to: self.to.clone(), version });
            }
        }
        Err(CopyError::Restless { what: format!("table {TELEMETRY}") })
    }

    /// Passes until one finds nothing new: the source has not moved while the last one looked at it.
    async fn catch_up(&self, out: &mut impl Write) -> Result<Pass, CopyError> {
        for _ in 0..ROUNDS_MAX {
            let done = self.pass(false).await?;
            if !done.has_changed() {
                return Ok(done);
            }
            tell(&done, out)?;
        }
        Err(CopyError::Restless { what: self.from.clone() })
    }

    /// Whether readers find in the copy what was copied. The table that is not is an error.
    async fn prove(&self, done: &Pass) -> Result<(), CopyError> {
        for (name, copied) in &done.tables {
            if !table_names().contains(&name.as_str()) {
                continue;
            }
            let found = version_of(&self.copy, name).await?.unwrap_or(0);
            if found != copied.version {
                let (table, version) = (name.clone(), copied.version);
                return Err(CopyError::Version { table, found, version });
            }
        }
        Ok(())
    }
}

/// Copies a lake, or ends its move.
///
/// # Errors
/// See [`CopyError`]. What was copied stays; another run goes on.
pub async fn copy(
    from: &config::Lake,
    to: &config::Lake,
    options: Options,
    out: &mut impl Write,
) -> Result<(), CopyError> {
    let places = Places::open(from, to, options, options.is_final)?;
    let moved = places.moved().await?;
    if !places.begin(moved.as_ref()).await? {
        writeln!(out, "{} was moved to {} before", places.from, places.to)?;
        return Ok(());
    }
    if !options.is_final {
        let done = places.pass(options.compares_bytes).await?;
        tell(&done, out)?;
        writeln!(out, "{} is copied as far as it was written; --final ends the move", places.from)?;
        return Ok(());
    }
    let moved = places.mark(out).await?;
    let done = places.catch_up(out).await?;
    places.prove(&done).await?;
    let (path, _) = mark::unfinished_file(&places.from)?;
    places.ends.delete(&path).await?;
    // It must not come back after a power cut: the new place goes on from here.
    places.ends.sync_folder(&Path::from(mark::FOLDER)).await?;
    writeln!(
        out,
        "{} was moved to {}, {TELEMETRY} at version {}: start aggregators with lake.location there",
        places.from, places.to, moved.version
    )?;
    Ok(())
}

/// Takes a move back, if nothing was written at the new place.
///
/// # Errors
/// There was no move, or the new place has gone on.
pub async fn reopen(
    from: &config::Lake,
    to: &config::Lake,
    out: &mut impl Write,
) -> Result<(), CopyError> {
    let places = Places::open(from, to, Options::default(), true)?;
    let Some(moved) = places.moved().await? else { return Err(CopyError::NotMoved) };
    // A copy that is not finished was never written to.
    if mark::unfinished(&places.copy).await?.is_none() {
        places.close_copy(&moved).await?;
    }
    for _ in 0..ROUNDS_MAX {
        let Some(version) = version_of(&places.source, TELEMETRY).await? else {
            return Err(CopyError::NoTable);
        };
        if mark::mark(&places.source, version, None).await? {
            writeln!(out, "{} is written again; {} is not", places.from, places.to)?;
            return Ok(());
        }
    }
    Err(CopyError::Restless { what: format!("table {TELEMETRY}") })
}

impl Places {
    /// Marks the new place as one that is not written, if it still is what was copied.
    async fn close_copy(&self, moved: &Moved) -> Result<(), CopyError> {
        let gone_on =
            |table: &str| CopyError::GoneOn { to: self.to.clone(), table: table.to_owned() };
        let copy = mark::load_telemetry(&self.copy).await?.ok_or_else(|| gone_on(TELEMETRY))?;
        // This was begun before and cut off.
        if mark::moved(&copy)?.is_some_and(|back| back.to == self.from) {
            return Ok(());
        }
        for name in table_names() {
            let expected = match name == TELEMETRY {
                true => Some(moved.version),
                false => version_of(&self.source, name).await?,
            };
            // An empty table that the new place has made holds nothing.
            if version_of(&self.copy, name).await?.unwrap_or(0) != expected.unwrap_or(0) {
                return Err(gone_on(name));
            }
        }
        match mark::mark(&self.copy, moved.version, Some(&self.from)).await? {
            true => Ok(()),
            false => Err(gone_on(TELEMETRY)),
        }
    }
}

/// Newest version of a table; `None`: there is none.
async fn version_of(location: &Location, name: &str) -> Result<Option<u64>, LakeError> {
    match TableReader::find(location, name).await? {
        Some(mut table) => table.load().await.map(Some),
        None => Ok(None),
    }
}

/// A place as it is named from now on: the same for all spellings of a folder.
fn place_of(location: &str) -> Result<String, CopyError> {
    let plain = location.strip_prefix("file://").unwrap_or(location);
    if plain.contains("://") {
        return Ok(plain.trim_end_matches('/').to_owned());
    }
    let failed = |source| CopyError::Place { location: location.to_owned(), source };
    let folder = std::path::absolute(plain).map_err(failed)?;
    Ok(folder.to_string_lossy().trim_end_matches('/').to_owned())
}

fn real_place(lake: &config::Lake, location: &Location) -> Result<String, CopyError> {
    let Some(folder) = &location.folder else { return place_of(&lake.location) };
    let failed = |source| CopyError::Place { location: lake.location.clone(), source };
    Ok(folder.canonicalize().map_err(failed)?.to_string_lossy().into_owned())
}

fn check_apart(from: &str, to: &str) -> Result<(), CopyError> {
    let (left, right) = (format!("{from}/"), format!("{to}/"));
    if left.starts_with(&right) || right.starts_with(&left) {
        return Err(CopyError::SamePlace { from: from.to_owned(), to: to.to_owned() });
    }
    Ok(())
}

fn tell(pass: &Pass, out: &mut impl Write) -> io::Result<()> {
    for (name, TableCopy { data, log, deleted, version }) in &pass.tables {
        let mebibytes = data.bytes as f64 / MEBIBYTE;
        let (files, entries) = (data.files, log.files);
        write!(
            out,
            "{name}: {files} data files ({mebibytes:.1} MiB) and {entries} files of the log copied"
        )?;
        if *deleted > 0 {
            write!(out, ", {deleted} deleted")?;
        }
        writeln!(out, "; version {version}")?;
    }
    writeln!(out, "{} other files copied, {} deleted", pass.others.files, pass.deleted)?;
    // Whoever waits for a long copy is to see that it goes on.
    out.flush()
}

#[cfg(test)]
mod tests;
