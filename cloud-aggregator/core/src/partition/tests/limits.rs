//! What is one too many.

use super::*;

#[test]
fn one_sensor_or_metric_type_too_many_is_a_dead_letter() {
    let mut bench = Bench::new(Settings { sensors_max: 2, metric_types_max: 2, ..settings() });
    let metric = |sensor: &str, metric_type: &str| Reading {
        metric_type: MetricType::new(metric_type).expect("a valid name"),
        ..reading(sensor, 0, 1.0)
    };
    assert_eq!(bench.send(&metric("a", "temperature")), Disposition::Counted);
    assert_eq!(bench.send(&metric("b", "pressure")), Disposition::Counted);
    assert_eq!(reason_of(bench.send(&metric("c", "pressure"))), Some("sensors-limit"));
    assert_eq!(reason_of(bench.send(&metric("c", "flow"))), Some("sensors-limit"));
    assert_eq!(reason_of(bench.send(&metric("a", "flow"))), Some("metric-types-limit"));
    assert_eq!(bench.send(&metric("a", "pressure")), Disposition::Counted);
    let figures = bench.state.figures();
    assert_eq!((figures.sensors, figures.metric_types), (2, 2));
    assert_eq!(bench.state.accounting().dead_letters, 3);
    assert!(bench.state.accounting().is_balanced());
}

#[test]
fn one_window_too_many_of_a_sensor_is_a_dead_letter_until_one_is_forgotten() {
    let mut bench = Bench::new(Settings { windows_per_sensor_max: 2, ..settings() });
    bench.hot(0);
    bench.hot(MINUTE);
    assert_eq!(reason_of(bench.hot(2 * MINUTE)), Some("windows-limit"));
    assert_eq!(bench.hot(MINUTE + 1), Disposition::Counted, "its window is held");
    assert_eq!(bench.cold(2 * MINUTE), Disposition::Counted, "it needs no window");
    assert_eq!(bench.hot((60 + 310) * SECOND), Disposition::Counted, "the first is forgotten");
}

#[test]
fn a_match_of_two_rules_takes_both_windows_or_none() {
    let second_rule = Rule { name: "second".to_owned(), ..Rule::seed() };
    let rules = vec![Rule::seed(), second_rule];
    let mut bench = Bench::new(Settings { rules, windows_per_sensor_max: 3, ..settings() });
    bench.hot(0);
    assert_eq!(reason_of(bench.hot(MINUTE)), Some("windows-limit"));
    assert_eq!(bench.state.figures().windows, 2);
}

#[test]
fn one_window_too_many_of_the_partition_is_a_dead_letter() {
    let mut bench = Bench::new(Settings { windows_max: 2, ..settings() });
    assert_eq!(bench.send(&reading("a", 0, 101.0)), Disposition::Counted);
    assert_eq!(bench.send(&reading("b", 0, 101.0)), Disposition::Counted);
    assert_eq!(reason_of(bench.send(&reading("c", 0, 101.0))), Some("windows-limit"));
}

#[test]
fn windows_needed_are_enough_for_a_sensor_that_always_matches() {
    let settings = settings();
    let needed = usize::try_from(settings.windows_per_sensor_needed()).expect("a small number");
    assert_eq!(needed, 7, "310 s in minutes, and the two that are cut");
    let mut bench = Bench::new(Settings { windows_per_sensor_max: needed, ..settings });
    bench.now = ProcessingTime::from_micros(START + 60 * MINUTE);
    for second in 0..3600 {
        assert_eq!(bench.hot(second * SECOND), Disposition::Counted, "{second}");
    }
}
