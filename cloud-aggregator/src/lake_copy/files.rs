//! Files from one storage to another: a few at a time, in pieces, each whole or not there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{
    Error as StoreError, GetResult, ObjectStore, ObjectStoreExt as _, Result as StoreResult,
};
use futures_util::stream::{self, BoxStream, StreamExt as _};

/// Files that are on their way at the same time.
pub const FILES_AT_ONCE: usize = 8;
/// Larger files go in pieces of this size; so much of each file on its way is in memory.
pub const PIECE_BYTES: usize = 8 << 20;

/// Why a file was not copied.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A storage refuses.
    #[error("the {end} does not answer for {path}")]
    Store {
        /// Which of the two.
        end: End,
        /// The file or folder.
        path: String,
        /// What it says.
        #[source]
        source: StoreError,
    },
    /// A storage did not answer in time.
    #[error("the {end} did not answer for {path} within {seconds} s (lake.operation-timeout)")]
    Timeout {
        /// Which of the two.
        end: End,
        /// The file or folder.
        path: String,
        /// The limit.
        seconds: u64,
    },
    /// Not all of a file has arrived.
    #[error("{path} has {found} bytes in the copy instead of {expected}")]
    Size {
        /// The file.
        path: String,
        /// Bytes at the source.
        expected: u64,
        /// Bytes in the copy.
        found: u64,
    },
    /// A file of the copy cannot be synced.
    #[error("the copy cannot be synced: {text}")]
    Sync {
        /// Why.
        text: String,
    },
}

/// Which of the two storages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// What is copied.
    Source,
    /// Where to.
    Copy,
}

impl std::fmt::Display for End {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Source => "source",
            Self::Copy => "copy",
        })
    }
}

/// When a file of the copy is the same as that of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// When it has as many bytes: files that are written once.
    Size,
    /// When it has the same bytes: both are read.
    Bytes,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were deleted before they could be copied.
    pub vanished: u64,
}

impl Copied {
    /// Adds what else was copied.
    pub fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.vanished += other.vanished;
    }
}

/// What lies in a folder, without what lies deeper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    /// Files and their sizes, by path.
    pub files: BTreeMap<Path, u64>,
    /// Folders in it.
    pub folders: Vec<Path>,
}

impl Folder {
    /// Names of its files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().filter_map(Path::filename)
    }
}

/// Source and copy.
#[derive(Clone, Debug)]
pub struct Ends {
    /// What is copied.
    pub source: Arc<dyn ObjectStore>,
    /// Where to.
    pub copy: Arc<dyn ObjectStore>,
    /// The folder of the copy on this machine, if it is one: what was copied is synced.
    pub copy_folder: Option<PathBuf>,
    /// Wait for one operation.
    pub limit: Duration,
    /// Of files that are written once.
    pub check: Check,
}

impl Ends {
    fn store(&self, end: End) -> &Arc<dyn ObjectStore> {
        match end {
            End::Source => &self.source,
            End::Copy => &self.copy,
        }
    }

    async fn within<T>(
        &self,
        end: End,
        path: &Path,
        work: impl Future<Output = StoreResult<T>>,
    ) -> Result<T, FileError> {
        match tokio::time::timeout(self.limit, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(FileError::Store { end, path: path.to_string(), source }),
            Err(_) => {
                let seconds = self.limit.as_secs();
                Err(FileError::Timeout { end, path: path.to_string(), seconds })
            }
        }
    }

    /// What lies in a folder; nothing if it is not there.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn list(&self, end: End, folder: &Path) -> Result<Folder, FileError> {
        let prefix = (folder.as_ref() != "").then_some(folder);
        let listing = self.store(end).list_with_delimiter(prefix);
        let listed = match found(self.within(end, folder, listing).await)? {
            Some(listed) => listed,
            None => return Ok(Folder::default()),
        };
        let files = listed.objects.into_iter().map(|object| (object.location, object.size));
        Ok(Folder { files: files.collect(), folders: listed.common_prefixes })
    }

    /// The bytes of a small file; `None` if it is not there.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn read(&self, end: End, path: &Path) -> Result<Option<Bytes>, FileError> {
        let reading = async { self.store(end).get(path).await?.bytes().await };
        found(self.within(end, path, reading).await)
    }

    /// Writes a small file of the copy and syncs it.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn write(&self, path: &Path, bytes: Bytes) -> Result<(), FileError> {
        let writing = self.copy.put(path, bytes.into());
        self.within(End::Copy, path, writing).await?;
        self.sync(&[path]).await
    }

    /// Deletes a file of the copy; one that is gone already is no error.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn delete(&self, path: &Path) -> Result<(), FileError> {
        let deleting = self.copy.delete(path);
        found(self.within(End::Copy, path, deleting).await).map(drop)
    }

    /// Makes sure that what was deleted in a folder of the copy stays so.
    ///
    /// # Errors
    /// The folder cannot be synced.
    pub async fn sync_folder(&self, folder: &Path) -> Result<(), FileError> {
        self.sync(&[folder]).await
    }

    /// Size of a file of the copy; `None` if it is not there.
    ///
    /// # Errors
    /// The storage refuses.
    pub async fn size_of_copy(&self, path: &Path) -> Result<Option<u64>, FileError> {
        let asking = async { self.copy.head(path).await.map(|meta| meta.size) };
        found(self.within(End::Copy, path, asking).await)
    }

    /// Copies those files of a folder that the copy does not have. Gives also the paths that only the copy has.
    ///
    /// # Errors
    /// A storage refuses, or a file does not arrive as a whole.
    pub async fn copy_folder(
        &self,
        source: &Folder,
        copy: &Folder,
        check: Check,
    ) -> Result<(Copied, Vec<Path>), FileError> {
        let mut missing = Vec::new();
        for (path, size) in &source.files {
            let is_there = copy.files.get(path) == Some(size)
                && match check {
                    Check::Size => true,
                    Check::Bytes => self.is_same(path).await?,
                };
            if !is_there {
                missing.push(path);
            }
        }
        let copied = self.copy_files(missing).await?;
        let extra = copy.files.keys().filter(|path| !source.files.contains_key(*path));
        Ok((copied, extra.cloned().collect()))
    }

    /// Copies files, some at a time; those that are there are written over.
    ///
    /// # Errors
    /// A storage refuses, or a file does not arrive as a whole.
    pub async fn copy_files(&self, paths: Vec<&Path>) -> Result<Copied, FileError> {
        let copies = paths.into_iter().map(|path| async move {
            let size = self.copy_file(path).await?;
            Ok::<_, FileError>((path, size))
        });
        let mut copies = stream::iter(copies).buffer_unordered(FILES_AT_ONCE);
        let mut copied = Copied::default();
        let mut arrived = Vec::new();
        while let Some(done) = copies.next().await {
            let (path, size) = done?;
            match size {
                Some(bytes) => {
                    copied.add(Copied { files: 1, bytes, vanished: 0 });
                    arrived.push(path);
                }
                None => copied.vanished += 1,
            }
        }
        if !arrived.is_empty() {
            self.sync(&arrived).await?;
        }
        Ok(copied)
    }

    /// `None`: it was deleted meanwhile.
    async fn copy_file(&self, path: &Path) -> Result<Option<u64>, FileError> {
        let opening = self.source.get(path);
        let Some(opened) = found(self.within(End::Source, path, opening).await)? else {
            return Ok(None);
        };
        let expected = opened.meta.size;
        let copying = async {
            if expected <= PIECE_BYTES as u64 {
                let bytes = self.within(End::Source, path, opened.bytes()).await?;
                let writing = self.copy.put(path, bytes.into());
                self.within(End::Copy, path, writing).await.map(drop)
            } else {
                self.copy_in_pieces(path, opened).await
            }
        };
        match copying.await {
            Ok(()) => {}
            Err(FileError::Store {
                end: End::Source, source: StoreError::NotFound { .. }, ..
            }) => return Ok(None),
            Err(error) => return Err(error),
        }
        let found = self.size_of_copy(path).await?.unwrap_or(0);
        if found != expected {
            return Err(FileError::Size { path: path.to_string(), expected, found });
        }
        Ok(Some(expected))
    }

    async fn copy_in_pieces(&self, path: &Path, opened: GetResult) -> Result<(), FileError> {
        let beginning = self.copy.put_multipart(path);
        let mut upload = self.within(End::Copy, path, beginning).await?;
        let mut pieces = Pieces::new(opened);
        let copying = async {
            while let Some(piece) = self.within(End::Source, path, pieces.next()).await? {
                let part = upload.put_part(piece.into());
                self.within(End::Copy, path, part).await?;
            }
            self.within(End::Copy, path, upload.complete()).await.map(drop)
        };
        let copied = copying.await;
        if copied.is_err() {
            // What was begun is not to be seen in either case; the error before is the one that counts.
            self.within(End::Copy, path, upload.abort()).await.ok();
        }
        copied
    }

    /// Whether a file has the same bytes at both ends.
    ///
    /// # Errors
    /// A storage refuses.
    pub async fn is_same(&self, path: &Path) -> Result<bool, FileError> {
        let mut ends = Vec::with_capacity(2);
        for end in [End::Source, End::Copy] {
            let opening = self.store(end).get(path);
            match found(self.within(end, path, opening).await)? {
                Some(opened) => ends.push(Pieces::new(opened)),
                None => return Ok(false),
            }
        }
        let [source, copy] = ends.as_mut_slice() else { return Ok(false) };
        loop {
            let left = self.within(End::Source, path, source.next()).await?;
            let right = self.within(End::Copy, path, copy.next()).await?;
            match (left, right) {
                (None, None) => return Ok(true),
                (left, right) if left == right => {}
                (_, _) => return Ok(false),
            }
        }
    }

    /// Syncs files of the copy, and their folders, if it is a folder of this machine.
    async fn sync(&self, paths: &[&Path]) -> Result<(), FileError> {
        let Some(folder) = &self.copy_folder else { return Ok(()) };
        let paths = paths.iter().map(ToString::to_string).collect();
        let synced = crate::sink::delta::sync_files(folder.clone(), paths).await;
        synced.map_err(|error| FileError::Sync { text: crate::causes::describe(&error) })
    }
}

/// What was found; an object that is not there is nothing.
fn found<T>(result: Result<T, FileError>) -> Result<Option<T>, FileError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(FileError::Store { source: StoreError::NotFound { .. }, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The bytes of a file in pieces of the same size, the last one shorter.
struct Pieces {
    stream: BoxStream<'static, StoreResult<Bytes>>,
    rest: Bytes,
}

impl Pieces {
    fn new(opened: GetResult) -> Self {
        Self { stream: opened.into_stream(), rest: Bytes::new() }
    }

    /// The next piece; `None` at the end.
    async fn next(&mut self) -> StoreResult<Option<Bytes>> {
        let mut piece = Vec::with_capacity(self.rest.len());
        loop {
            let room = PIECE_BYTES - piece.len();
            let taken = self.rest.split_to(room.min(self.rest.len()));
            piece.extend_from_slice(&taken);
            if piece.len() == PIECE_BYTES {
                return Ok(Some(piece.into()));
            }
            match self.stream.next().await {
                Some(chunk) => self.rest = chunk?,
                None => return Ok((!piece.is_empty()).then(|| piece.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use deltalake::logstore::object_store::local::LocalFileSystem;
    use deltalake::logstore::object_store::memory::InMemory;

    use super::*;

    fn ends(source: Arc<dyn ObjectStore>, copy: Arc<dyn ObjectStore>) -> Ends {
        let limit = Duration::from_secs(30);
        Ends { source, copy, copy_folder: None, limit, check: Check::Size }
    }

    async fn put(store: &dyn ObjectStore, path: &str, bytes: &[u8]) {
        store.put(&Path::from(path), bytes.to_vec().into()).await.expect("written");
    }

    #[tokio::test]
    async fn files_below_at_and_above_a_piece_arrive_as_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let local = LocalFileSystem::new_with_prefix(folder.path()).expect("a store");
        let ends = ends(Arc::new(InMemory::new()), Arc::new(local));
        let sizes = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 5];
        for size in sizes {
            let bytes: Vec<u8> = (0..size).map(|place| (place * 7 % 251) as u8).collect();
            let name = format!("date=2026-03-01/metric_type=a%20b/{size}.parquet");
            put(&*ends.source, &name, &bytes).await;
            let path = Path::from(name.as_str());
            let copied = ends.copy_files(vec![&path]).await.expect("copied");
            assert_eq!(copied, Copied { files: 1, bytes: size as u64, vanished: 0 });
            let found = ends.read(End::Copy, &path).await.expect("read").expect("it is there");
            assert!(found == bytes && ends.is_same(&path).await.expect("compared"), "{size}");
        }
    }

    #[tokio::test]
    async fn only_what_is_missing_or_differs_is_copied_and_what_is_gone_is_no_error() {
        let ends = ends(Arc::new(InMemory::new()), Arc::new(InMemory::new()));
        put(&*ends.source, "t/a", b"one").await;
        put(&*ends.source, "t/b", b"two").await;
        put(&*ends.source, "t/deep/c", b"three").await;
        put(&*ends.copy, "t/a", b"0ne").await;
        put(&*ends.copy, "t/b", b"tw").await;
        put(&*ends.copy, "t/old", b"x").await;
        let folder = Path::from("t");
        let source = ends.list(End::Source, &folder).await.expect("listed");
        assert_eq!((source.files.len(), &source.folders[..]), (2, &[Path::from("t/deep")][..]));
        let copy = ends.list(End::Copy, &folder).await.expect("listed");
        let (copied, extra) = ends.copy_folder(&source, &copy, Check::Size).await.expect("copied");
        assert_eq!((copied.files, extra), (1, vec![Path::from("t/old")]));
        // The same size and other bytes: only a comparison finds it.
        let copy = ends.list(End::Copy, &folder).await.expect("listed");
        let (copied, _) = ends.copy_folder(&source, &copy, Check::Bytes).await.expect("copied");
        assert_eq!(copied.files, 1);
        assert!(ends.is_same(&Path::from("t/a")).await.expect("compared"));
        ends.source.delete(&Path::from("t/b")).await.expect("deleted");
        let gone = [Path::from("t/b"), Path::from("t/deep/c")];
        let copied = ends.copy_files(gone.iter().collect()).await.expect("no error");
        assert_eq!(copied, Copied { files: 1, bytes: 5, vanished: 1 });
        let nothing = ends.list(End::Copy, &Path::from("none")).await.expect("listed");
        assert_eq!(nothing, Folder::default());
    }

    #[tokio::test]
    async fn many_files_are_copied_and_none_is_left_out() {
        let ends = ends(Arc::new(InMemory::new()), Arc::new(InMemory::new()));
        let count = 5 * FILES_AT_ONCE;
        for number in 0..count {
            put(&*ends.source, &format!("t/{number}"), &[number as u8]).await;
        }
        let folder = Path::from("t");
        let source = ends.list(End::Source, &folder).await.expect("listed");
        let copied = ends.copy_folder(&source, &Folder::default(), Check::Size).await;
        let copied = copied.expect("copied").0;
        assert_eq!(copied.files, count as u64);
        let copy = ends.list(End::Copy, &folder).await.expect("listed");
        assert_eq!(copy, source);
    }
}
