//! Maintenance beside a running aggregator: no row missing, none twice, the windows those that a batch counts, and tables that
//! every reader can read.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e_tests::cloud_aggregator::{CloudAggregator, program};
use e2e_tests::eventually::eventually;
use e2e_tests::lake::LakeReader;

use crate::exactly_once::plant;
use crate::feeder::Feeder;
use crate::plant::{DEADLINE, Plant};

/// `maintain` ends with it when another instance is at it.
const EXIT_TEMPORARY: i32 = 75;
const LOAD: Duration = Duration::from_secs(20);

fn maintain(plant: &Plant, lease: &str) -> anyhow::Result<Output> {
    let mut command = Command::new(program());
    command
        .arg("maintain")
        .env("AGGREGATOR__LAKE__LOCATION", &plant.aggregator_settings.lake)
        .env("AGGREGATOR__MAINTENANCE__FILES_MIN", "2")
        .env("AGGREGATOR__MAINTENANCE__CHECKPOINT_COMMITS", "5")
        .env("AGGREGATOR__MAINTENANCE__LEASE", lease);
    command.output().context("maintain cannot be started")
}

#[test]
fn appends_go_through_beside_maintenance_and_each_row_stays_once() -> anyhow::Result<()> {
    let mut plant = plant("lake-upkeep")?;
    let settings = &mut plant.aggregator_settings.environment;
    settings.push(("AGGREGATOR__TRIGGER__PROCESSING_TIME".to_owned(), "100ms".to_owned()));
    settings.push(("AGGREGATOR__MAINTENANCE__ENABLED".to_owned(), "false".to_owned()));
    let mut feeder = Feeder::new(&plant);
    feeder.feed()?;
    let aggregator = plant.start_aggregator()?;
    let began = Instant::now();
    let (mut rounds, mut merged) = (0, 0);
    while began.elapsed() < LOAD {
        feeder.feed()?;
        let output = maintain(&plant, "1s")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{}: {text}{errors}", output.status);
        rounds += 1;
        let has_merged =
            |line: &str| line.starts_with("telemetry: ") && !line.contains("merged 0 files");
        merged += usize::from(text.lines().any(has_merged));
    }
    let metrics = aggregator.metrics()?;
    let failures = metrics.lines().find(|line| line.starts_with("aggregator_lake_failures_total"));
    ensure!(
        failures.is_none_or(|line| line.ends_with(" 0")),
        "an epoch failed beside maintenance: {failures:?}"
    );
    ensure!(merged >= 5, "{merged} of {rounds} rounds merged anything");
    let before = plant.lake().protocols()?;
    feeder.check(&plant)?;
    let last = maintain(&plant, "1s")?;
    ensure!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));
    feeder.check(&plant)?;
    for (table, protocol) in plant.lake().protocols()? {
        ensure!((protocol.reader, protocol.writer) == (1, 2), "{table}: {protocol:?}");
    }
    let after = plant.lake().protocols()?["telemetry"];
    eprintln!(
        "{rounds} rounds beside {} commits: {:?}, then {after:?}",
        after.version, before["telemetry"]
    );
    ensure!(after.files <= before["telemetry"].files, "{after:?}");
    Ok(())
}

#[test]
fn of_two_aggregators_one_maintains_and_the_other_goes_on_when_it_is_killed() -> anyhow::Result<()>
{
    let mut plant = plant("lake-election")?;
    plant.aggregator_settings.more = String::new();
    for (key, value) in [("INTERVAL", "200ms"), ("LEASE", "3s"), ("FILES_MIN", "2")] {
        let variable = format!("AGGREGATOR__MAINTENANCE__{key}");
        plant.aggregator_settings.environment.push((variable, value.to_owned()));
    }
    let mut feeder = Feeder::new(&plant);
    feeder.feed()?;
    let start = |name: &str| -> anyhow::Result<CloudAggregator> {
        CloudAggregator::start(&plant.dir.join(name), &plant.aggregator_settings)
    };
    let mut both = [start("first")?, start("second")?];
    let rounds = |aggregator: &CloudAggregator, outcome: &str| -> anyhow::Result<u64> {
        let name = format!("aggregator_maintenance_rounds_total{{outcome=\"{outcome}\"}} ");
        let metrics = aggregator.metrics()?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name.as_str()));
        Ok(value.map_or(Ok(0), str::parse)?)
    };
    let elected = eventually("one of them is elected", DEADLINE, || {
        let done = [rounds(&both[0], "done")?, rounds(&both[1], "done")?];
        let held = [rounds(&both[0], "held-elsewhere")?, rounds(&both[1], "held-elsewhere")?];
        let elected = usize::from(done[1] > done[0]);
        ensure!(done[elected] >= 3 && held[1 - elected] >= 3, "done {done:?}, held {held:?}");
        ensure!(done[1 - elected] == 0, "both maintain: {done:?}");
        Ok(elected)
    })?;
    both[elected].process().kill()?;
    eventually("the other one goes on", DEADLINE, || {
        let done = rounds(&both[1 - elected], "done")?;
        ensure!(done >= 3, "{done} rounds");
        Ok(())
    })?;
    feeder.feed()?;
    feeder.check(&plant)?;
    let status = maintain(&plant, "3s")?.status;
    ensure!(status.code() == Some(EXIT_TEMPORARY), "the lease is held by the aggregator: {status}");
    Ok(())
}

/// Six hours of commits a minute apart, of three machines.
fn simulated_lake(lake: &Path) -> anyhow::Result<()> {
    let example = program().with_file_name("examples").join("lake_over_days");
    let mut command = Command::new(&example);
    command.env("FOLDER", lake);
    for (variable, value) in
        [("HOURS", "6"), ("COMMIT_SECONDS", "60"), ("SENSORS", "30"), ("MAINTAINED", "0")]
    {
        command.env(variable, value);
    }
    let context = || format!("{}: cargo build --examples makes it", example.display());
    let output = command.output().with_context(context)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn readers_find_a_sensor_or_a_machine_in_fewer_files_and_bytes_after_maintenance()
-> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let lake = folder.path().join("lake");
    simulated_lake(&lake)?;
    let reader = LakeReader::new(&lake);
    let rows = "SELECT count(*), count(DISTINCT source_offset) FROM telemetry";
    let end = reader.query("SELECT max(timestamp) AS latest FROM telemetry")?;
    let end = end.first().and_then(|row| row["latest"].as_str()).context("no row")?;
    let day = end.get(..10).context("no date")?;
    let hour = (format!("{day}T20:00:00Z"), format!("{day}T21:00:00Z"));
    let whole_day = (format!("{day}T00:00:00Z"), format!("{day}T23:59:59Z"));
    let look = || -> anyhow::Result<_> {
        let began = Instant::now();
        let sensor = ("sensor_id", "press-1/temperature-0013");
        let of_sensor = reader.touched("telemetry", sensor, (&hour.0, &hour.1))?;
        let machine = ("machine_id", "press-1");
        let of_machine = reader.touched("telemetry", machine, (&whole_day.0, &whole_day.1))?;
        let queried = Instant::now();
        let count = reader.count(&format!(
            "SELECT count(*) FROM telemetry WHERE sensor_id = '{}' AND timestamp >= '{}' AND timestamp < '{}'",
            sensor.1, hour.0, hour.1
        ))?;
        ensure!(count == 3600, "{count} rows of a sensor's hour");
        let took = (queried.duration_since(began), queried.elapsed());
        Ok((of_sensor, of_machine, reader.query(rows)?, took))
    };
    let before = look()?;
    let mut command = Command::new(program());
    command.arg("maintain").env("AGGREGATOR__LAKE__LOCATION", &lake);
    // Files of four hours, as a large plant has them.
    command.env("AGGREGATOR__MAINTENANCE__ROW_GROUP_ROWS", "8192");
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let after = look()?;
    eprintln!("before {before:?}\nafter {after:?}");
    ensure!(before.2 == after.2, "other rows: {:?}, {:?}", before.2, after.2);
    for (what, before, after) in [("sensor", before.0, after.0), ("machine", before.1, after.1)] {
        ensure!(after.files.0 * 10 < before.files.0, "{what}: {} files", after.files.0);
        ensure!(after.row_groups.0 * 2 < after.row_groups.1, "{what}: {:?}", after.row_groups);
        ensure!(after.bytes.0 * 2 < before.bytes.0, "{what}: {} bytes", after.bytes.0);
    }
    Ok(())
}
