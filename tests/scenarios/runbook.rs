//! The runbook is executed: each block of `deployment-manifests/README.md` that can run here, and each command of its tables of alerts,
//! by a shell as an operator would, beside both programs with a machine that has tripped, an alert, a dead letter and a lake.
//!
//! Blocks come in the order of the text. Its tables hold the alerts that the rules have, and the machine events that become alerts; its
//! words in backticks are settings, metrics, columns, files and targets that there are.

mod document;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use aggregator_core::alert::AlertingEvent;
use aggregator_core::checkpoint::{FILE_FORMAT, FILE_FORMAT_OLDEST};
use anyhow::{Context as _, ensure};
use e2e_tests::cloud_aggregator::{self, CloudAggregator, run_command};
use e2e_tests::edge_module::{self, EdgeModule};
use e2e_tests::eventually::eventually;
use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::ports::free_port;
use e2e_tests::publisher::{Publisher, WaveformSource, paced, reading_json};
use e2e_tests::signal::{MotorProfile, MotorSignal, SAMPLE_RATE_HZ};
use e2e_tests::workspace_root;
use serde_json::Value;
use shared_proto::model::{EventTime, MachineEventType};

use crate::plant::{DEADLINE, Plant, kafka, motor_bundle, now};
use document::{Block, Document, Place};
use names::Names;

/// Longest time of one block, in seconds: beyond it a command waits for something that does not come.
const BLOCK_SECONDS: &str = "60";
const EXIT_DEADLINE: Duration = Duration::from_secs(20);
/// The person of the runbook's examples.
const OPERATOR: &str = "Kim";
/// The sensor whose rows the runbook takes out.
const FORGOTTEN: &str = "press-1/spare";
const TOKEN: &str = "a-long-and-secret-token-of-the-cmms";
const BLOCK_SAMPLES: usize = 500;
/// So long lasts a block of samples.
const BLOCK_INTERVAL: Duration = Duration::from_millis(25);
const MACHINES: &str = r#"
[[machines]]
id = "press-1"
[[machines.limits]]
name = "oil-hot"
sensor = "press-1/oil"
quantity = "value"
above = 120.0

[[machines]]
id = "motor-1"
scored-sensors = ["motor-1/bearing"]
votes = 3
of = 5
"#;

fn runbook() -> anyhow::Result<Document> {
    Document::parse(&text()?)
}

fn text() -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(workspace_root().join("deployment-manifests/README.md"))?)
}

/// Both programs after a plant's eventful minutes, and what the names in the blocks stand for.
struct Station {
    plant: Plant,
    edge: EdgeModule,
    aggregator: CloudAggregator,
    publisher: Publisher,
    are_running: bool,
    values: BTreeMap<&'static str, String>,
}

impl Station {
    fn prepare(name: &str) -> anyhow::Result<Self> {
        let mut plant = Plant::new(name)?;
        let outcomes_port = free_port()?;
        let tokens = plant.dir.join("tokens");
        std::fs::create_dir_all(plant.dir.join("backup"))?;
        std::fs::write(&tokens, format!("cmms:{TOKEN}\n"))?;
        plant.edge_settings.machines = MACHINES.to_owned();
        plant.edge_settings.bundle_dir = Some(motor_bundle());
        let shelving = ("EDGE__PROTECTION__SHELVING_MAX".to_owned(), "8h".to_owned());
        plant.edge_settings.environment.push(shelving);
        // Maintenance by hand must find nobody at it.
        plant.aggregator_settings.environment.extend([
            ("AGGREGATOR__API__LISTEN".to_owned(), format!("127.0.0.1:{outcomes_port}")),
            ("AGGREGATOR__API__TOKEN_FILE".to_owned(), tokens.display().to_string()),
            ("AGGREGATOR__MAINTENANCE__ENABLED".to_owned(), "false".to_owned()),
        ]);
        let edge = plant.start_edge_module()?;
        let aggregator = plant.start_aggregator()?;
        let mut publisher = Publisher::connect(plant.mosquitto.port(), "people-and-sensors");
        have_an_eventful_minute(&plant, &mut publisher)?;
        let values = values(&plant, outcomes_port, &tokens)?;
        Ok(Self { plant, edge, aggregator, publisher, are_running: true, values })
    }

    /// Ends both programs in order, or starts them again, unless it is so already.
    fn set_running(&mut self, shall_run: bool) -> anyhow::Result<()> {
        if self.are_running == shall_run {
            return Ok(());
        }
        self.are_running = shall_run;
        if shall_run {
            self.edge.restart()?;
            self.aggregator.restart()?;
            self.edge.wait_ready()?;
            return self.aggregator.wait_ready();
        }
        for process in [self.edge.process(), self.aggregator.process()] {
            process.terminate()?;
            let status = process.wait(EXIT_DEADLINE)?;
            ensure!(status.success(), "{}: {status}:\n{}", process.name(), process.tail());
        }
        Ok(())
    }

    fn do_as_told(&mut self, block: &Block) -> anyhow::Result<()> {
        match block.place {
            Place::Beside => {
                self.set_running(true)?;
                self.run(block.line, &block.text, block.exit_code()?)
            }
            Place::Stopped => {
                self.set_running(false)?;
                self.run(block.line, &block.text, block.exit_code()?)
            }
            Place::Mqtt => {
                self.set_running(true)?;
                self.publish(block)
            }
            Place::Values => self.check_values(block),
            Place::Elsewhere => {
                let done = Command::new("bash").args(["-n", "-c", &block.text]).output()?;
                let said = String::from_utf8_lossy(&done.stderr);
                ensure!(done.status.success() && said.is_empty(), "line {}: {said}", block.line);
                Ok(())
            }
        }
    }

    /// Runs commands in the checkout's root folder, both programs being in PATH.
    fn run(&self, line: usize, commands: &str, expected: i32) -> anyhow::Result<()> {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let system = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
        let paths = std::iter::once(self.plant.dir.join("bin"))
            .chain(std::env::split_paths(&paths))
            .chain(system);
        let done = Command::new("timeout")
            .args([BLOCK_SECONDS, "bash", "-euo", "pipefail", "-c", commands])
            .current_dir(workspace_root())
            .env("PATH", std::env::join_paths(paths)?)
            .envs(&self.values)
            .stdin(Stdio::null())
            .output()?;
        let (out, err) =
            (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        ensure!(
            done.status.code() == Some(expected),
            "line {line}: {} instead of exit code {expected}:\n{commands}\n{out}\n{err}",
            done.status
        );
        Ok(())
    }

    /// Sends what the block sends, and waits until the edge module has told of each as a request of this person.
    fn publish(&mut self, block: &Block) -> anyhow::Result<()> {
        let asked = format!("SELECT count(*) FROM machine_events WHERE operator = '{OPERATOR}'");
        let mut expected = self.plant.lake().count(&asked)?;
        for line in block.text.lines() {
            let (topic, payload) = line
                .strip_prefix("mosquitto_pub -t ")
                .and_then(|rest| rest.strip_suffix('\'')?.split_once(" -m '"))
                .with_context(|| format!("line {}: {line:?} is no message", block.line))?;
            self.publisher.publish(topic, payload)?;
            expected += 1;
        }
        self.publisher.wait_acknowledged(DEADLINE)?;
        let count = self.plant.wait_for_count(&asked, expected)?;
        ensure!(count == expected, "{count} machine events of {expected} messages");
        Ok(())
    }

    /// The names are those that the other blocks are run with, and what they stand for are the programs' defaults.
    fn check_values(&self, block: &Block) -> anyhow::Result<()> {
        let told: BTreeMap<&str, &str> =
            block.text.lines().filter_map(|line| line.split_once('=')).collect();
        ensure!(told.len() == block.text.lines().count(), "line {}: no NAME=value", block.line);
        let (told_names, given_names): (Vec<_>, Vec<_>) =
            (told.keys().collect(), self.values.keys().collect());
        ensure!(told_names == given_names, "{told_names:?} instead of {given_names:?}");
        let defaults = [
            ("edge-module", "EDGE_DATA", "data-dir"),
            ("edge-module", "EDGE_PAGE", "listen"),
            ("cloud-aggregator", "AGGREGATOR_PAGE", "listen"),
            ("cloud-aggregator", "OUTCOMES_PAGE", "listen"),
        ];
        for (program, name, key) in defaults {
            let path = workspace_root().join(program).join("config/default.toml");
            let value = told[name].trim_start_matches("http://");
            let line = format!("{key} = \"{value}\"");
            let is_there = std::fs::read_to_string(path)?.lines().any(|default| default == line);
            ensure!(is_there, "{name}: {line} is no default of {program}");
        }
        Ok(())
    }

    /// Nothing was lost by what was done to both, and what was to be forgotten is gone.
    fn check_afterwards(&mut self, readings: u64) -> anyhow::Result<()> {
        self.set_running(true)?;
        self.plant.check_each_reading_once("press-1/oil", readings)?;
        let rows = format!("SELECT count(*) FROM telemetry WHERE sensor_id = '{FORGOTTEN}'");
        ensure!(self.plant.lake().count(&rows)? == 0, "{FORGOTTEN} was not forgotten");
        let outcomes = self.plant.wait_for_count("SELECT count(*) FROM outcomes", 1)?;
        ensure!(outcomes == 1, "{outcomes} outcomes");
        let audit = run_command(&self.plant.dir.join("cloud-aggregator"), &["audit"])?;
        ensure!(audit.code == Some(0), "{audit:?}");
        let (_, status) = self.edge.get("/status")?;
        let status: Value = serde_json::from_str(&status)?;
        let machines = status["machines"].as_array().context("no machines")?;
        let motor = machines.iter().find(|machine| machine["machine_id"] == "motor-1");
        let trip = motor.map_or(&Value::Null, |motor| &motor["trip"]);
        ensure!(trip.is_object(), "the latched trip did not survive the restore: {status}");
        Ok(())
    }
}

/// What readings of the oil the plant has had.
const READINGS: u64 = 14;

/// A machine that is stopped by a limit and could be reset, one that is stopped by its model, a window that is an anomaly, a dead letter.
fn have_an_eventful_minute(plant: &Plant, publisher: &mut Publisher) -> anyhow::Result<()> {
    let port = plant.mosquitto.port();
    let obedience = Obedience::SpinsDown(Duration::ZERO);
    let press = FakeMachine::start(port, "press-1", obedience)?;
    let motor = FakeMachine::start(port, "motor-1", obedience)?;
    let start = now().micros() - 600_000_000;
    let mut send = |sensor: &str, at: EventTime, value: f64| {
        let reading = reading_json("press-1", sensor, "temperature", at, value);
        publisher.publish("plant/press-1/readings", reading)
    };
    for tick in 0..12 {
        let at = EventTime::from_micros(start.div_euclid(60_000_000) * 60_000_000 + tick * 1_000);
        send("press-1/oil", at, 101.0 + tick as f64)?;
        send(FORGOTTEN, at, 20.0)?;
    }
    send("press-1/oil", now(), 121.0)?;
    wait_for_standstill(&press)?;
    send("press-1/oil", now(), 60.0)?;
    let garbage = ("press-1/oil".to_owned(), b"garbage".to_vec());
    kafka()?.produce(&plant.topic("temperature"), &[garbage])?;

    let mut signal = MotorSignal::new(MotorProfile::healthy_1800_rpm(), 3);
    signal.set_severity(1.0);
    let samples = signal.next_samples(SAMPLE_RATE_HZ as usize * 2);
    let source = WaveformSource {
        machine_id: "motor-1",
        sensor_id: "motor-1/bearing",
        sample_rate_hz: SAMPLE_RATE_HZ,
        unit: "V",
    };
    let blocks = source.blocks(now(), &samples, BLOCK_SAMPLES);
    paced(blocks, BLOCK_INTERVAL, |block| publisher.publish("plant/motor-1/waveform", block))?;
    publisher.wait_acknowledged(DEADLINE)?;
    wait_for_standstill(&motor)?;

    let explained = plant.edge_settings.data_dir.join("explanations");
    eventually("the trip is explained", DEADLINE, || {
        std::fs::read_dir(&explained)?.next().context("no file yet")?.map_err(anyhow::Error::from)
    })?;
    let rows =
        format!("SELECT count(*) FROM telemetry WHERE sensor_id IN ('press-1/oil', '{FORGOTTEN}')");
    plant.wait_for_count(&rows, READINGS + 12)?;
    plant.wait_for_count("SELECT count(*) FROM anomalies", 1)?;
    plant.wait_for_count("SELECT count(*) FROM dead_letters", 1)?;
    plant.wait_for_count("SELECT count(*) FROM machine_events WHERE event_type = 'trip'", 2)?;
    Ok(())
}

fn wait_for_standstill(machine: &FakeMachine) -> anyhow::Result<()> {
    eventually("standstill", DEADLINE, || {
        if machine.is_running() { Err("still running") } else { Ok(()) }
    })
}

/// What the names in the blocks stand for here; the programs and kubectl are put where PATH leads.
fn values(
    plant: &Plant,
    outcomes_port: u16,
    tokens: &Path,
) -> anyhow::Result<BTreeMap<&'static str, String>> {
    let bin = plant.dir.join("bin");
    std::fs::create_dir_all(&bin)?;
    symlink(edge_module::program().canonicalize()?, bin.join("edge-module"))?;
    symlink(cloud_aggregator::program().canonicalize()?, bin.join("cloud-aggregator"))?;
    symlink(e2e_tests::setup_dir().join("manifests-venv/bin/kubectl"), bin.join("kubectl"))?;
    let edge = plant.dir.join("edge-module/edge-module.toml");
    let aggregator = plant.dir.join("cloud-aggregator/cloud-aggregator.toml");
    let new_config = plant.dir.join("new-place.toml");
    let mut at_new_place = plant.aggregator_settings.clone();
    at_new_place.lake = plant.dir.join("new-place");
    std::fs::write(&new_config, at_new_place.to_toml(1))?;
    let path = |path: &Path| path.display().to_string();
    Ok(BTreeMap::from([
        ("EDGE_PAGE", page_of(&edge)?),
        ("AGGREGATOR_PAGE", page_of(&aggregator)?),
        ("OUTCOMES_PAGE", format!("http://127.0.0.1:{outcomes_port}")),
        ("EDGE_CONFIG", path(&edge)),
        ("EDGE_DATA", path(&plant.edge_settings.data_dir)),
        ("AGGREGATOR_CONFIG", path(&aggregator)),
        ("NEW_CONFIG", path(&new_config)),
        ("TOKEN_FILE", path(tokens)),
        ("LAKE", path(&plant.aggregator_settings.lake)),
        ("BACKUP", path(&plant.dir.join("backup"))),
        ("CERTIFICATE", path(&certificate(&plant.dir)?)),
        ("LETTER", letter(plant)?),
    ]))
}

/// Where a program has its pages, from its settings.
fn page_of(config: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(config)?;
    let admin = text.split("[admin]\nlisten = \"").nth(1).context("no port")?;
    Ok(format!("http://{}", admin.split('"').next().unwrap_or_default()))
}

/// One that holds for a year.
fn certificate(dir: &Path) -> anyhow::Result<PathBuf> {
    let file = dir.join("server.pem");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "365", "-subj", "/CN=gw-1.plant.example.com", "-keyout"])
        .arg(dir.join("server.key"))
        .arg("-out")
        .arg(&file)
        .output()?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    Ok(file)
}

/// Name of the dead letter.
fn letter(plant: &Plant) -> anyhow::Result<String> {
    let list = ["dead-letters", "list", "--format", "json"];
    let listed = run_command(&plant.dir.join("cloud-aggregator"), &list)?;
    let letters = listed.output.lines().map(serde_json::from_str::<Value>);
    let names: Vec<String> =
        letters.filter_map(|letter| letter.ok()?["letter"].as_str().map(str::to_owned)).collect();
    ensure!(names.len() == 1, "{listed:?}");
    Ok(names.concat())
}

#[test]
fn every_command_of_the_runbook_does_what_it_says() -> anyhow::Result<()> {
    let runbook = runbook()?;
    let mut place = Station::prepare("runbook")?;
    check_words_of_pages(&runbook, &place)?;
    let mut commands = BTreeMap::new();
    for row in runbook.rows("alert")?.into_iter().chain(runbook.rows("event")?) {
        commands.entry(row.command).or_insert(row.line);
    }
    for (command, line) in &commands {
        place.run(*line, command, 0)?;
    }
    let mut executed = BTreeMap::<&str, usize>::new();
    for block in &runbook.blocks {
        place.do_as_told(block)?;
        let kind = match block.place {
            Place::Beside => "beside",
            Place::Stopped => "stopped",
            Place::Mqtt => "mqtt",
            Place::Values => "values",
            Place::Elsewhere => "elsewhere",
        };
        *executed.entry(kind).or_default() += 1;
    }
    // A runbook that has lost its commands would pass all of this.
    let enough = [("beside", 15), ("stopped", 7), ("mqtt", 1), ("values", 1)];
    for (kind, least) in enough {
        let found = executed.get(kind).copied().unwrap_or_default();
        ensure!(found >= least, "{found} blocks {kind}, there were {least} once");
    }
    place.check_afterwards(READINGS)
}

/// What it says stands on a page does.
fn check_words_of_pages(runbook: &Document, place: &Station) -> anyhow::Result<()> {
    let names = Names::of_the_repository()?;
    let pages = place.edge.get("/status")?.1 + &place.aggregator.get("/status")?.1;
    let unknown: BTreeSet<&str> = runbook
        .words()
        .map(|(_, word)| word)
        .filter(|word| names.is_of_a_page(word) && !pages.contains(&format!("\"{word}\"")))
        .collect();
    ensure!(unknown.is_empty(), "neither metrics, columns nor on a page: {unknown:?}");
    Ok(())
}

#[test]
fn the_tables_name_the_alerts_that_there_are_and_no_others() -> anyhow::Result<()> {
    let runbook = runbook()?;
    let mut told: Vec<String> = runbook.rows("alert")?.into_iter().map(|row| row.name).collect();
    told.sort_unstable();
    let mut rules = Vec::new();
    let folder = workspace_root().join("deployment-manifests/local/prometheus/rules");
    for entry in std::fs::read_dir(folder)? {
        let text = std::fs::read_to_string(entry?.path())?;
        let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("- alert: "));
        rules.extend(names.map(str::to_owned));
    }
    rules.sort_unstable();
    assert!(rules.len() >= 29, "{rules:?}");
    assert_eq!(told, rules);
    let told: Vec<String> = runbook.rows("event")?.into_iter().map(|row| row.name).collect();
    assert_eq!(told, AlertingEvent::ALL.map(AlertingEvent::as_str));
    let there_are = MachineEventType::ALL.map(MachineEventType::as_str);
    let quiet = runbook.tables("machine event");
    assert!(!quiet.is_empty(), "no table of the other machine events");
    for name in quiet.iter().filter_map(|(_, cells)| cells.first()).flat_map(|it| it.split(", ")) {
        let name = name.trim_matches('`');
        let is_quiet = there_are.contains(&name) && !told.iter().any(|told| told == name);
        assert!(is_quiet, "{name} is no machine event, or people are told of it");
    }
    Ok(())
}

#[test]
fn words_and_links_of_the_runbook_lead_to_what_there_is() -> anyhow::Result<()> {
    let (runbook, names) = (runbook()?, Names::of_the_repository()?);
    let mut faults = Vec::new();
    for (line, word) in runbook.words() {
        faults.extend(names.fault(word).map(|fault| format!("line {line}: {fault}")));
    }
    let folder = workspace_root().join("deployment-manifests");
    for (line, target) in runbook.links() {
        if !folder.join(target).exists() {
            faults.push(format!("line {line}: {target} is not there"));
        }
    }
    for block in &runbook.blocks {
        for word in block.text.lines().filter(|line| line.starts_with("make ")) {
            faults.extend(names.fault(word).map(|fault| format!("line {}: {fault}", block.line)));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    let formats = format!(
        "have format {FILE_FORMAT}; this version reads {FILE_FORMAT_OLDEST} and {FILE_FORMAT}"
    );
    assert!(text()?.contains(&formats), "{formats}");
    Ok(())
}
