//! A definition, read: its trigger, its parameters, and its actions in an order in which they can run.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Fault, Status};

/// Members that any action may have.
const COMMON: [&str; 4] = ["type", "runAfter", "description", "runtimeConfiguration"];

/// A workflow as a Logic App or a flow of Power Automate has it.
#[derive(Clone, Debug)]
pub struct Definition {
    pub(super) trigger: Trigger,
    /// Default values; `None` where a value must be given.
    pub(super) parameters: BTreeMap<String, Option<Value>>,
    pub(super) actions: Vec<Action>,
}

#[derive(Clone, Debug)]
pub(super) struct Trigger {
    /// An array comes in and each of its items starts a run.
    splits: bool,
    pub(super) inputs: Value,
}

#[derive(Clone, Debug)]
pub(super) struct Action {
    pub(super) name: String,
    pub(super) run_after: BTreeMap<String, Vec<Status>>,
    pub(super) inputs: Value,
    pub(super) runtime: Value,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Compose,
    ParseJson,
    InitializeVariable,
    SetVariable,
    Select,
    Query,
    Http,
    ApiConnection,
    OpenApiConnection,
    Terminate,
    Scope(Vec<Action>),
    If { condition: Value, then: Vec<Action>, otherwise: Vec<Action> },
    Switch { on: Value, cases: Vec<(Value, Vec<Action>)>, default: Vec<Action> },
    Foreach { over: Value, each: Vec<Action> },
}

impl Action {
    /// The actions inside this one.
    pub(super) fn children(&self) -> Vec<&Vec<Self>> {
        match &self.kind {
            Kind::Compose
            | Kind::ParseJson
            | Kind::InitializeVariable
            | Kind::SetVariable
            | Kind::Select
            | Kind::Query
            | Kind::Http
            | Kind::ApiConnection
            | Kind::OpenApiConnection
            | Kind::Terminate => Vec::new(),
            Kind::Scope(actions) | Kind::Foreach { each: actions, .. } => vec![actions],
            Kind::If { then, otherwise, .. } => vec![then, otherwise],
            Kind::Switch { cases, default, .. } => {
                cases.iter().map(|(_, actions)| actions).chain([default]).collect()
            }
        }
    }
}

impl Definition {
    /// Reads a definition: bare, or in the `properties` of a flow in a solution.
    ///
    /// # Errors
    /// When it has a trigger, an action or a member of one that is not understood here.
    pub fn from_json(json: &Value) -> Result<Self, Fault> {
        let bare = json.pointer("/properties/definition").unwrap_or(json);
        let members = object(bare, "the definition")?;
        only(
            members,
            &["$schema", "contentVersion", "parameters", "triggers", "actions", "outputs"],
            "the definition",
        )?;
        let schema = bare["$schema"].as_str().unwrap_or_default();
        if !schema.ends_with("/2016-06-01/workflowdefinition.json#") {
            return Err(Fault::new(format!("schema {schema:?} is not that of 2016-06-01")));
        }
        let mut triggers = object(&bare["triggers"], "triggers")?.iter();
        let (Some((name, trigger)), None) = (triggers.next(), triggers.next()) else {
            return Err(Fault::new("there must be one trigger"));
        };
        Ok(Self {
            trigger: read_trigger(trigger).map_err(|fault| fault.within(name))?,
            parameters: read_parameters(&bare["parameters"])?,
            actions: read_actions(&bare["actions"])?,
        })
    }

    /// The schema of the trigger, if it has one.
    #[must_use]
    pub fn trigger_schema(&self) -> Option<&Value> {
        self.trigger.inputs.get("schema")
    }

    /// Names of all actions.
    #[must_use]
    pub fn action_names(&self) -> Vec<&str> {
        self.all_actions().into_iter().map(|action| action.name.as_str()).collect()
    }

    /// All actions, also those inside others.
    pub(super) fn all_actions(&self) -> Vec<&Action> {
        let mut all = Vec::new();
        let mut waiting: Vec<_> = self.actions.iter().collect();
        while let Some(action) = waiting.pop() {
            all.push(action);
            waiting.extend(action.children().into_iter().flatten());
        }
        all
    }

    /// The bodies of the runs that one body of the trigger starts.
    pub(super) fn trigger_bodies(&self, body: &Value) -> Result<Vec<Value>, Fault> {
        match (self.trigger.splits, body) {
            (false, _) => Ok(vec![body.clone()]),
            (true, Value::Array(items)) => Ok(items.clone()),
            (true, _) => Err(Fault::new("a trigger that splits needs an array")),
        }
    }
}

fn read_trigger(json: &Value) -> Result<Trigger, Fault> {
    let members = object(json, "the trigger")?;
    match (json["type"].as_str(), json["kind"].as_str()) {
        (Some("Request"), Some("Http")) => only(members, &["type", "kind", "inputs"], "Request")?,
        (Some("ApiConnection"), None) => {
            only(members, &["type", "inputs", "recurrence", "splitOn"], "ApiConnection")?;
        }
        (Some("OpenApiConnectionWebhook"), None) => {
            only(members, &["type", "inputs"], "OpenApiConnectionWebhook")?;
        }
        (kind, _) => return Err(Fault::new(format!("type {kind:?} is not known"))),
    }
    let splits = match json.get("splitOn").map(Value::as_str) {
        None => false,
        Some(Some("@triggerBody()")) => true,
        Some(other) => return Err(Fault::new(format!("splitOn {other:?} is not known"))),
    };
    Ok(Trigger { splits, inputs: json["inputs"].clone() })
}

fn read_parameters(json: &Value) -> Result<BTreeMap<String, Option<Value>>, Fault> {
    let mut parameters = BTreeMap::new();
    for (name, parameter) in object(json, "parameters")? {
        only(object(parameter, name)?, &["type", "defaultValue", "metadata"], name)?;
        parameters.insert(name.clone(), parameter.get("defaultValue").cloned());
    }
    Ok(parameters)
}

/// Reads the actions of one level and sorts them so that each follows those that it runs after.
fn read_actions(json: &Value) -> Result<Vec<Action>, Fault> {
    let mut waiting = Vec::new();
    for (name, action) in object(json, "actions")? {
        waiting.push(read_action(name, action).map_err(|fault| fault.within(name))?);
    }
    let mut sorted: Vec<Action> = Vec::new();
    while !waiting.is_empty() {
        let ready = waiting.iter().position(|action: &Action| {
            action.run_after.keys().all(|name| sorted.iter().any(|done| &done.name == name))
        });
        let Some(ready) = ready else {
            let names: Vec<_> = waiting.iter().map(|action| &action.name).collect();
            return Err(Fault::new(format!(
                "{names:?} run after what is not there, or in a circle"
            )));
        };
        sorted.push(waiting.remove(ready));
    }
    Ok(sorted)
}

fn read_action(name: &str, json: &Value) -> Result<Action, Fault> {
    let members = object(json, "the action")?;
    let allow = |more: &[&str]| {
        let known: Vec<_> = COMMON.iter().chain(more).copied().collect();
        only(members, &known, "the action")
    };
    let kind = json["type"].as_str().unwrap_or_default();
    let kind = match kind {
        "Scope" => {
            allow(&["actions"])?;
            Kind::Scope(read_actions(&json["actions"])?)
        }
        "If" => {
            allow(&["expression", "actions", "else"])?;
            Kind::If {
                condition: json["expression"].clone(),
                then: read_actions(&json["actions"])?,
                otherwise: read_branch(json.get("else"))?,
            }
        }
        "Switch" => {
            allow(&["expression", "cases", "default"])?;
            Kind::Switch {
                on: json["expression"].clone(),
                cases: read_cases(&json["cases"])?,
                default: read_branch(json.get("default"))?,
            }
        }
        "Foreach" => {
            allow(&["foreach", "actions", "operationOptions"])?;
            if json["operationOptions"] != "Sequential" {
                return Err(Fault::new("only loops that are Sequential are run here"));
            }
            Kind::Foreach { over: json["foreach"].clone(), each: read_actions(&json["actions"])? }
        }
        simple => {
            allow(&["inputs"])?;
            simple_kind(simple)?
        }
    };
    Ok(Action {
        name: name.to_owned(),
        run_after: read_run_after(json.get("runAfter"))?,
        inputs: json["inputs"].clone(),
        runtime: json["runtimeConfiguration"].clone(),
        kind,
    })
}

fn simple_kind(kind: &str) -> Result<Kind, Fault> {
    match kind {
        "Compose" => Ok(Kind::Compose),
        "ParseJson" => Ok(Kind::ParseJson),
        "InitializeVariable" => Ok(Kind::InitializeVariable),
        "SetVariable" => Ok(Kind::SetVariable),
        "Select" => Ok(Kind::Select),
        "Query" => Ok(Kind::Query),
        "Http" => Ok(Kind::Http),
        "ApiConnection" => Ok(Kind::ApiConnection),
        "OpenApiConnection" => Ok(Kind::OpenApiConnection),
        "Terminate" => Ok(Kind::Terminate),
        other => Err(Fault::new(format!("type {other:?} is not known"))),
    }
}

fn read_branch(json: Option<&Value>) -> Result<Vec<Action>, Fault> {
    match json {
        None => Ok(Vec::new()),
        Some(branch) => {
            only(object(branch, "a branch")?, &["actions"], "a branch")?;
            read_actions(&branch["actions"])
        }
    }
}

fn read_cases(json: &Value) -> Result<Vec<(Value, Vec<Action>)>, Fault> {
    let mut cases = Vec::new();
    for (name, case) in object(json, "cases")? {
        only(object(case, name)?, &["case", "actions"], name)?;
        cases.push((case["case"].clone(), read_actions(&case["actions"])?));
    }
    Ok(cases)
}

fn read_run_after(json: Option<&Value>) -> Result<BTreeMap<String, Vec<Status>>, Fault> {
    let mut run_after = BTreeMap::new();
    for (name, statuses) in json.and_then(Value::as_object).into_iter().flatten() {
        let statuses = statuses.as_array().into_iter().flatten();
        let statuses = statuses.map(|word| Status::from_word(word.as_str().unwrap_or_default()));
        run_after.insert(name.clone(), statuses.collect::<Result<_, _>>()?);
    }
    Ok(run_after)
}

fn object<'a>(json: &'a Value, what: &str) -> Result<&'a Map<String, Value>, Fault> {
    json.as_object().ok_or_else(|| Fault::new(format!("{what} is no object")))
}

/// Refuses members that nothing here would look at.
pub(super) fn only(members: &Map<String, Value>, known: &[&str], what: &str) -> Result<(), Fault> {
    match members.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Fault::new(format!("{what}: {name:?} is not understood"))),
    }
}
