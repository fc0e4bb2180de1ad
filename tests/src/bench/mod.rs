//! The benchmarks of both programs with a real mosquitto and a real Apache Kafka: [`aggregator`] is that of the aggregator, the
//! rest that of the edge module.
//!
//! [`stops`] trips machines while [`load`] keeps the module busy, in four states of its world; [`drain`] lets a backlog
//! wait and leave. [`park`] is the machine side, [`world`] the servers and the module, [`usage`] what the kernel says of
//! its process, [`figures`] what is printed. Nothing of it is part of the module: it is measured from outside, through
//! MQTT, Kafka, `/metrics` and `/proc`.

pub mod aggregator;
pub mod drain;
pub mod figures;
pub mod load;
pub mod park;
pub mod stops;
pub mod usage;
pub mod world;

use std::str::FromStr;

use anyhow::Context;

use figures::say;
use load::Kind;

/// What to measure and how much of it, from the environment.
#[derive(Clone, Debug)]
pub struct Options {
    /// `BENCH_PARTS`: of `readings`, `blocks`, `drain`, joined by commas.
    pub parts: Vec<String>,
    /// `BENCH_TRIPS`: stops in each state of each series.
    pub trips: usize,
    /// `BENCH_TRIPS_PER_SECOND`: over all machines.
    pub trips_per_second: f64,
    /// `BENCH_RATE`: readings or blocks a second behind the stops.
    pub rate: f64,
    /// `BENCH_MESSAGE_READINGS`: readings in one MQTT message.
    pub message_readings: usize,
    /// `BENCH_BLOCK_SAMPLES`: samples in one block.
    pub block_samples: usize,
    /// `BENCH_RECORDS`: the backlog that is drained.
    pub records: u64,
    /// `BENCH_DRAINING_RECORDS`: the backlog that stops are measured beside, each time it has to be made anew.
    pub draining_records: u64,
    /// `BENCH_PROFILE`: as the module was built, for the report.
    pub profile: String,
}

impl Options {
    /// Reads the environment; `BENCH_SHARE` (0 to 1) makes counts smaller.
    ///
    /// # Errors
    /// A variable is not what it should be.
    pub fn from_environment() -> anyhow::Result<Self> {
        let share: f64 = variable("BENCH_SHARE", 1.0)?;
        anyhow::ensure!(share > 0.0 && share <= 1.0, "BENCH_SHARE is {share}: over 0, at most 1");
        let of = |count: f64| (count * share).ceil();
        let parts: String = variable("BENCH_PARTS", "readings,blocks,drain".to_owned())?;
        let parts: Vec<String> = parts.split(',').map(|part| part.trim().to_owned()).collect();
        for part in &parts {
            let is_known = ["readings", "blocks", "drain"].contains(&part.as_str());
            anyhow::ensure!(is_known, "BENCH_PARTS: {part:?} is not readings, blocks or drain");
        }
        Ok(Self {
            parts,
            trips: of(variable("BENCH_TRIPS", 1000.0)?) as usize,
            trips_per_second: variable("BENCH_TRIPS_PER_SECOND", 40.0)?,
            rate: variable("BENCH_RATE", 10_000.0)?,
            message_readings: variable("BENCH_MESSAGE_READINGS", 1)?,
            block_samples: variable("BENCH_BLOCK_SAMPLES", 64)?,
            records: of(variable("BENCH_RECORDS", 2_000_000.0)?) as u64,
            draining_records: of(variable("BENCH_DRAINING_RECORDS", 1_000_000.0)?) as u64,
            profile: variable("BENCH_PROFILE", "not told".to_owned())?,
        })
    }

    fn includes(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }
}

fn variable<T>(name: &str, default: T) -> anyhow::Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().with_context(|| format!("{name} is {text:?}")),
        _ => Ok(default),
    }
}

/// Measures what the options name and prints it.
///
/// # Errors
/// A server or the module does not start, or a stop does not arrive.
pub fn run(options: &Options) -> anyhow::Result<()> {
    say(&format!("machine: {}", usage::describe_machine()));
    say(&format!(
        "module: {}, profile {}",
        crate::edge_module::program().display(),
        options.profile
    ));
    let world = world::World::start()?;
    if options.includes("readings") {
        stops::measure(&world, options, Kind::Readings)?;
    }
    if options.includes("blocks") {
        stops::measure(&world, options, Kind::Blocks)?;
    }
    if options.includes("drain") {
        drain::measure(&world, options)?;
    }
    say(&format!("load average at the end: {}", usage::load_average()));
    Ok(())
}
