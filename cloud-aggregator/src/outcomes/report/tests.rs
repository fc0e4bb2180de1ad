use shared_proto::model::OutcomeVerdict;

use super::super::precision::{AlertRow, OutcomeRow, TripRow};
use super::*;

fn time(text: &str) -> EventTime {
    EventTime::parse(text).expect("valid")
}

fn rows() -> Rows {
    let alert = |id: &str, machine: &str| AlertRow {
        alert_id: id.to_owned(),
        rule: "temperature-above-100".to_owned(),
        machine: machine.to_owned(),
        is_of_machine: true,
        trip_id: None,
        fired_at: time("2026-03-01T08:00:00Z"),
        is_suppressed: false,
    };
    let outcome = |id: &str, verdict, alert_id: &str| OutcomeRow {
        outcome_id: id.to_owned(),
        verdict,
        machine: "press-1".to_owned(),
        alert_id: Some(alert_id.to_owned()),
        trip_id: None,
        timestamp: time("2026-03-01T20:00:00Z"),
        place: (0, 0),
    };
    Rows {
        alerts: vec![alert("a", "press-1"), alert("b", "press-1"), alert("c", "press-2")],
        outcomes: vec![
            outcome("1", OutcomeVerdict::Confirmed, "a"),
            outcome("2", OutcomeVerdict::FalseAlarm, "b"),
            outcome("3", OutcomeVerdict::Confirmed, "c"),
        ],
        trips: vec![TripRow {
            trip_id: "t".to_owned(),
            machine: "press-1".to_owned(),
            model: Some("motor@1.0.0".to_owned()),
            timestamp: time("2026-03-01T08:00:00Z"),
        }],
        missing: vec!["outcomes"],
    }
}

fn printed(rows: &Rows, as_json: bool) -> String {
    let mut out = Vec::new();
    print(rows, Some(time("2026-03-01T00:00:00Z")), as_json, &mut out).expect("written");
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn people_get_tables() {
    let expected = "\
note: there is no table outcomes yet
rule                   machine  month    alerts  without outcome  confirmed  false alarms  precision  95 % interval   median to outcome
temperature-above-100  (all)    (all)         3                1          1             1  0.500      0.095 to 0.905  12.0 h
temperature-above-100  press-1  2026-03       2                0          1             1  0.500      0.095 to 0.905  12.0 h
temperature-above-100  press-2  2026-03       1                1          0             0  -          -               -

model        machine  month    trips  without outcome  confirmed  false alarms  precision  95 % interval  median to outcome
motor@1.0.0  (all)    (all)        1                1          0             0  -          -              -
motor@1.0.0  press-1  2026-03      1                1          0             0  -          -              -

3 alerts, 2 of them judged (0 disputed: the newest outcome counts), 1 without outcome are in no precision
0 alerts were suppressed and are not counted; 3 outcomes, 0 of them about others than these alerts and trips
1 outcomes name an alert or a trip of another machine than theirs and count for neither
0 failures were found without any alert or trip
";
    let found = printed(&rows(), false);
    assert_eq!(found, expected, "\n{found}");
    let empty = printed(&Rows::default(), false);
    assert!(empty.starts_with("no alerts by rule\n\nno trips by model\n\n0 alerts"), "{empty}");
}

#[test]
fn programs_get_one_object() {
    let text = printed(&rows(), true);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(text.lines().count(), 1);
    assert_eq!(report["since"], "2026-03-01T00:00:00.000000Z");
    assert_eq!(report["missing_tables"][0], "outcomes");
    assert_eq!(report["all"]["without_outcome"], 1);
    assert_eq!(report["outcomes_of_other_machines"], 1);
    let rule = &report["rules"][0];
    assert_eq!((&rule["name"], &rule["precision"]), (&"temperature-above-100".into(), &0.5.into()));
    assert_eq!(rule["parts"][1]["machine"], "press-2");
    assert_eq!(rule["parts"][1]["precision"], serde_json::Value::Null);
    assert_eq!(report["models"][0]["alerts"], 1);
}

#[test]
fn times_are_told_in_their_largest_unit() {
    let check = |seconds, expected: &str| assert_eq!(duration(seconds), expected);
    check(0.0, "0.0 s");
    check(59.94, "59.9 s");
    check(60.0, "1.0 min");
    check(5_400.0, "1.5 h");
    check(129_600.0, "1.5 d");
}

#[test]
fn dates_are_days() {
    assert_eq!(date("2026-03-01").expect("valid"), time("2026-03-01T00:00:00Z"));
    for text in ["", "yesterday", "2026-3-1", "2026-02-30", "2026-03-01T00:00:00Z"] {
        let error = date(text).expect_err("refused");
        assert_eq!(error.exit_code(), EXIT_USAGE, "{text}");
    }
}
