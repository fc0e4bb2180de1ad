//! The flow that tells what people found when a work order is closed.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use e2e_tests::workflow::{Report, Settings, Status, schema};
use serde_json::{Value, json};

use super::examples::{
    ALERT_ID, Answers, OUTCOME_FLOW, called, ensure_same, ensure_status, only_call, operation,
    run_once, settings,
};

fn parameters() -> Settings {
    settings(&[("Outcome URL (pm_OutcomeUrl)", json!("https://plant.example.com/api/outcomes"))])
}

/// A work order as Dataverse gives it.
fn work_order(substatus: Option<&str>) -> Value {
    let data = json!({
        "alertId": ALERT_ID, "rule": "temperature-above-100", "severity": "Sev2",
        "machineId": "press-1", "sensorId": "press-1/oil", "tripId": "trip-7",
    });
    json!({
        "msdyn_name": "WO-4711",
        "msdyn_systemstatus": 690_970_003,
        "modifiedon": "2026-03-02T10:00:00Z",
        "msdyn_IoTAlert": {"msdyn_alerttoken": ALERT_ID, "msdyn_alertdata": data.to_string()},
        "msdyn_substatus": substatus.map(|name| json!({"msdyn_name": name})),
        "modifiedby": {"fullname": "Kim"},
    })
}

fn answers(order: Value, parts: &[&str], notes: &[(&str, &str)]) -> Answers {
    let parts: Vec<_> = parts.iter().map(|name| json!({"msdyn_name": name})).collect();
    let notes: Vec<_> =
        notes.iter().map(|(subject, text)| json!({"subject": subject, "notetext": text})).collect();
    Answers::default()
        .with("Get_work_order", 200, order)
        .with("Used_parts", 200, json!({"value": parts}))
        .with("Notes", 200, json!({"value": notes}))
        .with("Read_outcome_token", 200, json!({"EnvironmentVariableSecretValue": "token-2"}))
        .with("Post_outcome", 202, json!({"outcome_id": "ticket-WO-4711"}))
}

fn close(answers: &Answers) -> anyhow::Result<Report> {
    let body = json!({"msdyn_workorderid": "order-1", "msdyn_name": "WO-4711"});
    run_once(OUTCOME_FLOW, &body, &parameters(), answers)
}

fn outcome(answers: &Answers) -> anyhow::Result<Value> {
    let report = close(answers)?;
    ensure_status(&report, Status::Succeeded)?;
    let body = only_call(&report, "Post_outcome")?["body"].clone();
    let complaints = schema::validate(&super::schema_of("outcome")?, &body)?;
    ensure!(complaints.is_empty(), "{complaints:?}");
    Ok(body)
}

/// Every way through the flow.
pub(super) fn executed() -> anyhow::Result<BTreeSet<String>> {
    Ok(close(&answers(work_order(Some("Fault confirmed")), &["bearing"], &[]))?.executed)
}

#[test]
fn a_closed_work_order_is_posted_as_an_outcome() -> anyhow::Result<()> {
    let notes = [("Alert resolved", "Nothing was found."), ("", "Inner ring worn."), ("", "old")];
    let answers =
        answers(work_order(Some("Fault confirmed")), &["bearing 6205 drive end", "grease"], &notes);
    let report = close(&answers)?;
    ensure_status(&report, Status::Succeeded)?;
    let mut call = only_call(&report, "Post_outcome")?.clone();
    call["retryPolicy"].take();
    ensure_same(
        &call,
        &json!({
            "method": "POST",
            "uri": "https://plant.example.com/api/outcomes",
            "headers": {"Authorization": "Bearer token-2", "Content-Type": "application/json",
                        "Idempotency-Key": "ticket-WO-4711"},
            "body": {
                "outcome_id": "ticket-WO-4711", "verdict": "part-replaced", "machine_id": "press-1",
                "timestamp": "2026-03-02T10:00:00Z", "alert_id": ALERT_ID, "trip_id": "trip-7",
                "sensor_id": "press-1/oil", "ticket_id": "WO-4711",
                "part": "bearing 6205 drive end, grease", "note": "Inner ring worn.",
                "reported_by": "Kim",
            },
            "retryPolicy": null,
        }),
    )?;
    ensure_same(
        operation(&report, "Get_work_order", "GetItem")?,
        &json!({
            "entityName": "msdyn_workorders",
            "recordId": "order-1",
            "$select": "msdyn_name,msdyn_systemstatus,modifiedon",
            "$expand": "msdyn_IoTAlert($select=msdyn_alerttoken,msdyn_alertdata),\
                        msdyn_substatus($select=msdyn_name),modifiedby($select=fullname)",
        }),
    )?;
    ensure_same(
        operation(&report, "Used_parts", "ListRecords")?,
        &json!({
            "entityName": "msdyn_workorderproducts",
            "$select": "msdyn_name",
            "$filter": "_msdyn_workorder_value eq order-1 and msdyn_linestatus eq 690970001",
            "$orderby": "createdon asc",
            "$top": 20,
        }),
    )?;
    ensure_same(
        operation(&report, "Notes", "ListRecords")?,
        &json!({
            "entityName": "annotations",
            "$select": "subject,notetext",
            "$filter": "_objectid_value eq order-1",
            "$orderby": "createdon desc",
            "$top": 20,
        }),
    )?;
    ensure_same(
        operation(&report, "Read_outcome_token", "PerformUnboundAction")?,
        &json!({
            "actionName": "RetrieveEnvironmentVariableSecretValue",
            "item/EnvironmentVariableName": "pm_OutcomeToken",
        }),
    )
}

#[test]
fn the_verdict_is_what_people_said_and_silence_confirms_nothing() -> anyhow::Result<()> {
    for (substatus, parts, expected) in [
        (Some("Fault confirmed"), &[][..], "confirmed"),
        (Some("Fault confirmed"), &["bearing"], "part-replaced"),
        (Some("False alarm"), &[], "false-alarm"),
        (Some("False alarm"), &["filter, while there"], "false-alarm"),
        (Some("Waiting for parts"), &[], "note"),
        (Some("Waiting for parts"), &["bearing"], "part-replaced"),
        (None, &[], "note"),
        (None, &["bearing"], "part-replaced"),
    ] {
        let verdict = outcome(&answers(work_order(substatus), parts, &[]))?["verdict"].take();
        ensure!(verdict == expected, "{substatus:?} {parts:?}: {verdict}");
    }
    Ok(())
}

#[test]
fn what_nobody_said_is_left_out() -> anyhow::Result<()> {
    let mut order = work_order(None);
    order["modifiedby"] = Value::Null;
    let data = json!({"alertId": ALERT_ID, "machineId": null, "sensorId": "press-1/oil",
        "tripId": null});
    order["msdyn_IoTAlert"]["msdyn_alertdata"] = json!(data.to_string());
    // One note is blank, the other was written by the flow that makes work orders.
    let notes = [("", " \n"), ("Alert resolved", "Nothing was found.")];
    let body = outcome(&answers(order, &[], &notes))?;
    ensure_same(
        &body,
        &json!({
            "outcome_id": "ticket-WO-4711", "verdict": "note", "machine_id": "press-1/oil",
            "timestamp": "2026-03-02T10:00:00Z", "alert_id": ALERT_ID, "sensor_id": "press-1/oil",
            "ticket_id": "WO-4711",
        }),
    )
}

#[test]
fn long_texts_are_cut_to_what_the_api_takes() -> anyhow::Result<()> {
    // Three bytes each in UTF-8, and four.
    for character in ["€", "😀"] {
        let long = character.repeat(5_000);
        let mut order = work_order(Some("Fault confirmed"));
        order["modifiedby"]["fullname"] = json!(long);
        order["msdyn_name"] = json!(character.repeat(50));
        let body = outcome(&answers(order, &[&long], &[("", &long)]))?;
        for (member, bytes_max) in [
            ("outcome_id", 256),
            ("ticket_id", 256),
            ("part", 256),
            ("note", 4_096),
            ("reported_by", 128),
        ] {
            let text = body[member].as_str().with_context(|| member.to_owned())?;
            ensure!(!text.is_empty() && text.len() <= bytes_max, "{member}: {}", text.len());
        }
    }
    Ok(())
}

#[test]
fn a_work_order_of_something_else_is_none_of_ours() -> anyhow::Result<()> {
    let mut by_hand = work_order(Some("Fault confirmed"));
    by_hand["msdyn_IoTAlert"] = Value::Null;
    let mut of_others = work_order(Some("Fault confirmed"));
    of_others["msdyn_IoTAlert"] =
        json!({"msdyn_alerttoken": "device-9-1", "msdyn_alertdata": "{\"temperature\":99}"});
    for order in [by_hand, of_others] {
        let report = close(&answers(order, &[], &[]))?;
        ensure_status(&report, Status::Succeeded)?;
        ensure!(called(&report) == ["Get_work_order"], "{:?}", called(&report));
    }
    Ok(())
}

#[test]
fn an_outcome_that_was_not_taken_fails_the_run() -> anyhow::Result<()> {
    for code in [401, 422, 503] {
        let answers = answers(work_order(None), &[], &[]).with("Post_outcome", code, json!({}));
        ensure_status(&close(&answers)?, Status::Failed)?;
    }
    let answers = answers(work_order(None), &[], &[]).silent("Read_outcome_token");
    ensure_status(&close(&answers)?, Status::Failed)
}
