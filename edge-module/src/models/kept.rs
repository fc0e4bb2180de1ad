//! The bundles in force, kept on this device: `<data-dir>/models-in-force/<name>/`, so that a restart has the model of before also
//! when the folder of the settings holds another one by then, or a damaged one, or a server is out of reach.
//!
//! Written when a model has come into force: a new folder, synced, put in the place of the old one. Between the two renames a crash
//! leaves only `<name>.old`, which is read when `<name>` is not there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::durable;
use crate::scoring::{Bundle, BundleError};

/// Folder of the bundles in force.
#[derive(Clone, Debug)]
pub struct KeptModels(PathBuf);

impl KeptModels {
    /// The folder, which the first model makes.
    #[must_use]
    pub fn at(data_dir: &Path) -> Self {
        Self(data_dir.join("models-in-force"))
    }

    /// The bundle that was in force under this name; `None` where there was none. Blocks.
    ///
    /// # Errors
    /// There is one, and it does not pass.
    pub fn read(&self, name: &str) -> Result<Option<Bundle>, BundleError> {
        let folders = [self.folder(name, ""), self.folder(name, ".old")];
        let Some(folder) = folders.iter().find(|folder| folder.is_dir()) else { return Ok(None) };
        Bundle::load(folder).map(Some)
    }

    /// Keeps a bundle. Blocks.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, name: &str, bundle: &Bundle) -> io::Result<()> {
        let (folder, new, old) =
            (self.folder(name, ""), self.folder(name, ".new"), self.folder(name, ".old"));
        remove(&new)?;
        fs::create_dir_all(&new)?;
        for (file, content) in bundle.files() {
            durable::write(&new.join(file), content)?;
        }
        durable::sync_folder(&new)?;
        if folder.is_dir() {
            remove(&old)?;
            fs::rename(&folder, &old)?;
        }
        fs::rename(&new, &folder)?;
        remove(&old)?;
        durable::sync_folder(&self.0)
    }

    /// Forgets the models of all other names: one that is named again later comes through the same gate as any. Blocks.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn retain(&self, names: &[String]) -> io::Result<()> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let file_name = entry.file_name();
            let name = file_name.to_string_lossy();
            let name = name.strip_suffix(".old").or(name.strip_suffix(".new")).unwrap_or(&name);
            if !names.iter().any(|kept| kept == name) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn folder(&self, name: &str, suffix: &str) -> PathBuf {
        self.0.join(format!("{name}{suffix}"))
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(all(test, feature = "tflite"))]
mod tests {
    use super::*;

    fn bundle(name: &str) -> Bundle {
        let bundles = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/bundles");
        Bundle::load(&bundles.join(name)).expect("a committed bundle")
    }

    #[test]
    fn the_last_one_kept_is_read_and_a_cut_short_write_loses_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = KeptModels::at(folder.path());
        assert!(kept.read("default").expect("no fault").is_none());
        let (first, second) = (bundle("motor-v1"), bundle("motor-line-v1"));
        kept.write("default", &first).expect("written");
        kept.write("default", &second).expect("written");
        kept.write("default", &first).expect("written");
        let read = |kept: &KeptModels| kept.read("default").expect("passes").expect("is there");
        assert!(read(&kept).is_same(&first) && !read(&kept).is_same(&second));
        // As a crash between the two renames leaves it.
        fs::rename(kept.folder("default", ""), kept.folder("default", ".old")).expect("renamed");
        assert!(read(&kept).is_same(&first));
        kept.write("default", &second).expect("written");
        assert!(read(&kept).is_same(&second));
        kept.write("line", &second).expect("written");
        kept.retain(&["default".to_owned()]).expect("removed");
        assert!(kept.read("line").expect("no fault").is_none());
        fs::write(kept.folder("default", "").join(crate::scoring::MODEL_FILE), "x").expect("torn");
        assert!(matches!(kept.read("default"), Err(BundleError::Hash { .. })));
    }
}
