use std::io::Write as _;

use super::*;

fn file_of(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("temporary file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn with(file: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let path = file_of(file);
    let variables =
        variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Settings::from_layers(Some(path.path()), Some(variables)).map(|(settings, _)| settings)
}

fn complaint(file: &str, variables: &[(&str, &str)]) -> String {
    match with(file, variables) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn defaults_are_valid_and_hold_the_seed_rule() {
    let settings = with("", &[]).expect("valid defaults");
    assert_eq!(settings.rules.len(), 1);
    assert_eq!(settings.core().rules, [aggregator_core::Rule::seed()]);
}

#[test]
fn variables_win_over_the_file_and_the_file_over_the_defaults() {
    let file = "[kafka]\nbrokers = \"file:1\"\ngroup = \"from-file\"\n[kafka.topics]\nmachine-events = \"\"\n";
    let settings = with(
        file,
        &[
            ("AGGREGATOR__KAFKA__BROKERS", "variable:2"),
            ("AGGREGATOR__KAFKA__BATCH_RECORDS_MAX", "17"),
            ("AGGREGATOR__TRIGGER__AVAILABLE_NOW", "true"),
            ("AGGREGATOR__TRIGGER__PROCESSING_TIME", "250ms"),
            ("AGGREGATOR__KAFKA__TOPICS__DEAD_LETTERS", "1234"),
        ],
    )
    .expect("valid");
    assert_eq!(settings.kafka.brokers, "variable:2");
    assert_eq!(settings.kafka.group, "from-file");
    assert_eq!(settings.kafka.batch_records_max, 17);
    assert_eq!(settings.kafka.topics.machine_events, "");
    assert_eq!(settings.kafka.topics.dead_letters, "1234", "no type is guessed");
    assert!(settings.trigger.available_now);
    assert_eq!(settings.trigger.processing_time, Duration::from_millis(250));
}

#[test]
fn unknown_keys_are_named_with_path_and_source() {
    let text = complaint("[kafka]\nbroker = \"a\"\n[[rules]]\nnme = \"x\"\n", &[]);
    assert!(
        text.contains("kafka.broker: unknown key in ") && text.contains(".toml; known here"),
        "{text}"
    );
    assert!(text.contains("rules[0].nme: unknown key in "), "{text}");
    let text = complaint("", &[("AGGREGATOR__KAFKA__BROKER", "a")]);
    assert!(text.contains("kafka.broker: unknown key in the environment"), "{text}");
    assert!(complaint("[nonsense]\na = 1\n", &[]).contains("nonsense: unknown key in "));
}

#[test]
fn wrong_types_are_named_with_path_and_source() {
    let text = complaint("[kafka]\nbatch-records-max = \"many\"\n", &[]);
    assert!(text.contains("kafka.batch-records-max") && text.contains(".toml"), "{text}");
    let text = complaint("", &[("AGGREGATOR__LAKE__RETRY_MIN", "soon")]);
    assert!(text.contains("lake.retry-min"), "{text}");
    let text = complaint("[kafka]\nstart = \"middle\"\n", &[]);
    assert!(text.contains("kafka.start"), "{text}");
    let text = complaint("[kafka\n", &[]);
    assert!(text.contains(".toml"), "{text}");
}

#[test]
fn all_faults_are_reported_at_once() {
    let file = "[kafka]\nbrokers = \"\"\nproperties = { \"enable.auto.commit\" = \"true\" }\n\
        property-files = { \"sasl.password\" = \"/nonexistent/secret\" }\n\
        [counting]\noldest-event-time = \"yesterday\"\n[alerts]\nwebhook-url = \"http://example.org/x\"\n\
        [[rules]]\nname = \"a\"\nfilter = \"metric_type = pressure and value > 1\"\n\
        window = \"0s\"\nthreshold = \"count > 1\"\nseverity = 7\n";
    let text = complaint(file, &[]);
    for path in [
        "kafka.brokers: ",
        "kafka.properties.enable.auto.commit: ",
        "kafka.property-files.sasl.password: ",
        "counting.oldest-event-time: ",
        "alerts.webhook-url: plain http to example.org",
        "rules[].window: ",
        "rules[].severity: ",
    ] {
        assert!(text.contains(path), "{path} is missing in:\n{text}");
    }
}

fn rule(more: &str) -> String {
    format!("[[rules]]\nname = \"a\"\nseverity = 1\nwindow = \"1m\"\n{more}\n")
}

#[test]
fn each_fault_of_a_rule_is_named_with_its_place_and_what_would_be_right() {
    let check = |more: &str, expected: &str| {
        let text = complaint(&rule(more), &[]);
        assert!(text.contains(expected), "{more}: {text}");
    };
    let threshold = "threshold = \"count > 1\"\n";
    check(
        &format!("{threshold}filter = \"value >\""),
        "rules[0].filter: at byte 7: the end of the filter where a number should be",
    );
    let filter = "filter = \"value > 1\"\n";
    check(
        &format!("{filter}threshold = \"sum > 1\""),
        "rules[0].threshold: \"sum > 1\" is no threshold",
    );
    let both = format!("{filter}{threshold}");
    check(
        &format!("{both}by = \"plant\""),
        "rules[0].by: \"plant\" is neither \"sensor\" nor \"machine\"",
    );
    check(
        &format!("{both}output-mode = \"all\""),
        "rules[0].output-mode: \"all\" is not \"append\", \"update\" or",
    );
    check(
        &format!("{both}slide = \"2m\""),
        "rules[].slide: slide of rule \"a\" is 120s, 1s to its window of 60s",
    );
    check(&format!("{both}slide = \"0s\""), "rules[].slide: slide of rule \"a\" is 0s");
    check(&both, "accepted");
}

#[test]
fn rules_that_would_make_dead_letters_of_good_readings_are_refused_with_what_helps() {
    let text = |filter: &str, window: &str, more: &str| {
        let file = format!(
            "[counting]\n{more}\n[[rules]]\nname = \"mean\"\nseverity = 1\nfilter = \"{filter}\"\nwindow = \"{window}\"\n\
             threshold = \"mean > 90\"\n"
        );
        complaint(&file, &[])
    };
    let refused = text("metric_type = temperature", "5s", "");
    let expected = "counting.windows-per-sensor-max: 17294 windows of one sensor are held for the rules \"mean\"";
    assert!(refused.contains(expected), "{refused}");
    assert_eq!(
        text("metric_type = temperature", "5s", "windows-per-sensor-max = 17294"),
        "accepted"
    );
    let shorter = text("metric_type = temperature", "5s", "closed-window-retention = \"12h\"");
    assert_eq!(shorter, "accepted");
    assert_eq!(text("metric_type = temperature", "1m", ""), "accepted");
    assert_eq!(text("metric_type = temperature and value > 100", "5s", ""), "accepted");
}

#[test]
fn filter_that_is_accepted_can_be_saved_and_restored() {
    let sensors: Vec<_> = (0..170).map(|number| format!("sensor_id=press-{number:03}")).collect();
    let nested = (0..32).fold("value=1 and value=2 or value=3".to_owned(), |inner, _| {
        format!("({inner}) and value=4 or value=5")
    });
    for filter in [sensors.join(" or "), vec!["value < 1e300"; 14].join(" or "), nested] {
        let file = rule(&format!("filter = \"{filter}\"\nthreshold = \"count > 1\""));
        let rules = with(&file, &[]).expect("accepted").core().rules;
        let saved = serde_json::to_string(&rules).expect("serialisable");
        let restored: Vec<aggregator_core::Rule> =
            serde_json::from_str(&saved).expect("restorable");
        assert_eq!(restored, rules);
    }
}

#[test]
fn each_trigger_goes_with_the_output_modes_that_can_work() {
    let check = |trigger: &str, mode: &str, expected: &str| {
        let both =
            format!("filter = \"value > 1\"\nthreshold = \"count > 1\"\noutput-mode = \"{mode}\"");
        let text = complaint(&format!("[trigger]\n{trigger}\n{}", rule(&both)), &[]);
        assert!(text.starts_with(expected), "{trigger}, {mode}: {text}");
    };
    for mode in ["append", "update", "complete"] {
        check("processing-time = \"1s\"", mode, "accepted");
        check("available-now = true", mode, "accepted");
    }
    check("continuous = \"1s\"", "append", "accepted");
    for mode in ["update", "complete"] {
        let expected =
            format!("rules[0].output-mode: \"{mode}\" needs a trigger at which rows are made");
        check("continuous = \"1s\"", mode, &expected);
    }
    let both = "continuous = \"1s\"\navailable-now = true";
    check(both, "append", "trigger.available-now: cannot be combined with trigger.continuous");
    check("continuous = \"50ms\"", "append", "trigger.continuous: 50ms is out of range: 100ms");
}

#[test]
fn secrets_do_not_show() {
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(b"hunter2\n").expect("written");
    let secret = read_secret(file.path()).expect("readable");
    assert_eq!(secret.expose(), "hunter2");
    assert_eq!(format!("{secret:?}"), "***");
}
