//! How records come into messages.

use std::time::Duration;

use edge_core::upstream::Ways;

use super::*;
use crate::config::UpstreamName;
use crate::hub::telemetry::{Downlink, line};

fn way(message_records_max: usize, message_bytes_max: usize) -> (HubWay, Downlink) {
    let (uplink, mut downlink) = line(3);
    downlink.begin();
    let settings = Upstreams {
        order: vec![UpstreamName::Hub],
        hub_after: Duration::from_secs(60),
        back_to_kafka: true,
        kafka_ask_interval: Duration::from_secs(10),
        output: "telemetry".to_owned(),
        messages_in_flight_max: 3,
        message_bytes_max,
        message_records_max,
        linger: Duration::from_secs(1),
    };
    assert_eq!(settings.ways(), Ways::Hub);
    (HubWay::new(uplink, settings), downlink)
}

/// Places records of these topics, each `{}`, and gives how many found room.
fn place(way: &HubWay, drafts: &mut Vec<Draft>, topics: &[&str]) -> usize {
    let placed = topics.iter().enumerate().take_while(|(index, topic)| {
        let to = (**topic, "press-1/oil", Encoding::Json);
        way.place(drafts, Sequence(*index as u64 + 1), to, b"{}".to_vec()).is_some()
    });
    placed.count()
}

async fn shipped(way: &mut HubWay, line: &mut Downlink, drafts: Vec<Draft>) -> Vec<HubMessage> {
    let mut messages = Vec::new();
    for draft in drafts {
        way.ship(1, 1, draft).expect("there is room");
        messages.push(line.next().await);
    }
    messages
}

fn property<'a>(message: &'a HubMessage, name: &str) -> Option<&'a str> {
    message.properties.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
}

#[tokio::test]
async fn records_of_a_topic_travel_together_in_an_array() {
    let (mut way, mut line) = way(3, 1_024);
    let mut drafts = Vec::new();
    let topics = ["t", "p", "t", "t", "t", "p"];
    assert_eq!(place(&way, &mut drafts, &topics), 6);
    let messages = shipped(&mut way, &mut line, drafts).await;
    let found: Vec<_> = messages
        .iter()
        .map(|message| (property(message, "topic"), String::from_utf8_lossy(&message.payload)))
        .collect();
    let expected = [("t", "[{},{},{}]"), ("p", "[{},{}]"), ("t", "[{}]")];
    assert_eq!(found, expected.map(|(topic, body)| (Some(topic), body.into())));
    let sequences: Vec<_> = way.shipments.values().map(|it| it.sequences.clone()).collect();
    let expected = [vec![1, 3, 4], vec![2, 6], vec![5]];
    let numbers = |list: &Vec<Sequence>| list.iter().map(|it| it.0).collect::<Vec<_>>();
    assert_eq!(sequences.iter().map(numbers).collect::<Vec<_>>(), expected);
    assert_eq!(property(&messages[0], "key"), None, "of several records it says nothing");
    assert_eq!(property(&messages[2], "key"), Some("press-1/oil"));
    assert_eq!(property(&messages[2], "content-type"), Some("application/json"));
    assert_eq!(way.room(), 0);
}

#[tokio::test]
async fn alone_a_record_is_a_message_as_on_kafka() {
    let (mut way, mut line) = way(1, 1_024);
    let mut drafts = Vec::new();
    assert_eq!(place(&way, &mut drafts, &["t"; 5]), 3, "no more messages than there is room for");
    let messages = shipped(&mut way, &mut line, drafts).await;
    assert!(messages.iter().all(|message| message.payload == b"{}"));
    assert!(messages.iter().all(|message| property(message, "key").is_some()));
}

#[test]
fn a_message_ends_before_it_is_too_long() {
    let (way, _line) = way(500, 10);
    let mut drafts = Vec::new();
    // "[{},{},{}]" has ten bytes.
    assert_eq!(place(&way, &mut drafts, &["t"; 12]), 9);
    assert!(drafts.iter().all(|draft| draft.body.len() < 10 && draft.sequences.len() == 3));
    let long = vec![b' '; 50];
    let mut drafts = Vec::new();
    let to = ("t", "k", Encoding::Json);
    assert!(way.place(&mut drafts, Sequence(1), to, long).is_some(), "longer, and alone");
}

#[tokio::test]
async fn waveforms_are_protobuf_and_each_alone() {
    let (mut way, mut line) = way(500, 1_024);
    let mut drafts = Vec::new();
    for number in 1..=2 {
        let to = ("waveforms", "größe", Encoding::Protobuf);
        assert!(way.place(&mut drafts, Sequence(number), to, vec![8, 1]).is_some());
    }
    let messages = shipped(&mut way, &mut line, drafts).await;
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0].payload, [8, 1]);
    assert_eq!(property(&messages[0], "$.ct"), Some("application/x-protobuf"));
    assert_eq!(property(&messages[0], "key"), None, "no ASCII");
}

#[test]
fn readings_wait_for_a_fuller_message_and_events_never() {
    let (mut way, _line) = way(500, 1_024);
    let now = Instant::now();
    let readings = Lane::Readings.index();
    assert!(way.lingers(readings, 10, now));
    assert_eq!(way.poll_timeout(), Some(now + Duration::from_secs(1)));
    assert!(way.lingers(readings, 20, now + Duration::from_millis(999)));
    assert!(!way.lingers(readings, 20, now + Duration::from_secs(1)));
    assert!(!way.lingers(readings, 500, now + Duration::from_secs(2)), "full");
    assert_eq!(way.poll_timeout(), None);
    assert!(!way.lingers(Lane::Events.index(), 1, now));
}
