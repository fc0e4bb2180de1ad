//! What differs from lane to lane, and from error to error.

use edge_core::outbox::{Disposition, OutboxSettings};
use rdkafka::error::RDKafkaErrorCode;
use shared_proto::Encoding;
use shared_proto::model::MetricType;

use super::{BACKOFF_MAX, BACKOFF_MIN};
use crate::config::{Kafka, Topics};
use crate::store::Lane;

/// Pieces of waveforms handed to the producer and not yet acknowledged: each may have the size of a journal record.
const WAVEFORMS_IN_FLIGHT_MAX: usize = 64;
/// Each holds up to 96 KiB.
const DEAD_LETTERS_IN_FLIGHT_MAX: usize = 256;

pub(super) fn outbox_settings(lane: Lane, settings: &Kafka) -> OutboxSettings {
    OutboxSettings {
        in_flight_max: in_flight_max_of(lane, settings.in_flight_max),
        backoff_min: BACKOFF_MIN,
        backoff_max: BACKOFF_MAX,
    }
}

pub(super) fn reading_topic<'a>(topics: &'a Topics, metric_type: &MetricType) -> &'a str {
    match metric_type.as_str() {
        "temperature" => &topics.temperature,
        "pressure" => &topics.pressure,
        "vibration" => &topics.vibration,
        _ => &topics.other,
    }
}

/// Waveforms are always protobuf: samples as text would be several times their size.
pub(super) const fn encoding_of(lane: Lane, configured: Encoding) -> Encoding {
    match lane {
        Lane::Events | Lane::Readings | Lane::DeadLetters => configured,
        Lane::Waveforms => Encoding::Protobuf,
    }
}

pub(super) fn in_flight_max_of(lane: Lane, configured: usize) -> usize {
    match lane {
        Lane::Events | Lane::Readings => configured,
        Lane::Waveforms => configured.min(WAVEFORMS_IN_FLIGHT_MAX),
        Lane::DeadLetters => configured.min(DEAD_LETTERS_IN_FLIGHT_MAX),
    }
}

/// What a delivery error means for the record: only what is about the record itself is final.
pub(super) fn disposition(code: RDKafkaErrorCode) -> Disposition {
    let is_about_the_record = matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessageSize
            | RDKafkaErrorCode::InvalidMessage
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::InvalidTimestamp
    );
    if is_about_the_record { Disposition::DeadLetter } else { Disposition::Retry }
}
