//! The two programs in containers, made of their Dockerfiles by `deployment-manifests/local/images`.
//!
//! A container outlives the process that started it: it is removed when dropped, ends by itself after a quarter of an hour, and
//! the next run removes what is left of runs that have ended.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::cloud_aggregator::{self, CloudAggregatorSettings, Finished};
use crate::edge_module::{self, EdgeModuleSettings};
use crate::eventually::eventually;
use crate::http;

/// A container that nobody stops ends after this.
const LIFE_MAX: Duration = Duration::from_mins(15);
const START_DEADLINE: Duration = Duration::from_secs(60);
const NAME_PREFIX: &str = "scenarios-";
/// Where the bundle of the settings is found inside.
const BUNDLE_DIR: &str = "/bundle";

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// At the machines.
    EdgeModule,
    /// At the lake.
    CloudAggregator,
}

impl Program {
    /// Both.
    pub const ALL: [Self; 2] = [Self::EdgeModule, Self::CloudAggregator];

    /// Name of the package, the program and the image.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EdgeModule => "edge-module",
            Self::CloudAggregator => "cloud-aggregator",
        }
    }

    /// The only folder that it writes to, inside.
    #[must_use]
    pub fn data_dir(self) -> PathBuf {
        Path::new("/var/lib").join(self.name())
    }

    /// The image: that of `EDGE_MODULE_IMAGE` or `CLOUD_AGGREGATOR_IMAGE`, or one made now, once, of the program that
    /// the other scenarios start.
    ///
    /// # Errors
    /// The program is not built, or the image cannot be.
    pub fn image(self) -> anyhow::Result<String> {
        static EDGE: OnceLock<Result<String, String>> = OnceLock::new();
        static CLOUD: OnceLock<Result<String, String>> = OnceLock::new();
        let (variable, built, program) = match self {
            Self::EdgeModule => ("EDGE_MODULE_IMAGE", &EDGE, edge_module::program()),
            Self::CloudAggregator => {
                ("CLOUD_AGGREGATOR_IMAGE", &CLOUD, cloud_aggregator::program())
            }
        };
        let image = built.get_or_init(|| {
            remove_leftovers().map_err(|error| format!("{error:#}"))?;
            if let Ok(image) = std::env::var(variable) {
                return Ok(image);
            }
            let program = program.display().to_string();
            let built = images(&["prebuilt", self.name(), &program]);
            built.map_err(|error| format!("{error:#}"))?;
            Ok(format!("localhost/{}:test", self.name()))
        });
        image.clone().map_err(|reason| anyhow::anyhow!("image of {}: {reason}", self.name()))
    }

    /// The image's configuration: user, labels, health check and so on.
    ///
    /// # Errors
    /// There is no image, or its description is no JSON.
    pub fn inspect(self) -> anyhow::Result<Value> {
        let output = podman_output(&["image", "inspect", &self.image()?])?;
        let mut images: Vec<Value> = serde_json::from_str(&output)?;
        images.pop().context("podman describes no image")
    }

    /// Unpacks the image's files into `dir`, without running it.
    ///
    /// # Errors
    /// There is no image, or no space.
    pub fn unpack(self, dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(dir)?;
        let id = podman_output(&["create", &self.image()?])?;
        let archive = dir.with_extension("tar");
        let exported = podman_output(&["export", "--output", text(&archive)?, id.trim()]);
        podman_output(&["rm", id.trim()])?;
        exported?;
        let arguments = ["--extract", "--preserve-permissions", "--file"];
        let tar = Command::new("tar").args(arguments).arg(&archive).arg("-C").arg(dir).status()?;
        ensure!(tar.success(), "unpacking {}: {tar}", archive.display());
        std::fs::remove_file(archive)?;
        Ok(())
    }
}

/// A container, removed when dropped.
#[derive(Debug)]
pub struct Container {
    name: String,
    admin_port: u16,
}

impl Container {
    /// Starts an edge module. Its journal lies in `settings.data_dir`, as seen from outside.
    ///
    /// # Errors
    /// There is no image, or it cannot be started.
    pub fn start_edge_module(dir: &Path, settings: &EdgeModuleSettings) -> anyhow::Result<Self> {
        let program = Program::EdgeModule;
        let inside = EdgeModuleSettings {
            data_dir: program.data_dir(),
            bundle_dir: settings.bundle_dir.as_ref().map(|_| PathBuf::from(BUNDLE_DIR)),
            ..settings.clone()
        };
        let mut more = variables(&settings.environment);
        if let Some(bundle) = &settings.bundle_dir {
            more.push(format!("--volume={}:{BUNDLE_DIR}:ro", bundle.display()));
        }
        Self::start(program, dir, &settings.data_dir, &more, |port| inside.to_toml(port))
    }

    /// Starts an aggregator. Its lake is `settings.lake`, as seen from outside.
    ///
    /// # Errors
    /// There is no image, or it cannot be started.
    pub fn start_aggregator(
        dir: &Path,
        settings: &CloudAggregatorSettings,
    ) -> anyhow::Result<Self> {
        let program = Program::CloudAggregator;
        let inside = CloudAggregatorSettings { lake: program.data_dir(), ..settings.clone() };
        let more = variables(&settings.environment);
        Self::start(program, dir, &settings.lake, &more, |port| inside.to_toml(port))
    }

    /// Nothing can be written but the volume, nothing gained that user 1000 does not have.
    fn start(
        program: Program,
        dir: &Path,
        volume: &Path,
        more: &[String],
        settings: impl FnOnce(u16) -> String,
    ) -> anyhow::Result<Self> {
        let image = program.image()?;
        let admin_port = crate::ports::free_port()?;
        std::fs::create_dir_all(dir)?;
        std::fs::create_dir_all(volume)?;
        std::fs::write(dir.join(format!("{}.toml", program.name())), settings(admin_port))?;
        let name = format!("{NAME_PREFIX}{}-{admin_port}", std::process::id());
        let container = Self { name: name.clone(), admin_port };
        let life = LIFE_MAX.as_secs();
        let mut arguments = vec![
            "run".to_owned(),
            "--detach".to_owned(),
            format!("--name={name}"),
            format!("--timeout={life}"),
            "--log-driver=k8s-file".to_owned(),
            "--network=host".to_owned(),
            "--read-only".to_owned(),
            "--read-only-tmpfs=false".to_owned(),
            "--cap-drop=all".to_owned(),
            "--security-opt=no-new-privileges".to_owned(),
            format!("--volume={}:/etc/{}:ro", dir.display(), program.name()),
            // U: its files belong to the image's user.
            format!("--volume={}:{}:U", volume.display(), program.data_dir().display()),
        ];
        arguments.extend_from_slice(more);
        arguments.push(image);
        podman_output(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(container)
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// It does not within a minute.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        eventually(&format!("{} is ready", self.name), START_DEADLINE, || {
            match http::get(self.admin_port, "/readyz")? {
                (200, _) => anyhow::Ok(()),
                (status, body) => bail!("/readyz answers {status}: {body}"),
            }
        })
        .with_context(|| self.log())
    }

    /// Ends it as a power cut would, and starts it again with what it has on disk.
    ///
    /// # Errors
    /// It does not end, or cannot be started.
    pub fn kill_and_start(&self) -> anyhow::Result<()> {
        self.signal("KILL")?;
        let code = podman_output(&["wait", &self.name])?;
        ensure!(code.trim() == "137", "{} ended with {code}", self.name);
        podman_output(&["start", &self.name])?;
        Ok(())
    }

    /// Asks it to end and says its exit code.
    ///
    /// # Errors
    /// It is not there.
    pub fn stop(&self, patience: Duration) -> anyhow::Result<i32> {
        podman_output(&["stop", "--time", &patience.as_secs().to_string(), &self.name])?;
        Ok(podman_output(&["wait", &self.name])?.trim().parse()?)
    }

    /// Sends a signal by its name, such as `STOP`, `CONT`.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        podman_output(&["kill", "--signal", signal, &self.name]).map(drop)
    }

    /// Runs the image's own health check inside: 0 or 1.
    ///
    /// # Errors
    /// podman cannot be started.
    pub fn health(&self) -> anyhow::Result<Option<i32>> {
        Ok(podman(&["healthcheck", "run", &self.name])?.code)
    }

    /// Runs a program inside.
    ///
    /// # Errors
    /// podman cannot be started.
    pub fn exec(&self, command: &[&str]) -> anyhow::Result<Finished> {
        podman(&[&["exec", &self.name], command].concat())
    }

    /// What differs from the image, outside of volumes.
    ///
    /// # Errors
    /// It is not there.
    pub fn changed_files(&self) -> anyhow::Result<String> {
        podman_output(&["diff", &self.name])
    }

    /// What it has written so far, the end of it.
    #[must_use]
    pub fn log(&self) -> String {
        match podman(&["logs", "--tail=40", &self.name]) {
            Ok(finished) => finished.output + &finished.errors,
            Err(error) => format!("no log: {error:#}"),
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Fails when it was never started.
        podman(&["rm", "--force", "--time=0", &self.name]).ok();
    }
}

fn variables(environment: &[(String, String)]) -> Vec<String> {
    environment.iter().map(|(name, value)| format!("--env={name}={value}")).collect()
}

/// Containers of processes that have ended without removing them.
fn remove_leftovers() -> anyhow::Result<()> {
    let filter = format!("name=^{NAME_PREFIX}");
    let names = podman_output(&["ps", "--all", "--format={{.Names}}", "--filter", &filter])?;
    for name in names.lines() {
        let process = name.strip_prefix(NAME_PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            podman_output(&["rm", "--force", "--time=0", name])?;
        }
    }
    Ok(())
}

/// What podman writes to standard output.
fn podman_output(arguments: &[&str]) -> anyhow::Result<String> {
    let finished = podman(arguments)?;
    ensure!(
        finished.code == Some(0),
        "podman {}: {:?}\n{}",
        arguments.join(" "),
        finished.code,
        finished.errors
    );
    Ok(finished.output)
}

fn podman(arguments: &[&str]) -> anyhow::Result<Finished> {
    run(&[&["podman"], arguments].concat())
}

fn images(arguments: &[&str]) -> anyhow::Result<()> {
    let finished = run(arguments)?;
    ensure!(finished.code == Some(0), "{}{}", finished.output, finished.errors);
    Ok(())
}

fn run(arguments: &[&str]) -> anyhow::Result<Finished> {
    let program = crate::workspace_root().join("deployment-manifests/local/images");
    let output = Command::new(&program)
        .args(arguments)
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    Ok(Finished {
        code: output.status.code(),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
