//! A simulated edge module: sensors, dead band, a journal that forgets what was not synced, three outboxes.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use edge_core::deadband::{Deadband, DeadbandSettings, Verdict};
use edge_core::outbox::{Disposition, Outbox, OutboxSettings};
use shared_proto::model::{
    DeadLetter, DeviceId, EventTime, Generation, Identity, MachineEvent, MachineEventDetails,
    MachineEventType, MachineId, MetricType, Quality, Reading, SensorId, Sequence,
};

use crate::broker::{Broker, LANES, Lane, Payload, Producer, Report};
use crate::random::Random;
use crate::world::{Clock, Faults, History, SECOND};

const SEGMENT_RECORDS: u64 = 16;
const SEGMENTS_MAX: u64 = 12;
const OUTBOX: OutboxSettings = OutboxSettings {
    in_flight_max: 24,
    backoff_min: Duration::from_millis(100),
    backoff_max: Duration::from_secs(5),
};

#[derive(Debug)]
struct Sensor {
    sensor_id: SensorId,
    metric_type: MetricType,
    value: f64,
    next_at: i64,
}

#[derive(Clone, Debug)]
struct Entry {
    lane: Lane,
    payload: Payload,
    is_too_large: bool,
}

/// Durable up to the last sync. A segment is deleted when all lanes are done with it.
#[derive(Debug)]
struct Journal {
    records: BTreeMap<Sequence, Entry>,
    unsynced: Vec<(Sequence, Entry)>,
    next: Sequence,
    last_durable: Sequence,
    /// First sequence of the oldest segment that exists.
    first_kept: Sequence,
}

#[derive(Debug)]
pub(crate) struct Edge {
    device_id: DeviceId,
    machine_id: MachineId,
    generation: Generation,
    sensors: Vec<Sensor>,
    /// With the local MQTT broker, not delivered yet.
    waiting: VecDeque<Reading>,
    /// Delivered and not acknowledged: comes again after a crash.
    unacknowledged: Vec<Reading>,
    deadband: Deadband,
    journal: Journal,
    outboxes: BTreeMap<Lane, Outbox>,
    producer: Producer,
    is_network_up: bool,
    down_until: i64,
}

impl Edge {
    pub(crate) fn new(number: usize, clock: Clock, random: &mut Random) -> Self {
        let metric = |name| MetricType::new(name).expect("a literal name");
        let sensors = (0..=random.below(4))
            .map(|index| Sensor {
                sensor_id: SensorId::new(&format!("m{number}/s{index}")).expect("a short name"),
                metric_type: metric(if index < 3 { "temperature" } else { "pressure" }),
                value: 99.0,
                next_at: clock.micros,
            })
            .collect();
        let journal = Journal::new();
        Self {
            device_id: DeviceId::new(&format!("gw-{number}")).expect("a short name"),
            machine_id: MachineId::new(&format!("m{number}")).expect("a short name"),
            generation: Generation(1),
            sensors,
            waiting: VecDeque::new(),
            unacknowledged: Vec::new(),
            deadband: new_deadband(),
            outboxes: journal.outboxes(),
            journal,
            producer: Producer::default(),
            is_network_up: true,
            down_until: 0,
        }
    }

    pub(crate) fn step(
        &mut self,
        clock: Clock,
        faults: &Faults,
        broker: &mut Broker,
        history: &mut History,
        random: &mut Random,
    ) {
        if faults.produce {
            self.measure(clock, history, random);
        }
        if random.chance(faults.network_per_mille) {
            self.is_network_up = !self.is_network_up;
        }
        if clock.micros < self.down_until {
            return;
        }
        self.receive(random, faults);
        if random.chance(500) {
            self.sync(history);
            self.trim();
            self.evict(clock, history);
        }
        self.send(clock);
        let breaks = faults.break_per_mille;
        self.producer.exchange(broker, self.is_network_up, breaks, random);
        for report in self.producer.take_reports(random) {
            self.take(&report, clock, history, random);
        }
        if random.chance(faults.crash_per_mille) {
            self.crash(clock, faults, broker, history, random);
        }
    }

    /// Ends all trouble of this edge.
    pub(crate) fn heal(&mut self) {
        self.is_network_up = true;
        self.down_until = 0;
    }

    /// Whether everything is journalled and delivered.
    pub(crate) fn is_drained(&self) -> bool {
        let is_done = |outbox: &Outbox| {
            outbox.acknowledged() == self.journal.last_durable && outbox.in_flight() == 0
        };
        self.waiting.is_empty()
            && self.journal.unsynced.is_empty()
            && self.outboxes.values().all(is_done)
    }

    fn measure(&mut self, clock: Clock, history: &mut History, random: &mut Random) {
        for sensor in &mut self.sensors {
            while sensor.next_at <= clock.micros {
                sensor.value = (sensor.value + 1.5 * random.deviation()).clamp(90.0, 110.0);
                let mut at = sensor.next_at + random.between(0, 999);
                if random.chance(20) {
                    at -= random.between(0, 300 * SECOND);
                } else if random.chance(3) {
                    at += 3600 * SECOND;
                }
                let mut reading = Reading::new(
                    sensor.sensor_id.clone(),
                    EventTime::from_micros(at),
                    sensor.metric_type.clone(),
                    sensor.value,
                );
                reading.quality = random.chance(20).then_some(Quality::Bad);
                sensor.next_at += SECOND;
                history.measured.push(reading.clone());
                self.waiting.push_back(reading);
            }
        }
    }

    /// Takes what the local broker holds: dead band, then the journal.
    fn receive(&mut self, random: &mut Random, faults: &Faults) {
        for reading in self.waiting.drain(..) {
            match self.deadband.handle(&reading) {
                Verdict::Send(_) => {
                    let is_too_large = random.chance(faults.too_large_per_mille);
                    let payload = Payload::Reading(reading.clone());
                    let lane = Lane::Readings;
                    self.journal
                        .unsynced
                        .push((self.journal.next, Entry { lane, payload, is_too_large }));
                    self.journal.next = self.journal.next.next();
                }
                Verdict::Filter => {}
            }
            self.unacknowledged.push(reading);
        }
    }

    fn append(&mut self, lane: Lane, payload: Payload) {
        let entry = Entry { lane, payload, is_too_large: false };
        self.journal.unsynced.push((self.journal.next, entry));
        self.journal.next = self.journal.next.next();
    }

    /// Makes durable what was appended, then acknowledges it to the local broker.
    fn sync(&mut self, history: &mut History) {
        for (sequence, mut entry) in self.journal.unsynced.drain(..) {
            let identity = Some(Identity {
                device_id: self.device_id.clone(),
                generation: self.generation,
                sequence,
            });
            match &mut entry.payload {
                Payload::Reading(reading) => reading.identity.clone_from(&identity),
                Payload::Event(event) => event.identity.clone_from(&identity),
                Payload::Letter(letter) => letter.identity.clone_from(&identity),
                Payload::Garbage => unreachable!("an edge journals no garbage"),
            }
            history.journalled.push(entry.payload.clone());
            self.journal.records.insert(sequence, entry);
            self.journal.last_durable = sequence;
        }
        self.unacknowledged.clear();
    }

    /// Deletes whole segments that every lane is done with, never the newest.
    fn trim(&mut self) {
        let done = self.outboxes.values().map(Outbox::acknowledged).min().unwrap_or_default();
        let newest = segment_start(self.journal.last_durable);
        let keep_from = segment_start(done.next()).min(newest);
        if keep_from > self.journal.first_kept {
            self.journal.records = self.journal.records.split_off(&keep_from);
            self.journal.first_kept = keep_from;
        }
    }

    /// Beyond the cap: drops the readings of the oldest closed segment that has some, and reports the gap first.
    fn evict(&mut self, clock: Clock, history: &mut History) {
        let newest = segment_start(self.journal.last_durable);
        let held = (newest.0 - self.journal.first_kept.0) / SEGMENT_RECORDS + 1;
        if held <= SEGMENTS_MAX {
            return;
        }
        let is_reading = |entry: &Entry| entry.lane == Lane::Readings;
        let closed = || self.journal.records.range(..newest);
        let Some((oldest, _)) = closed().find(|(_, entry)| is_reading(entry)) else { return };
        let end = Sequence(segment_start(*oldest).0 + SEGMENT_RECORDS);
        let in_segment = self.journal.records.range(*oldest..end);
        let gone: Vec<Sequence> =
            in_segment.filter(|(_, entry)| is_reading(entry)).map(|(at, _)| *at).collect();
        let (first, last) = (gone[0], gone[gone.len() - 1]);
        let details = MachineEventDetails {
            cause: Some("readings".to_owned()),
            first_sequence: Some(first.0),
            last_sequence: Some(last.0),
            record_count: Some(gone.len() as u64),
            ..MachineEventDetails::default()
        };
        let event = MachineEvent {
            event_type: MachineEventType::Gap,
            machine_id: self.machine_id.clone(),
            timestamp: EventTime::from_micros(clock.micros),
            identity: None,
            historical: false,
            details,
        };
        self.append(Lane::Events, Payload::Event(Box::new(event)));
        self.sync(history);
        for sequence in &gone {
            self.journal.records.remove(sequence);
        }
        history.totals.evicted += gone.len();
        let outbox = self.outboxes.get_mut(&Lane::Readings).expect("one a lane");
        // The trim point is read from the outbox.
        let _moved = outbox.handle_evicted(first..=last);
    }

    fn send(&mut self, clock: Clock) {
        for lane in LANES {
            let outbox = self.outboxes.get_mut(&lane).expect("one a lane");
            while self.producer.is_open()
                && let Some(after) = outbox.next_to_send(clock.instant)
            {
                let mut rest = self.journal.records.range(after.next()..);
                let Some((sequence, entry)) = rest.find(|(_, entry)| entry.lane == lane) else {
                    let _moved = outbox.handle_scanned(self.journal.last_durable);
                    break;
                };
                outbox.handle_sent(*sequence);
                self.producer.send(lane, *sequence, entry.payload.clone(), entry.is_too_large);
            }
        }
    }

    fn take(&mut self, report: &Report, clock: Clock, history: &mut History, random: &mut Random) {
        let sequence = report.sequence;
        let Some(disposition) = report.failure else {
            let outbox = self.outboxes.get_mut(&report.lane).expect("one a lane");
            let _moved = outbox.handle_acknowledged(sequence);
            return;
        };
        match disposition {
            Disposition::Retry => history.totals.send_failures += 1,
            Disposition::DeadLetter => self.bury(sequence, clock, history),
            Disposition::Fatal => unreachable!("the simulated producer has no fatal failure"),
        }
        let jitter = random.deviation().abs();
        let outbox = self.outboxes.get_mut(&report.lane).expect("one a lane");
        let _moved = outbox.handle_failed(sequence, disposition, clock.instant, jitter);
    }

    /// Writes a refused record to the dead letters, durably, before it is given up.
    fn bury(&mut self, sequence: Sequence, clock: Clock, history: &mut History) {
        let name = format!("{}/{}/{}", self.device_id, self.generation.0, sequence.0);
        let letter = DeadLetter::new(
            "record-too-large",
            "the broker refuses it".to_owned(),
            "kafka",
            EventTime::from_micros(clock.micros),
            name.as_bytes(),
        );
        self.append(Lane::DeadLetters, Payload::Letter(letter));
        self.sync(history);
        history.totals.refused += 1;
        history.refused.insert(name);
    }

    /// The process dies: memory is gone; sometimes the disk too.
    fn crash(
        &mut self,
        clock: Clock,
        faults: &Faults,
        broker: &mut Broker,
        history: &mut History,
        random: &mut Random,
    ) {
        history.totals.edge_crashes += 1;
        self.producer.give_up(broker, self.is_network_up, random);
        self.producer = Producer::default();
        self.journal.unsynced.clear();
        for reading in self.unacknowledged.drain(..).rev() {
            self.waiting.push_front(reading);
        }
        if random.chance(faults.disk_loss_per_mille) {
            history.totals.disks_lost += 1;
            history.lost_generations.insert((self.device_id.clone(), self.generation));
            self.generation = Generation(self.generation.0 + 1);
            self.journal = Journal::new();
        }
        self.journal.next = self.journal.last_durable.next();
        self.outboxes = self.journal.outboxes();
        self.deadband = new_deadband();
        self.down_until = clock.micros + random.between(0, 20 * SECOND);
    }
}

impl Journal {
    fn new() -> Self {
        Self {
            records: BTreeMap::new(),
            unsynced: Vec::new(),
            next: Sequence(1),
            last_durable: Sequence(0),
            first_kept: Sequence(1),
        }
    }

    /// What a start knows: everything before the oldest segment is done, of the rest nothing.
    fn outboxes(&self) -> BTreeMap<Lane, Outbox> {
        let done = Sequence(self.first_kept.0 - 1);
        LANES.into_iter().map(|lane| (lane, Outbox::new(done, OUTBOX))).collect()
    }
}

/// First sequence of the segment that holds this one.
fn segment_start(sequence: Sequence) -> Sequence {
    let index = sequence.0.saturating_sub(1);
    Sequence(index - index % SEGMENT_RECORDS + 1)
}

pub(crate) const THRESHOLD: f64 = 100.0;

fn new_deadband() -> Deadband {
    let temperature = MetricType::new("temperature").expect("a literal name");
    Deadband::new(DeadbandSettings {
        absolute: 1.0,
        percent: 0.0,
        score: 0.05,
        heartbeat: Duration::from_secs(10),
        always_above: BTreeMap::from([(temperature, THRESHOLD)]),
        sensors_max: 100,
        rules: Vec::new(),
    })
    .expect("valid settings")
}

/// Both clocks of the simulation start here.
pub(crate) fn clock_at(start: Instant, origin: i64, micros: i64) -> Clock {
    let passed = u64::try_from(micros - origin).expect("time only passes");
    Clock { instant: start + Duration::from_micros(passed), micros }
}
