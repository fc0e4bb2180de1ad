//! Conditions of a sensor: what is wrong with it, as a state of its own and never as a value.
//!
//! | fault | raised when | voids values |
//! |---|---|---|
//! | `silent` | nothing usable for longer than allowed (judged by the interlock) | no, the last one stands |
//! | `value-not-finite` | a reading is NaN or infinite | yes |
//! | `feature-not-usable` | a feature that a limit needs is missing, NaN or infinite | that feature alone |
//! | `score-not-finite` | the model answers NaN: a fault of ours, shown at the sensor | no |
//! | `bad-quality` | the producer says that the reading is bad | yes |
//! | `out-of-range` | a value or sample that the sensor cannot measure: an open PT100 reads 1254 °C | yes |
//! | `frozen` | the same value within `tolerance` for `after` | yes |
//! | `saturated` | a share of a block's samples stands at the full scale, or at the block's own extremes | yes |
//! | `samples-missing` | a share of a minute's samples did not come | no |
//! | `wrong-rate` | samples come faster or slower than expected | no |
//! | `clock-drift` | event time and arrival are too far apart, either way | no |
//!
//! While a fault that voids values is present, what the sensor sends is neither compared with limits nor taken
//! as its latest value: it raises no trip and proves nothing. Faults of time alone leave a value a
//! measurement: a gateway with a wrong clock must not lose its limits.
//!
//! Each fault is raised once. It is over when the sensor has delivered without it for `recovers_after`, seen by
//! at least two samples if that is above zero, so that a loose contact does not report at every sample. A
//! sample that says nothing about a fault (a NaN about the range) neither keeps nor ends it. Rates and missing
//! samples are judged a minute at a time, with whole minutes counted from the sensor's first sample; of a sensor that sends
//! blocks and readings the rate is that of its blocks.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shared_proto::model::{EventTime, Quality, Reading, WaveformBlock};

use crate::interlock::Moment;

/// Time over which missing samples and the rate of readings are counted.
pub const COUNTING_TIME: Duration = Duration::from_secs(60);
/// Longest time that a sensor may be told to be watched for: a week.
const WAIT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Samples of a block at its own extremes say nothing when there are fewer than this many.
const CLIPPED_SAMPLES_MIN: usize = 8;
const KINDS: usize = 11;

/// What is wrong with a sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SensorFaultKind {
    /// Nothing usable for longer than allowed.
    Silent,
    /// A reading that is NaN or infinite.
    ValueNotFinite,
    /// A feature that a limit needs is missing, NaN or infinite.
    FeatureNotUsable,
    /// A score that is NaN or infinite.
    ScoreNotFinite,
    /// The producer says that its reading is not usable.
    BadQuality,
    /// A value that the sensor cannot measure.
    OutOfRange,
    /// The same value for too long.
    Frozen,
    /// Too many samples at the end of the scale.
    Saturated,
    /// Too many samples did not come.
    SamplesMissing,
    /// Another sample rate than expected.
    WrongRate,
    /// Event time and arrival are too far apart.
    ClockDrift,
}

impl SensorFaultKind {
    /// All kinds.
    pub const ALL: [Self; KINDS] = [
        Self::Silent,
        Self::ValueNotFinite,
        Self::FeatureNotUsable,
        Self::ScoreNotFinite,
        Self::BadQuality,
        Self::OutOfRange,
        Self::Frozen,
        Self::Saturated,
        Self::SamplesMissing,
        Self::WrongRate,
        Self::ClockDrift,
    ];

    /// The word used in machine events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::ValueNotFinite => "value-not-finite",
            Self::FeatureNotUsable => "feature-not-usable",
            Self::ScoreNotFinite => "score-not-finite",
            Self::BadQuality => "bad-quality",
            Self::OutOfRange => "out-of-range",
            Self::Frozen => "frozen",
            Self::Saturated => "saturated",
            Self::SamplesMissing => "samples-missing",
            Self::WrongRate => "wrong-rate",
            Self::ClockDrift => "clock-drift",
        }
    }

    /// Whether a value of a sensor with this fault is no measurement.
    #[must_use]
    pub const fn voids_values(self) -> bool {
        match self {
            Self::ValueNotFinite
            | Self::BadQuality
            | Self::OutOfRange
            | Self::Frozen
            | Self::Saturated => true,
            Self::Silent
            | Self::FeatureNotUsable
            | Self::ScoreNotFinite
            | Self::SamplesMissing
            | Self::WrongRate
            | Self::ClockDrift => false,
        }
    }

    /// Whether the policy for sensor faults decides about it: silence has a policy of its own, and a bad score is ours.
    #[must_use]
    pub const fn is_of_policy(self) -> bool {
        match self {
            Self::Silent | Self::ScoreNotFinite => false,
            Self::ValueNotFinite
            | Self::FeatureNotUsable
            | Self::BadQuality
            | Self::OutOfRange
            | Self::Frozen
            | Self::Saturated
            | Self::SamplesMissing
            | Self::WrongRate
            | Self::ClockDrift => true,
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

/// What a sensor can measure, both ends included, in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MeasuringRange {
    /// Lowest value.
    pub min: f64,
    /// Highest value.
    pub max: f64,
}

/// When a value that stays is a fault.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FrozenRule {
    /// Longest time without a change, above 0.
    pub after: Duration,
    /// Changes up to this are none, in the sensor's unit.
    pub tolerance: f64,
}

/// When samples at the end of the scale are a fault.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SaturationRule {
    /// Share of a block's samples, above 0 to 1.
    pub share: f64,
    /// End of the scale, in the samples' unit: samples at or past it, of either sign, count. Absent: samples that
    /// are exactly the block's highest or lowest.
    pub full_scale: Option<f64>,
}

/// The rate at which a sensor samples (blocks) or reports (readings).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RateRule {
    /// Samples per second, above 0.
    pub hz: f64,
    /// Share by which it may be off, for example 0.05.
    pub tolerance: f64,
}

/// How a sensor is watched. Nothing but NaN and bad quality by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ConditionSettings {
    /// What it can measure.
    pub range: Option<MeasuringRange>,
    /// When a value that stays is a fault.
    pub frozen: Option<FrozenRule>,
    /// When samples at the end of the scale are a fault.
    pub saturation: Option<SaturationRule>,
    /// Its sample rate.
    pub rate: Option<RateRule>,
    /// Share of a minute's samples that may be missing. Of readings it needs the rate.
    pub missing_share_max: Option<f64>,
    /// Longest distance of event time and arrival.
    pub clock_drift_max: Option<Duration>,
    /// A fault is over after so long without it.
    pub recovers_after: Duration,
}

/// One fault in the settings of a condition.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConditionFault {
    /// A range that nothing is in.
    #[error("range {min} to {max} is empty or not finite")]
    Range {
        /// Lowest value.
        min: f64,
        /// Highest value.
        max: f64,
    },
    /// A number out of its bounds.
    #[error("{what} is {value}, allowed is {allowed}")]
    Number {
        /// Which number.
        what: &'static str,
        /// The number found.
        value: f64,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A time out of its bounds.
    #[error("{what} is {wait:?}, allowed is {allowed}")]
    Wait {
        /// Which time.
        what: &'static str,
        /// The time found.
        wait: Duration,
        /// What is allowed.
        allowed: &'static str,
    },
}

impl ConditionSettings {
    /// Checks all settings; adds what is wrong to `faults`.
    pub fn validate(&self, faults: &mut Vec<ConditionFault>) {
        if let Some(MeasuringRange { min, max }) = self.range
            && !(min.is_finite() && max.is_finite() && min < max)
        {
            faults.push(ConditionFault::Range { min, max });
        }
        let mut number = |what, value: Option<f64>, is_allowed: fn(f64) -> bool, allowed| {
            if let Some(value) = value.filter(|value| !is_allowed(*value)) {
                faults.push(ConditionFault::Number { what, value, allowed });
            }
        };
        let tolerance = self.frozen.map(|frozen| frozen.tolerance);
        let at_least_zero = "a finite number from 0";
        number(
            "frozen-tolerance",
            tolerance,
            |value| value >= 0.0 && value.is_finite(),
            at_least_zero,
        );
        let above_zero = "a finite number above 0";
        let is_above_zero = |value: f64| value > 0.0 && value.is_finite();
        let full_scale = self.saturation.and_then(|saturation| saturation.full_scale);
        number("full-scale", full_scale, is_above_zero, above_zero);
        number("sample-rate", self.rate.map(|rate| rate.hz), is_above_zero, above_zero);
        let is_share = |value: f64| value > 0.0 && value <= 1.0;
        let share = "above 0 and at most 1";
        let saturation = self.saturation.map(|saturation| saturation.share);
        number("saturation", saturation, is_share, share);
        number("sample-rate-tolerance", self.rate.map(|rate| rate.tolerance), is_share, share);
        number(
            "missing-samples-max",
            self.missing_share_max,
            |value| value > 0.0 && value < 1.0,
            "above 0 and below 1",
        );
        let allowed = "above 0 and at most a week";
        let waits = [
            ("frozen-after", self.frozen.map(|frozen| frozen.after)),
            ("clock-drift-max", self.clock_drift_max),
        ];
        for (what, wait) in waits {
            if let Some(wait) = wait.filter(|wait| wait.is_zero() || *wait > WAIT_MAX) {
                faults.push(ConditionFault::Wait { what, wait, allowed });
            }
        }
        if self.recovers_after > WAIT_MAX {
            let (what, wait) = ("recovers-after", self.recovers_after);
            faults.push(ConditionFault::Wait { what, wait, allowed: "at most a week" });
        }
    }
}

/// One scalar measurement as its sensor gave it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The value, in the sensor's unit.
    pub value: f64,
    /// The producer says that it is not usable.
    pub is_bad: bool,
    /// When it was measured; absent where that says nothing about the clock, as in a historical reading.
    pub taken: Option<EventTime>,
}

/// A good value of unknown time.
impl From<f64> for Measured {
    fn from(value: f64) -> Self {
        Self { value, is_bad: false, taken: None }
    }
}

impl From<&Reading> for Measured {
    fn from(reading: &Reading) -> Self {
        Self {
            value: reading.value,
            is_bad: match reading.quality {
                Some(Quality::Bad) => true,
                Some(Quality::Good | Quality::Uncertain) | None => false,
            },
            taken: (!reading.historical).then_some(reading.timestamp),
        }
    }
}

/// A fault that came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultChange {
    /// What is, or was, wrong.
    pub kind: SensorFaultKind,
    /// Whether it came.
    pub is_present: bool,
}

/// Watches one sensor. The path of a sample that changes nothing allocates nothing.
#[derive(Debug, Default)]
pub struct Condition {
    settings: ConditionSettings,
    faults: [Fault; KINDS],
    still: Option<Still>,
    minute: Option<Minute>,
    /// Where the next block should start.
    expected: Option<EventTime>,
    /// Its rate is that of its blocks; its readings may come as they like.
    sends_blocks: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Fault {
    is_present: bool,
    clean_since: Option<Instant>,
}

/// A value that has not moved since.
#[derive(Clone, Copy, Debug)]
struct Still {
    value: f64,
    since: Instant,
}

/// What came since `began`.
#[derive(Clone, Copy, Debug)]
struct Minute {
    began: Instant,
    received: f64,
    missing: f64,
}

impl Condition {
    /// A sensor without a fault that has not been heard.
    #[must_use]
    pub fn new(settings: ConditionSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Goes on where the condition of the same sensor ended. Under other settings only its silence is kept: the rest is
    /// judged anew.
    pub fn take_over(&mut self, previous: Self) {
        if self.settings == previous.settings {
            *self = previous;
        } else {
            let silent = SensorFaultKind::Silent.index();
            self.faults[silent] = previous.faults[silent];
        }
    }

    /// Whether no fault is present that voids values.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.present().all(|kind| !kind.voids_values())
    }

    /// Whether the fault is present.
    #[must_use]
    pub fn is_present(&self, kind: SensorFaultKind) -> bool {
        self.faults[kind.index()].is_present
    }

    /// The faults that are present.
    pub fn present(&self) -> impl Iterator<Item = SensorFaultKind> + '_ {
        SensorFaultKind::ALL.into_iter().filter(|kind| self.is_present(*kind))
    }

    /// Takes a scalar measurement.
    pub fn handle_value(
        &mut self,
        measured: Measured,
        now: Moment,
        changes: &mut Vec<FaultChange>,
    ) {
        self.judge_clock(measured.taken, now, changes);
        self.count_readings(now.instant, changes);
        self.set(SensorFaultKind::BadQuality, measured.is_bad, now.instant, changes);
        if measured.is_bad {
            return;
        }
        let is_finite = measured.value.is_finite();
        self.set(SensorFaultKind::ValueNotFinite, !is_finite, now.instant, changes);
        if !is_finite {
            return;
        }
        let is_in_range = self.judge_range(measured.value, measured.value, now.instant, changes);
        if is_in_range {
            self.judge_still(measured.value, measured.value, now.instant, changes);
        }
    }

    /// Takes a block of samples, before its windows are judged.
    pub fn handle_block(
        &mut self,
        block: &WaveformBlock,
        now: Moment,
        changes: &mut Vec<FaultChange>,
    ) {
        let micros = block.samples.len() as f64 / block.sample_rate_hz * 1e6;
        let end = block.first_sample.saturating_add_micros(micros as i64);
        if !std::mem::replace(&mut self.sends_blocks, true) {
            self.minute = None;
        }
        self.judge_clock(Some(end), now, changes);
        if let Some(rate) = self.settings.rate {
            let is_off = (block.sample_rate_hz - rate.hz).abs() > rate.hz * rate.tolerance;
            self.set(SensorFaultKind::WrongRate, is_off, now.instant, changes);
        }
        self.count_samples(block, end, now.instant, changes);
        let settings = &self.settings;
        if settings.range.is_none() && settings.frozen.is_none() && settings.saturation.is_none() {
            return;
        }
        let extremes = extremes(&block.samples);
        self.set(SensorFaultKind::ValueNotFinite, extremes.is_none(), now.instant, changes);
        let Some((low, high)) = extremes else { return };
        if let Some(rule) = self.settings.saturation {
            let is_saturated = is_saturated(&block.samples, low, high, rule);
            self.set(SensorFaultKind::Saturated, is_saturated, now.instant, changes);
        }
        let (low, high) = (f64::from(low), f64::from(high));
        if self.judge_range(low, high, now.instant, changes) {
            self.judge_still(low, high, now.instant, changes);
        }
    }

    /// Takes whether the features that limits need could be had from a window.
    pub fn handle_features(
        &mut self,
        are_usable: bool,
        now: Moment,
        changes: &mut Vec<FaultChange>,
    ) {
        self.set(SensorFaultKind::FeatureNotUsable, !are_usable, now.instant, changes);
    }

    /// Takes whether the model's score of a window is finite. It is over with the next score that is.
    pub fn handle_score(&mut self, is_finite: bool, changes: &mut Vec<FaultChange>) {
        self.put(SensorFaultKind::ScoreNotFinite, !is_finite, changes);
    }

    /// Takes whether the sensor is silent. It is over as soon as it is heard.
    pub fn handle_silence(&mut self, is_silent: bool, changes: &mut Vec<FaultChange>) {
        self.put(SensorFaultKind::Silent, is_silent, changes);
    }

    fn judge_clock(
        &mut self,
        taken: Option<EventTime>,
        now: Moment,
        changes: &mut Vec<FaultChange>,
    ) {
        let (Some(max), Some(taken)) = (self.settings.clock_drift_max, taken) else { return };
        let drift = Duration::from_micros(now.time.micros_since(taken).unsigned_abs());
        self.set(SensorFaultKind::ClockDrift, drift > max, now.instant, changes);
    }

    fn judge_range(
        &mut self,
        low: f64,
        high: f64,
        now: Instant,
        changes: &mut Vec<FaultChange>,
    ) -> bool {
        let Some(range) = self.settings.range else { return true };
        let is_in_range = low >= range.min && high <= range.max;
        self.set(SensorFaultKind::OutOfRange, !is_in_range, now, changes);
        is_in_range
    }

    /// A value that crept away by more than the tolerance since it was first seen has moved.
    fn judge_still(&mut self, low: f64, high: f64, now: Instant, changes: &mut Vec<FaultChange>) {
        let Some(rule) = self.settings.frozen else { return };
        let is_still = self.still.is_some_and(|still| {
            (high - still.value).abs() <= rule.tolerance
                && (low - still.value).abs() <= rule.tolerance
        });
        if !is_still {
            self.still = Some(Still { value: high, since: now });
        }
        let is_frozen = self.still.is_some_and(|still| still.since + rule.after <= now);
        self.set(SensorFaultKind::Frozen, is_frozen, now, changes);
    }

    /// Readings: so many in a minute are expected.
    fn count_readings(&mut self, now: Instant, changes: &mut Vec<FaultChange>) {
        let Some(rate) = self.settings.rate.filter(|_| !self.sends_blocks) else { return };
        let Some(minute) = &mut self.minute else {
            self.minute = Some(Minute { began: now, received: 0.0, missing: 0.0 });
            return;
        };
        minute.received += 1.0;
        let passed = now.saturating_duration_since(minute.began);
        if passed < COUNTING_TIME {
            return;
        }
        let expected = rate.hz * passed.as_secs_f64();
        let share = minute.received / expected;
        self.minute = Some(Minute { began: now, received: 0.0, missing: 0.0 });
        let is_off = (share - 1.0).abs() > rate.tolerance;
        self.put_after(SensorFaultKind::WrongRate, is_off, now, changes);
        if let Some(max) = self.settings.missing_share_max {
            self.put_after(SensorFaultKind::SamplesMissing, 1.0 - share > max, now, changes);
        }
    }

    /// Blocks: what lies between the end of one and the start of the next is missing.
    fn count_samples(
        &mut self,
        block: &WaveformBlock,
        end: EventTime,
        now: Instant,
        changes: &mut Vec<FaultChange>,
    ) {
        let Some(max) = self.settings.missing_share_max else { return };
        let period_micros = 1e6 / block.sample_rate_hz;
        let gap_micros = self
            .expected
            .replace(end)
            .map_or(0.0, |expected| block.first_sample.micros_since(expected) as f64);
        // A longer gap is an outage; it counts as one minute and not as the rest of the day.
        let gap_micros = gap_micros.min(COUNTING_TIME.as_micros() as f64);
        let began = Minute { began: now, received: 0.0, missing: 0.0 };
        let minute = self.minute.get_or_insert(began);
        minute.received += block.samples.len() as f64;
        if gap_micros > 1.5 * period_micros {
            minute.missing += (gap_micros / period_micros).round();
        }
        let share_so_far = minute.missing / (block.sample_rate_hz * COUNTING_TIME.as_secs_f64());
        let share = minute.missing / (minute.missing + minute.received);
        if now.saturating_duration_since(minute.began) >= COUNTING_TIME {
            self.minute = Some(began);
            self.put_after(SensorFaultKind::SamplesMissing, share > max, now, changes);
        } else if share_so_far > max {
            self.set(SensorFaultKind::SamplesMissing, true, now, changes);
        }
    }

    /// Raises at once, ends after the time of recovery.
    fn set(
        &mut self,
        kind: SensorFaultKind,
        is_bad: bool,
        now: Instant,
        changes: &mut Vec<FaultChange>,
    ) {
        let fault = &mut self.faults[kind.index()];
        if is_bad {
            fault.clean_since = None;
        } else if fault.is_present {
            let clean_since = *fault.clean_since.get_or_insert(now);
            if clean_since + self.settings.recovers_after > now {
                return;
            }
        }
        self.put(kind, is_bad, changes);
    }

    /// For what is judged a minute at a time: a whole clean minute is enough.
    fn put_after(
        &mut self,
        kind: SensorFaultKind,
        is_bad: bool,
        now: Instant,
        changes: &mut Vec<FaultChange>,
    ) {
        let minute_ago = now.checked_sub(COUNTING_TIME);
        let fault = &mut self.faults[kind.index()];
        if !is_bad && fault.is_present && fault.clean_since.is_none() {
            fault.clean_since = minute_ago;
        }
        self.set(kind, is_bad, now, changes);
    }

    fn put(&mut self, kind: SensorFaultKind, is_bad: bool, changes: &mut Vec<FaultChange>) {
        let fault = &mut self.faults[kind.index()];
        if std::mem::replace(&mut fault.is_present, is_bad) != is_bad {
            fault.clean_since = None;
            changes.push(FaultChange { kind, is_present: is_bad });
        }
    }
}

/// Lowest and highest sample; none if one is not finite.
fn extremes(samples: &[f32]) -> Option<(f32, f32)> {
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for &sample in samples {
        if !sample.is_finite() {
            return None;
        }
        low = low.min(sample);
        high = high.max(sample);
    }
    Some((low, high))
}

/// A flat line is no saturation: it is frozen.
fn is_saturated(samples: &[f32], low: f32, high: f32, rule: SaturationRule) -> bool {
    let at_end = match rule.full_scale {
        Some(full_scale) => {
            samples.iter().filter(|sample| f64::from(sample.abs()) >= full_scale).count()
        }
        None if low == high => 0,
        None => {
            let at = |end: f32| samples.iter().filter(|sample| **sample == end).count();
            // Each end has one sample by nature.
            let most = at(low).max(at(high));
            if most < CLIPPED_SAMPLES_MIN { 0 } else { at(low) + at(high) }
        }
    };
    at_end as f64 >= rule.share * samples.len() as f64 && at_end > 0
}
