use proptest::prelude::*;
use serde_json::{Value, json};
use shared_proto::model::{MachineId, MetricType, Quality};

use super::*;

const SERVER: &str = "opc.tcp://plc-1:4840/";
const OIL: &str = "nsu=http://example.org/press/;s=Oil.Temperature";
const TIME: &str = "2026-03-01T08:15:30.1234567Z";
/// [`TIME`] without its last digit, a tenth of a microsecond.
const TIME_MICROS: i64 = 1_772_352_930_123_456;

fn limits() -> OpcLimits {
    OpcLimits { payload_bytes_max: 1 << 20, values_max: 1_000, judged_within_micros: 30_000_000 }
}

fn node(name: NodeName, sensor: &str) -> NodeMapping {
    NodeMapping {
        name,
        writer: None,
        server: None,
        sensor: SensorId::new(sensor).unwrap(),
        machine: Some(MachineId::new("press-1").unwrap()),
        metric_type: MetricType::new("temperature").unwrap(),
        unit: Some("Cel".into()),
    }
}

fn by_id(id: &str, sensor: &str) -> NodeMapping {
    node(NodeName::Node(id.to_owned()), sensor)
}

fn by_name(name: &str, sensor: &str) -> NodeMapping {
    node(NodeName::Field(name.to_owned()), sensor)
}

fn mapping() -> Mapping {
    let mut of_writer = by_name("Oil", "press-2/oil");
    of_writer.writer = Some("Press2".to_owned());
    let mut of_server = by_id(OIL, "press-3/oil");
    of_server.server = Some("opc.tcp://plc-3:4840/".to_owned());
    Mapping::new(vec![
        by_id(OIL, "press-1/oil"),
        by_name("Oil", "press-1/oil-by-name"),
        of_writer,
        of_server,
    ])
    .unwrap()
}

fn read(message: &Value) -> OpcMessage {
    read_bytes(message.to_string().as_bytes())
}

fn read_bytes(bytes: &[u8]) -> OpcMessage {
    decode(bytes, &mapping(), &limits(), EventTime::from_micros(TIME_MICROS + 1_000_000))
}

fn sample(value: Value) -> Value {
    json!({
        "NodeId": OIL, "EndpointUrl": SERVER, "ApplicationUri": "urn:plc-1", "DisplayName": "Oil",
        "Timestamp": TIME, "SequenceNumber": 120, "Value": value,
    })
}

fn good(value: Value) -> Value {
    json!({ "Value": value, "SourceTimestamp": TIME, "ServerTimestamp": TIME })
}

fn data_set(payload: &Value) -> Value {
    json!({
        "DataSetWriterId": 1, "DataSetWriterName": "Press1", "SequenceNumber": 27,
        "MetaDataVersion": { "MajorVersion": 1, "MinorVersion": 0 },
        "MessageType": "ua-deltaframe", "Timestamp": TIME, "Payload": payload,
    })
}

fn network(messages: &Value) -> Value {
    json!({
        "MessageId": "27", "MessageType": "ua-data", "PublisherId": "plc-1_70FB9F43",
        "Messages": messages,
    })
}

/// One word for each item: `sensor=value quality`, or the reason.
fn words(message: &OpcMessage) -> String {
    let word = |item: &Item| match item {
        Item::Reading(reading) => {
            let quality = reading.quality.map_or("none", Quality::as_str);
            format!("{}={} {quality}", reading.sensor_id, reading.value)
        }
        Item::Refused(refused) => refused.error.reason().to_owned(),
    };
    message.items.iter().map(word).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_sample_becomes_a_reading_with_all_that_the_mapping_says() {
    let message = read(&sample(good(json!(61.5))));
    let [Item::Reading(reading)] = &message.items[..] else { panic!("{message:?}") };
    let mut expected = Reading::new(
        SensorId::new("press-1/oil").unwrap(),
        EventTime::from_micros(TIME_MICROS),
        MetricType::new("temperature").unwrap(),
        61.5,
    );
    expected.machine_id = Some(MachineId::new("press-1").unwrap());
    expected.unit = Some("Cel".into());
    expected.quality = Some(Quality::Good);
    assert_eq!(*reading, expected);
    assert_eq!((message.unmapped, message.skipped.len()), (0, 0));
}

#[test]
fn each_kind_of_value_has_its_fate() {
    for (value, expected) in [
        (json!(21713), "press-1/oil=21713 good"),
        (json!(-1.5e-3), "press-1/oil=-0.0015 good"),
        (json!(true), "press-1/oil=1 good"),
        (json!(false), "press-1/oil=0 good"),
        (json!("18446744073709551615"), "press-1/oil=18446744073709552000 good"),
        (json!("-12"), "press-1/oil=-12 good"),
        (json!({ "Type": 11, "Body": 4.5 }), "press-1/oil=4.5 good"),
        (json!({ "Type": "UInt64", "Body": "7" }), "press-1/oil=7 good"),
        (json!({ "Type": 11, "Body": [4.5] }), "opc-array"),
        (json!({ "Type": 11, "Body": null }), "missing-field"),
        (json!([1.0, 2.0]), "opc-array"),
        (json!("NaN"), "not-finite"),
        (json!("-Infinity"), "not-finite"),
        (json!("1e400"), "not-finite"),
        (json!("inf"), "opc-type"),
        (json!("1.2.3"), "opc-type"),
        (json!("warm"), "opc-type"),
        (json!(""), "opc-type"),
        (json!({ "Text": "warm", "Locale": "en" }), "opc-type"),
        (json!({ "Type": 11, "Body": { "x": 1 } }), "opc-type"),
        (json!(null), "missing-field"),
    ] {
        let message = read(&sample(good(value.clone())));
        assert_eq!(words(&message), expected, "{value}");
        // Raw data: the value stands alone, its time is that of the message.
        let message = read(&sample(value.clone()));
        assert_eq!(words(&message), expected, "{value} alone");
        let message = read(&network(&json!([data_set(&json!({ "Oil": value }))])));
        let by_name = expected.replace("oil", "oil-by-name");
        assert_eq!(words(&message), by_name, "{value} in a data set");
    }
    let text = sample(good(json!(0))).to_string().replace("\"Value\":0", "\"Value\":1e400");
    assert_eq!(words(&read_bytes(text.as_bytes())), "not-finite");
}

#[test]
fn the_top_two_bits_of_a_status_are_the_quality() {
    for (status, expected) in [
        (json!(0), "61 good"),
        (json!(0x3fff_ffff_u32), "61 good"),
        (json!(0x4000_0000_u32), "61 uncertain"),
        (json!(0x4090_0000_u32), "61 uncertain"),
        (json!(0x8000_0000_u32), "61 bad"),
        (json!(0xc000_0000_u32), "61 bad"),
        (json!(u32::MAX), "61 bad"),
        (json!({ "Code": 0x4090_0000_u32, "Symbol": "UncertainLastUsableValue" }), "61 uncertain"),
        (json!({ "Code": 0x8031_0000_u32 }), "61 bad"),
        (json!({ "Symbol": "BadNoCommunication" }), "61 bad"),
        (json!({}), "61 good"),
        (json!(null), "61 good"),
        (json!("Good"), "61 good"),
        (json!(u64::from(u32::MAX) + 1), "opc-status"),
        (json!(-1), "opc-status"),
        (json!(0.5), "opc-status"),
        (json!("Fine"), "opc-status"),
        (json!([0]), "opc-status"),
        (json!({ "Code": "0" }), "opc-status"),
    ] {
        let expected = match expected {
            "opc-status" => expected.to_owned(),
            value => format!("press-1/oil={value}"),
        };
        for key in ["StatusCode", "Status"] {
            let mut value = good(json!(61));
            value[key] = status.clone();
            assert_eq!(words(&read(&sample(value))), expected, "{key} {status}");
        }
    }
}

#[test]
fn a_bad_value_comes_without_one_and_is_a_fault_of_its_sensor() {
    let status = json!({ "Symbol": "BadNoCommunication", "Code": 2_150_694_912_u32 });
    let value = json!({ "StatusCode": status, "SourceTimestamp": TIME });
    let message = read(&sample(value));
    let [Item::Refused(refused)] = &message.items[..] else { panic!("{message:?}") };
    assert_eq!(refused.error.reason(), "bad-status");
    assert!(refused.error.is_sensor_fault());
    assert_eq!(refused.sensor.as_ref().map(SensorId::as_str), Some("press-1/oil"));
    assert!(refused.error.to_string().contains("BadNoCommunication"), "{}", refused.error);
    assert!(!refused.historical);
    // A status of the data set holds for its fields.
    let mut bad = data_set(&json!({ "Oil": 1, "Other": 2 }));
    bad["Status"] = json!(0x8000_0000_u32);
    assert_eq!(words(&read(&bad)), "press-1/oil-by-name=1 bad");
}

#[test]
fn the_event_time_is_the_sources_else_the_servers_else_the_messages() {
    let never = "1601-01-01T00:00:00Z";
    for (source, server, message, expected) in [
        (Some(TIME), Some("2026-03-01T08:15:31Z"), None, Some(TIME_MICROS)),
        (None, Some(TIME), Some("2026-03-01T08:15:31Z"), Some(TIME_MICROS)),
        (None, None, Some(TIME), Some(TIME_MICROS)),
        (Some(never), Some(TIME), None, Some(TIME_MICROS)),
        (Some("0001-01-01T00:00:00Z"), None, Some(TIME), Some(TIME_MICROS)),
        (Some("2026-03-01T09:15:30.123456+01:00"), None, None, Some(TIME_MICROS)),
        (None, None, None, None),
        (Some(never), None, None, None),
        (Some("yesterday"), Some(TIME), Some(TIME), None),
    ] {
        let value = json!({ "Value": 1, "SourceTimestamp": source, "ServerTimestamp": server });
        let mut sample = sample(value);
        sample["Timestamp"] = json!(message);
        let read = read(&sample);
        let found = match &read.items[..] {
            [Item::Reading(reading)] => Some(reading.timestamp.micros()),
            _ => None,
        };
        assert_eq!(found, expected, "{source:?} {server:?} {message:?}: {read:?}");
        if expected.is_none() {
            assert_eq!(words(&read), "timestamp");
        }
    }
}

#[test]
fn what_is_old_by_all_of_its_times_is_historical() {
    let now = EventTime::parse("2026-03-01T09:00:00Z").unwrap();
    for (source, server, expected) in [
        ("2026-03-01T08:59:30Z", None, false),
        ("2026-03-01T08:59:29.999999Z", None, true),
        // Unchanged since long ago, and sent again now.
        ("2026-03-01T07:00:00Z", Some("2026-03-01T08:59:59Z"), false),
        ("2026-03-01T07:00:00Z", Some("2026-03-01T07:00:01Z"), true),
        ("2026-03-01T09:30:00Z", None, false),
    ] {
        for (value, is_reading) in [(json!(1), true), (json!(null), false)] {
            let value =
                json!({ "Value": value, "SourceTimestamp": source, "ServerTimestamp": server });
            let message = json!({ "NodeId": OIL, "Value": value }).to_string();
            let read = decode(message.as_bytes(), &mapping(), &limits(), now);
            match &read.items[..] {
                [Item::Reading(reading)] if is_reading => {
                    assert_eq!(reading.historical, expected, "{source} {server:?}");
                }
                [Item::Refused(refused)] if !is_reading => {
                    assert_eq!(refused.historical, expected, "{source} {server:?}");
                }
                items => panic!("{items:?}"),
            }
        }
    }
}

#[test]
fn all_forms_of_one_value_are_the_same_reading() {
    let field = good(json!(61));
    let set = data_set(&json!({ "Oil": field, "Unknown": field }));
    let by_name = "press-1/oil-by-name=61 good";
    for message in [
        set.clone(),
        json!([set]),
        network(&set),
        network(&json!([set])),
        json!([network(&json!([set]))]),
    ] {
        let read = read(&message);
        assert_eq!(words(&read), by_name, "{message}");
        assert_eq!((read.unmapped, &read.unmapped_names[..]), (1, &["Unknown".to_owned()][..]));
    }
    let by_id = "press-1/oil=61 good";
    let samples = json!([sample(field.clone()), sample(field.clone())]);
    assert_eq!(words(&read(&samples)), format!("{by_id}, {by_id}"));
    // A field may be named by its id, too.
    assert_eq!(words(&read(&network(&json!([data_set(&json!({ OIL: field }))])))), by_id);
    let marked = format!("\u{feff}{}", sample(field));
    assert_eq!(words(&read_bytes(marked.as_bytes())), by_id, "with a byte order mark");
}

#[test]
fn the_narrowest_name_holds() {
    let field = good(json!(1));
    let mut other = sample(field.clone());
    other["EndpointUrl"] = json!("opc.tcp://plc-3:4840/");
    assert_eq!(words(&read(&other)), "press-3/oil=1 good");
    other["EndpointUrl"] = json!("opc.tcp://elsewhere/");
    other["ApplicationUri"] = json!("opc.tcp://plc-3:4840/");
    assert_eq!(words(&read(&other)), "press-3/oil=1 good");
    other["NodeId"] = json!("i=7");
    assert_eq!(words(&read(&other)), "press-1/oil-by-name=1 good", "by its display name");
    for key in ["DataSetWriterId", "DataSetWriterName"] {
        let mut set = data_set(&json!({ "Oil": field }));
        set[key] = json!("Press2");
        assert_eq!(words(&read(&network(&json!([set])))), "press-2/oil=1 good");
    }
}

#[test]
fn what_has_no_values_is_skipped_and_counted() {
    let kind = |word: &str| {
        let mut set = data_set(&json!({ "Oil": 1 }));
        set["MessageType"] = json!(word);
        set
    };
    let metadata = json!({
        "MessageId": "0", "MessageType": "ua-metadata", "DataSetWriterId": 1,
        "MetaData": { "Fields": [{ "Name": "Oil" }] },
    });
    let sets = ["ua-keepalive", "ua-event", "ua-condition", "ua-later", "ua-keyframe"].map(kind);
    let read = read(&json!([metadata, network(&json!(sets))]));
    assert_eq!(words(&read), "press-1/oil-by-name=1 good");
    let expected =
        [(Skipped::Metadata, 1), (Skipped::KeepAlive, 1), (Skipped::Event, 2), (Skipped::Other, 1)];
    assert_eq!(read.skipped, BTreeMap::from(expected));
}

#[test]
fn a_part_that_cannot_be_read_does_not_take_its_neighbours_with_it() {
    let fine = sample(good(json!(1)));
    let set = data_set(&json!([1]));
    let batch = json!([fine, 7, {}, { "NodeId": 5 }, network(&json!([set, null])), fine]);
    let read = read(&batch);
    let fine = "press-1/oil=1 good";
    let expected = format!("{fine}, json, opc-form, json, json, json, {fine}");
    assert_eq!(words(&read), expected);
    let raws = read.items.iter().filter_map(|item| match item {
        Item::Refused(refused) => Some(String::from_utf8(refused.raw.clone()).unwrap()),
        Item::Reading(_) => None,
    });
    assert_eq!(raws.take(3).collect::<Vec<_>>(), ["7", "{}", "{\"NodeId\":5}"]);
}

#[test]
fn each_limit_holds_at_it_and_not_above() {
    let fine = sample(good(json!(1)));
    let whole = fine.to_string();
    let mut tight = OpcLimits { payload_bytes_max: whole.len(), values_max: 2, ..limits() };
    let now = EventTime::from_micros(TIME_MICROS);
    let reason = |bytes: &[u8], limits: &OpcLimits| {
        words(&decode(bytes, &mapping(), limits, now)).split('=').next().unwrap().to_owned()
    };
    assert_eq!(reason(whole.as_bytes(), &tight), "press-1/oil");
    tight.payload_bytes_max -= 1;
    assert_eq!(reason(whole.as_bytes(), &tight), "too-large");
    tight.payload_bytes_max = 1 << 20;
    let batch = |count: usize| json!(vec![fine.clone(); count]).to_string();
    assert_eq!(reason(batch(2).as_bytes(), &tight), "press-1/oil");
    let over = decode(batch(3).as_bytes(), &mapping(), &tight, now);
    assert_eq!(words(&over), "too-many", "whole, or a part of it would be missing unnoticed");
    let fields = json!({ "a": 1, "b": 2, "c": 3 });
    assert_eq!(
        words(&decode(data_set(&fields).to_string().as_bytes(), &mapping(), &tight, now)),
        "too-many",
        "of nodes that nobody names, too"
    );
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(reason(nested(DEPTH_MAX).as_bytes(), &tight), "json");
    assert_eq!(reason(nested(DEPTH_MAX + 1).as_bytes(), &tight), "too-deep");
    let brackets = sample(good(json!("[\"".repeat(100)))).to_string();
    assert_eq!(reason(brackets.as_bytes(), &tight), "opc-type", "brackets in a text");
    assert_eq!(reason(b"", &tight), "empty");
    assert_eq!(reason(b" \n", &tight), "empty");
    assert_eq!(reason(&[0x1f, 0x8b, 8, 0], &tight), "compressed");
    assert_eq!(reason(&[b'{', 0xff], &tight), "json");
    assert_eq!(reason(b"{\"NodeId\":\"x\",\"Value\":NaN}", &tight), "json");
    let long = format!("[{}", "1,".repeat(DEAD_LETTER_RAW_BYTES_MAX));
    let read = decode(long.as_bytes(), &mapping(), &limits(), now);
    let [Item::Refused(refused)] = &read.items[..] else { panic!("{read:?}") };
    assert_eq!(refused.raw.len(), DEAD_LETTER_RAW_BYTES_MAX);
}

#[test]
fn names_of_nodes_that_nobody_maps_are_bounded() {
    let many = UNMAPPED_NAMES_MAX + 10;
    let fields: BTreeMap<String, i32> = (0..many).map(|it| (format!("node-{it}"), 1)).collect();
    let read = read(&data_set(&json!(fields)));
    assert_eq!((read.unmapped, read.unmapped_names.len()), (many as u64, UNMAPPED_NAMES_MAX));
    assert!(read.items.is_empty());
}

#[test]
fn a_mapping_with_faults_is_refused_with_all_of_them() {
    let mut unit = by_id("a", "s-1");
    unit.unit = Some("x".repeat(33).into());
    let mut writer = by_name("b", "s-2");
    writer.writer = Some(" ".to_owned());
    let nodes = vec![unit, writer, by_id("", "s-3"), by_id("a", "s-4"), by_name("a", "s-1")];
    let faults = Mapping::new(nodes).unwrap_err();
    let texts: Vec<String> =
        faults.iter().map(|(place, fault)| format!("{place}: {fault}")).collect();
    assert_eq!(
        texts,
        [
            "0: unit has 33 bytes, at most 32 are allowed",
            "1: writer is empty",
            "2: node or field is empty",
            "3: \"a\" is there twice for the same writer and server",
            "4: temperature of sensor s-1 is another node's already",
        ]
    );
}

/// Any JSON, rich in the names that the reader looks for.
fn any_json() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just(TIME.to_owned()),
        Just(OIL.to_owned()),
        Just("Oil".to_owned()),
        Just("ua-data".to_owned()),
        Just("ua-keyframe".to_owned()),
        Just("NaN".to_owned()),
        ".{0,8}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let key = prop_oneof![
        4 => prop::sample::select(vec![
            "NodeId", "Value", "SourceTimestamp", "ServerTimestamp", "StatusCode", "Status",
            "Timestamp", "Payload", "Messages", "MessageType", "DataSetWriterId", "DisplayName",
            "PublisherId", "EndpointUrl", "Type", "Body", "Code", "Symbol", "Oil", OIL,
        ])
        .prop_map(str::to_owned),
        1 => ".{0,6}",
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Messages as OPC Publisher sends them, with any JSON in the places of values.
fn any_message() -> impl Strategy<Value = Value> {
    prop_oneof![
        any_json(),
        any_json().prop_map(sample),
        any_json().prop_map(|value| sample(good(value))),
        any_json().prop_map(|value| data_set(&json!({ "Oil": value, OIL: 1 }))),
        any_json().prop_map(|value| network(&json!([data_set(&json!({ "Oil": value }))]))),
        any_json().prop_map(|messages| network(&messages)),
    ]
}

proptest! {
    #[test]
    fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let message = read_bytes(&bytes);
        if serde_json::from_slice::<Value>(&bytes).is_err() {
            prop_assert_eq!(message.items.len(), 1, "{:?}", message);
            prop_assert!(matches!(&message.items[0], Item::Refused(_)), "{:?}", message);
        }
    }

    #[test]
    fn a_batch_says_what_its_parts_say_alone(
        messages in prop::collection::vec(any_message(), 0..5),
    ) {
        // An array among them is a batch itself, not a part of one.
        let parts: Vec<&Value> = messages.iter().filter(|it| !it.is_array()).collect();
        let batch = read(&json!(parts));
        let mut alone = OpcMessage::default();
        for part in &parts {
            let read = read(part);
            alone.items.extend(read.items);
            alone.unmapped += read.unmapped;
            for (what, count) in read.skipped {
                *alone.skipped.entry(what).or_default() += count;
            }
        }
        prop_assert_eq!(batch.items, alone.items);
        prop_assert_eq!(batch.unmapped, alone.unmapped);
        prop_assert_eq!(batch.skipped, alone.skipped);
    }

    #[test]
    fn readings_are_finite_and_in_the_calendar(message in any_message()) {
        for item in read(&message).items {
            match item {
                Item::Reading(reading) => {
                    prop_assert!(reading.value.is_finite());
                    prop_assert!(reading.timestamp.is_in_rfc_3339());
                    prop_assert!(reading.quality.is_some());
                }
                Item::Refused(refused) => {
                    prop_assert!(!refused.error.reason().is_empty());
                    prop_assert!(!refused.error.is_sensor_fault() || refused.sensor.is_some());
                }
            }
        }
    }

    #[test]
    fn any_code_has_the_quality_of_its_top_bits(code in any::<u32>(), value in any::<i32>()) {
        let mut field = good(json!(value));
        field["StatusCode"] = json!(code);
        let read = read(&sample(field));
        let [Item::Reading(reading)] = &read.items[..] else {
            return Err(TestCaseError::fail(format!("{read:?}")));
        };
        let expected = [Quality::Good, Quality::Uncertain, Quality::Bad, Quality::Bad];
        prop_assert_eq!(reading.quality, Some(expected[(code >> 30) as usize]));
        prop_assert_eq!(reading.value, f64::from(value));
    }
}
