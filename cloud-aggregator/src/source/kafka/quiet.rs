//! A client of the brokers that does not flood the log while they are away.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use tracing::{debug, warn};

use super::COMPLAINT_INTERVAL;

/// Logs each kind of error at most once in half a minute, and what the library says besides only for debugging.
#[derive(Debug)]
pub struct QuietContext {
    client: &'static str,
    /// By kind of error.
    told: Mutex<HashMap<String, Instant>>,
}

impl QuietContext {
    /// `client` is its name in the log.
    #[must_use]
    pub fn new(client: &'static str) -> Self {
        Self { client, told: Mutex::default() }
    }

    fn is_new(&self, error: &KafkaError) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = error.to_string();
        if told.get(&kind).is_some_and(|last| last.elapsed() < COMPLAINT_INTERVAL) {
            return false;
        }
        told.insert(kind, Instant::now());
        true
    }
}

impl ClientContext for QuietContext {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(client = self.client, facility, message, "kafka client");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if self.is_new(&error) {
            warn!(client = self.client, %error, reason, "kafka client reports a problem, trying again");
        } else {
            debug!(client = self.client, %error, reason, "kafka client");
        }
    }
}

impl ConsumerContext for QuietContext {}

#[cfg(test)]
mod tests {
    use rdkafka::error::RDKafkaErrorCode;

    use super::*;

    #[test]
    fn each_kind_of_error_is_told_once_in_a_while() {
        let context = QuietContext::new("test");
        let down = KafkaError::Global(RDKafkaErrorCode::AllBrokersDown);
        let refused = KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure);
        assert!(context.is_new(&down));
        assert!(!context.is_new(&down));
        assert!(context.is_new(&refused));
        let long_ago = Instant::now().checked_sub(COMPLAINT_INTERVAL);
        if let (Some(long_ago), Ok(mut told)) = (long_ago, context.told.lock()) {
            told.insert(down.to_string(), long_ago);
        }
        assert!(context.is_new(&down));
    }
}
