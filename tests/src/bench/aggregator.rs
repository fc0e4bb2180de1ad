//! The benchmark of the aggregator with a real Apache Kafka, in processes of its own that are measured from outside and whose
//! tables are compared with a count of our own.
//!
//! `input` makes the records, `drain` reads what lies in topics as fast as it goes, `live` measures how late things are at a
//! steady rate, `scale` shares partitions among instances, `spark` gives the same topics to a Spark job. Every row of
//! `table` has its goal, if there is one, and the most memory that one process held.

mod drain;
mod input;
mod live;
mod scale;
mod spark;
mod table;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::ensure;
use tempfile::TempDir;

use super::figures::say;
use super::usage::{describe_machine, load_average};
use super::variable;
use crate::cloud_aggregator::{CloudAggregatorSettings, program};
use crate::kafka::Kafka;
use input::{Input, Workload};
use table::Table;

const PARTS: [&str; 7] = ["windows", "raw", "growth", "scale", "commit", "alert", "spark"];

/// What to measure and how much of it, from the environment.
#[derive(Clone, Debug)]
pub struct Options {
    /// `BENCH_PARTS`: of `windows`, `raw`, `growth`, `scale`, `commit`, `alert` and `spark`, joined by commas; all but the last.
    pub parts: Vec<String>,
    /// `BENCH_RECORDS`: readings in the topics.
    pub records: u64,
    /// `BENCH_RUNS`: of what is drained; medians are quoted.
    pub runs: usize,
    /// `BENCH_SECONDS`: of each steady feed.
    pub seconds: u64,
    /// `BENCH_RATE`: readings a second of each steady feed.
    pub rate: u64,
    /// `BENCH_PROFILE`: as the program was built, for the report.
    pub profile: String,
}

impl Options {
    /// Reads the environment; `BENCH_SHARE` (0 to 1) makes counts and times smaller.
    ///
    /// # Errors
    /// A variable is not what it should be.
    pub fn from_environment() -> anyhow::Result<Self> {
        let share: f64 = variable("BENCH_SHARE", 1.0)?;
        ensure!(share > 0.0 && share <= 1.0, "BENCH_SHARE is {share}: over 0, at most 1");
        let of = |count: f64| (count * share).ceil() as u64;
        let parts: String = variable("BENCH_PARTS", PARTS[..6].join(","))?;
        let parts: Vec<String> = parts.split(',').map(|part| part.trim().to_owned()).collect();
        for part in &parts {
            let known = PARTS.join(", ");
            ensure!(PARTS.contains(&part.as_str()), "BENCH_PARTS: {part:?} is none of {known}");
        }
        Ok(Self {
            parts,
            records: of(variable("BENCH_RECORDS", 5_000_000.0)?),
            runs: variable("BENCH_RUNS", 3)?,
            seconds: of(variable("BENCH_SECONDS", 60.0)?).max(10),
            rate: variable("BENCH_RATE", 5_000)?,
            profile: variable("BENCH_PROFILE", "not told".to_owned())?,
        })
    }

    fn includes(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }
}

/// What all measurements share.
struct World {
    dir: TempDir,
    kafka: Kafka,
    options: Options,
}

impl World {
    /// Settings of an aggregator that reads the topics `<prefix>temperature` and so on into a lake below `dir`.
    fn settings(
        &self,
        dir: &Path,
        prefix: &str,
        environment: &[(&str, &str)],
    ) -> CloudAggregatorSettings {
        let always = [
            ("AGGREGATOR__ALERTS__TOPIC", ""),
            ("AGGREGATOR__KAFKA__TOPICS__MACHINE_EVENTS", ""),
            ("AGGREGATOR__KAFKA__TOPICS__DEAD_LETTERS", ""),
            ("AGGREGATOR__KAFKA__SESSION_TIMEOUT", "45s"),
        ];
        let environment = always.iter().chain(environment);
        CloudAggregatorSettings {
            kafka_bootstrap: self.kafka.bootstrap(),
            group: format!("bench-{}", dir.file_name().unwrap_or_default().to_string_lossy()),
            topic_prefix: prefix.to_owned(),
            lake: dir.join("lake"),
            webhook_url: String::new(),
            group_by: "window",
            environment: environment.map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            more: String::new(),
        }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes topics and fills them.
    fn preload(&self, workload: Workload) -> anyhow::Result<Input> {
        let began = Instant::now();
        let input = input::preload(&self.kafka, workload)?;
        say(&format!(
            "input {:?}: {} JSON readings of {} sensors x 3 metrics, {} partitions, snappy; made in {:.0} s; {} windows over the limit",
            input.workload.prefix,
            input.workload.records,
            input.workload.sensors,
            input.workload.partitions * 3,
            began.elapsed().as_secs_f64(),
            input.windows.len(),
        ));
        Ok(input)
    }
}

/// Measures and prints.
///
/// # Errors
/// Kafka or the program does not start, or its tables are not what they should be.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.runs > 0, "BENCH_RUNS is 0: at least 1");
    let machine = describe_machine();
    say(&format!("machine: {machine}"));
    say(&format!("program: {}, profile {}", program().display(), options.profile));
    let target = crate::workspace_root().join("target");
    let dir = tempfile::Builder::new().prefix("bench-aggregator-").tempdir_in(target)?;
    let kafka = Kafka::start(&dir.path().join("kafka"))?;
    let world = World { dir, kafka, options: options.clone() };
    let mut table = Table::default();
    drain::measure(&world, &mut table)?;
    if options.includes("scale") {
        scale::measure(&world, &mut table)?;
    }
    if options.includes("commit") {
        live::measure_commits(&world, &mut table)?;
    }
    if options.includes("alert") {
        live::measure_alerts(&world, &mut table)?;
    }
    say(&format!(
        "\nmachine: {machine}, at the end {}; profile {}",
        load_average(),
        options.profile
    ));
    say(&table.to_string());
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
