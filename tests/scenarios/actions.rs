//! The deployable actions: Logic Apps that tell the maintenance team, flows that make a work order of an alert and an outcome
//! of a closed work order. Each definition is run here by an interpreter; what its connectors would be asked is compared
//! field by field. The schemas of its triggers are those that the program prints.

mod examples;
mod notifications;
mod outcomes;
mod tickets;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use e2e_tests::workflow::{Definition, check, schema};
use e2e_tests::{cloud_aggregator, workspace_root};
use serde_json::{Value, json};

use examples::{LOGIC_APPS, OUTCOME_FLOW, TICKET_FLOW, definition, read};

/// Characters that the service takes in one text with expressions ("Limits and configuration reference for Azure Logic
/// Apps", expression limits).
const TEXT_MAX: usize = 8_192;

/// Where a definition holds a schema, and whose.
const COPIES: [(&str, &str, bool); 6] = [
    ("logic-app/http.definition.json", "/triggers/manual/inputs/schema", true),
    ("logic-app/http.definition.json", "/actions/Parse_event/inputs/schema", true),
    ("logic-app/event-hub.definition.json", "/actions/Parse_event/inputs/schema", true),
    (TICKET_FLOW, "/properties/definition/triggers/manual/inputs/schema", true),
    (TICKET_FLOW, "/properties/definition/actions/Parse_event/inputs/schema", true),
    (
        OUTCOME_FLOW,
        "/properties/definition/actions/Is_of_an_alert/actions/Check_outcome/inputs/schema",
        false,
    ),
];

fn folder() -> PathBuf {
    workspace_root().join("deployment-manifests/cloud/actions")
}

/// A schema as definitions hold it: the dialect stands only at the top of a file.
fn schema_of(kind: &str) -> anyhow::Result<Value> {
    let mut schema = read(&format!("schemas/{kind}.json"))?;
    schema.as_object_mut().context("a schema is an object")?.remove("$schema");
    Ok(schema)
}

/// What a copy must be: one of the three events, or the outcome. What comes in may have more members than the file knows, so
/// that a newer cloud-aggregator does not silence a definition that was deployed before; what goes out may not.
fn expected_copy(of_events: bool) -> anyhow::Result<Value> {
    if !of_events {
        return schema_of("outcome");
    }
    let kinds = ["fired", "resolved", "digest"].map(|kind| schema_of(kind).map(opened));
    Ok(json!({"oneOf": kinds.into_iter().collect::<Result<Vec<_>, _>>()?}))
}

/// The schema without the refusal of members that it does not know.
fn opened(schema: Value) -> Value {
    match schema {
        Value::Object(members) => members
            .into_iter()
            .filter(|(name, value)| name != "additionalProperties" || *value != json!(false))
            .map(|(name, value)| (name, opened(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(opened).collect(),
        leaf @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => leaf,
    }
}

/// With `UPDATE_GOLDEN=1` the files and their copies in the definitions are written anew.
#[test]
fn the_schemas_are_those_that_the_program_prints() -> anyhow::Result<()> {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for kind in ["fired", "resolved", "digest", "outcome"] {
        let done = Command::new(cloud_aggregator::program())
            .args(["alerts", "schema", kind])
            .output()
            .context("cloud-aggregator")?;
        ensure!(done.status.success(), "{kind}: {}", String::from_utf8_lossy(&done.stderr));
        let printed: Value = serde_json::from_slice(&done.stdout)?;
        let path = format!("schemas/{kind}.json");
        if update {
            write(&path, &printed)?;
        }
        ensure!(printed == read(&path)?, "{path} is not what the program prints");
    }
    for (path, pointer, of_events) in COPIES.into_iter().filter(|_| update) {
        let mut definition = read(path)?;
        *definition.pointer_mut(pointer).context(pointer)? = expected_copy(of_events)?;
        write(path, &definition)?;
    }
    Ok(())
}

fn write(path: &str, value: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(folder().join(path), text).with_context(|| path.to_owned())
}

#[test]
fn the_definitions_hold_the_schemas_of_the_files() -> anyhow::Result<()> {
    for (path, pointer, of_events) in COPIES {
        let found = read(path)?;
        let found = found.pointer(pointer).with_context(|| format!("{path}{pointer}"))?;
        ensure!(*found == expected_copy(of_events)?, "{path}{pointer} is another schema");
    }
    Ok(())
}

#[test]
fn the_schemas_take_the_examples_and_nothing_else() -> anyhow::Result<()> {
    let examples = [
        ("fired", examples::fired("Sev2", false)),
        ("resolved", examples::resolved()),
        ("digest", examples::digest(50, 12)),
    ];
    for (kind, example) in &examples {
        for other in ["fired", "resolved", "digest"] {
            let complaints = schema::validate(&schema_of(other)?, example)?;
            ensure!(complaints.is_empty() == (*kind == other), "{kind} as {other}: {complaints:?}");
        }
    }
    Ok(())
}

#[test]
fn the_definitions_use_only_what_is_run_here_and_hold_no_secret() -> anyhow::Result<()> {
    for path in LOGIC_APPS.into_iter().chain([TICKET_FLOW, OUTCOME_FLOW]) {
        let faults = check(&definition(path)?);
        ensure!(faults.is_empty(), "{path}: {faults:#?}");
        longest_text(&read(path)?, path)?;
    }
    Ok(())
}

fn longest_text(value: &Value, place: &str) -> anyhow::Result<()> {
    match value {
        Value::String(text) => ensure!(text.len() <= TEXT_MAX, "{place}: {} bytes", text.len()),
        Value::Array(items) => {
            for item in items {
                longest_text(item, place)?;
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                longest_text(member, &format!("{place}/{name}"))?;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

#[test]
fn every_action_of_every_definition_has_run_in_an_example() -> anyhow::Result<()> {
    let all = [
        (LOGIC_APPS[0], notifications::executed(LOGIC_APPS[0])?),
        (LOGIC_APPS[1], notifications::executed(LOGIC_APPS[1])?),
        (TICKET_FLOW, tickets::executed()?),
        (OUTCOME_FLOW, outcomes::executed()?),
    ];
    for (path, executed) in all {
        let definition: Definition = definition(path)?;
        let never: Vec<_> = definition
            .action_names()
            .into_iter()
            .filter(|name| !executed.contains(*name))
            .collect();
        ensure!(never.is_empty(), "{path}: never run: {never:?}");
    }
    Ok(())
}

#[test]
fn the_triggers_are_what_their_references_say() -> anyhow::Result<()> {
    let dataverse = json!({
        "apiId": "/providers/Microsoft.PowerApps/apis/shared_commondataserviceforapps",
        "connectionName": "shared_commondataserviceforapps",
        "operationId": "SubscribeWebhookTrigger",
    });
    let expected = [
        (LOGIC_APPS[0], json!({"manual": {"type": "Request", "kind": "Http", "inputs": {}}})),
        (
            LOGIC_APPS[1],
            json!({"When_events_are_available_in_Event_Hub": {
                "type": "ApiConnection",
                "splitOn": "@triggerBody()",
                "recurrence": {"frequency": "Second", "interval": 10},
                "inputs": {
                    "host": {"connection": {
                        "name": "@parameters('$connections')['eventhubs']['connectionId']"}},
                    "method": "get",
                    "path": "/@{encodeURIComponent(parameters('eventHubName'))}/events/batch/head",
                    "queries": {
                        "contentType": "application/octet-stream",
                        "consumerGroupName": "@parameters('consumerGroup')",
                        "maximumEventsCount": 50,
                    },
                },
            }}),
        ),
        // Whoever has the signed URL may call it: the cloud-aggregator signs in nowhere.
        (
            TICKET_FLOW,
            json!({"manual": {"type": "Request", "kind": "Http",
            "inputs": {"triggerAuthenticationType": "All"}}}),
        ),
        // Message 3: a row was changed. Scope 4: in the whole organisation.
        (
            OUTCOME_FLOW,
            json!({"When_a_work_order_is_closed": {
                "type": "OpenApiConnectionWebhook",
                "inputs": {
                    "host": dataverse,
                    "parameters": {
                        "subscriptionRequest/message": 3,
                        "subscriptionRequest/entityname": "msdyn_workorder",
                        "subscriptionRequest/scope": 4,
                        "subscriptionRequest/filteringattributes": "msdyn_systemstatus,msdyn_substatus",
                        "subscriptionRequest/filterexpression": "msdyn_systemstatus eq 690970003 or \
                            msdyn_systemstatus eq 690970004 or msdyn_systemstatus eq 690970005",
                    },
                    "authentication": "@parameters('$authentication')",
                },
            }}),
        ),
    ];
    for (path, expected) in expected {
        let json = read(path)?;
        let bare = json.pointer("/properties/definition").unwrap_or(&json);
        let mut triggers = bare["triggers"].clone();
        for trigger in triggers.as_object_mut().context("no triggers")?.values_mut() {
            trigger["inputs"].as_object_mut().context("no inputs")?.remove("schema");
        }
        examples::ensure_same(&triggers, &expected).context(path)?;
    }
    Ok(())
}

/// What `<name attribute="value"` is written in an XML file, each.
fn attributes(xml: &str, element: &str, attribute: &str) -> BTreeSet<String> {
    xml.split(&format!("<{element} "))
        .skip(1)
        .filter_map(|rest| rest.split('>').next())
        .filter_map(|tag| tag.split(&format!("{attribute}=\"")).nth(1))
        .filter_map(|rest| rest.split('"').next())
        .map(str::to_owned)
        .collect()
}

fn names_in(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    std::fs::read_dir(folder)?
        .map(|entry| entry?.file_name().into_string().ok().context("UTF-8"))
        .collect()
}

#[test]
fn the_solution_lists_all_that_it_holds() -> anyhow::Result<()> {
    let solution = folder().join("power-automate/solution");
    let manifest = std::fs::read_to_string(solution.join("solution.xml"))?;
    let customizations = std::fs::read_to_string(solution.join("customizations.xml"))?;
    let variables = names_in(&solution.join("environmentvariabledefinitions"))?;
    ensure!(attributes(&manifest, "RootComponent", "schemaName") == variables, "{variables:?}");

    let flows = attributes(&customizations, "Workflow", "WorkflowId");
    ensure!(attributes(&manifest, "RootComponent", "id") == flows, "{flows:?}");
    let files = names_in(&solution.join("Workflows"))?;
    ensure!(files.len() == flows.len(), "{files:?}");
    let references =
        attributes(&customizations, "connectionreference", "connectionreferencelogicalname");
    for file in files {
        ensure!(customizations.contains(&format!("<JsonFileName>/Workflows/{file}<")), "{file}");
        let id = file.trim_end_matches(".json").split_once('-').context("no id")?.1;
        ensure!(flows.contains(&format!("{{{}}}", id.to_lowercase())), "{file}");
        let flow = read(&format!("power-automate/solution/Workflows/{file}"))?;
        let used = flow.pointer("/properties/connectionReferences").and_then(Value::as_object);
        for (name, reference) in used.context("no references")? {
            let logical = &reference["connection"]["connectionReferenceLogicalName"];
            ensure!(references.contains(logical.as_str().unwrap_or_default()), "{file}: {name}");
        }
        let parameters = flow.pointer("/properties/definition/parameters");
        for parameter in parameters.and_then(Value::as_object).context("none")?.values() {
            let Some(name) = parameter["metadata"]["schemaName"].as_str() else { continue };
            ensure!(variables.contains(name), "{file}: {name} is not in the solution");
        }
    }
    Ok(())
}

#[test]
fn secrets_are_environment_variables_of_that_type_and_have_no_value() -> anyhow::Result<()> {
    let variables = folder().join("power-automate/solution/environmentvariabledefinitions");
    for name in ["pm_RestToken", "pm_OutcomeToken"] {
        let path = variables.join(name).join("environmentvariabledefinition.xml");
        let text = std::fs::read_to_string(path)?;
        ensure!(text.contains("<type>100000005</type>"), "{name} is no secret: {text}");
        ensure!(!text.contains("<defaultvalue>"), "{name} has a value");
    }
    Ok(())
}

/// The Bicep file passes on every parameter that the definitions want, and only these.
#[test]
fn the_deployment_gives_each_definition_its_parameters() -> anyhow::Result<()> {
    let bicep = std::fs::read_to_string(folder().join("logic-app/main.bicep"))?;
    for path in LOGIC_APPS {
        let file = path.trim_start_matches("logic-app/");
        ensure!(bicep.contains(&format!("loadJsonContent('{file}')")), "{file} is not deployed");
        let definition = read(path)?;
        for name in definition["parameters"].as_object().context("no parameters")?.keys() {
            let given = bicep.contains(&format!("{name}: {{ value:")) || name == "$connections";
            ensure!(given, "{path}: {name} is not given");
        }
    }
    for name in ["teams", "office365", "eventhubs"] {
        ensure!(bicep.contains(&format!("'{name}'")), "connection {name} is not deployed");
    }
    Ok(())
}
