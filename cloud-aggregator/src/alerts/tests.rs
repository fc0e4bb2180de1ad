use aggregator_core::AlertEvent;

use super::*;
use crate::sink::alert::tests::{event, resolved};

fn partition() -> TopicPartition {
    TopicPartition { topic: "temperature".to_owned(), partition: 0 }
}

fn target(name: &str) -> Channel {
    Channel::Target(name.into())
}

type Queues = BTreeMap<Channel, mpsc::Receiver<Delivery>>;

fn desk_of(owed_max: usize, audiences: Vec<(Channel, Audience)>) -> (AlertDesk, Queues) {
    let (mut outlets, mut queues) = (BTreeMap::new(), BTreeMap::new());
    for (channel, audience) in audiences {
        let (sender, queue) = mpsc::channel(8);
        outlets.insert(channel.clone(), Outlet { sender, audience });
        queues.insert(channel, queue);
    }
    (AlertDesk::new(outlets, owed_max, "tests".to_owned()), queues)
}

fn desk(owed_max: usize) -> (AlertDesk, Queues) {
    let both = [Channel::Topic, target("webhook")];
    desk_of(owed_max, both.map(|channel| (channel, Audience::everything())).into())
}

/// What the channels have been given since the last time.
fn given(desk: &mut AlertDesk, queues: &mut Queues) -> Vec<(Channel, String)> {
    desk.pump();
    let mut given = Vec::new();
    for (channel, queue) in queues {
        while let Ok(delivery) = queue.try_recv() {
            given.push((channel.clone(), delivery.id.to_string()));
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
    assert!(desk.add(partition(), event("a")).is_new);
    assert!(desk.add(partition(), event("b")).is_new);
    let both = |id: &str| [Channel::Topic, target("webhook")].map(|to| (to, id.to_owned()));
    let mut all = [both("a-1"), both("b-1")].concat();
    all.sort();
    let mut first = given(&mut desk, &mut queues);
    first.sort();
    assert_eq!(first, all);
    assert!(desk.handle(taken(Channel::Topic, "a-1")).is_none());
    // The commit fails, and one more outcome comes when nothing is owed.
    desk.clear();
    assert!(desk.handle(taken(target("webhook"), "a-1")).is_none());
    assert!(desk.handle(taken(Channel::Topic, "b-1")).is_none());
    let again = desk.add(partition(), event("a"));
    assert!(!again.is_new && again.is_settled, "{again:?}");
    let again = desk.add(partition(), event("b"));
    assert!(!again.is_new && !again.is_settled, "{again:?}");
    assert_eq!(given(&mut desk, &mut queues), [(target("webhook"), "b-1".to_owned())]);
    assert_eq!(desk.owed_of(&partition()).0, [event("b")]);
    // What is given up is owed again, as its dead letter went with the epoch.
    let outcome = Outcome { given_up: Some("410".to_owned()), ..taken(target("webhook"), "b-1") };
    let lost = desk.handle(outcome).expect("given up");
    assert_eq!((lost.reason, lost.detail.as_str()), ("alert-undelivered", "webhook: 410"));
    desk.clear();
    assert!(!desk.add(partition(), event("b")).is_settled);
    assert_eq!(given(&mut desk, &mut queues), [(target("webhook"), "b-1".to_owned())]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let (mut desk, mut queues) = desk(2);
    for id in ["a", "b", "c", "d", "e"] {
        let added = desk.add(partition(), event(id));
        assert!(added.is_new && added.overflow.is_none(), "{id}: {added:?}");
        assert_eq!(given(&mut desk, &mut queues).len(), 2);
        for channel in [Channel::Topic, target("webhook")] {
            assert!(desk.handle(taken(channel, &format!("{id}-1"))).is_none());
        }
    }
    assert!(desk.is_empty());
    assert!(desk.add(partition(), event("a")).is_new, "forgotten: four are remembered");
    assert!(desk.add(partition(), event("e")).is_settled);
}

#[test]
fn what_is_suppressed_is_owed_to_nobody_and_the_next_event_of_the_alert_is() {
    let (mut desk, mut queues) = desk(10);
    let shelved = AlertEvent { suppressed_by: Some("shelved:Kim".to_owned()), ..event("a") };
    let added = desk.add(partition(), shelved);
    assert!(added.is_new && added.is_settled, "{added:?}");
    assert!(desk.is_empty() && given(&mut desk, &mut queues).is_empty());
    let told = AlertEvent { revision: 2, ..event("a") };
    assert!(!desk.add(partition(), told).is_settled);
    assert_eq!(given(&mut desk, &mut queues).len(), 2);
}

#[test]
fn each_channel_gets_what_it_wants() {
    let everything = Audience::everything();
    let people = Audience { historical: false, ..everything.clone() };
    let of_rule = Audience { rules: ["other".to_owned()].into(), ..everything.clone() };
    let severe = Audience { severity_max: 1, resolved: false, ..everything.clone() };
    let audiences = [("people", people), ("rule", of_rule), ("severe", severe)];
    let mut audiences: Vec<_> =
        audiences.map(|(name, audience)| (target(name), audience)).into_iter().collect();
    audiences.push((Channel::Topic, everything));
    let (mut desk, mut queues) = desk_of(100, audiences);
    let mut check = |event: AlertEvent, expected: &[&str]| {
        desk.add(partition(), event.clone());
        let mut names: Vec<String> = given(&mut desk, &mut queues)
            .into_iter()
            .map(|(channel, _)| channel.as_str().to_owned())
            .collect();
        names.sort();
        assert_eq!(names, expected, "{event:?}");
    };
    check(event("a"), &["people", "topic"]);
    check(AlertEvent { historical: true, ..event("b") }, &["topic"]);
    check(AlertEvent { rule: "other".to_owned(), ..event("c") }, &["people", "rule", "topic"]);
    check(AlertEvent { severity: 1, ..event("d") }, &["people", "severe", "topic"]);
    check(AlertEvent { severity: 1, ..resolved("d") }, &["people", "topic"]);
}

#[test]
fn an_event_that_nobody_wants_is_settled() {
    let quiet = Audience { severity_max: 0, ..Audience::everything() };
    let (mut desk, _queues) = desk_of(10, vec![(target("a"), quiet)]);
    assert!(desk.add(partition(), event("a")).is_settled);
    assert!(desk.owed_of(&partition()).0.is_empty());
}

#[test]
fn after_a_restart_only_who_has_not_taken_an_event_gets_it() {
    let everything = Audience::everything;
    let (mut before, _queues) =
        desk_of(10, vec![(target("old"), everything()), (target("kept"), everything())]);
    before.add(partition(), event("a"));
    before.add(partition(), event("b"));
    before.handle(taken(target("kept"), "a-1"));
    assert_eq!((owed_to(&before, &target("old")), owed_to(&before, &target("kept"))), (2, 1));
    let (stored, to) = before.owed_of(&partition());
    assert_eq!(stored.len(), 2);
    let (mut after, mut queues) =
        desk_of(10, vec![(target("kept"), everything()), (target("new"), everything())]);
    for event in stored {
        let to = to.get(&event.event_id());
        after.add_to(partition(), event, to);
    }
    // The target that is gone is owed nothing, and the new one hears of what comes from now on.
    assert_eq!(given(&mut after, &mut queues).len(), 1);
    assert_eq!((owed_to(&after, &target("kept")), owed_to(&after, &target("new"))), (1, 0));
    after.add_to(partition(), event("c"), None);
    assert_eq!((owed_to(&after, &target("kept")), owed_to(&after, &target("new"))), (2, 1));
    let (mut none, _queues) = desk_of(10, Vec::new());
    assert!(none.add(partition(), event("a")).is_settled);
}

/// How many events are owed to a channel, counted.
fn owed_to(desk: &AlertDesk, channel: &Channel) -> usize {
    desk.owed.values().filter(|owed| owed.channels.contains(channel)).count()
}

/// The counts, and that they are those of what is owed.
fn owed(desk: &AlertDesk) -> [usize; 2] {
    let counts = [Channel::Topic, target("webhook")].map(|channel| owed_to(desk, &channel));
    let listed = [Channel::Topic, target("webhook")]
        .map(|channel| desk.owed_by_channel().get(&channel).copied().unwrap_or_default());
    assert_eq!(listed, counts);
    assert!(desk.owed_by_channel().values().all(|count| *count > 0), "{desk:?}");
    counts
}

#[test]
fn what_each_channel_is_owed_is_counted_whatever_happens_to_it() {
    let (mut desk, _queues) = desk(3);
    let other = TopicPartition { topic: "pressure".to_owned(), partition: 0 };
    desk.add(partition(), event("a"));
    desk.add(partition(), event("a"));
    desk.add(other.clone(), event("b"));
    assert_eq!(owed(&desk), [2, 2]);
    desk.handle(taken(Channel::Topic, "a-1"));
    desk.handle(taken(Channel::Topic, "a-1"));
    assert_eq!(owed(&desk), [1, 2]);
    let lost = Outcome { given_up: Some("410".to_owned()), ..taken(target("webhook"), "b-1") };
    desk.handle(lost);
    assert_eq!(owed(&desk), [1, 1]);
    desk.add(partition(), event("c"));
    assert!(desk.add(partition(), event("d")).overflow.is_some(), "a is given up");
    assert_eq!(owed(&desk), [3, 2]);
    desk.forget(&[other]);
    assert_eq!(owed(&desk), [2, 2]);
    desk.clear();
    assert_eq!(owed(&desk), [0, 0]);
}

#[test]
fn a_channel_that_takes_nothing_holds_nobody_up_and_only_its_own_are_given_up() {
    let (mut desk, mut queues) = desk(20);
    let mut gone = queues.remove(&target("webhook")).expect("a queue");
    for index in 0..20 {
        assert!(desk.add(partition(), event(&format!("{index:02}"))).overflow.is_none());
        let id = format!("{index:02}-1");
        assert_eq!(given(&mut desk, &mut queues), [(Channel::Topic, id.clone())]);
        assert!(desk.handle(taken(Channel::Topic, &id)).is_none());
    }
    let overflow = desk.add(partition(), event("20")).overflow.expect("one too many");
    assert!(overflow.detail.ends_with("see why webhook does not take them"), "{overflow:?}");
    assert_eq!((overflow.alert, overflow.reason), (event("00"), "alert-overflow"));
    assert_eq!(given(&mut desk, &mut queues), [(Channel::Topic, "20-1".to_owned())]);
    let held = std::iter::from_fn(|| gone.try_recv().ok()).count();
    assert_eq!(held, 8, "as many as its queue holds");
}

#[test]
fn the_events_of_a_digest_stay_owed_until_it_is_delivered() {
    let (mut desk, mut queues) = desk_of(10, vec![(target("mail"), Audience::everything())]);
    for id in ["a", "b"] {
        desk.add(partition(), event(id));
    }
    assert_eq!(given(&mut desk, &mut queues).len(), 2);
    assert_eq!(desk.owed_of(&partition()).0.len(), 2, "held by the channel, owed by us");
    for id in ["a-1", "b-1"] {
        assert!(desk.handle(taken(target("mail"), id)).is_none());
    }
    assert!(desk.is_empty());
}

#[test]
fn a_partition_that_comes_back_is_not_sent_twice() {
    let (mut desk, mut queues) = desk(10);
    desk.add(partition(), event("a"));
    desk.forget(&[partition()]);
    desk.add(partition(), event("a"));
    assert_eq!(given(&mut desk, &mut queues).len(), 2);
}
