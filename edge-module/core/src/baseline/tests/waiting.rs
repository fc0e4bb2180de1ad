//! Windows between two readings of the condition: which count, which are given up, and how many may wait.

use proptest::prelude::*;

use super::super::learner::CONFIRMED_AT_A_TIME;
use super::super::waiting::WAITING_MAX;
use super::*;

fn run_of(on: &str, conditions: &[&str]) -> Run {
    let mut settings = settings_of(on);
    settings.settle = Duration::ZERO;
    Run::new(settings, conditions, None)
}

/// Windows learnt of the only sensor in these conditions, that wait, and that no reading confirmed.
fn counts(run: &Run, conditions: &[&str]) -> (Vec<u64>, u64, u64) {
    let progress = run.learner.progress(run.now());
    let windows = conditions.iter().map(|name| progress.conditions[*name].windows).collect();
    (windows, progress.waiting, progress.not_learnt.unconfirmed)
}

#[test]
fn the_last_windows_before_a_change_are_not_learnt() {
    let mut run = run_of("shape", &["slow", "fast"]);
    let counts = |run: &Run| counts(run, &["slow", "fast"]);
    for _ in 0..5 {
        assert_eq!(run.windows("slow", 0.0, 0.0), None);
    }
    assert_eq!(counts(&run), (vec![0, 0], 5, 0));
    assert!(run.learner.has_waiting());
    assert_eq!(run.confirm("slow"), None);
    assert_eq!(counts(&run), (vec![5, 0], 0, 0));
    assert!(!run.learner.has_waiting());
    // It turns faster, and the next reading says so only after three windows.
    for _ in 0..3 {
        assert_eq!(run.windows("slow", 20.0, 50.0), None);
    }
    assert_eq!(run.confirm("fast"), None);
    assert_eq!(counts(&run), (vec![5, 0], 0, 3));
    assert_eq!(run.windows("fast", 20.0, 0.0), None);
    assert_eq!(counts(&run), (vec![5, 0], 1, 3));
    assert_eq!(run.confirm("fast"), None);
    assert_eq!(counts(&run), (vec![5, 1], 0, 3));
    let progress = run.learner.progress(run.now());
    let slow = &progress.conditions["slow"].sensors[&sensor("shape")];
    assert_eq!((slow.above_model, slow.logit_max), (0, Some(0.0)));
    assert_eq!((progress.wanted_windows, progress.wanted_seconds), (20, 100.0));
}

#[test]
fn a_window_counts_when_a_reading_of_its_condition_came_later_and_none_spoke_against_it() {
    // A window comes at 10 s; the condition holds since then, and its sensors have spoken then.
    let check = |since_nanos: u64, heard_nanos: u64, expected: (Vec<u64>, u64, u64)| {
        let mut run = run_of("shape", &["slow"]);
        run.passed = seconds(9);
        assert_eq!(run.windows("slow", 0.0, 0.0), None);
        let at = |nanos: u64| run.begun.instant + Duration::from_nanos(nanos);
        let holding = Holding { name: "slow", since: at(since_nanos), heard: at(heard_nanos) };
        assert_eq!(run.learner.handle_condition(Some(holding), run.now()), None);
        assert_eq!(counts(&run, &["slow"]), expected, "{since_nanos} {heard_nanos}");
    };
    let second = 1_000_000_000;
    check(0, 10 * second, (vec![0], 1, 0));
    check(0, 10 * second + 1, (vec![1], 0, 0));
    check(10 * second, 10 * second + 1, (vec![1], 0, 0));
    // There and back in between.
    check(10 * second + 1, 11 * second, (vec![0], 0, 1));
    check(10 * second + 1, 9 * second, (vec![0], 0, 1));
}

#[test]
fn windows_that_began_before_a_change_settle_also_where_no_window_came_in_it() {
    // Settling takes 3 s, and a window comes in each second.
    let check = |since_seconds: u64, expected: (u64, u64)| {
        let mut run = Run::new(settings_of("shape"), &["slow"], None);
        for _ in 0..10 {
            assert_eq!(run.windows("slow", 0.0, 0.0), None);
        }
        let since = run.begun.instant + seconds(since_seconds);
        let holding = Holding { name: "slow", since, heard: run.now() + seconds(1) };
        assert_eq!(run.learner.handle_condition(Some(holding), run.now()), None);
        let progress = run.learner.progress(run.now());
        let NotLearnt { settling, unconfirmed, .. } = progress.not_learnt;
        assert_eq!((settling, unconfirmed), expected, "{since_seconds}");
        assert_eq!(progress.conditions["slow"].windows, 10 - settling - unconfirmed);
    };
    // It held when the run began.
    check(0, (0, 0));
    // There and back between the windows at 5 and 6 s, or known only from then on.
    check(6, (3, 5));
    check(1, (3, 0));
    check(8, (3, 7));
    check(9, (2, 8));
}

#[test]
fn what_ends_the_condition_otherwise_gives_up_what_waits() {
    type Input = fn(&mut Run) -> Option<LearnOutcome>;
    let inputs: [(&str, Input); 4] = [
        ("unknown", |run| run.learner.handle_unknown_condition(&sensor("shape"), run.now())),
        ("no reading", |run| run.learner.handle_condition(None, run.now())),
        ("standstill", |run| run.learner.handle_standstill(run.now())),
        ("change", |run| run.windows("fast", 0.0, 0.0)),
    ];
    for (name, input) in inputs {
        let mut run = run_of("shape", &["slow", "fast"]);
        assert_eq!(run.windows("slow", 0.0, 0.0), None);
        assert_eq!(run.windows("slow", 0.0, 0.0), None);
        assert_eq!(input(&mut run), None);
        let waiting = u64::from(name == "change");
        assert_eq!(counts(&run, &["slow", "fast"]), (vec![0, 0], waiting, 2), "{name}");
        assert_eq!(run.confirm("slow"), None);
        assert_eq!(counts(&run, &["slow", "fast"]).0, [0, 0], "{name}");
    }
}

#[test]
fn windows_of_a_condition_that_no_reading_confirms_are_named_when_the_run_ends() {
    let mut run = run_of("shape", &["slow"]);
    for _ in 0..300 {
        assert_eq!(run.windows("slow", 0.0, 0.0), None);
    }
    let refused = refused(run.wait());
    let expected = NotLearnt { unconfirmed: 300, ..NotLearnt::default() };
    assert_eq!(refused, LearnRefused::NoWindows(expected));
}

#[test]
fn at_most_so_many_wait_and_are_learnt_at_a_time() {
    let mut run = run_of("shape", &["slow"]);
    run.learner = {
        let mut settings = settings_of("shape");
        (settings.settle, settings.deadline) = (Duration::ZERO, seconds(100_000));
        settings.duration = seconds(50_000);
        Learner::new(request(&["slow"]), settings, None, run.begun).expect("valid settings")
    };
    let places = WAITING_MAX as u64;
    for _ in 0..places {
        assert_eq!(run.windows("slow", 0.0, 0.0), None);
    }
    assert_eq!(counts(&run, &["slow"]), (vec![0], places, 0));
    for _ in 0..5 {
        assert_eq!(run.windows("slow", 0.0, 0.0), None);
    }
    assert_eq!(counts(&run, &["slow"]), (vec![0], places, 5));
    let at_a_time = CONFIRMED_AT_A_TIME as u64;
    for times in 1..=3 {
        assert_eq!(run.confirm("slow"), None);
        let learnt = times * at_a_time;
        assert_eq!(counts(&run, &["slow"]), (vec![learnt], places - learnt, 5));
    }
}

#[test]
fn each_sensor_has_its_own_places() {
    let mut settings = settings();
    settings.settle = Duration::ZERO;
    settings.deadline = seconds(100_000);
    let mut run = Run::new(settings, &["slow"], None);
    assert_eq!(run.windows("slow", 0.0, 0.0), None);
    run.sensors.retain(|on| on.as_str() == "shape");
    for _ in 0..WAITING_MAX {
        assert_eq!(run.windows("slow", 0.0, 0.0), None);
    }
    let progress = run.learner.progress(run.now());
    assert_eq!(progress.waiting, WAITING_MAX as u64 / 2 + 1);
    // The oldest first, whose ever it is.
    assert_eq!(run.confirm("slow"), None);
    let progress = run.learner.progress(run.now());
    let windows = |on: &str| progress.conditions["slow"].sensors[&sensor(on)].windows;
    assert_eq!((windows("level"), windows("shape")), (1, CONFIRMED_AT_A_TIME as u64 - 1));
}

/// What happens in a second: windows alone, or a reading after them; in which of two conditions.
fn any_second() -> impl Strategy<Value = (bool, bool)> {
    (any::<bool>(), prop::bool::weighted(0.8))
}

proptest! {
    /// A model that knows the whole course: a window counts if the next reading says what the one before it said.
    #[test]
    fn a_window_is_learnt_if_the_readings_around_it_agree(
        course in prop::collection::vec(any_second(), 1..80),
    ) {
        let name = |is_slow: bool| if is_slow { "slow" } else { "fast" };
        let mut run = run_of("level", &["slow", "fast"]);
        let (mut told, mut since_reading) = (true, 0_u64);
        let mut expected = BTreeMap::from([("slow", 0), ("fast", 0)]);
        let mut unconfirmed = 0;
        for (is_reading, stays) in course {
            prop_assert_eq!(run.windows(name(told), 0.0, 0.0), None);
            since_reading += 1;
            if is_reading {
                let now_told = told == stays;
                match now_told == told {
                    true => *expected.entry(name(told)).or_default() += since_reading,
                    false => unconfirmed += since_reading,
                }
                (told, since_reading) = (now_told, 0);
                while run.learner.has_waiting() {
                    prop_assert_eq!(run.confirm(name(told)), None);
                }
            }
        }
        let found = counts(&run, &["slow", "fast"]);
        prop_assert_eq!(found, (vec![expected["slow"], expected["fast"]], since_reading, unconfirmed));
    }
}
