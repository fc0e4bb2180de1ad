use std::sync::Arc;

use aggregator_core::checkpoint::{Nonce, OwedTo, TopicPartition};
use aggregator_core::hub::position;
use aggregator_core::{PartitionState, ProcessingTime, Settings};
use deltalake::arrow::array::{Array as _, AsArray as _};
use deltalake::arrow::datatypes::{Int64Type, Schema};
use deltalake::kernel::StructType;
use deltalake::kernel::engine::arrow_conversion::TryIntoArrow as _;
use shared_proto::codec::encode_reading;
use shared_proto::model::{DeviceId, EventTime, Generation, Identity, MetricType, SensorId};
use shared_proto::model::{Reading, Sequence};

use super::super::{Partition, Tally};
use super::*;
use crate::config;
use crate::sink::rows::telemetry_columns;
use crate::source::{Batch, TopicKind};

/// 2026-03-01T08:15:30Z.
const NOW: ProcessingTime = ProcessingTime::from_micros(1_772_352_930_000_000);

type Message<'a> = (HubMessage, Result<Encoding, DecodeError>, &'a [u8]);

fn counting() -> Counting {
    let settings = Arc::new(Settings::default());
    let columns = StructType::try_new(telemetry_columns()).expect("different names");
    let schema: Schema = (&columns).try_into_arrow().expect("types of arrow");
    let id = TopicPartition { topic: "hub".to_owned(), partition: 0 };
    let state = PartitionState::new(&settings);
    let partition = Partition::new(id, TopicKind::Hub, None, 0, state);
    Counting::new(settings, Arc::new(schema), true, vec![partition])
}

/// As the consumer describes a message that says `topic`.
fn of(topic: &str) -> HubMessage {
    let hub = config::Settings::load(None).expect("valid defaults").kafka.hub;
    HubMessage {
        topic: Some(topic.to_owned()),
        kind: hub.kind_of(topic),
        device: Some("gw-07".to_owned()),
        origin: Some("Telemetry".to_owned()),
    }
}

fn reading(metric: &str, sequence: u64) -> Reading {
    let sensor = SensorId::new("press-1/oil").expect("a name");
    let time = EventTime::from_micros(NOW.as_event_time().micros() - 1_000_000);
    let mut reading = Reading::new(sensor, time, MetricType::new(metric).expect("a name"), 20.0);
    reading.identity = Some(Identity {
        device_id: DeviceId::new("gw-07").expect("a name"),
        generation: Generation(1),
        sequence: Sequence(sequence),
    });
    reading
}

fn array(metric: &str, sequences: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let records = sequences.into_iter().map(|sequence| {
        let record = encode_reading(&reading(metric, sequence), Encoding::Json);
        String::from_utf8(record).expect("JSON is text")
    });
    format!("[{}]", records.collect::<Vec<_>>().join(", ")).into_bytes()
}

/// Takes the messages, holds the counts against each other, and gives the positions of rows of `telemetry`, then dead letters by
/// position, reason and source.
fn take(
    counting: &mut Counting,
    messages: &[Message<'_>],
) -> (Tally, Vec<i64>, Vec<(i64, String, String)>) {
    counting.handle_batch(&Batch::of_hub(messages), NOW).expect("the rows fit");
    counting.check_balance().expect("every record is known");
    let rows = counting.take_rows(1).expect("columns").map(|rows| {
        let offsets = rows.column_by_name("source_offset").expect("a column");
        let offsets = offsets.as_primitive::<Int64Type>();
        assert_eq!(offsets.null_count(), 0);
        offsets.values().to_vec()
    });
    let epoch = aggregator_core::checkpoint::EpochId::after(None, Nonce(1)).expect("room");
    let taken = counting.take_epoch(epoch, NOW, |_| (Vec::new(), OwedTo::new())).expect("JSON");
    // A large one is compressed.
    let file = zstd::decode_all(&*taken.commit.file);
    let file = file.as_deref().unwrap_or(&taken.commit.file);
    let file: serde_json::Value = serde_json::from_slice(file).expect("JSON");
    assert_eq!(file["partitions"]["hub/0"]["is_hub"], true, "{file}");
    let letters = taken.commit.rows.into_values().flat_map(|rows| rows.dead_letters);
    let letters = letters.map(|row| (row.offset.0, row.reason.to_string(), row.source.to_string()));
    (taken.tally, rows.unwrap_or_default(), letters.collect())
}

#[test]
fn each_record_of_an_array_is_a_row_with_a_position_of_its_own() {
    let mut counting = counting();
    let alone = encode_reading(&reading("pressure", 4), Encoding::Json);
    let protobuf = encode_reading(&reading("vibration", 5), Encoding::Protobuf);
    let messages = [
        (of("temperature"), Ok(Encoding::Json), &array("temperature", 1..=3)[..]),
        (of("pressure"), Ok(Encoding::Json), &alone[..]),
        (of("vibration"), Ok(Encoding::Protobuf), &protobuf[..]),
    ];
    let (tally, rows, letters) = take(&mut counting, &messages);
    let places = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)];
    assert_eq!(rows, places.map(|(offset, place)| position(offset, place)));
    assert_eq!((tally.records_in, tally.counted, letters.len()), (5, 5, 0));
    assert_eq!(counting.partitions[0].next_offset, 3);
}

#[test]
fn lanes_of_one_device_overtake_one_another_and_repeats_are_known_in_each() {
    let mut counting = counting();
    // A hub keeps the order of messages: those of one topic first, although their records are younger.
    let (late, early) = (array("pressure", 1_000..1_100), array("temperature", 1..=100));
    let messages = [
        (of("pressure"), Ok(Encoding::Json), &late[..]),
        (of("temperature"), Ok(Encoding::Json), &early[..]),
        (of("pressure"), Ok(Encoding::Json), &late[..]),
        (of("temperature"), Ok(Encoding::Json), &early[..]),
    ];
    let (tally, rows, letters) = take(&mut counting, &messages);
    assert_eq!((tally.records_in, tally.counted, tally.duplicates), (400, 200, 200));
    assert_eq!((rows.len(), letters.len()), (200, 0));
    // Also after a restart.
    let state = serde_json::to_string(&counting.partitions[0].state).expect("JSON");
    counting.partitions[0].state = serde_json::from_str(&state).expect("restorable");
    let (tally, ..) = take(&mut counting, &messages[..2]);
    assert_eq!((tally.records_in, tally.duplicates), (200, 200));
}

#[test]
fn a_message_that_does_not_say_what_it_holds_is_a_dead_letter() {
    let body = encode_reading(&reading("temperature", 1), Encoding::Json);
    let without = HubMessage { topic: None, kind: None, ..of("temperature") };
    let unknown_device = HubMessage { device: None, ..of("weather") };
    let messages = [
        (without, Ok(Encoding::Json), &body[..]),
        (unknown_device, Ok(Encoding::Json), &body[..]),
        (of("outcomes"), Ok(Encoding::Json), &body[..]),
        (of("hub"), Ok(Encoding::Json), &array("temperature", 1..=3)[..]),
    ];
    let (tally, rows, letters) = take(&mut counting(), &messages);
    assert_eq!((tally.records_in, tally.dead_letters, rows.len()), (4, 4, 0));
    let expected = [(0, "gw-07"), (1, "?"), (2, "gw-07"), (3, "gw-07")].map(|(offset, device)| {
        (position(offset, 0), REASON_TOPIC.to_owned(), format!("iot-hub/{device}"))
    });
    assert_eq!(letters, expected);
    let of_twin = HubMessage {
        origin: Some("twinChangeEvents".to_owned()),
        topic: None,
        kind: None,
        device: None,
    };
    let text = unknown_topic(Some(&of_twin));
    assert!(text.contains("no property `topic`"), "{text}");
    assert!(text.contains("(the hub calls it twinChangeEvents)"), "{text}");
    assert!(text.contains("a route of the hub"), "{text}");
    let text = unknown_topic(Some(&of("weather")));
    assert!(text.contains("\"weather\", which kafka.hub does not name: name it there"), "{text}");
}

#[test]
fn what_is_wrong_in_a_message_costs_no_other_record() {
    let good = String::from_utf8(array("temperature", [1])).expect("text");
    let good = good.trim_matches(['[', ']']);
    let (other, third) = (array("temperature", [2]), array("temperature", [3]));
    let other = std::str::from_utf8(&other).expect("text").trim_matches(['[', ']']);
    let mixed = format!(" [ {good}, 7, {{\"sensor_id\":\"s\"}}, [{good}], {other} ]\n");
    let full = format!("[{}]", vec!["0"; POSITIONS].join(","));
    let too_many = format!("[{}]", vec!["0"; POSITIONS + 1].join(","));
    let cut = format!("[{good}, {other}");
    let messages: [Message<'_>; 6] = [
        (of("temperature"), Ok(Encoding::Json), mixed.as_bytes()),
        (of("temperature"), Ok(Encoding::Json), b"[]"),
        (of("temperature"), Ok(Encoding::Json), too_many.as_bytes()),
        (of("temperature"), Ok(Encoding::Json), cut.as_bytes()),
        (
            of("temperature"),
            Err(DecodeError::ContentType("text/csv".to_owned())),
            format!("[{good}]").leak().as_bytes(),
        ),
        (of("temperature"), Ok(Encoding::Json), &third),
    ];
    let (tally, rows, letters) = take(&mut counting(), &messages);
    assert_eq!(rows, [position(0, 0), position(0, 4), position(5, 0)]);
    assert_eq!((tally.records_in, tally.counted, tally.dead_letters), (10, 3, 7));
    let found: Vec<(i64, &str)> =
        letters.iter().map(|(offset, reason, _)| (*offset, reason.as_str())).collect();
    let expected = [
        (position(0, 1), "json"),
        (position(0, 2), "missing-field"),
        (position(0, 3), "json"),
        (position(1, 0), REASON_ARRAY),
        (position(2, 0), REASON_ARRAY),
        (position(3, 0), "json"),
        (position(4, 0), "content-type"),
    ];
    assert_eq!(found, expected);
    let (tally, ..) =
        take(&mut counting(), &[(of("temperature"), Ok(Encoding::Json), full.as_bytes())]);
    assert_eq!(tally.records_in, POSITIONS as u64, "as many as have a position");
}
