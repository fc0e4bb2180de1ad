//! What is dropped, judged at once, kept for later and shed.

use std::path::Path;

use prost::Message as _;
use rumqttc::QoS;
use shared_proto::model::{EventTime, MachineId};
use shared_proto::wire::v1;
use shared_proto::wire::v1::waveform_block::Samples;

use super::*;

fn backlog(length: usize) -> Backlog {
    let mut settings = Settings::load(None::<&Path>).expect("defaults are valid");
    settings.protection.sensor_queue_length = length;
    settings.protection.slice_bytes = 256;
    let watched = ["a", "b"].map(|name| SensorId::new(name).expect("valid"));
    Backlog::new(&settings, watched.into())
}

fn message(topic: &str, payload: impl Into<Vec<u8>>) -> Publish {
    Publish::new(topic, QoS::AtLeastOnce, payload)
}

fn reading(sensor: &str, value: f64) -> String {
    format!(
        r#"{{"timestamp":"2026-03-01T08:15:30Z","metric_type":"temperature","value":{value},"sensor_id":"{sensor}"}}"#
    )
}

fn waveform(sensor: &str, first_micros: i64) -> Vec<u8> {
    codec::encode_waveform_block(&WaveformBlock {
        machine_id: MachineId::new("m").expect("valid"),
        sensor_id: SensorId::new(sensor).expect("valid"),
        first_sample: EventTime::from_micros(first_micros),
        sample_rate_hz: 1000.0,
        unit: None,
        samples: vec![1.0; 8],
    })
}

fn words(pieces: &[Pieces]) -> Vec<String> {
    let word = |piece: &Piece| match piece {
        Piece::Reading(reading) => format!("{}={}", reading.sensor_id, reading.value),
        Piece::Block(block, depth) => {
            format!("{}@{} {depth:?}", block.sensor_id, block.first_sample.micros())
        }
        Piece::Unusable(sensor) => format!("{sensor} unusable"),
    };
    pieces.iter().flat_map(|pieces| &pieces.pieces).map(word).collect()
}

fn add(backlog: &mut Backlog, topic: &str, payload: impl Into<Vec<u8>>) -> Vec<String> {
    words(&backlog.add(message(topic, payload), Instant::now()))
}

fn rest(backlog: &mut Backlog) -> Vec<String> {
    words(&std::iter::from_fn(|| backlog.take_next()).collect::<Vec<_>>())
}

#[test]
fn small_messages_are_judged_at_once_and_strangers_dropped() {
    let mut backlog = backlog(4);
    let readings = "plant/m/readings";
    assert_eq!(add(&mut backlog, readings, reading("a", 1.0)), ["a=1"]);
    assert!(add(&mut backlog, readings, reading("stranger", 1.0)).is_empty());
    let array = format!(
        "[{}, {},3,\"x\",null,{}]",
        reading("b", 2.0),
        reading("c", 3.0),
        reading("a", 4.0)
    );
    let mut wide = Backlog { slice_bytes: 4096, ..backlog };
    assert_eq!(add(&mut wide, readings, array), ["b=2", "a=4"]);
    assert!(add(&mut wide, readings, "[1,2").is_empty());
    assert!(add(&mut wide, readings, "").is_empty());
    assert!(add(&mut wide, "plant/m/other", reading("a", 1.0)).is_empty());
    assert!(add(&mut wide, "plant/m/waveform", waveform("stranger", 0)).is_empty());
    assert!(wide.is_empty());
}

#[test]
fn a_block_of_text_is_judged_also_when_its_sensor_is_written_with_an_escape() {
    let text = r#"{"machine_id":"m","sensor_id":"NAME","first_sample":"1970-01-01T00:00:00.000007Z","sample_rate_hz":1000,"samples":[1,1]}"#;
    for name in ["b", r"\u0062"] {
        let mut backlog = backlog(4);
        assert!(add(&mut backlog, "plant/m/waveform", text.replace("NAME", name)).is_empty());
        assert_eq!(rest(&mut backlog), ["b@7 Full"], "{name}");
    }
    let mut backlog = backlog(4);
    let stranger = text.replace("NAME", r"\u0063");
    assert!(add(&mut backlog, "plant/m/waveform", stranger).is_empty());
    assert!(backlog.is_empty());
}

#[test]
fn a_number_that_is_none_is_a_piece_of_its_sensor_and_breaks_nothing_off() {
    let mut backlog = backlog(4);
    let none = |sensor: &str, value: &str| reading(sensor, 7.0).replace('7', value);
    let readings = "plant/m/readings";
    assert_eq!(add(&mut backlog, readings, none("a", "NaN")), ["a unusable"]);
    assert_eq!(add(&mut backlog, readings, none("a", "null")), ["a unusable"]);
    assert!(add(&mut backlog, readings, none("stranger", "NaN")).is_empty());
    assert!(add(&mut backlog, readings, none("a", "oops")).is_empty());
    let elements = [none("a", "-Infinity"), none("b", "null"), none("c", "NaN"), reading("b", 2.0)];
    let array = format!("[{}]", elements.join(","));
    assert!(array.len() > 256, "judged in slices");
    assert!(add(&mut backlog, readings, array).is_empty());
    assert_eq!(rest(&mut backlog), ["a unusable", "b unusable", "b=2"]);
    let wire = v1::Reading {
        sensor_id: "a".to_owned(),
        metric_type: "temperature".to_owned(),
        value: Some(f64::NAN),
        ..v1::Reading::default()
    };
    assert_eq!(add(&mut backlog, readings, wire.encode_to_vec()), ["a unusable"]);
    let mut block = v1::WaveformBlock::decode(&*waveform("b", 7)).expect("just encoded");
    block.samples = Some(Samples::SamplesF32(v1::FloatSamples { values: vec![1.0, f32::NAN] }));
    assert!(add(&mut backlog, "plant/m/waveform", block.encode_to_vec()).is_empty());
    assert_eq!(rest(&mut backlog), ["b unusable"]);
}

#[test]
fn a_large_array_is_judged_in_slices_while_others_go_between() {
    let mut backlog = backlog(4);
    let elements: Vec<String> = (0..20).map(|value| reading("a", f64::from(value))).collect();
    let array = format!("[{}]", elements.join(","));
    assert!(add(&mut backlog, "plant/m/readings", array).is_empty());
    assert!(add(&mut backlog, "plant/m/waveform", waveform("b", 7)).is_empty());
    let first = backlog.take_next().expect("a slice");
    assert!(!first.is_last && (1..5).contains(&first.pieces.len()), "{first:?}");
    assert_eq!(words(&[backlog.take_next().expect("the block")]), ["b@7 Full"]);
    let mut all = words(&[first]);
    all.extend(rest(&mut backlog));
    assert_eq!(all, (0..20).map(|value| format!("a={value}")).collect::<Vec<_>>());
}

#[test]
fn a_broken_array_is_judged_up_to_the_break() {
    let mut backlog = backlog(4);
    let padding = " ".repeat(256);
    let array = format!("[{padding}{},{},{{\"sensor_id\":", reading("a", 1.0), reading("a", 2.0));
    assert!(add(&mut backlog, "plant/m/readings", array).is_empty());
    assert_eq!(rest(&mut backlog), ["a=1", "a=2"]);
}

#[test]
fn of_too_many_arrays_the_oldest_is_judged_by_its_extremes() {
    let mut backlog = backlog(2);
    let values = [5, 6, -3, 4, 900, 7, 8];
    let elements: Vec<String> = values
        .into_iter()
        .flat_map(|value| {
            [reading("a", f64::from(value)), reading("stranger", 1e9), reading("b", 1.0)]
        })
        .collect();
    let array = format!("[{}]", elements.join(","));
    let topic = "plant/m/readings";
    assert!(add(&mut backlog, topic, array.clone()).is_empty());
    assert!(add(&mut backlog, topic, array.clone()).is_empty());
    let first = ["a=5", "b=1", "a=-3", "a=900", "a=8", "b=1"];
    assert_eq!(add(&mut backlog, topic, array), first);
    assert_eq!(rest(&mut backlog).len(), 2 * 2 * values.len());
}

#[test]
fn an_array_whose_extremes_cannot_be_read_is_judged_whole() {
    let mut backlog = backlog(1);
    let bad = reading("a", 999.0).replace("2026", "soon");
    let odd = reading("a", 7.0).replace("sensor_id", "sensor\\u005fid");
    let rest_of_it = vec![reading("a", 2.0); 9].join(",");
    let array = format!("[{},{bad},{odd},{rest_of_it}]", reading("a", 1.0));
    let topic = "plant/m/readings";
    assert!(add(&mut backlog, topic, array.clone()).is_empty());
    let mut expected = vec!["a=1".to_owned(), "a=7".to_owned()];
    expected.extend(vec!["a=2".to_owned(); 9]);
    assert_eq!(add(&mut backlog, topic, array), expected);
}

#[test]
fn of_too_many_blocks_the_oldest_is_judged_by_its_limits_in_order() {
    let mut backlog = backlog(2);
    let mut judged = Vec::new();
    for number in 0..4 {
        judged.extend(add(&mut backlog, "plant/m/waveform", waveform("a", number)));
    }
    assert!(add(&mut backlog, "plant/m/waveform", waveform("b", 0)).is_empty());
    assert_eq!(judged, ["a@0 Limits", "a@1 Limits"]);
    assert_eq!(rest(&mut backlog), ["a@2 Full", "b@0 Full", "a@3 Full"]);
}

mod property {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes in whatever order: each block is judged once, in the order of its sensor; each reading at most once, the
        /// lowest and the highest of each message always.
        #[test]
        fn no_block_and_no_extreme_is_lost(
            steps in prop::collection::vec((0_usize..4, 0_usize..3, 1_usize..30), 1..60),
        ) {
            let mut backlog = backlog(3);
            let mut expected: Vec<String> = Vec::new();
            let mut possible: Vec<String> = Vec::new();
            let mut found = Vec::new();
            for (number, (kind, sensor, count)) in steps.into_iter().enumerate() {
                let name = ["a", "b", "stranger"][sensor];
                match kind {
                    0 => found.extend(words(&backlog.take_next().into_iter().collect::<Vec<_>>())),
                    1 => {
                        let micros = i64::try_from(number).expect("small");
                        found.extend(add(&mut backlog, "plant/m/waveform", waveform(name, micros)));
                        expected.push(format!("{name}@{number}"));
                    }
                    _ => {
                        let values = (0..count).map(|index| number * 100 + index);
                        let elements: Vec<String> =
                            values.clone().map(|value| reading(name, value as f64)).collect();
                        let topic = format!("plant/{kind}/readings");
                        let array = format!("[{}]", elements.join(","));
                        found.extend(add(&mut backlog, &topic, array));
                        let words: Vec<String> =
                            values.map(|value| format!("{name}={value}")).collect();
                        expected.extend([words[0].clone(), words[words.len() - 1].clone()]);
                        possible.extend(words);
                    }
                }
            }
            found.extend(rest(&mut backlog));
            let mut found: Vec<String> = found
                .iter()
                .map(|word| word.split(' ').next().unwrap_or_default().to_owned())
                .collect();
            expected.retain(|word| !word.starts_with("stranger"));
            let blocks = |words: &[String], sensor: &str| -> Vec<String> {
                words.iter().filter(|word| word.starts_with(&format!("{sensor}@"))).cloned().collect()
            };
            for sensor in ["a", "b"] {
                prop_assert_eq!(blocks(&found, sensor), blocks(&expected, sensor));
            }
            let readings = found.iter().filter(|word| word.contains('=')).count();
            found.sort();
            found.dedup();
            let different = found.iter().filter(|word| word.contains('=')).count();
            prop_assert_eq!(readings, different, "judged twice");
            for word in &expected {
                prop_assert!(found.contains(word), "{} is missing", word);
            }
            for word in found.iter().filter(|word| word.contains('=')) {
                prop_assert!(possible.contains(word), "{} was never sent", word);
            }
        }

        /// The glance sees what a parser sees.
        #[test]
        fn a_glance_agrees_with_a_parser(
            elements in prop::collection::vec(element(), 0..8),
            spaces in prop::collection::vec(prop::sample::select(vec!["", " ", "\n "]), 9),
        ) {
            let texts: Vec<String> = elements
                .iter()
                .zip(&spaces)
                .map(|(element, space)| format!("{space}{element}{space}"))
                .collect();
            let array = format!("[{}]", texts.join(","));
            let mut offset = 0;
            for element in elements.iter().filter(|element| element.is_object()) {
                let glance = next_element(array.as_bytes(), offset).expect("one more");
                let parsed: serde_json::Value =
                    serde_json::from_slice(glance.element).expect("an element");
                prop_assert_eq!(&parsed, element);
                if !glance.is_odd {
                    prop_assert_eq!(glance.sensor(), element["sensor_id"].as_str());
                }
                prop_assert_eq!(glance.value(), element["value"].as_f64());
                offset = glance.end;
            }
            prop_assert!(next_element(array.as_bytes(), offset).is_none());
        }
    }

    /// An object with names, numbers and nested values in it, or something else.
    fn element() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::json;

        let text = "[a-z\"\\\\{}\\[\\],: ]{0,6}";
        prop_oneof![
            6 => (text, any::<i32>(), text).prop_map(|(sensor, value, other)| {
                json!({ "sensor_id": sensor, "value": value, "other": other, "n": [{ "value": other }, []] })
            }),
            1 => text.prop_map(|text| json!(text)),
            1 => any::<i32>().prop_map(|number| json!(number)),
            1 => Just(json!(null)),
        ]
    }
}

#[test]
fn of_readings_that_come_ready_made_those_of_rules_are_judged() {
    let backlog = backlog(2);
    let sensor = |name: &str| SensorId::new(name).expect("valid");
    let reading = |name: &str| {
        let decoded = codec::decode_reading(reading(name, 1.0).as_bytes(), Encoding::Json);
        Piece::Reading(decoded.expect("a reading").reading)
    };
    let pieces = vec![
        reading("a"),
        reading("other"),
        Piece::Unusable(sensor("other")),
        Piece::Unusable(sensor("b")),
    ];
    let all = Pieces { received: Instant::now(), pieces, is_last: true };
    assert_eq!(words(&[backlog.watched_of(all)]), ["a=1", "b unusable"]);
}
