//! Tables of settings and of readings, then random machines: never two conditions at once.

use proptest::prelude::*;

use super::*;

const STALE_AFTER: Duration = Duration::from_secs(10);

fn sensor(name: &str) -> SensorId {
    SensorId::new(name).expect(name)
}

fn condition(name: &str, ranges: &[(&str, f64, f64)]) -> OperatingCondition {
    let range = |(on, min, max): &(&str, f64, f64)| OperatingRange {
        sensor: sensor(on),
        min: *min,
        max: *max,
    };
    OperatingCondition { name: name.to_owned(), ranges: ranges.iter().map(range).collect() }
}

/// Idle and two loads at full speed.
fn press() -> Operation {
    let conditions = vec![
        condition("idle", &[("speed", 500.0, 1000.0)]),
        condition("full.light", &[("speed", 1000.0, f64::INFINITY), ("load", 0.0, 50.0)]),
        condition("full.heavy", &[("speed", 1000.0, 3000.0), ("load", 50.0, 100.0)]),
    ];
    Operation::new(conditions, STALE_AFTER).expect("valid conditions")
}

#[expect(clippy::disallowed_methods, reason = "a test begins somewhere")]
fn start() -> Instant {
    Instant::now()
}

#[test]
fn each_fault_is_named() {
    let check = |conditions: Vec<OperatingCondition>, expected: &[&str]| {
        let faults = Operation::new(conditions, STALE_AFTER).expect_err("a fault");
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected);
    };
    let speed = [("speed", 0.0, 1.0)];
    let name_rule = "a name has 1 to 64 bytes of a-z, 0-9, '.', '_' and '-'";
    check(vec![condition("", &speed)], &[&format!("operating condition \"\": {name_rule}")]);
    check(
        vec![condition("Idle", &speed)],
        &[&format!("operating condition \"Idle\": {name_rule}")],
    );
    let long = "a".repeat(65);
    check(vec![condition(&long, &speed)], &[&format!("operating condition {long:?}: {name_rule}")]);
    check(
        vec![condition("any", &speed)],
        &[
            "an operating condition is named any: that is the baseline of a machine without conditions",
        ],
    );
    check(
        vec![condition("idle", &[])],
        &["operating condition idle has 0 ranges: 1 to 8 are allowed"],
    );
    check(
        vec![condition("a", &speed), condition("a", &[("speed", 1.0, 2.0)])],
        &["operating condition a is there twice"],
    );
    check(
        vec![condition("a", &[("speed", 1.0, 1.0)])],
        &["operating condition a: the range of speed is 1 to 1; min must be below max"],
    );
    check(
        vec![condition("a", &[("speed", f64::NAN, 1.0)])],
        &["operating condition a: the range of speed is NaN to 1; min must be below max"],
    );
    check(
        vec![condition("a", &[("speed", 0.0, 2.0), ("speed", 1.0, 3.0)])],
        &["operating condition a has two ranges of speed: write the one in which both hold"],
    );
    let overlap = "operating conditions a and b can hold at once: give them ranges of one sensor that do not meet";
    check(vec![condition("a", &speed), condition("b", &[("speed", 0.5, 2.0)])], &[overlap]);
    check(vec![condition("a", &speed), condition("b", &[("load", 5.0, 6.0)])], &[overlap]);
}

#[test]
fn limits_of_names_ranges_and_time_are_allowed_and_one_more_is_not() {
    let faults_of = |conditions, stale_after| Operation::new(conditions, stale_after).err();
    let speed = [("speed", 0.0, 1.0)];
    assert_eq!(faults_of(vec![condition(&"a".repeat(64), &speed)], STALE_AFTER), None);
    assert_eq!(faults_of(vec![condition("0-_.z", &speed)], STALE_AFTER), None);
    let names: Vec<String> = (0..=RANGES_MAX).map(|index| format!("s{index}")).collect();
    let ranges: Vec<(&str, f64, f64)> =
        names.iter().map(|name| (name.as_str(), 0.0, 1.0)).collect();
    assert_eq!(faults_of(vec![condition("a", &ranges[..RANGES_MAX])], STALE_AFTER), None);
    assert!(faults_of(vec![condition("a", &ranges)], STALE_AFTER).is_some());
    let many = |count: u32| -> Vec<OperatingCondition> {
        let one = |index: u32| {
            let min = f64::from(index);
            condition(&format!("c{index}"), &[("speed", min, min + 1.0)])
        };
        (0..count).map(one).collect()
    };
    assert_eq!(faults_of(many(32), STALE_AFTER), None);
    assert_eq!(faults_of(many(33), STALE_AFTER), Some(vec![OperationFault::TooMany(33)]));
    let zero = Some(vec![OperationFault::StaleAfterZero]);
    assert_eq!(faults_of(many(1), Duration::ZERO), zero);
    assert_eq!(faults_of(many(0), Duration::ZERO), None);
}

#[test]
fn a_machine_without_conditions_has_one_baseline() {
    let operation = Operation::new(Vec::new(), STALE_AFTER).expect("no conditions");
    assert_eq!(operation.current(start()), Current::Only);
    assert_eq!(operation.current(start()).name(), Some("any"));
    assert_eq!(operation.names(), ["any"]);
    assert_eq!(operation.sensors().count(), 0);
}

#[test]
fn conditions_hold_from_min_to_below_max() {
    let check = |speed: f64, load: f64, expected: Current| {
        let (mut operation, now) = (press(), start());
        operation.handle_reading(&sensor("speed"), speed, now);
        operation.handle_reading(&sensor("load"), load, now);
        assert_eq!(operation.current(now), expected, "{speed} {load}");
    };
    check(499.9, 10.0, Current::Unknown);
    check(500.0, 10.0, Current::Condition("idle"));
    check(999.9, 10.0, Current::Condition("idle"));
    check(1000.0, 0.0, Current::Condition("full.light"));
    check(1e9, 49.9, Current::Condition("full.light"));
    check(1000.0, 50.0, Current::Condition("full.heavy"));
    check(3000.0, 50.0, Current::Unknown);
    check(1000.0, 100.0, Current::Unknown);
    check(f64::NAN, 10.0, Current::Unknown);
    check(1000.0, f64::NAN, Current::Unknown);
    check(f64::INFINITY, 10.0, Current::Unknown);
}

#[test]
fn what_was_not_said_or_is_too_old_is_unknown() {
    let (mut operation, now) = (press(), start());
    assert_eq!(operation.current(now), Current::Unknown);
    operation.handle_reading(&sensor("someone-else"), 700.0, now);
    assert_eq!(operation.current(now), Current::Unknown);
    operation.handle_reading(&sensor("speed"), 2000.0, now);
    assert_eq!(operation.current(now), Current::Unknown);
    operation.handle_reading(&sensor("load"), 60.0, now + Duration::from_secs(5));
    let at_limit = now + STALE_AFTER;
    assert_eq!(operation.current(at_limit), Current::Condition("full.heavy"));
    let beyond = at_limit + Duration::from_millis(1);
    assert_eq!(operation.current(beyond), Current::Unknown);
    // Idle needs no load.
    operation.handle_reading(&sensor("speed"), 700.0, now + Duration::from_secs(60));
    assert_eq!(operation.current(now + Duration::from_secs(60)), Current::Condition("idle"));
    assert_eq!(Current::Unknown.name(), None);
    let sensors: Vec<&str> = operation.sensors().map(SensorId::as_str).collect();
    assert_eq!(sensors, ["load", "speed"]);
    assert_eq!(operation.names(), ["idle", "full.light", "full.heavy"]);
}

#[test]
fn a_condition_is_vouched_for_from_its_last_change_to_the_sensor_silent_longest() {
    let (mut operation, start) = (press(), start());
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    operation.handle_reading(&sensor("speed"), 2000.0, at(0));
    assert_eq!(operation.holding(at(0)), None, "nobody follows");
    operation.follow(at(1));
    assert_eq!(operation.holding(at(1)), None, "the load is not known");
    operation.handle_reading(&sensor("load"), 10.0, at(2));
    let check = |operation: &Operation, now: u64, expected: Option<(&str, u64, u64)>| {
        let expected = expected.map(|(name, since, heard)| Holding {
            name,
            since: at(since),
            heard: at(heard),
        });
        assert_eq!(operation.holding(at(now)), expected, "{now}");
    };
    check(&operation, 2, Some(("full.light", 2, 0)));
    operation.handle_reading(&sensor("speed"), 2500.0, at(3));
    check(&operation, 3, Some(("full.light", 2, 2)));
    operation.handle_reading(&sensor("someone-else"), 0.0, at(4));
    operation.handle_reading(&sensor("load"), 60.0, at(5));
    check(&operation, 5, Some(("full.heavy", 5, 3)));
    // There and back between two looks.
    operation.handle_reading(&sensor("load"), 10.0, at(6));
    operation.handle_reading(&sensor("load"), 60.0, at(7));
    check(&operation, 7, Some(("full.heavy", 7, 3)));
    // Idle needs no load.
    operation.handle_reading(&sensor("speed"), 700.0, at(8));
    operation.handle_reading(&sensor("speed"), 710.0, at(9));
    check(&operation, 9, Some(("idle", 8, 9)));
    operation.handle_reading(&sensor("speed"), f64::NAN, at(10));
    check(&operation, 10, None);
    operation.handle_reading(&sensor("speed"), 700.0, at(11));
    check(&operation, 21, Some(("idle", 11, 11)));
    check(&operation, 22, None);
    // In between it was not known.
    operation.handle_reading(&sensor("speed"), 700.0, at(22));
    check(&operation, 22, Some(("idle", 22, 22)));
    operation.unfollow();
    check(&operation, 22, None);
    let mut only = Operation::new(Vec::new(), STALE_AFTER).expect("no conditions");
    only.follow(at(0));
    assert_eq!(only.holding(at(0)), None);
}

/// Lowest value and width of the ranges, by the number of the sensor.
fn any_condition() -> impl Strategy<Value = BTreeMap<usize, (u8, u8)>> {
    prop::collection::btree_map(0_usize..3, (0_u8..5, 1_u8..4), 1..3)
}

proptest! {
    #[test]
    fn what_is_accepted_never_holds_twice_and_what_is_refused_can(
        all in prop::collection::vec(any_condition(), 1..4),
    ) {
        let names = ["a", "b", "c"];
        let conditions: Vec<OperatingCondition> = all
            .iter()
            .zip(names)
            .map(|(ranges, name)| {
                let range = |(on, (min, width)): (&usize, &(u8, u8))| {
                    (names[*on], f64::from(*min), f64::from(min + width))
                };
                condition(name, &ranges.iter().map(range).collect::<Vec<_>>())
            })
            .collect();
        // All bounds are whole numbers, so whole values tell everything.
        let holding = |values: [f64; 3]| -> Vec<&str> {
            let value_of = |on: &SensorId| values[usize::from(on.as_str().as_bytes()[0] - b'a')];
            let holds = |condition: &&OperatingCondition| {
                condition.ranges.iter().all(|range| {
                    range.min <= value_of(&range.sensor) && value_of(&range.sensor) < range.max
                })
            };
            conditions.iter().filter(holds).map(|condition| condition.name.as_str()).collect()
        };
        let points = || (0_u16..729).map(|n| [n % 9, n / 9 % 9, n / 81].map(f64::from));
        match Operation::new(conditions.clone(), STALE_AFTER) {
            Err(_) => prop_assert!(points().any(|point| holding(point).len() > 1)),
            Ok(mut operation) => {
                let now = start();
                for point in points() {
                    for (name, value) in names.iter().zip(point) {
                        operation.handle_reading(&sensor(name), value, now);
                    }
                    let found: Vec<&str> = operation.current(now).name().into_iter().collect();
                    prop_assert_eq!(found, holding(point));
                }
            }
        }
    }

    /// A model that writes down all readings and looks at each moment anew.
    #[test]
    fn between_since_and_heard_the_condition_has_held_at_every_moment(
        readings in prop::collection::vec((any::<bool>(), 0_u8..8, 0_u64..6), 1..60),
    ) {
        let (mut operation, start) = (press(), start());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        operation.follow(start);
        let (mut now, mut names) = (0, Vec::new());
        for (is_speed, value, pause) in readings {
            for second in now..now + pause {
                let name = operation.current(at(second)).name().map(str::to_owned);
                names.push(name);
            }
            now += pause;
            let (on, unit) = if is_speed { ("speed", 250.0) } else { ("load", 12.5) };
            operation.handle_reading(&sensor(on), f64::from(value) * unit, at(now));
            let current = operation.current(at(now)).name();
            let holding = operation.holding(at(now));
            prop_assert_eq!(holding.map(|holding| holding.name), current);
            if let Some(Holding { name, since, heard }) = holding {
                let between = (0..now).filter(|second| since <= at(*second) && at(*second) < heard);
                for second in between {
                    let found = names[usize::try_from(second).expect("small")].as_deref();
                    prop_assert_eq!(found, Some(name), "{} of {}", second, now);
                }
            }
        }
    }
}
