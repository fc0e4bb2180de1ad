use std::sync::Mutex;

use aggregator_core::checkpoint::TopicPartition;
use clap::Parser as _;
use deltalake::arrow::array::{
    ArrayRef, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use deltalake::arrow::record_batch::RecordBatch;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::list::{
    Listed, Wanted, alert_at, as_json, for_people, keep_newest, parse_when, print_alerts,
};
use super::*;
use crate::cli::{Alerts, AlertsList, Cli, Command};
use crate::config::{Secret, TargetKeys};
use crate::dead_letters::Key;
use crate::sink::alert::tests::{event, resolved};

fn at(text: &str) -> EventTime {
    EventTime::parse(text).expect("a time")
}

fn now() -> EventTime {
    at("2026-03-02T10:00:00Z")
}

fn list_of(words: &[&str]) -> AlertsList {
    let Alerts::List(list) = command(&[&["list"], words].concat()) else { panic!("{words:?}") };
    list
}

fn command(words: &[&str]) -> Alerts {
    let cli = Cli::try_parse_from([&["cloud-aggregator", "alerts"], words].concat());
    let Command::Alerts(alerts) = cli.expect("a command").command else { panic!("{words:?}") };
    alerts
}

fn listed(alert_id: &str, fired_at: &str) -> Listed {
    Listed {
        alert_id: alert_id.to_owned(),
        revision: 1,
        state: AlertState::Fired,
        rule: "hot".to_owned(),
        severity: 2,
        machine_id: Some("press-1".to_owned()),
        sensor_id: Some("press-1/oil".to_owned()),
        fired_at: at(fired_at),
        changed_at: Some(at(fired_at)),
        resolved_at: None,
        findings: 3,
        suppressed_by: None,
    }
}

fn over(alert_id: &str, fired_at: &str, resolved_at: &str) -> Listed {
    Listed {
        revision: 2,
        state: AlertState::Resolved,
        resolved_at: Some(at(resolved_at)),
        ..listed(alert_id, fired_at)
    }
}

#[test]
fn the_newest_row_of_an_alert_is_kept_in_whichever_order_rows_come() {
    let fired = listed("a", "2026-03-02T08:00:00Z");
    let end = over("a", "2026-03-02T08:00:00Z", "2026-03-02T08:10:00Z");
    for rows in [[&fired, &end], [&end, &fired]] {
        let mut newest = BTreeMap::new();
        rows.into_iter().for_each(|row| keep_newest(&mut newest, row.clone()));
        assert_eq!(newest.values().collect::<Vec<_>>(), [&end]);
    }
}

#[test]
fn filters_take_what_they_say() {
    let check = |words: &[&str], row: &Listed, expected: bool| {
        let arguments = list_of(words);
        let since = arguments.since.as_deref().map(|text| parse_when(text, now()));
        let since = since.transpose().expect("a moment");
        let wanted = Wanted { arguments: &arguments, since };
        let found = wanted.takes(row) && wanted.takes_newest(row);
        assert_eq!(found, expected, "{words:?} {row:?}");
    };
    let open = listed("a", "2026-03-02T09:00:00Z");
    let end = over("b", "2026-03-02T08:00:00Z", "2026-03-02T08:10:00Z");
    let bare = Listed { machine_id: None, sensor_id: None, ..open.clone() };
    for row in [&open, &end, &bare] {
        check(&[], row, true);
    }
    check(&["--open"], &open, true);
    check(&["--open"], &end, false);
    check(&["--machine", "press-1"], &open, true);
    check(&["--machine", "press-1/oil"], &open, true);
    check(&["--machine", "press-2"], &open, false);
    check(&["--machine", "press-1"], &bare, false);
    check(&["--rule", "hot"], &open, true);
    check(&["--rule", "cold"], &open, false);
    check(&["--since", "1h"], &open, true);
    check(&["--since", "59m"], &open, false);
    check(&["--since", "2026-03-02T08:00:00Z"], &end, true);
    check(&["--since", "2026-03-02T08:00:00.000001Z"], &end, false);
    check(&["--since", "2026-03-02"], &end, true);
    let error = parse_when("soon", now()).expect_err("no moment");
    assert_eq!(error.exit_code(), 64, "{error}");
    let limits = [list_of(&[]).limit, list_of(&["--limit", "7"]).limit];
    assert_eq!(limits, [50, 7]);
}

#[test]
fn rows_of_the_table_are_read_and_unknown_states_left_out() {
    let texts =
        |column: [Option<&str>; 3]| Arc::new(StringArray::from(column.to_vec())) as ArrayRef;
    let times = |column: [Option<&str>; 3]| {
        let micros = column.map(|text| text.map(|text| at(text).micros()));
        let column = TimestampMicrosecondArray::from(micros.to_vec()).with_timezone("UTC");
        Arc::new(column) as ArrayRef
    };
    let fired_at = Some("2026-03-02T08:00:00Z");
    let end = Some("2026-03-02T08:10:00Z");
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("alert_id", texts([Some("a"), Some("b"), Some("c")]), true),
        ("revision", Arc::new(Int32Array::from(vec![1, 2, 3])), true),
        ("state", texts([Some("fired"), Some("resolved"), Some("of-the-future")]), true),
        ("rule", texts([Some("hot"); 3]), true),
        ("severity", Arc::new(Int32Array::from(vec![Some(2), Some(2), None])), true),
        ("machine_id", texts([Some("press-1"), Some("press-1"), None]), true),
        ("sensor_id", texts([Some("press-1/oil"), Some("press-1/oil"), None]), true),
        ("fired_at", times([fired_at; 3]), true),
        ("changed_at", times([fired_at, fired_at, None]), true),
        ("resolved_at", times([None, end, None]), true),
        ("findings", Arc::new(Int64Array::from(vec![3, 3, 3])), true),
        ("suppressed_by", texts([None; 3]), true),
    ]);
    let batch = batch.expect("a batch");
    let rows: Vec<_> = (0..3).map(|row| alert_at(&batch, row)).collect();
    let time = "2026-03-02T08:00:00Z";
    let expected = [Some(listed("a", time)), Some(over("b", time, "2026-03-02T08:10:00Z")), None];
    assert_eq!(rows, expected);
}

#[test]
fn a_list_is_for_people_and_in_json_for_programs() {
    let long = "f".repeat(64);
    let alerts = [
        Listed {
            suppressed_by: Some("maintenance:oil".to_owned()),
            ..listed(&long, "2026-03-01T06:00:30Z")
        },
        over("b", "2026-03-02T08:00:00.5Z", "2026-03-02T08:10:07Z"),
    ];
    let mut out = Vec::new();
    print_alerts(&alerts, (5, 1), now(), &mut out).expect("written");
    let text = String::from_utf8(out).expect("UTF-8");
    let lines: Vec<&str> = text.lines().collect();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert!(lines[0].starts_with("state     severity  rule"), "{text}");
    let first = "fired 2 hot press-1 press-1/oil 2026-03-01T06:00:30Z 1day 3h 59m 3 maintenance:oil ffffffffffff";
    assert_eq!(words(lines[1]), words(first));
    let second = "resolved 2 hot press-1 press-1/oil 2026-03-02T08:00:00Z 10m 6s 3 b";
    assert_eq!(words(lines[2]), words(second));
    assert_eq!(lines[3..], ["5 alerts, 1 of them open", "the first 2 of 5; --limit shows more"]);
    let object = as_json(&alerts[0], now());
    assert_eq!(object["alert_id"], long);
    assert_eq!((&object["state"], &object["lasted_s"]), (&json!("fired"), &json!(100_770)));
    assert_eq!(object["resolved_at"], serde_json::Value::Null);
}

/// The clock of the aggregator that raised it was ahead.
#[test]
fn nothing_lasts_less_than_no_time() {
    assert_eq!(listed("a", "2026-03-02T11:00:00Z").lasted(now()), Duration::ZERO);
    let end = over("a", "2026-03-02T08:00:00Z", "2026-03-02T07:00:00Z");
    assert_eq!(for_people(end.lasted(now())), "0s");
    assert_eq!(for_people(Duration::from_secs(3_599)), "59m 59s");
    assert_eq!(for_people(Duration::from_secs(3_601)), "1h");
}

/// An endpoint that answers each request with the next status, the last one again and again.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn new(statuses: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/hook?sig=hunter2", listener.local_addr().expect("bound"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            for index in 0.. {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let request = read_request(&mut stream).await;
                seen.lock().expect("a lock").push(request);
                let status = statuses[usize::min(index, statuses.len() - 1)];
                let answer =
                    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("written");
            }
        });
        Self { url, requests, task }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("a lock").clone()
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::load(None).expect("valid defaults");
        settings.alerts.webhook_url = Secret::new(&self.url);
        settings.alerts.retry_min = Duration::from_millis(1);
        settings.alerts.retry_max = Duration::from_millis(2);
        settings
    }
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = String::new();
    loop {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).await.expect("a request");
        request.push_str(std::str::from_utf8(&part[..read]).expect("UTF-8"));
        let length = request.to_lowercase();
        let length =
            length.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if let (Some((_, body)), Some(length)) = (request.split_once("\r\n\r\n"), length)
            && body.len() >= length
        {
            return request;
        }
        assert!(read > 0, "cut off: {request}");
    }
}

#[tokio::test]
async fn a_test_goes_once_and_says_what_it_is() {
    let server = Server::new(&["202 Accepted"]).await;
    let mut out = Vec::new();
    test(&server.settings(), "webhook", now(), &mut out).await.expect("taken");
    let text = String::from_utf8(out).expect("UTF-8");
    let id = format!("test-{}-1", now().micros());
    assert!(text.starts_with(&format!("webhook has taken the event {id}: ")), "{text}");
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    let (head, body) = requests[0].split_once("\r\n\r\n").expect("a body");
    assert!(head.contains(&format!("idempotency-key: {id}")), "{head}");
    let event: AlertCloudEvent = serde_json::from_str(body).expect("an event");
    assert_eq!((event.id.as_str(), event.subject.as_str()), (id.as_str(), "test"));
    assert_eq!(event.kind, AlertType::Fired);
    let essentials = event.data.data.essentials;
    assert_eq!((essentials.alert_rule.as_str(), essentials.severity as u8), ("test", 4));
    assert!(essentials.description.contains("this is a test by"), "{}", essentials.description);
}

#[tokio::test]
async fn a_test_that_is_not_taken_says_why_and_no_secret() {
    for status in ["503 Busy", "404 Not Found", "307 Elsewhere"] {
        let server = Server::new(vec![status].leak()).await;
        let mut out = Vec::new();
        let error = test(&server.settings(), "webhook", now(), &mut out).await;
        let error = error.expect_err("not taken");
        assert_eq!((error.exit_code(), server.requests().len()), (69, 1), "{status}");
        let text = error.to_string();
        assert!(text.contains(&status[..3]), "{text}");
        assert!(!text.contains("hunter2") && out.is_empty(), "{text}");
    }
    let server = Server::new(&["200 OK"]).await;
    let mut settings = server.settings();
    server.task.abort();
    drop(server);
    settings.alerts.webhook_url = Secret::new("http://127.0.0.1:1/hook?sig=hunter2");
    let error = test(&settings, "webhook", now(), &mut Vec::new()).await.expect_err("nobody");
    let text = error.to_string();
    assert!(!text.contains("hunter2") && error.exit_code() == 69, "{text}");
}

#[tokio::test]
async fn a_target_that_is_not_there_is_told_with_those_that_are() {
    let server = Server::new(&["200 OK"]).await;
    let mut settings = server.settings();
    settings.alerts.topic = "alerts".to_owned();
    let error = test(&settings, "ops", now(), &mut Vec::new()).await.expect_err("none");
    assert_eq!(error.exit_code(), 64);
    assert!(error.to_string().ends_with("they go to topic, webhook"), "{error}");
    settings.alerts.topic.clear();
    settings.alerts.webhook_url = Secret::new("");
    let error = test(&settings, "ops", now(), &mut Vec::new()).await.expect_err("none");
    assert_eq!((error.exit_code(), server.requests().len()), (64, 0), "{error}");
}

fn letter(event: &AlertEvent, reason: &str, detail: &str) -> Letter {
    let raw = delivery(event, "tests").body.as_bytes().to_vec();
    Letter {
        key: Key {
            from: TopicPartition { topic: "temperature".to_owned(), partition: 0 },
            offset: 7,
        },
        reason: reason.to_owned(),
        detail: detail.to_owned(),
        source: LETTER_SOURCE.to_owned(),
        timestamp: event.changed_at.as_event_time(),
        identity: None,
        raw_length: raw.len() as u64,
        raw,
        content_type: None,
    }
}

/// "webhook" wants everything, "calm" only what is critical.
fn channels() -> Channels {
    let mut settings = Settings::load(None).expect("valid defaults").alerts;
    settings.webhook_url = Secret::new("https://example.com/hook");
    let calm = json!({
        "name": "calm", "kind": "webhook", "url": "https://example.com", "severity-max": 0,
    });
    settings.targets = vec![serde_json::from_value::<TargetKeys>(calm).expect("a target")];
    channels_of(&settings).expect("two targets")
}

fn target(name: &str) -> Channel {
    Channel::Target(name.into())
}

/// Names and ids of what is planned.
fn planned(letters: &[Letter], only: Option<&Channel>) -> (Vec<String>, Vec<String>) {
    let plan = plan(letters, &channels(), only, ProcessingTime::from_micros(7));
    let lines = plan.outgoing.iter().flat_map(|(channel, outgoing)| {
        outgoing.iter().map(|next| format!("{} {}", channel.as_str(), next.delivery.id))
    });
    (lines.collect(), plan.refused)
}

#[test]
fn a_letter_goes_to_the_target_that_gave_it_up_or_to_the_one_that_is_named() {
    let given_up = letter(&event("a"), UNDELIVERED, "calm: 20 attempts failed");
    assert_eq!(
        planned(std::slice::from_ref(&given_up), None),
        (vec!["calm a-1".to_owned()], vec![])
    );
    let named = target("webhook");
    let twice = [given_up.clone(), given_up];
    assert_eq!(planned(&twice, Some(&named)), (vec!["webhook a-1".to_owned()], vec![]));
    let gone = letter(&event("a"), UNDELIVERED, "ops: status 404");
    let (outgoing, refused) = planned(std::slice::from_ref(&gone), None);
    assert!(outgoing.is_empty() && refused[0].contains("\"ops\""), "{refused:?}");
    assert_eq!(planned(&[gone], Some(&named)).0, ["webhook a-1"]);
}

#[test]
fn what_was_too_much_goes_to_those_that_want_it() {
    let detail = "more than 7 alerts are owed (alerts.pending-max): see why webhook does not";
    let warning = letter(&event("a"), OVERFLOW, detail);
    let critical = letter(&AlertEvent { severity: 0, ..resolved("b") }, OVERFLOW, detail);
    let (outgoing, refused) = planned(&[warning, critical], None);
    assert_eq!(outgoing, ["calm b-2", "webhook a-1", "webhook b-2"]);
    assert!(refused.is_empty());
}

#[test]
fn a_letter_that_is_cut_or_no_event_is_refused() {
    let whole = letter(&event("a"), UNDELIVERED, "webhook: no");
    let cut = Letter { raw_length: whole.raw_length + 1, ..whole.clone() };
    let other = Letter { raw: b"{}".to_vec(), raw_length: 2, ..whole };
    let (outgoing, refused) = planned(&[cut, other], None);
    assert!(outgoing.is_empty());
    assert!(refused[0].contains("are kept") && refused[1].contains("no event"), "{refused:?}");
}

#[test]
fn an_event_is_sent_again_as_it_was() {
    let first = delivery(&event("a"), "tests");
    let letter = letter(&event("a"), UNDELIVERED, "webhook: no");
    let again =
        event_of(&letter).map(|event| as_it_was(&letter, &event, ProcessingTime::from_micros(7)));
    let again = again.expect("an event");
    assert_eq!((&again.id, &again.key, &again.body), (&first.id, &first.key, &first.body));
}

async fn posted(server: &Server, count: usize) -> Posted {
    let settings = server.settings();
    let channels = channels_of(&settings.alerts).expect("a target");
    let letters: Vec<Letter> = (0..count)
        .map(|number| letter(&event(&format!("a{number}")), UNDELIVERED, "webhook: no"))
        .collect();
    let plan = plan(&letters, &channels, None, ProcessingTime::from_micros(now().micros()));
    let outgoing = &plan.outgoing[&target("webhook")];
    post(&settings, channels[&target("webhook")].as_ref(), outgoing).await
}

#[tokio::test]
async fn what_a_target_refuses_does_not_keep_the_others() {
    let server = Server::new(&["400 Bad Request", "503 Busy", "503 Busy", "200 OK"]).await;
    let posted = posted(&server, 3).await;
    assert_eq!((posted.taken, posted.failed.len(), posted.untried), (2, 1, 0), "{posted:?}");
    assert!(posted.failed[0].contains("a0-1 (temperature/0/7): status 400"), "{posted:?}");
    assert!(!posted.is_complete());
    assert_eq!(server.requests().len(), 5);
}

#[tokio::test]
async fn a_target_that_fails_again_and_again_is_left_alone() {
    let server = Server::new(&["200 OK", "503 Busy"]).await;
    let posted = posted(&server, 9).await;
    assert_eq!((posted.taken, posted.failed.len(), posted.untried), (1, 1, 7), "{posted:?}");
    assert_eq!(server.requests().len(), 1 + ATTEMPTS_MAX as usize);
    let mut out = Vec::new();
    posted.print(&target("webhook"), &mut out).expect("written");
    let text = String::from_utf8(out).expect("UTF-8");
    let expected =
        "webhook has taken 1, not taken 1, and 7 were not tried, since it fails\n  a1-1 (";
    assert!(text.starts_with(expected) && !text.contains("hunter2"), "{text}");
}

#[test]
fn lines_beyond_the_first_are_counted() {
    let lines: Vec<String> = (0..NAMED_MAX + 2).map(|number| number.to_string()).collect();
    let mut out = Vec::new();
    print_some(&lines, &mut out).expect("written");
    let text = String::from_utf8(out).expect("UTF-8");
    assert_eq!(text.lines().count(), NAMED_MAX + 1);
    assert!(text.ends_with("\n19\nand 2 others\n"), "{text}");
}

#[test]
fn the_command_line_names_reasons_and_refuses_others() {
    let Alerts::Replay(replay) = command(&["replay", "ops", "--reason", OVERFLOW, "--yes"]) else {
        panic!("a replay");
    };
    assert_eq!((replay.target.as_deref(), replay.reason), (Some("ops"), vec![OVERFLOW.to_owned()]));
    for words in [["--reason", "json"], ["--yes", "--dry-run"]] {
        let words = [["cloud-aggregator", "alerts"], ["replay", "ops"], words].concat();
        assert!(Cli::try_parse_from(&words).is_err(), "{words:?}");
    }
}
