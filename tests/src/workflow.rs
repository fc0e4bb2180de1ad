//! Runs workflow definitions of Logic Apps and Power Automate here, without Azure, and records what each connector would
//! have been asked.
//!
//! The language is the Workflow Definition Language of the schema 2016-06-01 ("Schema reference guide for the Workflow
//! Definition Language in Azure Logic Apps" and "Reference guide to workflow expression functions", both on Microsoft
//! Learn). Only what the definitions of this repository use is understood. Everything else is a [`Fault`], so that a
//! definition cannot come to use what no test has run.
//!
//! Where the service is lenient this is strict: both branches of `if` are evaluated, a member that is missing is a fault
//! unless it was asked for with `?`, and a schema with a keyword that is not checked is refused. What the service does on
//! its own (retries, throttling, the look of a card) is not played.

mod actions;
mod check;
mod definition;
mod expression;
mod functions;
mod run;
pub mod schema;
mod template;
#[cfg(test)]
mod tests;
mod time;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

pub use check::check;
pub use definition::Definition;

/// Why a definition cannot be run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(String);

impl Fault {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// The same fault, with the place it was found at in front.
    pub(crate) fn within(self, place: &str) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// How an action or a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// It did what it should.
    Succeeded,
    /// It did not.
    Failed,
    /// Its conditions were not met.
    Skipped,
    /// Nobody answered in time.
    TimedOut,
    /// The run was ended by a `Terminate` that says so.
    Cancelled,
}

impl Status {
    /// The word in definitions.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Skipped => "Skipped",
            Self::TimedOut => "TimedOut",
            Self::Cancelled => "Cancelled",
        }
    }

    pub(crate) fn from_word(word: &str) -> Result<Self, Fault> {
        match word.to_ascii_lowercase().as_str() {
            "succeeded" => Ok(Self::Succeeded),
            "failed" => Ok(Self::Failed),
            "skipped" => Ok(Self::Skipped),
            "timedout" => Ok(Self::TimedOut),
            "cancelled" => Ok(Self::Cancelled),
            _ => Err(Fault::new(format!("{word:?} is no status"))),
        }
    }
}

/// What a connector or an HTTP server was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Name of the action.
    pub action: String,
    /// `Http`, `ApiConnection` or `OpenApiConnection`.
    pub kind: String,
    /// The inputs with every expression evaluated.
    pub inputs: Value,
}

/// What a connector or an HTTP server answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A status code and a body. From 400 on the action has failed.
    Answer(u16, Value),
    /// Nothing came.
    Silence,
}

/// What a run gets besides its definition.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Values of the definition's parameters by name. One without a value takes its default.
    pub parameters: BTreeMap<String, Value>,
    /// The time, RFC 3339.
    pub now: String,
    /// Name of the run.
    pub run: String,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub status: Status,
    /// What a `Terminate` said.
    pub message: Option<String>,
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// How each action ended, by name: the last time, if it was in a loop.
    pub actions: BTreeMap<String, Status>,
    /// Names of the actions that were not skipped each time.
    pub executed: BTreeSet<String>,
}

impl Report {
    /// The calls of one action.
    #[must_use]
    pub fn calls_of(&self, action: &str) -> Vec<&Call> {
        self.calls.iter().filter(|call| call.action == action).collect()
    }
}

/// Runs a definition once for each body that its trigger makes of `body`.
///
/// # Errors
/// When the definition uses what is not understood here, or an expression cannot be evaluated.
pub fn run(
    definition: &Definition,
    body: &Value,
    settings: &Settings,
    answer: &mut dyn FnMut(&Call) -> Reply,
) -> Result<Vec<Report>, Fault> {
    definition
        .trigger_bodies(body)?
        .into_iter()
        .map(|body| run::Run::new(definition, body, settings, answer)?.finish())
        .collect()
}
