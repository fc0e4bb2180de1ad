//! The flow that makes a work order, or a ticket elsewhere, of an alert.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use e2e_tests::workflow::{Report, Settings, Status};
use serde_json::{Value, json};

use super::examples::{
    ALERT_ID, Answers, TICKET_FLOW, alert_mut, called, digest, ensure_same, ensure_status, fired,
    only_call, operation, resolved, run_once, settings, wrapped,
};

/// The first 32 digits of the alert's id as the id of a row.
const ROW: &str = "00112233-4455-6677-8899-aabbccddeeff";

fn parameters(system: &str) -> Settings {
    settings(&[
        ("Maintenance system (pm_MaintenanceSystem)", json!(system)),
        ("Service account (pm_ServiceAccountId)", json!("account-default")),
        ("Work order type (pm_WorkOrderTypeId)", json!("type-1")),
        ("Price list (pm_PriceListId)", json!("prices-1")),
        ("Priority, urgent (pm_PriorityUrgentId)", json!("urgent")),
        ("Priority, normal (pm_PriorityNormalId)", json!("normal")),
        ("REST URL (pm_RestUrl)", json!("https://cmms.example.com/tickets")),
    ])
}

fn with_asset() -> Answers {
    nobody_there().with(
        "Find_asset",
        200,
        json!({"value": [
        {"msdyn_customerassetid": "asset-1", "_msdyn_account_value": "account-of-asset"}]}),
    )
}

fn nobody_there() -> Answers {
    Answers::default()
        .with("Find_asset", 200, json!({"value": []}))
        .with("Find_work_order", 200, json!({"value": []}))
        .with("Create_IoT_alert", 201, json!({}))
        .with("Create_work_order", 201, json!({}))
        .with("Add_note", 201, json!({}))
        .with("Read_REST_token", 200, json!({"EnvironmentVariableSecretValue": "token-1"}))
}

fn with_work_order() -> Answers {
    nobody_there().with("Find_work_order", 200, json!({"value": [{"msdyn_workorderid": ROW}]}))
}

fn ticket(event: &Value, system: &str, answers: &Answers) -> anyhow::Result<Report> {
    run_once(TICKET_FLOW, event, &parameters(system), answers)
}

/// Every way through the flow.
pub(super) fn executed() -> anyhow::Result<BTreeSet<String>> {
    let mut executed = BTreeSet::new();
    for event in [fired("Sev0", false), resolved(), digest(2, 1)] {
        for system in ["dataverse", "rest", "paper"] {
            for answers in [with_asset(), with_work_order()] {
                executed.extend(ticket(&event, system, &answers)?.executed);
            }
        }
    }
    Ok(executed)
}

#[test]
fn an_alert_that_fires_is_an_iot_alert_and_a_work_order() -> anyhow::Result<()> {
    let report = ticket(&fired("Sev2", false), "dataverse", &nobody_there())?;
    ensure_status(&report, Status::Succeeded)?;
    ensure!(called(&report) == ["Find_asset", "Create_IoT_alert", "Create_work_order"]);
    ensure_same(
        operation(&report, "Find_asset", "ListRecords")?,
        &json!({
            "entityName": "msdyn_customerassets",
            "$select": "msdyn_customerassetid,_msdyn_account_value",
            "$filter": "msdyn_name eq 'press-1'",
            "$top": 1,
        }),
    )?;
    let mut alert = operation(&report, "Create_IoT_alert", "CreateRecord")?.clone();
    let data: Value =
        serde_json::from_str(alert["item/msdyn_alertdata"].take().as_str().context("text")?)?;
    ensure_same(
        &data,
        &json!({
            "alertId": ALERT_ID, "rule": "temperature-above-100", "severity": "Sev2",
            "machineId": "press-1", "sensorId": "press-1/oil", "tripId": null,
        }),
    )?;
    ensure_same(
        &alert,
        &json!({
            "entityName": "msdyn_iotalerts",
            "item/msdyn_iotalertid": ROW,
            "item/msdyn_description": "Six readings of press-1/oil were over 100 in one minute.",
            "item/msdyn_alerttoken": ALERT_ID,
            "item/msdyn_alerttime": "2026-03-01T08:15:30Z",
            "item/msdyn_alerttype": 192_350_000,
            "item/msdyn_deviceid": "press-1",
            "item/msdyn_alertdata": null,
        }),
    )?;
    ensure_same(
        operation(&report, "Create_work_order", "CreateRecord")?,
        &json!({
            "entityName": "msdyn_workorders",
            "item/msdyn_workorderid": ROW,
            "item/msdyn_serviceaccount@odata.bind": "/accounts(account-default)",
            "item/msdyn_workordertype@odata.bind": "/msdyn_workordertypes(type-1)",
            "item/msdyn_pricelist@odata.bind": "/pricelevels(prices-1)",
            "item/msdyn_priority@odata.bind": "/msdyn_priorities(normal)",
            "item/msdyn_IoTAlert@odata.bind": format!("/msdyn_iotalerts({ROW})"),
            "item/msdyn_systemstatus": 690_970_000,
            "item/msdyn_taxable": false,
            "item/msdyn_workordersummary": "[Sev2] temperature-above-100 on press-1",
            "item/msdyn_primaryincidentdescription":
                "Six readings of press-1/oil were over 100 in one minute.",
            "item/msdyn_instructions": format!(
                "Machine: press-1\nSensor: press-1/oil\n\
                 Windows: 2026-03-01T08:15:00.000000Z to 2026-03-01T08:16:00.000000Z\n\
                 Findings: 1\nObserved: 6 (count > 5)\nTrip: none\nDetail: \nAlert: {ALERT_ID}"),
        }),
    )
}

#[test]
fn a_machine_that_is_a_customer_asset_brings_its_account() -> anyhow::Result<()> {
    let report = ticket(&fired("Sev2", false), "dataverse", &with_asset())?;
    ensure_status(&report, Status::Succeeded)?;
    let order = operation(&report, "Create_work_order", "CreateRecord")?;
    let account = &order["item/msdyn_serviceaccount@odata.bind"];
    ensure!(*account == "/accounts(account-of-asset)", "{account}");
    ensure_same(
        operation(&report, "Set_asset", "UpdateRecord")?,
        &json!({
            "entityName": "msdyn_workorders",
            "recordId": ROW,
            "item/msdyn_customerasset@odata.bind": "/msdyn_customerassets(asset-1)",
        }),
    )
}

#[test]
fn quotes_trips_and_long_texts_find_their_places() -> anyhow::Result<()> {
    let mut event = fired("Sev2", false);
    let alert = alert_mut(&mut event);
    alert["alertContext"]["machineId"] = json!(format!("o'brien' or 1 eq 1 {}", "m".repeat(200)));
    alert["alertContext"]["tripId"] = json!("trip-7");
    alert["alertContext"]["detail"] = json!("limit: 9 mm/s");
    alert["essentials"]["description"] = json!("d".repeat(300));
    let report = ticket(&event, "dataverse", &nobody_there())?;
    let filter = &operation(&report, "Find_asset", "ListRecords")?["$filter"];
    let filter = filter.as_str().context("text")?;
    ensure!(filter.starts_with("msdyn_name eq 'o''brien'' or 1 eq 1 mmm"), "{filter}");
    let row = operation(&report, "Create_IoT_alert", "CreateRecord")?;
    let data = row["item/msdyn_alertdata"].as_str().context("text")?;
    ensure!(data.contains("\"tripId\":\"trip-7\""), "{data}");
    let order = operation(&report, "Create_work_order", "CreateRecord")?;
    let instructions = order["item/msdyn_instructions"].as_str().context("text")?;
    ensure!(instructions.contains("\nTrip: trip-7\nDetail: limit: 9 mm/s\n"), "{instructions}");
    for column in ["item/msdyn_description", "item/msdyn_deviceid"] {
        ensure!(row[column].as_str().context("text")?.len() == 100, "{}", row[column]);
    }
    Ok(())
}

#[test]
fn only_what_is_severe_and_new_has_the_urgent_priority() -> anyhow::Result<()> {
    for (severity, historical, expected) in [
        ("Sev0", false, "urgent"),
        ("Sev1", false, "urgent"),
        ("Sev2", false, "normal"),
        ("Sev0", true, "normal"),
    ] {
        let report = ticket(&fired(severity, historical), "dataverse", &nobody_there())?;
        let order = operation(&report, "Create_work_order", "CreateRecord")?;
        let priority = &order["item/msdyn_priority@odata.bind"];
        ensure!(*priority == format!("/msdyn_priorities({expected})"), "{severity}: {priority}");
    }
    Ok(())
}

#[test]
fn an_alert_that_comes_again_leaves_the_rows_as_they_are() -> anyhow::Result<()> {
    let again = with_asset().with("Create_IoT_alert", 412, json!({})).with(
        "Create_work_order",
        412,
        json!({}),
    );
    let report = ticket(&fired("Sev2", false), "dataverse", &again)?;
    ensure_status(&report, Status::Succeeded)?;
    ensure!(!called(&report).contains(&"Set_asset"), "{:?}", called(&report));

    // The first try ended between the two rows.
    let half = with_asset().with("Create_IoT_alert", 412, json!({}));
    let report = ticket(&fired("Sev2", false), "dataverse", &half)?;
    ensure_status(&report, Status::Succeeded)?;
    ensure!(called(&report).contains(&"Set_asset"), "{:?}", called(&report));
    Ok(())
}

#[test]
fn a_row_that_could_not_be_written_fails_the_run() -> anyhow::Result<()> {
    for (event, action) in [
        (fired("Sev2", false), "Create_IoT_alert"),
        (fired("Sev2", false), "Create_work_order"),
        (fired("Sev2", false), "Find_asset"),
        (resolved(), "Find_work_order"),
        (resolved(), "Add_note"),
    ] {
        for code in [400, 403, 404, 503] {
            let answers = with_work_order().with(action, code, json!({}));
            let report = ticket(&event, "dataverse", &answers)?;
            ensure_status(&report, Status::Failed).with_context(|| format!("{action} {code}"))?;
        }
        let silent = with_work_order().silent(action);
        ensure_status(&ticket(&event, "dataverse", &silent)?, Status::Failed)?;
    }
    Ok(())
}

#[test]
fn an_alert_that_is_over_is_a_note_on_its_work_order() -> anyhow::Result<()> {
    let report = ticket(&resolved(), "dataverse", &with_work_order())?;
    ensure_status(&report, Status::Succeeded)?;
    ensure!(called(&report) == ["Find_work_order", "Add_note"], "{:?}", called(&report));
    ensure_same(
        operation(&report, "Find_work_order", "ListRecords")?,
        &json!({
            "entityName": "msdyn_workorders",
            "$select": "msdyn_workorderid",
            "$filter": format!("msdyn_workorderid eq {ROW}"),
            "$top": 1,
        }),
    )?;
    ensure_same(
        operation(&report, "Add_note", "CreateRecord")?,
        &json!({
            "entityName": "annotations",
            "item/annotationid": "00112233-4455-6677-8899-aabbccdd0002",
            "item/subject": "Alert resolved",
            "item/notetext": "Nothing was found on press-1 for ten minutes. \
                              Resolved 2026-03-01T09:00:00.000000Z, 4 findings.",
            "item/objectid_msdyn_workorder@odata.bind": format!("/msdyn_workorders({ROW})"),
        }),
    )?;
    let again = with_work_order().with("Add_note", 412, json!({}));
    ensure_status(&ticket(&resolved(), "dataverse", &again)?, Status::Succeeded)?;

    let report = ticket(&resolved(), "dataverse", &nobody_there())?;
    ensure_status(&report, Status::Succeeded)?;
    ensure!(called(&report) == ["Find_work_order"], "{:?}", called(&report));
    Ok(())
}

#[test]
fn another_system_gets_a_post_with_all_fields() -> anyhow::Result<()> {
    let report = ticket(&fired("Sev1", false), "rest", &nobody_there())?;
    ensure_status(&report, Status::Succeeded)?;
    ensure!(called(&report) == ["Read_REST_token", "Post_ticket"], "{:?}", called(&report));
    ensure_same(
        operation(&report, "Read_REST_token", "PerformUnboundAction")?,
        &json!({
            "actionName": "RetrieveEnvironmentVariableSecretValue",
            "item/EnvironmentVariableName": "pm_RestToken",
        }),
    )?;
    let mut call = only_call(&report, "Post_ticket")?.clone();
    call["retryPolicy"].take();
    ensure_same(
        &call,
        &json!({
            "method": "POST",
            "uri": "https://cmms.example.com/tickets",
            "headers": {"Authorization": "Bearer token-1", "Content-Type": "application/json",
                        "Idempotency-Key": format!("{ALERT_ID}-1")},
            "body": {
                "state": "fired", "alertId": ALERT_ID, "revision": 1,
                "title": "[Sev1] temperature-above-100 on press-1",
                "description": "Six readings of press-1/oil were over 100 in one minute.",
                "machineId": "press-1", "sensorId": "press-1/oil", "rule": "temperature-above-100",
                "severity": 1, "urgent": true, "historical": false,
                "firedAt": "2026-03-01T08:15:30.000000Z", "resolvedAt": null,
                "windowStart": "2026-03-01T08:15:00.000000Z",
                "windowEnd": "2026-03-01T08:16:00.000000Z",
                "findings": 1, "observed": 6.0, "threshold": "count > 5",
                "tripId": null, "detail": "",
            },
            "retryPolicy": null,
        }),
    )?;

    let report = ticket(&resolved(), "rest", &nobody_there())?;
    let call = only_call(&report, "Post_ticket")?;
    ensure!(call["body"]["state"] == "resolved", "{call}");
    ensure!(call["body"]["resolvedAt"] == "2026-03-01T09:00:00.000000Z", "{call}");
    ensure!(call["headers"]["Idempotency-Key"] == format!("{ALERT_ID}-2"), "{call}");

    let refused = nobody_there().with("Post_ticket", 422, json!({}));
    ensure_status(&ticket(&resolved(), "rest", &refused)?, Status::Failed)?;
    Ok(())
}

#[test]
fn another_system_is_told_of_the_trip_and_what_is_urgent() -> anyhow::Result<()> {
    for (severity, historical, urgent) in [
        ("Sev0", false, true),
        ("Sev1", false, true),
        ("Sev2", false, false),
        ("Sev0", true, false),
    ] {
        let mut event = fired(severity, historical);
        alert_mut(&mut event)["alertContext"]["tripId"] = json!("trip-7");
        alert_mut(&mut event)["alertContext"]["detail"] = json!("limit: 9 mm/s");
        let report = ticket(&event, "rest", &nobody_there())?;
        let body = &only_call(&report, "Post_ticket")?["body"];
        ensure!(body["urgent"] == urgent && body["historical"] == historical, "{body}");
        ensure!(body["tripId"] == "trip-7" && body["detail"] == "limit: 9 mm/s", "{body}");
    }
    Ok(())
}

#[test]
fn a_body_that_was_wrapped_for_its_content_type_is_unwrapped() -> anyhow::Result<()> {
    let report = ticket(&wrapped(&fired("Sev2", false)), "rest", &nobody_there())?;
    ensure_status(&report, Status::Succeeded)?;
    ensure!(only_call(&report, "Post_ticket")?["body"]["alertId"] == ALERT_ID, "{report:?}");
    Ok(())
}

#[test]
fn a_system_that_is_not_known_is_named() -> anyhow::Result<()> {
    let report = ticket(&fired("Sev1", false), "paper", &nobody_there())?;
    ensure_status(&report, Status::Failed)?;
    ensure!(report.calls.is_empty(), "{:?}", report.calls);
    let message = report.message.context("no message")?;
    ensure!(message.contains("pm_MaintenanceSystem is paper"), "{message}");
    Ok(())
}

#[test]
fn each_alert_of_a_digest_has_its_work_order_and_what_is_missing_fails_the_run()
-> anyhow::Result<()> {
    let report = ticket(&digest(50, 0), "dataverse", &nobody_there())?;
    ensure_status(&report, Status::Succeeded)?;
    let rows: BTreeSet<_> = report
        .calls_of("Create_work_order")
        .iter()
        .map(|call| call.inputs["parameters"]["item/msdyn_workordersummary"].to_string())
        .collect();
    ensure!(rows.len() == 50, "{rows:?}");

    let report = ticket(&digest(2, 12), "rest", &nobody_there())?;
    ensure_status(&report, Status::Failed)?;
    ensure!(report.calls_of("Post_ticket").len() == 2, "{:?}", called(&report));
    let message = report.message.context("no message")?;
    ensure!(message.starts_with("12 alerts of this digest are not in it"), "{message}");
    Ok(())
}
