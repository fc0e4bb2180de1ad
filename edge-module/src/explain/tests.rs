use edge_core::explanation::{Contribution, ReducedSpectrum};
use edge_core::features::FeatureName;

use super::*;
use crate::explanations::tests::explanation;

const TRIP: &str = "press-1-1772352000000000-7";

fn store_with(trips: &[&str]) -> (tempfile::TempDir, ExplanationStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = ExplanationStore::new(folder.path().join(FOLDER), COUNT_MAX);
    for trip in trips {
        store.write(&explanation(trip)).unwrap();
    }
    (folder, store)
}

fn answer(store: &ExplanationStore, event: &str) -> Result<String, ExplainError> {
    let mut answer = Vec::new();
    explain(store, event, &ExplainOutput::default(), &mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn refusal(store: &ExplanationStore, event: &str, exit_code: u8) -> String {
    let error = answer(store, event).unwrap_err();
    assert_eq!(error.exit_code(), exit_code, "{error}");
    error.to_string()
}

#[test]
fn a_trip_is_explained_in_words() {
    let (_folder, store) = store_with(&[TRIP]);
    let expected = "\
trip press-1-1772352000000000-7
  machine press-1, sensor press-1/z, 2026-03-01T08:00:00.000000Z
  rule score (score): score 0.9870, threshold 0.5920, model motor-shape@2.0.0
  window of 20000 samples at 10000 Hz, compared with 256 windows before
  shaft at 30.00 Hz

The score was driven by band-01, 80.0 to 160.0 Hz (8.7 dB above usual, +2.1) and \
crest-factor (6.000, usually 4.500, +0.4).
What the model's logit falls by when one feature is as usual, all others as they were:
    +2.10  band-01, 80.0 to 160.0 Hz: 8.7 dB above usual (4.0 deviations)
    +0.40  crest-factor: 6.000, usually 4.500 (3.0 deviations)
    -0.30  band-02, 160.0 to 320 Hz: 2.2 dB below usual (1.0 deviations)

Lines of the spectrum that grew most (near is within 1.0 Hz or 1 %):
     107.5 Hz: 30.0 dB above usual, near BPFO 107.5 Hz of drive end
";
    assert_eq!(answer(&store, TRIP).unwrap(), expected);
    assert_eq!(answer(&store, LATEST).unwrap(), expected);
    assert_eq!(answer(&store, "press-1-177").unwrap(), expected);
}

#[test]
fn what_is_not_known_is_said() {
    let check = |explanation: &Explanation, expected: &str| {
        let report = text::report(explanation, false);
        assert!(report.contains(expected), "{report}");
    };
    let whole = explanation(TRIP);
    let bare = Explanation { contributions: Vec::new(), usual: None, ..whole.clone() };
    check(&bare, "What drove the score is not known");
    check(&bare, "Which lines grew is not known: there is no usual spectrum.");
    check(&bare, "nothing is known of the windows before");
    let same = Explanation { spectrum: whole.usual.as_ref().unwrap().spectrum.clone(), ..whole };
    check(&same, "No line of the spectrum grew by 10 dB or more.");
    let spectrum = ReducedSpectrum::of(1.0, [0.0, 1.0].into_iter());
    check(&Explanation { spectrum, ..same.clone() }, "the usual spectrum is of other windows");
    let mut healthy = Explanation { shaft_hz: None, ..same };
    healthy.contributions.iter_mut().for_each(|it| it.logit = -1.0);
    check(&healthy, "No feature alone drove the score");
}

#[test]
fn the_ten_features_that_drove_the_score_most_are_named_unless_all_are_wanted() {
    let with = |count: u8| {
        let mut explanation = explanation(TRIP);
        let first = explanation.contributions[0].clone();
        let of = |index| Contribution {
            feature: FeatureName::Band(index),
            logit: 2.0 - f64::from(index) / 10.0,
            ..first.clone()
        };
        explanation.contributions = (0..count).map(of).collect();
        explanation
    };
    let check = |count: u8, is_all: bool, named: usize, expected: Option<&str>| {
        let report = text::report(&with(count), is_all);
        let table = report.lines().filter(|line| line.trim_start().starts_with('+'));
        assert_eq!(table.count(), named, "{report}");
        let more = report.lines().find(|line| line.contains("--all"));
        assert_eq!(more, expected, "{report}");
    };
    check(10, false, 10, None);
    check(11, false, 10, Some("  and 1 more, of less or against it: --all shows them"));
    check(17, false, 10, Some("  and 7 more, of less or against it: --all shows them"));
    check(17, true, 17, None);
    check(0, false, 0, None);
}

#[test]
fn no_name_speaks_to_the_terminal() {
    let mut hostile = explanation("t\u{1b}[2J\n");
    hostile.rule = "\u{9b}31m".to_owned();
    let report = text::report(&hostile, true);
    assert!(report.starts_with("trip t?[2J?\n"), "{report}");
    assert!(report.chars().all(|it| it == '\n' || !it.is_control()), "{report:?}");
}

#[test]
fn a_trip_that_is_not_there_is_answered_with_those_that_are() {
    let (_folder, store) = store_with(&[TRIP, "press-1-1772352000000001-8"]);
    let unknown = refusal(&store, "lathe-1", EXIT_USAGE);
    assert!(unknown.starts_with("trip lathe-1 is not explained; these are: press-1-"), "{unknown}");
    let ambiguous = refusal(&store, "press-1", EXIT_USAGE);
    assert!(ambiguous.starts_with("press-1 may be any of press-1-"), "{ambiguous}");
    let (_folder, empty) = store_with(&[]);
    for event in [LATEST, TRIP] {
        let text = refusal(&empty, event, EXIT_USAGE);
        assert!(text.starts_with("no trip is explained"), "{text}");
    }
}

#[test]
fn a_folder_that_is_none_is_an_error_of_the_disk() {
    let (folder, _store) = store_with(&[]);
    let path = folder.path().join("file");
    fs::write(&path, "").unwrap();
    let store = ExplanationStore::new(path, COUNT_MAX);
    assert!(refusal(&store, TRIP, EXIT_IO).contains("cannot be read"));
}

#[test]
fn a_machine_events_file_names_its_trip() {
    let (folder, store) = store_with(&[TRIP, "press-2-1-1"]);
    let path = folder.path().join("event.json");
    let event = path.to_str().unwrap();
    let event_json = |trip: &str| {
        format!(
            r#"{{"event_type":"trip","machine_id":"press-1",
                "timestamp":"2026-03-01T08:00:00Z","historical":false{trip}}}"#
        )
    };
    let whole = event_json(&format!(r#","trip_id":"{TRIP}""#));
    for text in [whole.clone(), format!(r#"{{"lane":"events","record":{whole}}}"#)] {
        fs::write(&path, &text).unwrap();
        assert!(answer(&store, event).unwrap().starts_with(&format!("trip {TRIP}\n")), "{text}");
    }
    let check = |text: &str, expected: &str| {
        fs::write(&path, text).unwrap();
        let refusal = refusal(&store, event, EXIT_DATA);
        assert!(refusal.contains(expected), "{refusal}");
    };
    check("none", "it is no JSON");
    check("{}", "it is no machine event");
    check(&event_json(""), "belongs to no trip");
    check(&" ".repeat(EVENT_BYTES_MAX as usize + 1), "it is larger than 1048576 bytes");
}

#[test]
fn a_picture_is_written_where_it_is_wanted() {
    let (folder, store) = store_with(&[TRIP]);
    let path = folder.path().join("trip.svg");
    fs::write(&path, "what was there before").unwrap();
    let wanted = |path: &Path| ExplainOutput { out: Some(path.to_owned()), all: false };
    explain(&store, LATEST, &wanted(&path), Vec::new()).unwrap();
    let svg = fs::read_to_string(&path).unwrap();
    assert!(svg.starts_with("<?xml") && svg.ends_with("</svg>\n"));
    let nowhere = folder.path().join("no/folder.svg");
    let error = explain(&store, LATEST, &wanted(&nowhere), Vec::new()).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_IO);
    assert!(error.to_string().contains("folder.svg cannot be written"), "{error}");
}
