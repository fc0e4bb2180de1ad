//! Streamed numbers against slow ones.

use proptest::prelude::*;

use super::super::track::{Course, Kept, LOGITS_KEPT_MAX, Moments, Track};
use super::*;

fn two_pass(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    let deviation =
        if values.len() < 2 { 0.0 } else { (squares / (values.len() - 1) as f64).sqrt() };
    (mean, deviation)
}

fn is_close(found: f64, expected: f64, scale: f64) -> bool {
    (found - expected).abs() <= 1e-9 * scale.max(1.0)
}

/// Nearest rank, by counting.
fn slow_decile(values: &[f64], tenths: usize) -> f64 {
    let reaches = |candidate: f64| {
        let not_above = values.iter().filter(|value| **value <= candidate).count();
        not_above * 10 >= tenths * values.len()
    };
    let candidates = values.iter().copied().filter(|value| reaches(*value));
    candidates.fold(f64::INFINITY, f64::min)
}

#[test]
fn beyond_their_limit_logits_are_kept_evenly() {
    let mut kept = Kept::new();
    let total = LOGITS_KEPT_MAX * 5 + 3;
    for index in 0..total {
        kept.add(index as f64);
    }
    for (tenths, decile) in (1..).zip(kept.deciles()) {
        let share = decile / total as f64;
        assert!((share - f64::from(tenths) / 10.0).abs() < 1e-3, "{tenths} {share}");
    }
}

#[test]
fn a_track_of_one_window_has_no_deviation() {
    let mut track = Track::new();
    assert_eq!(track.logit(), None);
    track.learn(&features(0.0), 0.5, Duration::ZERO);
    let expected = Spread { mean: 0.5, deviation: 0.0, min: 0.5, max: 0.5 };
    assert_eq!(track.logit(), Some(expected));
    assert_eq!(track.unsteady(MARGIN), None);
    let usual = track.baseline("m", &SHA256.to_uppercase(), MARGIN);
    assert_eq!((usual.logit_deciles, usual.model_sha256.as_str()), ([0.5; 9], SHA256));
    assert_eq!(usual.features.len(), 8);
}

#[test]
fn a_track_takes_finite_windows_of_the_features_that_it_began_with() {
    let mut track = Track::new();
    let mut other = features(0.0);
    other.band_energies_ln.pop();
    let mut infinite = features(0.0);
    infinite.kurtosis = f64::INFINITY;
    assert!(track.accepts(&other, 0.0));
    track.learn(&features(0.0), 0.0, Duration::ZERO);
    assert!(track.accepts(&features(3.0), 1e6));
    assert!(!track.accepts(&features(3.0), 1.1e6));
    assert!(!track.accepts(&features(3.0), f64::NAN));
    assert!(!track.accepts(&other, 0.0));
    assert!(!track.accepts(&infinite, 0.0));
}

proptest! {
    #[test]
    fn streamed_moments_are_those_of_two_passes(
        values in prop::collection::vec(-1e3_f64..1e3, 1..200),
        offset in prop_oneof![Just(0.0), Just(1e6)],
        cut in any::<prop::sample::Index>(),
    ) {
        let values: Vec<f64> = values.iter().map(|value| value + offset).collect();
        let of = |values: &[f64]| {
            let mut moments = Moments::default();
            values.iter().for_each(|value| moments.add(*value));
            moments
        };
        let (mean, deviation) = two_pass(&values);
        let (head, tail) = values.split_at(cut.index(values.len()));
        for moments in [of(&values), of(head).merge(of(tail))] {
            prop_assert_eq!(moments.count, values.len() as u64);
            prop_assert!(is_close(moments.mean, mean, offset), "{} {}", moments.mean, mean);
            let found = moments.deviation();
            prop_assert!((found - deviation).abs() < 1e-6, "{} {}", found, deviation);
        }
    }

    #[test]
    fn deciles_are_those_of_counting(values in prop::collection::vec(-20_i32..20, 1..200)) {
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        let mut kept = Kept::new();
        values.iter().for_each(|value| kept.add(*value));
        for (tenths, decile) in (1..).zip(kept.deciles()) {
            prop_assert_eq!(decile, slow_decile(&values, tenths));
        }
    }

    #[test]
    fn halves_are_those_of_the_windows_before_and_after_a_cut_near_the_middle(
        values in prop::collection::vec(-10.0_f64..10.0, 2..300),
    ) {
        let mut course = Course::new();
        for value in &values {
            course.add([0.0, *value].into_iter());
        }
        let halves = course.halves(1).expect("two pieces at least");
        let is_split = |cut: usize| {
            let (head, tail) = values.split_at(cut);
            let (first, second) = (two_pass(head).0, two_pass(tail).0);
            is_close(halves.first, first, 1.0) && is_close(halves.second, second, 1.0)
        };
        let quarter = values.len() / 4;
        let middle = quarter.max(1)..=values.len() - quarter.max(1);
        prop_assert!(middle.into_iter().any(is_split), "{:?}", halves);
    }
}
