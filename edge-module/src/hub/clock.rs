//! How far this machine's clock is from the hub's.
//!
//! A clock that is off makes each token invalid and each certificate "not yet valid" or "expired", and a hub that refuses does
//! not say why. MQTT carries no time, so it is taken from where there is one: the `Date` of an answer over HTTPS at the same host
//! (any answer: nothing is asked for), the time in a refusal of the provisioning service, and the dates of a certificate that TLS
//! does not accept, which say the least that the clock is off. It is measured, and told; nothing else depends on it.

use std::error::Error;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, ClientConfig};
use tracing::debug;

use crate::journal::chain;
use crate::telemetry;

/// For the whole question.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// A `Date` has whole seconds, and the way takes its time; tokens and certificates allow more than this.
const AHEAD_MAX_SECONDS: f64 = 60.0;

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Seconds by which ours is before theirs.
    ahead: Mutex<Option<f64>>,
}

impl Clock {
    /// Asks a host. Where nobody answers, what was known stays so.
    pub(super) async fn ask(&self, host: &str, port: u16, tls: &ClientConfig) {
        match date_of(host, port, tls).await {
            Ok(ahead) => self.set(ahead),
            Err(reason) => debug!(host, port, reason, "the hub's clock is not known"),
        }
    }

    /// Takes a time of the form of RFC 3339 that the other side has said just now.
    pub(super) fn told(&self, theirs: &str) {
        if let (Ok(theirs), Some(ours)) = (DateTime::parse_from_rfc3339(theirs), now()) {
            self.set(ours - seconds_of(&theirs));
        }
    }

    fn set(&self, ahead: f64) {
        metrics::gauge!(telemetry::HUB_CLOCK_SKEW).set(ahead);
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = Some(ahead);
    }

    /// What to do about it, if it is off by more than anybody stands.
    pub(super) fn remedy(&self) -> Option<String> {
        let ahead = (*self.ahead.lock().unwrap_or_else(PoisonError::into_inner))?;
        (ahead.abs() > AHEAD_MAX_SECONDS).then(|| remedy(ahead))
    }
}

fn remedy(ahead: f64) -> String {
    let side = if ahead < 0.0 { "behind" } else { "before" };
    format!("the clock of this machine is {:.0} s {side} the hub's: set it", ahead.abs())
}

/// Our time less theirs.
async fn date_of(host: &str, port: u16, tls: &ClientConfig) -> Result<f64, String> {
    let client = reqwest::Client::builder()
        .use_preconfigured_tls(tls.clone())
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(ASK_TIMEOUT)
        .build()
        .map_err(|error| chain(&error))?;
    let before = now().ok_or("the clock is before 1970")?;
    let answer = client.head(format!("https://{host}:{port}/")).send().await;
    let answer = answer.map_err(|error| chain(&error))?;
    let after = now().ok_or("the clock is before 1970")?;
    let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
    let theirs = DateTime::parse_from_rfc2822(date.ok_or("an answer without a date")?);
    let theirs = seconds_of(&theirs.map_err(|error| error.to_string())?);
    // Its fraction of a second is cut off.
    Ok((before + after) / 2.0 - (theirs + 0.5))
}

fn seconds_of<Tz: chrono::TimeZone>(time: &DateTime<Tz>) -> f64 {
    time.timestamp_millis() as f64 / 1_000.0
}

fn now() -> Option<f64> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|now| now.as_secs_f64())
}

/// What to do, if a connection failed because of the dates of the other side's certificate.
pub(super) fn remedy_of_certificate(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let found = certificate_error(error)?;
    let ahead = if let CertificateError::NotValidYetContext { time, not_before } = found {
        seconds_between(*not_before, *time)
    } else if let CertificateError::ExpiredContext { time, not_after } = found {
        seconds_between(*not_after, *time)
    } else {
        return None;
    };
    metrics::gauge!(telemetry::HUB_CLOCK_SKEW).set(ahead);
    Some(if ahead < 0.0 {
        "; the clock of this machine is behind: set it, or look at the hub's certificate"
    } else {
        "; renew the hub's certificate, or set the clock of this machine back if it is before"
    })
}

/// From the first to the second.
fn seconds_between(first: UnixTime, second: UnixTime) -> f64 {
    second.as_secs() as f64 - first.as_secs() as f64
}

/// Looks through the causes. An input/output error that was made of another one does not name that as its source.
fn certificate_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CertificateError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(found)) = error.downcast_ref() {
            return Some(found);
        }
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inside {
            Some(inside) => Some(inside as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn failed(error: CertificateError) -> rumqttc::ConnectionError {
        let inside = rustls::Error::InvalidCertificate(error);
        rumqttc::ConnectionError::Tls(rumqttc::TlsError::Io(io::Error::new(
            io::ErrorKind::InvalidData,
            inside,
        )))
    }

    #[test]
    fn dates_of_a_certificate_tell_of_the_clock() {
        let check = |error, expected: Option<&str>| {
            let found = remedy_of_certificate(&failed(error));
            assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
            if let (Some(found), Some(expected)) = (found, expected) {
                assert!(found.contains(expected), "{found}");
            }
        };
        let (time, not_before) = (at(100), at(700));
        check(CertificateError::NotValidYetContext { time, not_before }, Some("is behind"));
        let not_after = at(50);
        check(CertificateError::ExpiredContext { time, not_after }, Some("renew"));
        check(CertificateError::UnknownIssuer, None);
        assert_eq!(remedy_of_certificate(&io::Error::other("else")), None);
    }

    #[test]
    fn a_clock_that_is_off_is_told_and_one_that_is_nearly_right_is_not() {
        let clock = Clock::default();
        assert_eq!(clock.remedy(), None);
        clock.set(-60.0);
        assert_eq!(clock.remedy(), None);
        clock.set(-600.0);
        let told = clock.remedy().expect("ten minutes");
        assert!(told.contains("600 s behind the hub's"), "{told}");
        clock.told("2020-01-01T00:00:00.1234567Z");
        let told = clock.remedy().expect("years");
        assert!(told.contains("s before the hub's"), "{told}");
        clock.told("yesterday");
        assert_eq!(clock.remedy(), Some(told));
    }
}
