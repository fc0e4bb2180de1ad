//! A record as it leaves: with its identity, marked historical where it is, in the form of its topic.

use shared_proto::Encoding;
use shared_proto::codec::{self, DecodeError};
use shared_proto::model::{EventTime, Identity};

use super::Forwarder;
use super::lanes::reading_topic;
use crate::store::{Lane, Stored};

/// A record, and where it goes.
pub(super) struct Outgoing<'a> {
    pub(super) topic: &'a str,
    pub(super) key: String,
    pub(super) payload: Vec<u8>,
}

impl Forwarder {
    /// Waveforms are protobuf always.
    pub(super) fn outgoing(
        &self,
        lane: Lane,
        record: &Stored,
        oldest_live: EventTime,
        encoding: Encoding,
    ) -> Result<Outgoing<'_>, DecodeError> {
        let identity = Some(Identity {
            device_id: self.device_id.clone(),
            generation: self.generation,
            sequence: record.sequence,
        });
        let topics = &self.settings.topics;
        Ok(match lane {
            Lane::Readings => {
                let mut reading =
                    codec::decode_reading(&record.payload, Encoding::Protobuf)?.reading;
                reading.identity = identity;
                reading.historical |= reading.timestamp < oldest_live;
                Outgoing {
                    topic: reading_topic(topics, &reading.metric_type),
                    key: reading.sensor_id.as_str().to_owned(),
                    payload: codec::encode_reading(&reading, encoding),
                }
            }
            Lane::Events => {
                let mut event = codec::decode_machine_event(&record.payload, Encoding::Protobuf)?;
                event.identity = identity;
                event.historical |= event.timestamp < oldest_live;
                Outgoing {
                    topic: &topics.machine_events,
                    key: event.machine_id.as_str().to_owned(),
                    payload: codec::encode_machine_event(&event, encoding),
                }
            }
            Lane::Waveforms => {
                let mut piece = codec::decode_waveform_snapshot(&record.payload)?;
                piece.identity = identity;
                Outgoing {
                    topic: &topics.waveforms,
                    key: piece.block.machine_id.as_str().to_owned(),
                    payload: codec::encode_waveform_snapshot(&piece),
                }
            }
            Lane::DeadLetters => {
                let mut letter = codec::decode_dead_letter(&record.payload, Encoding::Protobuf)?;
                letter.identity = identity;
                Outgoing {
                    topic: &topics.dead_letters,
                    key: self.device_id.as_str().to_owned(),
                    payload: codec::encode_dead_letter(&letter, encoding),
                }
            }
        })
    }
}
