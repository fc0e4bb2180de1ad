//! Known indices, ties, limits, then random streams against a slow recount.

use proptest::prelude::*;

use super::*;

const DECILES: [f64; 9] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];

#[expect(clippy::disallowed_methods, reason = "a test begins somewhere")]
fn start() -> Instant {
    Instant::now()
}

/// Pushes logits one spacing apart.
fn pushed(deciles: [f64; 9], logits: impl IntoIterator<Item = f64>) -> DriftMonitor {
    let mut monitor = DriftMonitor::new(deciles).expect("deciles");
    let mut now = start();
    for logit in logits {
        monitor.push(logit, now);
        now += DRIFT_SPACING;
    }
    monitor
}

/// Nearest rank, as a baseline has them.
fn deciles_of(values: &[f64]) -> [f64; 9] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    std::array::from_fn(|index| sorted[((index + 1) * sorted.len()).div_ceil(10) - 1])
}

#[test]
fn there_is_no_index_before_there_are_windows_enough() {
    let of = |windows: usize| pushed(DECILES, (0..windows).map(|n| n as f64 % 10.0)).index();
    assert_eq!(of(DRIFT_WINDOWS_MIN - 1), None);
    assert!(of(DRIFT_WINDOWS_MIN).is_some());
}

#[test]
fn equal_shares_give_0_and_an_edge_belongs_to_the_bin_below_it() {
    let monitor = pushed(DECILES, (0..1000).map(|n| f64::from(n % 10) + 1.0));
    assert_eq!(monitor.index(), Some(0.0));
    assert_eq!(monitor.windows(), 1000);
}

#[test]
fn known_shares_give_the_index_of_the_formula() {
    // Half of the windows in the lowest bin, the rest even.
    let logits = (0..900).map(|n| if n % 2 == 0 { 0.5 } else { f64::from(n / 2 % 9) + 1.5 });
    let expected = (0.5 - 0.1) * 5.0_f64.ln() + 9.0 * (0.05555555 - 0.1) * 0.5555555_f64.ln();
    let index = pushed(DECILES, logits).index().expect("enough");
    assert!((index - expected).abs() < 1e-6, "{index} {expected}");
    assert_eq!(Drift::of(index), Drift::Large);
    // All in one bin: the others count as half a window.
    let index = pushed(DECILES, (0..1000).map(|_| 100.0)).index().expect("enough");
    let expected = 0.9 * 10.0_f64.ln() + 9.0 * (0.0005 - 0.1) * 0.005_f64.ln();
    assert!((index - expected).abs() < 1e-9, "{index} {expected}");
}

#[test]
fn a_constant_reference_is_met_by_its_own_value_and_by_no_other() {
    let constant = [3.0; 9];
    let index = |logit: f64| pushed(constant, (0..500).map(|_| logit)).index().expect("enough");
    assert_eq!(index(3.0), 0.0);
    assert!(index(3.5) > 4.0);
    assert!(index(2.5) > 4.0);
    // A tenth beside it is in keeping with such deciles, a half is not.
    let beside = |every: u32| {
        let logits = (0..500).map(|n| if n % every == 0 { 9.0 } else { 3.0 });
        pushed(constant, logits).index().expect("enough")
    };
    assert!(beside(10).abs() < 1e-9, "{}", beside(10));
    assert!(beside(2) > DRIFT_LARGE);
}

#[test]
fn deciles_that_fall_or_are_not_finite_are_refused() {
    let check = |index: usize, value: f64| {
        let mut deciles = DECILES;
        deciles[index] = value;
        let fault = DriftMonitor::new(deciles).expect_err("refused");
        assert_eq!(fault.number, index + 1);
        assert_eq!(fault.value.to_bits(), value.to_bits());
    };
    check(0, f64::NAN);
    check(0, f64::NEG_INFINITY);
    check(8, f64::INFINITY);
    check(4, 3.9);
}

#[test]
fn windows_that_crowd_or_are_not_finite_are_not_counted() {
    let mut monitor = DriftMonitor::new(DECILES).expect("deciles");
    let begun = start();
    for tenth in 0..=20_u32 {
        monitor.push(1.0, begun + DRIFT_SPACING / 10 * tenth);
    }
    assert_eq!(monitor.windows(), 3);
    monitor.push(f64::NAN, begun + DRIFT_SPACING * 10);
    monitor.push(f64::INFINITY, begun + DRIFT_SPACING * 10);
    assert_eq!((monitor.windows(), monitor.not_finite()), (3, 2));
    // A clock that is behind counts nothing and breaks nothing.
    monitor.push(1.0, begun);
    assert_eq!(monitor.windows(), 3);
}

#[test]
fn indices_are_read_as_usual() {
    let check = |index: f64, expected: Drift| assert_eq!(Drift::of(index), expected, "{index}");
    check(0.0, Drift::None);
    check(0.0999, Drift::None);
    check(0.1, Drift::Moderate);
    check(0.25, Drift::Moderate);
    check(0.2501, Drift::Large);
    assert_eq!(
        [Drift::None, Drift::Moderate, Drift::Large].map(Drift::as_str).join(" "),
        "none moderate large"
    );
}

/// The slow, obvious index: the last windows sorted into bins anew, deciles that differ only.
fn recount(deciles: [f64; 9], logits: &[f64]) -> f64 {
    let latest = &logits[logits.len().saturating_sub(DRIFT_WINDOWS_MAX)..];
    let n = latest.len() as f64;
    (0..10)
        .map(|bin| {
            let low = if bin == 0 { f64::NEG_INFINITY } else { deciles[bin - 1] };
            let high = deciles.get(bin).copied().unwrap_or(f64::INFINITY);
            let count = latest.iter().filter(|logit| low < **logit && **logit <= high).count();
            let share = (count as f64 / n).max(0.5 / n);
            (share - 0.1) * (share / 0.1).ln()
        })
        .sum()
}

proptest! {
    #[test]
    fn the_index_is_that_of_a_recount(
        seed in prop::collection::vec(-60_i32..60, 9..300),
        repeats in 1_i32..12,
        shift in -20_i32..20,
    ) {
        let mut deciles = DECILES;
        let mut distinct: Vec<i32> = seed.clone();
        distinct.sort_unstable();
        distinct.dedup();
        prop_assume!(distinct.len() >= 9);
        for (decile, value) in deciles.iter_mut().zip(&distinct) {
            *decile = f64::from(*value);
        }
        let logits: Vec<f64> = (0..repeats)
            .flat_map(|round| seed.iter().map(move |n| f64::from(n + shift * round)))
            .collect();
        let monitor = pushed(deciles, logits.iter().copied());
        match monitor.index() {
            None => prop_assert!(logits.len() < DRIFT_WINDOWS_MIN),
            Some(index) => {
                let expected = recount(deciles, &logits);
                prop_assert!((index - expected).abs() < 1e-9, "{} {}", index, expected);
            }
        }
    }

    #[test]
    fn the_references_own_data_give_0_also_with_ties(
        repeated in prop::collection::btree_map(0_u8..8, 20_usize..=33, 0..3),
        is_highest_repeated in any::<bool>(),
    ) {
        // Values that repeat have at least a fifth of the data, or three tenths where they are the highest, since no decile shows
        // the last one. The others stand alone.
        let mut values: Vec<f64> = Vec::new();
        for (value, count) in repeated {
            values.extend(std::iter::repeat_n(f64::from(value) + 0.5, count));
        }
        if is_highest_repeated {
            values.extend([8.5; 30]);
        }
        let alone = 100 - values.len();
        values.extend((0..alone).map(|n| n as f64 * 7.313 % 8.0 + 0.01));
        if !is_highest_repeated {
            values.pop();
            values.push(9.5);
        }
        let deciles = deciles_of(&values);
        let logits = values.iter().copied().cycle().take(values.len() * 20);
        let index = pushed(deciles, logits).index().expect("enough");
        prop_assert!(index.abs() < 1e-9, "{} {:?}", index, deciles);
    }
}
