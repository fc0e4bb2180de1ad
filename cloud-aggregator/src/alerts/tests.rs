use aggregator_core::ProcessingTime;
use shared_proto::model::{EventTime, SensorId};

use super::*;

fn partition() -> TopicPartition {
    TopicPartition { topic: "temperature".to_owned(), partition: 0 }
}

fn alert(id: &str) -> Alert {
    Alert {
        id: id.to_owned(),
        rule: "hot".to_owned(),
        severity: 2,
        sensor_id: Some(SensorId::new("press-1/oil").expect("a name")),
        machine_id: None,
        window_start: EventTime::from_micros(0),
        window_end: EventTime::from_micros(60_000_000),
        count: 6,
        threshold: "count > 5".parse().expect("a threshold"),
        observed: 6.0,
        fired_at: ProcessingTime::from_micros(1),
        historical: false,
    }
}

type Queues = BTreeMap<Channel, mpsc::Receiver<Delivery>>;

fn desk(owed_max: usize) -> (AlertDesk, Queues) {
    let (mut senders, mut queues) = (BTreeMap::new(), BTreeMap::new());
    for channel in [Channel::Topic, Channel::Webhook] {
        let (sender, queue) = mpsc::channel(8);
        senders.insert(channel, sender);
        queues.insert(channel, queue);
    }
    (AlertDesk::new(senders, owed_max, "tests".to_owned()), queues)
}

/// What the channels have been given since the last time.
fn given(desk: &mut AlertDesk, queues: &mut Queues) -> Vec<(Channel, String)> {
    desk.pump();
    let mut given = Vec::new();
    for (channel, queue) in queues {
        while let Ok(delivery) = queue.try_recv() {
            given.push((*channel, delivery.id.to_string()));
        }
    }
    given
}

fn taken(channel: Channel, id: &str) -> Outcome {
    Outcome { id: id.into(), channel, given_up: None }
}

#[test]
fn what_a_channel_has_taken_it_does_not_get_again_when_the_epoch_is_counted_again() {
    let (mut desk, mut queues) = desk(10);
    assert!(desk.add(partition(), alert("a")).is_new);
    assert!(desk.add(partition(), alert("b")).is_new);
    let both = |id: &str| [Channel::Topic, Channel::Webhook].map(|to| (to, id.to_owned()));
    let mut all = [both("a"), both("b")].concat();
    all.sort();
    let mut first = given(&mut desk, &mut queues);
    first.sort();
    assert_eq!(first, all);
    assert!(desk.handle(taken(Channel::Topic, "a")).is_none());
    // The commit fails, and one more outcome comes when nothing is owed.
    desk.clear();
    assert!(desk.handle(taken(Channel::Webhook, "a")).is_none());
    assert!(desk.handle(taken(Channel::Topic, "b")).is_none());
    let again = desk.add(partition(), alert("a"));
    assert!(!again.is_new && again.is_settled, "{again:?}");
    let again = desk.add(partition(), alert("b"));
    assert!(!again.is_new && !again.is_settled, "{again:?}");
    assert_eq!(given(&mut desk, &mut queues), [(Channel::Webhook, "b".to_owned())]);
    assert_eq!(desk.owed_of(&partition()), [alert("b")]);
    // What is given up is owed again, as its dead letter went with the epoch.
    let outcome = Outcome { given_up: Some("410".to_owned()), ..taken(Channel::Webhook, "b") };
    assert_eq!(desk.handle(outcome).expect("given up").reason, "alert-undelivered");
    desk.clear();
    assert!(!desk.add(partition(), alert("b")).is_settled);
    assert_eq!(given(&mut desk, &mut queues), [(Channel::Webhook, "b".to_owned())]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let (mut desk, mut queues) = desk(2);
    for id in ["a", "b", "c", "d", "e"] {
        let added = desk.add(partition(), alert(id));
        assert!(added.is_new && added.overflow.is_none(), "{id}: {added:?}");
        assert_eq!(given(&mut desk, &mut queues).len(), 2);
        for channel in [Channel::Topic, Channel::Webhook] {
            assert!(desk.handle(taken(channel, id)).is_none());
        }
    }
    assert!(desk.is_empty());
    assert!(desk.add(partition(), alert("a")).is_new, "forgotten: four are remembered");
    assert!(desk.add(partition(), alert("e")).is_settled);
}
