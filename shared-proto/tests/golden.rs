//! Yesterday's bytes still decode, and today's encoder still writes them: one file for each record and encoding.
//!
//! A change of these files is a change of the contract: readers in the field have to be asked first.
//! `UPDATE_GOLDEN=1 cargo test -p shared-proto --test golden` writes them anew.

use std::collections::BTreeMap;
use std::path::PathBuf;

use shared_proto::Encoding;
use shared_proto::codec::{
    decode_dead_letter, decode_machine_event, decode_outcome, decode_reading,
    decode_waveform_block, decode_waveform_snapshot, encode_dead_letter, encode_machine_event,
    encode_outcome, encode_reading, encode_waveform_block, encode_waveform_snapshot,
};
use shared_proto::model::{
    AlertId, DeadLetter, DeviceId, EventTime, Generation, Identity, MachineEvent,
    MachineEventDetails, MachineEventType, MachineId, MetricType, Note, Outcome, OutcomeId,
    OutcomeVerdict, PartName, Quality, Reading, Reporter, SensorId, Sequence, TicketId, TripId,
    WaveformBlock, WaveformSnapshot,
};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn check(name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = file(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, encoded).expect("golden file written");
    }
    let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(encoded, golden, "{name} is written differently than before");
    golden
}

fn time() -> EventTime {
    EventTime::parse("2026-03-01T08:15:30.123456Z").expect("valid")
}

fn identity(sequence: u64) -> Option<Identity> {
    Some(Identity {
        device_id: DeviceId::new("gw-07").expect("valid"),
        generation: Generation(1_772_352_000_000_000),
        sequence: Sequence(sequence),
    })
}

fn reading() -> Reading {
    let mut reading = Reading::new(
        SensorId::new("press-1/spindle").expect("valid"),
        time(),
        MetricType::new("vibration").expect("valid"),
        3.72,
    );
    reading.machine_id = Some(MachineId::new("press-1").expect("valid"));
    reading.unit = Some("mm/s".into());
    reading.quality = Some(Quality::Uncertain);
    reading.identity = identity(42);
    reading.historical = true;
    reading.features = BTreeMap::from([("rms".to_owned(), 3.72), ("score".to_owned(), 0.25)]);
    reading
}

#[test]
fn full_reading() {
    let reading = reading();
    for (name, encoding) in [("reading.json", Encoding::Json), ("reading.bin", Encoding::Protobuf)]
    {
        let golden = check(name, &encode_reading(&reading, encoding));
        assert_eq!(decode_reading(&golden, encoding).expect("readable").reading, reading);
    }
}

#[test]
fn machine_event() {
    let event = MachineEvent {
        event_type: MachineEventType::Trip,
        machine_id: MachineId::new("press-1").expect("valid"),
        timestamp: time(),
        identity: identity(43),
        historical: false,
        details: MachineEventDetails {
            cause: Some("limit".to_owned()),
            rule: Some("vibration-zone-d".to_owned()),
            sensor_id: Some(SensorId::new("press-1/spindle").expect("valid")),
            metric_type: Some(MetricType::new("vibration").expect("valid")),
            value: Some(1.25),
            limit: Some(0.96),
            score: Some(0.5),
            model: Some("motor@1.0.0".to_owned()),
            command_latency_micros: Some(412),
            confirmation_latency_micros: Some(981_000),
            first_sequence: Some(1),
            last_sequence: Some(2),
            record_count: Some(2),
            detail: Some("trip press-1-1".to_owned()),
            ..MachineEventDetails::default()
        },
    };
    for (name, encoding) in
        [("machine_event.json", Encoding::Json), ("machine_event.bin", Encoding::Protobuf)]
    {
        let golden = check(name, &encode_machine_event(&event, encoding));
        assert_eq!(decode_machine_event(&golden, encoding).expect("readable"), event);
    }
}

#[test]
fn machine_event_of_a_person() {
    let event = MachineEvent {
        event_type: MachineEventType::Shelved,
        machine_id: MachineId::new("press-1").expect("valid"),
        timestamp: time(),
        identity: identity(45),
        historical: false,
        details: MachineEventDetails {
            rule: Some("vibration-zone-d".to_owned()),
            rule_version: Some("0123456789ab".to_owned()),
            trip_id: Some("press-1-1772352930123456-1".to_owned()),
            operator: Some("J. Doe".to_owned()),
            ..MachineEventDetails::default()
        },
    };
    for (name, encoding) in [
        ("machine_event_of_a_person.json", Encoding::Json),
        ("machine_event_of_a_person.bin", Encoding::Protobuf),
    ] {
        let golden = check(name, &encode_machine_event(&event, encoding));
        assert_eq!(decode_machine_event(&golden, encoding).expect("readable"), event);
    }
}

#[test]
fn machine_event_of_a_score() {
    let event = MachineEvent {
        event_type: MachineEventType::Trip,
        machine_id: MachineId::new("press-1").expect("valid"),
        timestamp: time(),
        identity: identity(46),
        historical: false,
        details: MachineEventDetails {
            cause: Some("score".to_owned()),
            score: Some(0.9975),
            contributions: Some("band-06=2.10,band-07=-0.80".to_owned()),
            ..MachineEventDetails::default()
        },
    };
    for (name, encoding) in [
        ("machine_event_of_a_score.json", Encoding::Json),
        ("machine_event_of_a_score.bin", Encoding::Protobuf),
    ] {
        let golden = check(name, &encode_machine_event(&event, encoding));
        assert_eq!(decode_machine_event(&golden, encoding).expect("readable"), event);
    }
}

#[test]
fn ledger() {
    let event = MachineEvent {
        event_type: MachineEventType::Ledger,
        machine_id: MachineId::new("gw-07").expect("valid"),
        timestamp: time(),
        identity: identity(1205),
        historical: false,
        details: MachineEventDetails {
            first_sequence: Some(1),
            last_sequence: Some(1204),
            record_count: Some(1204),
            delivered_sequence: Some(1100),
            waveform_sequences: Some("5-9,12".to_owned()),
            ..MachineEventDetails::default()
        },
    };
    for (name, encoding) in [("ledger.json", Encoding::Json), ("ledger.bin", Encoding::Protobuf)] {
        let golden = check(name, &encode_machine_event(&event, encoding));
        assert_eq!(decode_machine_event(&golden, encoding).expect("readable"), event);
    }
}

#[test]
fn dead_letter() {
    let mut letter =
        DeadLetter::new("json", "not a record".to_owned(), "t", time(), b"{\"x\":\xff");
    letter.identity = identity(44);
    for (name, encoding) in
        [("dead_letter.json", Encoding::Json), ("dead_letter.bin", Encoding::Protobuf)]
    {
        let golden = check(name, &encode_dead_letter(&letter, encoding));
        assert_eq!(decode_dead_letter(&golden, encoding).expect("readable"), letter);
    }
}

#[test]
fn waveform_block() {
    let block = WaveformBlock {
        machine_id: MachineId::new("press-1").expect("valid"),
        sensor_id: SensorId::new("press-1/spindle").expect("valid"),
        first_sample: time(),
        sample_rate_hz: 20_000.0,
        unit: Some("V".into()),
        samples: vec![0.5, -0.25, 0.125],
    };
    let golden = check("waveform_block.bin", &encode_waveform_block(&block));
    assert_eq!(decode_waveform_block(&golden, Encoding::Protobuf).expect("readable"), block);
}

#[test]
fn waveform_snapshot() {
    let scale = 0.25;
    let snapshot = WaveformSnapshot {
        block: WaveformBlock {
            machine_id: MachineId::new("press-1").expect("valid"),
            sensor_id: SensorId::new("press-1/spindle").expect("valid"),
            first_sample: time(),
            sample_rate_hz: 20_000.0,
            unit: Some("V".into()),
            samples: vec![0.5, -0.25, 0.75],
        },
        scale: Some(scale),
        trip_id: "press-1-1772352930123456-1".to_owned(),
        piece: 2,
        identity: identity(46),
    };
    let golden = check("waveform_snapshot.bin", &encode_waveform_snapshot(&snapshot));
    assert_eq!(decode_waveform_snapshot(&golden).expect("readable"), snapshot);
}

#[test]
fn outcome() {
    let outcome = Outcome {
        alert_id: Some(AlertId::new(&"0123456789abcdef".repeat(4)).expect("valid")),
        trip_id: Some(TripId::new("press-1-1772352930123456-1").expect("valid")),
        sensor_id: Some(SensorId::new("press-1/spindle").expect("valid")),
        ticket_id: Some(TicketId::new("4711").expect("valid")),
        part: Some(PartName::new("bearing 6205 drive end").expect("valid")),
        note: Some(Note::new("inner race worn\nnext: the other end").expect("valid")),
        reported_by: Some(Reporter::new("Kim").expect("valid")),
        ..short_outcome(OutcomeVerdict::PartReplaced)
    };
    let golden = [("outcome.json", Encoding::Json), ("outcome.bin", Encoding::Protobuf)];
    for (name, encoding) in golden {
        let golden = check(name, &encode_outcome(&outcome, encoding));
        assert_eq!(decode_outcome(&golden, encoding).expect("readable"), outcome);
    }
}

#[test]
fn outcome_with_the_required_fields_only() {
    for verdict in OutcomeVerdict::ALL {
        let outcome = short_outcome(verdict);
        for (ending, encoding) in [("json", Encoding::Json), ("bin", Encoding::Protobuf)] {
            let name = format!("outcome_{}.{ending}", verdict.as_str().replace('-', "_"));
            let golden = check(&name, &encode_outcome(&outcome, encoding));
            assert_eq!(decode_outcome(&golden, encoding).expect("readable"), outcome);
        }
    }
}

fn short_outcome(verdict: OutcomeVerdict) -> Outcome {
    let id = OutcomeId::new("ticket-4711").expect("valid");
    Outcome::new(id, verdict, MachineId::new("press-1").expect("valid"), time())
}
