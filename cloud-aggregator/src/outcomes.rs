//! What people find comes back: `POST /api/outcomes` takes it to a Kafka topic, [`report`] says how often alerts were right.
//!
//! The port speaks plain HTTP/1.1, one request a connection: TLS is the work of the ingress in front of it, and the default address
//! is the loopback. Without a file of tokens there is no port. A request is one outcome as a JSON object or an array of at most
//! [`OUTCOMES_PER_REQUEST_MAX`]; of an array all are taken or none. 202 means that Kafka has acknowledged them. Nothing is kept here: after
//! any other answer, or none, the same request may be sent again, since an outcome that comes twice counts once.

mod api;
mod connections;
pub mod counts;
pub mod lake;
mod limit;
pub mod measured;
pub mod precision;
mod problem;
pub mod report;
mod request;
pub mod settings;
pub mod tokens;
pub mod topic;

use async_trait::async_trait;
use shared_proto::model::{
    ALERT_ID_DIGITS, IDENTIFIER_BYTES_MAX, NOTE_BYTES_MAX, OUTCOME_ID_BYTES_MAX, Outcome,
    OutcomeVerdict, PART_BYTES_MAX, REPORTER_BYTES_MAX, TICKET_ID_BYTES_MAX, TRIP_ID_BYTES_MAX,
};

pub use api::{Api, bind, serve};
pub use settings::ApiSettings;
pub use tokens::{Tokens, TokensError};
pub use topic::OutcomeTopic;

/// The JSON Schema (draft 7) of one outcome, as the request has it.
#[must_use]
pub fn schema() -> serde_json::Value {
    let text =
        |limit: usize| serde_json::json!({ "type": "string", "minLength": 1, "maxLength": limit });
    let verdicts = OutcomeVerdict::ALL.map(OutcomeVerdict::as_str);
    serde_json::json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Outcome",
        "type": "object",
        "required": ["outcome_id", "verdict", "machine_id", "timestamp"],
        "additionalProperties": false,
        "properties": {
            "outcome_id": text(OUTCOME_ID_BYTES_MAX),
            "verdict": { "type": "string", "enum": verdicts },
            "machine_id": text(IDENTIFIER_BYTES_MAX),
            "timestamp": { "type": "string", "format": "date-time" },
            "alert_id": { "type": "string", "minLength": ALERT_ID_DIGITS, "maxLength": ALERT_ID_DIGITS },
            "trip_id": text(TRIP_ID_BYTES_MAX),
            "sensor_id": text(IDENTIFIER_BYTES_MAX),
            "ticket_id": text(TICKET_ID_BYTES_MAX),
            "part": text(PART_BYTES_MAX),
            "note": text(NOTE_BYTES_MAX),
            "reported_by": text(REPORTER_BYTES_MAX),
        },
    })
}

/// Most outcomes of one request.
pub const OUTCOMES_PER_REQUEST_MAX: usize = 100;

/// Names of the metrics.
pub mod names {
    /// Requests to the port for outcomes, label `result`: `taken`, or why not.
    pub const OUTCOME_REQUESTS_TOTAL: &str = "aggregator_outcome_requests_total";
    /// Outcomes read from their topic, labels `verdict` and `rule` (of the alert; `unknown` if it is not remembered).
    pub const OUTCOMES_RECEIVED_TOTAL: &str = "aggregator_outcomes_received_total";
    /// Confirmed of the alerts (of rules) or trips (of models) of the last 90 days that have a verdict, 0 to 1, labels `kind` (rule, model)
    /// and `name`. Told by the instance that maintains the lake; absent without verdicts.
    pub const PRECISION_RATIO: &str = "aggregator_precision_ratio";
    /// These alerts or trips, labels `kind`, `name` and `verdict` (confirmed, false-alarm, none).
    pub const JUDGED_ALERTS: &str = "aggregator_judged_alerts";
}

/// Why an outcome was not taken. It may be sent again.
#[derive(Debug, thiserror::Error)]
#[error("kafka did not take the outcome: {text}")]
pub struct PublishError {
    /// What the client says.
    pub text: String,
}

/// Where outcomes go.
#[async_trait]
pub trait OutcomeSink: Send + Sync + 'static {
    /// Resolves when the outcome is durable.
    ///
    /// # Errors
    /// It may not be.
    async fn publish(&self, outcome: &Outcome) -> Result<(), PublishError>;
}

#[cfg(test)]
mod tests;
