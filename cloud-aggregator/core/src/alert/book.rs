//! Which alerts are open, when one fires, and when it is over.
//!
//! # Findings
//! A finding of a group (machine or sensor) and rule whose alert is open is added to it, and nobody is told again. An alert is over
//! when so much as [`AlertSettings::resolve_after`] and the length of a window has passed without a finding: in event time, when a later
//! finding shows it, or in processing time, when nothing comes at all. A finding of a window that ends no later than what an alert of
//! its group, over by now, has seen opens an alert that is historical: it tells of the past. A finding that is not historical makes
//! a historical alert that is open a present one: it fires again.
//!
//! # Machine events
//! A trip fires, and the reset of the machine resolves it, whatever time passes between the two; likewise the others of
//! [`AlertingEvent`]. Devices send what they kept while they were cut off, so an event may come after the one that ends it: its alert
//! is historical and resolved at once.
//!
//! # What is remembered, and how much of it
//! Everything stands in each state file, so all of it has a limit. A repeat of a finding is known by the last
//! [`FINDINGS_REMEMBERED_MAX`] findings of its alert; an older repeat is counted again in [`AlertEvent::findings`], and tells nobody. Of the
//! last [`PAST_MAX`] groups and rules whose alerts are over it is known how far they went and what the last [`TOLD_MAX`] alerts were: an alert
//! that fires again under the same id goes on with its revisions. Behind that limit a late finding fires as if it were the first, under
//! the id and revision that receivers know already.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shared_proto::model::{EventTime, MachineEvent, MachineId};

use super::machine::{self, AlertingEvent, ENDS_MAX, Ending, Role};
use super::memory::Memory;
use super::settings::{AlertGroup, AlertSettings};
use super::{AlertEvent, AlertState, Finding, alert_id, text_id};
use crate::time::{Micros, ProcessingTime};

/// Findings remembered of each alert.
pub const FINDINGS_REMEMBERED_MAX: usize = 32;
/// Groups and rules whose alerts are over, and still remembered; one more forgets the one that was over first.
pub const PAST_MAX: usize = 2_048;
/// Alerts remembered of each of them.
pub const TOLD_MAX: usize = 8;

/// A window that ends farther ahead of the clock was measured by a sensor whose clock is wrong: an alert does not wait for it.
const AHEAD_MAX: Micros = Micros::from_seconds(3600);
const OVERFLOW: &str = "resolved because too many alerts are open (alerting.open-max), it may last";

/// The alerts of one Kafka partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AlertBook {
    open: Memory<Key, OpenAlert>,
    past: Memory<Key, Past>,
    ends: Memory<EndKey, EventTime>,
}

/// What becomes one alert while it lasts. Those of a machine's events stand together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Key {
    Findings { group: String, rule: String },
    Events { machine: MachineId, event: AlertingEvent, subject: String },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct EndKey(MachineId, Ending, String);

/// First 64 bits of the SHA-256 of an id: enough to know it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Mark(u64);

impl Mark {
    fn of(id: &str) -> Self {
        let hash = Sha256::digest(id);
        Self(hash.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OpenAlert {
    /// As it was told last, with what has come to it since.
    event: AlertEvent,
    /// Length of the latest finding's window.
    window: Micros,
    /// When the latest finding came.
    seen_at: ProcessingTime,
    /// When it was last seen whether something keeps it from people.
    checked_at: ProcessingTime,
    /// Its latest findings.
    known: Vec<Mark>,
}

/// What is left of alerts that are over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Past {
    /// Latest end of a window that they have seen.
    window_end: EventTime,
    /// Their ids and last revisions.
    told: Vec<(Mark, u32)>,
    /// Their latest findings.
    known: Vec<Mark>,
}

/// A finding or a machine event on its way into an alert.
struct News {
    key: Key,
    mark: Mark,
    /// The alert that it would open, without the reasons to keep it from people.
    event: AlertEvent,
    window: Micros,
}

impl AlertBook {
    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.past.is_empty() && self.ends.is_empty()
    }

    /// Alerts that are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// The open alerts as they were told last, with what has come to them since.
    pub fn open_alerts(&self) -> impl Iterator<Item = &AlertEvent> {
        self.open.iter().map(|(_, alert)| &alert.event)
    }

    /// Takes a finding; what changes is appended to `out`.
    pub fn handle_finding(
        &mut self,
        finding: Finding,
        now: ProcessingTime,
        settings: &AlertSettings,
        out: &mut Vec<AlertEvent>,
    ) {
        let mut news = news_of_finding(finding, now, settings.by);
        if self.is_known(&news) {
            return;
        }
        if self.past.get(&news.key).is_some_and(|past| news.event.window_end <= past.window_end) {
            news.event.historical = true;
        }
        if self.open.get(&news.key).is_some_and(|alert| alert.is_over_at(&news, settings)) {
            self.resolve(&news.key, now, None, out);
        }
        self.take(news, now, settings, out);
    }

    /// Takes a machine event, if it is one that fires or ends alerts; what changes is appended to `out`.
    pub fn handle_machine_event(
        &mut self,
        event: &MachineEvent,
        now: ProcessingTime,
        settings: &AlertSettings,
        out: &mut Vec<AlertEvent>,
    ) {
        match machine::role(event.event_type) {
            Role::Fires(kind) => self.fire_event(kind, event, now, settings, out),
            Role::Ends(ending) => self.end_events(ending, event, now, settings, out),
            Role::Neither => {}
        }
    }

    /// Resolves what nothing was found of for long enough, and tells of what lasts longer than the reason not to. An alert for which
    /// both are due is resolved: nobody is told of something that is over.
    pub fn handle_time(
        &mut self,
        now: ProcessingTime,
        settings: &AlertSettings,
        out: &mut Vec<AlertEvent>,
    ) {
        for alert in self.open.values_mut().filter(|alert| alert.is_ahead(now)) {
            alert.seen_at = now;
        }
        let silent = self.open.iter().filter(|(key, alert)| {
            alert.silent_at(key, settings).is_some_and(|deadline| deadline <= now)
        });
        let silent: Vec<Key> = silent.map(|(key, _)| key.clone()).collect();
        for key in silent {
            self.resolve(&key, now, None, out);
        }
        for alert in self.open.values_mut() {
            if alert.event.suppressed_by.is_none() {
                continue;
            }
            alert.check(now, settings);
            if alert.event.suppressed_by.is_none() {
                out.push(alert.next_event(AlertState::Fired, now));
            }
        }
    }

    /// Whether the clock was ahead by more than an hour when something was found last: then [`Self::handle_time`] has something to do.
    #[must_use]
    pub fn is_ahead(&self, now: ProcessingTime) -> bool {
        self.open.iter().any(|(_, alert)| alert.is_ahead(now))
    }

    /// When [`Self::handle_time`] has something to do. Looks at each open alert.
    #[must_use]
    pub fn poll_timeout(&self, settings: &AlertSettings) -> Option<ProcessingTime> {
        let times = self.open.iter().flat_map(|(key, alert)| {
            [alert.silent_at(key, settings), alert.checked_again_at(settings)]
        });
        times.flatten().min()
    }

    fn fire_event(
        &mut self,
        kind: AlertingEvent,
        event: &MachineEvent,
        now: ProcessingTime,
        settings: &AlertSettings,
        out: &mut Vec<AlertEvent>,
    ) {
        let Some(&severity) = settings.event_severities.get(&kind) else { return };
        let mut news = news_of_event(kind, severity, event, now);
        if self.is_known(&news) {
            return;
        }
        let key = news.key.clone();
        let is_over = self.is_ended(kind, event, &key);
        if self.open.get(&key).is_some() || !is_over {
            self.take(news, now, settings, out);
        } else if !self.is_told(&news) {
            news.event.historical = true;
            self.take(news, now, settings, out);
            self.resolve(&key, now, None, out);
        }
    }

    fn end_events(
        &mut self,
        ending: Ending,
        event: &MachineEvent,
        now: ProcessingTime,
        settings: &AlertSettings,
        out: &mut Vec<AlertEvent>,
    ) {
        let kinds = settings.event_severities.keys().copied();
        if !kinds.into_iter().any(|kind| kind.endings().contains(&ending)) {
            return;
        }
        let subject = ending.subject(&event.details);
        let end = EndKey(event.machine_id.clone(), ending, subject.clone());
        let at = self.ends.get(&end).map_or(event.timestamp, |last| event.timestamp.max(*last));
        self.ends.put_within(ENDS_MAX, end, at);
        for key in self.ended_by(ending, &subject, event) {
            self.resolve(&key, now, None, out);
        }
    }

    /// Open alerts of the event's machine that it ends: those of its trip, and those that began no later.
    fn ended_by(&self, ending: Ending, subject: &str, event: &MachineEvent) -> Vec<Key> {
        let first = Key::Events {
            machine: event.machine_id.clone(),
            event: AlertingEvent::Trip,
            subject: String::new(),
        };
        let trip = machine::trip_id(&event.details);
        let of_machine = self.open.range_from(first).take_while(|(key, _)| match key {
            Key::Findings { .. } => false,
            Key::Events { machine, .. } => *machine == event.machine_id,
        });
        let ended = of_machine.filter(|(key, alert)| match key {
            Key::Findings { .. } => false,
            Key::Events { event: kind, subject: about, .. } => {
                let is_trip = trip.is_some() && alert.event.trip_id.as_deref() == trip;
                kind.endings().contains(&ending)
                    && (subject.is_empty() || subject == about)
                    && (is_trip || alert.event.window_start <= event.timestamp)
            }
        });
        ended.map(|(key, _)| key.clone()).collect()
    }

    /// Whether something that ends such events came already, and happened no earlier.
    fn is_ended(&self, kind: AlertingEvent, event: &MachineEvent, key: &Key) -> bool {
        let Key::Events { machine, .. } = key else { return false };
        kind.endings().iter().any(|ending| {
            let end = EndKey(machine.clone(), *ending, ending.subject(&event.details));
            self.ends.get(&end).is_some_and(|at| event.timestamp <= *at)
        })
    }

    fn is_known(&self, news: &News) -> bool {
        let open = self.open.get(&news.key).is_some_and(|alert| alert.known.contains(&news.mark));
        open || self.past.get(&news.key).is_some_and(|past| past.known.contains(&news.mark))
    }

    /// Whether the alert that the news would open has been told and resolved.
    fn is_told(&self, news: &News) -> bool {
        let past = self.past.get(&news.key);
        past.is_some_and(|past| past.revision_of(Mark::of(&news.event.alert_id)).is_some())
    }

    fn take(
        &mut self,
        news: News,
        now: ProcessingTime,
        settings: &AlertSettings,
        out: &mut Vec<AlertEvent>,
    ) {
        match self.open.get_mut(&news.key) {
            Some(alert) => {
                let is_present = alert.event.historical && !news.event.historical;
                alert.add(news, now);
                if is_present {
                    alert.event.historical = false;
                    alert.check(now, settings);
                    out.push(alert.next_event(AlertState::Fired, now));
                }
            }
            None => self.open(news, now, settings, out),
        }
    }

    fn open(
        &mut self,
        News { key, mark, mut event, window }: News,
        now: ProcessingTime,
        settings: &AlertSettings,
        out: &mut Vec<AlertEvent>,
    ) {
        while self.open.len() >= settings.open_max.max(1) {
            let Some(oldest) = self.open.oldest().cloned() else { break };
            self.resolve(&oldest, now, Some(OVERFLOW), out);
        }
        let past = self.past.get(&key);
        let last = past.and_then(|past| past.revision_of(Mark::of(&event.alert_id)));
        event.revision = last.unwrap_or(0).saturating_add(1);
        let known = vec![mark];
        let mut alert = OpenAlert { event, window, seen_at: now, checked_at: now, known };
        alert.check(now, settings);
        out.push(alert.event.clone());
        self.open.put(key, alert);
    }

    fn resolve(
        &mut self,
        key: &Key,
        now: ProcessingTime,
        why: Option<&str>,
        out: &mut Vec<AlertEvent>,
    ) {
        let Some(mut alert) = self.open.remove(key) else { return };
        alert.event.resolved_at = Some(now);
        if let Some(why) = why {
            let between = if alert.event.detail.is_empty() { "" } else { "; " };
            alert.event.detail = format!("{}{between}{why}", alert.event.detail);
        }
        let told = alert.next_event(AlertState::Resolved, now);
        let mut past = self.past.remove(key).unwrap_or_else(|| Past::new(told.window_end));
        past.add(&told, alert.known);
        self.past.put_within(PAST_MAX, key.clone(), past);
        out.push(told);
    }
}

impl OpenAlert {
    fn add(&mut self, news: News, now: ProcessingTime) {
        let event = &mut self.event;
        let new = news.event;
        event.findings = event.findings.saturating_add(1);
        if new.observed.abs() > event.observed.abs() {
            event.count = new.count;
            event.threshold = new.threshold;
            event.observed = new.observed;
        }
        if new.window_end >= event.window_end && !new.detail.is_empty() {
            event.detail = new.detail;
        }
        event.window_end = event.window_end.max(new.window_end);
        event.machine_id = event.machine_id.take().or(new.machine_id);
        self.window = news.window;
        self.seen_at = now;
        push_within(FINDINGS_REMEMBERED_MAX, &mut self.known, news.mark);
    }

    /// Whether the clock was far ahead when its last finding came.
    fn is_ahead(&self, now: ProcessingTime) -> bool {
        self.seen_at.micros().saturating_sub(now.micros()) > AHEAD_MAX.get()
    }

    /// Whether a finding shows that it was over before: too much event time lies between the two.
    fn is_over_at(&self, news: &News, settings: &AlertSettings) -> bool {
        let end = self.event.window_end.saturating_add_micros(settings.resolve_after.get());
        news.event.window_start > end.saturating_add_micros(news.window.get())
    }

    /// When it is over if nothing else is found; never of a machine event, which another one ends.
    fn silent_at(&self, key: &Key, settings: &AlertSettings) -> Option<ProcessingTime> {
        match key {
            Key::Events { .. } => None,
            Key::Findings { .. } => {
                let end = self.event.window_end.micros();
                let ahead = Micros::new(end.saturating_sub(self.seen_at.micros()));
                let is_near = ahead < AHEAD_MAX;
                let last = ProcessingTime::from_micros(end).max(self.seen_at);
                let last = if is_near { last } else { self.seen_at };
                Some(last.saturating_add(settings.resolve_after).saturating_add(self.window))
            }
        }
    }

    /// When what keeps it from people may have ended.
    fn checked_again_at(&self, settings: &AlertSettings) -> Option<ProcessingTime> {
        self.event.suppressed_by.as_ref()?;
        let (rule, machine) = (&self.event.rule, self.event.machine_id.as_ref());
        let found = settings.suppression(rule, machine, self.checked_at);
        Some(found.map_or(self.checked_at, |(_, until)| until))
    }

    fn check(&mut self, now: ProcessingTime, settings: &AlertSettings) {
        let (rule, machine) = (&self.event.rule, self.event.machine_id.as_ref());
        let found = settings.suppression(rule, machine, now);
        self.event.suppressed_by = found.map(|(suppression, _)| suppression.label());
        self.checked_at = now;
    }

    fn next_event(&mut self, state: AlertState, now: ProcessingTime) -> AlertEvent {
        self.event.state = state;
        self.event.revision = self.event.revision.saturating_add(1);
        self.event.changed_at = now;
        self.event.clone()
    }
}

impl Past {
    fn new(window_end: EventTime) -> Self {
        Self { window_end, told: Vec::new(), known: Vec::new() }
    }

    fn add(&mut self, event: &AlertEvent, known: Vec<Mark>) {
        let id = Mark::of(&event.alert_id);
        self.window_end = self.window_end.max(event.window_end);
        self.told.retain(|(told, _)| *told != id);
        push_within(TOLD_MAX, &mut self.told, (id, event.revision));
        for mark in known {
            push_within(FINDINGS_REMEMBERED_MAX, &mut self.known, mark);
        }
    }

    fn revision_of(&self, id: Mark) -> Option<u32> {
        self.told.iter().find(|(told, _)| *told == id).map(|(_, revision)| *revision)
    }
}

fn news_of_finding(finding: Finding, now: ProcessingTime, by: AlertGroup) -> News {
    let (sensor, machine) = (finding.sensor_id.as_ref(), finding.machine_id.as_ref());
    let group = match by {
        AlertGroup::Machine => machine.map_or_else(|| finding.group(), |id| id.as_str()),
        AlertGroup::Sensor => sensor.map_or_else(|| finding.group(), |id| id.as_str()),
    };
    let key = Key::Findings { group: group.to_owned(), rule: finding.rule.clone() };
    let id = alert_id(&finding.rule, group, finding.window_start);
    let mark = Mark::of(&finding.id);
    let window = Micros::new(finding.window_end.micros_since(finding.window_start));
    let event = AlertEvent { alert_id: id, fired_at: now, changed_at: now, ..finding.into() };
    News { key, mark, event, window }
}

fn news_of_event(
    kind: AlertingEvent,
    severity: u8,
    event: &MachineEvent,
    now: ProcessingTime,
) -> News {
    let subject = kind.subject(&event.details);
    let time = event.timestamp.micros().to_string();
    let mark = Mark::of(&text_id(&[kind.as_str(), event.machine_id.as_str(), &subject, &time]));
    let alert = AlertEvent {
        alert_id: machine::event_alert_id(kind, event, &subject),
        revision: 1,
        state: AlertState::Fired,
        rule: kind.as_str().to_owned(),
        severity,
        machine_id: Some(event.machine_id.clone()),
        sensor_id: event.details.sensor_id.clone(),
        window_start: event.timestamp,
        window_end: event.timestamp,
        findings: 1,
        count: 1,
        threshold: String::new(),
        observed: 0.0,
        detail: machine::detail(&event.details),
        trip_id: machine::trip_id(&event.details).map(str::to_owned),
        fired_at: now,
        changed_at: now,
        resolved_at: None,
        historical: event.historical,
        suppressed_by: None,
    };
    let key = Key::Events { machine: event.machine_id.clone(), event: kind, subject };
    News { key, mark, event: alert, window: Micros::new(0) }
}

/// Beyond the limit the oldest goes.
fn push_within<T>(limit: usize, list: &mut Vec<T>, item: T) {
    if list.len() >= limit {
        list.remove(0);
    }
    list.push(item);
}
