use super::*;
use crate::latch::RestoredLatch;

fn machine(id: &str, above: f64) -> String {
    format!(
        "[[machines]]\nid = \"{id}\"\nlimits = [{{ name = \"hot\", sensor = \"{id}/oil\", quantity = \"value\", above = {above:?} }}]\n"
    )
}

fn settings(machines: &str) -> (Settings, Keys) {
    use std::io::Write as _;

    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("temporary file");
    file.write_all(machines.as_bytes()).expect("written");
    Settings::load_with_keys(Some(file.path())).expect("valid")
}

#[test]
fn only_rules_and_filters_can_change_while_the_module_runs() {
    let changed = |text: &str| {
        let (_, before) = settings("");
        let (_, after) = settings(text);
        let changed = after.changed(&before);
        assert!(!changed.is_empty(), "{text}");
        needing_restart(&changed)
    };
    let nothing: [String; 0] = [];
    assert_eq!(changed(&machine("a", 1.0)), nothing);
    assert_eq!(changed("[deadband]\nabsolute = 1.0\n"), nothing);
    assert_eq!(changed("[[deadband.rules]]\nabsolute = 1.0\n"), nothing);
    assert_eq!(changed("[[aggregation]]\ninterval = \"1s\"\nvalue = \"max\"\n"), nothing);
    assert_eq!(changed("[waveforms]\nbefore = \"9s\"\n"), nothing);
    assert_eq!(changed("[telemetry]\nfilter = \"debug\"\n"), nothing);
    assert_eq!(changed("[kafka]\nhistorical-after = \"9s\"\n"), nothing);
    assert_eq!(changed("[kafka]\nbrokers = \"a:1\"\n"), ["kafka.brokers"]);
    assert_eq!(changed("[telemetry]\nformat = \"json\"\n"), ["telemetry.format"]);
    assert_eq!(changed("[waveforms]\nqueue-length = 1\n"), ["waveforms.queue-length"]);
    let mixed = "[mqtt]\nport = 1884\n[deadband]\nabsolute = 1.0\n[journal]\nqueue-length = 9\n";
    assert_eq!(changed(mixed), ["journal.queue-length", "mqtt.port"]);
}

#[test]
fn a_version_names_exactly_its_settings() {
    let (_, one) = settings(&machine("a", 1.0));
    let (_, same) = settings(&format!("# a comment\n{}", machine("a", 1.0)));
    let (_, other) = settings(&machine("a", 2.0));
    assert_eq!(one.version(), same.version());
    assert_ne!(one.version(), other.version());
    assert_eq!(one.version().len(), 12);
    assert_eq!(other.changed(&one), ["machines[0].limits[0].above"]);
    let (_, none) = settings("");
    assert!(none.changed(&one).contains(&"machines[0].id".to_owned()), "a key that is gone");
}

#[test]
fn machines_that_stay_as_they_are_are_not_touched() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let latches = LatchFolder::open(dir.path()).expect("writable");
    let (old, _) = settings(&[machine("a", 1.0), machine("b", 1.0), machine("c", 1.0)].concat());
    let (new, _) = settings(&[machine("b", 2.0), machine("c", 1.0), machine("d", 1.0)].concat());
    std::fs::write(dir.path().join("latches/64.json"), "no latch").expect("written");
    let (answer, _) = oneshot::channel();
    let change = new_machines(&old, &new, &latches, answer).expect("valid");
    let ids = |interlocks: Vec<&Interlock>| -> Vec<String> {
        interlocks.into_iter().map(|interlock| interlock.machine_id().to_string()).collect()
    };
    assert_eq!(ids(change.replaced.iter().collect()), ["b"]);
    assert_eq!(ids(change.added.iter().map(|(interlock, _)| interlock).collect()), ["d"]);
    let latch = &change.added[0].1;
    assert!(matches!(latch, Some(RestoredLatch::Unknown(id)) if id.as_str() == "d"), "{latch:?}");
    assert_eq!(change.removed.iter().map(MachineId::as_str).collect::<Vec<_>>(), ["a"]);
    assert_eq!(change.machine_of_sensor.len(), 3);
    assert_eq!(change.scored.len(), 0);
    assert_eq!(change.paths.len(), 3);
    assert!(change.rewired.is_empty());
}

#[test]
fn other_paths_of_a_machine_are_a_change_of_their_own_and_none_of_its_rules() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let latches = LatchFolder::open(dir.path()).expect("writable");
    let paths = |lines: &str| settings(&[machine("a", 1.0), lines.to_owned()].concat()).0;
    let default = paths("");
    let named = paths("[[machines.actuators]]\nkind = \"mqtt\"\n");
    let other = paths("[[machines.actuators]]\nkind = \"mqtt\"\nport = 1884\n");
    let change = |old: &Settings, new: &Settings| {
        let (answer, _) = oneshot::channel();
        new_machines(old, new, &latches, answer).expect("valid")
    };
    assert!(change(&default, &named).is_empty(), "the default by its name");
    let change = change(&named, &other);
    assert_eq!(change.rewired.iter().map(MachineId::as_str).collect::<Vec<_>>(), ["a"]);
    assert!(change.replaced.is_empty() && change.removed.is_empty() && change.added.is_empty());
}

#[test]
fn details_are_cut_between_characters() {
    let text = shortened("ä".repeat(DETAIL_BYTES_MAX));
    assert!(text.len() <= DETAIL_BYTES_MAX + '…'.len_utf8() && text.ends_with('…'));
    assert_eq!(shortened("short".to_owned()), "short");
}

#[test]
fn a_file_is_read_when_two_looks_see_the_same_change() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("edge.toml");
    let write = |text: &str| {
        std::fs::write(&path, text).expect("written");
        Stamp::of(&path)
    };
    let mut watched = WatchedFile::default();
    let first = write("");
    assert!(!watched.look(first));
    assert!(watched.look(first));
    watched.read = first;
    assert!(!watched.look(first));
    let half = write("# half");
    assert!(!watched.look(half));
    let whole = write("# half and half");
    assert!(!watched.look(whole), "still being written");
    std::fs::remove_file(&path).expect("removed");
    assert!(!watched.look(Stamp::of(&path)), "being replaced");
    let again = write("# as it should be");
    assert_eq!([watched.look(again), watched.look(again)], [false, true]);
}
