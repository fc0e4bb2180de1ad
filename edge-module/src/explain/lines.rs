//! Where a machine's lines are expected: its shaft and bearings, with their harmonics.

use crate::explanations::Explanation;

/// Harmonics of each line, the first among them.
const HARMONICS: u32 = 3;
/// A line is near a place within so many bins …
pub(super) const NEAR_BINS: f64 = 2.0;
/// … or this share of its frequency: slip moves a bearing's line by that much.
const NEAR_SHARE: f64 = 0.01;
/// A place is only told if its harmonics are so many tolerances apart: else anything is near one of them.
const TOLERANCES_APART: f64 = 4.0;

/// A frequency where a line means something.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KnownLine {
    /// Which bearing, by its place in the explanation; `None` for the shaft.
    pub(super) bearing: Option<usize>,
    /// For example `2 x BPFO`.
    pub(super) label: String,
    /// 1 is the line itself.
    pub(super) harmonic: u32,
    pub(super) frequency_hz: f64,
}

/// All that are known; none without the shaft's speed.
pub(super) fn known_lines(explanation: &Explanation) -> Vec<KnownLine> {
    let Some(shaft_hz) = shaft_hz(explanation) else { return Vec::new() };
    let mut lines = Vec::new();
    let mut add = |bearing, name: &str, multiple: f64| {
        for harmonic in 1..=HARMONICS {
            lines.push(KnownLine {
                bearing,
                label: if harmonic == 1 { name.to_owned() } else { format!("{harmonic} x {name}") },
                harmonic,
                frequency_hz: shaft_hz * multiple * f64::from(harmonic),
            });
        }
    };
    add(None, "shaft", 1.0);
    for (index, bearing) in explanation.bearings.iter().enumerate() {
        for (name, multiple) in bearing.frequencies.lines() {
            add(Some(index), name, multiple);
        }
    }
    lines.retain(|line| line.frequency_hz.is_finite() && line.frequency_hz > 0.0);
    lines
}

/// The shaft's speed, if it is one.
pub(super) fn shaft_hz(explanation: &Explanation) -> Option<f64> {
    explanation.shaft_hz.filter(|shaft_hz| shaft_hz.is_finite() && *shaft_hz > 0.0)
}

/// Those that a line of the spectrum may be, the nearest first.
pub(super) fn near(lines: &[KnownLine], frequency_hz: f64, resolution_hz: f64) -> Vec<&KnownLine> {
    let tolerance = (NEAR_BINS * resolution_hz).max(NEAR_SHARE * frequency_hz);
    let distance = |line: &KnownLine| (line.frequency_hz - frequency_hz).abs();
    let is_near = |line: &&KnownLine| {
        let apart = line.frequency_hz / f64::from(line.harmonic);
        distance(line) <= tolerance && apart >= TOLERANCES_APART * tolerance
    };
    let mut near: Vec<&KnownLine> = lines.iter().filter(is_near).collect();
    near.sort_by(|left, right| distance(left).total_cmp(&distance(right)));
    near
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explanations::tests::explanation;

    fn labels(explanation: &Explanation, frequency_hz: f64) -> Vec<String> {
        let lines = known_lines(explanation);
        let near = near(&lines, frequency_hz, explanation.spectrum.resolution_hz());
        near.into_iter().map(|line| line.label.clone()).collect()
    }

    #[test]
    fn lines_are_multiples_of_the_shafts_speed() {
        let lines = known_lines(&explanation("t"));
        assert_eq!(lines.len(), 15);
        let find = |label: &str| lines.iter().find(|line| line.label == label).unwrap();
        assert_eq!(find("3 x shaft").frequency_hz, 90.0);
        assert!((find("BPFO").frequency_hz - 107.5).abs() < 0.1);
        assert!((find("2 x 2 BSF").frequency_hz - 282.8).abs() < 0.1);
        assert_eq!((find("shaft").bearing, find("BPFO").bearing), (None, Some(0)));
    }

    #[test]
    fn without_a_speed_nothing_is_known() {
        for shaft_hz in [None, Some(0.0), Some(-1.0), Some(f64::NAN), Some(f64::INFINITY)] {
            let explanation = Explanation { shaft_hz, ..explanation("t") };
            assert_eq!(known_lines(&explanation), [], "{shaft_hz:?}");
        }
    }

    #[test]
    fn near_is_two_bins_or_a_hundredth() {
        let explanation = explanation("t");
        assert_eq!(labels(&explanation, 31.0), ["shaft"]);
        assert_eq!(labels(&explanation, 31.1), [""; 0]);
        // 1 % of 322.6 Hz; 324.9 Hz is three times the inner race of no bearing here.
        assert_eq!(labels(&explanation, 323.0)[0], "3 x BPFO");
        assert_eq!(labels(&explanation, 1_000.0), [""; 0]);
    }

    #[test]
    fn what_the_windows_cannot_tell_apart_is_not_told() {
        let lines = known_lines(&explanation("t"));
        assert_eq!(near(&lines, 30.0, 3.0)[0].label, "shaft");
        // Two bins of 9.8 Hz around 30 Hz hold the shaft and nearly its second harmonic.
        assert!(near(&lines, 30.0, 9.8).iter().all(|line| line.bearing.is_some()));
    }
}
