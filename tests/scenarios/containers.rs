//! Both programs as they are shipped: containers made of the real Dockerfiles, read-only, as user 1000, without any
//! capability, with a real mosquitto and Apache Kafka.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::containers::{Container, Program};
use e2e_tests::eventually::eventually;
use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::publisher::{Publisher, WaveformSource, paced};
use e2e_tests::signal::{MotorProfile, MotorSignal, SAMPLE_RATE_HZ};
use serde_json::{Value, json};

use crate::outages::{minutes_ago, publish_readings};
use crate::plant::{DEADLINE, Plant, motor_bundle, now, run_dir};

const MACHINE: &str = "motor-0";
const SENSOR: &str = "press-1/oil";
const BLOCK_SAMPLES: usize = 500;
/// One block of 500 samples at 20 kHz.
const BLOCK_INTERVAL: Duration = Duration::from_millis(25);
const ROUNDS: i64 = 2;
const READINGS_OF_ROUND: i64 = 500;
/// What podman answers when a program is not there.
const NOT_FOUND: [Option<i32>; 2] = [Some(126), Some(127)];

#[test]
fn the_two_containers_with_mosquitto_and_kafka_stop_a_machine_and_lose_nothing_when_killed()
-> anyhow::Result<()> {
    let mut plant = Plant::new("containers")?;
    plant.edge_settings.machines = format!(
        "[[machines]]\nid = \"{MACHINE}\"\nscored-sensors = [\"{MACHINE}/bearing\"]\n\
         votes = 3\nof = 5\n"
    );
    plant.edge_settings.bundle_dir = Some(motor_bundle());
    let port = plant.mosquitto.port();
    let machine = FakeMachine::start(port, MACHINE, Obedience::SpinsDown(Duration::ZERO))?;
    let edge = Container::start_edge_module(&plant.dir.join("edge-module"), &plant.edge_settings)?;
    let aggregator = Container::start_aggregator(
        &plant.dir.join("cloud-aggregator"),
        &plant.aggregator_settings,
    )?;
    edge.wait_ready()?;
    aggregator.wait_ready()?;

    play_a_damaged_bearing(port)?;
    eventually("standstill", DEADLINE, || {
        if machine.is_running() { Err("it still runs") } else { Ok(()) }
    })
    .with_context(|| edge.log())?;

    let stops = machine.commands().len();
    let mut publisher = Publisher::connect(port, "sensors");
    let start = minutes_ago(60);
    for round in 0..ROUNDS {
        // In the middle of the work: some is journalled, some on its way, some committed.
        for (half, container) in [&edge, &aggregator].into_iter().enumerate() {
            let first = (2 * round + half as i64) * READINGS_OF_ROUND;
            let numbers = first..first + READINGS_OF_ROUND;
            publish_readings(&mut publisher, SENSOR, start, numbers)?;
            let rows = format!("SELECT count(*) FROM telemetry WHERE sensor_id = '{SENSOR}'");
            plant.wait_for_count(&rows, first.cast_unsigned() + 1)?;
            container.kill_and_start()?;
        }
    }
    publisher.wait_acknowledged(DEADLINE)?;
    edge.wait_ready()?;
    aggregator.wait_ready()?;
    plant.check_each_reading_once(SENSOR, (2 * ROUNDS * READINGS_OF_ROUND).cast_unsigned())?;
    check_sequences(&plant)?;
    check_windows(&plant)?;
    eventually("the stop is commanded anew: the latch was on the volume", DEADLINE, || {
        let commands = machine.commands().len();
        ensure!(commands > stops, "{commands} commands, {stops} before the kills");
        Ok(())
    })?;
    let trips = plant.machine_events("trip")?;
    assert_eq!(trips.len(), 1, "{trips:?}");
    assert_eq!(trips[0]["cause"], "score", "{}", trips[0]);

    for container in [&edge, &aggregator] {
        check_health(container)?;
        check_confinement(container)?;
        let code = container.stop(DEADLINE)?;
        assert_eq!(code, 0, "it ends when it is asked to:\n{}", container.log());
    }
    Ok(())
}

/// Nothing that the device has numbered is missing or twice: readings, windows, events, refusals and the waveforms of trips
/// share one count.
fn check_sequences(plant: &Plant) -> anyhow::Result<()> {
    let device = &plant.edge_settings.device_id;
    let tables = ["telemetry", "machine_events", "dead_letters", "waveforms"];
    let rows = tables.map(|table| {
        format!("SELECT generation, sequence FROM {table} WHERE device_id = '{device}'")
    });
    let sql = format!(
        "SELECT count(*) AS total, count(DISTINCT (generation, sequence)) AS different, \
         max(sequence) AS highest FROM ({})",
        rows.join(" UNION ALL ")
    );
    eventually("all sequences are in the lake, each once", DEADLINE, || {
        let rows = plant.lake().query(&sql)?;
        let row = rows.first().context("no row")?;
        let is_whole = row["total"] == row["different"] && row["total"] == row["highest"];
        ensure!(is_whole && row["total"].is_u64(), "{row}");
        Ok(())
    })
}

fn check_windows(plant: &Plant) -> anyhow::Result<()> {
    let batch = plant.lake().batch_windows("temperature", 100.0, 5)?;
    ensure!(!batch.is_empty(), "no window has matches");
    eventually("the windows equal the batch count", DEADLINE, || {
        let streamed = plant.streamed_windows()?;
        ensure!(streamed == batch, "{streamed:?} instead of {batch:?}");
        Ok(())
    })
}

/// Two seconds of a motor that must be stopped, at its own pace.
fn play_a_damaged_bearing(port: u16) -> anyhow::Result<()> {
    let mut signal = MotorSignal::new(MotorProfile::healthy_1800_rpm(), 1);
    signal.set_severity(1.0);
    let volts = signal.next_samples(SAMPLE_RATE_HZ as usize * 2);
    let sensor = format!("{MACHINE}/bearing");
    let source = WaveformSource {
        machine_id: MACHINE,
        sensor_id: &sensor,
        sample_rate_hz: SAMPLE_RATE_HZ,
        unit: "V",
    };
    let mut publisher = Publisher::connect(port, "accelerometer");
    let topic = format!("plant/{MACHINE}/waveform");
    paced(source.blocks(now(), &volts, BLOCK_SAMPLES), BLOCK_INTERVAL, |block| {
        publisher.publish(&topic, block)
    })?;
    publisher.wait_acknowledged(DEADLINE)
}

/// The image's own check tells a program that answers from one that hangs.
fn check_health(container: &Container) -> anyhow::Result<()> {
    assert_eq!(container.health()?, Some(0), "{}", container.log());
    container.signal("STOP")?;
    let hanging = container.health();
    container.signal("CONT")?;
    assert_eq!(hanging?, Some(1), "a program that hangs is not healthy");
    eventually("it is healthy again", DEADLINE, || {
        let code = container.health()?;
        ensure!(code == Some(0), "the check answers {code:?}");
        Ok(())
    })
}

/// Nobody can log in, and nothing was written beside the volume.
fn check_confinement(container: &Container) -> anyhow::Result<()> {
    for shell in ["/bin/sh", "/bin/bash", "/usr/bin/env"] {
        let finished = container.exec(&[shell, "-c", "true"])?;
        assert!(NOT_FOUND.contains(&finished.code), "{shell}: {finished:?}");
    }
    // Folders on which something is mounted do not count, nor what the runtime itself makes.
    let changed = container.changed_files()?;
    let changed: Vec<&str> = changed.lines().filter(|line| !is_of_the_runtime(line)).collect();
    assert!(changed.is_empty(), "{changed:?}");
    Ok(())
}

/// Lines of `podman diff`: a letter and a path.
fn is_of_the_runtime(line: &str) -> bool {
    let mounted =
        ["/bundle", "/dev", "/etc", "/proc", "/run", "/run/.containerenv", "/run/secrets", "/sys"];
    line.split_once(' ').is_some_and(|(_, path)| mounted.contains(&path))
}

#[test]
fn an_image_has_one_program_its_libraries_user_1000_and_nothing_to_log_in_with()
-> anyhow::Result<()> {
    for program in Program::ALL {
        let name = program.name();
        let image = program.inspect()?;
        assert_eq!(image["User"], "1000:1000", "{name}");
        let config = &image["Config"];
        assert_eq!(config["Entrypoint"], json!([format!("/usr/bin/{name}")]));
        let settings = format!("/etc/{name}/{name}.toml");
        assert_eq!(config["Cmd"], json!(["run", "--config", settings]));
        let volumes = config["Volumes"].as_object().context("no volumes")?;
        assert!(volumes.keys().eq([&program.data_dir().display().to_string()]), "{volumes:?}");
        let check = &image["Healthcheck"]["Test"];
        let program_path = format!("/usr/bin/{name}");
        assert_eq!(*check, json!(["CMD", program_path, "healthcheck", "--config", settings]));
        check_labels(name, &image["Labels"]);
        let dir = run_dir().join(format!("image-{name}"));
        program.unpack(&dir)?;
        check_files(name, &dir)?;
    }
    Ok(())
}

fn check_labels(name: &str, labels: &Value) {
    assert_eq!(labels["org.opencontainers.image.title"], name);
    assert_eq!(labels["org.opencontainers.image.licenses"], "Apache-2.0");
    assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    for label in ["description", "revision", "created"] {
        let value = labels[format!("org.opencontainers.image.{label}")].as_str();
        assert!(value.is_some_and(|value| !value.is_empty()), "{name}: {label}");
    }
}

/// Everything that is a file or a link, and what nobody may have.
fn check_files(name: &str, dir: &Path) -> anyhow::Result<()> {
    let mut paths = Vec::new();
    list(dir, &mut paths)?;
    let mut others = Vec::new();
    for path in &paths {
        let inside = path.strip_prefix(dir)?.display().to_string();
        let metadata = path.symlink_metadata()?;
        ensure!(metadata.permissions().mode() & 0o6000 == 0, "{inside} changes who runs it");
        let is_expected = inside.contains(".so")
            || inside == format!("usr/bin/{name}")
            || inside == format!("etc/{name}/{name}.toml")
            || inside == format!("usr/share/sbom/{name}.cdx.json")
            || inside.ends_with("ssl/certs/ca-certificates.crt")
            || ["bin", "lib", "lib64", "usr/lib/ssl/cert.pem"].contains(&inside.as_str())
            || ["etc/passwd", "etc/group", "etc/nsswitch.conf"].contains(&inside.as_str());
        if !is_expected {
            others.push(inside);
        }
    }
    assert!(others.is_empty(), "{name}: {others:?}");
    let library = dir.join("usr/lib/libtensorflowlite_c.so");
    assert_eq!(library.exists(), name == "edge-module", "{name}");
    Ok(())
}

fn list(dir: &Path, paths: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), paths)?;
        } else {
            paths.push(entry.path());
        }
    }
    Ok(())
}

/// Held against Cargo.lock, and against what certainly is in the program, and what certainly is not.
#[test]
fn bills_of_materials_name_the_crates_and_libraries_that_are_in_the_programs() -> anyhow::Result<()>
{
    let locked = locked_checksums()?;
    let expected = [
        (Program::EdgeModule, vec!["rdkafka", "tflitec", "sled", "librdkafka", "libssl3", "libc6"]),
        (Program::CloudAggregator, vec!["rdkafka", "deltalake", "jemalloc", "libssl3", "libc6"]),
    ];
    for (program, there) in expected {
        let name = program.name();
        let dir = run_dir().join(format!("bill-{name}"));
        program.unpack(&dir)?;
        let bill = std::fs::read(dir.join(format!("usr/share/sbom/{name}.cdx.json")))?;
        let bill: Value = serde_json::from_slice(&bill)?;
        assert_eq!(
            (&bill["bomFormat"], &bill["specVersion"]),
            (&json!("CycloneDX"), &json!("1.5"))
        );
        assert_eq!(bill["metadata"]["component"]["name"], name);
        let components = bill["components"].as_array().context("no components")?;
        let names: Vec<&str> = components.iter().filter_map(|it| it["name"].as_str()).collect();
        for name in there {
            assert!(names.contains(&name), "{name} is missing");
        }
        // Of tests, of build scripts, and what runs in the compiler alone.
        for name in ["proptest", "criterion", "rumqttd", "prost-build", "cc", "serde_derive"] {
            assert!(!names.contains(&name), "{name} is not in the program");
        }
        let refs: std::collections::BTreeSet<&str> =
            components.iter().filter_map(|it| it["bom-ref"].as_str()).collect();
        assert_eq!(refs.len(), components.len(), "each has a reference of its own");
        check_crates(components, &locked)?;
    }
    Ok(())
}

fn check_crates(components: &[Value], locked: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let mut crates = 0;
    for component in components {
        let purl = component["purl"].as_str().context("no purl")?;
        let Some(named) = purl.strip_prefix("pkg:cargo/") else { continue };
        let named = named.replace("%2B", "+");
        let checksum = locked.get(&named).with_context(|| format!("{named} is not locked"))?;
        let told = component["hashes"][0]["content"].as_str().unwrap_or_default();
        ensure!(told == checksum, "{named}: checksum {told}, locked is {checksum}");
        ensure!(component["licenses"][0]["expression"].is_string(), "{named} has no licence");
        crates += 1;
    }
    ensure!(crates > 150, "only {crates} crates");
    Ok(())
}

/// `name@version` of each package of Cargo.lock; the checksum is empty for our own.
fn locked_checksums() -> anyhow::Result<BTreeMap<String, String>> {
    let lock = std::fs::read_to_string(e2e_tests::workspace_root().join("Cargo.lock"))?;
    let mut locked = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key));
            line.map_or("", |value| value.trim_matches('"')).to_owned()
        };
        let (name, version) = (value("name = "), value("version = "));
        locked.insert(format!("{name}@{version}"), value("checksum = "));
    }
    Ok(locked)
}
