use proptest::prelude::*;

use super::*;

const HOUR: i64 = 3_600_000_000;
/// 2026-03-01T00:00:00Z.
const MARCH: i64 = 1_772_323_200_000_000;

fn alert(id: &str, rule: &str, hour: i64) -> AlertRow {
    AlertRow {
        alert_id: id.to_owned(),
        rule: rule.to_owned(),
        machine: "press-1".to_owned(),
        is_of_machine: true,
        trip_id: None,
        fired_at: EventTime::from_micros(MARCH + hour * HOUR),
        is_suppressed: false,
    }
}

fn outcome(id: &str, verdict: OutcomeVerdict, alert_id: &str, hour: i64) -> OutcomeRow {
    OutcomeRow {
        outcome_id: id.to_owned(),
        verdict,
        machine: "press-1".to_owned(),
        alert_id: Some(alert_id.to_owned()),
        trip_id: None,
        timestamp: EventTime::from_micros(MARCH + hour * HOUR),
        place: (0, 0),
    }
}

fn trip(id: &str, model: &str) -> TripRow {
    TripRow {
        trip_id: id.to_owned(),
        machine: "press-1".to_owned(),
        model: Some(model.to_owned()),
        timestamp: EventTime::from_micros(MARCH),
    }
}

/// All, without outcome, confirmed, false alarms, disputed.
fn counts(figures: &Figures) -> [u64; 5] {
    let Figures { alerts, without_outcome, confirmed, false_alarms, disputed, .. } = *figures;
    [alerts, without_outcome, confirmed, false_alarms, disputed]
}

#[test]
fn the_interval_is_wilsons() {
    let check = |successes, trials, low: f64, high: f64| {
        let found = wilson(successes, trials).expect("trials");
        let is_near = (found.0 - low).abs() < 5e-5 && (found.1 - high).abs() < 5e-5;
        assert!(is_near, "{successes} of {trials}: {found:?}");
    };
    check(81, 263, 0.2553, 0.3662);
    check(15, 148, 0.0624, 0.1605);
    check(0, 20, 0.0, 0.1611);
    check(1, 29, 0.0061, 0.1718);
    check(8, 10, 0.4902, 0.9433);
    check(10, 10, 0.7225, 1.0);
    assert_eq!(wilson(0, 0), None);
}

#[test]
fn alerts_without_outcome_are_counted_apart_and_never_as_right() {
    use OutcomeVerdict::{Confirmed, FalseAlarm, Note, PartReplaced};
    let alerts = ["a", "b", "c", "d", "e"].map(|id| alert(id, "hot", 0));
    let outcomes = [
        outcome("1", Confirmed, "a", 1),
        outcome("2", FalseAlarm, "b", 2),
        outcome("3", PartReplaced, "c", 10),
        outcome("4", Note, "d", 1),
    ];
    let report = precision(&alerts, &outcomes, &[]);
    assert_eq!(counts(&report.all), [5, 2, 2, 1, 0]);
    assert_eq!(report.all.precision, Some(2.0 / 3.0));
    assert_eq!(report.all.median_seconds_to_outcome, Some(7_200.0));
    assert_eq!((report.rules.len(), &report.rules[0].figures), (1, &report.all));
    let silent = precision(&alerts, &[], &[]);
    assert_eq!(counts(&silent.all), [5, 5, 0, 0, 0]);
    assert_eq!((silent.all.precision, silent.all.precision_low), (None, None));
}

#[test]
fn a_person_may_correct_and_the_newest_row_counts() {
    use OutcomeVerdict::{Confirmed, FalseAlarm, Note};
    let alerts = [alert("a", "hot", 0)];
    let judged = |outcomes: &[OutcomeRow]| precision(&alerts, outcomes, &[]).all;
    let first = outcome("1", Confirmed, "a", 5);
    let corrected = outcome("1", FalseAlarm, "a", 6);
    let report = judged(&[corrected.clone(), first.clone()]);
    assert_eq!(counts(&report), [1, 0, 0, 1, 0]);
    assert_eq!(report.median_seconds_to_outcome, Some(5.0 * 3_600.0), "the first answer");
    // At the same time the later offset counts.
    let same_time = OutcomeRow { place: (7, 0), ..outcome("1", FalseAlarm, "a", 5) };
    assert_eq!(counts(&judged(&[same_time, first.clone()])), [1, 0, 0, 1, 0]);
    // What was taken back is no verdict, and neither is what was said before about another alert.
    assert_eq!(counts(&judged(&[first.clone(), outcome("1", Note, "a", 6)])), [1, 1, 0, 0, 0]);
    assert_eq!(counts(&judged(&[first.clone(), outcome("1", Confirmed, "b", 6)])), [1, 1, 0, 0, 0]);
    // Two people: the newer one counts, and that they differ is told.
    assert_eq!(counts(&judged(&[first, outcome("2", FalseAlarm, "a", 4)])), [1, 0, 1, 0, 1]);
}

#[test]
fn trips_are_judged_by_model_through_their_name_or_their_alert() {
    use OutcomeVerdict::{Confirmed, FalseAlarm};
    let told = AlertRow { trip_id: Some("t-1".to_owned()), ..alert("a", "trip", 0) };
    let trips =
        [trip("t-1", "motor@1.0.0"), trip("t-2", "motor@1.0.0"), trip("t-3", "motor@1.1.0")];
    let of_trip = |id: &str, verdict, trip: &str| OutcomeRow {
        alert_id: None,
        trip_id: Some(trip.to_owned()),
        ..outcome(id, verdict, "", 1)
    };
    let outcomes = [outcome("1", Confirmed, "a", 1), of_trip("2", FalseAlarm, "t-2")];
    let report = precision(std::slice::from_ref(&told), &outcomes, &trips);
    let models: Vec<_> =
        report.models.iter().map(|model| (model.name.as_str(), counts(&model.figures))).collect();
    assert_eq!(models, [("motor@1.0.0", [2, 0, 1, 1, 0]), ("motor@1.1.0", [1, 1, 0, 0, 0])]);
    assert_eq!(counts(&report.all), [1, 0, 1, 0, 0]);
    // The trip's name finds the alert, too.
    let report = precision(&[told], &[of_trip("1", FalseAlarm, "t-1")], &trips);
    assert_eq!(counts(&report.all), [1, 0, 0, 1, 0]);
}

#[test]
fn an_outcome_of_another_machine_judges_neither_the_alert_nor_the_trip() {
    use OutcomeVerdict::{Confirmed, Note};
    let told = AlertRow { trip_id: Some("t-1".to_owned()), ..alert("a", "trip", 0) };
    let other = AlertRow { machine: "press-2".to_owned(), ..alert("b", "hot", 0) };
    let of_sensor = AlertRow {
        machine: "press-3/oil".to_owned(),
        is_of_machine: false,
        ..alert("c", "hot", 0)
    };
    let alerts = [told, other, of_sensor];
    let nowhere = TripRow { machine: String::new(), ..trip("t-2", "motor@1") };
    let trips = [trip("t-1", "motor@1"), nowhere];
    let of = |machine: &str, alert: Option<&str>, trip: Option<&str>, verdict| OutcomeRow {
        machine: machine.to_owned(),
        alert_id: alert.map(str::to_owned),
        trip_id: trip.map(str::to_owned),
        ..outcome("1", verdict, "", 1)
    };
    // Of other machines, confirmed alerts, confirmed trips.
    let check = |row: OutcomeRow, expected: [u64; 3]| {
        let report = precision(&alerts, std::slice::from_ref(&row), &trips);
        let of_trips = report.models.iter().map(|model| model.figures.confirmed).sum();
        let found = [report.outcomes_of_other_machines, report.all.confirmed, of_trips];
        assert_eq!(found, expected, "{row:?}");
        assert_eq!((report.outcomes, report.outcomes_of_others), (1, 0), "{row:?}");
    };
    check(of("press-1", Some("a"), None, Confirmed), [0, 1, 1]);
    check(of("press-2", Some("a"), None, Confirmed), [1, 0, 0]);
    check(of("Press-1", Some("a"), None, Confirmed), [1, 0, 0]);
    check(of("press-2", None, Some("t-1"), Confirmed), [1, 0, 0]);
    // The alert is of this machine and the trip is not, and the other way round.
    check(of("press-2", Some("b"), Some("t-1"), Confirmed), [1, 0, 0]);
    check(of("press-1", Some("b"), Some("t-1"), Confirmed), [1, 0, 0]);
    // What is of no known machine contradicts nobody.
    check(of("press-3", Some("c"), None, Confirmed), [0, 1, 0]);
    check(of("press-9", None, Some("t-2"), Confirmed), [0, 0, 1]);
    // A note judges nothing, whomever it is about.
    check(of("press-2", Some("a"), None, Note), [0, 0, 0]);
}

#[test]
fn revisions_are_one_alert_and_what_was_never_told_is_counted_apart() {
    let suppressed = |row: AlertRow| AlertRow { is_suppressed: true, ..row };
    let alerts = [
        alert("a", "hot", 0),
        alert("a", "hot", 0),
        suppressed(alert("b", "hot", 0)),
        suppressed(alert("b", "hot", 0)),
        suppressed(alert("c", "hot", 0)),
        alert("c", "hot", 0),
    ];
    let outcomes = [outcome("1", OutcomeVerdict::Confirmed, "b", 1)];
    let report = precision(&alerts, &outcomes, &[]);
    assert_eq!((counts(&report.all), report.suppressed_alerts), ([2, 2, 0, 0, 0], 1));
    assert_eq!(report.outcomes_of_others, 1);
}

#[test]
fn outcomes_that_fit_nothing_are_told() {
    let without =
        OutcomeRow { alert_id: None, ..outcome("1", OutcomeVerdict::PartReplaced, "", 1) };
    let note = OutcomeRow { alert_id: None, ..outcome("2", OutcomeVerdict::Note, "", 1) };
    let other = outcome("3", OutcomeVerdict::FalseAlarm, "z", 1);
    let report = precision(&[alert("a", "hot", 0)], &[without, note, other], &[]);
    assert_eq!(
        (report.outcomes, report.failures_without_alert, report.outcomes_of_others),
        (3, 1, 1)
    );
}

#[test]
fn machines_and_months_have_figures_of_their_own() {
    let alerts = [
        alert("a", "hot", -1),
        alert("b", "hot", 0),
        AlertRow { machine: String::new(), ..alert("c", "hot", 0) },
        alert("d", "cold", 0),
    ];
    let report = precision(&alerts, &[], &[]);
    let names: Vec<_> = report.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["cold", "hot"]);
    let parts = report.rules[1].parts.iter();
    let parts: Vec<_> = parts.map(|part| (part.machine.as_str(), part.month.as_str())).collect();
    assert_eq!(parts, [(NOT_KNOWN, "2026-03"), ("press-1", "2026-02"), ("press-1", "2026-03")]);
}

fn ids() -> impl Strategy<Value = String> {
    (0_u8..8).prop_map(|number| format!("id-{number}"))
}

prop_compose! {
    fn alerts()(
        rows in proptest::collection::vec((ids(), any::<bool>()), 0..12),
    ) -> Vec<AlertRow> {
        let row = |(id, is_suppressed): (String, bool)| {
            // All rows of one alert agree in everything but the suppression.
            let number = i64::from(id.as_bytes()[3] - b'0');
            let rule = if number % 2 == 0 { "even" } else { "odd" };
            // One alert for each trip at most.
            let trip_id = (number < 5).then(|| id.clone());
            AlertRow { is_suppressed, trip_id, ..alert(&id, rule, number * 200) }
        };
        rows.into_iter().map(row).collect()
    }
}

prop_compose! {
    fn outcomes()(
        rows in proptest::collection::vec(
            (ids(), 0_usize..4, proptest::option::of(ids()), proptest::option::of(ids()), 0_i64..8),
            0..16,
        ),
    ) -> Vec<OutcomeRow> {
        let rows = rows.into_iter().enumerate();
        rows.map(|(offset, (id, verdict, alert_id, trip_id, hour))| OutcomeRow {
            // One of four is of another machine.
            machine: if hour % 4 == 3 { "press-2" } else { "press-1" }.to_owned(),
            alert_id,
            trip_id,
            place: (offset as i64, 0),
            ..outcome(&id, OutcomeVerdict::ALL[verdict], "", hour)
        })
        .collect()
    }
}

/// Whether an alert was right, asked of all rows anew.
fn slowly(alerts: &[AlertRow], outcomes: &[OutcomeRow], alert_id: &str) -> Option<bool> {
    let is_told = |id: &str| alerts.iter().any(|row| row.alert_id == id && !row.is_suppressed);
    // The first row of an alert that is told says which trip it tells.
    let trip_of =
        |id: &str| alerts.iter().find(|row| row.alert_id == id).and_then(|row| row.trip_id.clone());
    let mut rows: Vec<&OutcomeRow> = outcomes.iter().collect();
    rows.sort_by_key(|row| (row.timestamp, row.place));
    let mut answer = None;
    for (index, row) in rows.iter().enumerate() {
        let is_newest = rows[index + 1..].iter().all(|later| later.outcome_id != row.outcome_id);
        let named = row.alert_id.clone().filter(|id| is_told(id));
        let of_trip = || {
            let trip = row.trip_id.clone()?;
            let mut told = alerts.iter().filter(|alert| is_told(&alert.alert_id));
            told.find(|alert| trip_of(&alert.alert_id).as_ref() == Some(&trip))
                .map(|alert| alert.alert_id.clone())
        };
        // All alerts are of this machine.
        let is_of_machine = row.machine == "press-1";
        if is_newest && is_of_machine && named.or_else(of_trip).as_deref() == Some(alert_id) {
            answer = row.verdict.is_right().or(answer);
        }
    }
    answer
}

proptest! {
    #[test]
    fn the_report_agrees_with_a_slow_one(alerts in alerts(), outcomes in outcomes()) {
        let report = precision(&alerts, &outcomes, &[]);
        let told = alerts.iter().filter(|row| !row.is_suppressed);
        let told: std::collections::BTreeSet<_> = told.map(|row| row.alert_id.as_str()).collect();
        let answers: Vec<_> = told.iter().map(|id| slowly(&alerts, &outcomes, id)).collect();
        let count = |wanted| answers.iter().filter(|answer| **answer == wanted).count() as u64;
        let found = (report.all.without_outcome, report.all.confirmed, report.all.false_alarms);
        prop_assert_eq!(found, (count(None), count(Some(true)), count(Some(false))));
    }

    #[test]
    fn figures_add_up_and_the_order_does_not_matter(
        alerts in alerts(),
        outcomes in outcomes(),
        trips in proptest::collection::vec(ids(), 0..6),
    ) {
        let trips: Vec<_> = trips.iter().map(|id| trip(id, "motor@1")).collect();
        let report = precision(&alerts, &outcomes, &trips);
        for figures in std::iter::once(&report.all).chain(report.rules.iter().map(|rule| &rule.figures)) {
            prop_assert_eq!(figures.alerts, figures.with_outcome + figures.without_outcome);
            prop_assert_eq!(figures.with_outcome, figures.confirmed + figures.false_alarms);
            prop_assert!(figures.disputed <= figures.with_outcome);
            prop_assert_eq!(figures.precision.is_some(), figures.with_outcome > 0);
            prop_assert_eq!(figures.median_seconds_to_outcome.is_some(), figures.with_outcome > 0);
            if let (Some(low), Some(share), Some(high)) =
                (figures.precision_low, figures.precision, figures.precision_high)
            {
                prop_assert!(0.0 <= low && low <= share && share <= high && high <= 1.0);
            }
        }
        let mut sum = [0; 5];
        for rule in &report.rules {
            let mut of_parts = [0; 5];
            for part in &rule.parts {
                for (sum, count) in of_parts.iter_mut().zip(counts(&part.figures)) {
                    *sum += count;
                }
            }
            prop_assert_eq!(of_parts, counts(&rule.figures));
            for (sum, count) in sum.iter_mut().zip(of_parts) {
                *sum += count;
            }
        }
        prop_assert_eq!(sum, counts(&report.all));
        let backwards = precision(
            &alerts.iter().rev().cloned().collect::<Vec<_>>(),
            &outcomes.iter().rev().cloned().collect::<Vec<_>>(),
            &trips.iter().rev().cloned().collect::<Vec<_>>(),
        );
        prop_assert_eq!(backwards, report);
    }

    #[test]
    fn an_alert_without_outcome_changes_no_precision(alerts in alerts(), outcomes in outcomes()) {
        let before = precision(&alerts, &outcomes, &[]).all;
        let mut more = alerts.clone();
        more.push(alert("nobody looked", "even", 0));
        let after = precision(&more, &outcomes, &[]).all;
        prop_assert_eq!((before.precision, before.alerts + 1), (after.precision, after.alerts));
        prop_assert_eq!(before.without_outcome + 1, after.without_outcome);
    }

    #[test]
    fn more_of_the_same_narrows_the_interval(successes in 0_u64..1_000, failures in 0_u64..1_000) {
        prop_assume!(successes + failures > 0);
        let width = |times: u64| {
            let (low, high) = wilson(successes * times, (successes + failures) * times).expect("trials");
            high - low
        };
        prop_assert!(width(4) < width(1));
    }

    /// By which the interval is defined: at each end the share found lies just so many standard deviations off.
    #[test]
    fn the_ends_are_where_the_score_test_turns(successes in 0_u64..500, failures in 0_u64..500) {
        prop_assume!(successes + failures > 0);
        let trials = (successes + failures) as f64;
        let share = successes as f64 / trials;
        let (low, high) = wilson(successes, successes + failures).expect("trials");
        for end in [low, high] {
            let off = (share - end).powi(2) - Z * Z * end * (1.0 - end) / trials;
            prop_assert!(off.abs() < 1e-12, "{end}: {off}");
        }
    }
}
