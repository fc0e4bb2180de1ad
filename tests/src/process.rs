//! Child processes that never outlive this one.
//!
//! A child is started through `setpriv --pdeathsig KILL`: the kernel kills it when the thread that started it ends. That
//! thread lives as long as this process, so children go whatever ends it. Standard output and error go to files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Starts that may wait for the spawning thread.
const SPAWN_QUEUE_LENGTH: usize = 16;

type SpawnRequest = (Command, SyncSender<std::io::Result<Child>>);

/// A running program, killed when dropped.
#[derive(Debug)]
pub struct ChildProcess {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl ChildProcess {
    /// Starts `program` with `arguments` and `environment` on top of this process's. Output goes to `<name>.out` and
    /// `<name>.err` in `log_dir`, appended if they exist.
    ///
    /// # Errors
    /// The log files cannot be opened or the program not be started.
    pub fn start(
        name: &str,
        log_dir: &Path,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        if !program.exists() {
            bail!("{} is missing: build it or name it in the environment", program.display());
        }
        std::fs::create_dir_all(log_dir)?;
        let stdout = log_dir.join(format!("{name}.out"));
        let stderr = log_dir.join(format!("{name}.err"));
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(append_to(&stdout)?)
            .stderr(append_to(&stderr)?);
        let child = spawn(command).with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { name: name.to_owned(), child, stdout, stderr })
    }

    /// The name given at the start.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    /// The operating system does not say.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it has written to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Both outputs, for messages about what went wrong: the last 40 lines.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = self.stdout() + &self.stderr();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Ends it as a power cut would (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// The signal cannot be sent.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.signal("TERM")
    }

    /// Sends a signal by its name, such as `TERM`, `STOP`, `CONT`.
    ///
    /// # Errors
    /// The signal cannot be sent.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let line = format!("kill -{signal} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &line]).status()?;
        if !status.success() {
            bail!("{line}: {status}");
        }
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs at the deadline.
    pub fn wait(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() >= deadline {
                bail!("{} still runs after {deadline:?}:\n{}", self.name, self.tail());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // Both fail when it has ended before.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn append_to(path: &Path) -> anyhow::Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

fn read_lossy(path: &Path) -> String {
    std::fs::read(path)
        .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Starts a command on the one thread that lives as long as the process.
fn spawn(command: Command) -> anyhow::Result<Child> {
    static SPAWNER: OnceLock<SyncSender<SpawnRequest>> = OnceLock::new();
    let requests = SPAWNER.get_or_init(|| {
        let (sender, receiver) = sync_channel::<SpawnRequest>(SPAWN_QUEUE_LENGTH);
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                // Nobody waits for the answer any more only while the process ends.
                reply.send(command.spawn()).ok();
            }
        });
        sender
    });
    let (reply, answer) = sync_channel(1);
    requests.send((command, reply)).context("the spawning thread has ended")?;
    Ok(answer.recv().context("the spawning thread has ended")??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_output_and_exit_status() {
        let dir = tempfile::tempdir().unwrap();
        let arguments = ["-c", "echo out; echo err >&2; exit 7"];
        let shell = Path::new("/bin/sh");
        let mut child = ChildProcess::start("shell", dir.path(), shell, &arguments, &[]).unwrap();
        assert_eq!(child.wait(Duration::from_secs(10)).unwrap().code(), Some(7));
        assert_eq!((child.stdout().as_str(), child.stderr().as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn a_child_ends_when_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let sleep = Path::new("/bin/sleep");
        let child = ChildProcess::start("sleep", dir.path(), sleep, &["600"], &[]).unwrap();
        let proc_entry = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(proc_entry.exists());
        drop(child);
        assert!(!proc_entry.exists());
    }

    #[test]
    fn a_child_that_was_started_by_a_finished_thread_lives_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let start = move || {
            ChildProcess::start("sleep", &path, Path::new("/bin/sleep"), &["600"], &[]).unwrap()
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        assert!(child.wait(Duration::from_millis(100)).is_err());
        assert!(child.is_running().unwrap());
    }
}
