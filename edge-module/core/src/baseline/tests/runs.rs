//! Runs of learning: what ends them, what they refuse, what they keep.

use proptest::prelude::*;

use super::*;

fn replacing(conditions: &[&str]) -> LearnRequest {
    LearnRequest { is_replacing: true, ..request(conditions) }
}

#[test]
fn a_run_ends_when_each_sensor_has_its_time_in_each_condition() {
    let mut run = Run::new(settings(), &["idle", "full"], None);
    // The first window stands for no time.
    assert_eq!(run.run("idle", 110, usual), None);
    // Three seconds pass until it has settled.
    assert_eq!(run.run("full", 102, usual), None);
    let progress = run.learner.progress(run.now());
    assert!(progress.conditions["idle"].is_done && !progress.conditions["full"].is_done);
    let baseline = learnt(run.second("full", 0.0, 0.0).expect("done"));
    assert_eq!(baseline.learnt_at.micros_since(EventTime::from_micros(BEGUN_MICROS)), 213_000_000);
    assert!(baseline.not_learnt.is_empty());
    let full = &baseline.conditions["full"][&sensor("shape")];
    assert_eq!((full.windows, full.running_seconds), (100, 100.0));
    assert_eq!(full.model, "motor-shape 2");
    let idle = &baseline.conditions["idle"][&sensor("level")];
    assert_eq!((idle.windows, idle.running_seconds), (110, 109.0));
    assert_eq!((idle.logit.min, idle.logit.max), (-1.0, 1.0));
    assert!(idle.logit.mean.abs() < 1e-12);
    assert_eq!(idle.logit_deciles, [-1.0, -1.0, -0.5, -0.5, 0.0, 0.0, 0.5, 0.5, 1.0]);
    assert_eq!(idle.threshold_logit, 1.0 + MARGIN);
    assert_eq!(idle.features["line"].mean, -3.0);
    assert_eq!(idle.features.len(), 8);
    assert_eq!(baseline.validate(), Ok(()));
    // It is over.
    assert_eq!(run.second("full", 0.0, 0.0), None);
    assert_eq!(run.learner.handle_violation("limit", run.now()), None);
    assert_eq!(run.learner.cancel(), None);
    assert_eq!(run.learner.poll_timeout(), None);
}

#[test]
fn at_the_deadline_half_of_the_time_is_enough() {
    let check = |windows: u32, is_enough: bool| {
        let mut run = Run::new(settings(), &["idle", "full"], None);
        assert_eq!(run.run("idle", 101, usual), None);
        assert_eq!(run.run("full", windows, usual), None);
        let baseline = learnt(run.wait());
        assert_eq!(baseline.conditions.contains_key("full"), is_enough, "{windows}");
        let counted = u64::from(windows - 3);
        let short = BTreeMap::from([(sensor("level"), counted), (sensor("shape"), counted)]);
        assert_eq!(baseline.not_learnt.get("full"), (!is_enough).then_some(&short));
    };
    // Of 53 windows three settle; the others have the time from the one before.
    check(52, false);
    check(53, true);
}

#[test]
fn windows_that_are_too_few_are_not_learnt_however_long_they_took() {
    let mut settings = settings_of("shape");
    settings.gap_max = seconds(10);
    settings.windows_min = 60;
    let mut run = Run::new(settings, &["any"], None);
    for index in 0..59 {
        run.passed += seconds(9);
        assert_eq!(run.second("any", 0.0, usual(index)), None);
    }
    let expected = "at most 59 windows and 580 s of a sensor in a condition came up to the deadline, 60 windows and 50 s are needed \
                    (0 windows were in a condition that no later reading confirmed): let the machine run longer, or allow more time";
    let refused = refused(run.wait());
    assert_eq!((refused.to_string().as_str(), refused.as_str()), (expected, "too-few-windows"));
}

#[test]
fn a_gap_in_the_data_is_no_running_time() {
    let mut run = Run::new(settings_of("shape"), &["any"], None);
    for index in 0..40 {
        run.passed += seconds(9);
        assert_eq!(run.second("any", 0.0, usual(index)), None);
    }
    let progress = run.learner.progress(run.now());
    assert_eq!(progress.conditions["any"].seconds, 78.0);
    assert_eq!((progress.passed_seconds, progress.remaining_seconds), (400.0, 600.0));
}

#[test]
fn standstill_is_not_learnt_and_ends_with_a_time_to_settle() {
    let mut run = Run::new(settings_of("shape"), &["any"], None);
    assert_eq!(run.run("any", 10, usual), None);
    assert_eq!(run.learner.handle_standstill(run.now()), None);
    assert_eq!(run.run("any", 10, |_| 50.0), None);
    assert!(!run.learner.progress(run.now()).is_running);
    for _ in 0..2 {
        assert_eq!(run.learner.handle_running(run.now()), None);
        assert_eq!(run.run("any", 1, |_| 50.0), None);
    }
    assert_eq!(run.run("any", 1, usual), None);
    let progress = run.learner.progress(run.now());
    assert_eq!(
        progress.not_learnt,
        NotLearnt { standstill: 10, settling: 2, ..NotLearnt::default() }
    );
    assert_eq!(progress.conditions["any"].windows, 11);
    assert_eq!(progress.conditions["any"].seconds, 10.0);
    assert_eq!(progress.conditions["any"].sensors[&sensor("shape")].logit_max, Some(1.0));
}

#[test]
fn what_cannot_be_learnt_is_counted() {
    let mut run = Run::new(settings_of("shape"), &["any"], None);
    let (on, now) = (sensor("shape"), run.now());
    assert_eq!(run.second("idle", 0.0, 0.0), None);
    assert_eq!(run.learner.handle_window(&sensor("x"), "any", &features(0.0), 0.0, now), None);
    assert_eq!(run.learner.handle_unknown_condition(&sensor("x"), now), None);
    for logit in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e9] {
        assert_eq!(run.second("any", 0.0, logit), None);
    }
    assert_eq!(run.second("any", f64::NAN, 0.0), None);
    assert_eq!(run.learner.handle_unknown_condition(&on, run.now()), None);
    assert_eq!(run.second("any", 0.0, 50.0), None);
    assert_eq!(run.learner.handle_standstill(run.now()), None);
    assert_eq!(run.learner.handle_unknown_condition(&on, run.now()), None);
    let expected = NotLearnt {
        standstill: 1,
        settling: 1,
        unknown_condition: 1,
        unconfirmed: 0,
        unusable: 5,
        not_asked: 3,
    };
    assert_eq!(run.learner.progress(run.now()).not_learnt, expected);
    let refused = refused(run.wait());
    assert_eq!(refused, LearnRefused::NoWindows(expected));
    let text = "no window could be learnt up to the deadline (1 at standstill, 1 settling, 1 in no known condition, \
                0 in a condition that no later reading confirmed, 5 unusable, 3 not asked for): see that the machine runs in a condition \
                that is asked for, and that its sensors deliver, those of its condition again and again";
    assert_eq!(refused.to_string(), text);
}

#[test]
fn a_violation_and_a_person_end_a_run_at_once() {
    let mut run = Run::new(settings(), &["any"], None);
    assert_eq!(run.run("any", 50, usual), None);
    let outcome = run.learner.handle_violation("vibration-high", run.now()).expect("refused");
    let text = "vibration-high was violated while learning: a baseline is learnt of a healthy machine alone; remove the cause and learn again";
    assert_eq!(refused(outcome).to_string(), text);
    assert_eq!(run.learner.handle_timeout(run.now() + seconds(5000)), None);
    let mut run = Run::new(settings(), &["any"], None);
    assert_eq!(run.learner.cancel(), Some(LearnOutcome::Refused(LearnRefused::Cancelled)));
    assert_eq!(run.learner.cancel(), None);
    assert_eq!(run.learner.handle_unknown_condition(&sensor("shape"), run.now()), None);
}

#[test]
fn the_deadline_is_looked_at_with_every_input() {
    type Input = fn(&mut Learner, Instant) -> Option<LearnOutcome>;
    let inputs: [Input; 7] = [
        |learner, now| learner.handle_window(&sensor("shape"), "any", &features(0.0), 0.0, now),
        |learner, now| learner.handle_violation("limit", now),
        |learner, now| learner.handle_standstill(now),
        |learner, now| learner.handle_running(now),
        |learner, now| learner.handle_unknown_condition(&sensor("shape"), now),
        |learner, now| learner.handle_condition(None, now),
        |learner, now| learner.handle_timeout(now),
    ];
    for (number, input) in inputs.into_iter().enumerate() {
        let mut run = Run::new(settings(), &["any"], None);
        assert_eq!(run.run("any", 60, usual), None);
        let deadline = run.learner.poll_timeout().expect("not over");
        let outcome = input(&mut run.learner, deadline);
        assert!(matches!(outcome, Some(LearnOutcome::Learnt(_))), "{number}: {outcome:?}");
        assert_eq!(input(&mut run.learner, deadline), None, "{number}");
    }
}

/// A run of 101 windows, the last `above` of them at `logit`, up to the deadline.
fn with_last(
    on: &str,
    previous: Option<Baseline>,
    count: u32,
    above: u32,
    logit: f64,
) -> LearnOutcome {
    let mut run = Run::new(settings_of(on), &["any"], previous);
    let done =
        run.run("any", count, |index| if index + above >= count { logit } else { usual(index) });
    done.unwrap_or_else(|| run.wait())
}

#[test]
fn more_abnormal_windows_than_tolerated_refuse_a_run() {
    let check = |above: u32, logit: f64, is_refused: bool| {
        let outcome = with_last("shape", None, 100, above, logit);
        let found = matches!(&outcome, LearnOutcome::Refused(LearnRefused::Abnormal { .. }));
        assert_eq!(found, is_refused, "{above} {logit}: {outcome:?}");
    };
    check(2, THRESHOLD, false);
    check(3, THRESHOLD, true);
    check(3, THRESHOLD - 1e-9, false);
    let outcome = with_last("shape", None, 100, 3, 9.0);
    let text = "3 of 100 windows of shape in condition any reach the model's own threshold (logit 2.00), 2 or 1 % are allowed: \
                examine the machine and its sensor, then learn again";
    assert_eq!(refused(outcome).to_string(), text);
}

#[test]
fn one_percent_of_many_windows_is_tolerated_and_raises_no_threshold() {
    let check = |every: u32, is_refused: bool| {
        let mut settings = settings_of("shape");
        settings.duration = seconds(900);
        let mut run = Run::new(settings, &["any"], None);
        let done =
            run.run("any", 901, |index| if index % every == 50 { 40.0 } else { usual(index) });
        let outcome = done.unwrap_or_else(|| run.wait());
        match outcome {
            LearnOutcome::Learnt(baseline) => {
                assert!(!is_refused, "{every}");
                let usual = &baseline.conditions["any"][&sensor("shape")];
                assert_eq!(usual.threshold_logit, 1.0 + MARGIN);
            }
            LearnOutcome::Refused(refused) => assert!(is_refused, "{every}: {refused}"),
        }
    };
    check(101, false);
    check(90, true);
}

#[test]
fn a_machine_that_is_mostly_abnormal_is_not_waited_for() {
    let mut run = Run::new(settings_of("shape"), &["any"], None);
    let outcome = run.run("any", 1000, |_| 5.0).expect("refused");
    assert_eq!(refused(outcome).as_str(), "abnormal");
    assert_eq!(run.passed, seconds(20));
}

#[test]
fn an_absolute_model_says_nothing_of_a_new_machine() {
    let mut run = Run::new(settings_of("level"), &["any"], None);
    let outcome = run.run("any", 101, |index| usual(index) + 50.0).expect("done");
    let usual = &learnt(outcome).conditions["any"][&sensor("level")];
    assert_eq!(usual.threshold_logit, 51.0 + MARGIN);
}

#[test]
fn a_knock_sets_no_threshold_of_an_absolute_model() {
    // Ninth decile 1.0, median 0.0: up to 5.0 and the margin.
    let check = |logit: f64, expected: Option<f64>| {
        let outcome = with_last("level", None, 101, 1, logit);
        match outcome {
            LearnOutcome::Learnt(baseline) => {
                let usual = &baseline.conditions["any"][&sensor("level")];
                assert_eq!(Some(usual.threshold_logit), expected, "{logit}");
            }
            LearnOutcome::Refused(refused) => {
                assert_eq!(refused.as_str(), "outlier", "{refused}");
                assert_eq!(None, expected, "{logit}");
            }
        }
    };
    check(5.0 + MARGIN, Some(5.0 + MARGIN + MARGIN));
    check(5.1 + MARGIN, None);
}

/// A run whose level and logit are functions of the part that has passed, from 0 to 1, and of the window's number.
fn course(level_of: impl Fn(f64, u32) -> f64, logit_of: impl Fn(f64, u32) -> f64) -> LearnOutcome {
    let mut run = Run::new(settings_of("level"), &["any"], None);
    let outcome = (0..101).find_map(|index| {
        let part = f64::from(index) / 100.0;
        run.second("any", level_of(part, index), logit_of(part, index))
    });
    outcome.expect("done")
}

#[test]
fn a_machine_that_changes_while_it_is_learnt_is_refused() {
    let noise = |index: u32| f64::from(index * 7 % 11) / 5.0 - 1.0;
    let check = |outcome: LearnOutcome, expected: Option<&str>| match (outcome, expected) {
        (LearnOutcome::Learnt(_), None) => {}
        (LearnOutcome::Refused(LearnRefused::Unsteady { what, .. }), Some(expected)) => {
            assert_eq!(what, expected);
        }
        (outcome, expected) => panic!("{expected:?}: {outcome:?}"),
    };
    let steady = |_: f64, index: u32| noise(index);
    let level = |rise: f64| course(move |part, index| rise * part + noise(index), steady);
    check(level(0.0), None);
    // Half of a steady rise stands between the halves' means: 3 dB are 6 dB in all.
    check(level(5.5), None);
    check(level(7.0), Some("line"));
    check(level(-7.0), Some("line"));
    // A wide spread hides a difference that is small beside it.
    check(course(|part, index| 7.0 * part + 6.0 * noise(index), steady), None);
    // Half of the margin is 1.1.
    let step = |height: f64| {
        course(
            |_, index| noise(index),
            move |part, index| noise(index) / 4.0 + if part > 0.49 { height } else { 0.0 },
        )
    };
    check(step(1.0), None);
    check(step(1.3), Some("logit"));
    check(step(-1.3), Some("logit"));
}

#[test]
fn unsteady_machines_are_told_what_changed() {
    let outcome = course(|part, _| if part < 0.5 { 0.0 } else { 6.0 }, |_, index| usual(index));
    let text = refused(outcome).to_string();
    let head = " of level in condition any changed by +5.";
    let tail = " dB from the first half of learning to the second, 3.0 are allowed: let the machine warm up, look for wear, or divide \
                the condition, then learn again";
    assert!(text.contains(head) && text.ends_with(tail), "{text}");
}

#[test]
fn a_machine_that_changed_since_it_was_learnt_is_refused_unless_it_is_replaced() {
    let before = baseline(&["any"]);
    let high = 1.0 + MARGIN;
    let outcome = with_last("level", Some(before.clone()), 100, 3, high);
    let text = "3 of 100 windows of level in condition any reach the threshold learnt before (logit 3.20), 2 or 1 % are allowed: \
                examine the machine; if it was changed on purpose, learn with replacing";
    assert_eq!(refused(outcome).to_string(), text);
    let tolerated = learnt(with_last("level", Some(before.clone()), 100, 2, high));
    assert_eq!(tolerated.conditions["any"][&sensor("level")].threshold_logit, high);
    let below = learnt(with_last("level", Some(before.clone()), 100, 3, high - 1e-9));
    assert!(below.conditions["any"][&sensor("level")].threshold_logit > high + 2.0);
    let mut run = Run::of(replacing(&["any"]), settings_of("level"), Some(before.clone()));
    let outcome = run.run("any", 101, |index| usual(index) + 20.0).expect("done");
    assert_eq!(learnt(outcome).conditions["any"][&sensor("level")].threshold_logit, 21.0 + MARGIN);
    // Another model's threshold says nothing.
    let mut settings = settings_of("level");
    settings.models.values_mut().for_each(|model| model.sha256 = OTHER_SHA256.to_owned());
    let mut run = Run::new(settings, &["any"], Some(before));
    let outcome = run.run("any", 101, |index| usual(index) + 20.0).expect("done");
    assert_eq!(learnt(outcome).conditions["any"][&sensor("level")].model_sha256, OTHER_SHA256);
}

#[test]
fn conditions_that_were_not_visited_stay_as_they_were_learnt() {
    let before = baseline(&["idle", "full", "gone"]);
    let again = |request: LearnRequest, settings: LearnSettings| {
        let mut run = Run::of(request, settings, Some(before.clone()));
        assert_eq!(run.run("idle", 101, |index| usual(index) - 1.0), None);
        assert_eq!(run.run("full", 10, usual), None);
        learnt(run.wait())
    };
    let names = ["idle", "full", "new"];
    let merged = again(request(&names), settings());
    assert_eq!(merged.conditions.keys().collect::<Vec<_>>(), ["full", "idle"]);
    assert_eq!(merged.conditions["full"], before.conditions["full"]);
    assert_eq!(merged.conditions["idle"][&sensor("level")].logit.max, 0.0);
    let not_learnt: Vec<(&str, u64)> = merged
        .not_learnt
        .iter()
        .map(|(name, sensors)| (name.as_str(), sensors[&sensor("level")]))
        .collect();
    assert_eq!(not_learnt, [("full", 7), ("new", 0)]);
    assert_eq!(merged.validate(), Ok(()));
    let mut other = settings();
    other.models.values_mut().for_each(|model| model.sha256 = OTHER_SHA256.to_owned());
    for anew in [again(request(&names), other), again(replacing(&names), settings())] {
        assert_eq!(anew.conditions.keys().collect::<Vec<_>>(), ["idle"]);
    }
}

#[test]
fn a_sensor_that_is_silent_is_named_and_the_others_are_learnt() {
    let mut run = Run::new(settings(), &["any"], None);
    run.sensors.retain(|on| on.as_str() == "shape");
    assert_eq!(run.run("any", 200, usual), None);
    let baseline = learnt(run.wait());
    assert_eq!(baseline.conditions["any"].keys().collect::<Vec<_>>(), [&sensor("shape")]);
    let silent = BTreeMap::from([(sensor("level"), 0)]);
    assert_eq!(baseline.not_learnt, BTreeMap::from([("any".to_owned(), silent)]));
}

#[test]
fn settings_that_cannot_be_are_refused_all_at_once() {
    let check = |edit: fn(&mut LearnRequest, &mut LearnSettings), expected: &[&str]| {
        let (mut request, mut settings) = (request(&["any"]), settings());
        edit(&mut request, &mut settings);
        let faults = Learner::new(request, settings, Some(baseline(&["any"])), begun());
        let faults = faults.err().unwrap_or_default();
        assert_eq!(faults.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    };
    check(|_, _| {}, &[]);
    check(
        |_, settings| settings.duration = Duration::ZERO,
        &["duration of learning is 0ns: it must be above 0 and at most 30 days"],
    );
    check(
        |_, settings| settings.deadline = seconds(99),
        &["deadline of learning is 99s: it must be at least duration and at most 30 days"],
    );
    check(|_, settings| settings.deadline = DURATION_MAX, &[]);
    check(
        |_, settings| settings.windows_min = 9,
        &["windows-min of learning is 9: at least 10 are needed"],
    );
    check(
        |_, settings| {
            settings.margin_logit.insert(sensor("level"), f64::NAN);
            settings.margin_logit.remove("shape");
        },
        &[
            "margin-logit of level is Some(NaN): it must be finite and at least 0.01",
            "margin-logit of shape is None: it must be finite and at least 0.01",
        ],
    );
    check(
        |_, settings| {
            settings
                .models
                .insert(sensor("level"), ModelOfSensor { sha256: "x".to_owned(), ..model(true) });
        },
        &["model of level: its sha256 must be 64 hexadecimal digits"],
    );
    check(
        |_, settings| settings.models.clear(),
        &["no sensor of the machine has a model: there is nothing to learn"],
    );
    check(
        |request, _| request.conditions.clear(),
        &["0 pairs of operating condition and sensor: 1 to 256 can be learnt"],
    );
    check(
        |request, _| request.conditions.push("any".to_owned()),
        &["\"any\" is not the name of an operating condition, or is there twice"],
    );
    check(
        |request, _| {
            request.operator = "a".repeat(257);
            request.machine_id = MachineId::new("press-2").expect("a name");
        },
        &[
            "operator has 257 bytes: at most 256 are allowed",
            "the previous baseline is of machine press-1, press-2 is to be learnt",
        ],
    );
}

proptest! {
    #[test]
    fn further_windows_never_lower_the_threshold(
        logits in prop::collection::vec(-3.0_f64..4.0, 60..120),
        is_absolute in any::<bool>(),
    ) {
        let threshold_after = |count: usize| {
            let mut settings = settings_of("shape");
            settings.duration = seconds(10);
            settings.deadline = seconds(500);
            settings.models.insert(sensor("shape"), model(is_absolute));
            // A second condition that never comes keeps the run open.
            let mut run = Run::new(settings, &["any", "never"], None);
            for logit in &logits[..count] {
                if let Some(outcome) = run.second("any", 0.0, *logit) {
                    return Err(outcome);
                }
            }
            match run.wait() {
                LearnOutcome::Learnt(baseline) => {
                    Ok(baseline.conditions["any"][&sensor("shape")].threshold_logit)
                }
                refused @ LearnOutcome::Refused(_) => Err(refused),
            }
        };
        let counts = [logits.len() / 2, logits.len() * 3 / 4, logits.len()];
        let thresholds: Vec<f64> = counts.into_iter().filter_map(|n| threshold_after(n).ok()).collect();
        prop_assert!(thresholds.is_sorted(), "{:?}", thresholds);
        if let Some(last) = threshold_after(logits.len()).ok().filter(|_| !is_absolute) {
            prop_assert!(last < THRESHOLD + MARGIN);
        }
    }

    #[test]
    fn a_refused_run_leaves_the_previous_baseline_and_answers_once(
        steps in prop::collection::vec((0_u8..20, -3.0_f64..6.0), 1..150),
        is_replacing in any::<bool>(),
    ) {
        let before = baseline(&["any", "idle"]);
        let request = LearnRequest { is_replacing, ..request(&["any", "idle"]) };
        let mut run = Run::of(request, settings(), Some(before.clone()));
        let mut outcomes = Vec::new();
        for (step, logit) in steps {
            let now = run.now();
            outcomes.extend(match step {
                0 => run.learner.handle_standstill(now),
                1 => run.learner.handle_running(now),
                2 => run.learner.handle_unknown_condition(&sensor("shape"), now),
                3 if logit > 5.0 => run.learner.handle_violation("limit", now),
                4 if logit > 5.5 => run.learner.cancel(),
                3..=9 => run.second("idle", logit, logit),
                10..=19 | 20.. => run.second("any", logit, logit),
            });
        }
        outcomes.extend(run.learner.handle_timeout(run.now() + seconds(2000)));
        prop_assert_eq!(outcomes.len(), 1);
        prop_assert_eq!(run.learner.previous(), Some(&before));
        if let Some(LearnOutcome::Learnt(baseline)) = outcomes.pop() {
            prop_assert_eq!(baseline.validate(), Ok(()));
        }
    }
}
