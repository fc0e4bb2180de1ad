//! The same twelve partitions shared by one, two and four instances.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::World;
use super::input::{self, WINDOW_MICROS, Workload};
use super::live::wait_for_partitions;
use super::table::{Row, Table};
use crate::bench::usage::{cpu_seconds, memory_of};
use crate::cloud_aggregator::CloudAggregator;
use crate::eventually::eventually;
use crate::http::metric;
use crate::lake::LakeReader;

const PARTITIONS: i32 = 12;
const PATIENCE: Duration = Duration::from_secs(300);

/// `scale`: each time all instances have their partitions first, are stopped while the topics are filled, and go on together.
pub(super) fn measure(world: &World, table: &mut Table) -> anyhow::Result<()> {
    for instances in [1, 2, 4] {
        let row = run(world, instances).with_context(|| format!("{instances} instances"))?;
        table.add(row);
    }
    Ok(())
}

fn run(world: &World, instances: usize) -> anyhow::Result<Row> {
    let prefix = format!("scale{instances}-");
    let workload = Workload {
        prefix: prefix.clone(),
        records: world.options.records,
        sensors: 300,
        partitions: PARTITIONS / 3,
        slide_micros: WINDOW_MICROS,
        is_hot: false,
    };
    let topics = input::METRICS.map(|metric| format!("{prefix}{metric}"));
    world.kafka.create_topics(&topics.each_ref().map(String::as_str), workload.partitions)?;
    let lake_dir = world.folder(&prefix);
    let shared =
        world.settings(&lake_dir, &prefix, &[("AGGREGATOR__TRIGGER__PROCESSING_TIME", "1s")]);
    let mut members = Vec::new();
    for number in 0..instances {
        let mut member =
            CloudAggregator::start(&lake_dir.join(format!("instance-{number}")), &shared)?;
        member.wait_ready()?;
        members.push(member);
    }
    for member in &members {
        wait_for_partitions(member, f64::from(PARTITIONS) / instances as f64)?;
    }
    let lake = LakeReader::new(&shared.lake);
    let version =
        || anyhow::Ok(lake.protocols()?.get("telemetry").context("no telemetry")?.version);
    let before = version()?;
    let ids: Vec<u32> = members.iter_mut().map(|member| member.process().id()).collect();
    signal(&ids, "STOP")?;
    let input = input::fill(&world.kafka, workload);
    let cpu_before: f64 = ids.iter().map(|id| cpu_seconds(*id)).sum();
    let began = Instant::now();
    signal(&ids, "CONT")?;
    let input = input?;
    let records = input.workload.records as f64;
    eventually("all is committed", PATIENCE, || {
        let sum = sum_of(&members, "aggregator_records_total")?;
        ensure!(sum >= records, "{sum} of {records}");
        Ok(())
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = ids.iter().map(|id| cpu_seconds(*id)).sum::<f64>() - cpu_before;
    let commits = version()? - before;
    let failures = sum_of(&members, "aggregator_lake_failures_total")?;
    let peak = ids.iter().map(|id| memory_of(*id).highest).max();
    drop(members);
    ensure!(
        lake.count("SELECT count(*) FROM telemetry")? as f64 == records,
        "rows are lost or doubled"
    );
    std::fs::remove_dir_all(&shared.lake)?;
    Ok(Row {
        what: format!("windows and raw table, {PARTITIONS} partitions, {instances} instances"),
        measured: format!(
            "{:.0} records/s, {:.2} CPU-s a million, {:.1} commits/s ({commits}), {failures} epochs repeated after a conflict or failure",
            records / seconds,
            cpu * 1e6 / records,
            commits as f64 / seconds
        ),
        goal: None,
        peak,
    })
}

/// A counter over all instances.
fn sum_of(members: &[CloudAggregator], name: &str) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for member in members {
        sum += metric(&member.metrics()?, name, "").unwrap_or(0.0);
    }
    Ok(sum)
}

fn signal(ids: &[u32], name: &str) -> anyhow::Result<()> {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    let status = Command::new("kill").arg(format!("-{name}")).args(&ids).status()?;
    ensure!(status.success(), "kill -{name} {ids:?}: {status}");
    Ok(())
}
