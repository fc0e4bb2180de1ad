use edge_core::explanation::SpectrumAverage;
use edge_core::features::FeatureName;

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
    assert_has(&texts, &["before (mean of 256 windows)", "drive end", "above usual (logit)"]);
    assert_has(&texts, &["shaft", "FTF", "BPFO", "BPFI", "2 BSF", "2 x BPFO", "3 x shaft"]);
    assert_has(&texts, &["band-01", "+2.1", "107.5 Hz", "frequency in Hz", "1 V²"]);
    assert_has(&texts, &["10", "200", "1 k", "5 k", "-60"]);
    // It spoke for health.
    assert!(!texts.iter().any(|text| text.contains("band-02")));
    assert!(!texts.iter().any(|text| text.contains("below usual (logit)")));
    // Of the highest harmonics, where lines lie close together.
    assert_has(&texts, &["3 labels are left out for want of room"]);
}

#[test]
fn bands_below_usual_are_shaded_otherwise_than_those_above() {
    let colours = |below: &[u8]| {
        let mut explanation = explanation("t");
        let first = explanation.contributions[0].clone();
        let of = |index| {
            let usual = if below.contains(&index) { -8.0 } else { -12.0 };
            Contribution { feature: FeatureName::Band(index), usual, ..first.clone() }
        };
        explanation.contributions = (0..3).map(of).collect();
        let svg = draw(&explanation);
        let count = |colour: &str| {
            // Shades have the height of the plot, those of the legend have not.
            let height = format!("height=\"{:.1}\"", BOTTOM - TOP);
            let rectangles = svg.lines().filter(|line| line.contains(&height));
            rectangles.filter(|line| line.contains(colour)).count()
        };
        let texts = texts(&svg);
        for (has, label) in [
            (below.len() < 3, "drove the score, above usual (logit)"),
            (!below.is_empty(), "drove the score, below usual (logit)"),
        ] {
            assert_eq!(texts.iter().any(|text| text == label), has, "{label}");
        }
        (count(BAND), count(BELOW))
    };
    assert_eq!(colours(&[]), (3, 0));
    assert_eq!(colours(&[1]), (2, 1));
    assert_eq!(colours(&[0, 1, 2]), (0, 3));
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

/// What each text that is not turned covers, by the width that the picture reckons with.
fn areas(svg: &str) -> Vec<(String, Area)> {
    let attribute = |tag: &str, name: &str| {
        let (_, rest) = tag.split_once(&format!(" {name}=\"")).expect("an attribute");
        rest.split_once('"').expect("its end").0.to_owned()
    };
    let number = |tag: &str, name: &str| attribute(tag, name).parse::<f64>().expect("a number");
    let lines = svg.lines().filter(|line| line.starts_with("<text ") && !line.contains("rotate"));
    let area = |line: &str| {
        let (tag, rest) = line.split_once('>').expect("a tag");
        let text = rest.strip_suffix("</text>").expect("an end").to_owned();
        let (x, y, size) = (number(tag, "x"), number(tag, "y"), number(tag, "font-size"));
        let width = width_of(&text, size);
        let left = if tag.contains("\"middle\"") {
            x - width / 2.0
        } else if tag.contains("\"end\"") {
            x - width
        } else {
            x
        };
        let area = Area { left, right: left + width, top: y - 0.75 * size, bottom: y };
        (text, area)
    };
    lines.map(area).collect()
}

/// Sixteen narrow bands, four bearings, and five lines beside each other.
fn crowded() -> Explanation {
    let mut crowded = explanation("t");
    crowded.band_edges_hz = (0..=16).map(|edge| 100.0 * 1.2_f64.powi(edge)).collect();
    let first = crowded.contributions[0].clone();
    let of = |index| Contribution { feature: FeatureName::Band(index), ..first.clone() };
    crowded.contributions = (0..16).map(of).collect();
    crowded.bearings = vec![crowded.bearings[0].clone(); 4];
    let usual = |bin: usize| 1e-6 / (1.0 + bin as f64);
    let is_line = |bin: usize| (4_000..=4_040).contains(&bin) && bin.is_multiple_of(10);
    let now = |bin: usize| if is_line(bin) { 1e3 * usual(bin) } else { usual(bin) };
    crowded.spectrum = ReducedSpectrum::of(0.5, (0..10_001).map(now));
    crowded
}

#[test]
fn no_label_covers_another_and_how_many_are_left_out_is_said() {
    let svg = draw(&crowded());
    texts(&svg);
    let areas = areas(&svg);
    for (index, (text, area)) in areas.iter().enumerate() {
        assert!(area.left >= 0.0 && area.right <= WIDTH && area.bottom <= HEIGHT, "{text}");
        for (other_text, other) in &areas[index + 1..] {
            let beside = area.right <= other.left || other.right <= area.left;
            let above = area.bottom <= other.top || other.bottom <= area.top;
            assert!(beside || above, "{text} at {area:?} and {other_text} at {other:?}");
        }
    }
    let labels =
        |is_it: &dyn Fn(&str) -> bool| areas.iter().filter(|(text, _)| is_it(text)).count();
    let lines = known_lines(&crowded()).len();
    let of_lines = ["shaft", "FTF", "BPFO", "BPFI", "BSF"];
    // In the legend the shaft has a name, too.
    let of_lines = labels(&|text| of_lines.iter().any(|name| text.ends_with(name))) - 1;
    let of_bands = labels(&|text| text.starts_with("band-"));
    let is_number = |text: &str| text.starts_with(|first: char| first.is_ascii_digit());
    let of_peaks = labels(&|text| is_number(text) && text.ends_with(" Hz"));
    let peaks = grown_peaks(&crowded()).len();
    assert!(of_lines > 8 && of_bands > 2 && of_peaks > 0, "{of_lines}, {of_bands}, {of_peaks}");
    let left_out = lines + BANDS_MAX + peaks - of_lines - of_bands - of_peaks;
    let note = areas.iter().find(|(text, _)| text.contains("left out"));
    let expected = format!("{left_out} labels are left out for want of room");
    assert_eq!(note.map(|(text, _)| text.as_str()), Some(expected.as_str()));
}

#[test]
fn a_legend_too_long_for_a_row_goes_on_in_a_second_one() {
    let mut long = explanation("t");
    long.bearings = vec![long.bearings[0].clone(); 3];
    for (number, bearing) in long.bearings.iter_mut().enumerate() {
        bearing.name = format!("bearing {number} of the spindle");
    }
    assert_has(&texts(&draw(&long)), &["bearing 0 of", "bearing 1 of", "bearing 2 of"]);
    long.bearings = vec![long.bearings[2].clone(); 12];
    let texts = texts(&draw(&long));
    let named = texts.iter().filter(|text| text.contains("bearing 2 of")).count();
    assert!((3..12).contains(&named), "{named}");
    assert_has(&texts, &["labels are left out for want of room"]);
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
