//! The raw samples around a trip, read back from Apache Kafka with the generated types alone.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e_tests::eventually::eventually;
use e2e_tests::http::metric;
use e2e_tests::machine::{FakeMachine, Obedience};
use e2e_tests::publisher::{Publisher, paced, reading_json};
use e2e_tests::recordings::{
    MOTOR_SAMPLE_RATE_HZ, MOTOR_VOLTS_PER_COUNT, data_dir, motor_recordings, tell_simulated,
};
use e2e_tests::signal::{MotorProfile, MotorSignal};
use prost::Message as _;
use rdkafka::message::{Headers as _, Message as _, OwnedMessage};
use shared_proto::model::EventTime;
use shared_proto::wire::v1;

use crate::plant::{DEADLINE, Plant, kafka, now};

const BLOCK_SAMPLES: usize = 500;
const BLOCK_INTERVAL: Duration = Duration::from_millis(25);
const BEFORE_SAMPLES: usize = 40_000;
const AFTER_SAMPLES: usize = 20_000;
/// The block before which the machine gets hot: 3.5 s from the start.
const HOT_AT_BLOCK: usize = 140;
/// A journal record.
const PIECE_BYTES_MAX: usize = 120 * 1024;
const MACHINES: &str = r#"
[[machines]]
id = "motor-1"
limits = [{ name = "winding-hot", sensor = "motor-1/winding", quantity = "value", above = 120.0 }]
[[machines]]
id = "press-1"
limits = [{ name = "oil-hot", sensor = "press-1/oil", quantity = "value", above = 120.0 }]
[waveforms]
before = "2s"
after = "1s"
"#;

/// Six seconds of counts: three recordings, or the same simulated.
fn counts(scenario: &str) -> anyhow::Result<Vec<i16>> {
    if let Some(dir) = data_dir()? {
        let recordings = motor_recordings(&dir)?;
        return Ok(recordings
            .iter()
            .take(3)
            .flat_map(|recording| recording.counts[2].clone())
            .collect());
    }
    tell_simulated(scenario);
    let mut signal = MotorSignal::new(MotorProfile::healthy_1800_rpm(), 1);
    let volts = signal.next_samples(120_000);
    Ok(volts.into_iter().map(|volts| (f64::from(volts) / MOTOR_VOLTS_PER_COUNT) as i16).collect())
}

fn block(start: EventTime, index: usize, counts: &[i16]) -> Vec<u8> {
    let offset = (index * BLOCK_SAMPLES) as f64 / MOTOR_SAMPLE_RATE_HZ * 1e6;
    v1::WaveformBlock {
        machine_id: "motor-1".to_owned(),
        sensor_id: "motor-1/bearing".to_owned(),
        first_sample_micros: Some(start.micros() + offset.round() as i64),
        sample_rate_hz: MOTOR_SAMPLE_RATE_HZ,
        scale: Some(MOTOR_VOLTS_PER_COUNT),
        unit: "V".to_owned(),
        samples: Some(v1::waveform_block::Samples::SamplesI16(
            counts.iter().flat_map(|count| count.to_le_bytes()).collect(),
        )),
        ..v1::WaveformBlock::default()
    }
    .encode_to_vec()
}

/// Plays blocks at the pace of the machine. Both machines get hot on the way, one of them without waveform sensors.
fn play(port: u16, start: EventTime, counts: &[i16], blocks: usize) -> anyhow::Result<()> {
    let mut publisher = Publisher::connect(port, "sensors");
    paced(
        counts.chunks(BLOCK_SAMPLES).take(blocks).enumerate(),
        BLOCK_INTERVAL,
        |(index, chunk)| {
            if index == HOT_AT_BLOCK {
                for (machine, sensor) in
                    [("motor-1", "motor-1/winding"), ("press-1", "press-1/oil")]
                {
                    let hot = reading_json(machine, sensor, "temperature", now(), 121.0);
                    publisher.publish(&format!("plant/{machine}/readings"), hot)?;
                }
            }
            publisher.publish("plant/motor-1/waveform", block(start, index, chunk))
        },
    )?;
    publisher.wait_acknowledged(DEADLINE)
}

/// Samples of all pieces in order, after checking that each piece is what it should be and follows the one before it.
/// Gives the place of the first sample in the recording, too.
fn samples_of(
    pieces: &[OwnedMessage],
    start: EventTime,
    trip_id: &str,
    device_id: &str,
) -> anyhow::Result<(usize, Vec<i16>)> {
    let mut decoded = Vec::new();
    for piece in pieces {
        let payload = piece.payload().context("empty")?;
        ensure!(payload.len() <= PIECE_BYTES_MAX, "{} bytes", payload.len());
        ensure!(piece.key() == Some(b"motor-1"), "key {:?}", piece.key());
        let header = piece.headers().context("no headers")?.get(0);
        ensure!(header.key == "content-type", "{header:?}");
        ensure!(header.value == Some(b"application/x-protobuf"), "{header:?}");
        decoded.push(v1::WaveformBlock::decode(payload)?);
    }
    decoded.sort_by_key(|piece| piece.piece);
    let place = |micros: i64| {
        ((micros - start.micros()) as f64 * MOTOR_SAMPLE_RATE_HZ / 1e6).round() as usize
    };
    let first = decoded.first().and_then(|piece| piece.first_sample_micros).context("no piece")?;
    let (mut samples, mut sequence) = (Vec::new(), 0);
    for (piece, number) in decoded.iter().zip(1..) {
        ensure!(piece.piece == Some(number), "piece {:?} instead of {number}", piece.piece);
        ensure!(piece.trip_id == trip_id, "{} instead of {trip_id}", piece.trip_id);
        ensure!(piece.device_id == device_id && piece.generation.is_some(), "{piece:?}");
        ensure!(piece.sequence > Some(sequence), "sequence {:?}", piece.sequence);
        sequence = piece.sequence.unwrap_or_default();
        ensure!(piece.sensor_id == "motor-1/bearing" && piece.unit == "V");
        ensure!(piece.sample_rate_hz == MOTOR_SAMPLE_RATE_HZ);
        ensure!(piece.scale == Some(MOTOR_VOLTS_PER_COUNT), "counts stay counts");
        let at = place(piece.first_sample_micros.context("no time")?);
        ensure!(at == place(first) + samples.len(), "a gap at {at}");
        let Some(v1::waveform_block::Samples::SamplesI16(bytes)) = &piece.samples else {
            anyhow::bail!("no counts");
        };
        samples.extend(bytes.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])));
    }
    Ok((place(first), samples))
}

fn trip_of(machine: &FakeMachine) -> anyhow::Result<String> {
    eventually("a stop is ordered", DEADLINE, || {
        let commands = machine.commands();
        let trip = commands.first().and_then(|command| command.payload["trip_id"].as_str());
        trip.map(str::to_owned).context("no command")
    })
}

#[test]
fn the_samples_around_a_trip_are_on_kafka_as_they_were_measured() -> anyhow::Result<()> {
    let name = "waveforms";
    let mut plant = Plant::new(name)?;
    plant.edge_settings.machines = MACHINES.to_owned();
    let port = plant.mosquitto.port();
    let obedience = Obedience::SpinsDown(Duration::ZERO);
    let motor = FakeMachine::start(port, "motor-1", obedience)?;
    let press = FakeMachine::start(port, "press-1", obedience)?;
    let edge = plant.start_edge_module()?;
    let counts = counts(name)?;
    let start = now();
    play(port, start, &counts, counts.len() / BLOCK_SAMPLES)?;
    let trip_id = trip_of(&motor)?;
    trip_of(&press)?;
    let device_id = plant.edge_settings.device_id.clone();
    let (first, samples) = eventually("all samples around the trip", DEADLINE, || {
        let pieces = kafka()?.read_all(&plant.topic("waveforms"))?;
        let found = samples_of(&pieces, start, &trip_id, &device_id)?;
        ensure!(found.1.len() >= BEFORE_SAMPLES + AFTER_SAMPLES, "{} samples", found.1.len());
        anyhow::Ok(found)
    })?;
    assert_eq!(samples.len(), BEFORE_SAMPLES + AFTER_SAMPLES, "bounded");
    assert_eq!(samples, counts[first..first + samples.len()], "bit for bit");
    let trip = first + BEFORE_SAMPLES;
    let expected = HOT_AT_BLOCK * BLOCK_SAMPLES;
    assert!(trip.abs_diff(expected) <= 10_000, "cut around {trip}, the trip was at {expected}");
    let metrics = edge.metrics()?;
    assert_eq!(metric(&metrics, "waveform_samples_cut_total", ""), Some(0.0));
    let ring = metric(&metrics, "edge_in_use", "waveforms.bytes-max").context("no gauge")?;
    assert!((80_000.0..200_000.0).contains(&ring), "{ring} bytes hold two seconds of counts");
    Ok(())
}

#[test]
fn what_was_before_a_trip_survives_a_crash_right_after_it() -> anyhow::Result<()> {
    let name = "waveforms-crash";
    let mut plant = Plant::new(name)?;
    plant.edge_settings.machines = MACHINES.to_owned();
    // Kafka is away until the module has crashed: only the journal knows the samples.
    let link = kafka()?.take_link()?;
    plant.edge_settings.kafka_bootstrap = format!("127.0.0.1:{}", link.port());
    let port = plant.mosquitto.port();
    let motor = FakeMachine::start(port, "motor-1", Obedience::SpinsDown(Duration::ZERO))?;
    let mut edge = plant.start_edge_module()?;
    link.cut();
    let counts = counts(name)?;
    let start = now();
    play(port, start, &counts, HOT_AT_BLOCK + 2)?;
    let trip_id = trip_of(&motor)?;
    eventually("the samples before are durable", DEADLINE, || {
        let durable = metric(&edge.metrics()?, "journal_records_total", "lane=\"waveforms\"");
        ensure!(durable >= Some(2.0), "{durable:?} pieces");
        Ok(())
    })?;
    edge.process().kill()?;
    link.mend();
    edge.restart()?;
    let device_id = plant.edge_settings.device_id.clone();
    let (first, samples) = eventually("the samples before the trip", DEADLINE, || {
        let pieces = kafka()?.read_all(&plant.topic("waveforms"))?;
        let found = samples_of(&pieces, start, &trip_id, &device_id)?;
        ensure!(found.1.len() >= BEFORE_SAMPLES, "{} samples", found.1.len());
        anyhow::Ok(found)
    })?;
    assert_eq!(samples, counts[first..first + samples.len()]);
    Ok(())
}
