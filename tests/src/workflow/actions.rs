//! What each type of action does.

use serde_json::{Map, Value, json};

use super::definition::{Action, Kind, only};
use super::run::{Left, Run};
use super::{Call, Fault, Reply, Status, functions, schema};

/// From here on a status code means that the request failed.
const FIRST_FAILURE: u16 = 400;

impl Run<'_> {
    /// Does what an action says.
    pub(super) fn perform(&mut self, action: &Action) -> Result<Left, Fault> {
        match &action.kind {
            Kind::Compose => Ok(succeeded(self.fill(&action.inputs)?)),
            Kind::ParseJson => self.parse_json(action),
            Kind::InitializeVariable => self.initialize_variable(action),
            Kind::SetVariable => self.set_variable(action),
            Kind::Select => {
                let select = |run: &Self| run.fill(&action.inputs["select"]);
                self.for_each_item(action, &["from", "select"], |run, _| select(run).map(Some))
            }
            Kind::Query => self.for_each_item(action, &["from", "where"], |run, item| {
                let keep = run.condition(&action.inputs["where"])?;
                Ok(keep.then(|| item.clone()))
            }),
            Kind::Http => {
                let known = ["method", "uri", "headers", "body", "authentication", "retryPolicy"];
                self.call(action, "Http", &known)
            }
            Kind::ApiConnection => {
                let known = ["host", "method", "path", "body", "retryPolicy"];
                self.call(action, "ApiConnection", &known)
            }
            Kind::OpenApiConnection => {
                let known = ["host", "parameters", "authentication", "retryPolicy"];
                self.call(action, "OpenApiConnection", &known)
            }
            Kind::Terminate => self.terminate(action),
            Kind::Scope(actions) => self.actions(actions).map(ended),
            Kind::If { condition, then, otherwise } => {
                let (taken, left) =
                    if self.condition(condition)? { (then, otherwise) } else { (otherwise, then) };
                self.skip_all(left);
                self.actions(taken).map(ended)
            }
            Kind::Switch { on, cases, default } => self.switch(on, cases, default),
            Kind::Foreach { over, each } => self.for_each(&action.name, over, each),
        }
    }

    fn parse_json(&self, action: &Action) -> Result<Left, Fault> {
        only(object(&action.inputs)?, &["content", "schema"], "inputs")?;
        let content = self.fill(&action.inputs["content"])?;
        let complaints = schema::validate(&action.inputs["schema"], &content)?;
        if complaints.is_empty() {
            return Ok(succeeded(json!({"body": content})));
        }
        Ok(Left { status: Status::Failed, outputs: json!({"errors": complaints}) })
    }

    fn initialize_variable(&mut self, action: &Action) -> Result<Left, Fault> {
        for variable in action.inputs["variables"].as_array().into_iter().flatten() {
            only(object(variable)?, &["name", "type", "value"], "a variable")?;
            let name = variable["name"].as_str().unwrap_or_default().to_owned();
            let value = self.fill(&variable["value"])?;
            let fits = match variable["type"].as_str() {
                Some("object") => value.is_object(),
                Some("string") => value.is_string(),
                Some(_) | None => false,
            };
            if !fits {
                return Err(Fault::new(format!("{variable} is not of a type known here")));
            }
            self.variables.insert(name, value);
        }
        Ok(succeeded(Value::Null))
    }

    fn set_variable(&mut self, action: &Action) -> Result<Left, Fault> {
        only(object(&action.inputs)?, &["name", "value"], "inputs")?;
        let name = action.inputs["name"].as_str().unwrap_or_default();
        let value = self.fill(&action.inputs["value"])?;
        match self.variables.get_mut(name) {
            Some(variable) => *variable = value,
            None => return Err(Fault::new(format!("there is no variable {name:?}"))),
        }
        Ok(succeeded(Value::Null))
    }

    /// `Select` and `Query`: an array out of an array.
    fn for_each_item(
        &mut self,
        action: &Action,
        known: &[&str],
        mut map: impl FnMut(&Self, &Value) -> Result<Option<Value>, Fault>,
    ) -> Result<Left, Fault> {
        only(object(&action.inputs)?, known, "inputs")?;
        let mut kept = Vec::new();
        for item in array(self.fill(&action.inputs["from"])?)? {
            self.items.push((String::new(), item.clone()));
            kept.extend(map(self, &item)?);
            self.items.pop();
        }
        Ok(succeeded(json!({"body": kept})))
    }

    fn call(&mut self, action: &Action, kind: &str, known: &[&str]) -> Result<Left, Fault> {
        only(object(&action.inputs)?, known, "inputs")?;
        let inputs = self.fill(&action.inputs)?;
        let call = Call { action: action.name.clone(), kind: kind.to_owned(), inputs };
        let reply = (self.answer)(&call);
        self.calls.push(call);
        match reply {
            Reply::Silence => Ok(Left { status: Status::TimedOut, outputs: Value::Null }),
            Reply::Answer(code, body) => {
                let failed = code >= FIRST_FAILURE;
                let status = if failed { Status::Failed } else { Status::Succeeded };
                Ok(Left { status, outputs: json!({"statusCode": code, "body": body}) })
            }
        }
    }

    fn terminate(&mut self, action: &Action) -> Result<Left, Fault> {
        if !self.items.is_empty() {
            return Err(Fault::new("Terminate is not allowed in a loop"));
        }
        only(object(&action.inputs)?, &["runStatus", "runError"], "inputs")?;
        let inputs = self.fill(&action.inputs)?;
        let status = Status::from_word(inputs["runStatus"].as_str().unwrap_or_default())?;
        let message = inputs["runError"]["message"].as_str().unwrap_or_default().to_owned();
        self.ended = Some((status, message));
        Ok(succeeded(Value::Null))
    }

    fn switch(
        &mut self,
        on: &Value,
        cases: &[(Value, Vec<Action>)],
        default: &[Action],
    ) -> Result<Left, Fault> {
        let on = self.fill(on)?;
        let mut taken = default;
        for (case, actions) in cases {
            if *case == on {
                self.skip_all(taken);
                taken = actions;
            } else {
                self.skip_all(actions);
            }
        }
        self.actions(taken).map(ended)
    }

    fn for_each(&mut self, name: &str, over: &Value, each: &[Action]) -> Result<Left, Fault> {
        let mut status = Status::Succeeded;
        let items = array(self.fill(over)?)?;
        if items.is_empty() {
            self.skip_all(each);
        }
        for item in items {
            self.items.push((name.to_owned(), item));
            if self.actions(each)? == Status::Failed {
                status = Status::Failed;
            }
            self.items.pop();
        }
        Ok(ended(status))
    }

    /// A condition: text with an expression, or an object as the designer writes it.
    fn condition(&self, condition: &Value) -> Result<bool, Fault> {
        let Some(members) = condition.as_object() else {
            return self
                .fill(condition)?
                .as_bool()
                .ok_or_else(|| Fault::new(format!("{condition} is neither true nor false")));
        };
        let mut members = members.iter();
        let (Some((name, operands)), None) = (members.next(), members.next()) else {
            return Err(Fault::new(format!("{condition} does not have one member")));
        };
        match (name.as_str(), operands) {
            ("and", Value::Array(operands)) => operands
                .iter()
                .try_fold(true, |so_far, operand| Ok(so_far & self.condition(operand)?)),
            ("or", Value::Array(operands)) => operands
                .iter()
                .try_fold(false, |so_far, operand| Ok(so_far | self.condition(operand)?)),
            ("not", operand) => self.condition(operand).map(|condition| !condition),
            ("equals" | "greater" | "contains", Value::Array(_)) => {
                let operands = array(self.fill(operands)?)?;
                functions::call(&name.to_ascii_lowercase(), &operands)
                    .map(|value| value == Value::Bool(true))
            }
            _ => Err(Fault::new(format!("{name:?} of {operands} is not known"))),
        }
    }
}

fn succeeded(outputs: Value) -> Left {
    Left { status: Status::Succeeded, outputs }
}

fn ended(status: Status) -> Left {
    Left { status, outputs: Value::Null }
}

fn object(value: &Value) -> Result<&Map<String, Value>, Fault> {
    value.as_object().ok_or_else(|| Fault::new(format!("{value} is no object")))
}

fn array(value: Value) -> Result<Vec<Value>, Fault> {
    match value {
        Value::Array(items) => Ok(items),
        other @ (Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Object(_)) => Err(Fault::new(format!("{other} is no array"))),
    }
}
