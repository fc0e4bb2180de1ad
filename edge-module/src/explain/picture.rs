//! The explanation as a picture: one SVG, written by hand.
//!
//! Over a logarithmic frequency axis the spectrum of the window that decided, in decibels, and the usual one behind it; the bands
//! that drove the score are shaded, in one colour where they are above usual and in another where they are below, the shaft's and the
//! bearings' lines drawn thin, the lines that grew most marked. A label that would cover another is pushed aside, or else left out, less
//! important ones first; what it names stays drawn, and how many are left out is said.

mod room;
mod svg;

use edge_core::explanation::{Contribution, Peak, Point, ReducedSpectrum};

use super::lines::{KnownLine, known_lines};
use super::text::{CONTRIBUTIONS_MAX, band, driving, grown_peaks, hertz, sentence};
use crate::explanations::Explanation;
use room::{Area, Room};
use svg::{Anchor, Svg, width_of};

const WIDTH: f64 = 1_200.0;
const HEIGHT: f64 = 700.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 1_176.0;
const TOP: f64 = 186.0;
const BOTTOM: f64 = 640.0;
/// Of the texts at the top.
const MARGIN: f64 = 24.0;
/// Baselines of the legend's rows.
const LEGEND_ROWS: [f64; 2] = [100.0, 117.0];
/// Rows of labels of known lines, over the plot.
const LABEL_ROWS: usize = 4;
const LABEL_ROW_HEIGHT: f64 = 15.0;
const LABEL_SIZE: f64 = 11.0;
/// A third of an octave of bands is hardly as wide as its name.
const BAND_LABEL_SIZE: f64 = 10.0;
const BAND_ROW_HEIGHT: f64 = 14.0;
/// Rows of names of bands, each with its figure below: neighbours that are too narrow take turns.
const BAND_ROWS: u8 = 2;
/// From a peak to the baseline of its label: above, below, further above.
const PEAK_LABELS: [f64; 3] = [-8.0, 17.0, -22.0];
const PEAK_RADIUS: f64 = 4.0;
/// The lowest frequency is this much under the highest, at most: 3.7 decades.
const FREQUENCY_SPAN_MAX: f64 = 5_000.0;
/// The lowest level is so many decibels under the highest, at most.
const LEVEL_SPAN_MAX: f64 = 100.0;
/// Room over the highest level for the labels of the bands, as a share of the height.
const HEADROOM: f64 = 0.14;
/// Features that the sentence names: more do not fit.
const SENTENCE_FEATURES: usize = 2;
/// Bands that are shaded: no more than the text names.
const BANDS_MAX: usize = CONTRIBUTIONS_MAX;

const INK: &str = "#222b36";
const FAINT: &str = "#5b6673";
const GRID: &str = "#e4e8ec";
const NOW: &str = "#1a5fb4";
const USUAL: &str = "#9aa5b1";
const BAND: &str = "#f29d38";
const BAND_INK: &str = "#9a5a00";
const BELOW: &str = "#5aa9e6";
const BELOW_INK: &str = "#1f5f99";
const SHAFT: &str = "#6b7280";
const BEARINGS: [&str; 4] = ["#1b8a5a", "#8e3fa8", "#b3402f", "#0e7c8b"];

/// Draws one explanation.
pub(super) fn draw(explanation: &Explanation) -> String {
    let mut svg = Svg::new(WIDTH, HEIGHT);
    let mut left_out = head(&mut svg, explanation);
    match Frame::of(explanation) {
        Some(frame) => {
            let mut room = Room::default();
            shade_bands(&mut svg, &frame, explanation);
            axes(&mut svg, &frame, explanation);
            left_out += known(&mut svg, &frame, explanation);
            if let Some(usual) = &explanation.usual {
                curve(&mut svg, &frame, &usual.spectrum, USUAL);
            }
            curve(&mut svg, &frame, &explanation.spectrum, NOW);
            left_out += name_bands(&mut svg, &frame, explanation, &mut room);
            left_out += mark_peaks(&mut svg, &frame, explanation, &mut room);
        }
        None => svg.text(LEFT, TOP, 14.0, FAINT, Anchor::Start, "The spectrum is empty."),
    }
    if left_out > 0 {
        let labels = if left_out == 1 { "label is" } else { "labels are" };
        let text = format!("{left_out} {labels} left out for want of room");
        svg.text(RIGHT, BOTTOM + 42.0, 12.0, FAINT, Anchor::End, &text);
    }
    svg.end()
}

/// Title, sentence and legend. Gives the labels that were left out, as all below.
fn head(svg: &mut Svg, explanation: &Explanation) -> usize {
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
    legend(svg, explanation)
}

fn legend(svg: &mut Svg, explanation: &Explanation) -> usize {
    let before = match &explanation.usual {
        Some(usual) => format!("before (mean of {} windows)", usual.windows),
        None => String::new(),
    };
    let is_lined = !known_lines(explanation).is_empty();
    let mut entries = vec![(NOW, "the window that decided")];
    if !before.is_empty() {
        entries.push((USUAL, &before));
    }
    let is_band = |it: &&Contribution| band(it.feature, &explanation.band_edges_hz).is_some();
    let (below, above): (Vec<&Contribution>, Vec<&Contribution>) =
        driving(&explanation.contributions).filter(is_band).partition(|it| is_below(it));
    if !above.is_empty() {
        entries.push((BAND, "drove the score, above usual (logit)"));
    }
    if !below.is_empty() {
        entries.push((BELOW, "drove the score, below usual (logit)"));
    }
    if is_lined {
        entries.push((SHAFT, "shaft"));
        let bearings = explanation.bearings.iter().enumerate();
        entries.extend(bearings.map(|(index, it)| (bearing_colour(index), it.name.as_str())));
    }
    let (mut x, mut row, mut left_out) = (MARGIN, 0, 0);
    for (colour, text) in entries {
        let width = 26.0 + width_of(text, 12.0) + 18.0;
        if x + width > WIDTH && x > MARGIN {
            (x, row) = (MARGIN, row + 1);
        }
        match LEGEND_ROWS.get(row) {
            Some(y) if x + width <= WIDTH => {
                svg.rectangle((x, y - 6.0), (18.0, 4.0), colour, 1.0);
                svg.text(x + 24.0, *y, 12.0, FAINT, Anchor::Start, text);
                x += width;
            }
            Some(_) | None => left_out += 1,
        }
    }
    left_out
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

fn is_below(contribution: &Contribution) -> bool {
    contribution.value < contribution.usual
}

fn shade_bands(svg: &mut Svg, frame: &Frame, explanation: &Explanation) {
    let largest = explanation.contributions.first().map_or(1.0, |it| it.logit);
    for (contribution, left, right) in driving_bands(frame, explanation) {
        let opacity = 0.08 + 0.24 * contribution.logit / largest;
        let colour = if is_below(contribution) { BELOW } else { BAND };
        svg.rectangle((left, TOP), (right - left, BOTTOM - TOP), colour, opacity);
    }
}

/// Largest contribution first.
fn name_bands(svg: &mut Svg, frame: &Frame, explanation: &Explanation, room: &mut Room) -> usize {
    let mut left_out = 0;
    for (contribution, left, right) in driving_bands(frame, explanation) {
        let (name, logit) =
            (contribution.feature.to_string(), format!("{:+.1}", contribution.logit));
        let half = width_of(&name, BAND_LABEL_SIZE).max(width_of(&logit, BAND_LABEL_SIZE)) / 2.0;
        let x = f64::midpoint(left, right).clamp(LEFT + half, RIGHT - half);
        let places = (0..BAND_ROWS).map(|row| {
            let y = TOP + BAND_ROW_HEIGHT * f64::from(1 + 2 * row);
            let of_name = Area::of_text(x, y, BAND_LABEL_SIZE, &name);
            let of_logit = Area::of_text(x, y + BAND_ROW_HEIGHT, BAND_LABEL_SIZE, &logit);
            (y, of_name.with(of_logit))
        });
        let Some(y) = room.take(places) else {
            left_out += 1;
            continue;
        };
        let ink = if is_below(contribution) { BELOW_INK } else { BAND_INK };
        svg.haloed(x, y, BAND_LABEL_SIZE, ink, &name);
        svg.haloed(x, y + BAND_ROW_HEIGHT, BAND_LABEL_SIZE, ink, &logit);
    }
    left_out
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
fn known(svg: &mut Svg, frame: &Frame, explanation: &Explanation) -> usize {
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
    lines.len() - placed.len()
}

/// In the lowest row that has room; `None` if none has.
fn place(line: &KnownLine, x: f64, placed: &[Label]) -> Option<Label> {
    let half = width_of(&line.label, LABEL_SIZE) / 2.0;
    // Within the picture and beside the axis, even if its line is at the edge.
    let middle = x.clamp(LEFT + half - 4.0, WIDTH - half - 4.0);
    let rows =
        (0..LABEL_ROWS).map(|row| Label { row, x, left: middle - half, right: middle + half });
    rows.into_iter().find(|label| placed.iter().all(|other| label.goes_with(other)))
}

/// The lines that grew most, largest first: where there is no room for a frequency, there is still its circle.
fn mark_peaks(svg: &mut Svg, frame: &Frame, explanation: &Explanation, room: &mut Room) -> usize {
    let mut peaks = grown_peaks(explanation);
    peaks.retain(|peak| frame.has(peak.frequency_hz));
    let place = |peak: &Peak| (frame.x(peak.frequency_hz), frame.y(decibels(peak.power)));
    for centre in peaks.iter().map(place) {
        svg.circle(centre, PEAK_RADIUS, NOW);
        room.cover(Area::of_circle(centre, PEAK_RADIUS));
    }
    let mut left_out = 0;
    for peak in &peaks {
        let (x, y) = place(peak);
        let text = format!("{} Hz", hertz(peak.frequency_hz));
        let half = width_of(&text, LABEL_SIZE) / 2.0;
        let x = x.clamp(LEFT + half, RIGHT - half);
        let baselines = PEAK_LABELS.iter().map(|away| y + away);
        let within = baselines.filter(|y| (TOP + LABEL_SIZE..BOTTOM - 4.0).contains(y));
        let places = within.map(|y| (y, Area::of_text(x, y, LABEL_SIZE, &text)));
        match room.take(places) {
            Some(y) => svg.haloed(x, y, LABEL_SIZE, NOW, &text),
            None => left_out += 1,
        }
    }
    left_out
}

#[cfg(test)]
mod tests;
