//! Why a request was refused, as `application/problem+json` (RFC 9457): what is wrong, the limit, the remedy. A token is in no
//! answer, nor is the value of any header of the request.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{OUTCOMES_PER_REQUEST_MAX, PublishError};

const CONTENT_TYPE: &str = "application/problem+json";
/// Which types POST takes (W3C Linked Data Platform 1.0, section 7.1).
const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
/// Characters of one explanation: what it repeats of the request can be long.
const EXPLANATION_CHARACTERS_MAX: usize = 500;
/// After what time a request that Kafka did not take is worth another attempt.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// An outcome that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Its place, from 0, in an array.
    pub(super) index: Option<usize>,
    /// What is wrong.
    pub(super) text: String,
}

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error(
        "no bearer token: send the header \"authorization: Bearer TOKEN\" with a token of the aggregator's api.token-file"
    )]
    NoToken,
    #[error(
        "the bearer token is none of the aggregator's api.token-file: ask who runs it for one (tokens are read at its start)"
    )]
    UnknownToken,
    #[error(
        "too many requests with this token: at most {rate} a second and {burst} at once; wait, or send up to \
         {OUTCOMES_PER_REQUEST_MAX} outcomes in one array"
    )]
    TooManyRequests { rate: u32, burst: u32, wait: Duration },
    #[error("nothing is here: outcomes are sent to POST /api/outcomes")]
    NotFound,
    #[error("outcomes are sent with the method POST")]
    Method,
    #[error(
        "the body is to be JSON in UTF-8, not compressed: send one header \"content-type: application/json\""
    )]
    ContentType,
    #[error("the body has more than {limit} bytes: send fewer outcomes, or shorter notes")]
    TooLarge { limit: usize },
    #[error("the body did not come within {limit:?}: send it at once, or fewer outcomes")]
    Slow { limit: Duration },
    #[error("the body broke off")]
    Broken,
    #[error("the body is no JSON: {text}")]
    NotJson { text: String },
    #[error(
        "the header idempotency-key is no name of an outcome: 1 to 256 bytes without control characters, at most once"
    )]
    Key,
    #[error(
        "the header idempotency-key is not the outcome's outcome_id: send the same in both, or one of them"
    )]
    KeyDiffers,
    #[error(
        "the header idempotency-key speaks of one outcome and the body is an array: leave the header out, each outcome has its outcome_id"
    )]
    KeyOfArray,
    #[error("the array is empty: send 1 to {OUTCOMES_PER_REQUEST_MAX} outcomes")]
    NoOutcome,
    #[error(
        "the array has {found} outcomes, at most {OUTCOMES_PER_REQUEST_MAX} are allowed: send several requests"
    )]
    TooManyOutcomes { found: usize },
    #[error("{}", explained(.0))]
    Invalid(Vec<Fault>),
    #[error(
        "kafka did not take the outcomes: send the same request again, what was taken already counts once"
    )]
    Refused(#[source] PublishError),
    #[error(
        "kafka did not take the outcomes within {limit:?}: send the same request again, what was taken already counts once"
    )]
    Timeout { limit: Duration },
}

fn explained(faults: &[Fault]) -> String {
    match faults {
        [Fault { index: None, text }] => format!("the outcome cannot be taken: {text}"),
        [Fault { index: Some(index), text }] => {
            format!("nothing of the array is taken because of outcome {index} (from 0): {text}")
        }
        several => format!(
            "nothing of the array is taken because of {} outcomes, named in \"errors\"",
            several.len()
        ),
    }
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    /// A short word that does not change.
    code: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<BodyFault<'a>>,
}

#[derive(Serialize)]
struct BodyFault<'a> {
    detail: &'a str,
    /// JSON pointer as a fragment, as in the standard's example.
    pointer: String,
}

impl Problem {
    /// A short word, for counters and for programs.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::NoToken => "no-token",
            Self::UnknownToken => "unknown-token",
            Self::TooManyRequests { .. } => "too-many-requests",
            Self::NotFound => "not-found",
            Self::Method => "method",
            Self::ContentType => "content-type",
            Self::TooLarge { .. } => "too-large",
            Self::Slow { .. } => "slow-body",
            Self::Broken => "broken-body",
            Self::NotJson { .. } => "json",
            Self::Key => "idempotency-key",
            Self::KeyDiffers => "idempotency-key-differs",
            Self::KeyOfArray => "idempotency-key-of-array",
            Self::NoOutcome => "no-outcome",
            Self::TooManyOutcomes { .. } => "too-many-outcomes",
            Self::Invalid(_) => "invalid-outcome",
            Self::Refused(_) => "kafka",
            Self::Timeout { .. } => "kafka-timeout",
        }
    }

    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::NoToken | Self::UnknownToken => StatusCode::UNAUTHORIZED,
            Self::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Broken | Self::NotJson { .. } | Self::Key => StatusCode::BAD_REQUEST,
            Self::KeyDiffers
            | Self::KeyOfArray
            | Self::NoOutcome
            | Self::TooManyOutcomes { .. }
            | Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Refused(_) | Self::Timeout { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    const fn title(&self) -> &'static str {
        match self {
            Self::NoToken | Self::UnknownToken => "Unauthorized",
            Self::TooManyRequests { .. } => "Too Many Requests",
            Self::NotFound => "Not Found",
            Self::Method => "Method Not Allowed",
            Self::ContentType => "Unsupported Media Type",
            Self::TooLarge { .. } => "Content Too Large",
            Self::Slow { .. } => "Request Timeout",
            Self::Broken | Self::NotJson { .. } | Self::Key => "Bad Request",
            Self::KeyDiffers
            | Self::KeyOfArray
            | Self::NoOutcome
            | Self::TooManyOutcomes { .. }
            | Self::Invalid(_) => "Unprocessable Content",
            Self::Refused(_) | Self::Timeout { .. } => "Service Unavailable",
        }
    }

    /// What else is told in the header.
    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        let text = HeaderValue::from_static;
        match self {
            Self::NoToken => Some((header::WWW_AUTHENTICATE, text("Bearer realm=\"outcomes\""))),
            Self::UnknownToken => {
                let value = "Bearer realm=\"outcomes\", error=\"invalid_token\"";
                Some((header::WWW_AUTHENTICATE, text(value)))
            }
            Self::TooManyRequests { wait, .. } => Some((header::RETRY_AFTER, seconds(*wait))),
            Self::Refused(_) | Self::Timeout { .. } => {
                Some((header::RETRY_AFTER, seconds(RETRY_AFTER)))
            }
            Self::Method => Some((header::ALLOW, text("POST"))),
            Self::ContentType => Some((ACCEPT_POST, text("application/json"))),
            Self::NotFound
            | Self::TooLarge { .. }
            | Self::Slow { .. }
            | Self::Broken
            | Self::NotJson { .. }
            | Self::Key
            | Self::KeyDiffers
            | Self::KeyOfArray
            | Self::NoOutcome
            | Self::TooManyOutcomes { .. }
            | Self::Invalid(_) => None,
        }
    }

    fn body(&self) -> Body<'_> {
        let faults: &[Fault] = if let Self::Invalid(faults) = self { faults } else { &[] };
        let errors = faults.iter().map(|Fault { index, text }| BodyFault {
            detail: text,
            pointer: index.map_or_else(|| "#".to_owned(), |index| format!("#/{index}")),
        });
        Body {
            r#type: "about:blank",
            title: self.title(),
            status: self.status().as_u16(),
            detail: self.to_string(),
            code: self.code(),
            errors: errors.collect(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.body()).expect("texts and numbers always serialise");
        let content_type = [(header::CONTENT_TYPE, CONTENT_TYPE)];
        let mut response = (self.status(), content_type, body).into_response();
        if let Some((name, value)) = self.header() {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// Whole seconds, at least one.
fn seconds(wait: Duration) -> HeaderValue {
    HeaderValue::from((wait.as_secs_f64().ceil() as u64).max(1))
}

/// An explanation that is not longer than a reader has patience.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(EXPLANATION_CHARACTERS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
