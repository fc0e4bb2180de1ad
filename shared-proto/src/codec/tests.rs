use proptest::prelude::*;

use super::*;
use crate::model::{WaveformBlock, WaveformSnapshot};

const GOOD: &str = r#"{"sensor_id":"press-1/spindle","timestamp":"2026-03-01T08:15:30.123456Z","metric_type":"vibration","value":3.72}"#;

fn outcome(text: &str) -> String {
    match decode_reading(text.as_bytes(), Encoding::Json) {
        Ok(decoded) => format!("ok {} {}", decoded.reading.value, decoded.unknown_fields),
        Err(error) => format!("{}: {}", error.reason(), error.detail()),
    }
}

#[test]
fn a_producer_that_knows_only_the_four_fields_is_served() {
    let reading = decode_reading(GOOD.as_bytes(), Encoding::Json).expect("valid").reading;
    assert_eq!(reading.sensor_id.as_str(), "press-1/spindle");
    assert_eq!(reading.timestamp.to_string(), "2026-03-01T08:15:30.123456Z");
    assert_eq!(reading.metric_type.as_str(), "vibration");
    assert_eq!(reading.identity, None);
    assert_eq!(encode_reading(&reading, Encoding::Json), GOOD.as_bytes());
}

#[test]
fn awkward_json_has_a_named_outcome() {
    let with = |from: &str, to: &str| GOOD.replacen(from, to, 1);
    let check = |input: String, expected: &str| {
        let found = outcome(&input);
        assert!(found.starts_with(expected), "{input}\n  found    {found}\n  expected {expected}");
    };
    check(GOOD.to_owned(), "ok 3.72 0");
    check(with("3.72", "4"), "ok 4 0");
    check(with("3.72", "-1e3"), "ok -1000 0");
    check(with("}", r#","extra":{"value":[1,null]},"more":"x"}"#), "ok 3.72 2");
    check(format!("  {GOOD}\n"), "ok 3.72 0");
    check(with("press-1/spindle", "\\u0041"), "ok 3.72 0");
    check(
        with("3.72}", r#"3.72,"machine_id":null,"features":null,"historical":null}"#),
        "ok 3.72 0",
    );
    check(String::new(), "empty");
    check("hello".to_owned(), "json");
    check("null".to_owned(), "json");
    check("[1,2,3]".to_owned(), "json");
    check(format!("{GOOD}xyz"), "json");
    check(GOOD[..40].to_owned(), "json");
    check(format!("\u{feff}{GOOD}"), "json");
    check(with("3.72", "NaN"), "json");
    check(with("3.72", "Infinity"), "json");
    check(with("3.72", "1e400"), "json");
    check(with("3.72", "null"), "json: not a record in JSON: field `value`: invalid type: null");
    check(with("3.72", "true"), "json: not a record in JSON: field `value`");
    check(with("3.72", r#""3.72""#), "json: not a record in JSON: field `value`");
    check(
        with("3.72}", r#"3.72,"value":1}"#),
        "json: not a record in JSON: duplicate field `value`",
    );
    check(with(r#""press-1/spindle""#, "17"), "json: not a record in JSON: field `sensor_id`");
    check(with(r#","value":3.72"#, ""), "missing-field: field `value` is missing");
    check(with("value", "VALUE"), "missing-field: field `value`");
    check(with("press-1/spindle", ""), "name: sensor_id is empty");
    check(with("press-1/spindle", &"s".repeat(300)), "name: sensor_id has 300 bytes");
    check(with("2026-03-01T08:15:30.123456Z", "yesterday"), "timestamp: timestamp \"yesterday\"");
    check(with("2026-03-01T", "2026-02-30T"), "timestamp");
    check(with("2026-03-01T08:15:30.123456Z", "2026-03-01T08:15:30"), "timestamp");
    check(with("}", r#","device_id":"gw","sequence":1}"#), "identity");
    check(with("}", r#","generation":1,"sequence":1}"#), "identity");
    check(with("}", r#","device_id":"gw","generation":1,"sequence":-1}"#), "json");
    check(with("}", r#","unit":"123456789012345678901234567890123"}"#), "too-many: field `unit`");
    check(with("}", r#","quality":"splendid"}"#), "json: not a record in JSON: field `quality`");
    check(with("}", r#","quality":{"good":null}}"#), "json: not a record in JSON: field `quality`");
    check(
        with("}", r#","features":{"rms":1,"rms":2}}"#),
        "json: not a record in JSON: field `features`: duplicate feature `rms`",
    );
    let many = (0..300).map(|number| format!("\"{number}\":1")).collect::<Vec<_>>().join(",");
    let many = format!(",\"features\":{{{many}}}}}");
    check(with("}", &many), "too-many: field `features` has 300 entries");
    check(with("}", r#","unit":""}"#), "ok 3.72 0");
}

#[test]
fn text_that_is_not_utf_8_is_refused() {
    let mut bytes = GOOD.as_bytes().to_vec();
    bytes[20] = 0xff;
    let error = decode_reading(&bytes, Encoding::Json).expect_err("refused");
    assert_eq!(error.reason(), "json");
    // Neither in a field that nobody knows.
    let mut bytes = GOOD.replace('}', r#","note":"a"}"#).into_bytes();
    let place = bytes.len() - 3;
    bytes[place] = 0xff;
    let error = decode_reading(&bytes, Encoding::Json).expect_err("refused");
    assert!(error.detail().contains("invalid utf-8"), "{}", error.detail());
}

#[test]
fn records_are_objects_and_empty_texts_say_nothing() {
    let letter = br#"["json","broken","t","2026-03-01T08:15:30Z",null,null,null,"AA==",1]"#;
    let error = decode_dead_letter(letter, Encoding::Json).expect_err("refused");
    assert_eq!(error.detail(), "not a record in JSON: an array, expected an object");
    let event = |event_type: &str| {
        format!(
            r#"{{"event_type":{event_type},"machine_id":"m","timestamp":"2026-03-01T08:15:30Z","cause":"","x":[0]}}"#
        )
    };
    let decode = |text: String| decode_machine_event(text.as_bytes(), Encoding::Json);
    assert_eq!(decode(event("\"trip\"")).expect("valid").details.cause, None);
    assert_eq!(decode(event("{\"trip\":null}")).expect_err("refused").reason(), "json");
}

/// They could be written as JSON, and nobody could read that.
#[test]
fn times_beyond_the_calendar_of_rfc_3339_are_refused_in_protobuf() {
    for micros in [-62_167_219_200_000_001, 253_402_300_800_000_000, i64::MIN, i64::MAX] {
        let message = v1::Reading {
            sensor_id: "s".to_owned(),
            timestamp_micros: Some(micros),
            metric_type: "temperature".to_owned(),
            value: Some(1.0),
            ..v1::Reading::default()
        };
        let error =
            decode_reading(&message.encode_to_vec(), Encoding::Protobuf).expect_err("refused");
        assert_eq!(error.reason(), "timestamp", "{micros}");
    }
}

#[test]
fn an_array_gives_each_reading_its_own_result() {
    let payload = format!(" [{GOOD}, {{\"value\":1}}, {GOOD}]");
    let results = decode_readings(payload.as_bytes()).expect("an array");
    let fates: Vec<bool> = results.iter().map(|element| element.result.is_ok()).collect();
    assert_eq!(fates, [true, false, true]);
    assert_eq!(results[1].raw, b"{\"value\":1}");
    assert_eq!(decode_readings(GOOD.as_bytes()).expect("an object").len(), 1);
    assert!(decode_readings(b"[").is_err());
    let array = |length: usize| format!("[{}0]", "0,".repeat(length - 1));
    assert_eq!(decode_readings(array(10_000).as_bytes()).expect("at the limit").len(), 10_000);
    let error = decode_readings(array(10_001).as_bytes()).expect_err("above the limit");
    assert_eq!(error.reason(), "too-many");
}

#[test]
fn content_types_choose_the_encoding() {
    let check = |value: Option<&[u8]>, expected: Option<Encoding>| {
        assert_eq!(Encoding::from_content_type(value).ok(), expected, "{value:?}");
    };
    check(None, Some(Encoding::Json));
    check(Some(b"application/json"), Some(Encoding::Json));
    check(Some(b"application/x-protobuf"), Some(Encoding::Protobuf));
    check(Some(b"text/csv"), None);
    check(Some(b""), None);
}

#[test]
fn content_types_are_read_in_any_case_and_with_parameters() {
    let check = |expected: Option<Encoding>, values: &[&str]| {
        for value in values {
            let found = Encoding::from_content_type(Some(value.as_bytes())).ok();
            assert_eq!(found, expected, "{value:?}");
        }
    };
    let json = [
        "application/JSON",
        " application/json\t",
        "application/json;",
        "application/json; charset=utf-8",
        "Application/Json;charset=UTF-8",
        "application/json ; Charset=\"Utf-8\"; version=1",
        "application/json; note=\"a;charset=latin1\"",
        "application/json; note=\"\\\";charset=latin1\"; charset=utf-8",
    ];
    check(Some(Encoding::Json), &json);
    // Protobuf is no text: a charset says nothing about it.
    let protobuf = [
        "APPLICATION/X-PROTOBUF",
        "application/x-protobuf; messageType=\"predictive_maintenance.v1.Reading\"",
        "application/x-protobuf;charset=latin1",
    ];
    check(Some(Encoding::Protobuf), &protobuf);
    let refused = [
        ";",
        "; charset=utf-8",
        "json",
        "application/json5",
        "application /json",
        "application/json charset=utf-8",
        "application/json, application/json",
        "application/json; charset",
        "application/json; charset=",
        "application/json; charset=utf-16",
        "application/json; CHARSET=\"iso-8859-1\"",
        "application/json; charset=utf-8; charset=latin1",
        "application/json; note=\"\\\\\";charset=latin1",
    ];
    check(None, &refused);
    assert!(Encoding::from_content_type(Some(b"application/json\xff")).is_err());
}

#[test]
fn protobuf_without_required_fields_is_refused() {
    let full = v1::Reading {
        sensor_id: "s".to_owned(),
        timestamp_micros: Some(1),
        metric_type: "temperature".to_owned(),
        value: Some(1.0),
        ..v1::Reading::default()
    };
    let reason = |message: v1::Reading| {
        decode_reading(&message.encode_to_vec(), Encoding::Protobuf)
            .map_or_else(|error| error.reason(), |_| "ok")
    };
    assert_eq!(reason(full.clone()), "ok");
    assert_eq!(reason(v1::Reading { value: None, ..full.clone() }), "missing-field");
    assert_eq!(reason(v1::Reading { timestamp_micros: None, ..full.clone() }), "missing-field");
    assert_eq!(reason(v1::Reading { value: Some(f64::NAN), ..full.clone() }), "not-finite");
    assert_eq!(reason(v1::Reading { quality: 9, ..full.clone() }), "unknown-value");
    assert_eq!(reason(v1::Reading { timestamp_micros: Some(i64::MAX), ..full }), "timestamp");
    let error = decode_reading(&[0xff, 0xff], Encoding::Protobuf).expect_err("refused");
    assert_eq!(error.reason(), "protobuf");
}

#[test]
fn waveform_blocks_scale_their_samples() {
    let message = v1::WaveformBlock {
        machine_id: "m".to_owned(),
        sensor_id: "s".to_owned(),
        first_sample_micros: Some(5),
        sample_rate_hz: 20_000.0,
        scale: Some(0.5),
        unit: "V".to_owned(),
        samples: Some(v1::waveform_block::Samples::SamplesI16(vec![2, 0, 0xff, 0xff])),
        ..v1::WaveformBlock::default()
    };
    let block = decode_waveform_block(&message.encode_to_vec(), Encoding::Protobuf).expect("valid");
    assert_eq!(block.samples, [1.0, -0.5]);
    let again = decode_waveform_block(&encode_waveform_block(&block), Encoding::Protobuf);
    assert_eq!(again.expect("valid"), block);

    let refused = |change: &dyn Fn(&mut v1::WaveformBlock)| {
        let mut message = message.clone();
        change(&mut message);
        decode_waveform_block(&message.encode_to_vec(), Encoding::Protobuf)
            .map_or_else(|error| error.reason(), |_| "ok")
    };
    use v1::waveform_block::Samples;
    assert_eq!(refused(&|block| block.samples = Some(Samples::SamplesI16(vec![1]))), "waveform");
    assert_eq!(refused(&|block| block.samples = Some(Samples::SamplesI16(vec![]))), "waveform");
    assert_eq!(refused(&|block| block.samples = None), "missing-field");
    assert_eq!(refused(&|block| block.scale = Some(0.0)), "waveform");
    assert_eq!(refused(&|block| block.sample_rate_hz = f64::NAN), "waveform");
    let floats = v1::FloatSamples { values: vec![1.0, f32::INFINITY] };
    assert_eq!(
        refused(&|block| block.samples = Some(Samples::SamplesF32(floats.clone()))),
        "not-finite"
    );
}

#[test]
fn a_piece_without_its_trip_or_number_is_refused() {
    let block = r#"{"machine_id":"m","sensor_id":"s","first_sample":"2026-03-01T08:15:30Z","sample_rate_hz":100,"samples":[1]}"#;
    let block = decode_waveform_block(block.as_bytes(), Encoding::Json).expect("valid");
    let reason = |message: v1::WaveformBlock| {
        decode_waveform_snapshot(&message.encode_to_vec()).expect_err("refused").to_string()
    };
    let plain = v1::WaveformBlock::decode(encode_waveform_block(&block).as_slice()).expect("ours");
    assert_eq!(reason(plain.clone()), "field `trip_id` is missing");
    assert_eq!(
        reason(v1::WaveformBlock { trip_id: "t".to_owned(), ..plain }),
        "field `piece` is missing"
    );
}

#[test]
fn waveform_blocks_come_as_json_for_small_rates() {
    let text = r#"{"machine_id":"m","sensor_id":"s","first_sample":"2026-03-01T08:15:30Z","sample_rate_hz":100,"scale":2,"samples":[1,-2.5]}"#;
    let block = decode_waveform_block(text.as_bytes(), Encoding::Json).expect("valid");
    assert_eq!(block.samples, [2.0, -5.0]);
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9/_äß-]{1,40}"
}

prop_compose! {
    fn identities()(
        device in name(), generation in any::<u64>(), sequence in any::<u64>(),
    ) -> Identity {
        Identity {
            device_id: DeviceId::new(&device).expect("valid"),
            generation: Generation(generation),
            sequence: Sequence(sequence),
        }
    }
}

fn finite() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("finite", |value| value.is_finite())
}

fn times() -> impl Strategy<Value = EventTime> {
    // 0000-01-01 to 9999-12-31: what RFC 3339 can write.
    (-62_167_219_200_000_000_i64..253_402_300_800_000_000).prop_map(EventTime::from_micros)
}

prop_compose! {
    fn readings()(
        (sensor, metric, unit) in (name(), name(), proptest::option::of("[a-z/]{1,16}")),
        timestamp in times(),
        value in finite(),
        machine in proptest::option::of(name()),
        quality in proptest::option::of(prop_oneof![
            Just(Quality::Good), Just(Quality::Uncertain), Just(Quality::Bad)]),
        identity in proptest::option::of(identities()),
        historical in any::<bool>(),
        features in proptest::collection::btree_map("[a-z-]{1,12}", finite(), 0..5),
    ) -> Reading {
        Reading {
            sensor_id: SensorId::new(&sensor).expect("valid"),
            timestamp,
            metric_type: MetricType::new(&metric).expect("valid"),
            value,
            machine_id: machine.map(|machine| MachineId::new(&machine).expect("valid")),
            unit: unit.map(Into::into),
            quality,
            identity,
            historical,
            features,
        }
    }
}

prop_compose! {
    fn events()(
        number in 1_i32..=21,
        machine in name(),
        timestamp in times(),
        identity in proptest::option::of(identities()),
        historical in any::<bool>(),
        (value, limit, score) in (
            proptest::option::of(finite()), proptest::option::of(finite()), proptest::option::of(finite())),
        (cause, detail) in (proptest::option::of(name()), proptest::option::of("[ -~]{1,60}")),
        (first, latency) in (proptest::option::of(any::<u64>()), proptest::option::of(any::<u64>())),
        sensor in proptest::option::of(name()),
        (rule_version, trip_id, operator) in (
            proptest::option::of(name()), proptest::option::of(name()), proptest::option::of(name())),
    ) -> MachineEvent {
        MachineEvent {
            event_type: event_type_from_protobuf(number).expect("known"),
            machine_id: MachineId::new(&machine).expect("valid"),
            timestamp,
            identity,
            historical,
            details: MachineEventDetails {
                cause, detail, value, limit, score, rule_version, trip_id, operator,
                sensor_id: sensor.map(|sensor| SensorId::new(&sensor).expect("valid")),
                first_sequence: first,
                command_latency_micros: latency,
                ..MachineEventDetails::default()
            },
        }
    }
}

proptest! {
    #[test]
    fn readings_survive_both_encodings(reading in readings()) {
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let bytes = encode_reading(&reading, encoding);
            let decoded = decode_reading(&bytes, encoding).expect("what we write we read");
            prop_assert_eq!(&decoded.reading, &reading);
            prop_assert_eq!(decoded.unknown_fields, 0);
        }
    }

    #[test]
    fn machine_events_survive_both_encodings(event in events()) {
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let bytes = encode_machine_event(&event, encoding);
            let decoded = decode_machine_event(&bytes, encoding).expect("what we write we read");
            prop_assert_eq!(&decoded, &event);
        }
    }

    #[test]
    fn dead_letters_survive_both_encodings(
        raw in proptest::collection::vec(any::<u8>(), 0..2000),
        timestamp in times(),
        identity in proptest::option::of(identities()),
    ) {
        let mut letter = DeadLetter::new("json", "broken".to_owned(), "t", timestamp, &raw);
        letter.identity = identity;
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let bytes = encode_dead_letter(&letter, encoding);
            prop_assert_eq!(&decode_dead_letter(&bytes, encoding).expect("readable"), &letter);
        }
    }

    #[test]
    fn pieces_of_a_snapshot_survive_bit_for_bit(
        samples in prop_oneof![
            proptest::collection::vec(any::<i16>().prop_map(f32::from), 1..300),
            proptest::collection::vec(-1e3_f32..1e3, 1..300),
        ],
        scale in proptest::option::of(prop_oneof![Just(3e-5), Just(1.0), 1e-9..1e3]),
        (trip_id, piece) in (name(), any::<u32>()),
        timestamp in times(),
        identity in proptest::option::of(identities()),
    ) {
        let is_counted = scale.is_some() && samples.iter().all(|sample| sample.fract() == 0.0);
        // As a decoder would have made them of counts.
        let scaled = |sample: f32| scale.filter(|_| is_counted).map_or(sample, |scale| sample * scale as f32);
        let snapshot = WaveformSnapshot {
            block: WaveformBlock {
                machine_id: MachineId::new("m").expect("valid"),
                sensor_id: SensorId::new("s").expect("valid"),
                first_sample: timestamp,
                sample_rate_hz: 20_000.0,
                unit: Some("V".into()),
                samples: samples.into_iter().map(scaled).collect(),
            },
            scale: scale.filter(|_| is_counted),
            trip_id,
            piece,
            identity,
        };
        let bytes = encode_waveform_snapshot(&snapshot);
        prop_assert_eq!(&decode_waveform_snapshot(&bytes).expect("readable"), &snapshot);
        let block = decode_waveform_block(&bytes, Encoding::Protobuf).expect("readable as a block");
        prop_assert_eq!(block, snapshot.block);
        let written = waveform_scale(&bytes, Encoding::Protobuf).expect("readable");
        prop_assert_eq!(written, snapshot.scale.unwrap_or(1.0));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            drop(decode_reading(&bytes, encoding));
            drop(decode_machine_event(&bytes, encoding));
            drop(decode_dead_letter(&bytes, encoding));
            drop(decode_waveform_block(&bytes, encoding));
            drop(waveform_scale(&bytes, encoding));
        }
        drop(decode_readings(&bytes));
        drop(decode_waveform_snapshot(&bytes));
    }
}
