//! How fast a backlog leaves, what it costs in CPU time, memory and disk.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::Options;
use super::figures::{megabytes, say, verdict};
use super::load::{BACKLOG_MESSAGE_READINGS, publish_backlog};
use super::usage::{Stretch, cpu_seconds, disk_bytes, load_average, memory_of};
use super::world::{Gateway, PATIENCE, World};
use crate::eventually::eventually;

/// The module shows what it owes twice a second.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const GOAL_RECORDS_PER_SECOND: f64 = 150_000.0;
const GOAL_DISK_BYTES: u64 = 64_000_000;
const GOAL_DISK: Duration = Duration::from_secs(60);

/// Lets a backlog wait with Kafka cut, then lets it leave.
///
/// # Errors
/// A server does not start, or something takes longer than ten minutes.
pub fn measure(world: &World, options: &Options) -> anyhow::Result<()> {
    say(&format!("\nbacklog of {} readings, no machines", options.records));
    let mut gateway = Gateway::start(world, "drain", String::new(), None, &[])?;
    say(&format!("at the start: {}", memory_of(gateway.pid())));
    gateway.link.cut();
    fill(&gateway, options.records)?;
    restart(&mut gateway)?;
    drain(&gateway)
}

/// What memory the flood left with the allocator goes with the process: what is there after this is what a backlog costs.
fn restart(gateway: &mut Gateway<'_>) -> anyhow::Result<()> {
    let seconds = gateway.restart()?.as_secs_f64();
    // The forwarder has read what may be in flight.
    let owed = eventually("the restarted module tells what it owes", PATIENCE, || {
        let counters = gateway.counters()?;
        ensure!(counters.owed_readings > 0.0, "nothing");
        Ok(counters.owed_readings)
    })?;
    say(&format!(
        "started again with {owed:.0} records: ready after {seconds:.2} s; waiting: {}",
        memory_of(gateway.pid())
    ));
    Ok(())
}

fn fill(gateway: &Gateway<'_>, records: u64) -> anyhow::Result<()> {
    let stretch = Stretch::begin(gateway.pid());
    let published = publish_backlog(gateway.mqtt_port(), records)?;
    eventually("the backlog is in the journal", PATIENCE, || {
        let counters = gateway.counters()?;
        let owed = counters.owed_readings;
        ensure!(owed >= published as f64, "{owed} of {published} records");
        Ok(())
    })?;
    say(&format!(
        "fill: {:.0} records/s from MQTT (arrays of {BACKLOG_MESSAGE_READINGS}) to durable, {:.2} CPU-s a million, load average {}",
        published as f64 / stretch.seconds(),
        stretch.cpu_seconds() / published as f64 * 1e6,
        load_average()
    ));
    say(&format!("    threads: {}", stretch.busiest(6)));
    say(&format!("    after the flood: {}", memory_of(gateway.pid())));
    say(&format!("    {}", gateway.wait_quiet()?.delivery(published)));
    Ok(())
}

fn drain(gateway: &Gateway<'_>) -> anyhow::Result<()> {
    let start = gateway.counters()?;
    let owed = start.owed_readings;
    say(&format!(
        "disk before: journal_disk_bytes {}, du {}",
        megabytes(start.journal_bytes as u64),
        megabytes(disk_bytes(&gateway.journal_dir()))
    ));
    let stretch = Stretch::begin(gateway.pid());
    let driver = cpu_seconds(std::process::id());
    let mended = Instant::now();
    gateway.link.mend();
    let mut first_delivery = None;
    let mut disk_is_small = None;
    let mut empty = None;
    while empty.is_none() || disk_is_small.is_none() {
        ensure!(mended.elapsed() < PATIENCE, "the backlog does not drain");
        let counters = gateway.counters()?;
        if first_delivery.is_none() && counters.delivered > start.delivered {
            first_delivery = Some(mended.elapsed());
        }
        if empty.is_none() && counters.owed == 0.0 {
            empty = Some((mended.elapsed(), stretch.cpu_seconds(), stretch.busiest(8)));
        }
        if disk_is_small.is_none() && disk_bytes(&gateway.journal_dir()) < GOAL_DISK_BYTES {
            disk_is_small = Some(mended.elapsed());
        }
        // The pace of looking.
        std::thread::sleep(LOOK_INTERVAL);
    }
    let (Some((empty, cpu, threads)), Some(disk_is_small)) = (empty, disk_is_small) else {
        return Ok(());
    };
    let first_delivery = first_delivery.unwrap_or(empty);
    let rate = owed / empty.as_secs_f64();
    let rate_busy = owed / (empty - first_delivery).as_secs_f64().max(f64::EPSILON);
    say(&format!(
        "drain: {owed:.0} records in {:.2} s = {rate:.0} records/s; first delivery after {:.2} s, from then {rate_busy:.0} records/s; \
         goal 150,000 {}; load average {}",
        empty.as_secs_f64(),
        first_delivery.as_secs_f64(),
        verdict(rate_busy >= GOAL_RECORDS_PER_SECOND),
        load_average()
    ));
    let driver = cpu_seconds(std::process::id()) - driver;
    say(&format!(
        "    module {:.2} CPU-s a million; this driver, whose proxy carries the line, {:.2}; threads: {threads}",
        cpu / owed * 1e6,
        driver / owed * 1e6
    ));
    let journal_bytes = gateway.counters()?.journal_bytes as u64;
    say(&format!(
        "disk under 64 MB after {:.1} s, goal 60 s {}; journal_disk_bytes {}, du {}; {}",
        disk_is_small.as_secs_f64(),
        verdict(disk_is_small <= GOAL_DISK),
        megabytes(journal_bytes),
        megabytes(disk_bytes(&gateway.journal_dir())),
        memory_of(gateway.pid())
    ));
    Ok(())
}
