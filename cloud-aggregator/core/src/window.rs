//! Windows of one group (a sensor or a machine): count, close, correct, forget.
//!
//! A window is `[start, end)`; starts are multiples of the rule's slide, so a reading is in one (tumbling) or several (sliding) of them.
//! A window comes into being with its first match, so windows without matches hold nothing. It is closed when its end is at or behind
//! the watermark, or when its group falls silent; closing as an anomaly gives revision 1. Matches for a closed window correct
//! it: another row with the next revision at the next trigger, if it is an anomaly or the last row said so. In output mode `update`
//! rows are written at each trigger also of windows that are open. A closed window is forgotten when no reading for it can be
//! counted any more.

use serde::{Deserialize, Serialize};
use shared_proto::model::{EventTime, MachineId, SensorId};

use crate::alert::{Finding, alert_id, group_name};
use crate::exact;
use crate::rule::{Aggregate, OutputMode, Rule, Sum};
use crate::time::ProcessingTime;

mod saved;

/// Why a row of `anomalies` was written when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClosedBy {
    /// The group's watermark reached the window's end.
    Watermark,
    /// The group was silent for the idle timeout.
    Idle,
    /// A match came for a window that was closed already.
    Correction,
    /// Not closed yet: a row of the output mode `update` or `complete`.
    Open,
}

impl ClosedBy {
    /// The word used in the tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Watermark => "watermark",
            Self::Idle => "idle",
            Self::Correction => "correction",
            Self::Open => "open",
        }
    }
}

/// What is known of one window. Of several rows for one (rule, sensor or machine, window start) the one with the highest revision
/// holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnomalyRow {
    /// Rule that counted.
    pub rule: String,
    /// Sensor counted; `None` where the rule counts by machine.
    pub sensor_id: Option<SensorId>,
    /// Machine counted, or the machine the sensor sits on, if a matching reading told.
    pub machine_id: Option<MachineId>,
    /// First microsecond of the window.
    pub window_start: EventTime,
    /// First microsecond after the window.
    pub window_end: EventTime,
    /// Whether the rule's threshold holds; `false` takes an earlier row back.
    pub is_anomaly: bool,
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
    /// Mean of the matching values.
    #[serde(with = "exact::number")]
    pub mean_value: f64,
    /// Change of the value for each second, from the earliest to the latest match.
    #[serde(with = "exact::option")]
    pub rate_of_change: Option<f64>,
    /// Event time of the earliest match.
    pub first_match: EventTime,
    /// Event time of the latest match.
    pub last_match: EventTime,
    /// When the row was made.
    pub emitted_at: ProcessingTime,
}

impl AnomalyRow {
    /// The sensor or machine whose window it is.
    #[must_use]
    pub fn group(&self) -> &str {
        group_name(self.sensor_id.as_ref(), self.machine_id.as_ref())
    }
}

/// What leaves the windows: in order of decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    /// Rows of `anomalies`.
    pub anomalies: Vec<AnomalyRow>,
    /// Windows that are anomalies, each once.
    pub findings: Vec<Finding>,
}

/// Starts of the rule's windows that hold `timestamp` and begin after `after`, latest first.
pub(crate) fn window_starts(
    timestamp: EventTime,
    rule: &Rule,
    after: EventTime,
) -> impl Iterator<Item = EventTime> + use<> {
    let (slide, length) = (rule.slide.get(), rule.window.get());
    let latest = timestamp.saturating_sub_micros(timestamp.micros().rem_euclid(slide));
    let holds =
        move |start: &EventTime| *start > after && start.saturating_add_micros(length) > timestamp;
    std::iter::successors(Some(latest), move |start| {
        let before = start.saturating_sub_micros(slide);
        (before < *start).then_some(before)
    })
    .take_while(holds)
}

/// Position of a rule in [`Context::rules`]; `settings::RULES_MAX` fits.
pub(crate) type RuleIndex = u16;

/// Whose windows they are.
#[derive(Clone, Copy)]
pub(crate) enum Group<'a> {
    Sensor(&'a SensorId, Option<&'a MachineId>),
    Machine(&'a MachineId),
}

impl<'a> Group<'a> {
    fn sensor(self) -> Option<&'a SensorId> {
        match self {
            Self::Sensor(sensor, _) => Some(sensor),
            Self::Machine(_) => None,
        }
    }

    fn machine(self) -> Option<&'a MachineId> {
        match self {
            Self::Sensor(_, machine) => machine,
            Self::Machine(machine) => Some(machine),
        }
    }

    fn name(self) -> &'a str {
        match self {
            Self::Sensor(sensor, _) => sensor.as_str(),
            Self::Machine(machine) => machine.as_str(),
        }
    }
}

/// What the windows of a group need to know to make rows and findings.
pub(crate) struct Context<'a> {
    pub(crate) rules: &'a [Rule],
    pub(crate) group: Group<'a>,
    pub(crate) now: ProcessingTime,
    /// Windows that end before it are history.
    pub(crate) historical_before: EventTime,
}

/// One reading that matches a rule, in one window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Match {
    pub(crate) rule: RuleIndex,
    pub(crate) start: EventTime,
    pub(crate) timestamp: EventTime,
    pub(crate) value: f64,
}

/// A value and when it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    time: EventTime,
    value: f64,
}

impl Point {
    /// Earlier, or lower at the same time: an order that does not depend on the order of arrival.
    fn is_before(self, other: Self) -> bool {
        (self.time, self.value) < (other.time, other.value)
    }
}

#[derive(Clone, Copy, Debug)]
struct Window {
    start: EventTime,
    end: EventTime,
    rule: RuleIndex,
    is_closed: bool,
    is_found: bool,
    /// The last row said that it is an anomaly.
    is_reported: bool,
    /// A row is due at the trigger.
    is_due: bool,
    /// Not saved yet as it is.
    is_changed: bool,
    revision: u32,
    count: u64,
    first: Point,
    last: Point,
    max_value: f64,
    min_value: f64,
    sum: Sum,
}

/// All windows of one group, in order of start and rule.
#[derive(Clone, Debug)]
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
        self.forget(late_before, context, out)
    }

    fn forget(
        &mut self,
        late_before: EventTime,
        context: &Context<'_>,
        out: &mut Outputs,
    ) -> usize {
        let held = self.windows.len();
        for window in self.windows.iter_mut().filter(|window| window.end <= late_before) {
            // The trigger would come too late for it.
            window.write_due_row(context, out);
        }
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
    pub(crate) fn is_new_for(&self, found: Match) -> bool {
        self.position(found.start, found.rule).is_err()
    }

    /// Counts a match that is not late. Gives what it did.
    pub(crate) fn add(
        &mut self,
        found: Match,
        watermark: EventTime,
        context: &Context<'_>,
        out: &mut Outputs,
    ) -> Added {
        let rule = &context.rules[usize::from(found.rule)];
        let (position, is_new) = match self.position(found.start, found.rule) {
            Ok(position) => (position, false),
            Err(position) => {
                self.windows.insert(position, Window::new(found, rule, watermark));
                (position, true)
            }
        };
        let window = &mut self.windows[position];
        window.count(found);
        let is_anomaly = window.is_anomaly(rule);
        if is_anomaly && !window.is_found && (window.is_closed || rule.threshold.is_early()) {
            let is_over = window.is_closed;
            out.findings.push(window.finding(rule, context, is_over));
        }
        let mut is_due_now = false;
        match rule.output_mode {
            OutputMode::Append => {
                if window.is_closed && (is_anomaly || window.is_reported) {
                    is_due_now = !std::mem::replace(&mut window.is_due, true);
                }
            }
            OutputMode::Update => is_due_now = !std::mem::replace(&mut window.is_due, true),
            OutputMode::Complete => {}
        }
        if is_new {
            self.next_forget = self.next_forget.min(window.end);
            if !window.is_closed {
                self.next_close = self.next_close.min(window.end);
            }
        }
        Added { is_new, is_due_now }
    }

    /// The row of a window that has changed since the last trigger, if there is something to say.
    pub(crate) fn row_at_trigger(
        &mut self,
        start: EventTime,
        rule: RuleIndex,
        context: &Context<'_>,
        out: &mut Outputs,
    ) {
        let Ok(position) = self.position(start, rule) else { return };
        self.windows[position].write_due_row(context, out);
    }

    /// Counts a match that another program has counted; windows that are forgotten by then are left alone.
    pub(crate) fn adopt(&mut self, found: Match, rule: &Rule, late_before: EventTime) {
        let position = match self.position(found.start, found.rule) {
            Ok(position) => position,
            Err(_) if found.start.saturating_add_micros(rule.window.get()) <= late_before => return,
            Err(position) => {
                let never = EventTime::from_micros(i64::MIN);
                self.windows.insert(position, Window::new(found, rule, never));
                position
            }
        };
        self.windows[position].count(found);
    }

    /// Takes what another program has said of a window.
    pub(crate) fn adopt_row(
        &mut self,
        start: EventTime,
        place: RuleIndex,
        rule: &Rule,
        told: Told,
    ) {
        let Ok(position) = self.position(start, place) else { return };
        let window = &mut self.windows[position];
        if told.revision < window.revision {
            return;
        }
        window.revision = told.revision;
        window.is_reported = told.is_anomaly;
        // What more readings can take back is a finding at the close alone.
        window.is_found |= told.is_anomaly && (!told.is_open || rule.threshold.is_early());
        window.is_closed |= !told.is_open;
        let is_old = window.count != told.count && (told.is_anomaly || window.is_anomaly(rule));
        window.is_due = window.is_closed && is_old;
    }

    /// Forgets what ended at or before `late_before`, of which the other program has said the last, and sees to it that closed windows
    /// get a row at the next trigger if the last one says something else.
    pub(crate) fn end_adoption(&mut self, rules: &[Rule], late_before: EventTime) {
        self.windows.retain(|window| window.end > late_before);
        self.judge_anew(rules, &vec![true; rules.len()]);
        self.look_ahead();
    }

    /// Windows whose row is due at the next trigger.
    pub(crate) fn due(&self) -> impl Iterator<Item = (EventTime, RuleIndex)> {
        let due = self.windows.iter().filter(|window| window.is_due);
        due.map(|window| (window.start, window.rule))
    }

    /// Rows of all windows of rules in output mode `complete`.
    pub(crate) fn current_rows(&self, context: &Context<'_>, rows: &mut Vec<AnomalyRow>) {
        for window in &self.windows {
            let rule = &context.rules[usize::from(window.rule)];
            if rule.output_mode == OutputMode::Complete {
                let closed_by = if window.is_closed { ClosedBy::Watermark } else { ClosedBy::Open };
                rows.push(AnomalyRow { revision: 1, ..window.row(rule, closed_by, context) });
            }
        }
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

    /// Closed windows of the chosen rules get a row at the next trigger if the last one says something else than the rule now.
    pub(crate) fn judge_anew(&mut self, rules: &[Rule], is_chosen: &[bool]) {
        for window in self.windows.iter_mut().filter(|window| window.is_closed) {
            let place = usize::from(window.rule);
            let rule = &rules[place];
            if is_chosen[place]
                && rule.output_mode != OutputMode::Complete
                && window.is_anomaly(rule) != window.is_reported
            {
                window.is_due = true;
                window.is_changed = true;
            }
        }
    }

    /// The windows that are not saved yet as they are.
    pub(crate) fn take_changed(&mut self) -> Self {
        let changed = self.windows.iter_mut().filter(|window| window.is_changed);
        let changed = changed.map(|window| {
            window.is_changed = false;
            *window
        });
        Self::from(changed.collect::<Vec<_>>())
    }

    /// Says that all windows are saved as they are.
    pub(crate) fn mark_saved(&mut self) {
        self.windows.iter_mut().for_each(|window| window.is_changed = false);
    }

    /// Puts saved windows in, in place of those of the same start and rule, and forgets what ended at or before `late_before`.
    pub(crate) fn merge(&mut self, changed: Self, late_before: EventTime) {
        for window in changed.windows {
            match self.position(window.start, window.rule) {
                Ok(position) => self.windows[position] = window,
                Err(position) => self.windows.insert(position, window),
            }
        }
        self.windows.retain(|window| window.end > late_before);
        self.look_ahead();
    }

    /// Whether each window fits its rule and stands in its place: what a state file must show.
    pub(crate) fn is_consistent(&self, rules: &[Rule]) -> bool {
        let in_order = self.windows.is_sorted_by(|a, b| (a.start, a.rule) < (b.start, b.rule));
        in_order
            && self.windows.iter().all(|window| {
                rules.get(usize::from(window.rule)).is_some_and(|rule| {
                    rule.slide.get() > 0
                        && window.start.micros().rem_euclid(rule.slide.get()) == 0
                        && window.start.saturating_add_micros(rule.window.get()) == window.end
                })
            })
    }

    fn position(&self, start: EventTime, rule: RuleIndex) -> Result<usize, usize> {
        // Most matches are for the newest windows.
        if let Some(last) = self.windows.last() {
            match (last.start, last.rule).cmp(&(start, rule)) {
                std::cmp::Ordering::Less => return Err(self.windows.len()),
                std::cmp::Ordering::Equal => return Ok(self.windows.len() - 1),
                std::cmp::Ordering::Greater => {}
            }
        }
        self.windows.binary_search_by_key(&(start, rule), |window| (window.start, window.rule))
    }

    fn close(
        &mut self,
        is_over: impl Fn(&Window) -> bool,
        closed_by: ClosedBy,
        context: &Context<'_>,
        out: &mut Outputs,
    ) {
        for window in &mut self.windows {
            if window.is_closed || !is_over(window) {
                continue;
            }
            window.is_closed = true;
            window.is_changed = true;
            window.is_due = false;
            let rule = &context.rules[usize::from(window.rule)];
            let is_anomaly = window.is_anomaly(rule);
            if is_anomaly && !window.is_found {
                out.findings.push(window.finding(rule, context, false));
            }
            if (is_anomaly || window.is_reported) && rule.output_mode != OutputMode::Complete {
                out.anomalies.push(window.next_row(rule, closed_by, context));
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

/// What the newest row of a window says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) is_anomaly: bool,
    pub(crate) count: u64,
    pub(crate) revision: u32,
    pub(crate) is_open: bool,
}

/// What a match did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Added {
    /// A window came into being.
    pub(crate) is_new: bool,
    /// The window's row has become due at the next trigger.
    pub(crate) is_due_now: bool,
}

impl Window {
    fn new(found: Match, rule: &Rule, watermark: EventTime) -> Self {
        let end = found.start.saturating_add_micros(rule.window.get());
        let point = Point { time: found.timestamp, value: found.value };
        Self {
            start: found.start,
            end,
            rule: found.rule,
            is_closed: end <= watermark,
            is_found: false,
            is_reported: false,
            is_due: false,
            is_changed: true,
            revision: 0,
            count: 0,
            first: point,
            last: point,
            max_value: found.value,
            min_value: found.value,
            sum: Sum::default(),
        }
    }

    fn count(&mut self, found: Match) {
        let point = Point { time: found.timestamp, value: found.value };
        self.is_changed = true;
        self.count += 1;
        if point.is_before(self.first) {
            self.first = point;
        }
        if self.last.is_before(point) {
            self.last = point;
        }
        self.max_value = self.max_value.max(found.value);
        self.min_value = self.min_value.min(found.value);
        self.sum.add(found.value);
    }

    fn mean(&self) -> f64 {
        self.sum.value() / self.count as f64
    }

    fn rate_of_change(&self) -> Option<f64> {
        let micros = self.last.time.micros() - self.first.time.micros();
        (micros > 0).then(|| (self.last.value - self.first.value) / (micros as f64 / 1e6))
    }

    fn aggregate(&self, aggregate: Aggregate, rule: &Rule) -> Option<f64> {
        match aggregate {
            Aggregate::Count => Some(self.count as f64),
            Aggregate::Rate => Some(self.count as f64 / (rule.window.get() as f64 / 1e6)),
            Aggregate::Mean => Some(self.mean()),
            Aggregate::Max => Some(self.max_value),
            Aggregate::Min => Some(self.min_value),
            Aggregate::RateOfChange => self.rate_of_change(),
        }
    }

    fn is_anomaly(&self, rule: &Rule) -> bool {
        let threshold = rule.threshold;
        self.aggregate(threshold.aggregate, rule)
            .is_some_and(|found| threshold.comparison.holds(found, threshold.value))
    }

    fn write_due_row(&mut self, context: &Context<'_>, out: &mut Outputs) {
        if !std::mem::take(&mut self.is_due) {
            return;
        }
        self.is_changed = true;
        let rule = &context.rules[usize::from(self.rule)];
        if self.is_anomaly(rule) || self.is_reported {
            let closed_by = if self.is_closed { ClosedBy::Correction } else { ClosedBy::Open };
            out.anomalies.push(self.next_row(rule, closed_by, context));
        }
    }

    fn next_row(&mut self, rule: &Rule, closed_by: ClosedBy, context: &Context<'_>) -> AnomalyRow {
        self.revision += 1;
        let row = self.row(rule, closed_by, context);
        self.is_reported = row.is_anomaly;
        row
    }

    fn row(&self, rule: &Rule, closed_by: ClosedBy, context: &Context<'_>) -> AnomalyRow {
        AnomalyRow {
            rule: rule.name.clone(),
            sensor_id: context.group.sensor().cloned(),
            machine_id: context.group.machine().cloned(),
            window_start: self.start,
            window_end: self.end,
            is_anomaly: self.is_anomaly(rule),
            count: self.count,
            revision: self.revision,
            closed_by,
            max_value: self.max_value,
            min_value: self.min_value,
            mean_value: self.mean(),
            rate_of_change: self.rate_of_change(),
            first_match: self.first.time,
            last_match: self.last.time,
            emitted_at: context.now,
        }
    }

    /// `is_over`: a match has come for a window that was closed before.
    fn finding(&mut self, rule: &Rule, context: &Context<'_>, is_over: bool) -> Finding {
        self.is_found = true;
        Finding {
            id: alert_id(&rule.name, context.group.name(), self.start),
            rule: rule.name.clone(),
            severity: rule.severity,
            sensor_id: context.group.sensor().cloned(),
            machine_id: context.group.machine().cloned(),
            window_start: self.start,
            window_end: self.end,
            count: self.count,
            threshold: rule.threshold,
            observed: self.aggregate(rule.threshold.aggregate, rule).unwrap_or_default(),
            fired_at: context.now,
            historical: is_over || self.end < context.historical_before,
        }
    }
}
