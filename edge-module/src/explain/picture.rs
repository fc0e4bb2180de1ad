//! The explanation as a picture: one SVG, written by hand.
//!
//! Over a logarithmic frequency axis the spectrum of the window that decided, in decibels, and the usual one behind it; the bands
//! that drove the score are shaded, the shaft's and the bearings' lines drawn thin, the lines that grew most marked. A label that would
//! cover another is left out, less important ones first; what it names stays drawn.

mod svg;

use edge_core::explanation::{Contribution, Point, ReducedSpectrum};

use super::lines::{KnownLine, known_lines};
use super::text::{band, driving, grown_peaks, hertz, sentence};
use crate::explanations::Explanation;
use svg::{Anchor, Svg, width_of};

const WIDTH: f64 = 1_200.0;
const HEIGHT: f64 = 700.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 1_176.0;
const TOP: f64 = 186.0;
const BOTTOM: f64 = 640.0;
/// Of the texts at the top.
const MARGIN: f64 = 24.0;
/// Rows of labels of known lines, over the plot.
const LABEL_ROWS: usize = 4;
const LABEL_ROW_HEIGHT: f64 = 15.0;
const LABEL_SIZE: f64 = 11.0;
/// A third of an octave of bands is just as wide as its name.
const BAND_LABEL_SIZE: f64 = 10.0;
/// The lowest frequency is this much under the highest, at most: 3.7 decades.
const FREQUENCY_SPAN_MAX: f64 = 5_000.0;
/// The lowest level is so many decibels under the highest, at most.
const LEVEL_SPAN_MAX: f64 = 100.0;
/// Room over the highest level for the labels of the bands, as a share of the height.
const HEADROOM: f64 = 0.14;
/// Features that the sentence names: more do not fit.
const SENTENCE_FEATURES: usize = 2;
/// Bands that are shaded.
const BANDS_MAX: usize = 8;

const INK: &str = "#222b36";
const FAINT: &str = "#5b6673";
const GRID: &str = "#e4e8ec";
const NOW: &str = "#1a5fb4";
const USUAL: &str = "#9aa5b1";
const BAND: &str = "#f29d38";
const BAND_INK: &str = "#9a5a00";
const SHAFT: &str = "#6b7280";
const BEARINGS: [&str; 4] = ["#1b8a5a", "#8e3fa8", "#b3402f", "#0e7c8b"];

/// Draws one explanation.
pub(super) fn draw(explanation: &Explanation) -> String {
    let mut svg = Svg::new(WIDTH, HEIGHT);
    head(&mut svg, explanation);
    match Frame::of(explanation) {
        Some(frame) => {
            shade_bands(&mut svg, &frame, explanation);
            axes(&mut svg, &frame, explanation);
            known(&mut svg, &frame, explanation);
            if let Some(usual) = &explanation.usual {
                curve(&mut svg, &frame, &usual.spectrum, USUAL);
            }
            curve(&mut svg, &frame, &explanation.spectrum, NOW);
            name_bands(&mut svg, &frame, explanation);
            mark_peaks(&mut svg, &frame, explanation);
        }
        None => svg.text(LEFT, TOP, 14.0, FAINT, Anchor::Start, "The spectrum is empty."),
    }
    svg.end()
}

/// Title, sentence and legend.
fn head(svg: &mut Svg, explanation: &Explanation) {
    let Explanation { machine_id, sensor_id, time, score, threshold, .. } = explanation;
    let title = format!("{machine_id} was stopped: sensor {sensor_id}, {time}");
    svg.bold(MARGIN, 34.0, 20.0, INK, &fitting(&title, 20.0));
    let score = format!(
        "Trip {}, rule {}: score {score:.3}, threshold {threshold:.3}, model {}",
        explanation.trip_id, explanation.rule, explanation.model
    );
    svg.text(MARGIN, 56.0, 13.0, FAINT, Anchor::Start, &fitting(&score, 13.0));
    let sentence = sentence(explanation, SENTENCE_FEATURES);
    svg.text(MARGIN, 78.0, 14.0, INK, Anchor::Start, &fitting(&sentence, 14.0));
    legend(svg, explanation);
}

fn legend(svg: &mut Svg, explanation: &Explanation) {
    let before = match &explanation.usual {
        Some(usual) => format!("before (mean of {} windows)", usual.windows),
        None => String::new(),
    };
    let is_lined = !known_lines(explanation).is_empty();
    let mut entries = vec![(NOW, "the window that decided")];
    if !before.is_empty() {
        entries.push((USUAL, &before));
    }
    let mut driving = driving(&explanation.contributions);
    if driving.any(|it| band(it.feature, &explanation.band_edges_hz).is_some()) {
        entries.push((BAND, "drove the score (logit)"));
    }
    if is_lined {
        entries.push((SHAFT, "shaft"));
        let bearings = explanation.bearings.iter().enumerate();
        entries.extend(bearings.map(|(index, it)| (bearing_colour(index), it.name.as_str())));
    }
    let mut x = MARGIN;
    for (colour, text) in entries {
        let width = 26.0 + width_of(text, 12.0) + 18.0;
        if x + width > WIDTH {
            return;
        }
        svg.rectangle((x, 94.0), (18.0, 4.0), colour, 1.0);
        svg.text(x + 24.0, 100.0, 12.0, FAINT, Anchor::Start, text);
        x += width;
    }
}

const fn bearing_colour(index: usize) -> &'static str {
    BEARINGS[index % BEARINGS.len()]
}

/// As much of a text as fits in a line.
fn fitting(text: &str, size: f64) -> String {
    if MARGIN + width_of(text, size) <= WIDTH {
        return text.to_owned();
    }
    let mut cut = String::new();
    for character in text.chars() {
        if 2.0 * MARGIN + width_of(&cut, size) > WIDTH {
            break;
        }
        cut.push(character);
    }
    cut + "…"
}

/// From frequencies and levels to places.
struct Frame {
    low_hz: f64,
    high_hz: f64,
    low_db: f64,
    high_db: f64,
}

impl Frame {
    /// `None` if there is nothing to draw.
    fn of(explanation: &Explanation) -> Option<Self> {
        let spectrum = &explanation.spectrum;
        let last = spectrum.points().last()?;
        let high_hz = last.frequency_hz + last.width_hz / 2.0;
        let first_hz = spectrum.points().next()?.frequency_hz;
        let low_hz = first_hz.max(high_hz / FREQUENCY_SPAN_MAX);
        let usual = explanation.usual.iter().flat_map(|usual| usual.spectrum.points());
        let levels: Vec<f64> = spectrum
            .points()
            .chain(usual)
            .filter(|point| (low_hz..=high_hz).contains(&point.frequency_hz) && point.power > 0.0)
            .map(|point| decibels(point.power))
            .collect();
        let highest = levels.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lowest = levels.iter().copied().fold(f64::INFINITY, f64::min);
        if !highest.is_finite() || low_hz >= high_hz {
            return None;
        }
        let low_db = (lowest.max(highest - LEVEL_SPAN_MAX) / 10.0).floor() * 10.0;
        let high_db = highest + (highest - low_db).max(10.0) * HEADROOM;
        Some(Self { low_hz, high_hz, low_db, high_db })
    }

    fn x(&self, frequency_hz: f64) -> f64 {
        let share = (frequency_hz / self.low_hz).ln() / (self.high_hz / self.low_hz).ln();
        LEFT + share.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    fn y(&self, level_db: f64) -> f64 {
        let share = (level_db - self.low_db) / (self.high_db - self.low_db);
        BOTTOM - share.clamp(0.0, 1.0) * (BOTTOM - TOP)
    }

    fn has(&self, frequency_hz: f64) -> bool {
        (self.low_hz..=self.high_hz).contains(&frequency_hz)
    }
}

/// Nothing is as low as can be.
fn decibels(power: f64) -> f64 {
    10.0 * power.max(f64::MIN_POSITIVE).log10()
}

/// Bands that drove the score and can be seen, with their left and right edges.
fn driving_bands<'a>(
    frame: &Frame,
    explanation: &'a Explanation,
) -> impl Iterator<Item = (&'a Contribution, f64, f64)> {
    driving(&explanation.contributions)
        .filter_map(|it| Some((it, band(it.feature, &explanation.band_edges_hz)?)))
        .filter(|(_, (low_hz, high_hz))| *high_hz > frame.low_hz && *low_hz < frame.high_hz)
        .map(|(it, (low_hz, high_hz))| (it, frame.x(low_hz), frame.x(high_hz)))
        .take(BANDS_MAX)
}

fn shade_bands(svg: &mut Svg, frame: &Frame, explanation: &Explanation) {
    let largest = explanation.contributions.first().map_or(1.0, |it| it.logit);
    for (contribution, left, right) in driving_bands(frame, explanation) {
        let opacity = 0.08 + 0.24 * contribution.logit / largest;
        svg.rectangle((left, TOP), (right - left, BOTTOM - TOP), BAND, opacity);
    }
}

fn name_bands(svg: &mut Svg, frame: &Frame, explanation: &Explanation) {
    for (contribution, left, right) in driving_bands(frame, explanation) {
        let name = contribution.feature.to_string();
        let logit = format!("{:+.1}", contribution.logit);
        for (row, text) in (1_u8..).zip([name, logit]) {
            if width_of(&text, BAND_LABEL_SIZE) < right - left {
                let (x, y) = (f64::midpoint(left, right), TOP + 14.0 * f64::from(row));
                svg.haloed(x, y, BAND_LABEL_SIZE, BAND_INK, &text);
            }
        }
    }
}

fn axes(svg: &mut Svg, frame: &Frame, explanation: &Explanation) {
    let span = frame.high_db - frame.low_db;
    let step = if span > 60.0 { 20.0 } else { 10.0 };
    let mut level = (frame.low_db / step).ceil() * step;
    while level <= frame.high_db {
        let y = frame.y(level);
        svg.line((LEFT, y), (RIGHT, y), GRID, 1.0);
        svg.text(LEFT - 8.0, y + 4.0, 12.0, FAINT, Anchor::End, &format!("{level:.0}"));
        level += step;
    }
    for (frequency_hz, is_labelled) in ticks(frame) {
        let x = frame.x(frequency_hz);
        svg.line((x, TOP), (x, BOTTOM), GRID, 1.0);
        if is_labelled {
            let text = match frequency_hz {
                kilo if kilo >= 1_000.0 => format!("{} k", kilo / 1_000.0),
                hertz => format!("{hertz}"),
            };
            svg.text(x, BOTTOM + 18.0, 12.0, FAINT, Anchor::Middle, &text);
        }
    }
    svg.line((LEFT, BOTTOM), (RIGHT, BOTTOM), FAINT, 1.0);
    let middle = f64::midpoint(LEFT, RIGHT);
    svg.text(middle, BOTTOM + 42.0, 13.0, FAINT, Anchor::Middle, "frequency in Hz");
    let level = format!("power in dB re {}", reference(explanation));
    svg.upright(22.0, f64::midpoint(TOP, BOTTOM), 13.0, FAINT, &level);
}

/// The power that is 0 dB.
fn reference(explanation: &Explanation) -> String {
    match explanation.unit.as_deref() {
        None => "1, in the square of the samples' unit".to_owned(),
        Some(unit) if unit.chars().all(char::is_alphabetic) => format!("1 {unit}²"),
        Some(unit) => format!("1 ({unit})²"),
    }
}

/// 1, 2 and 5 of each decade, with a label, and what is between.
fn ticks(frame: &Frame) -> Vec<(f64, bool)> {
    let mut ticks = Vec::new();
    let first = frame.low_hz.log10().floor();
    let decades = (frame.high_hz.log10() - first).ceil();
    let mut decade = 0.0;
    while decade <= decades {
        for digit in 1_u8..10 {
            let frequency_hz = f64::from(digit) * 10_f64.powf(first + decade);
            if frame.has(frequency_hz) {
                ticks.push((frequency_hz, [1, 2, 5].contains(&digit)));
            }
        }
        decade += 1.0;
    }
    ticks
}

fn curve(svg: &mut Svg, frame: &Frame, spectrum: &ReducedSpectrum, colour: &str) {
    let place = |point: Point| (frame.x(point.frequency_hz), frame.y(decibels(point.power)));
    let points = spectrum.points().filter(|point| frame.has(point.frequency_hz)).map(place);
    svg.polyline(points, colour, 1.3);
}

/// A label over the plot: its line, and what it covers.
struct Label {
    row: usize,
    x: f64,
    left: f64,
    right: f64,
}

impl Label {
    /// Whether both can be: beside each other, and none across the other's line.
    fn goes_with(&self, other: &Self) -> bool {
        let covers = |label: &Self, x: f64| (label.left..=label.right).contains(&x);
        match self.row.cmp(&other.row) {
            std::cmp::Ordering::Equal => {
                self.right + 4.0 < other.left || other.right + 4.0 < self.left
            }
            std::cmp::Ordering::Less => !covers(self, other.x),
            std::cmp::Ordering::Greater => !covers(other, self.x),
        }
    }
}

/// Lines of shaft and bearings. Row 0 is next to the plot.
fn known(svg: &mut Svg, frame: &Frame, explanation: &Explanation) {
    let mut lines = known_lines(explanation);
    lines.retain(|line| frame.has(line.frequency_hz));
    // The lines themselves find a place for their labels before their harmonics do.
    lines.sort_by(|left, right| {
        let order = left.harmonic.cmp(&right.harmonic);
        order.then(left.frequency_hz.total_cmp(&right.frequency_hz))
    });
    let mut placed: Vec<Label> = Vec::new();
    for line in &lines {
        let x = frame.x(line.frequency_hz);
        let colour = line.bearing.map_or(SHAFT, bearing_colour);
        let opacity = if line.harmonic == 1 { 0.85 } else { 0.45 };
        let top = match place(line, x, &placed) {
            None => TOP,
            Some(label) => {
                let y = TOP - 5.0 - LABEL_ROW_HEIGHT * label.row as f64;
                let middle = f64::midpoint(label.left, label.right);
                svg.text(middle, y, LABEL_SIZE, colour, Anchor::Middle, &line.label);
                placed.push(label);
                y + 3.0
            }
        };
        svg.dashed((x, top), (x, BOTTOM), colour, opacity);
    }
}

/// In the lowest row that has room; `None` if none has.
fn place(line: &KnownLine, x: f64, placed: &[Label]) -> Option<Label> {
    let half = width_of(&line.label, LABEL_SIZE) / 2.0;
    // Within the picture, even if its line is at the edge.
    let middle = x.clamp(LEFT + half - 40.0, WIDTH - half - 4.0);
    let rows =
        (0..LABEL_ROWS).map(|row| Label { row, x, left: middle - half, right: middle + half });
    rows.into_iter().find(|label| placed.iter().all(|other| label.goes_with(other)))
}

/// The lines that grew most, largest first: where there is no room for a frequency, there is still its circle.
fn mark_peaks(svg: &mut Svg, frame: &Frame, explanation: &Explanation) {
    let mut covered: Vec<(f64, f64, f64)> = Vec::new();
    for peak in grown_peaks(explanation).iter().filter(|peak| frame.has(peak.frequency_hz)) {
        let (x, y) = (frame.x(peak.frequency_hz), frame.y(decibels(peak.power)));
        svg.circle((x, y), 4.0, NOW);
        let text = format!("{} Hz", hertz(peak.frequency_hz));
        let half = width_of(&text, LABEL_SIZE) / 2.0;
        let is_free = covered.iter().all(|(left, right, other)| {
            x + half < *left || x - half > *right || (y - other).abs() > LABEL_SIZE + 6.0
        });
        if is_free {
            svg.haloed(x, y - 8.0, LABEL_SIZE, NOW, &text);
            covered.push((x - half, x + half, y));
        }
    }
}

#[cfg(test)]
mod tests;
