//! Report by exception: holds back a reading that says nothing new, without changing what the cloud counts.
//!
//! A value above its metric's threshold is always sent, and so is the first one after it that is not above:
//! a count of values above the threshold is the same with and without the filter, and an open excursion is
//! seen to end.
//!
//! A window's reading carries the model's answer as a feature, which may change while the value stays as it is. It has a
//! width of its own; what must reach the cloud at any score, such as a window that votes for a trip, the caller forces.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use shared_proto::model::{EventTime, MetricType, Quality, Reading, SensorId};

/// Feature with the model's answer for a window, 0 to 1.
pub const SCORE_FEATURE: &str = "score";

/// How much is held back.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadbandSettings {
    /// Largest change that is held back, in the reading's unit. 0: by `percent` alone.
    pub absolute: f64,
    /// Largest change that is held back, in percent of the last value sent. Both 0: everything is sent.
    pub percent: f64,
    /// Largest change of [`SCORE_FEATURE`] that is held back, 0 to 1. 0: every change is sent; 1: none for its size.
    pub score: f64,
    /// Something is sent at least this often in event time, above 0.
    pub heartbeat: Duration,
    /// Values above this are always sent, by metric type.
    pub always_above: BTreeMap<MetricType, f64>,
    /// Pairs of sensor and metric remembered; readings of further ones pass unfiltered.
    pub sensors_max: usize,
    /// Other widths for some sensors or metrics: the first rule that matches a reading holds.
    pub rules: Vec<DeadbandRule>,
}

/// Widths for some sensors or metrics, in place of the general ones.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadbandRule {
    /// Beginning of the sensor's name; empty: every sensor.
    pub sensor_prefix: String,
    /// Absent: every metric.
    pub metric_type: Option<MetricType>,
    /// As [`DeadbandSettings::absolute`].
    pub absolute: f64,
    /// As [`DeadbandSettings::percent`].
    pub percent: f64,
    /// As [`DeadbandSettings::score`].
    pub score: f64,
    /// As [`DeadbandSettings::heartbeat`].
    pub heartbeat: Duration,
}

/// What holds for one reading.
#[derive(Clone, Copy, Debug)]
struct Widths {
    absolute: f64,
    percent: f64,
    score: f64,
    heartbeat: Duration,
}

impl Widths {
    fn faults(self, faults: &mut Vec<DeadbandFault>) {
        for (what, width) in [("absolute", self.absolute), ("percent", self.percent)] {
            if !width.is_finite() || width < 0.0 {
                faults.push(DeadbandFault::Width { what, width });
            }
        }
        if !(0.0..=1.0).contains(&self.score) {
            faults.push(DeadbandFault::ScoreWidth { width: self.score });
        }
        if self.heartbeat.is_zero() {
            faults.push(DeadbandFault::HeartbeatZero);
        }
    }
}

/// One fault in the settings of the dead band.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeadbandFault {
    /// A width that nothing can be compared with.
    #[error("dead band {what} is {width}; it must be finite and not negative")]
    Width {
        /// Which width.
        what: &'static str,
        /// The width found.
        width: f64,
    },
    /// A width of the score that is no part of its scale.
    #[error("dead band score is {width}; it must be from 0 to 1")]
    ScoreWidth {
        /// The width found.
        width: f64,
    },
    /// A heartbeat that sends everything.
    #[error("dead band heartbeat is 0; to send everything set absolute and percent to 0")]
    HeartbeatZero,
    /// A threshold that no value can be compared with.
    #[error("dead band always-above of {metric} is {threshold}, which is not finite")]
    Threshold {
        /// The metric.
        metric: MetricType,
        /// The threshold found.
        threshold: f64,
    },
}

impl DeadbandSettings {
    /// Checks all settings.
    ///
    /// # Errors
    /// All faults at once.
    pub fn validate(&self) -> Result<(), Vec<DeadbandFault>> {
        let mut faults = Vec::new();
        self.general().faults(&mut faults);
        for rule in &self.rules {
            rule.widths().faults(&mut faults);
        }
        for (metric, threshold) in &self.always_above {
            if !threshold.is_finite() {
                let metric = metric.clone();
                faults.push(DeadbandFault::Threshold { metric, threshold: *threshold });
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    const fn general(&self) -> Widths {
        Widths {
            absolute: self.absolute,
            percent: self.percent,
            score: self.score,
            heartbeat: self.heartbeat,
        }
    }

    fn widths_of(&self, reading: &Reading) -> Widths {
        let matching = self.rules.iter().find(|rule| {
            reading.sensor_id.as_str().starts_with(&rule.sensor_prefix)
                && rule.metric_type.as_ref().is_none_or(|metric| *metric == reading.metric_type)
        });
        matching.map_or_else(|| self.general(), DeadbandRule::widths)
    }
}

impl DeadbandRule {
    const fn widths(&self) -> Widths {
        Widths {
            absolute: self.absolute,
            percent: self.percent,
            score: self.score,
            heartbeat: self.heartbeat,
        }
    }
}

/// What to do with a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Journal and send it.
    Send(Reason),
    /// Hold it back; count it.
    Filter,
}

/// Why a reading is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Both widths of the value are 0.
    Unfiltered,
    /// More sensors than are remembered.
    NotRemembered,
    /// First of its sensor and metric.
    First,
    /// Above the threshold that the cloud counts.
    AboveThreshold,
    /// First one that is not above, after one that was.
    BackBelowThreshold,
    /// The caller said that it must be sent.
    Forced,
    /// First one that need not be sent, after one that had to be.
    NoLongerForced,
    /// The producer's opinion of the value changed.
    QualityChanged,
    /// Older than the last one sent: its clock went back, or it came out of order.
    TimeWentBack,
    /// Nothing was sent for too long.
    Heartbeat,
    /// The change is wider than the dead band.
    Changed,
    /// It has a score and the last one sent had none, or the other way round.
    ScoreCameOrWent,
    /// The score's change is wider than its width.
    ScoreChanged,
}

impl Reason {
    /// The word used as a label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unfiltered => "unfiltered",
            Self::NotRemembered => "not-remembered",
            Self::First => "first",
            Self::AboveThreshold => "above-threshold",
            Self::BackBelowThreshold => "back-below-threshold",
            Self::Forced => "forced",
            Self::NoLongerForced => "no-longer-forced",
            Self::QualityChanged => "quality-changed",
            Self::TimeWentBack => "time-went-back",
            Self::Heartbeat => "heartbeat",
            Self::Changed => "changed",
            Self::ScoreCameOrWent => "score-came-or-went",
            Self::ScoreChanged => "score-changed",
        }
    }
}

/// What passed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeadbandCounts {
    /// Readings to send.
    pub sent: u64,
    /// Readings held back.
    pub filtered: u64,
    /// Of those sent: passed because too many sensors were remembered.
    pub not_remembered: u64,
}

/// Decides for each reading whether it says something new.
#[derive(Debug)]
pub struct Deadband {
    settings: DeadbandSettings,
    /// By sensor, then by metric: a sensor has a handful. Looked up only, never iterated.
    last_sent: HashMap<SensorId, Vec<LastSent>>,
    remembered: usize,
    counts: DeadbandCounts,
}

#[derive(Debug)]
struct LastSent {
    metric_type: MetricType,
    news: News,
}

/// What can be new about a reading. One is kept for each sensor and metric.
#[derive(Clone, Copy, Debug)]
struct News {
    value: f64,
    /// Not a number: there is none. A feature is finite, and an `Option` would take eight bytes more.
    score: f64,
    timestamp: EventTime,
    quality: Option<Quality>,
    is_above: bool,
    is_forced: bool,
}

impl Deadband {
    /// A filter that has seen nothing yet.
    ///
    /// # Errors
    /// All faults of the settings.
    pub fn new(settings: DeadbandSettings) -> Result<Self, Vec<DeadbandFault>> {
        settings.validate()?;
        Ok(Self {
            settings,
            last_sent: HashMap::new(),
            remembered: 0,
            counts: DeadbandCounts::default(),
        })
    }

    /// Judges a reading and remembers it if it is to be sent.
    #[must_use]
    pub fn handle(&mut self, reading: &Reading) -> Verdict {
        self.count(reading, false)
    }

    /// Remembers a reading that must be sent whatever its value and score; never filters. The next one of its sensor and metric
    /// is sent, too, so that whoever reads the topic sees the end of what forced this one.
    #[must_use]
    pub fn handle_forced(&mut self, reading: &Reading) -> Verdict {
        self.count(reading, true)
    }

    /// What passed so far.
    #[must_use]
    pub const fn counts(&self) -> DeadbandCounts {
        self.counts
    }

    /// Pairs of sensor and metric that are remembered.
    #[must_use]
    pub const fn sensors(&self) -> usize {
        self.remembered
    }

    fn count(&mut self, reading: &Reading, is_forced: bool) -> Verdict {
        let verdict = self.judge(reading, is_forced);
        match verdict {
            Verdict::Send(reason) => {
                self.counts.sent += 1;
                self.counts.not_remembered += u64::from(reason == Reason::NotRemembered);
            }
            Verdict::Filter => self.counts.filtered += 1,
        }
        verdict
    }

    fn judge(&mut self, reading: &Reading, is_forced: bool) -> Verdict {
        let widths = self.settings.widths_of(reading);
        if widths.absolute == 0.0 && widths.percent == 0.0 {
            return Verdict::Send(Reason::Unfiltered);
        }
        let threshold = self.settings.always_above.get(&reading.metric_type);
        let news = News {
            value: reading.value,
            score: reading.features.get(SCORE_FEATURE).copied().unwrap_or(f64::NAN),
            timestamp: reading.timestamp,
            quality: reading.quality,
            is_above: threshold.is_some_and(|threshold| reading.value > *threshold),
            is_forced,
        };
        let found = self.last_sent.get_mut(&reading.sensor_id).and_then(|metrics| {
            metrics.iter_mut().find(|last| last.metric_type == reading.metric_type)
        });
        let Some(last) = found else { return self.remember(reading, news) };
        let Some(reason) = news.reason(&last.news, &widths) else { return Verdict::Filter };
        last.news = news;
        Verdict::Send(reason)
    }

    fn remember(&mut self, reading: &Reading, news: News) -> Verdict {
        if self.remembered >= self.settings.sensors_max {
            return Verdict::Send(Reason::NotRemembered);
        }
        self.remembered += 1;
        let metric_type = reading.metric_type.clone();
        let metrics = self.last_sent.entry(reading.sensor_id.clone()).or_default();
        metrics.push(LastSent { metric_type, news });
        Verdict::Send(Reason::First)
    }
}

impl News {
    /// Why it is to be sent after `last`, if it is.
    fn reason(&self, last: &Self, widths: &Widths) -> Option<Reason> {
        let since_micros = self.timestamp.micros_since(last.timestamp);
        let heartbeat_micros = i64::try_from(widths.heartbeat.as_micros()).unwrap_or(i64::MAX);
        let width = widths.absolute.max(widths.percent / 100.0 * last.value.abs());
        let is_within = (self.value - last.value).abs() <= width;
        if self.is_above {
            Some(Reason::AboveThreshold)
        } else if last.is_above {
            Some(Reason::BackBelowThreshold)
        } else if self.is_forced {
            Some(Reason::Forced)
        } else if last.is_forced {
            Some(Reason::NoLongerForced)
        } else if self.quality != last.quality {
            Some(Reason::QualityChanged)
        } else if since_micros < 0 {
            Some(Reason::TimeWentBack)
        } else if since_micros >= heartbeat_micros {
            Some(Reason::Heartbeat)
        } else if !is_within {
            Some(Reason::Changed)
        } else if self.score.is_nan() != last.score.is_nan() {
            Some(Reason::ScoreCameOrWent)
        } else if (self.score - last.score).abs() > widths.score {
            // Without both scores the difference is not a number, which is above nothing.
            Some(Reason::ScoreChanged)
        } else {
            None
        }
    }
}
