//! Aggregation on request: the readings of an interval become one, without changing what the cloud counts.
//!
//! Intervals are tumbling, of event time, aligned to 1970 with `rem_euclid`. An aggregate carries the event time of the
//! newest reading in it, so that it is never ahead of what was measured and never behind a reading that was sent before it;
//! its value is the statistic of the rule, its features hold the statistics asked for and `count`.
//!
//! A value above its metric's threshold is never folded: it is passed on as it is, and so is the first one after it that is
//! not above. What is folded is not above the threshold, and an aggregate never is either: where the root mean square of
//! negative numbers would be, the maximum takes its place. A count of values above the threshold is the same with and
//! without aggregation.
//!
//! Readings whose quality is not good are passed on as they are, and so are those of sensors beyond the limit.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shared_proto::model::{MetricType, Quality, Reading, SensorId};

/// Name of the feature that tells how many readings were folded.
pub const COUNT_FEATURE: &str = "count";

/// A number that stands for many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Statistic {
    /// The lowest.
    Min,
    /// The highest.
    Max,
    /// The arithmetic mean.
    Mean,
    /// The root mean square.
    Rms,
}

impl Statistic {
    /// The word used in settings and as the feature's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Min => "min",
            Self::Max => "max",
            Self::Mean => "mean",
            Self::Rms => "rms",
        }
    }
}

/// Which readings are folded, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AggregationRule {
    /// Beginning of the sensor's name; empty: every sensor.
    pub sensor_prefix: String,
    /// Absent: every metric.
    pub metric_type: Option<MetricType>,
    /// Length of an interval of event time, above 0.
    pub interval: Duration,
    /// What becomes the aggregate's value.
    pub value: Statistic,
    /// What the aggregate's features hold, beside the count.
    pub statistics: Vec<Statistic>,
}

/// All rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AggregationSettings {
    /// The first that matches a reading holds.
    pub rules: Vec<AggregationRule>,
    /// Values above this are never folded, by metric type.
    pub always_above: BTreeMap<MetricType, f64>,
    /// Pairs of sensor and metric folded at the same time; readings of further ones pass as they are.
    pub sensors_max: usize,
}

/// One fault in the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AggregationFault {
    /// An interval of less than a microsecond, or one that never ends.
    #[error("aggregation rule {rule}: interval {interval:?} is not within 1 ms to 1 day")]
    Interval {
        /// Place of the rule, from 0.
        rule: usize,
        /// The interval found.
        interval: Duration,
    },
}

const INTERVAL_MIN: Duration = Duration::from_millis(1);
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);

impl AggregationSettings {
    /// Checks all settings.
    ///
    /// # Errors
    /// All faults at once.
    pub fn validate(&self) -> Result<(), Vec<AggregationFault>> {
        let faults: Vec<AggregationFault> = self
            .rules
            .iter()
            .enumerate()
            .filter(|(_, rule)| !(INTERVAL_MIN..=INTERVAL_MAX).contains(&rule.interval))
            .map(|(index, rule)| AggregationFault::Interval {
                rule: index,
                interval: rule.interval,
            })
            .collect();
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn rule_of(&self, reading: &Reading) -> Option<&AggregationRule> {
        self.rules.iter().find(|rule| {
            reading.sensor_id.as_str().starts_with(&rule.sensor_prefix)
                && rule.metric_type.as_ref().is_none_or(|metric| *metric == reading.metric_type)
        })
    }
}

/// What stands for the readings of one interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregate {
    /// To be sent.
    pub reading: Reading,
    /// Readings that it stands for, at least 1.
    pub readings: u64,
    /// Their bytes, as the caller counted them.
    pub bytes: u64,
}

/// What to do with a reading.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// An interval that the reading closed: to be sent first.
    pub closed: Option<Aggregate>,
    /// Whether the reading is to be sent as it is; otherwise it was folded.
    pub is_passed: bool,
}

/// Folds readings.
#[derive(Debug)]
pub struct Aggregator {
    settings: AggregationSettings,
    /// By sensor, then by metric: a sensor has a handful.
    sensors: BTreeMap<SensorId, Vec<Folding>>,
    folding: usize,
    /// No interval is due before this.
    check_at: Option<Instant>,
}

#[derive(Debug)]
struct Folding {
    metric_type: MetricType,
    was_above: bool,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    interval: i64,
    deadline: Instant,
    newest: Reading,
    value: Statistic,
    statistics: Vec<Statistic>,
    readings: u64,
    bytes: u64,
    min: f64,
    max: f64,
    /// Mean and mean of squares so far, each within the range of what it is made of.
    mean: f64,
    mean_square: f64,
}

impl Aggregator {
    /// An aggregator that has seen nothing.
    ///
    /// # Errors
    /// All faults of the settings.
    pub fn new(settings: AggregationSettings) -> Result<Self, Vec<AggregationFault>> {
        settings.validate()?;
        Ok(Self { settings, sensors: BTreeMap::new(), folding: 0, check_at: None })
    }

    /// Takes a reading whose record would have so many `bytes`.
    #[must_use = "a closed interval must be sent"]
    pub fn handle_reading(&mut self, reading: &Reading, bytes: u64, now: Instant) -> Outcome {
        let passed = Outcome { closed: None, is_passed: true };
        let Some(rule) = self.settings.rule_of(reading) else { return passed };
        let threshold = self.settings.always_above.get(&reading.metric_type);
        let is_above = threshold.is_some_and(|threshold| reading.value > *threshold);
        let known = self.sensors.get_mut(&reading.sensor_id).and_then(|metrics| {
            metrics.iter_mut().find(|folding| folding.metric_type == reading.metric_type)
        });
        let folding = match known {
            Some(folding) => folding,
            None if self.folding >= self.settings.sensors_max => return passed,
            None => {
                self.folding += 1;
                let metrics = self.sensors.entry(reading.sensor_id.clone()).or_default();
                let metric_type = reading.metric_type.clone();
                metrics.push_mut(Folding { metric_type, was_above: false, open: None })
            }
        };
        let was_above = std::mem::replace(&mut folding.was_above, is_above);
        let is_good = matches!(reading.quality, None | Some(Quality::Good));
        let interval_micros = micros(rule.interval);
        let interval = reading.timestamp.micros().div_euclid(interval_micros);
        let is_passed = is_above || was_above || !is_good;
        // What is passed on as it is closes what came before it: order is kept.
        let is_other = |open: &mut Open| is_passed || open.interval != interval;
        let closed = folding.open.take_if(is_other).map(|open| open.finish(threshold.copied()));
        if is_passed {
            return Outcome { closed, is_passed };
        }
        let open = folding.open.get_or_insert_with(|| {
            // The interval may have begun just now; whoever falls silent is waited for that long and no longer.
            let deadline = now + rule.interval;
            self.check_at = Some(self.check_at.map_or(deadline, |at| at.min(deadline)));
            Open::new(interval, deadline, reading, rule)
        });
        open.fold(reading, bytes);
        Outcome { closed, is_passed }
    }

    /// Closes intervals whose time has passed without a reading of the next one.
    #[must_use = "closed intervals must be sent"]
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Aggregate> {
        if self.check_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.close(|open| open.deadline <= now)
    }

    /// Closes all intervals, at the end of the program or before other settings.
    #[must_use = "closed intervals must be sent"]
    pub fn close_all(&mut self) -> Vec<Aggregate> {
        self.close(|_| true)
    }

    /// When to call [`Self::handle_timeout`] next. May be early, is never late.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.check_at
    }

    /// Pairs of sensor and metric that are folded.
    #[must_use]
    pub const fn sensors(&self) -> usize {
        self.folding
    }

    fn close(&mut self, is_due: impl Fn(&Open) -> bool) -> Vec<Aggregate> {
        let mut closed = Vec::new();
        self.check_at = None;
        for folding in self.sensors.values_mut().flatten() {
            let threshold = self.settings.always_above.get(&folding.metric_type).copied();
            if let Some(open) = folding.open.take_if(|open| is_due(open)) {
                closed.push(open.finish(threshold));
            } else if let Some(open) = &folding.open {
                let deadline = open.deadline;
                self.check_at = Some(self.check_at.map_or(deadline, |at| at.min(deadline)));
            }
        }
        closed
    }
}

impl Open {
    fn new(interval: i64, deadline: Instant, first: &Reading, rule: &AggregationRule) -> Self {
        Self {
            interval,
            deadline,
            newest: first.clone(),
            value: rule.value,
            statistics: rule.statistics.clone(),
            readings: 0,
            bytes: 0,
            min: first.value,
            max: first.value,
            mean: 0.0,
            mean_square: 0.0,
        }
    }

    fn fold(&mut self, reading: &Reading, bytes: u64) {
        self.readings += 1;
        self.bytes += bytes;
        self.min = self.min.min(reading.value);
        self.max = self.max.max(reading.value);
        // Running means do not overflow where sums would.
        let weight = 1.0 / self.readings as f64;
        self.mean = self.mean * (1.0 - weight) + reading.value * weight;
        let square = reading.value * reading.value;
        self.mean_square = self.mean_square * (1.0 - weight) + square * weight;
        if reading.timestamp >= self.newest.timestamp {
            self.newest.clone_from(reading);
        }
    }

    fn statistic(&self, statistic: Statistic) -> f64 {
        match statistic {
            Statistic::Min => self.min,
            Statistic::Max => self.max,
            // Within what it is made of, whatever the rounding.
            Statistic::Mean => self.mean.clamp(self.min, self.max),
            Statistic::Rms => self.mean_square.sqrt().min(self.min.abs().max(self.max.abs())),
        }
    }

    fn finish(self, threshold: Option<f64>) -> Aggregate {
        let value = self.statistic(self.value);
        let is_above = threshold.is_some_and(|threshold| value > threshold);
        let mut features: BTreeMap<String, f64> = self
            .statistics
            .iter()
            .map(|statistic| (statistic.as_str().to_owned(), self.statistic(*statistic)))
            .collect();
        features.insert(COUNT_FEATURE.to_owned(), self.readings as f64);
        let (readings, bytes, max) = (self.readings, self.bytes, self.max);
        let mut reading = self.newest;
        reading.value = if is_above { max } else { value };
        reading.features = features;
        Aggregate { reading, readings, bytes }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
