//! One run of learning of one machine.
//!
//! Each input first looks at the deadline. Windows are learnt while the machine runs, settled, in a known condition, and not before
//! later readings have confirmed that condition ([`Learner::handle_condition`]); those that are abnormal by the model's own threshold
//! (unless it judges an absolute level) or by the previous baseline's are set aside: they raise no threshold, and more of them than
//! [`TOLERATED_WINDOWS`] and [`TOLERATED_PERCENT`] of the pair's windows refuse the whole run. The last answer of a run is its only
//! one: `Some` once, nothing after it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shared_proto::model::{EventTime, SensorId};

use super::progress::{ConditionProgress, LearnProgress, NotLearnt, SensorProgress};
use super::settings::{LearnFault, LearnRequest, LearnSettings};
use super::track::Track;
use super::waiting::{Waiting, Window};
use super::{BASELINE_FORMAT, Baseline, SensorBaseline};
use crate::features::Features;
use crate::interlock::Moment;
use crate::operation::{ANY_CONDITION, Holding};

/// Abnormal windows of a pair of condition and sensor that never refuse a run: a knock, a passing fork-lift.
pub(super) const TOLERATED_WINDOWS: u64 = 2;
/// More abnormal windows than this, in percent of the pair's windows, refuse a run.
pub(super) const TOLERATED_PERCENT: u64 = 1;
/// The highest logit of an absolute model may lie this many times the distance from the median to the ninth decile above the ninth
/// decile, and the margin. Of normal values that is 6.4 standard deviations above the median, and the highest of 100,000 is at 4.3.
pub(super) const OUTLIER_DISTANCES: f64 = 4.0;
/// Most windows learnt at a time of those that waited: whoever learns may have to stop a machine next.
pub(super) const CONFIRMED_AT_A_TIME: usize = 32;

/// What a run of learning came to. It is over.
#[derive(Clone, Debug, PartialEq)]
pub enum LearnOutcome {
    /// Keep this baseline and use it in place of the previous one.
    Learnt(Baseline),
    /// The previous baseline, or the model's own threshold, stays.
    Refused(LearnRefused),
}

/// Why nothing was learnt.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LearnRefused {
    /// The machine is not healthy.
    #[error(
        "{rule} was violated while learning: a baseline is learnt of a healthy machine alone; remove the cause and learn again"
    )]
    Violation {
        /// The rule, sensor fault, alarm or trip.
        rule: String,
    },
    /// The model finds too much abnormal.
    #[error(
        "{above} of {windows} windows of {sensor} in condition {condition} reach the model's own threshold (logit {threshold_logit:.2}), \
         {TOLERATED_WINDOWS} or {TOLERATED_PERCENT} % are allowed: examine the machine and its sensor, then learn again"
    )]
    Abnormal {
        /// In which condition.
        condition: String,
        /// Which sensor.
        sensor: SensorId,
        /// Windows at or above the threshold.
        above: u64,
        /// Windows judged.
        windows: u64,
        /// The model's threshold.
        threshold_logit: f64,
    },
    /// The machine is not what it was.
    #[error(
        "{above} of {windows} windows of {sensor} in condition {condition} reach the threshold learnt before (logit {threshold_logit:.2}), \
         {TOLERATED_WINDOWS} or {TOLERATED_PERCENT} % are allowed: examine the machine; if it was changed on purpose, learn with replacing"
    )]
    Changed {
        /// In which condition.
        condition: String,
        /// Which sensor.
        sensor: SensorId,
        /// Windows at or above the threshold.
        above: u64,
        /// Windows judged.
        windows: u64,
        /// The previous baseline's threshold.
        threshold_logit: f64,
    },
    /// The machine changed while it was learnt.
    #[error(
        "{what} of {sensor} in condition {condition} changed by {change:+.1} {unit} from the first half of learning to the second, \
         {limit:.1} are allowed: let the machine warm up, look for wear, or divide the condition, then learn again"
    )]
    Unsteady {
        /// In which condition.
        condition: String,
        /// Which sensor.
        sensor: SensorId,
        /// `logit`, or a feature.
        what: String,
        /// `logits`, or `dB`.
        unit: &'static str,
        /// From the first half's mean to the second's.
        change: f64,
        /// The most that is allowed.
        limit: f64,
    },
    /// One window would set the threshold alone.
    #[error(
        "the highest logit of {sensor} in condition {condition} is {logit:.2}, far from the others, which end near {limit:.2}: \
         the threshold would be set by a knock; learn again undisturbed"
    )]
    Outlier {
        /// In which condition.
        condition: String,
        /// Which sensor.
        sensor: SensorId,
        /// The highest one learnt.
        logit: f64,
        /// The most that is allowed by the deciles.
        limit: f64,
    },
    /// Not enough.
    #[error(
        "at most {windows} windows and {seconds:.0} s of a sensor in a condition came up to the deadline, {windows_min} windows and \
         {seconds_min:.0} s are needed ({unconfirmed} windows were in a condition that no later reading confirmed): let the machine run \
         longer, or allow more time"
    )]
    TooFewWindows {
        /// Windows of the pair that has most running time.
        windows: u64,
        /// Its running time.
        seconds: f64,
        /// Windows needed.
        windows_min: u32,
        /// Running time needed: half of what was wanted.
        seconds_min: f64,
        /// Windows of all sensors in a condition that no later reading confirmed.
        unconfirmed: u64,
    },
    /// Nothing at all.
    #[error(
        "no window could be learnt up to the deadline ({} at standstill, {} settling, {} in no known condition, \
         {} in a condition that no later reading confirmed, {} unusable, {} not asked for): see that the machine runs in a condition \
         that is asked for, and that its sensors deliver, those of its condition again and again",
        .0.standstill, .0.settling, .0.unknown_condition, .0.unconfirmed, .0.unusable, .0.not_asked
    )]
    NoWindows(NotLearnt),
    /// A person ended it.
    #[error("learning was cancelled; what was learnt before stays")]
    Cancelled,
}

impl LearnRefused {
    /// The word used as a label.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Violation { .. } => "violation",
            Self::Abnormal { .. } => "abnormal",
            Self::Changed { .. } => "changed",
            Self::Unsteady { .. } => "unsteady",
            Self::Outlier { .. } => "outlier",
            Self::TooFewWindows { .. } => "too-few-windows",
            Self::NoWindows(_) => "no-windows",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Learns one machine once. A machine that never reports its state counts as running.
#[derive(Debug)]
pub struct Learner {
    request: LearnRequest,
    settings: LearnSettings,
    previous: Option<Baseline>,
    started: Moment,
    tracks: BTreeMap<String, BTreeMap<SensorId, Track>>,
    feeds: BTreeMap<SensorId, Feed>,
    waiting: Waiting,
    is_running: bool,
    is_over: bool,
    counts: NotLearnt,
}

/// What the latest windows of a sensor were.
#[derive(Debug, Default)]
struct Feed {
    /// When the latest one came since the machine runs.
    latest: Option<Instant>,
    /// Its condition, empty if that was unknown; `None` before the first.
    condition: Option<String>,
    settled_from: Option<Instant>,
}

impl Learner {
    /// Begins. `previous` is what was learnt of the machine before.
    ///
    /// # Errors
    /// All faults of the request and its settings.
    pub fn new(
        request: LearnRequest,
        settings: LearnSettings,
        previous: Option<Baseline>,
        started: Moment,
    ) -> Result<Self, Vec<LearnFault>> {
        let mut faults = settings.validate().err().unwrap_or_default();
        faults.extend(request.faults(&settings));
        if let Some(other) = previous.as_ref().filter(|old| old.machine_id != request.machine_id) {
            let (found, asked) = (other.machine_id.clone(), request.machine_id.clone());
            faults.push(LearnFault::OtherMachine { found, asked });
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let empty = || settings.models.keys().map(|sensor| (sensor.clone(), Track::new()));
        let tracks = request.conditions.iter().map(|name| (name.clone(), empty().collect()));
        let feeds = settings.models.keys().map(|sensor| (sensor.clone(), Feed::default()));
        Ok(Self {
            tracks: tracks.collect(),
            feeds: feeds.collect(),
            waiting: Waiting::new(settings.models.len()),
            request,
            settings,
            previous,
            started,
            is_running: true,
            is_over: false,
            counts: NotLearnt::default(),
        })
    }

    /// Takes a window of a sensor: its features and the model's answer, in natural-log odds. In [`ANY_CONDITION`] it is learnt at once,
    /// otherwise it waits for [`Self::handle_condition`].
    #[must_use = "the run may be over"]
    pub fn handle_window(
        &mut self,
        sensor: &SensorId,
        condition: &str,
        features: &Features,
        logit: f64,
        now: Instant,
    ) -> Option<LearnOutcome> {
        if self.is_over || self.is_due(now) {
            return self.handle_timeout(now);
        }
        let is_asked = self.tracks.contains_key(condition);
        let Some(feed) = self.feeds.get_mut(sensor).filter(|_| is_asked) else {
            self.counts.not_asked += 1;
            return None;
        };
        if !self.is_running {
            self.counts.standstill += 1;
            return None;
        }
        let running = feed.take(condition, now, &self.settings);
        if feed.settled_from.is_some_and(|from| now < from) {
            self.counts.settling += 1;
            return None;
        }
        if !logit.is_finite() {
            self.counts.unusable += 1;
            return None;
        }
        let window = Window { at: now, features: features.clone(), logit, running };
        if condition == ANY_CONDITION {
            return self.learn(sensor, condition, &window, now);
        }
        self.counts.unconfirmed += self.waiting.add(condition, sensor, window);
        None
    }

    /// Learns windows that wait and lie between readings that agree on their condition, the oldest first, at most 32 at a time, and gives
    /// up those that no reading can confirm any more. `holding` is the condition of now, if one is known; it is followed since the run
    /// began.
    #[must_use = "the run may be over"]
    pub fn handle_condition(
        &mut self,
        holding: Option<Holding<'_>>,
        now: Instant,
    ) -> Option<LearnOutcome> {
        if self.is_over || self.is_due(now) {
            return self.handle_timeout(now);
        }
        self.counts.unconfirmed += self.waiting.give_up(holding.as_ref());
        let holding = holding?;
        // Also a change that no window came in: the samples of the next ones began in it, or before.
        if holding.since > self.started.instant {
            let settled_from = holding.since + self.settings.settle;
            self.counts.settling += self.waiting.give_up_before(settled_from);
        }
        (0..CONFIRMED_AT_A_TIME).find_map(|_| {
            let (sensor, window) = self.waiting.take_confirmed(&holding)?;
            self.learn(&sensor, holding.name, &window, now)
        })
    }

    /// Whether windows wait for [`Self::handle_condition`].
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn learn(
        &mut self,
        sensor: &SensorId,
        condition: &str,
        window: &Window,
        now: Instant,
    ) -> Option<LearnOutcome> {
        let Window { at: _, features, logit, running } = window;
        let (logit, running) = (*logit, *running);
        let track = self.tracks.get_mut(condition)?.get_mut(sensor)?;
        let model = &self.settings.models[sensor];
        let is_above_model = !model.is_absolute && logit >= model.threshold_logit;
        let held_against = if self.request.is_replacing { None } else { self.previous.as_ref() };
        let is_above_previous = held_against
            .and_then(|previous| learnt_by(previous, condition, sensor, &model.sha256))
            .is_some_and(|usual| logit >= usual.threshold_logit);
        if is_above_model || is_above_previous {
            track.above_model += u64::from(is_above_model);
            track.above_previous += u64::from(is_above_previous);
            track.set_aside += 1;
            return self.refuse_hopeless(sensor, condition);
        }
        if !track.accepts(features, logit) {
            self.counts.unusable += 1;
            return None;
        }
        track.learn(features, logit, running);
        if self.is_done() { Some(self.end(now)) } else { None }
    }

    /// A limit was violated, a sensor was faulty, the machine alarmed or tripped: nothing is learnt of such a machine.
    #[must_use = "the run may be over"]
    pub fn handle_violation(&mut self, rule: &str, now: Instant) -> Option<LearnOutcome> {
        if self.is_over || self.is_due(now) {
            return self.handle_timeout(now);
        }
        self.refuse(LearnRefused::Violation { rule: rule.to_owned() })
    }

    /// The machine stands still: windows are not learnt until it runs, nor are those that wait, which may be of its slowing down.
    #[must_use = "the run may be over"]
    pub fn handle_standstill(&mut self, now: Instant) -> Option<LearnOutcome> {
        self.is_running = false;
        self.counts.unconfirmed += self.waiting.clear();
        for feed in self.feeds.values_mut() {
            feed.latest = None;
        }
        self.handle_timeout(now)
    }

    /// The machine runs. If it stood still, windows are learnt once it has settled.
    #[must_use = "the run may be over"]
    pub fn handle_running(&mut self, now: Instant) -> Option<LearnOutcome> {
        if !std::mem::replace(&mut self.is_running, true) {
            for feed in self.feeds.values_mut() {
                feed.settled_from = Some(now + self.settings.settle);
            }
        }
        self.handle_timeout(now)
    }

    /// A window came whose operating condition is not known.
    #[must_use = "the run may be over"]
    pub fn handle_unknown_condition(
        &mut self,
        sensor: &SensorId,
        now: Instant,
    ) -> Option<LearnOutcome> {
        if self.is_over || self.is_due(now) {
            return self.handle_timeout(now);
        }
        match self.feeds.get_mut(sensor) {
            None => self.counts.not_asked += 1,
            Some(_) if !self.is_running => self.counts.standstill += 1,
            Some(feed) => {
                feed.take("", now, &self.settings);
                self.counts.unknown_condition += 1;
                self.counts.unconfirmed += self.waiting.clear();
            }
        }
        None
    }

    /// Ends the run if its deadline has come.
    #[must_use = "the run may be over"]
    pub fn handle_timeout(&mut self, now: Instant) -> Option<LearnOutcome> {
        if self.is_over || !self.is_due(now) {
            return None;
        }
        Some(self.end(now))
    }

    /// When to call [`Self::handle_timeout`]; `None` once the run is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.is_over).then_some(self.started.instant + self.settings.deadline)
    }

    /// A person ends the run.
    #[must_use = "the run may be over"]
    pub fn cancel(&mut self) -> Option<LearnOutcome> {
        self.refuse(LearnRefused::Cancelled)
    }

    /// The baseline that holds until this run is learnt, and after it if it is refused.
    #[must_use]
    pub const fn previous(&self) -> Option<&Baseline> {
        self.previous.as_ref()
    }

    /// When the run began.
    #[must_use]
    pub const fn since(&self) -> EventTime {
        self.started.time
    }

    /// When the run ends at the latest.
    #[must_use]
    pub fn until(&self) -> EventTime {
        self.time_after(self.settings.deadline)
    }

    /// How far the run is.
    #[must_use]
    pub fn progress(&self, now: Instant) -> LearnProgress {
        let passed = now.saturating_duration_since(self.started.instant);
        let of_condition = |sensors: &BTreeMap<SensorId, Track>| {
            let windows = sensors.values().map(Track::windows).min().unwrap_or_default();
            let seconds = sensors.values().map(|track| track.running).min().unwrap_or_default();
            ConditionProgress {
                windows,
                seconds: seconds.as_secs_f64(),
                is_done: sensors.values().all(|track| self.has(track, self.settings.duration)),
                sensors: sensors
                    .iter()
                    .map(|(sensor, track)| (sensor.clone(), self.progress_of(track)))
                    .collect(),
            }
        };
        LearnProgress {
            is_running: self.is_running,
            passed_seconds: passed.as_secs_f64(),
            remaining_seconds: self.settings.deadline.saturating_sub(passed).as_secs_f64(),
            wanted_windows: u64::from(self.settings.windows_min),
            wanted_seconds: self.settings.duration.as_secs_f64(),
            conditions: self
                .tracks
                .iter()
                .map(|(name, sensors)| (name.clone(), of_condition(sensors)))
                .collect(),
            waiting: self.waiting.len() as u64,
            not_learnt: self.counts,
        }
    }

    fn progress_of(&self, track: &Track) -> SensorProgress {
        let logit = track.logit();
        SensorProgress {
            windows: track.windows(),
            seconds: track.running.as_secs_f64(),
            is_done: self.has(track, self.settings.duration),
            above_model: track.above_model,
            above_previous: track.above_previous,
            logit_mean: logit.map(|logit| logit.mean),
            logit_max: logit.map(|logit| logit.max),
        }
    }

    fn time_after(&self, passed: Duration) -> EventTime {
        let micros = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX);
        self.started.time.saturating_add_micros(micros)
    }

    fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.started.instant) >= self.settings.deadline
    }

    fn has(&self, track: &Track, running: Duration) -> bool {
        track.windows() >= u64::from(self.settings.windows_min) && track.running >= running
    }

    fn is_done(&self) -> bool {
        let mut tracks = self.tracks.values().flat_map(BTreeMap::values);
        tracks.all(|track| self.has(track, self.settings.duration))
    }

    fn refuse(&mut self, refused: LearnRefused) -> Option<LearnOutcome> {
        let was_over = std::mem::replace(&mut self.is_over, true);
        (!was_over).then_some(LearnOutcome::Refused(refused))
    }

    /// A machine of whose windows most are abnormal is not waited for until the deadline.
    fn refuse_hopeless(&mut self, sensor: &SensorId, condition: &str) -> Option<LearnOutcome> {
        let track = self.tracks.get(condition)?.get(sensor)?;
        let is_enough = track.judged() >= u64::from(self.settings.windows_min);
        if !is_enough || track.set_aside * 2 <= track.judged() {
            return None;
        }
        let refused = self.check_shares(condition, sensor, track).err()?;
        self.refuse(refused)
    }

    fn end(&mut self, now: Instant) -> LearnOutcome {
        self.is_over = true;
        self.counts.unconfirmed += self.waiting.clear();
        match self.conclude(now) {
            Ok(baseline) => LearnOutcome::Learnt(baseline),
            Err(refused) => LearnOutcome::Refused(refused),
        }
    }

    fn conclude(&self, now: Instant) -> Result<Baseline, LearnRefused> {
        let (mut conditions, mut not_learnt) = (self.kept_of_previous(), BTreeMap::new());
        // What is abnormal anywhere counts also where there is too little to learn.
        for (condition, sensor, track) in self.pairs() {
            self.check_shares(condition, sensor, track)?;
        }
        let mut is_any_learnt = false;
        for (condition, sensor, track) in self.pairs() {
            if self.has(track, self.settings.duration / 2) {
                is_any_learnt = true;
                let usual = self.learnt(condition, sensor, track)?;
                put(&mut conditions, condition, sensor, usual);
            } else {
                put(&mut not_learnt, condition, sensor, track.windows());
            }
        }
        if !is_any_learnt {
            return Err(self.nothing());
        }
        Ok(Baseline {
            format: BASELINE_FORMAT,
            machine_id: self.request.machine_id.clone(),
            learnt_at: self.time_after(now.saturating_duration_since(self.started.instant)),
            operator: self.request.operator.clone(),
            conditions,
            not_learnt,
        })
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &SensorId, &Track)> {
        self.tracks.iter().flat_map(|(condition, sensors)| {
            sensors.iter().map(move |(sensor, track)| (condition.as_str(), sensor, track))
        })
    }

    fn check_shares(
        &self,
        condition: &str,
        sensor: &SensorId,
        track: &Track,
    ) -> Result<(), LearnRefused> {
        let windows = track.judged();
        let are_too_many =
            |above: u64| above > TOLERATED_WINDOWS && above * 100 > windows * TOLERATED_PERCENT;
        let (condition, of) = (condition.to_owned(), sensor.clone());
        let model = &self.settings.models[sensor];
        if are_too_many(track.above_model) {
            let (above, threshold_logit) = (track.above_model, model.threshold_logit);
            return Err(LearnRefused::Abnormal {
                condition,
                sensor: of,
                above,
                windows,
                threshold_logit,
            });
        }
        let previous = self.previous.as_ref();
        let usual = previous.and_then(|old| learnt_by(old, &condition, sensor, &model.sha256));
        if let Some(usual) = usual.filter(|_| are_too_many(track.above_previous)) {
            let (above, threshold_logit) = (track.above_previous, usual.threshold_logit);
            return Err(LearnRefused::Changed {
                condition,
                sensor: of,
                above,
                windows,
                threshold_logit,
            });
        }
        Ok(())
    }

    /// What a track with enough windows says, if it can be relied on.
    fn learnt(
        &self,
        condition: &str,
        sensor: &SensorId,
        track: &Track,
    ) -> Result<SensorBaseline, LearnRefused> {
        let (condition, margin) = (condition.to_owned(), self.settings.margin(sensor));
        if let Some(found) = track.unsteady(margin) {
            return Err(LearnRefused::Unsteady {
                condition,
                sensor: sensor.clone(),
                what: found.what,
                unit: found.unit,
                change: found.change,
                limit: found.limit,
            });
        }
        let model = &self.settings.models[sensor];
        let usual = track.baseline(&model.identity, &model.sha256, margin);
        let [.., median, _, _, _, ninth] = usual.logit_deciles;
        let limit = ninth + OUTLIER_DISTANCES * (ninth - median) + margin;
        // A model that does not judge a level has a threshold of its own, above which nothing was learnt.
        if model.is_absolute && usual.logit.max > limit {
            let (sensor, logit) = (sensor.clone(), usual.logit.max);
            return Err(LearnRefused::Outlier { condition, sensor, logit, limit });
        }
        Ok(usual)
    }

    fn nothing(&self) -> LearnRefused {
        let furthest = self.pairs().map(|(_, _, track)| track).max_by_key(|track| track.running);
        match furthest.filter(|_| self.pairs().any(|(_, _, track)| track.judged() > 0)) {
            None => LearnRefused::NoWindows(self.counts),
            Some(track) => LearnRefused::TooFewWindows {
                windows: track.windows(),
                seconds: track.running.as_secs_f64(),
                windows_min: self.settings.windows_min,
                seconds_min: (self.settings.duration / 2).as_secs_f64(),
                unconfirmed: self.counts.unconfirmed,
            },
        }
    }

    /// What the previous baseline says of pairs that are still asked for, by the models of now.
    fn kept_of_previous(&self) -> BTreeMap<String, BTreeMap<SensorId, SensorBaseline>> {
        let mut kept = BTreeMap::new();
        let Some(previous) = self.previous.as_ref().filter(|_| !self.request.is_replacing) else {
            return kept;
        };
        for (condition, sensor, _) in self.pairs() {
            let sha256 = &self.settings.models[sensor].sha256;
            if let Some(usual) = learnt_by(previous, condition, sensor, sha256) {
                put(&mut kept, condition, sensor, usual.clone());
            }
        }
        kept
    }
}

impl Feed {
    /// Takes a window that came while the machine runs; the running time that it stands for.
    fn take(&mut self, condition: &str, now: Instant, settings: &LearnSettings) -> Duration {
        let latest = self.latest.replace(now);
        match &mut self.condition {
            // The machine ran in it when learning began.
            None => self.condition = Some(condition.to_owned()),
            Some(before) if before == condition => {}
            Some(before) => {
                before.clear();
                before.push_str(condition);
                self.settled_from = self.settled_from.max(Some(now + settings.settle));
            }
        }
        latest.map_or(Duration::ZERO, |latest| {
            now.saturating_duration_since(latest).min(settings.gap_max)
        })
    }
}

fn learnt_by<'a>(
    baseline: &'a Baseline,
    condition: &str,
    sensor: &SensorId,
    sha256: &str,
) -> Option<&'a SensorBaseline> {
    let usual = baseline.conditions.get(condition)?.get(sensor)?;
    usual.model_sha256.eq_ignore_ascii_case(sha256).then_some(usual)
}

fn put<T>(
    map: &mut BTreeMap<String, BTreeMap<SensorId, T>>,
    condition: &str,
    sensor: &SensorId,
    value: T,
) {
    map.entry(condition.to_owned()).or_default().insert(sensor.clone(), value);
}
