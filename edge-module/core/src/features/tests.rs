use std::f64::consts::{PI, SQRT_2};

use proptest::prelude::*;

use super::*;

const RATE_HZ: f64 = 20_000.0;

fn extractor(window_samples: usize, band_edges_hz: &[f64]) -> FeatureExtractor {
    FeatureExtractor::new(window_samples, RATE_HZ, band_edges_hz).unwrap()
}

fn sine(samples: usize, cycles: f64, amplitude: f64, offset: f64) -> Vec<f32> {
    (0..samples)
        .map(|index| {
            let phase = 2.0 * PI * cycles * index as f64 / samples as f64;
            (offset + amplitude * phase.sin()) as f32
        })
        .collect()
}

fn assert_close(found: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((found - expected).abs() <= tolerance, "{what}: {found}, expected {expected}");
}

#[test]
fn sine_has_the_textbook_answers_and_its_energy_in_its_band() {
    // 64 cycles of 2048 samples at 20 kHz: 625 Hz.
    let mut extractor = extractor(2048, &[100.0, 500.0, 800.0, 10_000.5]);
    let features = extractor.extract(&sine(2048, 64.0, 0.5, 0.9)).unwrap();
    assert_close(features.mean, 0.9, 1e-6, "mean");
    assert_close(features.rms, 0.5 / SQRT_2, 1e-6, "rms");
    assert_close(features.peak, 0.5, 1e-6, "peak");
    assert_close(features.crest_factor, SQRT_2, 1e-6, "crest factor");
    assert_close(features.kurtosis, 1.5, 1e-6, "kurtosis");
    // All of its mean square, 0.125, lies in the second band.
    assert_close(features.band_energies_ln[1], 0.125_f64.ln(), 1e-5, "band 1");
    assert!(features.band_energies_ln[0] < -25.0, "{features:?}");
    assert!(features.band_energies_ln[2] < -25.0, "{features:?}");
}

#[test]
fn flat_windows_have_defined_answers() {
    let mut extractor = extractor(1000, &[100.0, 1_000.0, 5_000.0]);
    for level in [0.0_f32, 0.9, -3.0e30, f32::MIN_POSITIVE] {
        let features = extractor.extract(&[level; 1000]).unwrap();
        assert_eq!(features.mean, f64::from(level));
        assert_eq!(
            (features.rms, features.peak, features.crest_factor, features.kurtosis),
            (0.0, 0.0, 0.0, 0.0),
            "level {level}"
        );
        for energy_ln in &features.band_energies_ln {
            assert_close(*energy_ln, BAND_ENERGY_EPSILON.ln(), 1e-9, "flat band");
        }
    }
}

#[test]
fn flat_window_after_a_loud_one_keeps_nothing_of_it() {
    let mut used = extractor(256, &[100.0, 9_000.0]);
    used.extract(&sine(256, 8.0, 1.0, 0.0)).unwrap();
    let after = used.extract(&[0.5; 256]).unwrap().clone();
    assert_eq!(&after, extractor(256, &[100.0, 9_000.0]).extract(&[0.5; 256]).unwrap());
}

#[test]
fn windows_of_wrong_length_or_with_broken_samples_are_errors() {
    let mut extractor = extractor(8, &[]);
    for found in [0, 7, 9] {
        let error = extractor.extract(&vec![1.0; found]).unwrap_err();
        assert_eq!(error, FeatureError::WindowLength { found, expected: 8 });
    }
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut samples = [1.0; 8];
        samples[5] = broken;
        assert_eq!(extractor.extract(&samples), Err(FeatureError::NotFinite { index: 5 }));
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let check = |window_samples, rate_hz, edges: &[f64], expected: &str| {
        let error = FeatureExtractor::new(window_samples, rate_hz, edges).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    };
    check(3, 1.0, &[], "a window of 3 samples: 4 to 1048576 are allowed");
    check(8, 0.0, &[], "a sample rate of 0 Hz: it must be finite and above 0");
    check(8, f64::NAN, &[], "a sample rate of NaN Hz: it must be finite and above 0");
    check(8, 8.0, &[1.0], "1 band edges: none, or 2 to 101 are allowed");
    check(
        8,
        8.0,
        &[1.0, 1.0],
        "band edges must be finite, not negative and rising; edge 1 is 1 Hz",
    );
    check(
        8,
        8.0,
        &[1.0, 2.0, 2.5, 2.9],
        "band 2 from 2.5 to 2.9 Hz holds no frequency of the window, which resolves 1 Hz",
    );
    assert!(FeatureExtractor::new(4, 8.0, &[]).is_ok());
}

#[test]
fn names_survive_text_and_find_their_values() {
    let mut extractor = extractor(2048, &log_spaced_edges_hz(40.0, 10_000.5, 12));
    let features = extractor.extract(&sine(2048, 64.0, 0.5, 0.9)).unwrap();
    let names: Vec<String> = features.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names[..6], ["rms", "peak", "crest-factor", "kurtosis", "rms-steady", "band-00"]);
    assert_eq!(names.last().map(String::as_str), Some("band-11"));
    for (name, value) in features.iter() {
        assert_eq!(name.to_string().parse(), Ok(name));
        assert_eq!(features.get_by_text(&name.to_string()), Some(value));
    }
    assert_eq!(features.get(FeatureName::Band(12)), None);
    for text in ["", "RMS", "band-", "band-1", "band-001", "band-+1", "crest_factor"] {
        assert_eq!(text.parse::<FeatureName>(), Err(UnknownFeature(text.to_owned())));
    }
}

#[test]
fn a_burst_is_in_the_level_and_not_in_the_steady_one() {
    let mut extractor = extractor(1000, &[]);
    let mut samples = sine(1000, 100.0, 0.5, 0.9);
    let steady = extractor.extract(&samples).unwrap().clone();
    assert_close(steady.rms_steady, 0.5 / SQRT_2, 1e-6, "of a sine");
    // Three of ten parts.
    for (index, sample) in samples[200..500].iter_mut().enumerate() {
        *sample += if index % 2 == 0 { 10.0 } else { -10.0 };
    }
    let burst = extractor.extract(&samples).unwrap();
    assert!(burst.rms > 5.0, "{burst:?}");
    assert_close(burst.rms_steady, steady.rms_steady, 1e-6, "with a burst");
    samples[500] += 1000.0;
    assert!(extractor.extract(&samples).unwrap().rms_steady > 10.0, "four parts are no burst");
    let mut short = self::extractor(9, &[]);
    let features = short.extract(&sine(9, 2.0, 0.5, 0.0)).unwrap();
    assert_eq!(features.rms_steady, features.rms);
}

#[test]
fn a_line_is_found_where_it_is_looked_for_with_its_weight() {
    // One second at 20 kHz, bins of 1 Hz: all of a sine's mean square lies in three bins of the Hann window.
    let with = |low, high| extractor(20_000, &[]).with_line(low, high).unwrap();
    let line = |low, high, cycles: f64| {
        with(low, high).extract(&sine(20_000, cycles, 0.2, 0.9)).unwrap().line_ln.unwrap()
    };
    assert_close(line(6.0, 70.0, 10.0), 0.02_f64.ln(), 1e-6, "10 Hz has the weight 1");
    assert_close(line(6.0, 70.0, 50.0), (0.02_f64 / 125.0).ln(), 1e-6, "50 Hz");
    assert_close(line(50.0, 51.0, 50.0), (0.02_f64 / 125.0).ln(), 1e-6, "at the lower edge");
    assert!(line(6.0, 50.0, 50.0) < -20.0, "the upper edge is outside");
    // The strongest by weight, not by power.
    let both: Vec<f32> = sine(20_000, 10.0, 0.02, 0.0)
        .iter()
        .zip(sine(20_000, 60.0, 0.2, 0.0))
        .map(|(low, high)| low + high)
        .collect();
    let found = with(6.0, 70.0).extract(&both).unwrap().line_ln.unwrap();
    assert_close(found, 0.0002_f64.ln(), 1e-4, "0.02 at 10 Hz is more than 0.2 at 60 Hz");
    assert_close(
        with(6.0, 70.0).extract(&[1.0; 20_000]).unwrap().line_ln.unwrap(),
        LINE_EPSILON.ln(),
        1e-9,
        "flat",
    );
    for (low, high) in [(70.0, 6.0), (-1.0, 70.0), (0.1, 0.9), (10_000.0, 11_000.0)] {
        let refused = extractor(20_000, &[]).with_line(low, high).map(drop);
        assert!(matches!(refused, Err(FeatureSettingsError::LineEmpty { .. })), "{low} {high}");
    }
    assert!(extractor(20_000, &[]).with_line(f64::NAN, f64::INFINITY).is_err());
}

/// The definition written out: a slow transform, every bin asked for its band.
fn slow_bands(samples: &[f32], edges: &[f64]) -> Vec<f64> {
    let count = samples.len();
    let mean = samples.iter().map(|x| f64::from(*x)).sum::<f64>() / count as f64;
    let weight = |index: usize| (PI * index as f64 / count as f64).sin().powi(2);
    let taper_power: f64 = (0..count).map(|index| weight(index).powi(2)).sum();
    let mut bands = vec![0.0; edges.len() - 1];
    for bin in 0..=count / 2 {
        let (mut re, mut im) = (0.0, 0.0);
        for (index, sample) in samples.iter().enumerate() {
            let phase = 2.0 * PI * ((bin * index) % count) as f64 / count as f64;
            re += (f64::from(*sample) - mean) * weight(index) * phase.cos();
            im -= (f64::from(*sample) - mean) * weight(index) * phase.sin();
        }
        let sides = if bin == 0 || 2 * bin == count { 1.0 } else { 2.0 };
        let power = sides * (re * re + im * im) / (count as f64 * taper_power);
        let frequency = bin as f64 * RATE_HZ / count as f64;
        for (band, edge) in edges.windows(2).enumerate() {
            if edge[0] <= frequency && frequency < edge[1] {
                bands[band] += power;
            }
        }
    }
    bands.iter().map(|energy| (energy + BAND_ENERGY_EPSILON).ln()).collect()
}

/// Any f32 but NaN and the infinities, subnormal and huge ones among them.
fn finite() -> impl Strategy<Value = f32> {
    use prop::num::f32::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO
}

proptest! {
    #[test]
    fn features_are_finite_for_any_finite_window(
        samples in prop::collection::vec(finite(), 16)
    ) {
        let extractor = extractor(16, &[0.0, 2_000.0, 10_001.0]);
        let mut extractor = extractor.with_line(1_000.0, 9_000.0).unwrap();
        let features = extractor.extract(&samples).unwrap();
        prop_assert!(features.mean.is_finite());
        for (name, value) in features.iter() {
            prop_assert!(value.is_finite(), "{name} = {value}");
        }
        prop_assert!(features.rms <= features.peak * (1.0 + 1e-12));
    }

    #[test]
    fn all_bands_together_hold_the_mean_square_of_the_tapered_window(
        samples in prop::collection::vec(-1.0f32..1.0, 63..65)
    ) {
        let mut extractor = extractor(samples.len(), &[0.0, 10_001.0]);
        let features = extractor.extract(&samples).unwrap();
        let count = samples.len() as f64;
        let (mut power, mut taper_power) = (0.0, 0.0);
        for (index, sample) in samples.iter().enumerate() {
            let weight = (PI * index as f64 / count).sin().powi(2);
            power += ((f64::from(*sample) - features.mean) * weight).powi(2);
            taper_power += weight * weight;
        }
        let expected = (power / taper_power + BAND_ENERGY_EPSILON).ln();
        prop_assert!((features.band_energies_ln[0] - expected).abs() < 1e-9);
    }

    #[test]
    fn bands_equal_those_of_the_slow_transform(
        samples in prop::collection::vec(-1.0f32..1.0, 60..68)
    ) {
        let edges = log_spaced_edges_hz(350.0, 10_001.0, 4);
        let mut extractor = extractor(samples.len(), &edges);
        let features = extractor.extract(&samples).unwrap();
        for (found, expected) in features.band_energies_ln.iter().zip(slow_bands(&samples, &edges)) {
            prop_assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
    }
}
