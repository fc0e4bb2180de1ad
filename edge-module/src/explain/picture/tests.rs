use edge_core::explanation::SpectrumAverage;

use super::*;
use crate::explanations::tests::explanation;

/// The texts of a picture, after a check that it is well-formed as far as its writer can go wrong: one root, elements that end in
/// order, attributes in quotes, no bare markup in texts.
fn texts(svg: &str) -> Vec<String> {
    let body = svg.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").expect("declared");
    let (mut open, mut texts): (Vec<&str>, Vec<String>) = (Vec::new(), Vec::new());
    for piece in body.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').expect("each tag ends");
        assert!(!text.contains('>'), "{piece}");
        for entity in text.split('&').skip(1) {
            let name = entity.split_once(';').expect("each entity ends").0;
            assert!(["amp", "lt", "gt", "quot", "apos"].contains(&name), "{piece}");
        }
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{piece}");
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{piece}");
        let outside = tag.split('"').step_by(2).collect::<String>();
        assert_eq!(outside.matches('=').count(), tag.matches('"').count() / 2, "{piece}");
        if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().expect("a name"));
        }
        if !text.trim().is_empty() {
            texts.push(text.to_owned());
        }
    }
    assert!(open.is_empty(), "{open:?}");
    assert_eq!(svg.matches("<svg ").count(), 1);
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "a place that is none");
    texts
}

fn assert_has(texts: &[String], expected: &[&str]) {
    for expected in expected {
        assert!(texts.iter().any(|text| text.contains(expected)), "{expected:?} in {texts:?}");
    }
}

#[test]
fn a_picture_names_what_there_is_to_see() {
    let texts = texts(&draw(&explanation("press-1-1772352000000000-7")));
    assert_has(&texts, &["press-1 was stopped: sensor press-1/z, 2026-03-01T08:00:00"]);
    assert_has(&texts, &["Trip press-1-1772352000000000-7, rule score: score 0.987"]);
    assert_has(
        &texts,
        &["The score was driven by band-01, 80.0 to 160.0 Hz (8.7 dB above usual, +2.1)"],
    );
    assert_has(&texts, &["before (mean of 256 windows)", "drive end", "drove the score (logit)"]);
    assert_has(&texts, &["shaft", "FTF", "BPFO", "BPFI", "2 BSF", "2 x BPFO", "3 x shaft"]);
    assert_has(&texts, &["band-01", "+2.1", "107.5 Hz", "frequency in Hz", "1 V²"]);
    assert_has(&texts, &["10", "200", "1 k", "5 k", "-60"]);
    // It spoke for health.
    assert!(!texts.iter().any(|text| text.contains("band-02")));
}

#[test]
fn names_in_a_picture_are_never_markup() {
    let mut hostile = explanation("<script>&\"'\u{7}");
    hostile.rule = "]]><!--".to_owned();
    hostile.unit = Some("<g>".to_owned());
    hostile.bearings[0].name = "a & b <end>".to_owned();
    let texts = texts(&draw(&hostile));
    assert_has(&texts, &["Trip &lt;script&gt;&amp;&quot;&apos;?, rule ]]&gt;&lt;!--"]);
    assert_has(&texts, &["a &amp; b &lt;end&gt;", "1 (&lt;g&gt;)²"]);
}

#[test]
fn a_picture_needs_neither_usual_values_nor_a_shaft() {
    let mut bare = explanation("t");
    (bare.usual, bare.shaft_hz, bare.unit) = (None, None, None);
    bare.contributions.clear();
    let texts = texts(&draw(&bare));
    assert_has(&texts, &["What drove the score is not known", "the window that decided"]);
    assert_has(&texts, &["power in dB re 1, in the square"]);
    for absent in ["BPFO", "shaft", "before", "drive end", "band-01"] {
        assert!(!texts.iter().any(|text| text.contains(absent)), "{absent}");
    }
}

#[test]
fn spectra_that_hold_nothing_are_pictures_too() {
    for power in [vec![], vec![1.0], vec![0.0; 100], vec![0.0, 1.0], vec![1e-300; 100]] {
        let mut flat = explanation("t");
        flat.spectrum = ReducedSpectrum::of(0.5, power.into_iter());
        texts(&draw(&Explanation { usual: None, ..flat.clone() }));
        texts(&draw(&flat));
    }
    let mut average = SpectrumAverage::new(1);
    average.handle_window(0.5, vec![f64::INFINITY; 9].into_iter());
    let loud = Explanation { spectrum: average.spectrum().unwrap().clone(), ..explanation("t") };
    texts(&draw(&loud));
}

#[test]
fn long_names_stay_within_the_picture() {
    let long = explanation(&"press-".repeat(60));
    let texts = texts(&draw(&long));
    let title = texts.iter().find(|text| text.starts_with("Trip ")).unwrap();
    assert!(title.ends_with('…') && width_of(title, 13.0) + MARGIN <= WIDTH, "{title}");
}

#[test]
fn labels_of_known_lines_cover_neither_each_other_nor_a_line() {
    let mut crowded = explanation("t");
    crowded.bearings = vec![crowded.bearings[0].clone(); 4];
    let frame = Frame::of(&crowded).unwrap();
    let mut placed: Vec<Label> = Vec::new();
    for line in known_lines(&crowded).iter().filter(|line| frame.has(line.frequency_hz)) {
        placed.extend(place(line, frame.x(line.frequency_hz), &placed));
    }
    assert!(placed.len() > 8, "{}", placed.len());
    for (index, label) in placed.iter().enumerate() {
        assert!(label.left >= 0.0 && label.right <= WIDTH && label.row < LABEL_ROWS);
        for other in &placed[index + 1..] {
            assert!(label.goes_with(other) && other.goes_with(label));
        }
    }
}

#[test]
fn frequencies_and_levels_have_their_places() {
    let frame = Frame { low_hz: 1.0, high_hz: 100.0, low_db: -100.0, high_db: 0.0 };
    let check = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}");
    check(frame.x(1.0), LEFT);
    check(frame.x(10.0), f64::midpoint(LEFT, RIGHT));
    check(frame.x(1_000.0), RIGHT);
    check(frame.y(-50.0), f64::midpoint(TOP, BOTTOM));
    check(frame.y(-500.0), BOTTOM);
    check(frame.y(decibels(0.0)), BOTTOM);
}
