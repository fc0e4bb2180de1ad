//! One run: which actions run after which, and what expressions see.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::definition::{Action, Definition};
use super::expression::Expression;
use super::{Call, Fault, Reply, Report, Settings, Status, functions, template};

/// What an action left behind.
#[derive(Clone, Debug)]
pub(super) struct Left {
    pub(super) status: Status,
    pub(super) outputs: Value,
}

pub(super) struct Run<'a> {
    definition: &'a Definition,
    body: Value,
    settings: &'a Settings,
    parameters: BTreeMap<String, Value>,
    pub(super) answer: &'a mut dyn FnMut(&Call) -> Reply,
    pub(super) variables: BTreeMap<String, Value>,
    pub(super) left: BTreeMap<String, Left>,
    /// The items of the loops around, innermost last; `Select` and `Query` have no name.
    pub(super) items: Vec<(String, Value)>,
    pub(super) calls: Vec<Call>,
    executed: BTreeSet<String>,
    /// What `Terminate` said. Nothing runs after it.
    pub(super) ended: Option<(Status, String)>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        definition: &'a Definition,
        body: Value,
        settings: &'a Settings,
        answer: &'a mut dyn FnMut(&Call) -> Reply,
    ) -> Result<Self, Fault> {
        Ok(Self {
            definition,
            body,
            settings,
            parameters: given(definition, settings)?,
            answer,
            variables: BTreeMap::new(),
            left: BTreeMap::new(),
            items: Vec::new(),
            calls: Vec::new(),
            executed: BTreeSet::new(),
            ended: None,
        })
    }

    /// Runs all actions.
    pub(super) fn finish(mut self) -> Result<Report, Fault> {
        let definition = self.definition;
        let status = self.actions(&definition.actions)?;
        let (status, message) = match self.ended {
            Some((status, message)) => (status, Some(message)),
            None => (status, None),
        };
        let actions = self.left.iter().map(|(name, left)| (name.clone(), left.status)).collect();
        Ok(Report { status, message, calls: self.calls, actions, executed: self.executed })
    }

    /// Runs the actions of one level and says how they ended together: by the last ones of all branches, and where such a
    /// one was skipped, by those that it would have run after.
    pub(super) fn actions(&mut self, actions: &[Action]) -> Result<Status, Fault> {
        for action in actions {
            if self.ended.is_some() || !self.is_due(action) {
                self.skip(action);
                continue;
            }
            self.executed.insert(action.name.clone());
            let left = self.perform(action).map_err(|fault| fault.within(&action.name))?;
            self.left.insert(action.name.clone(), left);
        }
        let awaited: BTreeSet<_> =
            actions.iter().flat_map(|action| action.run_after.keys()).collect();
        let failed = actions
            .iter()
            .filter(|action| !awaited.contains(&action.name))
            .any(|action| self.has_failed(action, actions));
        Ok(if failed { Status::Failed } else { Status::Succeeded })
    }

    fn is_due(&self, action: &Action) -> bool {
        action.run_after.iter().all(|(name, statuses)| statuses.contains(&self.status_of(name)))
    }

    fn skip(&mut self, action: &Action) {
        let left = Left { status: Status::Skipped, outputs: Value::Null };
        self.left.insert(action.name.clone(), left);
        for child in action.children().into_iter().flatten() {
            self.skip(child);
        }
    }

    /// Skips all of a branch that is not taken.
    pub(super) fn skip_all(&mut self, actions: &[Action]) {
        for action in actions {
            self.skip(action);
        }
    }

    fn status_of(&self, name: &str) -> Status {
        self.left.get(name).map_or(Status::Skipped, |left| left.status)
    }

    fn has_failed(&self, action: &Action, level: &[Action]) -> bool {
        match self.status_of(&action.name) {
            Status::Succeeded | Status::Cancelled => false,
            Status::Failed | Status::TimedOut => true,
            Status::Skipped => level
                .iter()
                .filter(|before| action.run_after.contains_key(&before.name))
                .any(|before| self.has_failed(before, level)),
        }
    }

    /// A value with all its expressions evaluated.
    pub(super) fn fill(&self, value: &Value) -> Result<Value, Fault> {
        template::fill(value, &mut |expression| self.evaluate(expression))
    }

    fn evaluate(&self, expression: &Expression) -> Result<Value, Fault> {
        match expression {
            Expression::Literal(value) => Ok(value.clone()),
            Expression::Call { name, arguments } => {
                let arguments = arguments
                    .iter()
                    .map(|argument| self.evaluate(argument))
                    .collect::<Result<Vec<_>, _>>()?;
                match self.seen(name, &arguments)? {
                    Some(value) => Ok(value),
                    None => functions::call(name, &arguments),
                }
            }
            Expression::Member { of, key, may_be_missing } => {
                let (of, key) = (self.evaluate(of)?, self.evaluate(key)?);
                member(&of, &key, *may_be_missing)
            }
        }
    }

    /// The functions that look at the run; `None` for others.
    fn seen(&self, name: &str, arguments: &[Value]) -> Result<Option<Value>, Fault> {
        let word = arguments.first().and_then(Value::as_str);
        let value = match (name, word, arguments.len()) {
            ("triggerbody", None, 0) => self.body.clone(),
            ("workflow", None, 0) => json!({"run": {"name": self.settings.run}}),
            ("item", None, 0) => {
                self.items.last().map(|(_, item)| item.clone()).unwrap_or_default()
            }
            ("items", Some(word), 1) => self
                .items
                .iter()
                .find_map(|(name, item)| (name == word).then(|| item.clone()))
                .ok_or_else(|| Fault::new(format!("there is no loop {word:?} around")))?,
            ("parameters", Some(word), 1) => of(&self.parameters, word, "parameter")?,
            ("variables", Some(word), 1) => of(&self.variables, word, "variable")?,
            ("outputs", Some(word), 1) => self.left_by(word)?.outputs.clone(),
            ("body", Some(word), 1) => member(&self.left_by(word)?.outputs, &json!("body"), true)?,
            ("actions", Some(word), 1) => {
                let left = self.left_by(word)?;
                json!({"name": word, "status": left.status.as_str(), "outputs": left.outputs})
            }
            ("utcnow", Some(format), 1) => functions::call(
                "formatdatetime",
                &[self.settings.now.clone().into(), format.into()],
            )?,
            _ => return Ok(None),
        };
        Ok(Some(value))
    }

    fn left_by(&self, name: &str) -> Result<&Left, Fault> {
        self.left.get(name).ok_or_else(|| Fault::new(format!("{name:?} has not run")))
    }
}

fn given(definition: &Definition, settings: &Settings) -> Result<BTreeMap<String, Value>, Fault> {
    let known = |name: &&String| !definition.parameters.contains_key(*name);
    if let Some(name) = settings.parameters.keys().find(known) {
        return Err(Fault::new(format!("there is no parameter {name:?}")));
    }
    let mut parameters = BTreeMap::new();
    for (name, default) in &definition.parameters {
        let value = settings.parameters.get(name).or(default.as_ref());
        let value = value.ok_or_else(|| Fault::new(format!("parameter {name:?} has no value")))?;
        parameters.insert(name.clone(), value.clone());
    }
    Ok(parameters)
}

fn of(values: &BTreeMap<String, Value>, name: &str, what: &str) -> Result<Value, Fault> {
    values.get(name).cloned().ok_or_else(|| Fault::new(format!("there is no {what} {name:?}")))
}

/// A member of an object. One that is missing, or a member of `null`, is `null` only where it may be missing.
fn member(of: &Value, key: &Value, may_be_missing: bool) -> Result<Value, Fault> {
    let found = match (of, key) {
        (Value::Object(members), Value::String(name)) => members.get(name),
        (Value::Null, Value::String(_)) => None,
        _ => return Err(Fault::new(format!("{key} is not to be had of {of}"))),
    };
    match found {
        Some(value) => Ok(value.clone()),
        None if may_be_missing => Ok(Value::Null),
        None => Err(Fault::new(format!("{key} is missing"))),
    }
}
