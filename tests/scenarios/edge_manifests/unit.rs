//! The systemd unit, judged by systemd's own tools, and what the program tells the one who supervises it.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use e2e_tests::ports::free_port;
use e2e_tests::process::ChildProcess;
use e2e_tests::{edge_module, workspace_root};

const DEADLINE: Duration = Duration::from_secs(30);
/// What deployment-manifests/systemd/README.md says, in tenths, and a tenth for other versions of systemd.
const EXPOSURE_TENTHS_MAX: u32 = 13;
/// Long enough for a busy machine, short enough for a test.
const WATCHDOG_MICROSECONDS: &str = "3000000";
const INSTALLED: &str = "/usr/lib/edge-module/edge-module";

fn folder() -> PathBuf {
    workspace_root().join("deployment-manifests/systemd")
}

fn unit() -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(folder().join("edge-module.service"))?)
}

/// Asks systemd about a unit with this text; the program of the tests stands for the installed one.
fn analyze(dir: &Path, arguments: &[&str], text: &str) -> anyhow::Result<Output> {
    let path = dir.join("edge-module.service");
    let program = edge_module::program().display().to_string();
    std::fs::write(&path, text.replace(INSTALLED, &program))?;
    Command::new("systemd-analyze")
        .args(arguments)
        .arg(&path)
        .env("SYSTEMD_PAGER", "")
        .output()
        .context("systemd-analyze of Debian's package systemd")
}

#[test]
fn the_unit_is_one_that_systemd_takes() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let text = unit()?;
    let complaints = |text: &str| -> anyhow::Result<String> {
        let done = analyze(dir.path(), &["verify", "--man=no"], text)?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        Ok(if done.status.success() { said } else { format!("{}: {said}", done.status) })
    };
    let about_ours = |said: String| -> Vec<String> {
        said.lines().filter(|line| line.contains("edge-module")).map(str::to_owned).collect()
    };
    let found = about_ours(complaints(&text)?);
    ensure!(found.is_empty(), "{found:#?}");
    for (right, wrong) in [
        ("ProtectSystem=strict", "ProtectSytem=strict"),
        ("WatchdogSec=30s", "WatchdogSec=thirty"),
        (INSTALLED, "/usr/lib/edge-module/other"),
    ] {
        let found = about_ours(complaints(&text.replace(right, wrong))?);
        ensure!(!found.is_empty(), "{wrong} is taken");
    }
    Ok(())
}

#[test]
fn the_unit_is_as_little_exposed_as_its_document_says() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let threshold = format!("--threshold={EXPOSURE_TENTHS_MAX}");
    let arguments = ["security", "--offline=true", "--no-pager", &threshold];
    let text = unit()?;
    let judged = analyze(dir.path(), &arguments, &text)?;
    let table = String::from_utf8_lossy(&judged.stdout).into_owned();
    ensure!(judged.status.success(), "{table}");
    let document = std::fs::read_to_string(folder().join("README.md"))?;
    ensure!(document.contains("**1.2 of 10**"), "the document says another figure");
    for line in ["CapabilityBoundingSet=\n", "ProtectSystem=strict\n", "PrivateUsers=yes\n"] {
        ensure!(text.contains(line), "{line} is not there");
        let judged = analyze(dir.path(), &arguments, &text.replace(line, ""))?;
        ensure!(!judged.status.success(), "without {line} it is no more exposed");
    }
    Ok(())
}

#[test]
fn the_settings_that_are_installed_are_valid_and_name_the_unit_s_folders() -> anyhow::Result<()> {
    let path = folder().join("edge-module.toml");
    let done = Command::new(edge_module::program())
        .args(["check-config", "--config"])
        .arg(&path)
        .output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let settings = std::fs::read_to_string(&path)?;
    ensure!(settings.contains("data-dir = \"/var/lib/edge-module\""), "{settings}");
    let unit = unit()?;
    ensure!(unit.contains("StateDirectory=edge-module\n"), "{unit}");
    ensure!(unit.contains("LoadCredential=secrets:/etc/edge-module/secrets\n"), "{unit}");
    // systemd joins the name of the folder and that of the file.
    let credentials = "/run/credentials/edge-module.service/secrets_";
    ensure!(settings.contains(credentials), "{settings}");
    Ok(())
}

/// Up, well, not ready since there is no broker, and at an end: in systemd's words.
#[test]
fn the_supervisor_is_told() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket)?;
    let (admin, nobody) = (free_port()?, free_port()?.to_string());
    let path = |path: &Path| path.display().to_string();
    let (socket, data) = (path(&socket), path(&dir.path().join("data")));
    let listen = format!("127.0.0.1:{admin}");
    let brokers = format!("127.0.0.1:{nobody}");
    let mut module = ChildProcess::start(
        "edge-module",
        dir.path(),
        &edge_module::program(),
        &["run"],
        &[
            ("NOTIFY_SOCKET", &socket),
            ("WATCHDOG_USEC", WATCHDOG_MICROSECONDS),
            ("EDGE__DEVICE__DATA_DIR", &data),
            ("EDGE__MQTT__PORT", &nobody),
            ("EDGE__KAFKA__BROKERS", &brokers),
            ("EDGE__ADMIN__LISTEN", &listen),
        ],
    )?;
    let mut told = wait_for(&manager, |told| {
        told.iter().any(|it| it.starts_with("READY=1"))
            && told.iter().filter(|it| it.contains("WATCHDOG=1")).count() > 3
            && told.iter().any(|it| it.starts_with("STATUS=") && it.contains("recording: "))
    })
    .with_context(|| module.tail())?;
    ensure!(told.iter().filter(|it| it.contains("READY=1")).count() == 1, "{told:?}");
    module.terminate()?;
    told.extend(wait_for(&manager, |told| told.iter().any(|it| it.contains("STOPPING=1")))?);
    let status = module.wait(DEADLINE)?;
    ensure!(status.success(), "{status}: {told:?}");
    Ok(())
}

/// What is told until `is_enough`.
fn wait_for(
    manager: &UnixDatagram,
    is_enough: impl Fn(&[String]) -> bool,
) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + DEADLINE;
    let mut told = Vec::new();
    let mut buffer = [0; 4096];
    while !is_enough(&told) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("not told enough within {DEADLINE:?}: {told:?}");
        }
        manager.set_read_timeout(Some(left))?;
        let length = manager.recv(&mut buffer).with_context(|| format!("only {told:?}"))?;
        told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    Ok(told)
}
