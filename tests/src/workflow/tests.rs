//! The language: each function, each way an action can end, each thing that must be refused.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Call, Definition, Fault, Reply, Report, Settings, Status, check, schema};

const SCHEMA: &str = "https://schema.management.azure.com/providers/Microsoft.Logic/schemas/\
                      2016-06-01/workflowdefinition.json#";

fn definition(actions: Value) -> Result<Definition, Fault> {
    Definition::from_json(&json!({
        "$schema": SCHEMA,
        "contentVersion": "1.0.0.0",
        "parameters": {"zone": {"type": "String", "defaultValue": "UTC"}},
        "triggers": {"manual": {"type": "Request", "kind": "Http", "inputs": {}}},
        "actions": actions,
    }))
}

fn run_with(
    actions: Value,
    body: &Value,
    mut answer: impl FnMut(&Call) -> Reply,
) -> Result<Report, Fault> {
    let settings = Settings {
        parameters: BTreeMap::new(),
        now: "2026-03-01T08:15:30.25+01:00".to_owned(),
        run: "run-1".to_owned(),
    };
    let mut reports = super::run(&definition(actions)?, body, &settings, &mut answer)?;
    reports.pop().ok_or_else(|| Fault::new("no run"))
}

fn silent(_: &Call) -> Reply {
    Reply::Silence
}

/// What an expression gives, seen as the header of a call.
fn evaluated(text: &str, body: &Value) -> Result<Value, Fault> {
    let actions = json!({"call": {"type": "Http", "runAfter": {}, "inputs": {"body": text}}});
    run_with(actions, body, silent).map(|report| report.calls[0].inputs["body"].clone())
}

fn check_value(text: &str, expected: Value) {
    let body = json!({"name": "press-1", "none": null, "list": [1, 2], "in": {"a": 6.0}});
    match evaluated(text, &body) {
        Ok(found) => assert_eq!(found, expected, "{text}"),
        Err(fault) => panic!("{text}: {fault}"),
    }
}

#[test]
fn text_is_taken_as_it_is_or_evaluated_whole_or_joined() {
    for (text, expected) in [
        ("plain", json!("plain")),
        ("@@escaped", json!("@escaped")),
        ("mail@example.com", json!("mail@example.com")),
        ("@triggerBody()?['name']", json!("press-1")),
        ("@triggerBody()?['list']", json!([1, 2])),
        ("<@{triggerBody()?['name']}|@{triggerBody()?['none']}>", json!("<press-1|>")),
        ("@{triggerBody()?['in']?['a']} of @{triggerBody()?['list']}", json!("6 of [1,2]")),
        ("@{concat('}', '''')}", json!("}'")),
    ] {
        check_value(text, expected);
    }
}

#[test]
fn functions_give_what_their_reference_says() {
    for (text, expected) in [
        ("@add(2, 3)", json!(5)),
        ("@and(true, false)", json!(false)),
        ("@base64('ä')", json!("w6Q=")),
        ("@base64ToString('w6Q=')", json!("ä")),
        ("@coalesce(null, triggerBody()?['none'], 'x')", json!("x")),
        ("@concat('a', 1, null)", json!("a1")),
        ("@contains(triggerBody()['list'], 2)", json!(true)),
        (
            "@convertTimeZone('2026-03-01T08:15:30.5Z','UTC',parameters('zone'),'dd.MM HH:mm')",
            json!("01.03 08:15"),
        ),
        ("@createArray(1, 'a')", json!([1, "a"])),
        ("@empty('')", json!(true)),
        ("@empty(null)", json!(true)),
        ("@encodeURIComponent('Flow bot/ä')", json!("Flow%20bot%2F%C3%A4")),
        ("@equals(1, 1.0)", json!(true)),
        ("@equals(null, 'null')", json!(false)),
        ("@first(createArray())", json!(null)),
        (
            "@formatDateTime('2024-02-29T23:59:59-01:00','yyyy-MM-ddTHH:mm:ssZ')",
            json!("2024-03-01T00:59:59Z"),
        ),
        ("@formatNumber(7, '0000')", json!("0007")),
        ("@greater(2, 1)", json!(true)),
        ("@if(greater(1, 2), 'no', 'yes')", json!("yes")),
        ("@int('12')", json!(12)),
        ("@join(triggerBody()['list'], '; ')", json!("1; 2")),
        ("@json('{\"a\": [1]}')", json!({"a": [1]})),
        ("@length('ä😀')", json!(3)),
        ("@not(or(false, false))", json!(true)),
        ("@replace('a''b', '''', '''''')", json!("a''b")),
        ("@setProperty(json('{}'), 'a', 1)", json!({"a": 1})),
        ("@string(triggerBody()['list'])", json!("[1,2]")),
        ("@substring('abcdef', 2, 3)", json!("cde")),
        ("@take('abc', 2)", json!("ab")),
        ("@take(triggerBody()['list'], 9)", json!([1, 2])),
        ("@trim('  a b ')", json!("a b")),
        ("@utcNow('r')", json!("Sun, 01 Mar 2026 07:15:30 GMT")),
        ("@workflow()['run']['name']", json!("run-1")),
    ] {
        check_value(text, expected);
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    for text in [
        "@rand(1, 2)",
        "@concat('a'",
        "@concat('a') b",
        "@{concat('a')",
        "@triggerBody()['missing']",
        "@triggerBody()?['name']['deeper']",
        "@if(true, 'a', base64ToString('%'))",
        "@convertTimeZone('2026-03-01T08:15:30Z','UTC','W. Europe Standard Time','HH')",
        "@formatDateTime('yesterday','HH')",
        "@formatDateTime('2026-03-01T08:15:30Z','ddd')",
        "@outputs('nobody')",
        "@items('no_loop')",
        "@variables('none')",
    ] {
        let body = json!({"name": "press-1"});
        assert!(evaluated(text, &body).is_err(), "{text}");
    }
}

#[test]
fn actions_that_are_not_understood_are_refused() {
    for actions in [
        json!({"a": {"type": "JavaScriptCode", "inputs": {}}}),
        json!({"a": {"type": "Compose", "inputs": 1, "limit": {"timeout": "PT1H"}}}),
        json!({"a": {"type": "Compose", "inputs": 1, "runAfter": {"b": ["Succeeded"]}}}),
        json!({"a": {"type": "Compose", "inputs": 1, "runAfter": {"a": ["Succeeded"]}}}),
        json!({"a": {"type": "Foreach", "foreach": "@createArray()", "actions": {}}}),
        json!({"a": {"type": "If", "expression": true, "actions": {}, "else": {"b": 1}}}),
    ] {
        assert!(definition(actions.clone()).is_err(), "{actions}");
    }
    for actions in [
        json!({"a": {"type": "Http", "inputs": {"method": "GET", "cookie": "x"}}}),
        json!({"a": {"type": "If", "expression": {"xor": []}, "actions": {}}}),
        json!({"a": {"type": "ParseJson", "inputs": {"content": {}, "schema": {"$ref": "#"}}}}),
        json!({"a": {"type": "SetVariable", "inputs": {"name": "x", "value": 1}}}),
        json!({"a": {"type": "InitializeVariable",
            "inputs": {"variables": [{"name": "x", "type": "object", "value": ""}]}}}),
        json!({"a": {"type": "Foreach", "operationOptions": "Sequential",
            "foreach": "@createArray(1)",
            "actions": {"b": {"type": "Terminate", "inputs": {"runStatus": "Failed"}}}}}),
    ] {
        assert!(run_with(actions.clone(), &json!({}), silent).is_err(), "{actions}");
    }
}

/// A call `a`, what `b` does after it, and how the run ends.
fn ends(answer: &Reply, runs_after: &[&str]) -> Result<(Status, Status), Fault> {
    let actions = json!({
        "a": {"type": "Http", "inputs": {}},
        "b": {"type": "Compose", "inputs": "", "runAfter": {"a": runs_after}},
    });
    let report = run_with(actions, &json!({}), |_| answer.clone())?;
    Ok((report.actions["b"], report.status))
}

#[test]
fn a_run_ends_as_the_last_actions_of_its_branches_do() -> Result<(), Fault> {
    let (good, bad) = (Reply::Answer(204, Value::Null), Reply::Answer(400, Value::Null));
    for (answer, runs_after, expected) in [
        (&good, &["Succeeded"][..], (Status::Succeeded, Status::Succeeded)),
        (&good, &["Failed"], (Status::Skipped, Status::Succeeded)),
        (&bad, &["Succeeded"], (Status::Skipped, Status::Failed)),
        (&bad, &["Failed"], (Status::Succeeded, Status::Succeeded)),
        (&Reply::Silence, &["TimedOut"], (Status::Succeeded, Status::Succeeded)),
        (&Reply::Silence, &["Failed"], (Status::Skipped, Status::Failed)),
    ] {
        assert_eq!(ends(answer, runs_after)?, expected, "{answer:?} {runs_after:?}");
    }
    Ok(())
}

#[test]
fn loops_switches_and_variables_do_as_they_say() -> Result<(), Fault> {
    let actions = json!({
        "start": {"type": "InitializeVariable",
            "inputs": {"variables": [{"name": "said", "type": "string", "value": "nothing"}]}},
        "large": {"type": "Query", "runAfter": {"start": ["Succeeded"]},
            "inputs": {"from": "@triggerBody()", "where": "@greater(item(), 1)"}},
        "doubled": {"type": "Select", "runAfter": {"large": ["Succeeded"]},
            "inputs": {"from": "@body('large')", "select": "@add(item(), item())"}},
        "each": {"type": "Foreach", "runAfter": {"doubled": ["Succeeded"]},
            "operationOptions": "Sequential", "foreach": "@body('doubled')",
            "actions": {"call": {"type": "Http", "inputs": {"uri": "/@{items('each')}"}}}},
        "which": {"type": "Switch", "runAfter": {"each": ["Failed"]},
            "expression": "@length(body('doubled'))",
            "cases": {"two": {"case": 2, "actions": {"say": {"type": "SetVariable",
                "inputs": {"name": "said", "value": "@{variables('said')} more"}}}}},
            "default": {"actions": {"other": {"type": "Compose", "inputs": ""}}}},
        "end": {"type": "Terminate", "runAfter": {"which": ["Succeeded"]},
            "inputs": {"runStatus": "Cancelled", "runError": {"message": "@variables('said')"}}},
        "late": {"type": "Compose", "runAfter": {"end": ["Succeeded"]}, "inputs": ""},
    });
    let report = run_with(actions, &json!([1, 2, 3]), |call| {
        Reply::Answer(if call.inputs["uri"] == "/4" { 500 } else { 200 }, Value::Null)
    })?;
    let asked: Vec<_> = report.calls.iter().map(|call| call.inputs["uri"].clone()).collect();
    assert_eq!(asked, ["/4", "/6"]);
    assert_eq!(
        (report.status, report.message.as_deref()),
        (Status::Cancelled, Some("nothing more"))
    );
    assert_eq!(report.actions["other"], Status::Skipped);
    assert_eq!(report.actions["late"], Status::Skipped);
    Ok(())
}

#[test]
fn a_schema_names_what_does_not_fit() -> Result<(), Fault> {
    let schema = json!({
        "type": "object",
        "required": ["kind", "list"],
        "properties": {
            "kind": {"const": "a"},
            "level": {"type": ["integer", "null"], "minimum": 0, "maximum": 4},
            "name": {"enum": ["x", "y"]},
            "list": {"type": "array", "maxItems": 2, "items": {"type": "string", "minLength": 1}},
        },
        "additionalProperties": false,
    });
    for (value, expected) in [
        (json!({"kind": "a", "list": ["q"], "level": null, "name": "y"}), 0),
        (json!({"kind": "b", "list": []}), 1),
        (json!({"kind": "a"}), 1),
        (json!({"kind": "a", "list": ["", 1, "x"]}), 3),
        (json!({"kind": "a", "list": [], "level": 5, "name": "z", "more": 1}), 3),
        (json!({"kind": "a", "list": [], "level": 1.5}), 1),
        (json!([]), 1),
    ] {
        assert_eq!(schema::validate(&schema, &value)?.len(), expected, "{value}");
    }
    let either = json!({"oneOf": [{"type": "number"}, {"type": "integer"}, {"type": "string"}]});
    assert_eq!(schema::validate(&either, &json!("a"))?.len(), 0);
    assert_eq!(schema::validate(&either, &json!(1))?.len(), 1);
    assert_eq!(schema::validate(&either, &json!(null))?.len(), 1);
    Ok(())
}

#[test]
fn the_check_finds_what_no_example_would_run() -> Result<(), Fault> {
    let never = |action: Value| {
        definition(json!({"if": {"type": "If", "expression": false, "actions": {"x": action}}}))
            .map(|definition| check(&definition))
    };
    let retry = json!({"type": "none"});
    for (action, expected) in [
        (json!({"type": "Compose", "inputs": "@rand(1, 2)"}), "rand"),
        (json!({"type": "Compose", "inputs": "@body('nobody')"}), "nobody"),
        (json!({"type": "Compose", "inputs": "@parameters('nobody')"}), "nobody"),
        (json!({"type": "Compose", "inputs": "@variables('nobody')"}), "nobody"),
        (json!({"type": "Compose", "inputs": "@concat("}), "concat("),
        (json!({"type": "Compose", "inputs": "https://a/b?sig=abc"}), "secret"),
        (json!({"type": "Http", "inputs": {}}), "retry"),
        (
            json!({"type": "Http",
            "inputs": {"retryPolicy": retry, "headers": {"Authorization": "@concat('a')"}}}),
            "history",
        ),
        (
            json!({"type": "OpenApiConnection", "inputs": {"retryPolicy": retry,
            "parameters": {"actionName": "RetrieveEnvironmentVariableSecretValue"}}}),
            "history",
        ),
        (
            json!({"type": "ParseJson",
                "inputs": {"content": "", "schema": {"$ref": "#/$defs/a"}}}),
            "$ref",
        ),
    ] {
        let faults = never(action.clone())?;
        let found = faults.len() == 1 && faults[0].contains(expected);
        assert!(found, "{action}: {faults:?}");
    }
    assert!(never(json!({"type": "Compose", "inputs": "@take('a', 1)"}))?.is_empty());
    Ok(())
}
