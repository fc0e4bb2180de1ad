//! Where reading of a partition stands, and what a record of the client becomes.

use std::sync::Arc;

use aggregator_core::checkpoint::TopicPartition;
use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Headers as _};
use shared_proto::Encoding;
use shared_proto::wire::{CONTENT_TYPE_HEADER, REPLAY_HEADER};

use super::hub;
use crate::config;
use crate::source::{Batch, Mark, RawRecord};

/// A partition that is read. Its place in the list is the slot of its records.
pub(super) struct Cursor {
    pub(super) partition: TopicPartition,
    /// Next offset, as far as handed over.
    pub(super) next: i64,
    /// The record before it, as it was when it was read.
    pub(super) last: Option<Mark>,
    /// `last` is read again, to see that it is still the same.
    pub(super) is_to_verify: bool,
    /// The topic is another one than that which was read from.
    pub(super) is_foreign: bool,
    /// The topic is that of a hub.
    pub(super) is_hub: bool,
}

impl Cursor {
    /// Where the client is to begin.
    pub(super) fn first(&self) -> i64 {
        if self.is_to_verify { self.next - 1 } else { self.next }
    }
}

/// Adds a record to the batch if it is the next of a partition that is read.
pub(super) fn take_message(
    message: &BorrowedMessage<'_>,
    cursors: &mut [Option<Cursor>],
    last_slot: &mut usize,
    batch: &mut Batch,
    settings: &config::Kafka,
) {
    let matches = |cursor: &Option<Cursor>| {
        cursor.as_ref().is_some_and(|Cursor { partition, .. }| {
            partition.partition == message.partition() && partition.topic == message.topic()
        })
    };
    let slot = match cursors.get(*last_slot) {
        Some(cursor) if matches(cursor) => *last_slot,
        // A record of a partition that was just given back belongs to nobody here.
        Some(_) | None => match cursors.iter().position(matches) {
            Some(slot) => slot,
            None => return,
        },
    };
    *last_slot = slot;
    let Some(cursor) = &mut cursors[slot] else { return };
    let (offset, stamped_ms) = (message.offset(), message.timestamp().to_millis());
    let mark = stamped_ms.map(|stamped_ms| Mark { offset, stamped_ms });
    if std::mem::take(&mut cursor.is_to_verify) {
        cursor.is_foreign = offset < cursor.next && mark.is_some() && mark != cursor.last;
    }
    if cursor.is_foreign || offset < cursor.next {
        return;
    }
    cursor.next = offset + 1;
    cursor.last = mark;
    let payload = message.payload().unwrap_or_default();
    let start = batch.bytes.len();
    let kept = payload.len().min(settings.record_bytes_max);
    batch.bytes.extend_from_slice(&payload[..kept]);
    let (encoding, of_hub) = if cursor.is_hub {
        (
            hub::encoding(message.headers()),
            Some(Arc::new(hub::describe(message.headers(), &settings.hub))),
        )
    } else {
        (Encoding::from_content_type(header(message, CONTENT_TYPE_HEADER)), None)
    };
    batch.records.push(RawRecord {
        slot,
        offset,
        stamped_ms,
        encoding,
        // What devices send is never one.
        is_replay: of_hub.is_none() && header(message, REPLAY_HEADER).is_some(),
        message: of_hub,
        length: payload.len(),
        start,
        end: start + kept,
    });
}

fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a [u8]> {
    let headers = message.headers()?;
    (0..headers.count())
        .map(|index| headers.get(index))
        .find(|header| header.key == name)
        .and_then(|header| header.value)
}
