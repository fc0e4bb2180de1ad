//! The book tells what a model tells that keeps every alert that ever was, with all of its findings, and looks at all of them each
//! time.

use std::collections::BTreeMap;

use proptest::prelude::*;
use shared_proto::model::{MachineEvent, MachineEventDetails, MachineEventType};

use super::*;
use crate::rule::Rule;
use crate::time::Micros;

const START: i64 = 1_772_352_000_000_000;
const SECOND: i64 = 1_000_000;
/// Length of the windows, and half of the time after which an alert is over.
const WINDOW: i64 = 10 * SECOND;

#[derive(Clone, Debug)]
enum Step {
    Find {
        sensor: usize,
        rule: usize,
        window: i64,
        observed: i8,
        historical: bool,
    },
    /// What came so many steps ago, again.
    Repeat {
        back: usize,
    },
    Event {
        event_type: MachineEventType,
        machine: usize,
        second: i64,
        trip: Option<u8>,
        historical: bool,
    },
    Pass {
        seconds: i64,
    },
    SaveAndRestore,
}

#[derive(Clone, Debug)]
enum Input {
    Finding(Finding),
    Event(Box<MachineEvent>),
}

/// A finding or an event, as the model keeps it.
#[derive(Clone, Debug)]
struct Item {
    alert: AlertEvent,
    /// Kind, machine or group, rule, subject: what is one alert.
    key: [String; 4],
    id: String,
    came_at: ProcessingTime,
    is_event: bool,
}

#[derive(Clone, Debug)]
struct Lasting {
    items: Vec<Item>,
    /// As it was told last.
    told: AlertEvent,
    is_open: bool,
}

#[derive(Default)]
struct Model {
    all: Vec<Lasting>,
    ends: Vec<MachineEvent>,
}

impl Lasting {
    /// The event made of all items and of what was told last.
    fn event(&self, told: AlertEvent) -> AlertEvent {
        let items = || self.items.iter().map(|item| &item.alert);
        let most = items().map(|item| item.observed.abs()).fold(0.0, f64::max);
        let first = &self.items[0].alert;
        let extreme = items().find(|item| item.observed.abs() >= most).unwrap_or(first);
        let end = items().map(|item| item.window_end).max().expect("one item");
        let latest = items().rfind(|item| {
            let before = items().take_while(|other| !std::ptr::eq(*other, *item));
            !item.detail.is_empty()
                && before
                    .map(|other| other.window_end)
                    .max()
                    .is_none_or(|max| item.window_end >= max)
        });
        AlertEvent {
            window_start: first.window_start,
            window_end: end,
            findings: self.items.len() as u64,
            count: extreme.count,
            threshold: extreme.threshold.clone(),
            observed: extreme.observed,
            detail: latest.map_or(String::new(), |item| item.detail.clone()),
            ..told
        }
    }

    fn tell(
        &mut self,
        state: AlertState,
        why: &str,
        now: ProcessingTime,
        out: &mut Vec<AlertEvent>,
    ) {
        let last = self.told.clone();
        let mut told = self.event(AlertEvent { state, changed_at: now, ..last });
        told.revision += 1;
        if state == AlertState::Resolved {
            told.resolved_at = Some(now);
            self.is_open = false;
        }
        if !why.is_empty() {
            let between = if told.detail.is_empty() { "" } else { "; " };
            told.detail = format!("{}{between}{why}", told.detail);
        }
        self.told = told.clone();
        out.push(told);
    }
}

fn suppressor(alert: &AlertEvent, settings: &AlertSettings, now: ProcessingTime) -> Option<String> {
    let covering = settings.suppressions.iter().find(|one| {
        let SuppressionTime::At { from, until } = one.when else { return false };
        let is_machine = one.machines.is_empty()
            || one.machines.iter().any(|machine| Some(machine) == alert.machine_id.as_ref());
        let is_rule = one.rules.is_empty() || one.rules.contains(&alert.rule);
        (from..until).contains(&now) && is_machine && is_rule
    });
    covering.map(|one| format!("maintenance:{}", one.name))
}

impl Model {
    fn handle(
        &mut self,
        input: &Input,
        now: ProcessingTime,
        settings: &AlertSettings,
        out: &mut Vec<AlertEvent>,
    ) {
        match input {
            Input::Finding(finding) => self.find(finding, now, settings, out),
            Input::Event(event) => self.take(event, now, settings, out),
        }
    }

    fn find(
        &mut self,
        finding: &Finding,
        now: ProcessingTime,
        settings: &AlertSettings,
        out: &mut Vec<AlertEvent>,
    ) {
        let group = match (settings.by, &finding.machine_id, &finding.sensor_id) {
            (AlertGroup::Machine, Some(machine), _) => machine.to_string(),
            (AlertGroup::Machine | AlertGroup::Sensor, _, Some(sensor)) => sensor.to_string(),
            (AlertGroup::Machine | AlertGroup::Sensor, _, None) => panic!("all have sensors"),
        };
        let mut alert = AlertEvent::from(finding.clone());
        alert.alert_id = alert_id(&finding.rule, &group, finding.window_start);
        (alert.fired_at, alert.changed_at) = (now, now);
        let key = ["finding".to_owned(), group, finding.rule.clone(), String::new()];
        let (id, is_event) = (finding.id.clone(), false);
        let mut item = Item { alert, key, id, came_at: now, is_event };
        if self.of(&item.key).any(|one| one.items.iter().any(|other| other.id == item.id)) {
            return;
        }
        let over = self.of(&item.key).filter(|one| !one.is_open).flat_map(|one| &one.items);
        if over.map(|other| other.alert.window_end).max() >= Some(item.alert.window_end) {
            item.alert.historical = true;
        }
        let patience = settings.resolve_after.get() + WINDOW;
        for one in self.all.iter_mut().filter(|one| one.is_open && one.items[0].key == item.key) {
            let end = one.event(one.told.clone()).window_end;
            if item.alert.window_start.micros() - end.micros() > patience {
                one.tell(AlertState::Resolved, "", now, out);
            }
        }
        self.add(item, now, settings, out);
    }

    fn take(
        &mut self,
        event: &MachineEvent,
        now: ProcessingTime,
        settings: &AlertSettings,
        out: &mut Vec<AlertEvent>,
    ) {
        use MachineEventType::{Reset, StopConfirmed, StopNotConfirmed, Trip};
        if event.event_type == Reset || event.event_type == StopConfirmed {
            self.ends.push(event.clone());
            // In the order of their words, as the book has them: trips before stops that are not confirmed.
            for word in [Trip, StopNotConfirmed] {
                if word == Trip && event.event_type == StopConfirmed {
                    continue;
                }
                self.end(word.as_str(), event, now, out);
            }
            return;
        }
        let is_alerting = event.event_type == Trip || event.event_type == StopNotConfirmed;
        if !is_alerting {
            return;
        }
        let item = item_of_event(event, now);
        if self.of(&item.key).any(|one| one.items.iter().any(|other| other.id == item.id)) {
            return;
        }
        let is_over = self.ends.iter().any(|end| {
            end.machine_id == event.machine_id
                && end.timestamp >= event.timestamp
                && (end.event_type == Reset || event.event_type == StopNotConfirmed)
        });
        if !is_over || self.of(&item.key).any(|one| one.is_open) {
            self.add(item, now, settings, out);
        } else if self.of(&item.key).all(|one| one.told.alert_id != item.alert.alert_id) {
            let mut item = item;
            item.alert.historical = true;
            self.add(item, now, settings, out);
            let last = self.all.last_mut().expect("just added");
            last.tell(AlertState::Resolved, "", now, out);
        }
    }

    fn end(
        &mut self,
        word: &str,
        event: &MachineEvent,
        now: ProcessingTime,
        out: &mut Vec<AlertEvent>,
    ) {
        let mut ended: Vec<&mut Lasting> = self
            .all
            .iter_mut()
            .filter(|one| {
                let about = &one.told;
                let is_trip = about.trip_id.is_some() && about.trip_id == event.details.trip_id;
                one.is_open
                    && one.items[0].is_event
                    && about.rule == word
                    && about.machine_id.as_ref() == Some(&event.machine_id)
                    && (is_trip || one.items[0].alert.window_start <= event.timestamp)
            })
            .collect();
        ended.sort_by_key(|one| one.items[0].key.clone());
        for one in ended {
            one.tell(AlertState::Resolved, "", now, out);
        }
    }

    fn add(
        &mut self,
        item: Item,
        now: ProcessingTime,
        settings: &AlertSettings,
        out: &mut Vec<AlertEvent>,
    ) {
        let lasting = self.all.iter_mut().find(|one| one.is_open && one.items[0].key == item.key);
        if let Some(one) = lasting {
            let is_present = one.told.historical && !item.alert.historical;
            one.items.push(item);
            if is_present {
                one.told.historical = false;
                one.told.suppressed_by = suppressor(&one.told, settings, now);
                one.tell(AlertState::Fired, "", now, out);
            }
            return;
        }
        if self.all.iter().filter(|one| one.is_open).count() == settings.open_max {
            let oldest = self.all.iter_mut().find(|one| one.is_open).expect("one is open");
            let why = "resolved because too many alerts are open (alerting.open-max), it may last";
            oldest.tell(AlertState::Resolved, why, now, out);
        }
        let mut told = item.alert.clone();
        let before = self.of(&item.key).filter(|one| one.told.alert_id == told.alert_id);
        told.revision = before.map(|one| one.told.revision).max().unwrap_or(0) + 1;
        told.suppressed_by = suppressor(&told, settings, now);
        out.push(told.clone());
        self.all.push(Lasting { items: vec![item], told, is_open: true });
    }

    fn pass(&mut self, now: ProcessingTime, settings: &AlertSettings, out: &mut Vec<AlertEvent>) {
        let mut open: Vec<&mut Lasting> = self.all.iter_mut().filter(|one| one.is_open).collect();
        open.sort_by_key(|one| {
            let [kind, machine, rule, subject] = one.items[0].key.clone();
            // The book has the events of a machine in order of their enum, findings before all.
            let rank = if rule == "trip" { 0 } else { 1 };
            (kind != "finding", machine, rank, rule, subject)
        });
        for one in open.iter_mut().filter(|one| !one.items[0].is_event) {
            let end = one.event(one.told.clone()).window_end.micros();
            let came = one.items.last().expect("one item").came_at.micros();
            let last = if end - came < 3600 * SECOND { end.max(came) } else { came };
            if last + settings.resolve_after.get() + WINDOW <= now.micros() {
                one.tell(AlertState::Resolved, "", now, out);
            }
        }
        for one in open.into_iter().filter(|one| one.is_open) {
            if one.told.suppressed_by.is_some() {
                one.told.suppressed_by = suppressor(&one.told, settings, now);
                if one.told.suppressed_by.is_none() {
                    one.tell(AlertState::Fired, "", now, out);
                }
            }
        }
    }

    fn of<'a>(&'a self, key: &'a [String; 4]) -> impl Iterator<Item = &'a Lasting> {
        self.all.iter().filter(move |one| one.items[0].key == *key)
    }
}

fn item_of_event(event: &MachineEvent, now: ProcessingTime) -> Item {
    let word = event.event_type.as_str();
    let trip = event.details.trip_id.clone();
    let subject = trip.clone().unwrap_or_default();
    let time = event.timestamp.micros();
    let name = trip.clone().unwrap_or_else(|| format!(" {time}"));
    let detail = trip.as_ref().map_or(String::new(), |trip| format!("trip {trip}"));
    let alert = AlertEvent {
        alert_id: text_id(&[word, event.machine_id.as_str(), &name]),
        revision: 1,
        state: AlertState::Fired,
        rule: word.to_owned(),
        severity: if event.event_type == MachineEventType::Trip { 1 } else { 0 },
        machine_id: Some(event.machine_id.clone()),
        sensor_id: None,
        window_start: event.timestamp,
        window_end: event.timestamp,
        findings: 1,
        count: 1,
        threshold: String::new(),
        observed: 0.0,
        detail,
        trip_id: trip,
        fired_at: now,
        changed_at: now,
        resolved_at: None,
        historical: event.historical,
        suppressed_by: None,
    };
    let machine = event.machine_id.to_string();
    let id = format!("{word} {machine} {subject} {time}");
    let key = ["event".to_owned(), machine, word.to_owned(), subject];
    Item { alert, key, id, came_at: now, is_event: true }
}

fn finding(sensor: usize, rule: usize, window: i64, observed: i8, historical: bool) -> Finding {
    let (sensor, machine) = [("m0/a", "m0"), ("m0/b", "m0"), ("m1/a", "m1"), ("lone", "")][sensor];
    let rule = format!("rule-{rule}");
    let window_start = EventTime::from_micros(START + window * WINDOW);
    Finding {
        id: alert_id(&rule, sensor, window_start),
        rule,
        severity: 2,
        sensor_id: SensorId::new(sensor).ok(),
        machine_id: MachineId::new(machine).ok(),
        window_start,
        window_end: window_start.saturating_add_micros(WINDOW),
        count: u64::from(observed.unsigned_abs()),
        threshold: Rule::seed().threshold,
        observed: f64::from(observed),
        fired_at: ProcessingTime::from_micros(START),
        historical,
    }
}

fn step() -> impl Strategy<Value = Step> {
    use MachineEventType::{Reset, Started, StopConfirmed, StopNotConfirmed, Trip, TripSuppressed};
    let window = prop_oneof![8 => -3_i64..30, 1 => 350_i64..370];
    let find = (0_usize..4, 0_usize..2, window, -5_i8..5, prop::bool::weighted(0.2));
    let find = find.prop_map(|(sensor, rule, window, observed, historical)| Step::Find {
        sensor,
        rule,
        window,
        observed,
        historical,
    });
    let types =
        [Trip, Trip, Reset, Reset, StopNotConfirmed, StopConfirmed, Started, TripSuppressed];
    let event = (
        prop::sample::select(types.to_vec()),
        0_usize..2,
        0_i64..60,
        prop::option::weighted(0.8, 0_u8..3),
        prop::bool::weighted(0.2),
    );
    let event = event.prop_map(|(event_type, machine, second, trip, historical)| Step::Event {
        event_type,
        machine,
        second,
        trip,
        historical,
    });
    prop_oneof![
        8 => find,
        2 => (0_usize..8).prop_map(|back| Step::Repeat { back }),
        4 => event,
        4 => (-5_i64..40).prop_map(|seconds| Step::Pass { seconds }),
        1 => Just(Step::SaveAndRestore),
    ]
}

fn suppressions() -> impl Strategy<Value = Vec<Suppression>> {
    let one = (0_i64..200, 1_i64..100, prop::option::of(0_usize..2), prop::option::of(0_usize..3));
    let lists = prop::collection::vec(one, 0..3);
    lists.prop_map(|list| {
        let suppression = |(number, (from, length, machine, rule))| {
            let time = |second: i64| ProcessingTime::from_micros(START + second * SECOND);
            let machine: Option<usize> = machine;
            let rule: Option<usize> = rule;
            let number: usize = number;
            let machines = machine.and_then(|machine| MachineId::new(&format!("m{machine}")).ok());
            Suppression {
                name: format!("work-{number}"),
                kind: SuppressionKind::Maintenance,
                rules: rule
                    .map(|rule| ["rule-0", "rule-1", "trip"][rule].to_owned())
                    .into_iter()
                    .collect(),
                machines: machines.into_iter().collect(),
                when: SuppressionTime::At { from: time(from), until: time(from + length) },
            }
        };
        list.into_iter().enumerate().map(suppression).collect()
    })
}

/// Each alert's events are numbered without holes, and every other one at most is its end.
fn check_revisions(out: &[AlertEvent]) {
    let mut last: BTreeMap<&str, (u32, AlertState)> = BTreeMap::new();
    for event in out {
        let before = last.insert(&event.alert_id, (event.revision, event.state));
        let (revision, state) = before.unwrap_or((0, AlertState::Resolved));
        assert_eq!(event.revision, revision + 1, "{event:?}");
        let is_second_end = (state, event.state) == (AlertState::Resolved, AlertState::Resolved);
        assert!(!is_second_end, "{event:?}");
    }
}

fn input_of(step: &Step, given: &[Input]) -> Option<Input> {
    match step {
        Step::Find { sensor, rule, window, observed, historical } => {
            Some(Input::Finding(finding(*sensor, *rule, *window, *observed, *historical)))
        }
        Step::Repeat { back } => given.iter().rev().nth(*back).cloned(),
        Step::Event { event_type, machine, second, trip, historical } => {
            let event = MachineEvent {
                event_type: *event_type,
                machine_id: MachineId::new(&format!("m{machine}")).expect("a valid name"),
                timestamp: EventTime::from_micros(START + second * SECOND),
                identity: None,
                historical: *historical,
                details: MachineEventDetails {
                    trip_id: trip.map(|trip| format!("t{trip}")),
                    ..MachineEventDetails::default()
                },
            };
            Some(Input::Event(Box::new(event)))
        }
        Step::Pass { .. } | Step::SaveAndRestore => None,
    }
}

fn run(steps: &[Step], settings: &AlertSettings) {
    let (mut book, mut model) = (AlertBook::default(), Model::default());
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    let (mut now, mut given) = (ProcessingTime::from_micros(START), Vec::new());
    let mut latest = now;
    for step in steps {
        if let Some(input) = input_of(step, &given) {
            match input.clone() {
                Input::Finding(finding) => book.handle_finding(finding, now, settings, &mut found),
                Input::Event(event) => book.handle_machine_event(&event, now, settings, &mut found),
            }
            model.handle(&input, now, settings, &mut expected);
            given.push(input);
        }
        match step {
            Step::Pass { seconds } => {
                now = now.saturating_add(Micros::from_seconds(*seconds));
                let is_due = book.poll_timeout(settings).is_some_and(|timeout| timeout <= now);
                let before = found.len();
                book.handle_time(now, settings, &mut found);
                // A clock that is set back may stand before the begin of a suppression.
                let is_set_back = now < latest;
                latest = latest.max(now);
                assert!(is_due || is_set_back || found.len() == before, "told before its time");
                let next = book.poll_timeout(settings);
                assert!(next.is_none_or(|next| next > now), "due again at once");
                model.pass(now, settings, &mut expected);
            }
            Step::SaveAndRestore => {
                let text = serde_json::to_string(&book).expect("serialisable");
                let restored: AlertBook = serde_json::from_str(&text).expect("readable");
                assert_eq!(restored, book);
                book = restored;
            }
            Step::Find { .. } | Step::Repeat { .. } | Step::Event { .. } => {}
        }
        assert_eq!(found, expected, "after {step:?}");
    }
    check_revisions(&found);
    let open = model.all.iter().filter(|one| one.is_open).count();
    assert_eq!(book.open_count(), open);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn book_tells_what_a_model_without_limits_tells(
        steps in prop::collection::vec(step(), 1..30),
        by in prop::sample::select(vec![AlertGroup::Machine, AlertGroup::Sensor]),
        open_max in prop::sample::select(vec![2_usize, 3, 100]),
        suppressions in suppressions(),
    ) {
        let resolve_after = Micros::new(WINDOW);
        let rest = AlertSettings::default();
        let settings = AlertSettings { by, resolve_after, open_max, suppressions, ..rest };
        prop_assert_eq!(settings.validate(), Ok(()));
        run(&steps, &settings);
    }
}
