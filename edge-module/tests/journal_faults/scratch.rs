//! Folders of the tests: in memory where the system has it, so that a round costs no real syncs; deleted when dropped.

use std::path::{Path, PathBuf};

/// Where Linux keeps files in memory.
const MEMORY: &str = "/dev/shm";

pub(crate) fn folder(name: &str) -> tempfile::TempDir {
    let memory = Path::new(MEMORY);
    let parent = if memory.is_dir() {
        memory.to_owned()
    } else {
        PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
    };
    tempfile::Builder::new()
        .prefix(&format!("journal-{name}-"))
        .tempdir_in(parent)
        .expect("a folder for the test")
}

/// Copies what a failed round leaves to a folder that stays, and says where.
pub(crate) fn keep(folder: &Path, name: &str) -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("journal-{name}"));
    std::fs::remove_dir_all(&target).ok();
    copy(folder, &target).unwrap_or_else(|error| eprintln!("not kept: {error}"));
    target
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
