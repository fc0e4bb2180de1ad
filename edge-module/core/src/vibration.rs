//! Blocks of raw samples to fixed windows, one [`WindowAssembler`] per sensor.
//!
//! A window holds consecutive samples of one uninterrupted run at one rate. A run ends where a block starts off its
//! expected time by more than the tolerance (a gap, or an overlap) or where the rate changes: what had been
//! collected and is in no window yet is discarded and counted, and the next block starts a new run. Each block is
//! compared with the end of the block before it, not with the start of the run, so a sensor clock that drifts by
//! some parts per million never looks like a gap.
//!
//! Memory: at most one window of samples, and the start times of the blocks they came from.

use std::collections::VecDeque;

use shared_proto::model::{EventTime, WaveformBlock};

/// How a sensor's samples are cut into windows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowShape {
    /// Samples in a window.
    pub window_samples: usize,
    /// Samples from the start of a window to the start of the next: less than a window overlaps, more leaves out.
    pub hop_samples: usize,
    /// How far, in sample periods, a block may start off its expected time and still continue the run.
    pub gap_tolerance_samples: f64,
}

/// Why a window shape cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WindowShapeError {
    /// A window without samples.
    #[error("window-samples is 0, a window needs at least one sample")]
    WindowEmpty,
    /// Windows that never move on.
    #[error("hop-samples is 0, windows would never move on")]
    HopZero,
    /// A tolerance that is no distance.
    #[error("gap-tolerance-samples is {0}, it must be finite and not negative")]
    Tolerance(f64),
}

impl WindowShape {
    /// Checks the shape.
    ///
    /// # Errors
    /// An empty window, a hop of 0, or a tolerance that is negative or not finite.
    pub fn validate(&self) -> Result<(), WindowShapeError> {
        if self.window_samples == 0 {
            return Err(WindowShapeError::WindowEmpty);
        }
        if self.hop_samples == 0 {
            return Err(WindowShapeError::HopZero);
        }
        if !self.gap_tolerance_samples.is_finite() || self.gap_tolerance_samples < 0.0 {
            return Err(WindowShapeError::Tolerance(self.gap_tolerance_samples));
        }
        Ok(())
    }
}

/// Consecutive samples of one sensor, ready for features.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// When the first sample was taken: the start of the block it came in, plus its place in that block.
    pub first_sample: EventTime,
    /// Samples per second.
    pub sample_rate_hz: f64,
    /// As many as the shape says, in the sensor's unit.
    pub samples: Vec<f32>,
}

impl Window {
    /// When the sample after the last one would be taken.
    #[must_use]
    pub fn end(&self) -> EventTime {
        after_samples(self.first_sample, self.samples.len(), self.sample_rate_hz)
    }
}

/// What did not become part of a window, and why. Counts since the assembler was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Samples lost because a block came later than expected.
    pub gap_samples: u64,
    /// Samples lost because a block came earlier than expected, those of exact repeats among them.
    pub overlap_samples: u64,
    /// Samples lost because the rate changed.
    pub rate_change_samples: u64,
    /// Runs that ended because of a gap, an overlap or a rate change.
    pub runs_ended: u64,
}

impl Discarded {
    /// All samples lost.
    #[must_use]
    pub const fn samples(&self) -> u64 {
        self.gap_samples + self.overlap_samples + self.rate_change_samples
    }
}

/// Start of a block, by the place of its first sample in the run.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    run_index: u64,
    first_sample: EventTime,
}

/// Identifies the block before, to notice its repeat.
#[derive(Clone, Copy, Debug, PartialEq)]
struct LastBlock {
    first_sample: EventTime,
    sample_rate_hz: f64,
    sample_count: usize,
    checksum: u64,
}

/// How a block relates to the run so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Continuity {
    First,
    Continues,
    Repeat,
    Gap,
    Overlap,
    RateChange,
}

/// Cuts one sensor's blocks into windows; see the module's description.
#[derive(Clone, Debug)]
pub struct WindowAssembler {
    shape: WindowShape,
    sample_rate_hz: f64,
    last_block: Option<LastBlock>,
    /// Collected samples of the window to come; shorter than a window between calls.
    pending: Vec<f32>,
    /// Place of `pending[0]` in the run.
    pending_index: u64,
    /// The first samples of `pending` that were part of a window already (hop below window).
    pending_used: usize,
    /// Samples of the run to leave out before the next window (hop above window).
    skip: usize,
    anchors: VecDeque<Anchor>,
    discarded: Discarded,
}

impl WindowAssembler {
    /// An assembler that has seen nothing.
    ///
    /// # Errors
    /// A shape that fails [`WindowShape::validate`].
    pub fn new(shape: WindowShape) -> Result<Self, WindowShapeError> {
        shape.validate()?;
        Ok(Self {
            shape,
            sample_rate_hz: 0.0,
            last_block: None,
            pending: Vec::with_capacity(shape.window_samples),
            pending_index: 0,
            pending_used: 0,
            skip: 0,
            anchors: VecDeque::new(),
            discarded: Discarded::default(),
        })
    }

    /// Takes a block and gives the windows it completes, oldest first, made one by one as they are asked for: a
    /// block of any size never has more than one window in memory. Dropping the iterator early takes in the rest
    /// of the block and loses its windows.
    ///
    /// A block that is bit for bit the one before it, at the same time, is a repeat: counted and ignored.
    pub fn handle_block<'a>(&'a mut self, block: &'a WaveformBlock) -> Windows<'a> {
        let this_block = LastBlock {
            first_sample: block.first_sample,
            sample_rate_hz: block.sample_rate_hz,
            sample_count: block.samples.len(),
            checksum: checksum(&block.samples),
        };
        let samples: &[f32] = match self.continuity(&this_block) {
            Continuity::Repeat => {
                self.discarded.overlap_samples += block.samples.len() as u64;
                &[]
            }
            Continuity::First | Continuity::Continues => &block.samples,
            Continuity::Gap => {
                self.discarded.gap_samples += self.end_run();
                &block.samples
            }
            Continuity::Overlap => {
                self.discarded.overlap_samples += self.end_run();
                &block.samples
            }
            Continuity::RateChange => {
                self.discarded.rate_change_samples += self.end_run();
                &block.samples
            }
        };
        if !samples.is_empty() {
            self.sample_rate_hz = block.sample_rate_hz;
            self.last_block = Some(this_block);
            self.anchors.push_back(Anchor {
                run_index: self.next_run_index(),
                first_sample: block.first_sample,
            });
        }
        Windows { assembler: self, samples }
    }

    /// What was discarded so far.
    #[must_use]
    pub const fn discarded(&self) -> Discarded {
        self.discarded
    }

    /// The shape it was made with.
    #[must_use]
    pub const fn shape(&self) -> WindowShape {
        self.shape
    }

    /// Samples collected towards the next window; less than a window.
    #[must_use]
    pub fn pending_samples(&self) -> usize {
        self.pending.len()
    }

    fn continuity(&self, block: &LastBlock) -> Continuity {
        let Some(last) = &self.last_block else { return Continuity::First };
        if block == last {
            return Continuity::Repeat;
        }
        // Any difference counts: a window's frequencies are meaningless if its rate is not exactly known.
        if block.sample_rate_hz != last.sample_rate_hz {
            return Continuity::RateChange;
        }
        let expected = after_samples(last.first_sample, last.sample_count, last.sample_rate_hz);
        let off_micros = block.first_sample.micros_since(expected);
        // One microsecond for the rounding of both times.
        let tolerance_micros = self.shape.gap_tolerance_samples * 1e6 / last.sample_rate_hz + 1.0;
        if off_micros.unsigned_abs() as f64 <= tolerance_micros {
            Continuity::Continues
        } else if off_micros > 0 {
            Continuity::Gap
        } else {
            Continuity::Overlap
        }
    }

    /// Forgets the run; returns how many of its samples were in no window and not left out by the hop.
    fn end_run(&mut self) -> u64 {
        let lost = self.pending.len() - self.pending_used;
        self.pending.clear();
        self.pending_index = 0;
        self.pending_used = 0;
        self.skip = 0;
        self.anchors.clear();
        self.discarded.runs_ended += 1;
        lost as u64
    }

    /// Place in the run of the next sample taken in. `pending` is empty while samples are skipped, and
    /// `pending_index` then is the place of the next sample.
    fn next_run_index(&self) -> u64 {
        self.pending_index + self.pending.len() as u64
    }

    /// Takes samples in until a window is complete or none are left.
    fn take_in(&mut self, samples: &mut &[f32]) -> Option<Window> {
        let skipped = self.skip.min(samples.len());
        *samples = &samples[skipped..];
        self.skip -= skipped;
        self.pending_index += skipped as u64;
        let taken = (self.shape.window_samples - self.pending.len()).min(samples.len());
        let (now, later) = samples.split_at(taken);
        self.pending.extend_from_slice(now);
        *samples = later;
        self.drop_old_anchors();
        if self.pending.len() < self.shape.window_samples {
            return None;
        }
        let window = Window {
            first_sample: self.pending_time(),
            sample_rate_hz: self.sample_rate_hz,
            samples: self.pending.clone(),
        };
        self.advance();
        Some(window)
    }

    /// Moves on by one hop after a complete window.
    fn advance(&mut self) {
        let kept = self.pending.len().saturating_sub(self.shape.hop_samples);
        let removed = self.pending.len() - kept;
        self.pending.drain(..removed);
        self.pending_used = kept;
        self.pending_index += removed as u64;
        self.skip = self.shape.hop_samples - removed;
    }

    /// Keeps the anchor at or before the first pending sample and those after it.
    fn drop_old_anchors(&mut self) {
        while self.anchors.get(1).is_some_and(|second| second.run_index <= self.pending_index) {
            self.anchors.pop_front();
        }
    }

    fn pending_time(&self) -> EventTime {
        let anchor = self.anchors.front().expect("a complete window came from at least one block");
        let offset = self.pending_index - anchor.run_index;
        let offset = usize::try_from(offset).expect("a window starts within a block in memory");
        after_samples(anchor.first_sample, offset, self.sample_rate_hz)
    }
}

/// The windows that a block completes; made by [`WindowAssembler::handle_block`].
#[must_use = "windows that are not taken are lost"]
#[derive(Debug)]
pub struct Windows<'a> {
    assembler: &'a mut WindowAssembler,
    samples: &'a [f32],
}

impl Iterator for Windows<'_> {
    type Item = Window;

    fn next(&mut self) -> Option<Window> {
        self.assembler.take_in(&mut self.samples)
    }
}

impl std::iter::FusedIterator for Windows<'_> {}

impl Drop for Windows<'_> {
    fn drop(&mut self) {
        while self.next().is_some() {}
    }
}

/// The time so many sample periods after `start`, rounded to a microsecond.
fn after_samples(start: EventTime, samples: usize, sample_rate_hz: f64) -> EventTime {
    // A cast from float saturates: a nonsense rate cannot overflow.
    start.saturating_add_micros((samples as f64 / sample_rate_hz * 1e6).round() as i64)
}

/// Tells a repeat from other samples of the same time and length; not meant against forgery.
fn checksum(samples: &[f32]) -> u64 {
    samples.iter().fold(0, |sum: u64, sample| {
        (sum.rotate_left(5) ^ u64::from(sample.to_bits())).wrapping_mul(0x517c_c1b7_2722_0a95)
    })
}

#[cfg(test)]
mod tests;
