//! `[[machines]]` as the core wants it.

use std::time::Duration;

use edge_core::condition::{
    ConditionSettings, FrozenRule, MeasuringRange, RateRule, SaturationRule,
};
use edge_core::interlock::{
    ConfirmationSettings, DuringStartup, InterlockSettings, LimitRule, Quantity, RuleAction,
    ScoreVote, SensorRule, Silence,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use shared_proto::model::{MachineId, SensorId};

use super::{Actuator, Bearing, Condition, Limit, ScoredSensor, Settings};

/// Silence after which a sensor is reported when its machine has no limit of its own.
const SILENCE_REPORTED_AFTER: Duration = Duration::from_secs(60);
/// Bytes of the SHA-256 that name a version of a machine's rules.
const RULE_VERSION_BYTES: usize = 6;

/// One entry of `[[machines]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machine {
    /// Its name.
    pub id: MachineId,
    /// Vibration sensors that a model scores.
    #[serde(default)]
    pub scored_sensors: Vec<ScoredSensor>,
    /// Votes that trip.
    #[serde(default = "default_votes")]
    pub votes: u32,
    /// Windows that vote.
    #[serde(default = "default_of")]
    pub of: u32,
    /// Instead of the bundle's threshold.
    #[serde(default)]
    pub score_threshold: Option<f64>,
    /// What enough votes do.
    #[serde(default)]
    pub score_action: RuleAction,
    /// Whether votes act while the machine starts.
    #[serde(default)]
    pub score_during_startup: DuringStartup,
    /// Silence that trips.
    #[serde(default, with = "humantime_serde")]
    pub trip_on_silence: Option<Duration>,
    /// What faults of its sensors do.
    #[serde(default = "default_on_fault")]
    pub on_fault: RuleAction,
    /// How long rules that say so wait for a start.
    #[serde(default, with = "humantime_serde")]
    pub startup_suppression: Duration,
    /// Judges and reports, stops nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Operating conditions that are learnt apart.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// How long a reading tells the condition.
    #[serde(default = "default_conditions_stale_after", with = "humantime_serde")]
    pub conditions_stale_after: Duration,
    /// Bearings, for explanations of trips.
    #[serde(default)]
    pub bearings: Vec<Bearing>,
    /// Sensor of the shaft's speed, in turns a minute.
    #[serde(default)]
    pub shaft_speed_sensor: Option<SensorId>,
    /// The shaft's speed where nobody measures it, in turns a minute.
    #[serde(default)]
    pub shaft_rpm: Option<f64>,
    /// Fixed limits.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// Conditions of sensors.
    #[serde(default)]
    pub sensors: Vec<Sensor>,
    /// Ways to stop it, in order; none: the broker of `[mqtt]`.
    #[serde(default)]
    pub actuators: Vec<Actuator>,
}

const fn default_on_fault() -> RuleAction {
    RuleAction::Alarm
}

const fn default_votes() -> u32 {
    3
}

const fn default_conditions_stale_after() -> Duration {
    Duration::from_secs(60)
}

const fn default_of() -> u32 {
    5
}

/// One entry of `[[machines.sensors]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sensor {
    /// Its name.
    pub id: SensorId,
    /// What it can measure.
    #[serde(default)]
    pub range: Option<Range>,
    /// Longest time without a change.
    #[serde(default, with = "humantime_serde")]
    pub frozen_after: Option<Duration>,
    /// Changes up to this are none.
    #[serde(default)]
    pub frozen_tolerance: f64,
    /// Share of a block's samples at the end of the scale.
    #[serde(default)]
    pub saturation: Option<f64>,
    /// End of the scale; absent: the block's own extremes.
    #[serde(default)]
    pub full_scale: Option<f64>,
    /// Samples, or readings, per second.
    #[serde(default)]
    pub sample_rate: Option<f64>,
    /// Share by which the rate may be off.
    #[serde(default = "default_rate_tolerance")]
    pub sample_rate_tolerance: f64,
    /// Share of a minute's samples that may be missing.
    #[serde(default)]
    pub missing_samples_max: Option<f64>,
    /// Longest distance of event time and arrival.
    #[serde(default, with = "humantime_serde")]
    pub clock_drift_max: Option<Duration>,
    /// A fault is over after so long without it.
    #[serde(default = "default_recovers_after", with = "humantime_serde")]
    pub recovers_after: Duration,
    /// Instead of the machine's `on-fault`.
    #[serde(default)]
    pub on_fault: Option<RuleAction>,
}

/// What a sensor can measure, both ends included.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Range {
    /// Lowest value.
    pub min: f64,
    /// Highest value.
    pub max: f64,
}

const fn default_rate_tolerance() -> f64 {
    0.05
}

const fn default_recovers_after() -> Duration {
    Duration::from_secs(1)
}

impl Settings {
    /// The interlock of one machine as the core wants it.
    #[must_use]
    pub fn interlock(&self, machine: &Machine) -> InterlockSettings {
        let sensors = machine.watched_sensors();
        let mut settings = InterlockSettings {
            limits: machine.limits.iter().map(Limit::rule).collect(),
            score_vote: (!machine.scored_sensors.is_empty()).then(|| ScoreVote {
                sensors: machine.scored().cloned().collect(),
                threshold: machine.score_threshold,
                votes: machine.votes,
                of: machine.of,
                action: machine.score_action,
                during_startup: machine.score_during_startup,
            }),
            silence: (!sensors.is_empty()).then(|| Silence {
                sensors,
                after: machine.trip_on_silence.unwrap_or(SILENCE_REPORTED_AFTER),
                trips: machine.trip_on_silence.is_some(),
            }),
            sensors: machine.sensors.iter().map(|sensor| sensor.rule(machine.on_fault)).collect(),
            on_fault: machine.on_fault,
            startup_suppression: machine.startup_suppression,
            shelving_max: self.protection.shelving_max,
            dry_run: machine.dry_run,
            confirmation: ConfirmationSettings {
                deadline: self.protection.confirmation_deadline,
                attempts_max: self.protection.stop_attempts_max,
            },
            rule_version: String::new(),
        };
        settings.rule_version = rule_version(&settings);
        settings
    }
}

impl Machine {
    /// The sensors that its rules name, each once, by name.
    fn watched_sensors(&self) -> Vec<SensorId> {
        let limited = self.limits.iter().map(|limit| &limit.sensor);
        let conditioned = self.sensors.iter().map(|sensor| &sensor.id);
        let mut sensors: Vec<_> =
            limited.chain(self.scored()).chain(conditioned).cloned().collect();
        sensors.sort_unstable();
        sensors.dedup();
        sensors
    }
}

impl Limit {
    fn rule(&self) -> LimitRule {
        LimitRule {
            name: self.name.clone(),
            sensor: self.sensor.clone(),
            quantity: match self.quantity.as_str() {
                "value" => Quantity::Value,
                feature => Quantity::Feature(feature.to_owned()),
            },
            above: self.above,
            below: self.below,
            hysteresis: self.hysteresis,
            on_delay: self.on_delay,
            off_delay: self.off_delay,
            action: self.action,
            during_startup: self.during_startup,
        }
    }
}

impl Sensor {
    fn rule(&self, on_fault: RuleAction) -> SensorRule {
        let condition = ConditionSettings {
            range: self.range.map(|Range { min, max }| MeasuringRange { min, max }),
            frozen: self
                .frozen_after
                .map(|after| FrozenRule { after, tolerance: self.frozen_tolerance }),
            saturation: self
                .saturation
                .map(|share| SaturationRule { share, full_scale: self.full_scale }),
            rate: self.sample_rate.map(|hz| RateRule { hz, tolerance: self.sample_rate_tolerance }),
            missing_share_max: self.missing_samples_max,
            clock_drift_max: self.clock_drift_max,
            recovers_after: self.recovers_after,
        };
        let (sensor, on_fault) = (self.id.clone(), self.on_fault.unwrap_or(on_fault));
        SensorRule { sensor, condition, on_fault }
    }
}

/// Names a version of a machine's rules: the first twelve hexadecimal digits of the SHA-256 of their JSON, with rules and
/// sensors in the order of their names. Settings that mean the same have the same name.
fn rule_version(settings: &InterlockSettings) -> String {
    let mut canonical = settings.clone();
    canonical.limits.sort_by(|left, right| left.name.cmp(&right.name));
    canonical.sensors.sort_by(|left, right| left.sensor.cmp(&right.sensor));
    if let Some(vote) = &mut canonical.score_vote {
        vote.sensors.sort_unstable();
    }
    let json = serde_json::to_vec(&canonical).expect("structs of text and numbers serialise");
    let digest = Sha256::digest(&json);
    digest.iter().take(RULE_VERSION_BYTES).map(|byte| format!("{byte:02x}")).collect()
}
