//! Alerts to an HTTP endpoint: POST with an idempotency key, time limit, retries with backoff, Retry-After.
//!
//! 2xx is delivered. 408, 425, 429, 5xx and transport errors are tried again up to a number of attempts; any other
//! answer will not change and is given up at once. Redirects are not followed: the host was allowed, another was not.

use std::time::Duration;

use chrono::{DateTime, Utc};
use metrics::counter;
use reqwest::header::{
    CONTENT_TYPE as CONTENT_TYPE_NAME, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Client, StatusCode};
use tokio::sync::mpsc;
use tracing::{error, warn};

use super::alert::{CONTENT_TYPE, Channel, Delivery, Outcome};
use crate::backoff::Backoff;
use crate::config::{Alerts, read_secret};
use crate::telemetry::names;

/// Header that carries the alert's id.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// Why there is no webhook.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// A header that cannot be sent, or whose file cannot be read.
    #[error("alerts.webhook-headers.{name}: {text}")]
    Header {
        /// Name of the header.
        name: String,
        /// What is wrong; never its value.
        text: String,
    },
    /// The HTTP client cannot be made.
    #[error("http client cannot be made")]
    Client(#[source] reqwest::Error),
}

/// Delivers to one endpoint.
#[derive(Debug)]
pub struct Webhook {
    client: Client,
    settings: Alerts,
}

enum Attempt {
    Delivered,
    Again { reason: String, after: Option<Duration> },
    Never(String),
}

impl Webhook {
    /// Makes the client.
    ///
    /// # Errors
    /// A header that cannot be sent, or a client without trust roots.
    pub fn new(settings: &Alerts) -> Result<Self, WebhookError> {
        let client = Client::builder()
            .timeout(settings.webhook_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .default_headers(headers(settings)?)
            .build()
            .map_err(WebhookError::Client)?;
        Ok(Self { client, settings: settings.clone() })
    }

    /// Delivers until the queue is closed.
    pub async fn run(self, mut queue: mpsc::Receiver<Delivery>, outcomes: mpsc::Sender<Outcome>) {
        while let Some(delivery) = queue.recv().await {
            let given_up = self.deliver(&delivery).await;
            let outcome = Outcome { id: delivery.id, channel: Channel::Webhook, given_up };
            if outcomes.send(outcome).await.is_err() {
                return;
            }
        }
    }

    async fn deliver(&self, delivery: &Delivery) -> Option<String> {
        let mut backoff = Backoff::new(self.settings.retry_min, self.settings.retry_max);
        let mut last = String::new();
        for attempt in 1..=self.settings.webhook_attempts_max {
            match self.attempt(delivery).await {
                Attempt::Delivered => {
                    counter!(names::ALERTS_DELIVERED_TOTAL, "channel" => "webhook").increment(1);
                    return None;
                }
                Attempt::Never(reason) => {
                    error!(alert = &*delivery.id, reason, "webhook will never take this alert");
                    return Some(reason);
                }
                Attempt::Again { reason, after } => {
                    counter!(names::ALERT_FAILURES_TOTAL, "channel" => "webhook").increment(1);
                    let wait = backoff.wait().max(after.unwrap_or_default());
                    warn!(
                        alert = &*delivery.id,
                        attempt,
                        reason,
                        ?wait,
                        "webhook did not take an alert"
                    );
                    last = reason;
                    tokio::time::sleep(wait).await;
                }
            }
        }
        Some(format!(
            "{} attempts failed, the last one with: {last}",
            self.settings.webhook_attempts_max
        ))
    }

    async fn attempt(&self, delivery: &Delivery) -> Attempt {
        let request = self
            .client
            .post(&self.settings.webhook_url)
            .header(CONTENT_TYPE_NAME, CONTENT_TYPE)
            .header(IDEMPOTENCY_HEADER, &*delivery.id)
            .body(delivery.body.to_string());
        match request.send().await {
            // The URL may hold a signature: it is not printed.
            Err(error) => Attempt::Again { reason: describe(&error.without_url()), after: None },
            Ok(response) if response.status().is_success() => Attempt::Delivered,
            Ok(response) => {
                let reason = format!("status {}", response.status());
                if is_transient(response.status()) {
                    let after = retry_after(response.headers(), Utc::now())
                        .map(|after| after.min(self.settings.retry_after_max));
                    Attempt::Again { reason, after }
                } else {
                    Attempt::Never(reason)
                }
            }
        }
    }
}

fn describe(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn headers(settings: &Alerts) -> Result<HeaderMap, WebhookError> {
    let mut headers = HeaderMap::new();
    let mut insert = |name: &str, value: &str, is_secret: bool| {
        let failed =
            |text: &str| WebhookError::Header { name: name.to_owned(), text: text.to_owned() };
        let header =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| failed("is not a header name"))?;
        let mut value =
            HeaderValue::from_str(value).map_err(|_| failed("holds bytes that no header can"))?;
        value.set_sensitive(is_secret);
        headers.insert(header, value);
        Ok(())
    };
    for (name, value) in &settings.webhook_headers {
        insert(name, value, false)?;
    }
    for (name, file) in &settings.webhook_header_files {
        let secret =
            read_secret(file).map_err(|text| WebhookError::Header { name: name.clone(), text })?;
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
    }

    #[test]
    fn only_answers_that_may_change_are_tried_again() {
        let check = |code: u16, expected: bool| {
            let status = StatusCode::from_u16(code).expect("a status");
            assert_eq!(is_transient(status), expected, "{code}");
        };
        for code in [408, 425, 429, 500, 503] {
            check(code, true);
        }
        for code in [301, 400, 401, 404, 413] {
            check(code, false);
        }
    }
}
