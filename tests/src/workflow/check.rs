//! What can be said of a definition before it runs: also of the branches that no example takes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::definition::{Action, Definition, Kind};
use super::expression::Expression;
use super::{functions, schema, template};

/// What text in a definition gives away a secret: keys, signatures of URLs, tokens.
const SECRETS: [&str; 6] =
    ["sig=", "AccountKey=", "SharedAccessKey", "Bearer ey", "client_secret", "password"];

/// The faults of a definition, in words: expressions that cannot be read, functions, actions, parameters and variables that
/// are not there, names used twice, calls without a retry policy, secrets in the file or in the history of runs.
#[must_use]
pub fn check(definition: &Definition) -> Vec<String> {
    let mut faults = Vec::new();
    let actions = definition.all_actions();
    let names: BTreeSet<_> = actions.iter().map(|action| action.name.as_str()).collect();
    if names.len() < actions.len() {
        faults.push("two actions have the same name".to_owned());
    }
    let variables = variables_of(&actions);
    let known = Known { definition, names, variables };
    known.texts("the trigger", &definition.trigger.inputs, &mut faults);
    for action in actions {
        known.action(action, &mut faults);
    }
    faults
}

struct Known<'a> {
    definition: &'a Definition,
    names: BTreeSet<&'a str>,
    variables: BTreeSet<&'a str>,
}

impl Known<'_> {
    fn action(&self, action: &Action, faults: &mut Vec<String>) {
        let name = &action.name;
        let mut texts = action.inputs.clone();
        if let Kind::ParseJson = action.kind {
            // A schema holds no expressions, but it must be one that is understood.
            let schema = texts["schema"].take();
            if let Err(fault) = schema::validate(&schema, &Value::Null) {
                faults.push(format!("{name}: {fault}"));
            }
        }
        self.texts(name, &texts, faults);
        match &action.kind {
            Kind::If { condition, .. } => self.texts(name, condition, faults),
            Kind::Switch { on, .. } => self.texts(name, on, faults),
            Kind::Foreach { over, .. } => self.texts(name, over, faults),
            Kind::Http | Kind::ApiConnection | Kind::OpenApiConnection => {
                if action.inputs.pointer("/retryPolicy/type").is_none() {
                    faults.push(format!("{name}: no retry policy"));
                }
            }
            Kind::Compose
            | Kind::ParseJson
            | Kind::InitializeVariable
            | Kind::SetVariable
            | Kind::Select
            | Kind::Query
            | Kind::Terminate
            | Kind::Scope(_) => {}
        }
        hidden(action, faults);
    }

    fn texts(&self, place: &str, value: &Value, faults: &mut Vec<String>) {
        let text = value.to_string();
        let secrets = SECRETS.iter().filter(|secret| text.contains(*secret));
        faults.extend(secrets.map(|secret| format!("{place}: {secret:?} looks like a secret")));
        match template::expressions(value) {
            Ok(found) => {
                for expression in found {
                    self.expression(place, &expression, faults);
                }
            }
            Err(fault) => faults.push(format!("{place}: {fault}")),
        }
    }

    fn expression(&self, place: &str, expression: &Expression, faults: &mut Vec<String>) {
        match expression {
            Expression::Literal(_) => {}
            Expression::Member { of, key, .. } => {
                self.expression(place, of, faults);
                self.expression(place, key, faults);
            }
            Expression::Call { name, arguments } => {
                for argument in arguments {
                    self.expression(place, argument, faults);
                }
                if !self.is_known(name, arguments) {
                    faults.push(format!("{place}: {name} of {arguments:?} is not known"));
                }
            }
        }
    }

    fn is_known(&self, name: &str, arguments: &[Expression]) -> bool {
        let word = match arguments {
            [Expression::Literal(Value::String(word))] => Some(word.as_str()),
            _ => None,
        };
        match (name, word) {
            ("triggerbody" | "workflow" | "item", None) => arguments.is_empty(),
            ("items" | "outputs" | "body" | "actions", Some(word)) => self.names.contains(word),
            ("parameters", Some(word)) => self.definition.parameters.contains_key(word),
            ("variables", Some(word)) => self.variables.contains(word),
            ("utcnow", Some(_)) => true,
            _ => functions::takes(name, arguments.len()) == Some(true),
        }
    }
}

fn variables_of<'a>(actions: &[&'a Action]) -> BTreeSet<&'a str> {
    actions
        .iter()
        .filter(|action| matches!(action.kind, Kind::InitializeVariable))
        .filter_map(|action| action.inputs["variables"].as_array())
        .flatten()
        .filter_map(|variable| variable["name"].as_str())
        .collect()
}

/// What carries a token must be hidden from the history of runs: the inputs of a request with one, the outputs of the
/// action that fetches one.
fn hidden(action: &Action, faults: &mut Vec<String>) {
    let hides = |what: &str| {
        let hidden = action.runtime.pointer("/secureData/properties").and_then(Value::as_array);
        hidden.is_some_and(|hidden| hidden.contains(&what.into()))
    };
    if action.inputs.pointer("/headers/Authorization").is_some() && !hides("inputs") {
        faults.push(format!("{}: its token is in the history of runs", action.name));
    }
    let fetches = action.inputs.pointer("/parameters/actionName")
        == Some(&"RetrieveEnvironmentVariableSecretValue".into());
    if fetches && !hides("outputs") {
        faults.push(format!("{}: the secret is in the history of runs", action.name));
    }
}
