use std::io::Write as _;

use super::*;

pub(super) fn file_of(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("temporary file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

pub(super) fn with(file: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let path = file_of(file);
    let variables =
        variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Settings::from_layers(Some(path.path()), Some(variables)).map(|(settings, _)| settings)
}

pub(super) fn complaint(file: &str, variables: &[(&str, &str)]) -> String {
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
        "rules[0].window: window of rule \"a\"",
        "rules[0].severity: severity of rule \"a\"",
    ] {
        assert!(text.contains(path), "{path} is missing in:\n{text}");
    }
}

#[test]
fn unknown_keys_and_wrong_types_hide_no_other_fault() {
    let file = r#"
[kafka]
broker = "a"
batch-records-max = "many"
batch-bytes-max = 0
[kafka.topics]
temperature = ["x"]
[lake]
location = "s3://bucket"
storage-options = { a = [1] }
[[rules]]
name = "a"
window = "1 minit"
slide = "9h"
severty = 1
filter = "value"
threshold = "sum > 1"
[[rules]]
filter = "value > 1"
window = "1m"
threshold = "count > 1"
severity = 7
"#;
    let text = complaint(file, &[("AGGREGATOR__TRIGGER__PROCESSING_TIME", "soon")]);
    let lines: Vec<&str> = text.lines().collect();
    let expected = [
        "kafka.batch-records-max: invalid type: string \"many\", expected an integer in ",
        "kafka.broker: unknown key in ",
        "kafka.topics.temperature: invalid type: sequence, expected a string in ",
        "lake.storage-options.a: invalid type: sequence, expected a string in ",
        "rules[0].severity: rule \"a\": is missing in ",
        "rules[0].severty: unknown key in ",
        "rules[0].window: rule \"a\": invalid value: string \"1 minit\", expected a duration in ",
        "rules[1].name: is missing in ",
        "trigger.processing-time: invalid value: string \"soon\", expected a duration in the environment",
        "kafka.batch-bytes-max: 0 is out of range: 1 to ",
        "lake.location: \"s3://bucket\" is nowhere that this program can write",
        "rules[0].filter: rule \"a\": at byte 5: the end of the filter",
        "rules[0].threshold: rule \"a\": \"sum > 1\" is no threshold",
        "rules[1].severity: severity of rule \"rules[1]\" is 7",
    ];
    assert_eq!(lines[0], format!("{} faults", expected.len()), "{text}");
    for (line, expected) in lines[1..].iter().zip(expected) {
        assert!(line.starts_with(&format!("  {expected}")), "{expected}: {text}");
    }
}

#[test]
fn whole_sections_of_another_type_are_named_once() {
    let file = "kafka = 4\nrules = 5\n[maintenance]\nretention = 6\n";
    let text = complaint(file, &[]);
    assert!(text.starts_with("3 faults\n  kafka: invalid type: integer `4`"), "{text}");
    assert!(text.contains("\n  maintenance.retention: invalid type: integer `6`"), "{text}");
    assert!(text.contains("\n  rules: is no list of tables in "), "{text}");
    let text = complaint("", &[("AGGREGATOR__RULES__0__SEVERITY", "1")]);
    let expected = "rules: is no list of tables in the environment: write [[rules]] in the file";
    assert!(text.starts_with(expected), "{text}");
    assert!(complaint("rules = [1]\n", &[]).starts_with("rules[0]: is no table in "));
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
        "rules[0].filter: rule \"a\": at byte 7: the end of the filter where a number should be",
    );
    let filter = "filter = \"value > 1\"\n";
    check(
        &format!("{filter}threshold = \"sum > 1\""),
        "rules[0].threshold: rule \"a\": \"sum > 1\" is no threshold",
    );
    let both = format!("{filter}{threshold}");
    check(
        &format!("{both}by = \"plant\""),
        "rules[0].by: rule \"a\": \"plant\" is neither \"sensor\" nor \"machine\"",
    );
    check(
        &format!("{both}output-mode = \"all\""),
        "rules[0].output-mode: rule \"a\": \"all\" is not \"append\", \"update\" or",
    );
    check(
        &format!("{both}slide = \"2m\""),
        "rules[0].slide: slide of rule \"a\" is 120s, 1s to its window of 60s",
    );
    check(&format!("{both}slide = \"0s\""), "rules[0].slide: slide of rule \"a\" is 0s");
    check(&both, "accepted");
    // The place is that in the file, also behind a rule that the core cannot read.
    let two = format!("{both}by = \"plant\"\n{}", rule(&both));
    check(&two, "rules[1].name: rule name \"a\" is used twice");
}

#[test]
fn signs_of_other_languages_in_a_filter_are_named_with_what_to_write() {
    let check = |filter: &str, expected: &str| {
        let more = format!("filter = '''{filter}'''\nthreshold = \"count > 1\"");
        assert_eq!(complaint(&rule(&more), &[]), expected, "{filter}");
    };
    let fault = |text: &str| format!("rules[0].filter: rule \"a\": {text} should be");
    check("value == 5", &fault("at byte 6: == where ="));
    check("metric_type == temperature", &fault("at byte 12: == where ="));
    check("value => 5", &fault("at byte 6: => where >="));
    check("value =< 5", &fault("at byte 6: =< where <="));
    check("value <> 5", &fault("at byte 6: <> where !="));
    check("value > 5 && value < 9", &fault("at byte 10: && where \"and\""));
    check("value > 5 & value < 9", &fault("at byte 10: & where \"and\""));
    check("value > 5 || value < 3", &fault("at byte 10: || where \"or\""));
    check("value > 5 | value < 3", &fault("at byte 10: | where \"or\""));
    let expected = fault("at byte 7: \" where a text in single quotes ('text')");
    check("unit = \"bar\"", &expected);
    check("unit = 'a==b' and value > x", &fault("at byte 26: x where a finite number"));
    check("unit = 'a&&b' and value > 1", "accepted");
}

#[test]
fn keys_of_counting_are_named_as_in_the_file() {
    let check = |counting: &str, expected: &str| {
        let text = complaint(&format!("[counting]\n{counting}\n"), &[]);
        assert!(text.starts_with(expected), "{counting}: {text}");
    };
    check("idle-timeout = \"0s\"", "counting.idle-timeout: is 0s, 0.000001s to ");
    check("closed-window-retention = \"400d\"", "counting.closed-window-retention: is 34560000s");
    check("windows-per-sensor-max = 0", "counting.windows-per-sensor-max: is 0: give at least 1");
    let expected = "counting.oldest-event-time: 2999-01-01T00:00:00Z is in the future";
    check("oldest-event-time = \"2999-01-01T00:00:00Z\"", expected);
    check("oldest-event-time = \"2020-01-01T00:00:00Z\"", "accepted");
}

#[test]
fn brokers_that_the_client_would_pass_over_are_refused() {
    let is_accepted = |brokers: &str| {
        let text = complaint(&format!("[kafka]\nbrokers = \"{brokers}\"\n"), &[]);
        assert!(text == "accepted" || text.starts_with("kafka.brokers: "), "{brokers}: {text}");
        text == "accepted"
    };
    let good = [
        "broker",
        "127.0.0.1:9092",
        "kafka_1.plant-2.example:65535",
        "a:1,b:2",
        "a:1, b:2,",
        "[::1]:9092",
        "[fe80::1%eth0]",
        "SASL_SSL://a:9093",
    ];
    for brokers in good {
        assert!(is_accepted(brokers), "{brokers}");
    }
    let named = ["", " ", ",", ":9092", "a b:9092", "a:9092 ", "a:9092;b:9092", "${BROKERS}"];
    let ports = ["a:", "a:0", "a:65536", "a:+1", "a:port", "a:9092/topic", "[::1]9092"];
    let others = ["::1", "[::1", "[broker]:9092", "http://a:9092"];
    for brokers in named.into_iter().chain(ports).chain(others) {
        assert!(!is_accepted(brokers), "{brokers:?}");
    }
}

#[test]
fn topics_that_kafka_does_not_allow_are_refused() {
    let check = |name: &str, is_allowed: bool| {
        for (section, key) in [("kafka.topics", "temperature"), ("alerts", "topic")] {
            let text = complaint(&format!("[{section}]\n{key} = \"{name}\"\n"), &[]);
            let expected = format!("{section}.{key}: {name:?} is no name of a topic");
            let expected = if is_allowed { "accepted" } else { expected.as_str() };
            assert!(text.starts_with(expected), "{name}: {text}");
        }
    };
    let (longest, longer) = ("t".repeat(249), "t".repeat(250));
    for name in ["plant-1.Temp_2", "...", longest.as_str(), ""] {
        check(name, true);
    }
    for name in [".", "..", "a b", "a/b", "^plant.*", "wärme", longer.as_str(), " "] {
        check(name, false);
    }
}

fn complaint_of_location(location: &str) -> String {
    complaint(&format!("[lake]\nlocation = \"{location}\"\n"), &[])
}

#[test]
fn lake_may_be_a_folder_or_a_container_of_azure() {
    let folder = tempfile::tempdir().expect("a folder");
    let there = folder.path().to_str().expect("UTF-8");
    let url = format!("file://{there}");
    for location in [
        there,
        "lake",
        "./lake/of~plant",
        "/nonexistent/lake",
        "file:///nonexistent/lake",
        url.as_str(),
        "abfss://lake@plant.dfs.core.windows.net/tables",
        "abfss://lake@plant.dfs.core.windows.net",
        "abfs://lake@plant.blob.core.windows.net/tables/",
        "abfss://workspace@onelake.dfs.fabric.microsoft.com/plant.Lakehouse/Files",
        "az://lake@plant.dfs.core.windows.net/tables",
        "az://lake/plant",
    ] {
        assert_eq!(complaint_of_location(location), "accepted", "{location}");
    }
}

#[test]
fn lake_that_would_be_lost_or_cannot_be_written_is_refused() {
    let check = |location: &str, expected: &str| {
        let text = complaint_of_location(location);
        assert!(text.starts_with("lake.location: ") && text.contains(expected), "{text}");
    };
    for location in [
        "memory:///x",
        "memory://",
        "memory:/x",
        "s3://bucket/lake",
        "gs://bucket/lake",
        "http://127.0.0.1/lake",
        "https://plant.dfs.core.windows.net/lake",
        "adl://lake/plant",
        "ABFSS://lake@plant.dfs.core.windows.net/tables",
        "abfss://lake/tables",
        "abfss:///tables",
        "abfss://lake@plant/tables",
        "abfss://plant.dfs.core.windows.net/lake",
        "abfss://lake@plant.example.org/tables",
        "abfss://lake@plant.dfs.core.windows.net/tables?sv=1",
        "az:///plant",
        "file://lake",
        "file:/lake",
        "a/b://c",
    ] {
        let forms = "name a folder, file:///FOLDER, abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER, or az://";
        check(location, &format!("{location:?} is nowhere that this program can write: {forms}"));
    }
    check(" ", "is empty");
    check("~/lake", "only a shell knows ~, write the folder in full");
    check("file:///dev/null", "\"/dev/null\" is a file: name a folder");
    let file = tempfile::NamedTempFile::new().expect("a file");
    check(file.path().to_str().expect("UTF-8"), "is a file: name a folder");
}

#[test]
fn options_that_the_storage_would_pass_over_are_refused() {
    let check = |option: &str, expected: &str| {
        let file = format!("[lake]\nstorage-options = {{ \"{option}\" = \"1\" }}\n");
        let text = complaint(&file, &[]);
        assert!(text.starts_with(expected), "{option}: {text}");
    };
    for option in [
        "azure_storage_account_name",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "azure_storage_use_emulator",
        "account_key",
        "azure_tenant_id",
        "azure_allow_http",
        "timeout",
        "max_retries",
        "backoff_config.base",
        "concurrency_limit",
    ] {
        check(option, "accepted");
    }
    let expected = "lake.storage-options.azure_acount_name: is no option of the storage";
    check("azure_acount_name", expected);
    let variable = [("AGGREGATOR__LAKE__STORAGE_OPTIONS__AZURE_TENANT_ID", "x")];
    let text = complaint("", &variable);
    let expected = "lake.storage-options.azure-tenant-id: is written azure_tenant_id, in the file";
    assert!(text.starts_with(expected), "{text}");
    let secret = file_of("hunter2");
    let of_file = |option: &str| {
        let path = secret.path().display();
        complaint(&format!("[lake]\nstorage-option-files = {{ {option} = \"{path}\" }}\n"), &[])
    };
    assert_eq!(of_file("account_key"), "accepted");
    let expected = "lake.storage-option-files.acount_key: is no option of the storage";
    assert!(of_file("acount_key").starts_with(expected));
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
        let expected = format!(
            "rules[0].output-mode: rule \"a\": \"{mode}\" needs a trigger at which rows are made"
        );
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
