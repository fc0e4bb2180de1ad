//! Tumbling windows of one sensor: count, close, correct, forget.
//!
//! A window is `[start, end)` with `start = t - t.rem_euclid(length)`. It comes into being with its first match, so
//! windows without matches hold nothing. It is closed when its end is at or behind the watermark, or when its sensor
//! falls silent; closing with more matches than the rule allows gives revision 1. A match for a closed window corrects
//! it: another row with the next revision, if the new count is over the limit. A closed window is forgotten when no
//! reading for it can be counted any more.

use serde::{Deserialize, Serialize};
use shared_proto::model::{EventTime, MachineId, SensorId};

use crate::alert::{Alert, alert_id};
use crate::exact;
use crate::settings::Rule;
use crate::time::{Micros, ProcessingTime};

/// Why a row of `anomalies` was written when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClosedBy {
    /// The sensor's watermark reached the window's end.
    Watermark,
    /// The sensor was silent for the idle timeout.
    Idle,
    /// A match came for a window that was closed already.
    Correction,
}

impl ClosedBy {
    /// The word used in the tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Watermark => "watermark",
            Self::Idle => "idle",
            Self::Correction => "correction",
        }
    }
}

/// A closed window with more matches than its rule allows. Of several rows for one (rule, sensor, window start) the
/// one with the highest revision holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnomalyRow {
    /// Rule that counted.
    pub rule: String,
    /// Sensor counted.
    pub sensor_id: SensorId,
    /// Machine the sensor sits on, if a matching reading told.
    pub machine_id: Option<MachineId>,
    /// First microsecond of the window.
    pub window_start: EventTime,
    /// First microsecond after the window.
    pub window_end: EventTime,
    /// Matches in the window.
    pub count: u64,
    /// From 1, without holes.
    pub revision: u32,
    /// Why this row was written now.
    pub closed_by: ClosedBy,
    /// Highest matching value, in the unit of the metric.
    #[serde(with = "exact::number")]
    pub max_value: f64,
    /// Lowest matching value: the worst one of a rule that looks for low values.
    #[serde(with = "exact::number")]
    pub min_value: f64,
    /// Event time of the earliest match.
    pub first_match: EventTime,
    /// Event time of the latest match.
    pub last_match: EventTime,
    /// When the row was made.
    pub emitted_at: ProcessingTime,
}

/// What leaves the windows: in order of decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    /// Rows of `anomalies`.
    pub anomalies: Vec<AnomalyRow>,
    /// Alerts.
    pub alerts: Vec<Alert>,
}

/// Start of the tumbling window of `length` that holds `timestamp`.
#[must_use]
pub fn window_start(timestamp: EventTime, length: Micros) -> EventTime {
    timestamp.saturating_sub_micros(timestamp.micros().rem_euclid(length.get()))
}

/// Position of a rule in [`Context::rules`]; `settings::RULES_MAX` fits.
pub(crate) type RuleIndex = u16;

/// What the windows of a sensor need to know to make rows and alerts.
pub(crate) struct Context<'a> {
    rules: &'a [Rule],
    sensor_id: &'a SensorId,
    machine_id: Option<&'a MachineId>,
    now: ProcessingTime,
    historical_before: EventTime,
}

impl<'a> Context<'a> {
    /// `historical_before`: windows that end before it are history.
    pub(crate) fn new(
        rules: &'a [Rule],
        sensor_id: &'a SensorId,
        machine_id: Option<&'a MachineId>,
        now: ProcessingTime,
        historical_before: EventTime,
    ) -> Self {
        Self { rules, sensor_id, machine_id, now, historical_before }
    }
}

/// One reading that matches a rule.
#[derive(Clone, Copy)]
pub(crate) struct Match {
    pub(crate) rule: RuleIndex,
    pub(crate) timestamp: EventTime,
    pub(crate) value: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "SavedWindow", into = "SavedWindow")]
struct Window {
    start: EventTime,
    end: EventTime,
    rule: RuleIndex,
    is_closed: bool,
    is_alerted: bool,
    revision: u32,
    count: u64,
    first_match: EventTime,
    last_match: EventTime,
    max_value: f64,
    min_value: f64,
}

/// A window in a state file: an array, because there may be a million of them.
#[derive(Serialize, Deserialize)]
struct SavedWindow(
    EventTime,
    EventTime,
    RuleIndex,
    bool,
    bool,
    u32,
    u64,
    EventTime,
    EventTime,
    #[serde(with = "exact::number")] f64,
    #[serde(with = "exact::number")] f64,
);

impl From<Window> for SavedWindow {
    fn from(window: Window) -> Self {
        Self(
            window.start,
            window.end,
            window.rule,
            window.is_closed,
            window.is_alerted,
            window.revision,
            window.count,
            window.first_match,
            window.last_match,
            window.max_value,
            window.min_value,
        )
    }
}

impl From<SavedWindow> for Window {
    fn from(saved: SavedWindow) -> Self {
        Self {
            start: saved.0,
            end: saved.1,
            rule: saved.2,
            is_closed: saved.3,
            is_alerted: saved.4,
            revision: saved.5,
            count: saved.6,
            first_match: saved.7,
            last_match: saved.8,
            max_value: saved.9,
            min_value: saved.10,
        }
    }
}

/// All windows of one sensor, in order of start and rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<Window>", into = "Vec<Window>")]
pub(crate) struct Windows {
    windows: Vec<Window>,
    /// Earliest end of an open window.
    next_close: EventTime,
    /// Earliest end of all.
    next_forget: EventTime,
}

const NEVER: EventTime = EventTime::from_micros(i64::MAX);

impl Default for Windows {
    fn default() -> Self {
        Self::from(Vec::new())
    }
}

impl From<Vec<Window>> for Windows {
    fn from(windows: Vec<Window>) -> Self {
        let mut all = Self { windows, next_close: NEVER, next_forget: NEVER };
        all.look_ahead();
        all
    }
}

impl From<Windows> for Vec<Window> {
    fn from(windows: Windows) -> Self {
        windows.windows
    }
}

impl Windows {
    pub(crate) fn len(&self) -> usize {
        self.windows.len()
    }

    pub(crate) fn is_any_open(&self) -> bool {
        self.next_close < NEVER
    }

    pub(crate) fn open_count(&self) -> usize {
        self.windows.iter().filter(|window| !window.is_closed).count()
    }

    /// Closes up to the watermark and forgets what ended at or before `late_before`. Gives how many were forgotten.
    pub(crate) fn advance(
        &mut self,
        watermark: EventTime,
        late_before: EventTime,
        context: &Context<'_>,
        out: &mut Outputs,
    ) -> usize {
        if watermark < self.next_close && late_before < self.next_forget {
            return 0;
        }
        self.close(|window| window.end <= watermark, ClosedBy::Watermark, context, out);
        let held = self.windows.len();
        self.windows.retain(|window| window.end > late_before);
        self.look_ahead();
        held - self.windows.len()
    }

    /// Closes everything that is open.
    pub(crate) fn close_idle(&mut self, context: &Context<'_>, out: &mut Outputs) {
        self.close(|_| true, ClosedBy::Idle, context, out);
        self.look_ahead();
    }

    /// Whether the match would need a window that is not held yet.
    pub(crate) fn is_new_for(&self, found: Match, rules: &[Rule]) -> bool {
        let start = window_start(found.timestamp, rules[usize::from(found.rule)].window);
        self.position(start, found.rule).is_err()
    }

    /// Counts a match that is not late. Gives how many windows came into being.
    pub(crate) fn add(
        &mut self,
        found: Match,
        watermark: EventTime,
        context: &Context<'_>,
        out: &mut Outputs,
    ) -> usize {
        let rule = &context.rules[usize::from(found.rule)];
        let start = window_start(found.timestamp, rule.window);
        let (position, created) = match self.position(start, found.rule) {
            Ok(position) => (position, 0),
            Err(position) => {
                self.windows.insert(position, Window::new(found, start, rule.window, watermark));
                (position, 1)
            }
        };
        let window = &mut self.windows[position];
        window.count(found);
        if window.count > rule.count_more_than {
            if !window.is_alerted {
                window.is_alerted = true;
                out.alerts.push(window.alert(rule, context));
            }
            if window.is_closed {
                window.revision += 1;
                out.anomalies.push(window.row(rule, ClosedBy::Correction, context));
            }
        }
        if created > 0 {
            self.next_forget = self.next_forget.min(window.end);
            if !window.is_closed {
                self.next_close = self.next_close.min(window.end);
            }
        }
        created
    }

    /// Gives the windows new rule positions; `None` forgets them. Gives how many were forgotten.
    pub(crate) fn renumber(&mut self, new_positions: &[Option<RuleIndex>]) -> usize {
        let held = self.windows.len();
        self.windows.retain_mut(|window| {
            let position = new_positions.get(usize::from(window.rule)).copied().flatten();
            window.rule = position.unwrap_or(window.rule);
            position.is_some()
        });
        self.windows.sort_by_key(|window| (window.start, window.rule));
        self.look_ahead();
        held - self.windows.len()
    }

    /// Whether each window fits its rule and stands in its place: what a state file must show.
    pub(crate) fn is_consistent(&self, rules: &[Rule]) -> bool {
        let in_order = self.windows.is_sorted_by(|a, b| (a.start, a.rule) < (b.start, b.rule));
        in_order
            && self.windows.iter().all(|window| {
                rules.get(usize::from(window.rule)).is_some_and(|rule| {
                    rule.window.get() > 0
                        && window_start(window.start, rule.window) == window.start
                        && window.start.saturating_add_micros(rule.window.get()) == window.end
                })
            })
    }

    fn position(&self, start: EventTime, rule: RuleIndex) -> Result<usize, usize> {
        self.windows.binary_search_by_key(&(start, rule), |window| (window.start, window.rule))
    }

    fn close(
        &mut self,
        is_due: impl Fn(&Window) -> bool,
        closed_by: ClosedBy,
        context: &Context<'_>,
        out: &mut Outputs,
    ) {
        for window in &mut self.windows {
            if window.is_closed || !is_due(window) {
                continue;
            }
            window.is_closed = true;
            let rule = &context.rules[usize::from(window.rule)];
            if window.count > rule.count_more_than {
                window.revision += 1;
                out.anomalies.push(window.row(rule, closed_by, context));
            }
        }
    }

    fn look_ahead(&mut self) {
        let ends = || self.windows.iter().map(|window| window.end);
        let open = self.windows.iter().filter(|window| !window.is_closed).map(|window| window.end);
        self.next_close = open.min().unwrap_or(NEVER);
        self.next_forget = ends().min().unwrap_or(NEVER);
    }
}

impl Window {
    fn new(found: Match, start: EventTime, length: Micros, watermark: EventTime) -> Self {
        let end = start.saturating_add_micros(length.get());
        Self {
            start,
            end,
            rule: found.rule,
            is_closed: end <= watermark,
            is_alerted: false,
            revision: 0,
            count: 0,
            first_match: found.timestamp,
            last_match: found.timestamp,
            max_value: found.value,
            min_value: found.value,
        }
    }

    fn count(&mut self, found: Match) {
        self.count += 1;
        self.first_match = self.first_match.min(found.timestamp);
        self.last_match = self.last_match.max(found.timestamp);
        self.max_value = self.max_value.max(found.value);
        self.min_value = self.min_value.min(found.value);
    }

    fn row(&self, rule: &Rule, closed_by: ClosedBy, context: &Context<'_>) -> AnomalyRow {
        AnomalyRow {
            rule: rule.name.clone(),
            sensor_id: context.sensor_id.clone(),
            machine_id: context.machine_id.cloned(),
            window_start: self.start,
            window_end: self.end,
            count: self.count,
            revision: self.revision,
            closed_by,
            max_value: self.max_value,
            min_value: self.min_value,
            first_match: self.first_match,
            last_match: self.last_match,
            emitted_at: context.now,
        }
    }

    fn alert(&self, rule: &Rule, context: &Context<'_>) -> Alert {
        Alert {
            id: alert_id(&rule.name, context.sensor_id, self.start),
            rule: rule.name.clone(),
            severity: rule.severity,
            sensor_id: context.sensor_id.clone(),
            machine_id: context.machine_id.cloned(),
            window_start: self.start,
            window_end: self.end,
            count: self.count,
            threshold: rule.value,
            fired_at: context.now,
            historical: self.is_closed || self.end < context.historical_before,
        }
    }
}
