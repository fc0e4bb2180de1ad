//! The written form, its checks, and what holds of a baseline.

use super::*;

type Edit = fn(&mut SensorBaseline);

fn parse(text: &str) -> Result<Baseline, BaselineError> {
    Baseline::parse(text.as_bytes(), serde_json::from_slice)
}

#[test]
fn a_baseline_is_read_as_it_was_written() {
    let before = baseline(&["any"]);
    let text = serde_json::to_string(&before).expect("serialises");
    assert_eq!(parse(&text), Ok(before));
    let head = [
        r#"{"format":1,"machine-id":"press-1","learnt-at":"2026-03-01T08:31:41.000000Z","#,
        r#""operator":"anna","conditions":{"any":{"level":{"model":"motor-shape 2","#,
        r#""model-sha256":"ab5df625"#,
    ];
    assert!(text.starts_with(&head.concat()), "{text}");
}

#[test]
fn texts_of_another_form_are_refused() {
    let text = serde_json::to_string(&baseline(&["any"])).expect("serialises");
    let check = |from: &str, to: &str, expected: &str| {
        assert!(text.contains(from), "{from}");
        let error = parse(&text.replacen(from, to, 1)).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
    };
    check("\"format\":1", "\"format\":2", "format is 2, this program reads 1: learn again");
    check("\"format\":1", "\"format\":1,\"more\":1", "unknown field `more`");
    check(
        "2026-03-01T08",
        "2026-13-01T08",
        "\"2026-13-01T08:31:41.000000Z\" is no time of RFC 3339",
    );
    check("\"press-1\"", "\"\"", "machine_id is empty");
    check(
        "\"any\"",
        "\"Any\"",
        "condition is \"Any\", it must be the name of an operating condition",
    );
    check(
        "\"anna\"",
        &format!("\"{}\"", "a".repeat(257)),
        "operator is 257, it must be at most 256",
    );
    check("\"band-00\"", "\"band-0\"", "features of level in condition any is \"band-0\"");
    check("\"operator\":\"anna\",", "", "missing field `operator`");
    let long = vec![b' '; BASELINE_BYTES_MAX + 1];
    let too_long = Err(BaselineError::TooLong(BASELINE_BYTES_MAX + 1));
    assert_eq!(Baseline::parse(&long, serde_json::from_slice), too_long);
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let check = |edit: Edit, key: &str| {
        let mut baseline = baseline(&["any"]);
        let sensors = baseline.conditions.get_mut("any").expect("learnt");
        edit(sensors.get_mut("shape").expect("learnt"));
        let error = baseline.validate().expect_err(key).to_string();
        assert!(error.starts_with(&format!("{key} of shape in condition any is ")), "{error}");
    };
    check(|usual| usual.model.clear(), "model");
    check(|usual| usual.model_sha256.push('0'), "model-sha256");
    check(|usual| usual.windows = 0, "windows");
    check(|usual| usual.running_seconds = -1.0, "running-seconds");
    check(|usual| usual.running_seconds = f64::NAN, "running-seconds");
    check(|usual| usual.logit.min = f64::NEG_INFINITY, "logit");
    check(|usual| usual.logit.mean = 1.1, "logit");
    check(|usual| usual.logit.mean = -1.1, "logit");
    check(|usual| usual.logit.deviation = -0.1, "logit");
    check(|usual| usual.logit.deviation = f64::NAN, "logit");
    check(|usual| usual.logit_deciles[4] = 0.9, "logit-deciles");
    check(|usual| usual.logit_deciles[0] = -1.1, "logit-deciles");
    check(|usual| usual.logit_deciles[8] = 1.1, "logit-deciles");
    check(|usual| usual.logit_deciles[8] = f64::NAN, "logit-deciles");
    check(|usual| usual.threshold_logit = 1.0, "threshold-logit");
    check(|usual| usual.threshold_logit = f64::INFINITY, "threshold-logit");
    check(|usual| usual.features.get_mut("rms").expect("rms").max = 0.0, "rms");
}

#[test]
fn more_pairs_than_allowed_are_refused() {
    let mut baseline = baseline(&["any"]);
    let any = baseline.conditions.get("any").expect("learnt").clone();
    for index in 1..PAIRS_MAX / 2 {
        baseline.conditions.insert(format!("c{index}"), any.clone());
    }
    assert_eq!(baseline.validate(), Ok(()));
    let text = serde_json::to_vec(&baseline).expect("serialises");
    assert!(text.len() < BASELINE_BYTES_MAX);
    baseline.conditions.insert("more".to_owned(), any);
    assert_eq!(baseline.validate(), Err(BaselineError::Pairs(PAIRS_MAX + 2)));
}

#[test]
fn the_largest_baseline_fits_its_limit_of_bytes() {
    let spread = Spread {
        mean: -1.234_567_890_123_456_7,
        deviation: 0.012_345_678_901_234_567,
        min: -12.345_678_901_234_567,
        max: 0.012_345_678_901_234_567,
    };
    let mut baseline = baseline(&["any"]);
    let mut usual = baseline.conditions["any"][&sensor("shape")].clone();
    usual.features = (0..100).map(|band| (format!("band-{band:02}"), spread)).collect();
    let scalars = ["rms", "peak", "crest-factor", "kurtosis", "rms-steady", "line"];
    usual.features.extend(scalars.map(|name| (name.to_owned(), spread)));
    let one = BTreeMap::from([(sensor("shape"), usual)]);
    baseline.conditions = (0..PAIRS_MAX).map(|index| (format!("c{index}"), one.clone())).collect();
    let text = serde_json::to_string(&baseline).expect("serialises");
    assert!(text.len() < BASELINE_BYTES_MAX, "{}", text.len());
    assert_eq!(parse(&text), Ok(baseline));
}

#[test]
fn a_threshold_holds_for_its_sensor_condition_and_model() {
    let baseline = baseline(&["idle", "full"]);
    let check = |on: &str, condition: Current, sha256: &str, expected: Option<f64>| {
        let found = baseline.threshold_logit(&sensor(on), condition, sha256);
        assert_eq!(found, expected, "{on} {condition:?} {sha256}");
    };
    let idle = Current::Condition("idle");
    check("shape", idle, SHA256, Some(1.0 + MARGIN));
    check("level", Current::Condition("full"), SHA256, Some(1.0 + MARGIN));
    check("shape", idle, &SHA256.to_uppercase(), Some(1.0 + MARGIN));
    check("shape", idle, OTHER_SHA256, None);
    check("other", idle, SHA256, None);
    check("shape", Current::Condition("fast"), SHA256, None);
    check("shape", Current::Only, SHA256, None);
    check("shape", Current::Unknown, SHA256, None);
    let only = super::baseline(&["any"]);
    assert_eq!(only.threshold_logit(&sensor("shape"), Current::Only, SHA256), Some(1.0 + MARGIN));
}
