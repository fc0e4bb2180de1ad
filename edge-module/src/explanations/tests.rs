use edge_core::bearing::BearingGeometry;
use edge_core::features::FeatureName;

use super::*;

/// A trip of 2026 whose line of 107.5 Hz, the outer race of a 6205 at 30 Hz, has grown by 30 dB.
pub(crate) fn explanation(trip_id: &str) -> Explanation {
    let geometry = BearingGeometry {
        rolling_elements: 9,
        element_diameter: 7.94,
        pitch_diameter: 39.04,
        contact_angle_deg: 0.0,
    };
    let usual = |bin: usize| 1e-6 / (1.0 + bin as f64);
    let now = |bin: usize| if bin == 215 { 1e3 * usual(bin) } else { usual(bin) };
    let contribution = |feature, value, usual, logit| Contribution {
        feature,
        value,
        usual,
        deviation: 0.5,
        logit,
    };
    Explanation {
        format: FORMAT,
        trip_id: trip_id.to_owned(),
        machine_id: MachineId::new("press-1").unwrap(),
        sensor_id: SensorId::new("press-1/z").unwrap(),
        time: EventTime::parse("2026-03-01T08:00:00Z").unwrap(),
        rule: "score".to_owned(),
        cause: "score".to_owned(),
        score: 0.987,
        threshold: 0.592,
        model: "motor-shape@2.0.0".to_owned(),
        band_edges_hz: vec![40.0, 80.0, 160.0, 320.0],
        contributions: vec![
            contribution(FeatureName::Band(1), -10.0, -12.0, 2.1),
            contribution(FeatureName::CrestFactor, 6.0, 4.5, 0.4),
            contribution(FeatureName::Band(2), -14.0, -13.5, -0.3),
        ],
        sample_rate_hz: 10_000.0,
        window_samples: 20_000,
        unit: Some("V".to_owned()),
        spectrum: ReducedSpectrum::of(0.5, (0..10_001).map(now)),
        usual: Some(UsualSpectrum {
            windows: 256,
            spectrum: ReducedSpectrum::of(0.5, (0..10_001).map(usual)),
        }),
        shaft_hz: Some(30.0),
        bearings: vec![NamedBearing {
            name: "drive end".to_owned(),
            frequencies: geometry.frequencies().unwrap(),
        }],
    }
}

fn at(trip_id: &str, micros: i64) -> Explanation {
    Explanation { time: EventTime::from_micros(micros), ..explanation(trip_id) }
}

fn store(count_max: usize) -> (tempfile::TempDir, ExplanationStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = ExplanationStore::new(folder.path().join(FOLDER), count_max);
    (folder, store)
}

fn ids(store: &ExplanationStore) -> Vec<String> {
    store.list().unwrap().explanations.into_iter().map(|it| it.trip_id).collect()
}

#[test]
fn an_explanation_comes_back_as_it_was_written() {
    let (_folder, store) = store(COUNT_MAX);
    let explanation = explanation("press-1-1772352000000000-7");
    store.write(&explanation).unwrap();
    assert_eq!(store.read("press-1-1772352000000000-7").unwrap(), explanation);
    assert_eq!(store.latest().unwrap(), explanation);
    assert_eq!(store.list().unwrap().skipped, []);
    // Again is no second one.
    store.write(&Explanation { score: 0.9, ..explanation }).unwrap();
    assert_eq!(store.list().unwrap().explanations.len(), 1);
    assert_eq!(store.latest().unwrap().score, 0.9);
}

#[test]
fn what_is_optional_may_be_missing() {
    let mut json = serde_json::to_value(explanation("t")).unwrap();
    for key in ["unit", "usual", "shaft-hz", "bearings"] {
        assert!(json.as_object_mut().unwrap().remove(key).is_some(), "{key}");
    }
    let read: Explanation = serde_json::from_value(json).unwrap();
    assert_eq!((read.unit, read.usual, read.shaft_hz, read.bearings), (None, None, None, vec![]));
}

#[test]
fn a_beginning_is_enough_if_only_one_trip_has_it() {
    let (_folder, store) = store(COUNT_MAX);
    for (trip_id, micros) in [("press-1", 1), ("press-1-20", 2), ("press-2-30", 3)] {
        store.write(&at(trip_id, micros)).unwrap();
    }
    assert_eq!(store.read("press-2").unwrap().trip_id, "press-2-30");
    assert_eq!(store.read("press-1").unwrap().trip_id, "press-1", "the whole id");
    let ambiguous = store.read("press").unwrap_err().to_string();
    assert_eq!(ambiguous, "press may be any of press-1, press-1-20, press-2-30");
    let unknown = store.read("lathe").unwrap_err().to_string();
    assert_eq!(unknown, "trip lathe is not explained; these are: press-1, press-1-20, press-2-30");
}

#[test]
fn without_a_folder_nothing_is_explained() {
    let (_folder, store) = store(COUNT_MAX);
    assert!(matches!(store.read("t"), Err(ExplanationError::Empty)));
    assert!(matches!(store.latest(), Err(ExplanationError::Empty)));
}

#[test]
fn the_oldest_go_and_never_the_one_just_written() {
    let (_folder, store) = store(2);
    for (trip_id, micros) in [("a", 30), ("b", 9), ("c", 200)] {
        store.write(&at(trip_id, micros)).unwrap();
    }
    assert_eq!(ids(&store), ["a", "c"]);
    // The clock was put back.
    store.write(&at("d", 1)).unwrap();
    assert_eq!(ids(&store), ["d", "c"]);
    assert_eq!(store.latest().unwrap().trip_id, "c");
}

#[test]
fn a_torn_or_foreign_file_is_skipped_named_and_left() {
    let (_folder, store) = store(1);
    store.write(&at("whole", 5)).unwrap();
    let name = |name: &str| store.folder.join(name);
    let whole = fs::read(name(&file_name(&at("whole", 5)))).unwrap();
    fs::write(name("00000000000000000001-torn-00000000.json"), &whole[..whole.len() / 2]).unwrap();
    fs::write(name("00000000000000000002-later-00000000.json"), r#"{"format":2}"#).unwrap();
    fs::write(name("notes.txt"), "none of ours").unwrap();
    fs::write(name(WRITING), "cut short").unwrap();
    fs::create_dir(name("folder")).unwrap();
    let listing = store.list().unwrap();
    assert_eq!(listing.explanations.len(), 1);
    let skipped: Vec<_> = listing.skipped.iter().map(|it| it.path.file_name().unwrap()).collect();
    let expected = [
        "00000000000000000001-torn-00000000.json",
        "00000000000000000002-later-00000000.json",
        "folder",
        "notes.txt",
        WRITING,
    ];
    assert_eq!(skipped, expected);
    assert_eq!(listing.skipped[1].reason, "format is 2, this program reads 1");
    // Torn ones are old ones; the rest is somebody else's.
    store.write(&at("new", 6)).unwrap();
    assert_eq!(ids(&store), ["new"]);
    assert!(name("notes.txt").is_file() && name("folder").is_dir());
    assert!(!name(WRITING).exists());
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let (_folder, store) = store(1);
    store.write(&at("t", 5)).unwrap();
    let path = store.folder.join(file_name(&at("t", 5)));
    let mut bytes = fs::read(&path).unwrap();
    bytes.resize(EXPLANATION_BYTES_MAX as usize + 1, b' ');
    fs::write(&path, &bytes).unwrap();
    let listing = store.list().unwrap();
    assert_eq!(listing.skipped[0].reason, "it is larger than 1048576 bytes");
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(store.list().unwrap().explanations.len(), 1, "at the limit");
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let (folder, store) = store(COUNT_MAX);
    let long = "ü/".repeat(300);
    let ids = ["../../etc/passwd", "/etc/passwd", "..", "a\0b", "c:\\d", "", long.as_str()];
    for (micros, trip_id) in (0..).zip(ids) {
        let name = file_name(&at(trip_id, micros));
        assert!(name.len() <= 255 && is_file_name(&name), "{name}");
        let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        assert!(name.bytes().all(is_safe), "{name}");
        store.write(&at(trip_id, micros)).unwrap();
        assert_eq!(store.read(trip_id).unwrap().trip_id, trip_id);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&store.folder).unwrap().count(), ids.len());
    // Two ids that are cut to the same name stay two.
    assert_ne!(file_name(&at(&format!("{long}1"), 0)), file_name(&at(&format!("{long}2"), 0)));
    // Before 1970 sorts first.
    assert!(file_name(&at("t", i64::MIN)).starts_with("00000000000000000000-t-"));
}

#[cfg(unix)]
#[test]
fn links_are_not_followed() {
    let (folder, store) = store(COUNT_MAX);
    store.write(&at("t", 1)).unwrap();
    let outside = folder.path().join("outside.json");
    fs::rename(store.folder.join(file_name(&at("t", 1))), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, store.folder.join(file_name(&at("t", 1)))).unwrap();
    let listing = store.list().unwrap();
    assert_eq!((listing.explanations.len(), listing.skipped.len()), (0, 1));
    assert_eq!(listing.skipped[0].reason, "it is no file");
}
