//! Messages of a hub: what they hold, taken apart into records.
//!
//! A message is one record, or in JSON an array of them; each becomes a row by itself, with a position of its own
//! (`aggregator_core::hub`). A message is taken whole: its records are of one epoch.

use aggregator_core::ProcessingTime;
use aggregator_core::hub::POSITIONS;
use deltalake::arrow::error::ArrowError;
use serde_json::value::RawValue;
use shared_proto::Encoding;
use shared_proto::codec::DecodeError;

use super::Counting;
use crate::source::{HubMessage, RawRecord};

/// Reason of dead letters whose message does not say what it holds.
pub(super) const REASON_TOPIC: &str = "hub-topic";
/// Reason of dead letters whose message holds no record, or more than have a position.
const REASON_ARRAY: &str = "hub-array";

impl Counting {
    pub(super) fn handle_message(
        &mut self,
        message: &RawRecord,
        payload: &[u8],
        now: ProcessingTime,
    ) -> Result<(), ArrowError> {
        let whole = message.part(0, message.length);
        let described = message.message.as_deref();
        let Some(kind) = described.and_then(|described| described.kind) else {
            let detail = unknown_topic(described);
            self.refuse_message(&whole, payload, now, REASON_TOPIC, detail);
            return Ok(());
        };
        if !is_array(message, payload) {
            return self.handle_record(&whole, kind, payload, now);
        }
        let records: Vec<&RawValue> = match serde_json::from_slice(payload) {
            Ok(records) => records,
            Err(source) => {
                let error = DecodeError::Json(source);
                self.refuse_message(&whole, payload, now, error.reason(), error.detail());
                return Ok(());
            }
        };
        if records.is_empty() || records.len() > POSITIONS {
            let detail = format!(
                "the message is an array of {} records, 1 to {POSITIONS} are taken: set upstream.message-records-max of the edge module",
                records.len()
            );
            self.refuse_message(&whole, payload, now, REASON_ARRAY, detail);
            return Ok(());
        }
        for (place, record) in records.into_iter().enumerate() {
            let raw = record.get().as_bytes();
            self.handle_record(&message.part(place, raw.len()), kind, raw, now)?;
        }
        Ok(())
    }

    /// A message of which no record is known is one that is refused.
    fn refuse_message(
        &mut self,
        whole: &RawRecord,
        payload: &[u8],
        now: ProcessingTime,
        reason: &'static str,
        detail: String,
    ) {
        self.tally.records_in += 1;
        self.refuse(whole, payload, now, reason, detail);
    }
}

fn is_array(message: &RawRecord, payload: &[u8]) -> bool {
    let is_json = matches!(message.encoding, Ok(Encoding::Json));
    // One that is cut is refused for its length.
    let is_cut = message.length > payload.len();
    is_json && !is_cut && payload.trim_ascii_start().first() == Some(&b'[')
}

pub(super) fn unknown_topic(message: Option<&HubMessage>) -> String {
    let topic = message.and_then(|message| message.topic.as_deref());
    let what = match topic {
        None => {
            "the message has no property `topic` that is a text of at most 256 bytes".to_owned()
        }
        Some(topic) => {
            format!("the message's property `topic` is {topic:?}, which kafka.hub does not name")
        }
    };
    let origin = message.and_then(|message| message.origin.as_deref());
    let origin = origin.filter(|origin| *origin != "Telemetry");
    let origin = origin.map(|origin| format!(" (the hub calls it {origin})")).unwrap_or_default();
    format!(
        "{what}{origin}: name it there as in kafka.topics of the edge module, or let a route of the hub send what is no edge module's to \
         another endpoint"
    )
}

#[cfg(test)]
mod tests;
