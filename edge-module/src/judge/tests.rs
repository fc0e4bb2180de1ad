use std::io::Write as _;

use serde_json::{Value, json};

use super::*;

const RATE_HZ: f64 = 1000.0;

fn settings() -> Settings {
    settings_of(
        r#"
        [model]
        bundle-dir = ""
        [vibration]
        window-samples = 100
        hop-samples = 100
        [[machines]]
        id = "press-1"
          [[machines.limits]]
          name = "level"
          sensor = "press-1/x"
          quantity = "rms-steady"
          above = 0.5
          on-delay = "1500ms"
    "#,
    )
}

fn settings_of(text: &str) -> Settings {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    Settings::load(Some(file.path())).expect("valid")
}

/// A tenth of a second, `second` seconds after noon.
fn block(second: f64, amplitude: f32, recording: &str) -> Vec<u8> {
    let start = EventTime::from_micros(1_772_366_400_000_000 + (second * MICROS_PER_SECOND) as i64);
    let header = json!({
        "sensor": "press-1/x", "start": start.to_string(), "sample-rate-hz": RATE_HZ, "samples": 100, "recording": recording,
    });
    let samples = (0..100).map(|index| if index % 2 == 0 { amplitude } else { -amplitude });
    let mut bytes = format!("{header}\n").into_bytes();
    bytes.extend(samples.flat_map(f32::to_le_bytes));
    bytes
}

fn judged(input: &[u8]) -> (Vec<Value>, Result<Tally, JudgeError>) {
    judged_by(&settings(), input)
}

fn judged_by(settings: &Settings, input: &[u8]) -> (Vec<Value>, Result<Tally, JudgeError>) {
    let mut output = Vec::new();
    let result = judge(settings, input, &mut output);
    let text = String::from_utf8(output).expect("UTF-8");
    (text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect(), result)
}

#[test]
fn a_limit_trips_when_its_delay_is_over_in_the_time_of_the_recording() {
    let input =
        [block(0.0, 0.1, ""), block(1.0, 1.0, ""), block(2.0, 1.0, ""), block(9.0, 1.0, "")];
    let (lines, result) = judged(&input.concat());
    assert_eq!(result.expect("judged"), Tally { blocks: 4, windows: 4, without_window: 0 });
    let windows: Vec<&Value> = lines.iter().filter_map(|line| line.get("window")).collect();
    assert_eq!(windows.len(), 4, "{lines:?}");
    assert_eq!(windows[1]["start"], "2026-03-01T12:00:01.000000Z");
    assert_eq!(windows[1]["end"], "2026-03-01T12:00:01.100000Z");
    assert_eq!(windows[1]["features"]["rms-steady"], 1.0);
    assert_eq!((&windows[1]["score"], &windows[1]["abnormal"]), (&Value::Null, &Value::Null));
    // Passed at 1.1 s, and held for 1.5 s: between two blocks.
    let trip = json!({
        "trip": {
            "machine": "press-1", "rule": "level", "sensor": "press-1/x", "at": "2026-03-01T12:00:02.600000Z",
            "detail": "press-1/x is 1, past 0.5 of limit level",
        }
    });
    let trips: Vec<&Value> = lines.iter().filter(|line| line.get("trip").is_some()).collect();
    assert_eq!(trips, [&trip]);
    assert_eq!(lines.iter().position(|line| *line == trip), Some(3), "before the last block");
}

#[test]
fn another_recording_begins_with_an_armed_interlock_at_any_time() {
    let one = |name| [block(5.0, 1.0, name), block(9.0, 0.1, name)].concat();
    let (lines, result) = judged(&[one("first"), one("second")].concat());
    result.expect("judged");
    let of = |line: &Value| line.get("trip").map(|trip| trip["recording"].clone());
    let trips: Vec<Value> = lines.iter().filter_map(of).collect();
    assert_eq!(trips, ["first", "second"], "{lines:?}");
}

#[test]
fn input_of_another_form_names_the_block_and_what_would_be_right() {
    let good = block(0.0, 0.1, "");
    let check = |input: &[u8], expected: &str| {
        let (lines, result) = judged(input);
        let error = result.expect_err(expected);
        assert_eq!(error.exit_code(), EXIT_DATA);
        assert!(error.to_string().contains(expected), "{error}");
        lines.len()
    };
    let with = |key: &str, value: Value| {
        let end = good.iter().position(|byte| *byte == b'\n').expect("a header");
        let mut header: Value = serde_json::from_slice(&good[..end]).expect("JSON");
        header[key] = value;
        let mut bytes = format!("{header}\n").into_bytes();
        bytes.extend(&good[end + 1..]);
        bytes
    };
    check(b"{}", "a header is one line");
    check(b"nonsense\n", "block 1: the header is");
    check(&with("colour", json!("red")), "unknown field `colour`");
    check(&with("start", json!("noon")), "\"noon\" is no time");
    check(&with("samples", json!(0)), "0 samples: 1 to 4194304");
    check(&with("samples", json!(101)), "ends within its 101 samples");
    check(&with("sample-rate-hz", json!(0)), "sample-rate-hz is 0: above 0");
    check(&with("sensor", json!("press-9/x")), "no rule of a machine names sensor press-9/x");
    let nan = [&good[..good.len() - 4], &f32::NAN.to_le_bytes()].concat();
    check(&nan, "sample 99 is not finite");
    let (late, early) = (block(5.0, 0.1, ""), block(1.0, 0.1, ""));
    let lines =
        check(&[late, early].concat(), "block 2: it ends before 2026-03-01T12:00:05.100000Z");
    assert_eq!(lines, 1, "what was judged before is written");
    let (lines, result) = judged(&[]);
    assert_eq!(result.expect("nothing to judge"), Tally::default());
    assert!(lines.is_empty());
    // One whose blocks overlap begins a new window with each.
    let (lines, result) = judged(&[block(0.0, 0.1, ""), block(0.05, 0.1, "")].concat());
    assert_eq!(lines.len(), 2, "a block is a window here");
    assert_eq!(result.expect("judged").to_string(), "2 blocks judged, 2 windows");
}

#[test]
fn a_window_is_abnormal_by_the_threshold_of_its_machine() {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/bundles/motor-v1");
    let header = json!({
        "sensor": "press-1/x", "start": "2026-03-01T12:00:00Z", "sample-rate-hz": 20_000.0, "samples": 2048,
    });
    let mut input = format!("{header}\n").into_bytes();
    let sine = (0..2048).map(|index| 0.9 + 0.01 * (index as f32 * 0.37).sin());
    input.extend(sine.flat_map(f32::to_le_bytes));
    let abnormal = |threshold: f64| {
        let settings = settings_of(&format!(
            "[model]\nbundle-dir = {bundle:?}\n[[machines]]\nid = \"press-1\"\nscored-sensors = [\"press-1/x\"]\n\
             score-threshold = {threshold:?}\n"
        ));
        let (lines, result) = judged_by(&settings, &input);
        assert_eq!(result.expect("judged").windows, 1);
        let window = &lines[0]["window"];
        let score = window["score"].as_f64().expect("scored");
        assert_eq!(window["abnormal"], score >= threshold, "{window}");
        window["abnormal"].as_bool()
    };
    assert_eq!((abnormal(0.000_001), abnormal(1.0)), (Some(true), Some(false)));
}
