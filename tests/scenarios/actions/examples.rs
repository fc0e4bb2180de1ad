//! Alerts as they come in, and connectors that answer as told.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e_tests::workflow::{Call, Definition, Reply, Report, Settings, Status, run};
use serde_json::{Value, json};

pub(super) const LOGIC_APPS: [&str; 2] =
    ["logic-app/http.definition.json", "logic-app/event-hub.definition.json"];
pub(super) const TICKET_FLOW: &str = "power-automate/solution/Workflows/\
                                      AlertToWorkOrder-6A1F0C52-7D0B-4B86-9A55-2B6F3B1C7E01.json";
pub(super) const OUTCOME_FLOW: &str = "power-automate/solution/Workflows/\
                                      WorkOrderToOutcome-6A1F0C52-7D0B-4B86-9A55-2B6F3B1C7E02.\
                                      json";
/// 64 hex digits.
pub(super) const ALERT_ID: &str =
    "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";

pub(super) fn read(path: &str) -> anyhow::Result<Value> {
    let path = super::folder().join(path);
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
}

pub(super) fn definition(path: &str) -> anyhow::Result<Definition> {
    Definition::from_json(&read(path)?).with_context(|| path.to_owned())
}

fn essentials(id: &str, severity: &str, condition: &str) -> Value {
    json!({
        "alertId": id,
        "alertRule": "temperature-above-100",
        "severity": severity,
        "signalType": "Metric",
        "monitorCondition": condition,
        "monitoringService": "cloud-aggregator",
        "alertTargetIDs": ["press-1"],
        "configurationItems": ["press-1"],
        "originAlertId": id,
        "firedDateTime": "2026-03-01T08:15:30.000000Z",
        "description": "Six readings of press-1/oil were over 100 in one minute.",
        "essentialsVersion": "1.0",
        "alertContextVersion": "1.0",
    })
}

fn context(historical: bool, revision: u32) -> Value {
    json!({
        "rule": "temperature-above-100",
        "revision": revision,
        "machineId": "press-1",
        "sensorId": "press-1/oil",
        "windowStart": "2026-03-01T08:15:00.000000Z",
        "windowEnd": "2026-03-01T08:16:00.000000Z",
        "findings": 1,
        "count": 6,
        "threshold": "count > 5",
        "observed": 6.0,
        "historical": historical,
        "tripId": null,
        "detail": "",
    })
}

fn event(kind: &str, id: &str, subject: &str, data: &Value) -> Value {
    json!({
        "specversion": "1.0",
        "id": id,
        "source": "/cloud-aggregator",
        "type": format!("predictive-maintenance.alert.{kind}.v1"),
        "subject": subject,
        "time": "2026-03-01T08:15:30.000000Z",
        "datacontenttype": "application/json",
        "data": data,
    })
}

/// An alert that fired.
pub(super) fn fired(severity: &str, historical: bool) -> Value {
    let data = json!({"schemaId": "azureMonitorCommonAlertSchema", "data": {
        "essentials": essentials(ALERT_ID, severity, "Fired"),
        "alertContext": context(historical, 1),
    }});
    event("fired", &format!("{ALERT_ID}-1"), "press-1", &data)
}

/// The same alert, resolved.
pub(super) fn resolved() -> Value {
    let mut essentials = essentials(ALERT_ID, "Sev2", "Resolved");
    essentials["resolvedDateTime"] = json!("2026-03-01T09:00:00.000000Z");
    essentials["description"] = json!("Nothing was found on press-1 for ten minutes.");
    let mut context = context(false, 2);
    context["findings"] = json!(4);
    let data = json!({"schemaId": "azureMonitorCommonAlertSchema",
        "data": {"essentials": essentials, "alertContext": context}});
    event("resolved", &format!("{ALERT_ID}-2"), "press-1", &data)
}

/// So many alerts of different machines, all fired with Sev2, and so many that are not listed.
pub(super) fn digest(listed: usize, more: usize) -> Value {
    let alert = |index: usize| {
        let mut essentials = essentials(&format!("{index:064x}"), "Sev2", "Fired");
        essentials["description"] = json!(format!("Alert {index}."));
        let mut context = context(false, 1);
        context["machineId"] = json!(format!("press-{index}"));
        json!({"essentials": essentials, "alertContext": context})
    };
    let data = json!({
        "from": "2026-03-01T08:00:00.000000Z",
        "to": "2026-03-01T08:05:00.000000Z",
        "alerts": (0..listed).map(alert).collect::<Vec<_>>(),
        "more": more,
    });
    event("digest", "digest-team-1772352000000000", "digest", &data)
}

/// The essentials and the context of an event with one alert.
pub(super) fn alert_mut(event: &mut Value) -> &mut Value {
    &mut event["data"]["data"]
}

/// Connectors that answer as told, by the name of the action; all others answer 200.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(BTreeMap<&'static str, Reply>);

impl Answers {
    pub(super) fn with(mut self, action: &'static str, status: u16, body: Value) -> Self {
        self.0.insert(action, Reply::Answer(status, body));
        self
    }

    pub(super) fn silent(mut self, action: &'static str) -> Self {
        self.0.insert(action, Reply::Silence);
        self
    }

    pub(super) fn answer(&self, call: &Call) -> Reply {
        self.0.get(call.action.as_str()).cloned().unwrap_or(Reply::Answer(200, json!({})))
    }
}

pub(super) fn settings(parameters: &[(&str, Value)]) -> Settings {
    Settings {
        parameters: parameters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
        now: "2026-03-01T08:15:31Z".to_owned(),
        run: "run-1".to_owned(),
    }
}

/// Runs a definition on a body that starts one run.
pub(super) fn run_once(
    path: &str,
    body: &Value,
    settings: &Settings,
    answers: &Answers,
) -> anyhow::Result<Report> {
    let mut reports = run(&definition(path)?, body, settings, &mut |call| answers.answer(call))?;
    ensure!(reports.len() == 1, "{} runs", reports.len());
    reports.pop().context("no run")
}

/// The one call of an action.
pub(super) fn only_call<'a>(report: &'a Report, action: &str) -> anyhow::Result<&'a Value> {
    let calls = report.calls_of(action);
    ensure!(calls.len() == 1, "{action} was called {} times", calls.len());
    Ok(&calls[0].inputs)
}

/// Names of the actions called, in order.
pub(super) fn called(report: &Report) -> Vec<&str> {
    report.calls.iter().map(|call| call.action.as_str()).collect()
}

pub(super) fn ensure_status(report: &Report, expected: Status) -> anyhow::Result<()> {
    ensure!(report.status == expected, "{:?}: {:#?}", report.status, report.actions);
    Ok(())
}

/// Compares two values and names the members that differ.
pub(super) fn ensure_same(found: &Value, expected: &Value) -> anyhow::Result<()> {
    let mut differences = BTreeSet::new();
    differ(found, expected, "$", &mut differences);
    ensure!(differences.is_empty(), "{differences:#?}");
    Ok(())
}

fn differ(found: &Value, expected: &Value, place: &str, differences: &mut BTreeSet<String>) {
    if let (Some(of_found), Some(of_expected)) = (found.as_object(), expected.as_object()) {
        for name in of_found.keys().chain(of_expected.keys()) {
            differ(&found[name], &expected[name], &format!("{place}.{name}"), differences);
        }
    } else if found != expected {
        differences.insert(format!("{place}: {found} instead of {expected}"));
    }
}

/// The parameters of the one call of an action, after its operation was compared.
pub(super) fn operation<'a>(
    report: &'a Report,
    action: &str,
    id: &str,
) -> anyhow::Result<&'a Value> {
    let call = only_call(report, action)?;
    ensure_same(
        &call["host"],
        &json!({
            "apiId": "/providers/Microsoft.PowerApps/apis/shared_commondataserviceforapps",
            "connectionName": "shared_commondataserviceforapps",
            "operationId": id,
        }),
    )?;
    Ok(&call["parameters"])
}

/// A body as the service keeps one whose content type it does not take for JSON.
pub(super) fn wrapped(event: &Value) -> Value {
    json!({
        "$content-type": "application/cloudevents+json; charset=utf-8",
        "$content": STANDARD.encode(event.to_string()),
    })
}
