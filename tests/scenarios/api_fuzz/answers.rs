//! What an answer has to be.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use e2e_tests::http::Answer;
use serde_json::Value;

use super::cases::{Case, Expected, TOKEN};

/// Columns of the table that are what was sent.
pub(super) const COLUMNS: [&str; 5] = ["outcome_id", "verdict", "machine_id", "note", "part"];
/// Members that RFC 9457 has, in section 3.1; those of ours are extensions by its section 3.2.
const MEMBERS: [&str; 5] = ["type", "title", "status", "detail", "instance"];
const EXTENSIONS: [&str; 2] = ["code", "errors"];
/// What a program that has lost its way would tell.
const INSIDES: [&str; 4] = ["panicked", "stack backtrace", ".rs:", "RUST_BACKTRACE"];

/// Outcomes that are to be rows.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    /// What was sent, by name.
    pub(super) sure: BTreeMap<String, Value>,
    /// How often answers have told a name, of requests that nobody knew to be valid.
    pub(super) in_any_form: BTreeMap<String, usize>,
}

impl Outcomes {
    pub(super) fn extend(&mut self, other: Self) {
        self.sure.extend(other.sure);
        for (id, count) in other.in_any_form {
            *self.in_any_form.entry(id).or_insert(0) += count;
        }
    }

    /// How many rows there are to be.
    pub(super) fn rows(&self) -> usize {
        self.sure.len() + self.in_any_form.values().sum::<usize>()
    }
}

/// Holds an answer against what was expected. Gives the outcomes that it says were taken.
pub(super) fn check_answer(case: &Case, bytes: &[u8]) -> anyhow::Result<Outcomes> {
    let text = String::from_utf8_lossy(bytes);
    for word in INSIDES.iter().chain([&TOKEN]) {
        ensure!(!text.contains(word), "it tells {word:?}");
    }
    match &case.expected {
        Expected::Taken(outcomes) => {
            ensure!(taken(&Answer::parse(bytes)?)? == names(outcomes), "others were taken");
            let sure = outcomes.iter().cloned().zip(names(outcomes)).map(|(sent, id)| (id, sent));
            Ok(Outcomes { sure: sure.collect(), ..Outcomes::default() })
        }
        Expected::Refused { statuses, words } => {
            let answer = Answer::parse(bytes)?;
            ensure!(statuses.contains(&answer.status), "not one of {statuses:?}");
            check_problem(case, &answer, words)?;
            Ok(Outcomes::default())
        }
        Expected::Either => {
            let answer = Answer::parse(bytes)?;
            if answer.status == 202 {
                let in_any_form = taken(&answer)?.into_iter().map(|id| (id, 1)).collect();
                return Ok(Outcomes { in_any_form, ..Outcomes::default() });
            }
            ensure!((400..500).contains(&answer.status), "neither taken nor refused");
            check_problem(case, &answer, &[])?;
            Ok(Outcomes::default())
        }
        Expected::NoHttp => check_no_http(case, bytes).map(|()| Outcomes::default()),
        Expected::Page(part) => {
            let answer = Answer::parse(bytes)?;
            let is_page = answer.status == 200 && answer.body.contains(part);
            ensure!(is_page || case.is_head() && answer.status == 200, "no page with {part:?}");
            Ok(Outcomes::default())
        }
    }
}

/// What is no HTTP, or too much of it, reaches no code of ours: the answer is a status without a body, or none at all. What can be
/// read nevertheless is refused as everything else.
fn check_no_http(case: &Case, bytes: &[u8]) -> anyhow::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let answer = Answer::parse(bytes)?;
    ensure!((400..500).contains(&answer.status), "it is refused with another status");
    if !answer.body.is_empty() {
        check_problem(case, &answer, &[])?;
    }
    Ok(())
}

fn names(outcomes: &[Value]) -> Vec<String> {
    let name = |outcome: &Value| outcome["outcome_id"].as_str().unwrap_or_default().to_owned();
    outcomes.iter().map(name).collect()
}

/// The names that an answer says were taken.
fn taken(answer: &Answer) -> anyhow::Result<Vec<String>> {
    ensure!(answer.status == 202, "it is not taken");
    ensure!(answer.header("content-type") == Some("application/json"), "no JSON");
    let body: Value = serde_json::from_str(&answer.body)?;
    let outcomes = match body {
        Value::Array(outcomes) => outcomes,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            vec![body]
        }
    };
    let name = |outcome: &Value| outcome["outcome_id"].as_str().map(str::to_owned);
    outcomes.iter().map(|outcome| name(outcome).context("a name is missing")).collect()
}

/// A problem of RFC 9457 that says what is wrong.
fn check_problem(case: &Case, answer: &Answer, words: &[String]) -> anyhow::Result<()> {
    let content_type = answer.header("content-type");
    ensure!(content_type == Some("application/problem+json"), "{content_type:?}");
    if answer.status == 405 {
        ensure!(answer.header("allow").is_some(), "no header tells the methods");
    }
    if answer.status == 401 {
        let challenge = answer.header("www-authenticate").context("no challenge")?;
        ensure!(challenge.starts_with("Bearer "), "{challenge}");
    }
    if case.is_head() {
        ensure!(answer.body.is_empty(), "HEAD has a body");
        return Ok(());
    }
    let body: Value = serde_json::from_str(&answer.body).context("no JSON")?;
    let members = body.as_object().context("no object")?;
    let is_known =
        |name: &&String| MEMBERS.contains(&name.as_str()) || EXTENSIONS.contains(&name.as_str());
    let unknown = members.keys().find(|name| !is_known(name));
    ensure!(unknown.is_none(), "a member {unknown:?}");
    for name in ["type", "title", "detail"] {
        let is_told = body[name].as_str().is_some_and(|text| !text.is_empty());
        ensure!(is_told, "{name} is {}", body[name]);
    }
    ensure!(body["status"] == answer.status, "another status: {}", body["status"]);
    let told = told(&body)?;
    for word in words {
        ensure!(told.contains(word), "it does not tell {word:?}");
    }
    Ok(())
}

/// The detail and those of the single faults.
fn told(body: &Value) -> anyhow::Result<String> {
    let mut told = body["detail"].as_str().unwrap_or_default().to_owned();
    let errors = match body.get("errors") {
        None => &Vec::new(),
        Some(errors) => errors.as_array().context("errors are no array")?,
    };
    for error in errors {
        let pointer = error["pointer"].as_str().context("no pointer")?;
        ensure!(pointer.starts_with('#'), "{pointer} is no JSON pointer in a fragment");
        told.push('\n');
        told.push_str(error["detail"].as_str().context("no detail")?);
        told.push_str(pointer);
    }
    Ok(told)
}
