//! Alerts reach people once for as long as something lasts, and what people find comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e_tests::cloud_aggregator::{CloudAggregator, run_command};
use e2e_tests::eventually::eventually;
use e2e_tests::http::post_json;
use e2e_tests::ports::free_port;
use e2e_tests::publisher::{Publisher, reading_json};
use serde_json::{Value, json};

use crate::gateway::{Gateway, MOTOR, Shaking, one_motor};
use crate::plant::{DEADLINE, Plant, kafka, motor_bundle, now};

const SECOND: i64 = 1_000_000;
/// Refusals of one machine are told twice a second at most: whoever saw none asks again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Windows of a second, so that an alert lasts seconds.
const HOT: &str = "[[rules]]\nname = \"hot\"\nfilter = \"metric_type = temperature and value > 100\"\n\
                   window = \"1s\"\nthreshold = \"count > 5\"\nseverity = 2\n";

fn variable(name: &str, value: impl ToString) -> (String, String) {
    (format!("AGGREGATOR__{name}"), value.to_string())
}

/// As people have it: one alert of a machine and rule.
fn grouped(plant: &mut Plant, resolve_after: &str) {
    let settings = &mut plant.aggregator_settings;
    settings.group_by = "machine";
    settings.environment.push(variable("ALERTING__RESOLVE_AFTER", resolve_after));
    settings.environment.push(variable("COUNTING__ALLOWED_LATENESS", "0s"));
}

/// A hot second of a sensor of press-1, `ago` seconds before `start`.
fn hot_second(plant: &Plant, sensor: &str, second: i64) -> anyhow::Result<()> {
    let records: Vec<(String, Vec<u8>)> = (0..8)
        .map(|tenth| {
            let at = shared_proto::model::EventTime::from_micros(second * SECOND + tenth * 100_000);
            let json = reading_json("press-1", sensor, "temperature", at, 120.0);
            ("press-1".to_owned(), json.into_bytes())
        })
        .collect();
    kafka()?.produce(&plant.topic("temperature"), &records)
}

fn this_second() -> i64 {
    now().micros().div_euclid(SECOND)
}

/// Events that the webhook got, by id; the same id twice is the same event.
fn told(plant: &Plant) -> anyhow::Result<BTreeMap<String, Value>> {
    plant
        .webhook
        .bodies()
        .iter()
        .map(|body| {
            let event: Value = serde_json::from_str(body)?;
            let id = event["id"].as_str().context("an event without id")?.to_owned();
            Ok((id, event))
        })
        .collect()
}

fn essentials(event: &Value) -> &Value {
    &event["data"]["data"]["essentials"]
}

fn context(event: &Value) -> &Value {
    &event["data"]["data"]["alertContext"]
}

fn wait_told(plant: &Plant, what: &str, is_it: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    eventually(what, DEADLINE, || {
        let told = told(plant)?;
        told.values().find(|event| is_it(event)).cloned().with_context(|| format!("{told:?}"))
    })
}

#[test]
fn findings_of_a_machine_are_one_alert_while_they_last_also_over_a_crash() -> anyhow::Result<()> {
    let mut plant = Plant::new("alert-life")?;
    // Longer than a group takes to see that a member is dead, on a busy machine, too.
    grouped(&mut plant, "30s");
    plant.aggregator_settings.more = HOT.to_owned();
    let mut aggregator = plant.start_aggregator()?;
    hot_second(&plant, "press-1/oil", this_second() - 2)?;
    let fired = wait_told(&plant, "the alert has fired", |event| {
        essentials(event)["monitorCondition"] == "Fired"
    })?;
    ensure!(essentials(&fired)["severity"] == "Sev2", "{fired}");
    ensure!(essentials(&fired)["alertTargetIDs"] == json!(["press-1"]), "{fired}");
    // More of the same, of another sensor of the machine, too, and a crash in between.
    hot_second(&plant, "press-1/oil", this_second() - 1)?;
    aggregator.process().kill()?;
    aggregator.restart()?;
    aggregator.wait_ready()?;
    hot_second(&plant, "press-1/bearing", this_second() - 1)?;
    let resolved = wait_told(&plant, "the alert is over", |event| {
        essentials(event)["monitorCondition"] == "Resolved"
    })?;
    assert_eq!(essentials(&resolved)["alertId"], essentials(&fired)["alertId"]);
    let findings = "SELECT count(*) FROM anomalies WHERE is_anomaly";
    let count = context(&resolved)["findings"].as_u64().context("no count")?;
    plant.wait_for_count(findings, count)?;
    ensure!(count >= 2, "{resolved}");
    let ids: BTreeSet<String> = told(&plant)?.into_keys().collect();
    assert_eq!(ids.len(), 2, "fired once and resolved once, whatever was repeated: {ids:?}");
    // The table has each change once.
    plant.wait_for_count("SELECT count(*) FROM alerts", 2)?;
    let rows = plant
        .lake()
        .query("SELECT state, revision, findings, machine_id FROM alerts ORDER BY revision")?;
    ensure!(rows[0]["state"] == "fired" && rows[1]["state"] == "resolved", "{rows:?}");
    ensure!(rows[1]["findings"] == count && rows[1]["machine_id"] == "press-1", "{rows:?}");
    Ok(())
}

#[test]
fn planned_work_is_recorded_and_told_to_nobody_until_it_outlasts_its_time() -> anyhow::Result<()> {
    let mut plant = Plant::new("alert-maintenance")?;
    grouped(&mut plant, "60s");
    let until = now().saturating_add_micros(20 * SECOND);
    let from = now().saturating_sub_micros(60 * SECOND);
    plant.aggregator_settings.more = format!(
        "[[alerting.maintenance]]\nname = \"press line\"\nmachines = [\"press-1\"]\n\
         from = \"{from}\"\nuntil = \"{until}\"\n{HOT}"
    );
    let _aggregator = plant.start_aggregator()?;
    hot_second(&plant, "press-1/oil", this_second() - 2)?;
    let suppressed = "SELECT count(*) FROM alerts WHERE suppressed_by = 'maintenance:press line'";
    plant.wait_for_count(suppressed, 1)?;
    ensure!(now() < until, "this machine is too slow to see it in time");
    ensure!(told(&plant)?.is_empty(), "somebody was told: {:?}", told(&plant)?);
    // It lasts longer than the work.
    let fired = wait_told(&plant, "what lasts is told", |_| true)?;
    ensure!(now() >= until, "too early: {fired}");
    ensure!(context(&fired)["revision"] == 2, "{fired}");
    Ok(())
}

fn post(port: u16, token: &str, body: &Value) -> anyhow::Result<(u16, String)> {
    post_json(port, "/api/outcomes", token, &body.to_string())
}

/// Around the trip there are samples to learn from.
fn check_samples(plant: &Plant, trip_id: &str) -> anyhow::Result<()> {
    eventually("the samples around the trip are rows", DEADLINE, || {
        let rows = plant.lake().query(&format!(
            "SELECT sum(sample_count) AS samples, sum(octet_length(samples)) AS bytes FROM waveforms \
             WHERE trip_id = '{trip_id}'"
        ))?;
        let row = rows.first().context("no row")?;
        let (samples, bytes) = (row["samples"].as_f64(), row["bytes"].as_f64());
        ensure!(samples.is_some_and(|samples| samples > 20_000.0), "{row}");
        ensure!(bytes == samples.map(|samples| samples * 4.0), "{row}");
        Ok(())
    })
}

/// Refused with a wrong token and when it is none, then taken.
fn report_outcome(port: u16, outcome: &Value) -> anyhow::Result<()> {
    let (status, answer) = post(port, "wrong", outcome)?;
    ensure!(status == 401 && answer.contains("application/problem+json"), "{answer}");
    let token = "a-long-and-secret-token-of-the-cmms";
    let (status, answer) = post(port, token, &json!({ "outcome_id": "x" }))?;
    ensure!((400..500).contains(&status) && !answer.contains(token), "{answer}");
    let (status, answer) = post(port, token, outcome)?;
    ensure!(status == 202, "{answer}");
    Ok(())
}

/// The outcome is right for the rule and for the model.
fn wait_precision(aggregator: &CloudAggregator) -> anyhow::Result<()> {
    eventually("the precision is a metric", DEADLINE, || {
        let metrics = aggregator.metrics()?;
        let found = metrics.lines().filter(|line| line.starts_with("aggregator_precision_ratio{"));
        let found: Vec<&str> = found.filter(|line| line.ends_with(" 1")).collect();
        let has = |part: &str| found.iter().any(|line| line.contains(part));
        ensure!(has("kind=\"rule\"") && has("kind=\"model\""), "{found:?}");
        Ok(())
    })
}

#[test]
fn a_trip_is_an_alert_until_the_reset_and_what_people_found_comes_back() -> anyhow::Result<()> {
    let mut gateway = Gateway::start("outcomes", &one_motor(), Some(&motor_bundle()))?;
    let plant = &mut gateway.plant;
    grouped(plant, "60s");
    let tokens = plant.dir.join("tokens");
    std::fs::write(&tokens, "cmms:a-long-and-secret-token-of-the-cmms\n")?;
    let port = free_port()?;
    let settings = &mut plant.aggregator_settings;
    settings.environment.push(variable("API__LISTEN", format!("127.0.0.1:{port}")));
    settings.environment.push(variable("API__TOKEN_FILE", tokens.display()));
    settings.environment.push(variable("MAINTENANCE__INTERVAL", "1s"));
    settings.environment.push(variable("MAINTENANCE__PRECISION_INTERVAL", "1s"));
    let aggregator = gateway.plant.start_aggregator()?;
    let shaking = Shaking::start(gateway.plant.mosquitto.port());
    eventually("windows are judged", DEADLINE, || {
        let judged = gateway.windows_judged()?;
        ensure!(judged > 5, "{judged}");
        Ok(())
    })?;
    shaking.damage();
    let trip = gateway.wait_for_trip(&gateway.motor, MOTOR)?;
    let trip_id = trip["trip_id"].as_str().context("no id")?;
    let plant = &gateway.plant;
    let fired = wait_told(plant, "the trip is told", |event| {
        essentials(event)["alertRule"] == "trip" && context(event)["tripId"] == trip_id
    })?;
    ensure!(essentials(&fired)["severity"] == "Sev1", "{fired}");
    let alert_id = &essentials(&fired)["alertId"];

    let outcome = json!({
        "outcome_id": "ticket-4711", "verdict": "confirmed", "machine_id": MOTOR, "trip_id": trip_id,
        "alert_id": alert_id, "timestamp": now().to_string(), "part": "bearing 6205",
    });
    report_outcome(port, &outcome)?;
    plant.wait_for_count(
        "SELECT count(*) FROM outcomes WHERE verdict = 'confirmed' AND reported_by = 'cmms'",
        1,
    )?;

    check_samples(plant, trip_id)?;
    let report =
        run_command(&plant.dir.join("cloud-aggregator"), &["report", "precision", "--json"])?;
    ensure!(report.code == Some(0), "{report:?}");
    let report: Value = serde_json::from_str(&report.output)?;
    let text = report.to_string();
    ensure!(text.contains("trip") && text.contains("\"confirmed\":1"), "{text}");
    wait_precision(&aggregator)?;

    // A machine is reset when it is healthy again.
    shaking.set_severity(0.0);
    let mut person = Publisher::connect(plant.mosquitto.port(), "person");
    let mut asked: Option<Instant> = None;
    eventually("the reset is granted", DEADLINE, || {
        if asked.is_none_or(|asked| asked.elapsed() > ASK_AGAIN) {
            asked = Some(Instant::now());
            let reset = json!({ "operator": "Kim" }).to_string();
            person.publish(&format!("plant/{MOTOR}/reset"), reset)?;
        }
        let states = gateway.motor.interlock_states();
        let last = states.last().context("nothing shown")?;
        ensure!(last["state"] == "armed", "{last}");
        Ok(())
    })?;
    wait_told(plant, "the reset ends it", |event| {
        essentials(event)["monitorCondition"] == "Resolved"
            && essentials(event)["alertId"] == *alert_id
    })?;
    shaking.end()?;
    let audit = run_command(&plant.dir.join("cloud-aggregator"), &["audit"])?;
    ensure!(audit.code == Some(0), "{audit:?}");
    drop(aggregator);
    Ok(())
}

#[test]
fn an_open_alert_ends_by_the_clock_though_no_record_comes() -> anyhow::Result<()> {
    let mut plant = Plant::new("alert-end")?;
    grouped(&mut plant, "2s");
    plant.aggregator_settings.more = HOT.to_owned();
    let _aggregator = plant.start_aggregator()?;
    hot_second(&plant, "press-1/oil", this_second() - 2)?;
    let resolved = wait_told(&plant, "the alert is over", |event| {
        essentials(event)["monitorCondition"] == "Resolved"
    })?;
    ensure!(essentials(&resolved)["resolvedDateTime"].is_string(), "{resolved}");
    plant.wait_for_count("SELECT count(*) FROM alerts WHERE resolved_at IS NOT NULL", 1)?;
    let deadline = Duration::from_secs(5);
    eventually("nothing is open", deadline, || {
        let open = plant.lake().count(
            "SELECT count(*) FROM (SELECT alert_id, arg_max(state, revision) AS state FROM alerts \
             GROUP BY alert_id) WHERE state = 'fired'",
        )?;
        ensure!(open == 0, "{open} open");
        Ok(())
    })
}
