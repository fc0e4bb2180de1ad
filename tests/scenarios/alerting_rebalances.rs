//! Instances that join, leave and are killed while alerts are open: each alert fires once and resolves once, with all findings that
//! were sent while it lasted, whichever instance has found them and whichever has seen their end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::cloud_aggregator::CloudAggregator;
use e2e_tests::eventually::eventually;
use e2e_tests::publisher::reading_json;
use serde::Deserialize;
use serde_json::Value;
use shared_proto::model::EventTime;

use crate::plant::{DEADLINE, Plant, kafka, now};

const SECOND: i64 = 1_000_000;
const INSTANCES: usize = 3;
/// Partitions of the seven topics that an aggregator reads.
const PARTITIONS: f64 = 21.0;
/// Three for each partition of a topic, on average.
const MACHINES: usize = 9;
/// Records of a hot second.
const READINGS: u64 = 8;
/// Longer than a partition is without an owner after a kill (the session of 6 s, and a start), shorter than a scenario may last.
const RESOLVE_AFTER: &str = "20s";
/// The alerts end within [`RESOLVE_AFTER`]; instances that still move take their time.
const END_DEADLINE: Duration = Duration::from_secs(120);
/// Windows of a second.
const HOT: &str = "[[rules]]\nname = \"hot\"\n\
                   filter = \"metric_type = temperature and value > 100\"\n\
                   window = \"1s\"\nthreshold = \"count > 5\"\nseverity = 2\n";

/// What becomes of an instance.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Start(usize),
    /// SIGTERM, and its end.
    Stop(usize),
    /// SIGKILL.
    Kill(usize),
}

/// When, of what was sent just before.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// While somebody may be at it.
    AtOnce,
    /// When all of it stands in the lake.
    InTheLake,
}

/// Each begins and ends with all instances there, and has at least one all the time.
const ROUNDS: [[(Turn, Moment); 4]; 3] = [
    [
        (Turn::Stop(0), Moment::AtOnce),
        (Turn::Kill(1), Moment::InTheLake),
        (Turn::Start(0), Moment::AtOnce),
        (Turn::Start(1), Moment::InTheLake),
    ],
    [
        (Turn::Kill(2), Moment::AtOnce),
        (Turn::Kill(0), Moment::InTheLake),
        (Turn::Start(2), Moment::AtOnce),
        (Turn::Start(0), Moment::AtOnce),
    ],
    [
        (Turn::Stop(1), Moment::InTheLake),
        (Turn::Kill(2), Moment::AtOnce),
        (Turn::Start(1), Moment::AtOnce),
        (Turn::Start(2), Moment::InTheLake),
    ],
];

/// Three instances of one group.
struct Group {
    plant: Plant,
    /// `None` once it was stopped or killed.
    instances: [Option<CloudAggregator>; INSTANCES],
    /// Hot seconds that were sent of each machine.
    hot: BTreeSet<i64>,
    /// How often they were hot for a while and then no longer.
    episodes: usize,
}

impl Group {
    fn start(name: &str, assignment: &str) -> anyhow::Result<Self> {
        let mut plant = Plant::new(name)?;
        let settings = &mut plant.aggregator_settings;
        settings.group_by = "machine";
        settings.more = HOT.to_owned();
        for (key, value) in [
            ("ALERTING__RESOLVE_AFTER", RESOLVE_AFTER),
            ("COUNTING__ALLOWED_LATENESS", "0s"),
            ("KAFKA__ASSIGNMENT", assignment),
        ] {
            settings.environment.push((format!("AGGREGATOR__{key}"), value.to_owned()));
        }
        let mut group =
            Self { plant, instances: [None, None, None], hot: BTreeSet::new(), episodes: 0 };
        for number in 0..INSTANCES {
            group.take_turn(Turn::Start(number))?;
        }
        group.wait_shared()?;
        Ok(group)
    }

    fn take_turn(&mut self, turn: Turn) -> anyhow::Result<()> {
        let here = "a round has it here";
        match turn {
            Turn::Start(number) => {
                let dir = self.plant.dir.join(format!("cloud-aggregator-{number}"));
                let started = CloudAggregator::start(&dir, &self.plant.aggregator_settings)?;
                self.instances[number] = Some(started);
            }
            Turn::Stop(number) => {
                let mut leaving = self.instances[number].take().context(here)?;
                leaving.process().terminate()?;
                let status = leaving.process().wait(DEADLINE)?;
                ensure!(status.success(), "{status}:\n{}", leaving.process().tail());
            }
            Turn::Kill(number) => {
                self.instances[number].take().context(here)?.process().kill()?;
            }
        }
        Ok(())
    }

    /// Waits until those that are there have all partitions between them.
    fn wait_shared(&self) -> anyhow::Result<()> {
        eventually("every partition has its owner", DEADLINE, || {
            let mut held = 0.0;
            for instance in self.instances.iter().flatten() {
                held += instance.metric("aggregator_partitions")?;
            }
            ensure!((held - PARTITIONS).abs() < 0.5, "{held} partitions");
            Ok(())
        })
    }

    /// One hot second of each machine: one finding of each, later than those before.
    fn heat(&mut self) -> anyhow::Result<()> {
        let recent = now().micros().div_euclid(SECOND) - 2;
        let second = self.hot.last().map_or(recent, |last| recent.max(last + 1));
        let mut records = Vec::new();
        for number in 0..MACHINES {
            let machine = format!("press-{number}");
            let sensor = format!("{machine}/oil");
            for tenth in 0..READINGS.cast_signed() {
                let at = EventTime::from_micros(second * SECOND + tenth * 100_000);
                let json = reading_json(&machine, &sensor, "temperature", at, 120.0);
                records.push((machine.clone(), json.into_bytes()));
            }
        }
        kafka()?.produce(&self.plant.topic("temperature"), &records)?;
        self.hot.insert(second);
        Ok(())
    }

    fn wait_counted(&self) -> anyhow::Result<()> {
        let expected = self.hot.len() as u64 * MACHINES as u64 * READINGS;
        let rows = self.plant.wait_for_count("SELECT count(*) FROM telemetry", expected)?;
        ensure!(rows == expected, "{rows} rows of {expected} readings");
        Ok(())
    }

    /// Instances come and go while the machines are hot, and go on to do so until nobody is.
    fn episode(&mut self, hot: &[usize], cold: &[usize]) -> anyhow::Result<()> {
        self.episodes += 1;
        for (turn, moment) in hot.iter().flat_map(|round| ROUNDS[*round]) {
            self.heat()?;
            match moment {
                Moment::AtOnce => {}
                Moment::InTheLake => self.wait_counted()?,
            }
            self.take_turn(turn).with_context(|| format!("{turn:?} {moment:?}"))?;
        }
        self.heat()?;
        for (turn, _) in cold.iter().flat_map(|round| ROUNDS[*round]) {
            self.take_turn(turn).with_context(|| format!("{turn:?}"))?;
            self.wait_shared().with_context(|| format!("after {turn:?}"))?;
        }
        self.wait_counted()?;
        eventually("no alert is open", END_DEADLINE, || {
            let alerts = self.alerts()?;
            ensure!(alerts.len() >= self.episodes * MACHINES, "{} alerts", alerts.len());
            let open = alerts.iter().filter(|alert| alert.resolved == 0).count();
            ensure!(open == 0, "{open} are open");
            Ok(())
        })
    }

    fn alerts(&self) -> anyhow::Result<Vec<Alert>> {
        let rows = self.plant.lake().query(
            "SELECT alert_id, machine_id, count(*) FILTER (state = 'fired') AS fired, \
             count(*) FILTER (state = 'resolved') AS resolved, \
             coalesce(max(findings) FILTER (state = 'resolved'), 0) AS findings, \
             epoch_us(min(window_start)) // 1000000 AS first_second, \
             epoch_us(max(window_end)) // 1000000 - 1 AS last_second \
             FROM alerts GROUP BY ALL ORDER BY machine_id, first_second",
        )?;
        rows.into_iter().map(|row| Ok(serde_json::from_value(row)?)).collect()
    }

    fn check_lake(&self) -> anyhow::Result<()> {
        let mut of_machine: BTreeMap<String, Vec<Alert>> = BTreeMap::new();
        for alert in self.alerts()? {
            ensure!((alert.fired, alert.resolved) == (1, 1), "fired and resolved once: {alert:?}");
            of_machine.entry(alert.machine_id.clone()).or_default().push(alert);
        }
        ensure!(of_machine.len() == MACHINES, "{:?}", of_machine.keys());
        for alerts in of_machine.values() {
            // A machine that was without an owner for too long may have one more: then each has its share.
            ensure!(alerts.len() >= self.episodes, "{alerts:?}");
            for alert in alerts {
                let seconds = self.hot.range(alert.first_second..=alert.last_second).count();
                ensure!(alert.findings == seconds as u64, "{seconds} were sent: {alert:?}");
            }
            let findings: u64 = alerts.iter().map(|alert| alert.findings).sum();
            ensure!(findings == self.hot.len() as u64, "{} were sent: {alerts:?}", self.hot.len());
        }
        let late = self.plant.lake().count("SELECT count(*) FROM late_readings")?;
        ensure!(late == 0, "{late} late readings");
        Ok(())
    }

    /// The topic tells each change of the lake, and whatever it tells twice it tells in the same words; likewise the webhook.
    fn check_told(&self) -> anyhow::Result<()> {
        let rows = self.plant.lake().query("SELECT alert_id, revision, state FROM alerts")?;
        let mut expected = BTreeMap::new();
        for row in rows {
            let id = row["alert_id"].as_str().context("no id")?;
            let condition = match row["state"].as_str().context("no state")? {
                "fired" => "Fired",
                "resolved" => "Resolved",
                other => anyhow::bail!("{other:?} is no state of an alert"),
            };
            expected.insert(format!("{id}-{}", row["revision"]), condition.to_owned());
        }
        for (whom, is_topic) in [("the topic", true), ("the webhook", false)] {
            eventually(&format!("{whom} has told all"), DEADLINE, || {
                let bodies = if is_topic { self.of_topic()? } else { self.plant.webhook.bodies() };
                let told = told(&bodies)?;
                ensure!(told == expected, "{told:?}, of the lake: {expected:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    fn of_topic(&self) -> anyhow::Result<Vec<String>> {
        let records = kafka()?.read_json(&self.plant.topic("alerts"))?;
        Ok(records.iter().map(Value::to_string).collect())
    }
}

/// What the rows of one alert come to.
#[derive(Debug, Deserialize)]
struct Alert {
    machine_id: String,
    fired: u64,
    resolved: u64,
    findings: u64,
    first_second: i64,
    last_second: i64,
}

/// The condition that each event has told, by the event's id.
fn told(bodies: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut by_id: BTreeMap<String, Value> = BTreeMap::new();
    for body in bodies {
        let event: Value = serde_json::from_str(body)?;
        let id = event["id"].as_str().context("an event without id")?.to_owned();
        if let Some(before) = by_id.get(&id) {
            ensure!(*before == event, "twice, and not the same: {before} {event}");
        }
        by_id.insert(id, event);
    }
    let condition = |event: &Value| {
        let condition = event["data"]["data"]["essentials"]["monitorCondition"].as_str();
        condition.map(str::to_owned).with_context(|| format!("no condition: {event}"))
    };
    by_id.iter().map(|(id, event)| Ok((id.clone(), condition(event)?))).collect()
}

fn check(name: &str, assignment: &str) -> anyhow::Result<()> {
    let mut group = Group::start(name, assignment)?;
    group.episode(&[0, 1, 2], &[0])?;
    group.episode(&[1], &[2])?;
    group.check_lake()?;
    group.check_told()?;
    for instance in group.instances.iter_mut().flatten() {
        ensure!(instance.process().is_running()?, "it ended:\n{}", instance.process().tail());
    }
    Ok(())
}

#[test]
fn alerts_that_are_open_move_with_their_partitions_and_end_once() -> anyhow::Result<()> {
    check("alert-moves", "range")
}

#[test]
fn alerts_that_are_open_move_between_cooperative_members_and_end_once() -> anyhow::Result<()> {
    check("alert-moves-coop", "cooperative-sticky")
}
