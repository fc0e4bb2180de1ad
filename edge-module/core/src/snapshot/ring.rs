//! Runs of samples, and the ring that keeps a sensor's last ones.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use shared_proto::codec::counts;
use shared_proto::model::{EventTime, MachineId, SensorId, WaveformBlock, WaveformSnapshot};

/// What a run costs beside its samples.
const RUN_BYTES: usize = 192;
/// How far, in sample periods, a run may start off the end of the one before and still continue it.
const GAP_TOLERANCE_SAMPLES: f64 = 2.0;

/// Consecutive samples of one sensor.
#[derive(Clone, Debug)]
pub(super) struct Run {
    machine_id: MachineId,
    sensor_id: SensorId,
    unit: Option<Arc<str>>,
    sample_rate_hz: f64,
    first_sample: EventTime,
    samples: Samples,
}

#[derive(Clone, Debug)]
enum Samples {
    Counts { scale: f64, counts: Vec<i16> },
    Floats(Vec<f32>),
}

impl Samples {
    fn len(&self) -> usize {
        match self {
            Self::Counts { counts, .. } => counts.len(),
            Self::Floats(values) => values.len(),
        }
    }

    const fn sample_bytes(&self) -> usize {
        match self {
            Self::Counts { .. } => size_of::<i16>(),
            Self::Floats(_) => size_of::<f32>(),
        }
    }

    fn range(&self, from: usize, to: usize) -> Self {
        match self {
            Self::Counts { scale, counts } => {
                Self::Counts { scale: *scale, counts: counts[from..to].to_vec() }
            }
            Self::Floats(values) => Self::Floats(values[from..to].to_vec()),
        }
    }

    fn is_alike(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Counts { scale, .. }, Self::Counts { scale: other, .. }) => scale == other,
            (Self::Floats(_), Self::Floats(_)) => true,
            (Self::Counts { .. }, Self::Floats(_)) | (Self::Floats(_), Self::Counts { .. }) => {
                false
            }
        }
    }
}

impl Run {
    /// The samples of a block: as counts if each is a count times `scale`.
    pub(super) fn new(machine_id: &MachineId, block: &WaveformBlock, scale: f64) -> Self {
        let samples = counts(&block.samples, scale).map_or_else(
            || Samples::Floats(block.samples.clone()),
            |counts| Samples::Counts { scale, counts },
        );
        Self {
            machine_id: machine_id.clone(),
            sensor_id: block.sensor_id.clone(),
            unit: block.unit.clone(),
            sample_rate_hz: block.sample_rate_hz,
            first_sample: block.first_sample,
            samples,
        }
    }

    /// Bytes of the samples as they are kept and written.
    pub(super) fn bytes(&self) -> usize {
        self.samples.len() * self.samples.sample_bytes()
    }

    /// When the sample after the last one would be taken.
    pub(super) fn end(&self) -> EventTime {
        self.time_of(self.samples.len())
    }

    /// Event time that the samples cover, in microseconds.
    pub(super) fn micros(&self) -> i64 {
        self.end().micros_since(self.first_sample)
    }

    /// Samples taken at `start` or later.
    pub(super) fn since(&self, start: EventTime) -> Self {
        self.range(self.index_at(start), self.samples.len())
    }

    /// Samples taken before `until`.
    pub(super) fn before(&self, until: EventTime) -> Self {
        self.range(0, self.index_at(until))
    }

    /// The first samples that fit, and how many do not.
    pub(super) fn limited_to(self, bytes: usize) -> (Self, u64) {
        let fitting = bytes / self.samples.sample_bytes();
        let length = self.samples.len();
        if length <= fitting {
            return (self, 0);
        }
        (self.range(0, fitting), (length - fitting) as u64)
    }

    /// The first `length` samples, and the rest if there is one.
    pub(super) fn split_at(self, length: usize) -> (Self, Option<Self>) {
        if self.samples.len() <= length {
            return (self, None);
        }
        (self.range(0, length), Some(self.range(length, self.samples.len())))
    }

    /// How many samples more go into a piece of so many bytes.
    pub(super) fn room(&self, piece_bytes_max: usize) -> usize {
        self.room_of_empty(piece_bytes_max).saturating_sub(self.samples.len())
    }

    /// How many samples of this kind go into a piece of so many bytes; at least one.
    pub(super) fn room_of_empty(&self, piece_bytes_max: usize) -> usize {
        (piece_bytes_max / self.samples.sample_bytes()).max(1)
    }

    /// Whether the other run goes on where this one ends, in the same form.
    pub(super) fn is_followed_by(&self, next: &Self) -> bool {
        let off_micros = next.first_sample.micros_since(self.end());
        let tolerance_micros = GAP_TOLERANCE_SAMPLES * 1e6 / self.sample_rate_hz + 1.0;
        self.sample_rate_hz == next.sample_rate_hz
            && self.unit == next.unit
            && self.samples.is_alike(&next.samples)
            && off_micros.unsigned_abs() as f64 <= tolerance_micros
    }

    /// Adds the samples of a run that follows this one.
    pub(super) fn append(&mut self, next: &Self) {
        match (&mut self.samples, &next.samples) {
            (Samples::Counts { counts, .. }, Samples::Counts { counts: more, .. }) => {
                counts.extend_from_slice(more);
            }
            (Samples::Floats(values), Samples::Floats(more)) => values.extend_from_slice(more),
            // Refused by `is_followed_by`.
            (Samples::Counts { .. }, Samples::Floats(_))
            | (Samples::Floats(_), Samples::Counts { .. }) => {}
        }
    }

    pub(super) fn into_piece(self, trip_id: &str, piece: u32) -> WaveformSnapshot {
        let (scale, samples) = match self.samples {
            Samples::Counts { scale, counts } => {
                let factor = scale as f32;
                (Some(scale), counts.into_iter().map(|count| f32::from(count) * factor).collect())
            }
            Samples::Floats(values) => (None, values),
        };
        WaveformSnapshot {
            block: WaveformBlock {
                machine_id: self.machine_id,
                sensor_id: self.sensor_id,
                first_sample: self.first_sample,
                sample_rate_hz: self.sample_rate_hz,
                unit: self.unit,
                samples,
            },
            scale,
            trip_id: trip_id.to_owned(),
            piece,
            identity: None,
        }
    }

    fn range(&self, from: usize, to: usize) -> Self {
        Self {
            machine_id: self.machine_id.clone(),
            sensor_id: self.sensor_id.clone(),
            unit: self.unit.clone(),
            sample_rate_hz: self.sample_rate_hz,
            first_sample: self.time_of(from),
            samples: self.samples.range(from, to.max(from)),
        }
    }

    fn time_of(&self, index: usize) -> EventTime {
        // A cast from float saturates: a nonsense rate cannot overflow.
        let micros = (index as f64 / self.sample_rate_hz * 1e6).round() as i64;
        self.first_sample.saturating_add_micros(micros)
    }

    /// Index of the first sample at `time` or later, at most the length.
    fn index_at(&self, time: EventTime) -> usize {
        let micros = time.micros_since(self.first_sample);
        // Half a microsecond for the rounding of times.
        let index = ((micros as f64 - 0.5) * self.sample_rate_hz / 1e6).ceil().max(0.0);
        (index as usize).min(self.samples.len())
    }
}

/// The last runs of one sensor, oldest first.
#[derive(Debug, Default)]
pub(super) struct Ring {
    runs: VecDeque<Run>,
    bytes: usize,
}

impl Ring {
    /// Bytes held, with what the runs cost beside their samples.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the sample after the newest would be taken.
    pub(super) fn end(&self) -> Option<EventTime> {
        self.runs.back().map(Run::end)
    }

    /// Samples of the last `before` of event time.
    pub(super) fn last(&self, before: Duration) -> impl Iterator<Item = Run> {
        let start = self.end().map(|end| end.saturating_sub_micros(micros(before)));
        self.since(start.unwrap_or(EventTime::from_micros(i64::MAX)))
    }

    /// Samples taken at `start` or later.
    pub(super) fn since(&self, start: EventTime) -> impl Iterator<Item = Run> {
        self.runs.iter().map(move |run| run.since(start)).filter(|run| run.bytes() > 0)
    }

    /// Whether the broker delivered this block before.
    pub(super) fn is_repeat(&self, run: &Run) -> bool {
        self.end().is_some_and(|end| run.first_sample < end)
            && self.runs.iter().rev().any(|kept| {
                kept.first_sample == run.first_sample
                    && kept.samples.len() == run.samples.len()
                    && kept.sample_rate_hz == run.sample_rate_hz
            })
    }

    /// Keeps a run and drops what is too old or too much. Says whether it could be kept.
    pub(super) fn push(&mut self, run: Run, before: Duration, bytes_max: usize) -> bool {
        let cost = run.bytes() + RUN_BYTES;
        if cost > bytes_max {
            return false;
        }
        if self.runs.front().is_some_and(|oldest| run.first_sample < oldest.first_sample) {
            // The sensor's clock was set back: what is here is of another time.
            self.runs.clear();
            self.bytes = 0;
        }
        self.bytes += cost;
        self.runs.push_back(run);
        self.shrink(before, bytes_max);
        true
    }

    /// Drops what is too old or too much, oldest first.
    pub(super) fn shrink(&mut self, before: Duration, bytes_max: usize) {
        let Some(end) = self.end() else { return };
        let start = end.saturating_sub_micros(micros(before));
        while let Some(oldest) = self.runs.front()
            && (self.bytes > bytes_max || oldest.end() <= start)
        {
            self.bytes -= oldest.bytes() + RUN_BYTES;
            self.runs.pop_front();
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
