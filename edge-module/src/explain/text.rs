//! The explanation in words.

use edge_core::explanation::{Contribution, Peak, peaks};
use edge_core::features::FeatureName;

use super::lines::{KnownLine, NEAR_BINS, known_lines, near, shaft_hz};
use crate::explanations::Explanation;

/// Lines of the spectrum that are named.
pub(super) const PEAKS_MAX: usize = 5;
/// What a line may be: more names would be a guess.
const NAMES_MAX: usize = 2;
/// Features in the table, unless all are asked for.
pub(super) const CONTRIBUTIONS_MAX: usize = 10;
/// Features that the one sentence names.
const SENTENCE_FEATURES: usize = 3;
/// More say no more, but that the usual windows were few and alike.
const DEVIATIONS_MAX: f64 = 100.0;
/// A smaller contribution than this share of the largest drove nothing.
const DRIVING_SHARE: f64 = 0.1;

/// The whole answer, ending with a line feed; with `is_all` also the features that hardly drove the score, or spoke against it.
pub(super) fn report(explanation: &Explanation, is_all: bool) -> String {
    let mut lines = head(explanation);
    lines.push(String::new());
    lines.push(sentence(explanation, SENTENCE_FEATURES));
    if !explanation.contributions.is_empty() {
        lines.push(
            "What the model's logit falls by when one feature is as usual, all others as they were:"
                .to_owned(),
        );
    }
    let count = if is_all { usize::MAX } else { CONTRIBUTIONS_MAX };
    lines.extend(explanation.contributions.iter().take(count).map(|contribution| {
        let name = feature_name(contribution.feature, &explanation.band_edges_hz);
        format!(
            "  {:>+7.2}  {name}: {}{}",
            contribution.logit,
            departure(contribution),
            deviations(contribution)
        )
    }));
    let more = explanation.contributions.len().saturating_sub(count);
    if more > 0 {
        lines.push(format!("  and {more} more, of less or against it: --all shows them"));
    }
    lines.push(String::new());
    lines.extend(grown(explanation));
    let is_harmless = |character: char| !character.is_control();
    lines
        .iter()
        // Names out of a file must not speak to the terminal.
        .map(|line| line.replace(|character| !is_harmless(character), "?") + "\n")
        .collect()
}

fn head(explanation: &Explanation) -> Vec<String> {
    let Explanation { machine_id, sensor_id, time, .. } = explanation;
    let before = match &explanation.usual {
        Some(usual) => format!("compared with {} windows before", usual.windows),
        None => "nothing is known of the windows before".to_owned(),
    };
    let mut head = vec![
        format!("trip {}", explanation.trip_id),
        format!("  machine {machine_id}, sensor {sensor_id}, {time}"),
        format!(
            "  rule {} ({}): score {:.4}, threshold {:.4}, model {}",
            explanation.rule,
            explanation.cause,
            explanation.score,
            explanation.threshold,
            explanation.model
        ),
        format!(
            "  window of {} samples at {} Hz, {before}",
            explanation.window_samples, explanation.sample_rate_hz
        ),
    ];
    if !explanation.bearings.is_empty() && shaft_hz(explanation).is_none() {
        head.push("  speed of the shaft not known: no lines of bearings".to_owned());
    }
    if let Some(shaft_hz) = shaft_hz(explanation) {
        head.push(format!("  shaft at {shaft_hz:.2} Hz"));
    }
    head
}

/// What drove the score, in one sentence that names so many features at most.
pub(super) fn sentence(explanation: &Explanation, features_max: usize) -> String {
    if explanation.contributions.is_empty() {
        return "What drove the score is not known: there are no usual values to compare with."
            .to_owned();
    }
    let driving: Vec<String> = driving(&explanation.contributions)
        .take(features_max)
        .map(|contribution| {
            let name = feature_name(contribution.feature, &explanation.band_edges_hz);
            format!("{name} ({}, {:+.1})", departure(contribution), contribution.logit)
        })
        .collect();
    match driving.as_slice() {
        [] => "No feature alone drove the score: none lowers it when it is as usual.".to_owned(),
        [only] => format!("The score was driven by {only}."),
        [others @ .., last] => {
            format!("The score was driven by {} and {last}.", others.join("; "))
        }
    }
}

/// What spoke for a fault and is not small beside the largest, largest first.
pub(super) fn driving(contributions: &[Contribution]) -> impl Iterator<Item = &Contribution> {
    let largest = contributions.iter().map(|it| it.logit).fold(0.0, f64::max);
    let is_driving =
        move |it: &&Contribution| it.logit > 0.0 && it.logit >= DRIVING_SHARE * largest;
    contributions.iter().filter(is_driving)
}

/// For example `band-06, 318 to 448 Hz`.
fn feature_name(feature: FeatureName, band_edges_hz: &[f64]) -> String {
    match (feature, band(feature, band_edges_hz)) {
        (_, Some((low_hz, high_hz))) => {
            format!("{feature}, {} to {} Hz", hertz(low_hz), hertz(high_hz))
        }
        (_, None) => feature.to_string(),
    }
}

/// Edges of a band; nothing for other features.
pub(super) fn band(feature: FeatureName, band_edges_hz: &[f64]) -> Option<(f64, f64)> {
    match feature {
        FeatureName::Band(index) => {
            let index = usize::from(index);
            Some((*band_edges_hz.get(index)?, *band_edges_hz.get(index + 1)?))
        }
        FeatureName::Rms
        | FeatureName::Peak
        | FeatureName::CrestFactor
        | FeatureName::Kurtosis
        | FeatureName::RmsSteady
        | FeatureName::Line => None,
    }
}

fn departure(contribution: &Contribution) -> String {
    let Contribution { feature, value, usual, .. } = contribution;
    match feature {
        FeatureName::Band(_) | FeatureName::Line => {
            let decibels = (value - usual) * 10.0 / std::f64::consts::LN_10;
            format!("{:.1} dB {} usual", decibels.abs(), above_or_below(decibels))
        }
        FeatureName::Rms
        | FeatureName::Peak
        | FeatureName::CrestFactor
        | FeatureName::Kurtosis
        | FeatureName::RmsSteady => {
            format!("{}, usually {}", significant(*value), significant(*usual))
        }
    }
}

/// Nothing where the usual values do not vary.
fn deviations(contribution: &Contribution) -> String {
    let Contribution { value, usual, deviation, .. } = contribution;
    if *deviation <= 0.0 {
        return String::new();
    }
    match (value - usual).abs() / deviation {
        far if far > DEVIATIONS_MAX => format!(" (over {DEVIATIONS_MAX} deviations)"),
        some => format!(" ({some:.1} deviations)"),
    }
}

const fn above_or_below(away: f64) -> &'static str {
    if away < 0.0 { "below" } else { "above" }
}

/// Four significant digits, whatever the unit.
fn significant(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.3}"),
        size if size >= 0.001 => format!("{value:.5}"),
        _ => format!("{value:.3e}"),
    }
}

/// One decimal where it says something.
pub(super) fn hertz(frequency_hz: f64) -> String {
    if frequency_hz < 200.0 { format!("{frequency_hz:.1}") } else { format!("{frequency_hz:.0}") }
}

/// The lines that grew most, largest growth first.
pub(super) fn grown_peaks(explanation: &Explanation) -> Vec<Peak> {
    let usual = explanation.usual.as_ref();
    usual.map_or_else(Vec::new, |usual| peaks(&explanation.spectrum, &usual.spectrum, PEAKS_MAX))
}

fn grown(explanation: &Explanation) -> Vec<String> {
    let Some(usual) = &explanation.usual else {
        return vec!["Which lines grew is not known: there is no usual spectrum.".to_owned()];
    };
    if !explanation.spectrum.has_points_of(&usual.spectrum) {
        return vec![
            "Which lines grew is not known: the usual spectrum is of other windows.".to_owned(),
        ];
    }
    let (peaks, known) = (grown_peaks(explanation), known_lines(explanation));
    if peaks.is_empty() {
        return vec!["No line of the spectrum grew by 10 dB or more.".to_owned()];
    }
    let resolution_hz = explanation.spectrum.resolution_hz();
    let within = if known.is_empty() {
        String::new()
    } else {
        format!(" (near is within {} Hz or 1 %)", hertz(NEAR_BINS * resolution_hz))
    };
    let mut lines = vec![format!("Lines of the spectrum that grew most{within}:")];
    lines.extend(peaks.iter().map(|peak| {
        let near = near(&known, peak.frequency_hz, resolution_hz);
        format!(
            "  {:>8} Hz: {}{}",
            hertz(peak.frequency_hz),
            growth(peak),
            names(explanation, &near)
        )
    }));
    lines
}

fn growth(peak: &Peak) -> String {
    if peak.usual <= 0.0 {
        return "new".to_owned();
    }
    format!("{:.1} dB above usual", 10.0 * (peak.power / peak.usual).log10())
}

fn names(explanation: &Explanation, near: &[&KnownLine]) -> String {
    let name = |line: &&KnownLine| {
        let label = format!("{} {} Hz", line.label, hertz(line.frequency_hz));
        match line.bearing.and_then(|index| explanation.bearings.get(index)) {
            Some(bearing) => format!("{label} of {}", bearing.name),
            None => label,
        }
    };
    let names: Vec<String> = near.iter().take(NAMES_MAX).map(name).collect();
    if names.is_empty() { String::new() } else { format!(", near {}", names.join(" and ")) }
}
