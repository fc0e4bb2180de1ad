//! What must hold at the end: sort everything, then count. Shares no code with what it judges.

use std::collections::{BTreeMap, BTreeSet};

use shared_proto::model::{DeviceId, Generation, MachineEventType, Quality, Reading, SensorId};

use crate::broker::Payload;
use crate::edge::THRESHOLD;
use crate::world::{SECOND, World};

type Name = (DeviceId, Generation, u64);

/// What a run has seen, to be added up over the runs.
pub(crate) type Seen = BTreeMap<&'static str, usize>;

/// Checks a finished run.
pub(crate) fn check(world: &World) -> Seen {
    let rows = count_rows(world);
    check_deadband(world);
    let delivered = check_deliveries(world, &rows);
    check_journal(world, &rows, &delivered);
    let anomalies = check_windows(world);
    check_alerts(world, &anomalies);
    let duplicates = check_accounting(world);
    let totals = world.history.totals;
    BTreeMap::from([
        ("readings measured", world.history.measured.len()),
        ("records journalled", world.history.journalled.len()),
        ("rows in telemetry", world.lake.telemetry.len()),
        ("duplicates dropped", duplicates),
        ("late readings", world.lake.late_readings.len()),
        ("dead letters", world.lake.dead_letters.len()),
        ("anomalies", anomalies.len()),
        ("corrections", world.lake.anomalies.iter().filter(|row| row.revision > 1).count()),
        ("alerts repeated", world.lake.alerts.len() - anomalies.len()),
        ("edge crashes", totals.edge_crashes),
        ("disks lost", totals.disks_lost),
        ("send failures", totals.send_failures),
        ("records refused", totals.refused),
        ("records evicted", totals.evicted),
        ("cloud crashes", totals.cloud_crashes),
        ("epochs", totals.epochs),
        ("ownership lost", totals.ownership_lost),
        ("tables rolled forward", totals.rolled_forward),
    ])
}

fn name_of(payload: &Payload) -> Option<Name> {
    let identity = payload.identity()?;
    Some((identity.device_id.clone(), identity.generation, identity.sequence.0))
}

/// How many rows each identity has, in all tables together.
fn count_rows(world: &World) -> BTreeMap<Name, usize> {
    let lake = &world.lake;
    let in_telemetry = lake.telemetry.iter().filter_map(|reading| {
        let identity = reading.identity.as_ref()?;
        Some((identity.device_id.clone(), identity.generation, identity.sequence.0))
    });
    let late = lake.late_readings.iter().map(|row| &row.identity);
    let events = lake.machine_events.iter().map(|row| &row.identity);
    let letters = lake.dead_letters.iter().map(|row| &row.identity);
    let others = late.chain(events).chain(letters).flatten();
    let others = others.map(|row| (row.device_id.clone(), row.generation, row.sequence.0));
    let mut rows = BTreeMap::new();
    for name in in_telemetry.chain(others) {
        *rows.entry(name).or_default() += 1;
    }
    rows
}

/// The dead band holds back nothing above the threshold.
fn check_deadband(world: &World) {
    let above = |readings: &mut dyn Iterator<Item = &Reading>| {
        let mut above: Vec<(SensorId, i64, u64)> = readings
            .filter(|one| one.metric_type.as_str() == "temperature" && one.value > THRESHOLD)
            .map(|one| (one.sensor_id.clone(), one.timestamp.micros(), one.value.to_bits()))
            .collect();
        above.sort();
        above
    };
    let mut journalled = world.history.journalled.iter().filter_map(|payload| match payload {
        Payload::Reading(reading) => Some(reading),
        Payload::Event(_) | Payload::Letter(_) | Payload::Garbage => None,
    });
    let measured = above(&mut world.history.measured.iter());
    assert_eq!(measured, above(&mut journalled), "values above the threshold in the journals");
}

/// What reached the broker with an identity stands in the lake exactly once, and nothing else does.
fn check_deliveries(world: &World, rows: &BTreeMap<Name, usize>) -> BTreeSet<Name> {
    let delivered: BTreeSet<Name> =
        world.broker.logs.values().flatten().filter_map(name_of).collect();
    for (name, count) in rows {
        assert_eq!(*count, 1, "rows of {name:?}");
        assert!(delivered.contains(name), "{name:?} was never delivered");
    }
    let missing: Vec<_> = delivered.iter().filter(|name| !rows.contains_key(*name)).collect();
    assert!(missing.is_empty(), "delivered and in no table: {missing:?}");
    delivered
}

/// What was journalled arrived, unless a gap names it, the broker refuses it, or its disk was lost.
fn check_journal(world: &World, rows: &BTreeMap<Name, usize>, delivered: &BTreeSet<Name>) {
    let history = &world.history;
    let gaps: Vec<(DeviceId, Generation, u64, u64)> = world
        .lake
        .machine_events
        .iter()
        .filter(|row| row.event_type == MachineEventType::Gap)
        .map(|row| {
            let identity = row.identity.as_ref().expect("journalled");
            let (first, last) = (row.details.first_sequence, row.details.last_sequence);
            let (first, last) = (first.expect("a range"), last.expect("a range"));
            (identity.device_id.clone(), identity.generation, first, last)
        })
        .collect();
    let mut next: BTreeMap<(DeviceId, Generation), u64> = BTreeMap::new();
    for name in history.journalled.iter().filter_map(name_of) {
        let (device, generation, sequence) = &name;
        let expected = next.entry((device.clone(), *generation)).or_insert(1);
        assert_eq!(sequence, expected, "sequences of {device} have no holes");
        *expected += 1;
        let is_gap = gaps.iter().any(|(of, life, first, last)| {
            (of, life) == (device, generation) && (first..=last).contains(&sequence)
        });
        let is_lost = history.lost_generations.contains(&(device.clone(), *generation));
        let text = format!("{device}/{}/{sequence}", generation.0);
        if history.refused.contains(&text) {
            assert!(!delivered.contains(&name), "{name:?} was refused");
            let is_kept = |raw: &[u8]| raw == text.as_bytes();
            let is_letter = world.lake.dead_letters.iter().any(|row| is_kept(&row.raw));
            assert!(is_letter || is_lost, "{name:?} was refused and has no dead letter");
        } else if !is_gap && !is_lost {
            assert!(rows.contains_key(&name), "{name:?} was journalled and is lost");
        }
    }
}

/// Windows with more than five temperatures above the threshold, counted anew from the rows of `telemetry`.
fn batch_windows(world: &World) -> BTreeMap<(SensorId, i64), u64> {
    let mut counts: BTreeMap<(SensorId, i64), u64> = BTreeMap::new();
    for reading in &world.lake.telemetry {
        let is_match = reading.metric_type.as_str() == "temperature"
            && reading.value > THRESHOLD
            && reading.quality != Some(Quality::Bad);
        if is_match {
            let minute = reading.timestamp.micros().div_euclid(60 * SECOND);
            *counts.entry((reading.sensor_id.clone(), minute * 60 * SECOND)).or_default() += 1;
        }
    }
    counts.retain(|_, count| *count > 5);
    counts
}

/// The latest revisions equal the batch, and revisions count from 1 without holes.
fn check_windows(world: &World) -> BTreeMap<(SensorId, i64), u64> {
    let mut rows: Vec<_> = world.lake.anomalies.iter().collect();
    rows.sort_by_key(|row| (row.sensor_id.clone(), row.window_start, row.revision));
    let sensor = |id: &Option<SensorId>| id.clone().expect("the rule counts by sensor");
    let mut latest: BTreeMap<(SensorId, i64), (u32, u64)> = BTreeMap::new();
    for row in rows {
        let key = (sensor(&row.sensor_id), row.window_start.micros());
        let before = latest.insert(key, (row.revision, row.count));
        let (revision, count) = before.unwrap_or((0, 0));
        assert_eq!(row.revision, revision + 1, "revisions of {row:?}");
        assert!(row.count > count, "a correction adds: {row:?}");
    }
    let streamed: BTreeMap<_, _> =
        latest.into_iter().map(|(key, (_, count))| (key, count)).collect();
    assert_eq!(streamed, batch_windows(world), "latest revisions and batch");
    streamed
}

/// Every anomaly was alerted, and nothing else.
fn check_alerts(world: &World, anomalies: &BTreeMap<(SensorId, i64), u64>) {
    let alerts = world.lake.alerts.iter();
    let sensor = |id: &Option<SensorId>| id.clone().expect("the rule counts by sensor");
    let alerted: BTreeSet<(SensorId, i64)> =
        alerts.map(|alert| (sensor(&alert.sensor_id), alert.window_start.micros())).collect();
    let ids: BTreeSet<&str> =
        world.lake.alerts.iter().map(|alert| alert.alert_id.as_str()).collect();
    assert_eq!(alerted, anomalies.keys().cloned().collect(), "alerts and anomalies");
    assert_eq!(ids.len(), alerted.len(), "one id a window");
}

/// Records in = counted + late + duplicates + dead letters, and each of them is what the logs and the tables hold.
fn check_accounting(world: &World) -> usize {
    let states = world.instances.iter().flat_map(|instance| instance.states());
    let sum = states.fold(aggregator_core::Accounting::default(), |sum, (partition, state)| {
        let of_partition = state.accounting();
        assert!(of_partition.is_balanced(), "{partition}: {of_partition:?}");
        let held = world.broker.logs[partition].len() as u64;
        assert_eq!(of_partition.records_in, held, "{partition}");
        sum.plus(of_partition)
    });
    let (lake, logs) = (&world.lake, &world.broker.logs);
    let of_topic = |topic: &str| {
        let payloads = logs.iter().filter(|(one, _)| one.topic == topic).flat_map(|(_, log)| log);
        payloads.filter_map(name_of).collect::<BTreeSet<_>>().len()
    };
    let letters_in = of_topic("dead-letters");
    let rows = lake.telemetry.len() + lake.machine_events.len() + letters_in;
    assert_eq!(sum.counted, rows as u64, "counted and rows");
    assert_eq!(sum.late, lake.late_readings.len() as u64, "late and rows");
    let refused = lake.dead_letters.len() - letters_in;
    assert_eq!(sum.dead_letters, refused as u64, "dead letters and rows");
    let named: Vec<Name> = logs.values().flatten().filter_map(name_of).collect();
    let repeats = named.len() - named.iter().collect::<BTreeSet<_>>().len();
    assert_eq!(sum.duplicates, repeats as u64, "duplicates and repeats in the logs");
    repeats
}
