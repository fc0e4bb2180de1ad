//! A folder of this machine as a store that finds new commits without looking at the old ones.
//!
//! Each commit lists its table's log several times, from the version before it on. The library's store for folders turns the name
//! of every file there into a path before it compares it, which takes longer the more commits the log keeps. Here names are compared
//! as they are. Everything else is the library's.

use std::fs::Metadata;
use std::ops::Range;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use deltalake::logstore::object_store::local::LocalFileSystem;
use deltalake::logstore::object_store::path::Path;
use deltalake::logstore::object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use futures_util::stream::{self, BoxStream, StreamExt as _};

/// With more files behind the offset the library's way is as good.
const FILES_MAX: usize = 1000;

/// The file systems of this machine from their root on.
#[derive(Clone, Debug, Default)]
pub(super) struct FolderStore {
    inner: LocalFileSystem,
}

impl std::fmt::Display for FolderStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(formatter)
    }
}

/// The library's file of a write that has not ended, or never will: no listing names it.
fn is_upload(name: &str) -> bool {
    let suffix = name.split_once('#').map(|(_, suffix)| suffix);
    suffix.is_some_and(|suffix| !suffix.is_empty() && suffix.bytes().all(|b| b.is_ascii_digit()))
}

/// Files of a folder whose names are above `offset`, ordered; `None` if it is not as simple as that: there are folders in it, many
/// files, or names that a path writes otherwise.
fn files_behind(
    folder: &std::path::Path,
    offset: &str,
) -> std::io::Result<Option<Vec<(String, Metadata)>>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { return Ok(None) };
        if is_upload(name) {
            continue;
        }
        let is_plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if !name.bytes().all(is_plain) || !entry.file_type()?.is_file() {
            return Ok(None);
        }
        if name <= offset {
            continue;
        }
        if names.len() == FILES_MAX {
            return Ok(None);
        }
        names.push(name.to_owned());
    }
    names.sort_unstable();
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        match std::fs::metadata(folder.join(&name)) {
            Ok(metadata) => files.push((name, metadata)),
            // Deleted meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(files))
}

impl FolderStore {
    /// The folder and the name in it that a listing begins behind, if it is one folder's.
    fn folder_of(&self, prefix: &Path, offset: &Path) -> Option<(PathBuf, String)> {
        let mut parts = offset.prefix_match(prefix)?;
        let name = parts.next()?.as_ref().to_owned();
        if parts.next().is_some() {
            return None;
        }
        Some((self.inner.path_to_filesystem(prefix).ok()?, name))
    }

    /// `None`: the library is to do it. Without e-tags, for which nobody asks a listing.
    async fn list_behind(&self, prefix: &Path, offset: &Path) -> Option<Vec<ObjectMeta>> {
        let (folder, name) = self.folder_of(prefix, offset)?;
        let files = tokio::task::spawn_blocking(move || files_behind(&folder, &name)).await;
        // An error is the library's to tell.
        let files = files.ok()?.ok()??.into_iter();
        let meta = |(name, metadata): (String, Metadata)| {
            Some(ObjectMeta {
                location: prefix.clone().join(name),
                last_modified: metadata.modified().ok()?.into(),
                size: metadata.len(),
                e_tag: None,
                version: None,
            })
        };
        files.map(meta).collect()
    }
}

#[async_trait]
impl ObjectStore for FolderStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let Some(prefix) = prefix.cloned() else {
            return self.inner.list_with_offset(None, offset);
        };
        let (store, offset) = (self.clone(), offset.clone());
        let listing = async move {
            match store.list_behind(&prefix, &offset).await {
                Some(found) => stream::iter(found).map(Ok).boxed(),
                None => store.inner.list_with_offset(Some(&prefix), &offset),
            }
        };
        stream::once(listing).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream::TryStreamExt as _;

    use super::*;

    async fn listed(store: &dyn ObjectStore, prefix: &Path, offset: &Path) -> Vec<ObjectMeta> {
        let mut files: Vec<ObjectMeta> =
            store.list_with_offset(Some(prefix), offset).try_collect().await.expect("listed");
        files.sort_by(|left, right| left.location.cmp(&right.location));
        files.iter_mut().for_each(|file| file.e_tag = None);
        files
    }

    #[tokio::test]
    async fn a_listing_is_as_the_library_gives_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = FolderStore::default();
        let log = folder.path().join("_delta_log");
        std::fs::create_dir(&log).expect("made");
        let prefix = Path::from_filesystem_path(&log).expect("a path");
        let check = async |offset: &str, expected: usize| {
            let offset = prefix.clone().join(offset);
            let ours = listed(&store, &prefix, &offset).await;
            assert_eq!(ours, listed(&LocalFileSystem::new(), &prefix, &offset).await, "{offset}");
            assert_eq!(ours.len(), expected, "{offset}");
        };
        check("0", 0).await;
        let name = |version: u32| format!("{version:020}.json");
        for version in 0..100 {
            std::fs::write(log.join(name(version)), "{}").expect("written");
        }
        std::fs::write(log.join("_last_checkpoint"), "{}").expect("written");
        for (offset, expected) in [(name(0), 100), (name(97), 3), (name(99), 1), (name(200), 1)] {
            check(&offset, expected).await;
        }
        check("0", 101).await;
        check("_last_checkpoint", 0).await;
        std::fs::write(log.join(format!("{}#1", name(98))), "{}").expect("written");
        assert!(is_upload("1.json#12") && !is_upload("1#a") && !is_upload("1#"));
        check(&name(97), 3).await;
        // A name that is written otherwise in a path, and a folder.
        std::fs::write(log.join("zähler %.json"), "{}").expect("written");
        check(&name(97), 4).await;
        std::fs::create_dir(log.join("_sidecars")).expect("made");
        std::fs::write(log.join("_sidecars/one.parquet"), "{}").expect("written");
        check(&name(97), 5).await;
        check(&name(99), 3).await;
    }
}
