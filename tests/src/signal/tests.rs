use edge_core::features::FeatureExtractor;
use realfft::RealFftPlanner;

use super::*;

fn rms(samples: &[f32]) -> f64 {
    let sum: f64 = samples.iter().map(|&sample| f64::from(sample).powi(2)).sum();
    (sum / samples.len() as f64).sqrt()
}

fn kurtosis(samples: &[f32]) -> f64 {
    let fourth: f64 = samples.iter().map(|&sample| f64::from(sample).powi(4)).sum();
    fourth / samples.len() as f64 / rms(samples).powi(4)
}

/// RMS of what lies between two frequencies, by one transform over all samples.
fn band_rms(samples: &[f32], low_hz: f64, high_hz: f64) -> f64 {
    let mut input: Vec<f64> = samples.iter().map(|&sample| f64::from(sample)).collect();
    let mut spectrum = vec![Complex::default(); samples.len() / 2 + 1];
    RealFftPlanner::new()
        .plan_fft_forward(samples.len())
        .process(&mut input, &mut spectrum)
        .unwrap();
    let bin_hz = SAMPLE_RATE_HZ / samples.len() as f64;
    let power: f64 = spectrum
        .iter()
        .enumerate()
        .filter(|(bin, _)| (low_hz..high_hz).contains(&(*bin as f64 * bin_hz)))
        .map(|(_, value)| 2.0 * value.norm_sqr())
        .sum();
    power.sqrt() / samples.len() as f64
}

fn motor(seed: u64) -> MotorSignal {
    MotorSignal::new(MotorProfile::healthy_1800_rpm(), seed)
}

#[test]
fn same_seed_gives_same_signal_and_another_seed_another() {
    assert_eq!(motor(7).next_samples(20_000), motor(7).next_samples(20_000));
    assert_ne!(motor(7).next_samples(100), motor(8).next_samples(100));
}

#[test]
fn signal_does_not_depend_on_the_length_of_blocks() {
    let mut pieces = Vec::new();
    let mut motor_in_pieces = motor(3);
    for length in [1, 2_047, 4_096, 5_000] {
        pieces.extend(motor_in_pieces.next_samples(length));
    }
    assert_eq!(pieces, motor(3).next_samples(pieces.len()));
}

#[test]
fn healthy_motor_has_the_levels_of_the_rig() {
    let samples = motor(1).next_samples(200_000);
    // The two recordings have 8.04 and 8.59 mV; their kurtosis is 3.3 and 3.2.
    assert!((7.5e-3..9.0e-3).contains(&rms(&samples)), "rms {}", rms(&samples));
    assert!((2.7..3.4).contains(&kurtosis(&samples)), "kurtosis {}", kurtosis(&samples));
    let profile = MotorProfile::healthy_1800_rpm();
    // Below, the harmonics add to the noise.
    for band in 12..NOISE_BANDS {
        let low = NOISE_LOWEST_HZ * 10_f64.powf(band as f64 / 10.0);
        let found = band_rms(&samples, low, low * 10_f64.powf(0.1));
        let wanted = profile.noise[band];
        assert!((found / wanted - 1.0).abs() < 0.12, "{low} Hz: {found} for {wanted}");
    }
    let shaft = band_rms(&samples, 59.5, 60.5);
    assert!((shaft - 1.9e-3 / 2_f64.sqrt()).abs() < 0.05e-3, "2x {shaft}");
}

#[test]
fn growing_defect_raises_rms_and_kurtosis() {
    let mut levels = Vec::new();
    for severity in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let mut motor = motor(5);
        motor.set_severity(severity);
        let samples = motor.next_samples(40_000);
        levels.push((rms(&samples), kurtosis(&samples)));
    }
    assert!(levels.is_sorted_by(|earlier, later| earlier.0 < later.0), "{levels:?}");
    // The rig's recordings with a heavily damaged race: 37 and 58 mV, kurtosis 5 and 8.
    assert!((35e-3..60e-3).contains(&levels[4].0), "{levels:?}");
    assert!((5.0..15.0).contains(&levels[4].1), "{levels:?}");
}

#[test]
fn defect_hits_at_the_ball_pass_frequency() {
    let passes = MotorProfile::healthy_1800_rpm().bearing.outer_race_passes_per_turn();
    assert!((passes - 3.05).abs() < 0.01, "{passes}");
    let mut motor = motor(9);
    motor.set_severity(1.0);
    let envelope: Vec<f32> =
        motor.next_samples(200_000).iter().map(|sample| sample.abs()).collect();
    let at_passes = band_rms(&envelope, passes * 30.0 - 1.5, passes * 30.0 + 1.5);
    let beside = band_rms(&envelope, passes * 30.0 + 10.0, passes * 30.0 + 13.0);
    assert!(at_passes > 5.0 * beside, "{at_passes} and beside it {beside}");
}

#[test]
fn standstill_leaves_the_noise_of_the_sensor() {
    let mut motor = motor(2);
    motor.set_severity(1.0);
    motor.set_speed(0.0);
    let samples = motor.next_samples(20_000);
    assert!((rms(&samples) / 0.2e-3 - 1.0).abs() < 0.05, "rms {}", rms(&samples));
}

#[test]
fn slow_signal_follows_its_level_and_wanders_little() {
    let mut temperature = SlowSignal::new(60.0, 1.0, 0.5, 0.05, 4);
    for _ in 0..1_000 {
        assert!((temperature.next_value(0.2) - 60.0).abs() < 3.0);
    }
    temperature.set_level(110.0);
    assert!(temperature.next_value(0.2) < 75.0);
    let after_ten_seconds = (0..50).map(|_| temperature.next_value(0.2)).last().unwrap();
    assert!((after_ten_seconds - 110.0).abs() < 3.0, "{after_ten_seconds}");
}

/// The model's own description of a healthy window at this speed.
#[test]
fn healthy_motor_looks_healthy_to_the_bundle() {
    let bundle = crate::workspace_root().join("edge-module/model/bundles/motor-v1/bundle.json");
    let bundle: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bundle).unwrap()).unwrap();
    let edges: Vec<f64> =
        serde_json::from_value(bundle["features"]["band-edges-hz"].clone()).unwrap();
    let window = usize::try_from(bundle["input"]["window-samples"].as_u64().unwrap()).unwrap();
    let reference = &bundle["healthy-reference"]["1800-rpm"];
    let mut extractor = FeatureExtractor::new(window, SAMPLE_RATE_HZ, &edges).unwrap();
    let mut sums = std::collections::BTreeMap::new();
    let samples = motor(11).next_samples(100 * window);
    for samples in samples.chunks(window) {
        for (name, value) in extractor.extract(samples).unwrap().iter() {
            *sums.entry(name.to_string()).or_insert(0.0) += value / 100.0;
        }
    }
    for (name, mean) in reference["mean"].as_object().unwrap() {
        let deviation = reference["deviation"][name].as_f64().unwrap();
        let off = (sums[name] - mean.as_f64().unwrap()) / deviation;
        assert!(off.abs() < 1.0, "{name}: {} is {off} deviations off {mean}", sums[name]);
    }
}
