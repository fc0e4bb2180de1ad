use std::fs::File;

use proptest::prelude::*;
use rumqttc::QoS;
use shared_proto::model::{EventTime, MetricType, SensorId};

use super::*;

fn mark(number: u64) -> InputMark {
    InputMark { topic: number % 7, message: number }
}

fn messages(numbers: std::ops::Range<u64>) -> Vec<Noted> {
    numbers.map(|number| Noted::Message(mark(number))).collect()
}

fn publish(topic: &str, payload: &str) -> Publish {
    Publish::new(topic, QoS::AtLeastOnce, payload)
}

fn recognition() -> Recognition {
    Recognition { readings: Recent::new(3), messages: Recent::new(3), topics: Topics::default() }
}

#[test]
fn what_is_recent_is_known_until_it_is_forgotten() {
    let mut recent = Recent::new(3);
    for hash in [0, 1, 0, 2] {
        recent.insert(hash);
    }
    recent.insert(3);
    assert!(recent.contains(0), "it came again meanwhile");
    assert!(!recent.contains(1), "three others came after it");
    recent.insert(4);
    assert!(!recent.contains(0));
    assert_eq!((recent.order.len(), recent.counts.len()), (3, 3));
}

#[test]
fn readings_differ_by_sensor_metric_time_and_value() {
    let reading = |sensor: &str, micros: i64, value: f64| {
        Reading::new(
            SensorId::new(sensor).expect("valid"),
            EventTime::from_micros(micros),
            MetricType::new("vibration").expect("valid"),
            value,
        )
    };
    let one = hash_of_reading(&reading("s", 1, 1.0));
    assert_eq!(one, hash_of_reading(&reading("s", 1, 1.0)));
    for other in [reading("t", 1, 1.0), reading("s", 2, 1.0), reading("s", 1, 1.5)] {
        assert_ne!(one, hash_of_reading(&other));
    }
}

#[test]
fn a_message_is_a_repeat_only_if_the_broker_says_so() {
    let mut known = recognition();
    let mut message = publish("plant/a/readings", "1");
    known.note_message(InputMark::of(&message));
    let is_repeat = |message: &Publish| known.is_repeat(message, InputMark::of(message));
    assert!(!is_repeat(&message), "a sensor may say the same twice");
    message.dup = true;
    assert!(is_repeat(&message));
    (message.dup, message.retain) = (false, true);
    assert!(is_repeat(&message));
    for mut other in [publish("plant/b/readings", "1"), publish("plant/a/readings", "2")] {
        (other.dup, other.retain) = (true, true);
        assert!(!is_repeat(&other), "{other:?}");
    }
}

#[test]
fn what_the_broker_retains_is_known_however_much_came_on_other_topics() {
    let mut known = recognition();
    let mut retained = publish("plant/a/readings", "1");
    retained.retain = true;
    known.note_message(InputMark::of(&retained));
    for number in 0..100 {
        known.note_message(InputMark::of(&publish("plant/b/readings", &number.to_string())));
    }
    assert!(known.is_repeat(&retained, InputMark::of(&retained)));
    known.note_message(InputMark::of(&publish("plant/a/readings", "2")));
    (0..3).for_each(|number| known.note_message(mark(number)));
    assert!(known.is_repeat(&retained, InputMark::of(&retained)), "it came as retained once");
    let mut other = publish("plant/a/readings", "3");
    other.retain = true;
    known.note_message(InputMark::of(&other));
    (0..3).for_each(|number| known.note_message(mark(number)));
    assert!(!known.is_repeat(&retained, InputMark::of(&retained)), "another is retained now");
}

#[test]
fn of_too_many_topics_those_heard_last_are_kept() {
    let mut topics = Topics::default();
    let count = TOPICS_MAX as u64 + 1;
    (0..count).for_each(|number| topics.note(InputMark { topic: number, message: number }));
    assert!(topics.last.len() <= TOPICS_MAX / 2 + 1);
    assert_eq!((topics.last(0), topics.last(count - 1)), (None, Some(count - 1)));
    let marks = topics.marks();
    assert!(marks.is_sorted_by_key(|mark| mark.message), "the oldest first");
}

#[test]
fn the_log_holds_the_newest_and_the_last_of_each_topic() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut log, found) = InputLog::open(folder.path()).expect("opened");
    assert!(found.is_empty());
    let slow = InputMark { topic: u64::MAX, message: 42 };
    log.add(&[slow]).expect("added");
    let count = 3 * RECENT_MESSAGES_MAX as u64;
    for first in (0..count).step_by(1024) {
        log.add(&(first..first + 1024).map(mark).collect::<Vec<_>>()).expect("added");
    }
    log.sync().expect("synced");
    drop(log);
    let (mut log, found) = InputLog::open(folder.path()).expect("opened");
    let newest = count - RECENT_MESSAGES_MAX as u64..count;
    assert!(found.ends_with(&messages(newest)));
    assert!(found.contains(&Noted::LastOfTopic(slow)));
    assert!(found.len() < 3 * RECENT_MESSAGES_MAX, "{}: the oldest are gone", found.len());
    log.add(&[mark(count)]).expect("added");
    drop(log);
    let (_, found) = InputLog::open(folder.path()).expect("opened");
    assert_eq!(found.last(), Some(&Noted::Message(mark(count))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Wherever a file is cut or changed: what is before stays known, what is added later too, nothing is made up.
    #[test]
    fn a_damaged_log_forgets_and_goes_on(
        groups in proptest::collection::vec(1_usize..20, 1..12),
        share in 0.0..1.0_f64,
        is_cut in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().expect("folder");
        let (mut log, _) = InputLog::open(folder.path()).expect("opened");
        let mut number = 0;
        for group in groups {
            let marks: Vec<InputMark> = (number..number + group as u64).map(mark).collect();
            log.add(&marks).expect("added");
            number += group as u64;
        }
        drop(log);
        let path = folder.path().join("inputs-0");
        let mut bytes = std::fs::read(&path).expect("read");
        let at = ((bytes.len() as f64 * share) as usize).min(bytes.len() - 1);
        if is_cut { bytes.truncate(at) } else { bytes[at] ^= 0x40 }
        std::fs::write(&path, &bytes).expect("written");
        let (mut log, found) = InputLog::open(folder.path()).expect("opened");
        prop_assert_eq!(&found, &messages(0..found.len() as u64));
        prop_assert!((found.len() as u64) < number);
        log.add(&[mark(1_000)]).expect("added");
        drop(log);
        let (_, again) = InputLog::open(folder.path()).expect("opened");
        prop_assert_eq!(again.last(), Some(&Noted::Message(mark(1_000))));
        prop_assert_eq!(&again[..found.len()], &found[..]);
    }
}

#[test]
fn marks_that_the_disk_refused_are_written_with_the_next() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut log, _) = InputLog::open(folder.path()).expect("opened");
    let writable = std::mem::replace(
        &mut log.files[0],
        File::open(folder.path().join("inputs-0")).expect("read only"),
    );
    assert!(log.add(&[mark(1)]).is_err());
    log.files[0] = writable;
    log.add(&[mark(2)]).expect("added");
    drop(log);
    let (_, found) = InputLog::open(folder.path()).expect("opened");
    assert_eq!(found, messages(1..3));
}

#[test]
fn a_file_far_too_long_is_read_no_further_than_ours_can_be() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut log, _) = InputLog::open(folder.path()).expect("opened");
    log.add(&[mark(1)]).expect("added");
    log.files[0].set_len(1 << 42).expect("sparse");
    drop(log);
    let (mut log, found) = InputLog::open(folder.path()).expect("opened");
    assert_eq!(found, messages(1..2));
    log.add(&[mark(2)]).expect("added");
    drop(log);
    assert_eq!(InputLog::open(folder.path()).expect("opened").1, messages(1..3));
}
