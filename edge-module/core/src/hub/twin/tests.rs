//! By example; `document` and `model` try what nobody thought of.

use serde_json::json;

use super::*;

mod document;
mod model;

const SECOND: Duration = Duration::from_secs(1);

#[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
fn start() -> Instant {
    Instant::now()
}

fn map(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { panic!("{value} is no object") };
    map
}

/// A twin that is connected at `now`.
fn connected(now: Instant) -> Twin {
    let mut twin = Twin::new(TwinSettings::default(), 1);
    assert_eq!(twin.poll(now), None, "nothing to say before a connect");
    assert_eq!(twin.poll_timeout(), None);
    twin.handle_connected(now);
    twin
}

fn get(twin: &mut Twin, now: Instant) -> String {
    match twin.poll(now) {
        Some(TwinRequest::Get { rid }) => rid.to_string(),
        other @ (Some(TwinRequest::Report { .. }) | None) => panic!("{other:?}"),
    }
}

fn report(twin: &mut Twin, now: Instant) -> (String, Value) {
    match twin.poll(now) {
        Some(TwinRequest::Report { rid, body }) => {
            (rid.to_string(), serde_json::from_str(&body).expect("JSON"))
        }
        other @ (Some(TwinRequest::Get { .. }) | None) => panic!("{other:?}"),
    }
}

fn answer(
    twin: &mut Twin,
    rid: &str,
    version: u64,
    desired: Value,
    now: Instant,
) -> Vec<TwinEvent> {
    answer_both(twin, rid, version, desired, json!({}), now)
}

fn answer_both(
    twin: &mut Twin,
    rid: &str,
    version: u64,
    mut desired: Value,
    mut reported: Value,
    now: Instant,
) -> Vec<TwinEvent> {
    desired["$version"] = json!(version);
    desired["$metadata"] = json!({"$lastUpdated": "2024-01-01T00:00:00Z"});
    reported["$version"] = json!(77);
    let body = json!({"desired": desired, "reported": reported}).to_string();
    twin.handle_answer(200, rid, body.as_bytes(), now)
}

fn patch(twin: &mut Twin, version: u64, patch: &Value, now: Instant) -> Vec<TwinEvent> {
    let mut patch = patch.clone();
    patch["$version"] = json!(version);
    twin.handle_patch(version, patch.to_string().as_bytes(), now)
}

fn desired(version: u64, properties: Value) -> Vec<TwinEvent> {
    vec![TwinEvent::Desired { version, properties: map(properties) }]
}

/// A twin whose GET was answered with an empty twin of version 1.
fn settled(now: Instant) -> Twin {
    let mut twin = connected(now);
    let rid = get(&mut twin, now);
    assert_eq!(answer(&mut twin, &rid, 1, json!({}), now), desired(1, json!({})));
    twin
}

#[test]
fn nothing_is_reported_before_the_twin_is_known() {
    let now = start();
    let mut twin = connected(now);
    assert_eq!(twin.set_reported(map(json!({"a": 1, "b": {"c": 2}, "n": null})), now), None);
    assert_eq!(twin.poll_timeout(), Some(now));
    let rid = get(&mut twin, now);
    assert_eq!(twin.poll(now), None);
    assert_eq!(twin.poll_timeout(), Some(now + 30 * SECOND));
    let shown = json!({"a": 1, "b": {"c": 1, "d": 1}, "old": [1]});
    let events = answer_both(&mut twin, &rid, 4, json!({"limit": 4.5}), shown, now);
    assert_eq!(events, desired(4, json!({"limit": 4.5})));
    assert_eq!(twin.desired(), Some((&map(json!({"limit": 4.5})), 4)));
    let (rid, body) = report(&mut twin, now);
    assert_eq!(body, json!({"b": {"c": 2, "d": null}, "old": null}));
    assert_eq!(twin.handle_answer(204, &rid, b"", now), []);
    assert_eq!(twin.poll(now + 60 * SECOND), None, "nothing is owed");
    assert_eq!(twin.poll_timeout(), None);
}

#[test]
fn reports_keep_their_distance_except_the_first_after_a_connect() {
    let now = start();
    let mut twin = settled(now);
    assert_eq!(twin.set_reported(map(json!({"a": 1})), now), None);
    let (rid, _) = report(&mut twin, now);
    assert_eq!(twin.set_reported(map(json!({"a": 2})), now), None);
    assert_eq!(twin.poll(now), None, "one in flight");
    assert_eq!(twin.handle_answer(204, &rid, b"", now + SECOND), []);
    assert_eq!(twin.poll_timeout(), Some(now + 5 * SECOND));
    assert_eq!(twin.poll(now + 5 * SECOND - Duration::from_nanos(1)), None);
    let (_, body) = report(&mut twin, now + 5 * SECOND);
    assert_eq!(body, json!({"a": 2}));
    let later = now + 6 * SECOND;
    assert_eq!(twin.set_reported(map(json!({"a": 2})), later), None, "no change");
    twin.handle_disconnected();
    assert_eq!(twin.poll_timeout(), None);
    twin.handle_connected(later);
    let rid = get(&mut twin, later);
    let events = answer_both(&mut twin, &rid, 1, json!({}), json!({"a": 1}), later);
    assert_eq!(events, [], "the same desired properties are not told again");
    assert_eq!(report(&mut twin, later).1, json!({"a": 2}));
}

#[test]
fn report_after_a_long_quiet_goes_at_once() {
    let now = start();
    let mut twin = settled(now);
    let later = now + 600 * SECOND;
    assert_eq!(twin.set_reported(map(json!({"a": 1})), later), None);
    assert_eq!(twin.poll_timeout(), Some(later));
    assert_eq!(report(&mut twin, later).1, json!({"a": 1}));
}

#[test]
fn changes_follow_on_each_other() {
    let now = start();
    let mut twin = settled(now);
    let events = patch(&mut twin, 2, &json!({"a": {"b": 1, "c": 2}, "d": 3}), now);
    assert_eq!(events, desired(2, json!({"a": {"b": 1, "c": 2}, "d": 3})));
    assert_eq!(patch(&mut twin, 2, &json!({"d": 4}), now), [], "known");
    assert_eq!(patch(&mut twin, 1, &json!({"d": 4}), now), [], "older");
    let events = patch(&mut twin, 3, &json!({"a": {"b": null}, "d": null}), now);
    assert_eq!(events, desired(3, json!({"a": {"c": 2}})));
    assert_eq!(patch(&mut twin, 5, &json!({"e": 5}), now), [], "a gap");
    let rid = get(&mut twin, now);
    let events = answer(&mut twin, &rid, 4, json!({"f": 4}), now);
    assert_eq!(events, desired(5, json!({"e": 5, "f": 4})));
    assert_eq!(twin.poll_timeout(), None);
}

#[test]
fn changes_during_a_get_are_merged_after_it() {
    let now = start();
    let mut twin = connected(now);
    assert_eq!(patch(&mut twin, 8, &json!({"a": 8}), now), [], "before the GET");
    let rid = get(&mut twin, now);
    assert_eq!(patch(&mut twin, 7, &json!({"a": 7, "b": 7}), now), []);
    assert_eq!(patch(&mut twin, 6, &json!({"a": 6}), now), []);
    assert_eq!(patch(&mut twin, 8, &json!({"a": 8}), now), []);
    let events = answer(&mut twin, &rid, 6, json!({"a": 6}), now);
    assert_eq!(events, desired(8, json!({"a": 8, "b": 7})));
    assert_eq!(twin.poll_timeout(), None);
}

#[test]
fn change_that_overtakes_an_answer_is_not_lost_by_it() {
    let now = start();
    let mut twin = settled(now);
    assert_eq!(twin.set_reported(map(json!({"r": 1})), now), None);
    assert_eq!(patch(&mut twin, 3, &json!({"a": 3}), now), [], "a gap");
    let rid = get(&mut twin, now);
    assert_eq!(twin.poll(now), None, "no report while what the hub shows is asked for");
    assert_eq!(patch(&mut twin, 2, &json!({"b": 2}), now), [], "waits for the answer");
    let events = answer(&mut twin, &rid, 1, json!({}), now);
    assert_eq!(events, desired(3, json!({"a": 3, "b": 2})));
    assert_eq!(report(&mut twin, now).1, json!({"r": 1}));
}

#[test]
fn change_is_not_merged_with_what_was_known_before_the_connect() {
    let now = start();
    let mut twin = settled(now);
    twin.handle_connected(now);
    assert_eq!(patch(&mut twin, 2, &json!({"a": 2}), now), []);
    let rid = get(&mut twin, now);
    let events = answer(&mut twin, &rid, 1, json!({"made": "anew"}), now);
    assert_eq!(events, desired(2, json!({"made": "anew", "a": 2})));
}

#[test]
fn changes_that_do_not_join_or_fit_ask_again() {
    let now = start();
    let check = |versions: std::ops::RangeInclusive<u64>, known: u64, asks: bool| {
        let mut twin = connected(now);
        let rid = get(&mut twin, now);
        for version in versions {
            assert_eq!(patch(&mut twin, version, &json!({"a": version}), now), []);
        }
        assert_eq!(answer(&mut twin, &rid, 10, json!({}), now).len(), 1);
        assert_eq!(twin.desired().expect("known").1, known);
        assert_eq!(twin.poll(now), None, "not at once");
        assert_eq!(matches!(twin.poll(now + SECOND), Some(TwinRequest::Get { .. })), asks);
    };
    check(11..=26, 26, false);
    check(11..=27, 26, true);
    check(12..=13, 10, true);
    check(0..=10, 10, false);
}

#[test]
fn answer_is_the_truth_though_its_version_goes_back() {
    let now = start();
    let mut twin = settled(now);
    assert_eq!(patch(&mut twin, 2, &json!({"a": 2}), now).len(), 1);
    twin.handle_connected(now);
    let rid = get(&mut twin, now);
    assert_eq!(answer(&mut twin, &rid, 1, json!({"b": 1}), now), desired(1, json!({"b": 1})));
    assert_eq!(patch(&mut twin, 2, &json!({"a": 3}), now), desired(2, json!({"a": 3, "b": 1})));
    twin.handle_connected(now);
    let rid = get(&mut twin, now);
    let events = answer(&mut twin, &rid, 2, json!({"c": 1}), now);
    assert_eq!(events, desired(2, json!({"c": 1})), "made anew, by chance at the same version");
}

#[test]
fn get_is_repeated_with_waits_that_double() {
    let mut now = start();
    let mut twin = connected(now);
    let mut waits = Vec::new();
    for status in [429, 500, 404, 503, 200, 429, 429, 429, 429, 429, 429] {
        let rid = get(&mut twin, now);
        let events = twin.handle_answer(status, &rid, b"[]", now);
        assert_eq!(events.len(), usize::from(status == 200), "{status}: a body that is no twin");
        let wait = twin.poll_timeout().expect("waits") - now;
        assert_eq!(twin.poll(now + wait - Duration::from_nanos(1)), None);
        now += wait;
        waits.push(wait);
    }
    for (wait, full) in waits.iter().zip([1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]) {
        assert!(*wait <= full * SECOND && *wait >= full * SECOND / 2, "{waits:?}");
    }
    let lost = get(&mut twin, now);
    now += 30 * SECOND;
    assert_eq!(twin.poll(now), None, "lost, and waits");
    let waits_until = twin.poll_timeout().expect("waits");
    assert_eq!(answer(&mut twin, &lost, 1, json!({}), now), [], "too late");
    assert_eq!(twin.poll_timeout(), Some(waits_until));
    now = waits_until;
    let rid = get(&mut twin, now);
    assert_eq!(answer(&mut twin, &rid, 1, json!({}), now).len(), 1);
    assert_eq!(twin.poll_timeout(), None);
}

#[test]
fn throttled_report_waits_and_says_what_is_wanted_then() {
    let now = start();
    let mut twin = settled(now);
    assert_eq!(twin.set_reported(map(json!({"a": 1})), now), None);
    let (rid, _) = report(&mut twin, now);
    assert_eq!(twin.handle_answer(429, &rid, b"", now + 20 * SECOND), []);
    let at = twin.poll_timeout().expect("waits");
    assert!(at > now + 20 * SECOND && at <= now + 21 * SECOND);
    assert_eq!(twin.set_reported(map(json!({"a": 2})), now), None);
    assert_eq!(report(&mut twin, at).1, json!({"a": 2}));
}

#[test]
fn lost_report_is_not_taken_for_undone() {
    let now = start();
    let mut twin = settled(now);
    assert_eq!(twin.set_reported(map(json!({"a": 1})), now), None);
    let (lost, _) = report(&mut twin, now);
    assert_eq!(twin.set_reported(Map::new(), now), None, "as the hub showed before");
    let late = now + 30 * SECOND;
    assert_eq!(twin.poll(late), None);
    let at = twin.poll_timeout().expect("waits");
    let rid = get(&mut twin, at);
    assert_eq!(answer_both(&mut twin, &rid, 1, json!({}), json!({"a": 1}), at), []);
    let (rid, body) = report(&mut twin, at);
    assert_eq!(body, json!({"a": null}));
    assert_eq!(twin.handle_answer(204, &rid, b"", at), []);
    assert_eq!(twin.poll_timeout(), None);
    assert_eq!(twin.handle_answer(204, &lost, b"", at), []);
    let rid = get(&mut twin, at);
    assert_eq!(answer_both(&mut twin, &rid, 1, json!({}), json!({"a": 1}), at), []);
    assert_eq!(report(&mut twin, at + 5 * SECOND).1, json!({"a": null}), "applied late");
}

#[test]
fn late_answer_during_another_report_asks_until_both_are_shown() {
    let mut now = start();
    let mut twin = settled(now);
    assert_eq!(twin.set_reported(map(json!({"a": 1})), now), None);
    let (late, _) = report(&mut twin, now);
    now += 30 * SECOND;
    assert_eq!(twin.poll(now), None);
    now += SECOND;
    let rid = get(&mut twin, now);
    assert_eq!(answer(&mut twin, &rid, 1, json!({}), now), []);
    let (reported, _) = report(&mut twin, now);
    assert_eq!(twin.handle_answer(204, &late, b"", now), []);
    let rid = get(&mut twin, now);
    assert_eq!(twin.handle_answer(204, &reported, b"", now), []);
    assert_eq!(answer(&mut twin, &rid, 1, json!({}), now), [], "shows neither");
    now += SECOND;
    let rid = get(&mut twin, now);
    assert_eq!(answer_both(&mut twin, &rid, 1, json!({}), json!({"a": 1}), now), []);
    assert_eq!(twin.poll_timeout(), None);
}

#[test]
fn report_that_failed_on_the_hub_is_not_taken_for_undone() {
    let now = start();
    let mut twin = settled(now);
    assert_eq!(twin.set_reported(map(json!({"a": 1})), now), None);
    let (rid, _) = report(&mut twin, now);
    assert_eq!(twin.handle_answer(500, &rid, b"", now), []);
    let at = twin.poll_timeout().expect("waits");
    let rid = get(&mut twin, at);
    assert_eq!(answer_both(&mut twin, &rid, 1, json!({}), json!({"a": 1}), at), []);
    assert_eq!(twin.poll_timeout(), None, "it was done");
}

#[test]
fn answer_to_a_get_during_a_report_does_not_hide_the_report() {
    let now = start();
    let mut twin = settled(now);
    assert_eq!(twin.set_reported(map(json!({"a": 1})), now), None);
    let (reported, _) = report(&mut twin, now);
    assert_eq!(patch(&mut twin, 3, &json!({"x": 3}), now), [], "a gap");
    let rid = get(&mut twin, now);
    assert_eq!(twin.handle_answer(204, &reported, b"", now), []);
    assert_eq!(answer(&mut twin, &rid, 3, json!({"x": 3}), now).len(), 1);
    assert_eq!(twin.set_reported(Map::new(), now), None);
    assert_eq!(report(&mut twin, now + 5 * SECOND).1, json!({"a": null}));
}

#[test]
fn refused_report_waits_for_a_change_or_a_connect() {
    for status in [400, 413] {
        let now = start();
        let mut twin = settled(now);
        assert_eq!(twin.set_reported(map(json!({"a": 1})), now), None);
        let (rid, _) = report(&mut twin, now);
        let events = twin.handle_answer(status, &rid, br#"{"message":"bad\nname"}"#, now);
        let reason = "bad name".to_owned();
        assert_eq!(events, [TwinEvent::ReportRefused { status, reason }]);
        assert_eq!(twin.set_reported(map(json!({"a": 1})), now), None);
        assert_eq!(twin.poll(now + 60 * SECOND), None);
        assert_eq!(twin.poll_timeout(), None);
        assert_eq!(twin.set_reported(map(json!({"a": 2})), now), None);
        let (rid, body) = report(&mut twin, now + 60 * SECOND);
        assert_eq!(body, json!({"a": 2}));
        assert_eq!(twin.set_reported(map(json!({"a": 3})), now), None);
        assert_eq!(twin.handle_answer(status, &rid, b"", now).len(), 1);
        let (rid, body) = report(&mut twin, now + 66 * SECOND);
        assert_eq!(body, json!({"a": 3}), "the one refused was another");
        assert_eq!(twin.handle_answer(status, &rid, b"", now).len(), 1);
        twin.handle_connected(now);
        let rid = get(&mut twin, now);
        assert_eq!(answer(&mut twin, &rid, 1, json!({}), now), []);
        assert_eq!(report(&mut twin, now).1, json!({"a": 3}));
    }
}

#[test]
fn properties_at_the_limit_are_reported_and_above_it_not() {
    let now = start();
    let mut twin = settled(now);
    let limit = TwinSettings::default().report_bytes_max;
    let text = |bytes: usize| map(json!({"a": "x".repeat(bytes - r#"{"a":""}"#.len())}));
    let too_large = TwinEvent::ReportTooLarge { bytes: limit + 1, limit };
    assert_eq!(twin.set_reported(text(limit + 1), now), Some(too_large));
    assert_eq!(twin.poll(now), None);
    assert_eq!(twin.set_reported(text(limit + 1), now), None, "told once");
    assert_eq!(twin.set_reported(text(limit), now), None);
    assert_eq!(report(&mut twin, now).1.to_string().len(), limit);
}

#[test]
fn large_change_goes_in_parts_and_removes_first() {
    let now = start();
    let many = |prefix: &str| -> Map<String, Value> {
        (0..500).map(|number| (format!("{prefix}{number}"), json!("x".repeat(40)))).collect()
    };
    let mut twin = connected(now);
    let rid = get(&mut twin, now);
    let mut shown = many("z");
    let events = answer_both(&mut twin, &rid, 1, json!({}), Value::Object(shown.clone()), now);
    assert_eq!(events.len(), 1);
    assert_eq!(twin.set_reported(many("a"), now), None);
    let mut at = now;
    for _ in 0..2 {
        let (rid, body) = report(&mut twin, at);
        assert!(body.to_string().len() <= TwinSettings::default().report_bytes_max);
        merge(&mut shown, &map(body));
        assert!(!shown.contains_key("z7"), "removed with the first part");
        assert_eq!(twin.handle_answer(204, &rid, b"", at), []);
        at += 5 * SECOND;
    }
    assert_eq!(shown, many("a"));
    assert_eq!(twin.poll_timeout(), None);
}

#[test]
fn body_that_is_no_twin_is_told_and_asked_for_again() {
    let now = start();
    let check = |body: &[u8], expected: &str| {
        let mut twin = connected(now);
        let rid = get(&mut twin, now);
        let events = twin.handle_answer(200, &rid, body, now);
        let [TwinEvent::Invalid { what }] = events.as_slice() else { panic!("{events:?}") };
        assert!(what.starts_with(expected), "{what}");
        assert_eq!(twin.desired(), None);
        assert_ne!(get(&mut twin, now + SECOND), rid);
    };
    check(b"", "twin is no JSON object");
    check(b"[]", "twin is no JSON object");
    check(b"\xFF", "twin is no JSON object");
    check("[".repeat(1000).as_bytes(), "twin is no JSON object");
    check(br#"{"desired":{"a":"#, "twin is no JSON object");
    check(b"{}", "twin has no desired");
    check(br#"{"desired":[]}"#, "twin has no desired");
    check(br#"{"desired":{"$version":-1}}"#, "desired properties of the twin have no $version");
    check(br#"{"desired":{"$version":1},"reported":3}"#, "reported properties of the twin are no");
    check(&vec![b' '; BODY_BYTES_MAX + 1], "twin of 307201 bytes: at most 307200 are read");
}

#[test]
fn change_that_cannot_be_read_is_told_and_the_whole_asked_for() {
    let now = start();
    let mut twin = settled(now);
    assert_eq!(twin.handle_patch(1, b"x", now), [], "not news");
    let events = twin.handle_patch(2, b"x", now);
    assert!(matches!(events.as_slice(), [TwinEvent::Invalid { .. }]), "{events:?}");
    let rid = get(&mut twin, now);
    assert_eq!(answer(&mut twin, &rid, 2, json!({"a": 2}), now), desired(2, json!({"a": 2})));
    assert_eq!(twin.poll_timeout(), None);
}

#[test]
fn what_nobody_waits_for_is_passed_over() {
    let now = start();
    let mut twin = settled(now);
    assert_eq!(twin.handle_answer(200, "x", b"", now), []);
    assert_eq!(twin.handle_answer(200, "", b"", now), []);
    assert_eq!(twin.handle_answer(204, "99999999999999999999999", b"", now), []);
    twin.handle_connected(now);
    let rid = get(&mut twin, now);
    assert_eq!(answer(&mut twin, &format!("0{rid}"), 5, json!({}), now), []);
    twin.handle_disconnected();
    assert_eq!(answer(&mut twin, &rid, 5, json!({}), now), []);
    assert_eq!(patch(&mut twin, 2, &json!({"a": 1}), now), []);
    assert_eq!(twin.desired(), Some((&Map::new(), 1)), "kept over the loss");
}

#[test]
fn seeds_tell_processes_apart() {
    let now = start();
    let mut rids: Vec<String> = (0..100)
        .map(|seed| {
            let mut twin = Twin::new(TwinSettings::default(), seed);
            twin.handle_connected(now);
            get(&mut twin, now)
        })
        .collect();
    rids.sort();
    rids.dedup();
    assert_eq!(rids.len(), 100);
}
