use super::super::tests::{complaint, file_of, with};
use super::*;

const NAMESPACE: &str = "Endpoint=sb://plant.servicebus.windows.net/;SharedAccessKeyName=send;\
    SharedAccessKey=aHVudGVyMg+/x==";

fn parsed(text: &str) -> Result<ConnectionString, String> {
    ConnectionString::parse(&Secret::new(text))
}

#[test]
fn a_connection_string_is_read_in_any_order() {
    let found = parsed(NAMESPACE).expect("valid");
    assert_eq!(found.host, "plant.servicebus.windows.net");
    assert_eq!((found.key_name.as_str(), found.entity), ("send", None));
    assert_eq!(found.whole.expose(), NAMESPACE);
    let other = "EntityPath=alerts; SharedAccessKey=k=;sharedaccesskeyname=send;\
        endpoint=sb://plant.servicebus.windows.net;";
    assert_eq!(parsed(other).expect("valid").entity.as_deref(), Some("alerts"));
}

#[test]
fn what_is_no_connection_string_is_refused_without_showing_it() {
    let check = |text: &str, expected: &str| {
        let found = parsed(text).expect_err("refused");
        assert!(found.contains(expected), "{text}: {found}");
        assert!(!found.contains("hunter2"), "{found}");
    };
    check("hunter2", "part 1 is not NAME=VALUE");
    check("hunter2=hunter2", "part 1 that is not known");
    check("SharedAccessKeyName=a;SharedAccessKey=hunter2", "has no Endpoint: copy it whole");
    check("Endpoint=sb://a.b/;SharedAccessKey=hunter2", "has no SharedAccessKeyName");
    check("Endpoint=sb://a.b/;SharedAccessKeyName=a", "has no SharedAccessKey");
    check("Endpoint=sb://a.b/;SharedAccessKeyName=a;SharedAccessKey=", "has no SharedAccessKey");
    let keys = "SharedAccessKeyName=a;SharedAccessKey=hunter2";
    check(&format!("Endpoint=https://a.b/;{keys}"), "does not begin with sb://");
    check(&format!("Endpoint=sb://hunter2/;{keys}"), "is not sb://HOST/");
    check(&format!("Endpoint=sb://a.b:hunter2/;{keys}"), "is not sb://HOST/");
    check(&format!("Endpoint=sb://a.b/;{keys};EntityPath=a b"), "an EntityPath that is no name");
    check(&format!("Endpoint=sb://a.b/;{keys};{keys}"), "two parts sharedaccesskeyname");
    check(&format!("Endpoint=sb://a.b/;{keys}\n{keys}"), "several lines");
    let signature = "Endpoint=sb://a.b/;SharedAccessSignature=SharedAccessSignature sr=hunter2";
    check(signature, "the Kafka endpoint needs a key");
}

fn event_hubs(connection_string: &str, more: &str) -> (tempfile::NamedTempFile, String) {
    let file = file_of(connection_string);
    let path = file.path().display().to_string();
    (
        file,
        format!(
            "[alerts]\ntopic = \"alerts\"\n[alerts.event-hubs]\nconnection-string-file = \"{path}\"\n{more}"
        ),
    )
}

#[test]
fn a_connection_string_is_the_one_setting() {
    let (_file, text) = event_hubs(NAMESPACE, "");
    let alerts = with(&text, &[]).expect("valid").alerts;
    let connection = alerts.event_hubs.connection().expect("valid").expect("on");
    assert_eq!(connection.brokers, "plant.servicebus.windows.net:9093");
    assert_eq!(connection.password.as_ref().map(Secret::expose), Some(NAMESPACE));
    assert!(!format!("{connection:?}").contains("aHVudGVyMg"), "{connection:?}");
    let expected = [
        ("compression.codec", "none"),
        ("enable.idempotence", "true"),
        ("message.max.bytes", "999999"),
        ("message.timeout.ms", "120000"),
        ("metadata.max.age.ms", "180000"),
        ("request.timeout.ms", "60000"),
        ("sasl.mechanisms", "PLAIN"),
        ("sasl.username", "$ConnectionString"),
        ("security.protocol", "SASL_SSL"),
        ("socket.keepalive.enable", "true"),
    ];
    let found: Vec<(&str, &str)> =
        connection.properties.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(found, expected);
    let defaults = with("", &[]).expect("valid").alerts.event_hubs;
    assert!(!defaults.is_on() && defaults.connection().expect("valid").is_none());
}

#[test]
fn a_token_needs_the_namespace_alone() {
    let text = |more: &str| {
        format!(
            "[alerts]\ntopic = \"alerts\"\n[alerts.event-hubs]\nauthentication = \"oauthbearer\"\n{more}"
        )
    };
    let missing = complaint(&text(""), &[]);
    assert!(missing.starts_with("alerts.event-hubs.namespace: \"\" is no host"), "{missing}");
    let file = text("namespace = \"plant.servicebus.windows.net\"\nidempotence = false\n");
    let alerts = with(&file, &[]).expect("valid").alerts;
    let connection = alerts.event_hubs.connection().expect("valid").expect("on");
    assert_eq!(connection.properties["sasl.mechanisms"], "OAUTHBEARER");
    assert_eq!(connection.properties["enable.idempotence"], "false");
    assert!(connection.password.is_none());
    let scope = "https://plant.servicebus.windows.net/.default";
    assert_eq!(connection.token_scope.as_deref(), Some(scope));
    let text = complaint("[alerts.event-hubs]\nnamespace = \"a.b\"\n", &[]);
    assert!(text.starts_with("alerts.event-hubs.namespace: needs authentication"), "{text}");
}

#[test]
fn codecs_that_the_service_does_not_take_are_refused() {
    for codec in ["none", "gzip"] {
        let (_file, text) = event_hubs(NAMESPACE, &format!("compression = \"{codec}\"\n"));
        assert_eq!(complaint(&text, &[]), "accepted");
    }
    for codec in ["snappy", "lz4", "zstd", ""] {
        let (_file, text) = event_hubs(NAMESPACE, &format!("compression = \"{codec}\"\n"));
        let found = complaint(&text, &[]);
        let expected =
            format!("alerts.event-hubs.compression: {codec:?} is a codec that Event Hubs");
        assert!(found.starts_with(&expected), "{found}");
    }
}

#[test]
fn the_topic_is_the_event_hub_of_the_connection_string() {
    let of_hub = format!("{NAMESPACE};EntityPath=alerts");
    let (_file, text) = event_hubs(&of_hub, "");
    assert_eq!(complaint(&text, &[]), "accepted");
    let found = complaint(&text.replace("\"alerts\"", "\"other\""), &[]);
    let expected = "alerts.topic: is \"other\", the connection string is for \"alerts\" alone";
    assert_eq!(found, expected);
    let (_file, text) = event_hubs(NAMESPACE, "");
    let found = complaint(&text.replace("\"alerts\"", "\"\""), &[]);
    assert_eq!(found, "alerts.topic: is empty: name the Event Hub of alerts");
    let found = complaint(
        &text.replace("connection-string-file = \"", "connection-string-file = \"/x"),
        &[],
    );
    assert!(found.starts_with("alerts.event-hubs.connection-string-file: /x"), "{found}");
}

#[test]
fn properties_that_the_service_would_answer_with_timeouts_are_refused_before_the_start() {
    let check = |brokers: &str, property: &str, value: &str, expected: &str| {
        let properties = [(property.to_owned(), value.to_owned())].into();
        let found = property_faults(brokers, &properties);
        let texts: Vec<&str> = found.iter().map(|(_, text)| text.as_str()).collect();
        match expected {
            "" => assert!(texts.is_empty(), "{property} = {value}: {texts:?}"),
            expected => assert!(texts.concat().contains(expected), "{property}: {texts:?}"),
        }
    };
    let plant = "sasl_ssl://Plant.ServiceBus.Windows.Net:9093";
    check(plant, "compression.codec", "zstd", "knows gzip alone");
    check(plant, "compression.type", "snappy", "knows gzip alone");
    check(plant, "compression.type", "gzip", "");
    check(plant, "message.max.bytes", "1000000", "1,000,000 bytes and more, at most 999999");
    check(plant, "message.max.bytes", "999999", "");
    check(plant, "metadata.max.age.ms", "900000", "silent for four minutes, at most 240000");
    check(plant, "metadata.max.age.ms", "many", "");
    check(plant, "socket.keepalive.enable", "false", "silent for four minutes");
    check(plant, "linger.ms", "5", "");
    check("kafka:9092", "compression.codec", "zstd", "");
    check("servicebus.windows.net.example.org:9092", "compression.codec", "zstd", "");
    let file = "[kafka]\nbrokers = \"plant.servicebus.windows.net:9093\"\nproperties = { \"compression.type\" = \"lz4\" }\n";
    assert_eq!(complaint(file, &[]), "accepted", "nothing is sent");
    let text = complaint(&format!("{file}[alerts]\ntopic = \"alerts\"\n"), &[]);
    assert!(text.starts_with("kafka.properties.compression.type: \"lz4\" is a codec"), "{text}");
}
