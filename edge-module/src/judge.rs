//! `edge-module judge`: recordings through the windows, features, model, votes and limits of the machine, without the machine.
//!
//! Standard input is any number of blocks, each a line of JSON and the samples behind it, 32-bit floats, little-endian, in the sensor's
//! unit. Standard output (or a file) has a line of JSON for each window and each trip. Time is that of the recordings: a block is
//! judged when its last sample is taken, and delays run as they would between blocks. Nothing else of the module is touched: no
//! journal, no latch, no broker.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | all was judged |
//! | 65 | the input is not of this form; what was judged before it is written |
//! | 74 | the output cannot be written, or the input not be read |
//! | 78 | wrong settings, or the model bundle is refused |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use edge_core::interlock::{Action, Interlock, Moment, TripCause};
use serde::{Deserialize, Serialize};
use shared_proto::model::{EventTime, MachineId, SensorId, WaveformBlock};

use crate::analysis::{Analysis, Depth, Judged, judge_block};
use crate::cli::{EXIT_CONFIG, say};
use crate::config::{ScoredBy, Settings};
use crate::scoring::{Models, load_models};

/// Exit code for input of another form (`EX_DATAERR` of sysexits.h).
pub const EXIT_DATA: u8 = 65;
/// Exit code for input or output that fails (`EX_IOERR` of sysexits.h).
pub const EXIT_IO: u8 = 74;
/// Longest header.
const HEADER_BYTES_MAX: u64 = 4096;
/// Most samples of a block.
const SAMPLES_MAX: usize = 1 << 22;
const SAMPLE_BYTES: usize = 4;
const MICROS_PER_SECOND: f64 = 1e6;

/// Why judging ends before the input does.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// Not of the form.
    #[error("block {block}: {text}")]
    Input {
        /// Number of the block, from 1.
        block: u64,
        /// What is wrong, and what would be right.
        text: String,
    },
    /// The input cannot be read.
    #[error("block {block} cannot be read: {source}")]
    Read {
        /// Number of the block, from 1.
        block: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The output cannot be written.
    #[error("the output cannot be written: {0}")]
    Write(#[from] std::io::Error),
    /// The settings or the bundle.
    #[error("{0}")]
    Settings(String),
}

impl JudgeError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } => EXIT_DATA,
            Self::Read { .. } | Self::Write(_) => EXIT_IO,
            Self::Settings(_) => EXIT_CONFIG,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Header {
    sensor: SensorId,
    start: String,
    sample_rate_hz: f64,
    samples: usize,
    unit: Option<String>,
    /// Another word begins anew: windows, votes, delays and latches.
    #[serde(default)]
    recording: String,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum Line<'a> {
    Window {
        #[serde(skip_serializing_if = "str::is_empty")]
        recording: &'a str,
        sensor: &'a SensorId,
        start: String,
        end: String,
        features: BTreeMap<String, f64>,
        score: Option<f64>,
        abnormal: Option<bool>,
    },
    Trip(Finding<'a>),
    Alarm(Finding<'a>),
    /// A trip that a dry run or a start keeps from happening.
    Suppressed(Finding<'a>),
}

#[derive(Serialize)]
struct Finding<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    recording: &'a str,
    machine: &'a MachineId,
    rule: &'a str,
    sensor: Option<&'a SensorId>,
    /// The end of the block that decided, or the end of a delay.
    at: String,
    /// With its numbers.
    detail: String,
}

/// Judges standard input.
#[must_use]
pub fn run(settings: &Settings, output: Option<&Path>) -> ExitCode {
    let input = BufReader::new(std::io::stdin().lock());
    let result = match output {
        Some(path) => File::create(path)
            .map_err(JudgeError::Write)
            .and_then(|file| judge(settings, input, BufWriter::new(file))),
        None => judge(settings, input, BufWriter::new(std::io::stdout().lock())),
    };
    match result {
        Ok(tally) => {
            say(tally);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Judges all blocks of `input` and writes what is found as lines of JSON.
///
/// # Errors
/// Input of another form, settings that cannot be used, or an input or output that fails. What was judged before is written.
pub fn judge(
    settings: &Settings,
    mut input: impl BufRead,
    mut output: impl Write,
) -> Result<Tally, JudgeError> {
    let (models, refused) = load_models(settings);
    if let Some((name, error)) = refused.into_iter().next() {
        return Err(JudgeError::Settings(format!("model {name}: {error}")));
    }
    let mut bench: Option<Bench<'_>> = None;
    let mut tally = Tally::default();
    let mut number = 0;
    let result = loop {
        number += 1;
        let (header, block) = match next_block(settings, &mut input, number) {
            Ok(Some(next)) => next,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let is_same = bench.as_ref().is_some_and(|bench| bench.recording == header.recording);
        if !is_same {
            if let Some(bench) = &bench {
                tally.add(bench);
            }
            bench = Some(Bench::new(settings, &models, &header, &block)?);
        }
        let Some(bench) = &mut bench else { break Ok(()) };
        if let Err(error) = bench.judge(&block, number, &mut output) {
            break Err(error);
        }
    };
    output.flush()?;
    if let Some(bench) = &bench {
        tally.add(bench);
    }
    result.map(|()| tally)
}

/// What was judged, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Blocks taken.
    pub blocks: u64,
    /// Windows that they made.
    pub windows: u64,
    /// Sensors that had blocks and not one window, by recording.
    pub without_window: u64,
}

impl Tally {
    fn add(&mut self, bench: &Bench<'_>) {
        self.blocks += bench.windows.values().map(|(blocks, _)| blocks).sum::<u64>();
        self.windows += bench.windows.values().map(|(_, windows)| windows).sum::<u64>();
        self.without_window +=
            bench.windows.values().filter(|(_, windows)| *windows == 0).count() as u64;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { blocks, windows, without_window } = self;
        write!(formatter, "{blocks} blocks judged, {windows} windows")?;
        if *without_window > 0 {
            write!(
                formatter,
                "; {without_window} times a sensor had blocks and no window: they are shorter than one, or overlap, or have gaps"
            )?;
        }
        Ok(())
    }
}

/// `None` at the end of the input.
fn next_block(
    settings: &Settings,
    input: &mut impl BufRead,
    number: u64,
) -> Result<Option<(Header, WaveformBlock)>, JudgeError> {
    let wrong = |text: String| JudgeError::Input { block: number, text };
    let failed = |source| JudgeError::Read { block: number, source };
    let mut line = Vec::new();
    input.by_ref().take(HEADER_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(wrong(format!("a header is one line of at most {HEADER_BYTES_MAX} bytes")));
    }
    let header: Header = serde_json::from_slice(&line).map_err(|error| {
        wrong(format!(
            "the header is {{\"sensor\": …, \"start\": …, \"sample-rate-hz\": …, \"samples\": …}}: {error}"
        ))
    })?;
    let Some(first_sample) = EventTime::parse(&header.start) else {
        return Err(wrong(format!("start {:?} is no time of RFC 3339 with a zone", header.start)));
    };
    if !(1..=SAMPLES_MAX).contains(&header.samples) {
        return Err(wrong(format!("{} samples: 1 to {SAMPLES_MAX} are allowed", header.samples)));
    }
    if !header.sample_rate_hz.is_finite() || header.sample_rate_hz <= 0.0 {
        return Err(wrong(format!("sample-rate-hz is {}: above 0", header.sample_rate_hz)));
    }
    let mut bytes = vec![0; header.samples * SAMPLE_BYTES];
    input.read_exact(&mut bytes).map_err(|error| {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return wrong(format!("the input ends within its {} samples", header.samples));
        }
        failed(error)
    })?;
    let samples: Vec<f32> = bytes
        .as_chunks::<SAMPLE_BYTES>()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    if let Some(index) = samples.iter().position(|sample| !sample.is_finite()) {
        return Err(wrong(format!("sample {index} is not finite")));
    }
    let Some(machine_id) = machine_of(settings, &header.sensor) else {
        return Err(wrong(format!("no rule of a machine names sensor {}", header.sensor)));
    };
    let unit = header.unit.as_deref().map(Into::into);
    let (sensor_id, sample_rate_hz) = (header.sensor.clone(), header.sample_rate_hz);
    let block =
        WaveformBlock { machine_id, sensor_id, first_sample, sample_rate_hz, unit, samples };
    Ok(Some((header, block)))
}

fn machine_of(settings: &Settings, sensor: &SensorId) -> Option<MachineId> {
    let names = |machine: &&crate::config::Machine| {
        machine.model_of(sensor).is_some()
            || machine.limits.iter().any(|limit| limit.sensor == *sensor)
    };
    settings.machines.iter().find(names).map(|machine| machine.id.clone())
}

/// One recording under judgement.
struct Bench<'a> {
    recording: String,
    models: &'a Models,
    analysis: Analysis,
    interlocks: BTreeMap<MachineId, Interlock>,
    /// Blocks and windows of each sensor.
    windows: BTreeMap<SensorId, (u64, u64)>,
    /// How sensors are scored.
    scored: BTreeMap<SensorId, ScoredBy>,
    began: Instant,
    /// The moment of `began` in the recording.
    start: EventTime,
    /// The newest moment judged.
    now: EventTime,
}

impl<'a> Bench<'a> {
    fn new(
        settings: &Settings,
        models: &'a Models,
        header: &Header,
        first: &WaveformBlock,
    ) -> Result<Self, JudgeError> {
        let began = Instant::now();
        let mut interlocks = BTreeMap::new();
        for machine in &settings.machines {
            let rules = settings.interlock(machine);
            let interlock = Interlock::new(machine.id.clone(), rules, began).map_err(|faults| {
                JudgeError::Settings(format!("machine {}: {faults:?}", machine.id))
            })?;
            interlocks.insert(machine.id.clone(), interlock);
        }
        Ok(Self {
            recording: header.recording.clone(),
            models,
            analysis: Analysis::new(settings, models),
            interlocks,
            windows: BTreeMap::new(),
            scored: settings.scored_sensors(),
            began,
            start: first.first_sample,
            now: first.first_sample,
        })
    }

    fn judge(
        &mut self,
        block: &WaveformBlock,
        number: u64,
        output: &mut impl Write,
    ) -> Result<(), JudgeError> {
        let wrong = |text: String| JudgeError::Input { block: number, text };
        let seconds = block.samples.len() as f64 / block.sample_rate_hz;
        let end = block.first_sample.micros() + (seconds * MICROS_PER_SECOND).round() as i64;
        if end < self.now.micros() {
            return Err(wrong(format!(
                "it ends before {}, where a block before it has ended: sort the blocks by time, or give each recording a name",
                self.now
            )));
        }
        let model = self.scored.get(&block.sensor_id).and_then(|by| self.models.get(&by.model));
        if let Some(model) = model {
            // As `run` does it, only louder: there the limits still protect, here nothing would be judged.
            let (rate, samples) = (block.sample_rate_hz, model.metadata().input.window_samples);
            model
                .check_sensor(block.sensor_id.as_str(), rate, samples, block.unit.as_deref())
                .map_err(|error| wrong(error.to_string()))?;
        }
        self.now = EventTime::from_micros(end);
        self.wait(output)?;
        let now = self.moment(self.now);
        let Some(interlock) = self.interlocks.get_mut(&block.machine_id) else { return Ok(()) };
        let sensor = &block.sensor_id;
        let mut lines = Vec::new();
        let analysis = &mut self.analysis;
        let seen = |judged: &Judged<'_>| {
            lines.push(line(&self.recording, sensor, judged));
        };
        let (actions, judged) =
            judge_block(analysis, interlock, block, (Depth::Full, None), || now, seen);
        judged.map_err(|error| wrong(error.to_string()))?;
        let counts = self.windows.entry(sensor.clone()).or_default();
        *counts = (counts.0 + 1, counts.1 + lines.len() as u64);
        for line in lines {
            write_line(output, &line)?;
        }
        tell(&self.recording, &block.machine_id, &actions, now.time, output)
    }

    /// What falls due until now, at its time.
    fn wait(&mut self, output: &mut impl Write) -> Result<(), JudgeError> {
        let until = self.moment(self.now).instant;
        for (machine, interlock) in &mut self.interlocks {
            let mut last = None;
            while let Some(at) = interlock.poll_timeout().filter(|at| *at <= until) {
                // What is due and stays due has nothing more to say.
                if last == Some(at) {
                    break;
                }
                last = Some(at);
                let micros = i64::try_from(at.duration_since(self.began).as_micros());
                let time = self.start.micros().saturating_add(micros.unwrap_or(i64::MAX));
                let moment = Moment { instant: at, time: EventTime::from_micros(time) };
                let actions = interlock.handle_timeout(moment);
                tell(&self.recording, machine, &actions, moment.time, output)?;
            }
        }
        Ok(())
    }

    fn moment(&self, time: EventTime) -> Moment {
        let since = u64::try_from(time.micros() - self.start.micros()).unwrap_or(0);
        Moment { instant: self.began + Duration::from_micros(since), time }
    }
}

fn line<'a>(recording: &'a str, sensor: &'a SensorId, judged: &Judged<'_>) -> Line<'a> {
    let (window, score) = (judged.window, judged.score);
    Line::Window {
        recording,
        sensor,
        start: window.first_sample.to_string(),
        end: window.end().to_string(),
        features: judged.features().iter().map(|(name, value)| (name.to_string(), value)).collect(),
        score: score.map(|window| window.score),
        abnormal: score.map(|window| window.is_abnormal()),
    }
}

fn tell<'a>(
    recording: &'a str,
    machine: &'a MachineId,
    actions: &'a [Action],
    at: EventTime,
    output: &mut impl Write,
) -> Result<(), JudgeError> {
    let finding = |cause: &'a TripCause| Finding {
        recording,
        machine,
        rule: cause.rule(),
        sensor: cause.sensor(),
        at: at.to_string(),
        detail: cause.to_string(),
    };
    for action in actions {
        match action {
            Action::Trip { cause, .. } => write_line(output, &Line::Trip(finding(cause)))?,
            Action::Alarm { cause } => write_line(output, &Line::Alarm(finding(cause)))?,
            Action::TripSuppressed { cause, .. } => {
                write_line(output, &Line::Suppressed(finding(cause)))?;
            }
            // There is no machine that could stand still or not, and no person.
            Action::SendStop { .. }
            | Action::StopConfirmed { .. }
            | Action::StopNotConfirmed { .. }
            | Action::MovedWhileTripped { .. }
            | Action::SensorFault { .. }
            | Action::SensorRecovered { .. }
            | Action::AlarmCleared { .. }
            | Action::Shelved { .. }
            | Action::Unshelved { .. } => {}
        }
    }
    Ok(())
}

fn write_line(output: &mut impl Write, line: &Line<'_>) -> Result<(), JudgeError> {
    serde_json::to_writer(&mut *output, line).map_err(std::io::Error::from)?;
    Ok(output.write_all(b"\n")?)
}

#[cfg(test)]
mod tests;
