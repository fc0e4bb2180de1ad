use proptest::prelude::*;

use super::*;
use crate::features::FeatureExtractor;

const BAND_0: FeatureName = FeatureName::Band(0);
const BAND_1: FeatureName = FeatureName::Band(1);

fn features(band_energies_ln: &[f64]) -> Features {
    Features {
        mean: 0.0,
        rms: 1.0,
        peak: 3.0,
        crest_factor: 3.0,
        kurtosis: 3.0,
        rms_steady: 1.0,
        line_ln: None,
        band_energies_ln: band_energies_ln.to_vec(),
    }
}

fn usual(_: FeatureName) -> Option<Spread> {
    Some(Spread { mean: -2.0, deviation: 0.5 })
}

/// Weights 2, 1 and −1.
fn linear(features: &Features) -> Option<f64> {
    let bands = &features.band_energies_ln;
    Some(2.0 * bands.first()? + bands.get(1)? - features.kurtosis)
}

#[test]
fn contributions_of_a_linear_model_are_weight_times_departure() {
    let order = [FeatureName::Kurtosis, BAND_1, BAND_0];
    let found = contributions(&features(&[1.0, 2.0]), &order, &usual, &mut linear);
    let found: Vec<_> = found.iter().map(|it| (it.feature, it.value, it.usual, it.logit)).collect();
    assert_eq!(
        found,
        [
            (BAND_0, 1.0, -2.0, 6.0),
            (BAND_1, 2.0, -2.0, 4.0),
            (FeatureName::Kurtosis, 3.0, -2.0, -5.0)
        ]
    );
}

#[test]
fn equal_contributions_are_sorted_by_name() {
    let mut sum = |features: &Features| Some(features.band_energies_ln.iter().sum());
    let found = contributions(&features(&[1.0, 1.0]), &[BAND_1, BAND_0], &usual, &mut sum);
    let names: Vec<_> = found.iter().map(|it| it.feature).collect();
    assert_eq!(names, [BAND_0, BAND_1]);
}

#[test]
fn what_has_no_usual_value_or_is_not_there_is_left_out() {
    let known = |name| usual(name).filter(|_| name != BAND_0);
    let order = [BAND_0, BAND_1, FeatureName::Band(7), FeatureName::Line];
    let found = contributions(&features(&[1.0, 2.0]), &order, &known, &mut linear);
    assert_eq!(found.iter().map(|it| it.feature).collect::<Vec<_>>(), [BAND_1]);
}

#[test]
fn a_model_without_an_answer_explains_nothing() {
    for answer in [None, Some(f64::NAN), Some(f64::INFINITY)] {
        let found = contributions(&features(&[1.0]), &[BAND_0], &usual, &mut |_| answer);
        assert_eq!(found, []);
    }
    let mut only_as_it_is =
        |features: &Features| (features.band_energies_ln[0] == 1.0).then_some(2.0);
    let found = contributions(&features(&[1.0]), &[BAND_0], &usual, &mut only_as_it_is);
    assert_eq!(found, []);
}

#[test]
fn a_band_is_asked_for_with_all_others_as_they_are() {
    let mut asked = Vec::new();
    let mut note = |features: &Features| {
        asked.push(features.band_energies_ln.clone());
        Some(0.0)
    };
    let found = contributions(&features(&[1.0, 2.0]), &[BAND_0, BAND_1], &usual, &mut note);
    assert_eq!(found.len(), 2);
    assert_eq!(asked, [[1.0, 2.0], [-2.0, 2.0], [1.0, -2.0]]);
}

#[test]
fn a_contribution_names_its_feature_in_json() {
    let contribution = Contribution {
        feature: FeatureName::Band(6),
        value: 1.5,
        usual: 0.5,
        deviation: 0.25,
        logit: 2.0,
    };
    let json = serde_json::to_value(&contribution).unwrap();
    assert_eq!(json["feature"], "band-06");
    assert_eq!(serde_json::from_value::<Contribution>(json).unwrap(), contribution);
    let other = r#"{ "feature": "loudness", "value": 1, "usual": 1, "deviation": 1, "logit": 1 }"#;
    assert!(serde_json::from_str::<Contribution>(other).is_err());
}

fn spectrum(power: &[f64]) -> ReducedSpectrum {
    ReducedSpectrum::of(0.5, power.iter().copied())
}

#[test]
fn a_short_spectrum_keeps_each_bin_but_the_first() {
    let points: Vec<Point> = spectrum(&[9.0, 1.0, 2.0, 3.0]).points().collect();
    let point = |frequency_hz, power| Point { frequency_hz, width_hz: 0.5, power };
    assert_eq!(points, [point(0.5, 1.0), point(1.0, 2.0), point(1.5, 3.0)]);
    for bins in [0, 1] {
        assert_eq!(spectrum(&vec![1.0; bins]).points().count(), 0);
    }
    assert_eq!(spectrum(&vec![1.0; POINTS_MAX + 1]).points().count(), POINTS_MAX);
}

#[test]
fn a_line_of_a_long_spectrum_stays_as_high_as_it_is_and_where_it_is() {
    for line in [1, 2, 100, 1_023, 1_500, 16_383, 16_384] {
        let power = (0..16_385).map(|bin| if bin == line { 5.0 } else { 1.0 });
        let reduced = ReducedSpectrum::of(0.5, power);
        let strongest = reduced.points().max_by(|a, b| a.power.total_cmp(&b.power)).unwrap();
        assert_eq!(strongest.power, 5.0, "bin {line}");
        let away = (strongest.frequency_hz - f64::from(line) * 0.5).abs();
        assert!(away <= strongest.width_hz / 2.0, "bin {line}: {strongest:?}");
    }
}

proptest! {
    #[test]
    fn points_cover_all_bins_and_are_at_most_a_hundredth_wide(bins in 2_usize..=524_289) {
        let reduced = ReducedSpectrum::empty(1.0, bins);
        prop_assert!(reduced.power.len() <= POINTS_MAX);
        let points = reduced.power.len();
        prop_assert!(points >= (bins - 1).min(POINTS_MAX / 2), "{points}");
        prop_assert_eq!(reduced.first_bins[0], 1);
        prop_assert_eq!(reduced.first_bins.last().copied(), u32::try_from(bins).ok());
        for point in reduced.points() {
            let allowed = (0.01 * point.frequency_hz).max(1.0);
            prop_assert!(point.width_hz <= allowed, "{point:?}");
        }
    }
}

#[test]
fn powers_that_are_no_numbers_do_no_harm() {
    let reduced = spectrum(&[0.0, f64::NAN, f64::INFINITY, 1e300, -1.0]);
    let powers: Vec<f64> = reduced.points().map(|point| point.power).collect();
    assert_eq!(powers, [0.0, f64::from(f32::MAX), f64::from(f32::MAX), 0.0]);
}

#[test]
fn a_spectrum_comes_back_from_json_and_a_damaged_one_does_not() {
    let reduced = spectrum(&[0.0, 1.0, 2.0]);
    let json = serde_json::to_value(&reduced).unwrap();
    assert_eq!(serde_json::from_value::<ReducedSpectrum>(json).unwrap(), reduced);
    let check = |text: &str, expected: &str| {
        let error = serde_json::from_str::<ReducedSpectrum>(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    };
    check(r#"{"resolution-hz":0,"first-bins":[1,2],"power":[1]}"#, "resolution-hz is 0");
    check(r#"{"resolution-hz":1,"first-bins":[],"power":[]}"#, "0 first-bins for 0 points");
    check(r#"{"resolution-hz":1,"first-bins":[1,2],"power":[1,1]}"#, "2 first-bins for 2 points");
    check(r#"{"resolution-hz":1,"first-bins":[0,2],"power":[1]}"#, "first-bins must");
    check(r#"{"resolution-hz":1,"first-bins":[2,2],"power":[1]}"#, "first-bins must");
    check(r#"{"resolution-hz":1,"first-bins":[1,2],"power":[-1]}"#, "power of point 0");
    let too_large = r#"{"resolution-hz":1,"first-bins":[1,2],"power":[1e99]}"#;
    assert!(serde_json::from_str::<ReducedSpectrum>(too_large).is_err());
}

fn powers(average: &SpectrumAverage) -> Vec<f64> {
    average.spectrum().unwrap().points().map(|point| point.power).collect()
}

#[test]
fn the_first_windows_are_a_plain_mean_and_later_ones_fade() {
    let mut average = SpectrumAverage::new(4);
    assert!(average.spectrum().is_none());
    for power in [1.0, 2.0, 3.0, 6.0] {
        average.handle_window(1.0, [0.0, power].into_iter());
    }
    assert_eq!((average.windows(), powers(&average)), (4, vec![3.0]));
    average.handle_window(1.0, [0.0, 7.0].into_iter());
    assert_eq!((average.windows(), powers(&average)), (5, vec![4.0]));
}

#[test]
fn another_rate_or_window_length_begins_anew() {
    let mut average = SpectrumAverage::new(256);
    average.handle_window(1.0, [0.0, 5.0].into_iter());
    average.handle_window(2.0, [0.0, 3.0].into_iter());
    assert_eq!((average.windows(), powers(&average)), (1, vec![3.0]));
    average.handle_window(2.0, [0.0, 1.0, 2.0].into_iter());
    assert_eq!((average.windows(), powers(&average)), (1, vec![1.0, 2.0]));
    // Without bands there is no spectrum, and nothing to begin anew for.
    average.handle_window(2.0, std::iter::empty());
    assert_eq!(average.windows(), 1);
    average.restart();
    assert!(average.spectrum().is_none());
    average.handle_window(2.0, [0.0, 1.0, 2.0].into_iter());
    assert_eq!(average.windows(), 1);
}

#[test]
fn a_time_constant_of_nothing_keeps_the_last_window() {
    let mut average = SpectrumAverage::new(0);
    for power in [1.0, 8.0] {
        average.handle_window(1.0, [0.0, power].into_iter());
    }
    assert_eq!(powers(&average), [8.0]);
}

#[test]
fn peaks_are_the_maxima_that_grew_most() {
    let usual = spectrum(&[0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.1]);
    let now = spectrum(&[0.0, 1.0, 12.0, 30.0, 20.0, 1.0, 9.9, 1.0, 1.0, 10.0]);
    let found: Vec<_> =
        peaks(&now, &usual, 5).iter().map(|it| (it.frequency_hz, it.power)).collect();
    assert_eq!(found, [(4.5, 10.0), (1.5, 30.0)]);
    assert_eq!(peaks(&now, &usual, 1).len(), 1);
    assert_eq!(peaks(&usual, &usual, 5), []);
}

#[test]
fn what_is_nothing_beside_the_strongest_is_no_peak() {
    let usual = spectrum(&[0.0, 1.0, 0.0, 0.0, 0.0]);
    assert_eq!(peaks(&spectrum(&[0.0, 1.0, 0.0, 1e-7, 0.0]), &usual, 5), []);
    // A growth from nothing counts from the floor.
    assert_eq!(peaks(&spectrum(&[0.0, 1.0, 0.0, 9e-6, 0.0]), &usual, 5), []);
    assert_eq!(peaks(&spectrum(&[0.0, 1.0, 0.0, 11e-6, 0.0]), &usual, 5).len(), 1);
    let silent = spectrum(&[0.0; 5]);
    assert_eq!(peaks(&silent, &silent, 5), []);
    assert_eq!(peaks(&usual, &silent, 5).len(), 1);
}

#[test]
fn spectra_of_other_points_have_no_peaks() {
    let (usual, now) = (spectrum(&[0.0, 1.0, 1.0]), [0.0, 1.0, 100.0]);
    assert_eq!(peaks(&ReducedSpectrum::of(1.0, now.into_iter()), &usual, 5), []);
    assert_eq!(peaks(&spectrum(&[0.0, 100.0]), &usual, 5), []);
    assert_eq!(peaks(&spectrum(&now), &usual, 5).len(), 1);
}

#[test]
fn the_extractor_tells_the_spectrum_of_its_last_window() {
    let mut extractor = FeatureExtractor::new(1_000, 1_000.0, &[10.0, 400.0]).unwrap();
    let samples: Vec<f32> = (0..1_000)
        .map(|index| (std::f64::consts::TAU * 50.0 * f64::from(index) / 1_000.0).sin() as f32)
        .collect();
    let energy = extractor.extract(&samples).unwrap().band_energies_ln[0].exp();
    assert_eq!(extractor.power_spectrum().len(), 501);
    let sum: f64 = extractor.power_spectrum().skip(10).take(390).sum();
    assert!((sum - energy).abs() < 1e-9, "{sum}, band {energy}");
    let reduced = ReducedSpectrum::of(1.0, extractor.power_spectrum());
    let strongest = reduced.points().max_by(|a, b| a.power.total_cmp(&b.power)).unwrap();
    assert_eq!(strongest.frequency_hz, 50.0);
    let mut plain = FeatureExtractor::new(1_000, 1_000.0, &[]).unwrap();
    plain.extract(&samples).unwrap();
    assert_eq!(plain.power_spectrum().len(), 0);
}
