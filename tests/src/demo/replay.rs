//! Recordings instead of the signal model: `--replay DIR`, where `DIR` holds `adi_motor` or is it.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::machine::Recorded;
use crate::recordings::{MOTOR_SAMPLE_RATE_HZ, MotorRecording, motor_recordings};

/// Speed of the recordings that are played.
const RPM: u32 = 1_800;
/// Z, the axis that the model was trained on.
const AXIS: usize = 2;
/// Volts; healthy recordings at this speed have 8 mV, the heavily damaged race has 37 to 58 mV.
const MOTOR_RMS_LIMIT: f64 = 0.3;

/// What is played, and which limit suits it.
pub struct Replay {
    /// Healthy recordings, one for each machine (repeated if there are fewer).
    healthy: Vec<Vec<f32>>,
    /// The fault that the first machine gets.
    faulty: Vec<f32>,
    /// RMS that stops a machine whatever the model says, in the sensor's unit.
    pub rms_limit: f64,
    /// For the story.
    pub description: String,
}

impl Replay {
    /// Reads the recordings below `dir`.
    ///
    /// # Errors
    /// They are missing or damaged.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let root = root_of(dir)?;
        let recordings = motor_recordings(&root)?;
        let at_speed = |recording: &&MotorRecording| recording.rpm == RPM;
        let healthy: Vec<Vec<f32>> = recordings
            .iter()
            .filter(at_speed)
            .filter(|recording| !recording.abnormal)
            .map(|recording| recording.volts(AXIS))
            .collect();
        ensure!(!healthy.is_empty(), "no healthy recording at {RPM} rpm in {}", root.display());
        let faulty = recordings
            .iter()
            .filter(at_speed)
            .find(|recording| recording.kind == "inner_race_heavy")
            .with_context(|| format!("no damaged bearing at {RPM} rpm in {}", root.display()))?;
        Ok(Self {
            healthy,
            faulty: faulty.volts(AXIS),
            rms_limit: MOTOR_RMS_LIMIT,
            description: format!(
                "vibration is played from recordings of a motor test rig at {RPM} rpm ({})",
                root.display()
            ),
        })
    }

    /// What the machine at `place` plays.
    #[must_use]
    pub fn of_machine(&self, place: usize) -> Recorded {
        Recorded {
            healthy: self.healthy[place % self.healthy.len()].clone(),
            faulty: self.faulty.clone(),
            sample_rate_hz: MOTOR_SAMPLE_RATE_HZ,
            unit: "V",
            position: 0,
        }
    }
}

/// The folder that holds `adi_motor`.
fn root_of(dir: &Path) -> anyhow::Result<PathBuf> {
    let inside = dir.join("adi_motor").exists().then(|| dir.to_owned());
    let beside = || dir.ends_with("adi_motor").then(|| dir.parent().map(Path::to_owned)).flatten();
    inside.or_else(beside).with_context(|| {
        format!("{} holds no adi_motor: name the recordings' folder", dir.display())
    })
}
