//! One POST and what its answer means.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{
    CONTENT_TYPE as CONTENT_TYPE_NAME, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Client, StatusCode, Url};

use crate::causes::describe;
use crate::config::{Target, read_secret};
use crate::sink::alert::{CONTENT_TYPE, Delivery};

/// Header that carries the event's id.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// Why there is no webhook.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// A URL that cannot be read or is not allowed.
    #[error("url of the alert target {target}: {text}")]
    Url {
        /// Name of the target.
        target: String,
        /// What is wrong; never the URL.
        text: String,
    },
    /// A header that cannot be sent, or whose file cannot be read.
    #[error("header {name} of the alert target {target}: {text}")]
    Header {
        /// Name of the target.
        target: String,
        /// Name of the header.
        name: String,
        /// What is wrong; never its value.
        text: String,
    },
    /// The HTTP client cannot be made.
    #[error("http client cannot be made")]
    Client(#[source] reqwest::Error),
}

/// What came of one attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It was taken.
    Delivered,
    /// It may be taken later, after so long if the target says so.
    Again { reason: String, after: Option<Duration> },
    /// It will never be taken.
    Never(String),
}

/// A URL and the client for it.
pub(super) struct Endpoint {
    client: Client,
    url: Url,
    has_content_type: bool,
}

/// The URL may hold a signature.
impl fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Endpoint")
            .field("host", &self.url.host_str())
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(super) fn new(settings: &Target) -> Result<Self, WebhookError> {
        let failed = |text| WebhookError::Url { target: settings.name.clone(), text };
        let url = settings.url().map_err(failed)?;
        let headers = headers(settings)?;
        let has_content_type = headers.contains_key(CONTENT_TYPE_NAME);
        let client = Client::builder()
            .timeout(settings.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .https_only(url.scheme() == "https")
            .default_headers(headers)
            .build()
            .map_err(WebhookError::Client)?;
        Ok(Self { client, url, has_content_type })
    }

    /// The status alone counts: the answer's body is not waited for.
    pub(super) async fn attempt(&self, delivery: &Delivery) -> Attempt {
        let mut request = self
            .client
            .post(self.url.clone())
            .header(IDEMPOTENCY_HEADER, &*delivery.id)
            .body(delivery.body.to_string());
        if !self.has_content_type {
            request = request.header(CONTENT_TYPE_NAME, CONTENT_TYPE);
        }
        match request.send().await {
            // The URL may hold a signature: it is not printed.
            Err(error) => Attempt::Again { reason: describe(&error.without_url()), after: None },
            Ok(response) => judged(response.status(), response.headers()),
        }
    }
}

fn judged(status: StatusCode, headers: &HeaderMap) -> Attempt {
    if status.is_success() {
        return Attempt::Delivered;
    }
    let reason = format!("status {status}");
    if status.is_redirection() {
        return Attempt::Never(format!("{reason}: redirects are not followed, name the new URL"));
    }
    if is_transient(status) {
        return Attempt::Again { reason, after: retry_after(headers, Utc::now()) };
    }
    Attempt::Never(reason)
}

fn headers(settings: &Target) -> Result<HeaderMap, WebhookError> {
    let mut headers = HeaderMap::new();
    let failed = |name: &str, text: String| WebhookError::Header {
        target: settings.name.clone(),
        name: name.to_owned(),
        text,
    };
    let mut insert = |name: &str, value: &str, is_secret: bool| {
        let header = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| failed(name, "is not a header name".to_owned()))?;
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| failed(name, "holds bytes that no header can".to_owned()))?;
        value.set_sensitive(is_secret);
        headers.insert(header, value);
        Ok(())
    };
    for (name, value) in &settings.headers {
        insert(name, value, false)?;
    }
    for (name, file) in &settings.header_files {
        let secret = read_secret(file).map_err(|text| failed(name, text))?;
        insert(name, secret.expose(), true)?;
    }
    Ok(headers)
}

fn is_transient(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
}

/// Retry-After as seconds or as an HTTP date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(text).ok()?;
    (date.with_timezone(&Utc) - now).to_std().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = DateTime::parse_from_rfc3339("2026-03-01T08:00:00Z").expect("a date");
        let check = |text: &str, expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).expect("a header"));
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now.with_timezone(&Utc)), expected, "{text}");
        };
        check("7", Some(7));
        check("Sun, 01 Mar 2026 08:01:30 GMT", Some(90));
        check("Sun, 01 Mar 2026 07:00:00 GMT", None);
        check("soon", None);
        check("-1", None);
        check("18446744073709551615", Some(u64::MAX));
    }

    #[test]
    fn only_answers_that_may_change_are_tried_again() {
        let check = |code: u16, is_again: bool| {
            let status = StatusCode::from_u16(code).expect("a status");
            let found = judged(status, &HeaderMap::new());
            assert_eq!(matches!(found, Attempt::Again { .. }), is_again, "{code}: {found:?}");
            assert_eq!(matches!(found, Attempt::Delivered), (200..300).contains(&code), "{code}");
        };
        for code in [408, 425, 429, 500, 503] {
            check(code, true);
        }
        for code in [200, 202, 204, 301, 307, 400, 401, 404, 413] {
            check(code, false);
        }
    }
}
