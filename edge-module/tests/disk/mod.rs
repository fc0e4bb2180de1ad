//! Runs a program on the disk of `faulty_disk.c`: builds it, tells the program about it, tells it what to do.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const SOURCE: &str = include_str!("faulty_disk.c");
const WORDS: u64 = 16;
const WORD_BYTES: u64 = 8;

/// What can be set or asked: `enum word` of the source, where each is explained.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(crate) enum Word {
    SyncFails = 0,
    WriteFails = 1,
    FailsAfter = 2,
    QuotaBytes = 3,
    ReadOnly = 4,
    Stall = 5,
    ForgetFiles = 6,
    ForgetFolders = 7,
    FailedCalls = 12,
    StalledCalls = 13,
    UsedBytes = 14,
    Changes = 15,
}

/// A folder whose changes go through the faulty disk, in each program started with [`Self::environment`].
#[derive(Debug)]
pub(crate) struct FaultyDisk {
    environment: Vec<(String, String)>,
    control: File,
}

impl FaultyDisk {
    /// The disk at `root`, which must exist and not lie behind a link. Its control file is made in `folder`; with `log`,
    /// changes are recorded there and syncs are only noted.
    pub(crate) fn new(folder: &Path, root: &Path, log: Option<&Path>) -> io::Result<Self> {
        let control_path = folder.join("disk-control");
        let control = File::create(&control_path)?;
        control.set_len(WORDS * WORD_BYTES)?;
        let mut environment = vec![
            ("LD_PRELOAD".to_owned(), library()?.display().to_string()),
            ("DISK_ROOT".to_owned(), root.display().to_string()),
            ("DISK_CONTROL".to_owned(), control_path.display().to_string()),
        ];
        if let Some(log) = log {
            environment.push(("DISK_LOG".to_owned(), log.display().to_string()));
        }
        Ok(Self {
            environment,
            control: File::options().read(true).write(true).open(control_path)?,
        })
    }

    /// What a program must be started with.
    pub(crate) fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// Takes effect with the program's next call.
    pub(crate) fn set(&self, word: Word, value: u64) -> io::Result<()> {
        self.control.write_all_at(&value.to_ne_bytes(), word as u64 * WORD_BYTES)
    }

    pub(crate) fn get(&self, word: Word) -> io::Result<u64> {
        let mut bytes = [0; WORD_BYTES as usize];
        self.control.read_exact_at(&mut bytes, word as u64 * WORD_BYTES)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// The compiled source, made once in each test process.
fn library() -> io::Result<&'static Path> {
    static LIBRARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| compile().map_err(|error| format!("compiling faulty_disk.c: {error}")))
        .as_deref()
        .map_err(|reason| io::Error::other(reason.clone()))
}

fn compile() -> io::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(folder)?;
    let path = folder.join("faulty_disk.so");
    // Another test process may be using the file: it keeps the one that it has.
    let new = folder.join(format!("faulty_disk-{}.so", std::process::id()));
    let mut compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-x", "c", "-o"])
        .arg(&new)
        .args(["-", "-ldl", "-pthread"])
        .stdin(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = compiler.stdin.take() {
        input.write_all(SOURCE.as_bytes())?;
    }
    let status = compiler.wait()?;
    if !status.success() {
        return Err(io::Error::other(format!("cc: {status}")));
    }
    std::fs::rename(&new, &path)?;
    Ok(path)
}
