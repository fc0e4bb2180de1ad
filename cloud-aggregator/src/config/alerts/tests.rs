use super::super::tests::{complaint, file_of, with};
use super::*;
use crate::sink::alert::tests::{event, resolved};

const SECRET: &str = "https://prod-00.example.org:443/workflows/x?sp=run&sig=hunter2";

fn targets(more: &str) -> String {
    format!("[[alerts.targets]]\nname = \"mail\"\nkind = \"webhook\"\n{more}\n")
}

#[test]
fn the_old_keys_are_a_target_called_webhook_that_gets_everything() {
    let file = "[alerts]\nwebhook-url = \"http://127.0.0.1:1/x\"\nwebhook-attempts-max = 3\n\
        webhook-headers = { x-plant = \"north\" }\nretry-min = \"1s\"\n";
    let alerts = with(file, &[]).expect("valid").alerts;
    let [target] = alerts.all_targets().try_into().expect("one target");
    assert_eq!((target.name.as_str(), target.attempts_max), ("webhook", 3));
    assert_eq!(target.retry_min, Duration::from_secs(1));
    assert_eq!(target.headers["x-plant"], "north");
    assert_eq!((target.audience, target.rate), (Audience::everything(), None));
    let variable = [("AGGREGATOR__ALERTS__WEBHOOK_URL", "http://localhost:1/")];
    assert_eq!(with("", &variable).expect("valid").alerts.all_targets().len(), 1);
    assert!(with("", &[]).expect("valid").alerts.all_targets().is_empty());
}

#[test]
fn a_target_has_its_own_values_and_those_of_alerts_for_what_it_leaves_out() {
    let url = file_of(&format!("{SECRET}\n"));
    let file = format!(
        "[alerts]\nwebhook-url = \"https://a.example/\"\nretry-min = \"2s\"\ndeadline = \"1h\"\n{}",
        targets(&format!(
            "url-file = \"{}\"\ntimeout = \"3s\"\nseverity-max = 1\nrules = [\"a\"]\nrate-max = 5\n\
             rate-window = \"1m\"\ncircuit-failures = 4\nheaders = {{ content-type = \"application/json\" }}",
            url.path().display()
        ))
    );
    let alerts = with(&file, &[]).expect("valid").alerts;
    let [webhook, mail] = alerts.all_targets().try_into().expect("two targets");
    assert_eq!(webhook.name, "webhook");
    assert_eq!(mail.timeout, Duration::from_secs(3));
    assert_eq!(mail.retry_min, Duration::from_secs(2));
    assert_eq!(mail.deadline, Duration::from_secs(3600));
    assert_eq!(mail.circuit_failures, 4);
    assert_eq!(mail.rate, Some(Rate { max: 5, window: Duration::from_secs(60) }));
    let rules = BTreeSet::from(["a".to_owned()]);
    let expected = Audience { severity_max: 1, rules, historical: false, resolved: true };
    assert_eq!(mail.audience, expected);
    assert_eq!(mail.url().expect("a URL").as_str(), SECRET.replace(":443", ""));
}

#[test]
fn each_fault_of_a_target_is_named_with_its_place() {
    let check = |more: &str, expected: &str| {
        let text = complaint(&targets(more), &[]);
        assert!(text.contains(expected), "{more}: {text}");
    };
    let url = "url = \"https://a.example/x\"\n";
    check(url, "accepted");
    check("", "alerts.targets[0].url: is missing: set url, or url-file");
    check(&format!("{url}url-file = \"/x\""), "alerts.targets[0].url: is set and url-file, too");
    check("url-file = \"/nonexistent\"", "alerts.targets[0].url-file: /nonexistent cannot be read");
    check("url = \"ftp://a.example\"", "alerts.targets[0].url: has a scheme that is neither");
    check("url = \"http://a.example\"", "plain http to a.example: use https, or name the host in");
    check("url = \"http://a.example\"\nplain-hosts = [\"a.example\"]", "accepted");
    let other = "alerts.targets[0].url: host a.example is not among allowed-hosts";
    check(&format!("{url}allowed-hosts = [\"b.example\"]"), other);
    check(&format!("{url}allowed-hosts = [\"a.example\"]"), "accepted");
    let of_severity = "alerts.targets[0].severity-max: 5 is out of range: 0 to 4";
    check(&format!("{url}severity-max = 5"), of_severity);
    check(&format!("{url}attempts-max = 0"), "alerts.targets[0].attempts-max: 0 is out of range");
    check(&format!("{url}deadline = \"0s\""), "alerts.targets[0].deadline: 0ns is out of range");
    check(&format!("{url}circuit-failures = 0"), "alerts.targets[0].circuit-failures: 0 is out");
    check(&format!("{url}retry-min = \"9m\"\nretry-max = \"8m\""), "alerts.targets[0].retry-max");
    check(&format!("{url}rate-window = \"0s\""), "alerts.targets[0].rate-window: 0ns");
    check(&format!("{url}headers = {{ \"a b\" = \"x\" }}"), "is not a header name");
    check(&format!("{url}headers = {{ host = \"x\" }}"), "is set by this program itself");
    check(&format!("{url}header-files = {{ a = \"/nonexistent\" }}"), "header-files.a: /nonexist");
    check(&format!("{url}severity = 5"), "alerts.targets[0]: unknown field `severity`, expected");
    check(
        &format!("{url}timeout = \"soon\""),
        "invalid value: string \"soon\", expected a duration",
    );
}

#[test]
fn names_are_unique_and_targets_are_counted() {
    let named = |name: &str| {
        format!(
            "[[alerts.targets]]\nname = \"{name}\"\nkind = \"webhook\"\nurl = \"https://a.example\"\n"
        )
    };
    for name in ["", "Mail", "topic", "all", "a b", &"a".repeat(65)] {
        let text = complaint(&named(name), &[]);
        assert!(text.starts_with(&format!("alerts.targets[0].name: {name:?} is ")), "{text}");
    }
    let text = complaint(&format!("{}{}", named("a"), named("a")), &[]);
    assert!(text.starts_with("alerts.targets[1].name: \"a\" is the name of another"), "{text}");
    let webhook = format!("[alerts]\nwebhook-url = \"https://a.example\"\n{}", named("webhook"));
    assert!(complaint(&webhook, &[]).contains("\"webhook\" is the name of another target"));
    let many =
        |count: usize| (0..count).map(|index| named(&format!("t{index}"))).collect::<String>();
    assert_eq!(complaint(&many(TARGETS_MAX), &[]), "accepted");
    let expected = "alerts.targets: 17 targets, 16 are allowed";
    assert_eq!(complaint(&many(TARGETS_MAX + 1), &[]), expected);
}

#[test]
fn no_part_of_a_secret_url_is_printed() {
    let url = file_of(&format!("{SECRET}\n"));
    let file = targets(&format!("url-file = \"{}\"", url.path().display()));
    let settings = with(&file, &[]).expect("valid");
    let text = format!("{:?} {:?}", settings.alerts, settings.alerts.all_targets());
    assert!(!text.contains("hunter2"), "{text}");
    for text in
        [SECRET.replace("https", "http"), format!("{SECRET}\n{SECRET}"), "hunter2".to_owned()]
    {
        let url = file_of(&text);
        let file = targets(&format!("url-file = \"{}\"", url.path().display()));
        let text = complaint(&file, &[]);
        assert!(text.starts_with("alerts.targets[0].url-file: "), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("workflows"), "{text}");
    }
    let inline = format!("[alerts]\nwebhook-url = \"{SECRET}\"\n");
    let settings = with(&inline, &[]).expect("valid");
    assert!(!format!("{settings:?}").contains("hunter2"));
    let text = complaint(&inline.replace("https", "http"), &[]);
    assert!(text.starts_with("alerts.webhook-url: plain http to prod-00.example.org"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn an_audience_is_asked_for_severity_rule_and_state() {
    let all = Audience::everything();
    assert!(all.wants(&event("a")) && all.wants(&resolved("a")));
    let above = AlertEvent { severity: 7, ..event("a") };
    assert!(all.wants(&above), "everything is everything");
    let check = |severity_max: u8, expected: bool| {
        let audience = Audience { severity_max, ..Audience::everything() };
        assert_eq!(audience.wants(&event("a")), expected, "{severity_max}");
    };
    check(1, false);
    check(2, true);
    check(3, true);
}
