//! Sensor faults on real recordings from `DATA_DIR` (default: `../shared/data` beside the checkout): no false alarm on
//! a sensor that works, a fault on the same recording when it is cut, clipped or held.
//!
//! `femto/bearing1_1.npy`: blocks of 2,560 samples at 25.6 kHz, two channels of 16 bit, g = value * 0.0016, from an
//! accelerometer of 50 g that stands still near 48.1 g.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use edge_core::condition::{
    Condition, ConditionSettings, FrozenRule, MeasuringRange, RateRule, SaturationRule,
    SensorFaultKind,
};
use edge_core::interlock::Moment;
use shared_proto::model::{EventTime, MachineId, SensorId, WaveformBlock};

const RATE_HZ: f64 = 25_600.0;
const BLOCK_SAMPLES: usize = 2_560;
const HEADER_BYTES: usize = 128;
const G_PER_COUNT: f32 = 0.0016;

/// Horizontal acceleration in g, a row a block; none without the recordings.
fn blocks() -> Option<Vec<Vec<f32>>> {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data"));
    let folder = std::env::var_os("DATA_DIR").map_or(beside, PathBuf::from);
    let path = folder.join("femto/bearing1_1.npy");
    let Ok(bytes) = std::fs::read(&path) else {
        assert!(std::env::var("CI").is_err(), "no recordings in {}", folder.display());
        return None;
    };
    let counts: Vec<f32> = bytes[HEADER_BYTES..]
        .chunks_exact(4)
        .map(|both| f32::from(i16::from_le_bytes([both[0], both[1]])) * G_PER_COUNT)
        .collect();
    Some(counts.chunks_exact(BLOCK_SAMPLES).map(<[f32]>::to_vec).collect())
}

fn accelerometer() -> ConditionSettings {
    ConditionSettings {
        range: Some(MeasuringRange { min: -52.5, max: 52.5 }),
        frozen: Some(FrozenRule { after: Duration::from_secs(1), tolerance: 0.01 }),
        saturation: Some(SaturationRule { share: 0.01, full_scale: Some(48.0) }),
        rate: Some(RateRule { hz: RATE_HZ, tolerance: 0.01 }),
        missing_share_max: Some(0.05),
        clock_drift_max: Some(Duration::from_secs(1)),
        recovers_after: Duration::ZERO,
    }
}

/// Plays blocks one after the other without a gap; gives each fault that was raised and how often.
#[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
fn faults(blocks: impl Iterator<Item = Vec<f32>>) -> Vec<(SensorFaultKind, usize)> {
    let mut condition = Condition::new(accelerometer());
    let mut now = Moment { instant: Instant::now(), time: EventTime::from_micros(0) };
    let mut changes = Vec::new();
    for samples in blocks {
        let block = WaveformBlock {
            machine_id: MachineId::new("rig").expect("a name"),
            sensor_id: SensorId::new("rig/bearing").expect("a name"),
            first_sample: now.time,
            sample_rate_hz: RATE_HZ,
            unit: None,
            samples,
        };
        now.instant += Duration::from_millis(100);
        now.time = now.time.saturating_add_micros(100_000);
        condition.handle_block(&block, now, &mut changes);
    }
    let raised =
        |kind| changes.iter().filter(move |change| change.is_present && change.kind == kind);
    SensorFaultKind::ALL
        .into_iter()
        .map(|kind| (kind, raised(kind).count()))
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[test]
fn working_accelerometer_is_never_at_fault_until_its_bearing_is_gone() {
    let Some(blocks) = blocks() else { return };
    // The last minute, in which the rig was stopped at 20 g and more, may clip.
    let (healthy, _) = blocks.split_at(blocks.len() / 2);
    assert!(healthy.len() > 100, "{} blocks", healthy.len());
    assert_eq!(faults(healthy.iter().cloned()), vec![]);
}

#[test]
fn held_clipped_and_amplified_recordings_are_faults() {
    let Some(blocks) = blocks() else { return };
    let healthy = || blocks[..100].iter().cloned();
    let held = std::iter::repeat_n(vec![blocks[0][0]; BLOCK_SAMPLES], 100);
    assert_eq!(faults(held), vec![(SensorFaultKind::Frozen, 1)]);
    // Too high a gain: the peaks stand at the full scale.
    let clipped = healthy().map(|block| {
        let peak = block.iter().fold(0.0_f32, |peak, sample| peak.max(sample.abs()));
        block.iter().map(|sample| (sample * 480.0 / peak).clamp(-48.1, 48.1)).collect()
    });
    assert_eq!(faults(clipped), vec![(SensorFaultKind::Saturated, 1)]);
    let beyond = healthy().map(|block| block.iter().map(|sample| sample * 1000.0).collect());
    let raised = faults(beyond);
    assert!(raised.iter().any(|(kind, _)| *kind == SensorFaultKind::OutOfRange), "{raised:?}");
}
