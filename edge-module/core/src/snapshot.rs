//! The raw samples around a trip: a ring of blocks for each waveform sensor, and pieces cut from it.
//!
//! Time here is each sensor's own event time, counted back and forth from the newest sample that the ring holds when the
//! trip is told: a sensor whose clock is off still gives so many seconds before and after. The passing of processing time
//! only closes a snapshot whose sensors have fallen silent.
//!
//! Samples that came as 16-bit counts are kept as counts: half the memory, and they leave bit for bit as they came.
//!
//! Limits: a ring holds at most `before` and its share of `bytes_max` (and never more than `sensor_bytes_max`); what does
//! not fit makes room, oldest first. A snapshot ends after `length_max` or `snapshot_bytes_max`, whatever trips follow. A
//! trip while a snapshot of the same machine is open extends it: what comes from then on carries the later trip's name,
//! what was sent before it is not sent twice.

mod ring;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use shared_proto::model::{EventTime, MachineId, SensorId, WaveformBlock, WaveformSnapshot};

use ring::{Ring, Run};

/// Event time that one piece of the samples after a trip covers at most: what a crash can cost.
const AFTER_PIECE_MICROS: i64 = 1_000_000;

/// What is kept, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotSettings {
    /// Event time kept before a trip.
    pub before: Duration,
    /// Event time recorded after a trip.
    pub after: Duration,
    /// Longest snapshot after its first trip, with all its extensions.
    pub length_max: Duration,
    /// Processing time after the last trip's `after` at which a snapshot is closed, come what may.
    pub patience: Duration,
    /// Bytes of samples in one sensor's ring.
    pub sensor_bytes_max: usize,
    /// Bytes of samples in all rings.
    pub bytes_max: usize,
    /// Bytes of samples in one snapshot, all its sensors.
    pub snapshot_bytes_max: usize,
    /// Bytes of samples in one piece, as they are written.
    pub piece_bytes_max: usize,
    /// Sensors with a ring; blocks of further ones are not kept.
    pub sensors_max: usize,
}

/// One fault in the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotFault {
    /// A limit of nothing.
    #[error("{what} is 0; to take no snapshots set enabled = false")]
    Zero {
        /// Which limit.
        what: &'static str,
    },
    /// A snapshot that ends before it should.
    #[error("length-max is shorter than after; a snapshot would always be cut off")]
    LengthBelowAfter,
}

impl SnapshotSettings {
    /// Checks all settings.
    ///
    /// # Errors
    /// All faults at once.
    pub fn validate(&self) -> Result<(), Vec<SnapshotFault>> {
        let sizes = [
            ("sensor-bytes-max", self.sensor_bytes_max),
            ("bytes-max", self.bytes_max),
            ("snapshot-bytes-max", self.snapshot_bytes_max),
            ("piece-bytes-max", self.piece_bytes_max / 4),
            ("sensors-max", self.sensors_max),
        ];
        let mut faults: Vec<SnapshotFault> = sizes
            .into_iter()
            .filter(|(_, size)| *size == 0)
            .map(|(what, _)| SnapshotFault::Zero { what })
            .collect();
        if self.before.is_zero() {
            faults.push(SnapshotFault::Zero { what: "before" });
        }
        if self.length_max < self.after {
            faults.push(SnapshotFault::LengthBelowAfter);
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }
}

/// What was not kept. Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCounts {
    /// Blocks of sensors beyond the limit, and blocks larger than a ring.
    pub blocks_not_kept: u64,
    /// Samples after a trip that were over a snapshot's limits.
    pub samples_cut: u64,
}

/// Rings of all sensors, and the snapshots that are open.
#[derive(Debug)]
pub struct Snapshots {
    settings: SnapshotSettings,
    rings: BTreeMap<SensorId, Ring>,
    machines: BTreeMap<MachineId, BTreeSet<SensorId>>,
    open: BTreeMap<MachineId, Open>,
    bytes: usize,
    counts: SnapshotCounts,
}

#[derive(Debug)]
struct Open {
    trip_id: String,
    sensors: BTreeMap<SensorId, OpenSensor>,
    bytes: usize,
    started: Instant,
    deadline: Instant,
}

#[derive(Debug)]
struct OpenSensor {
    /// Samples before this are recorded.
    until: EventTime,
    /// Never beyond this, however often the machine trips.
    until_max: EventTime,
    /// Samples before this have been recorded.
    through: EventTime,
    is_over: bool,
    pieces: u32,
    pending: Option<Run>,
}

impl Snapshots {
    /// Rings that hold nothing yet.
    ///
    /// # Errors
    /// All faults of the settings.
    pub fn new(settings: SnapshotSettings) -> Result<Self, Vec<SnapshotFault>> {
        settings.validate()?;
        Ok(Self {
            settings,
            rings: BTreeMap::new(),
            machines: BTreeMap::new(),
            open: BTreeMap::new(),
            bytes: 0,
            counts: SnapshotCounts::default(),
        })
    }

    /// Puts other settings in force. Rings shrink to them; snapshots that are open end as they were begun.
    ///
    /// # Errors
    /// All faults of the settings; the old ones stay.
    pub fn replace_settings(
        &mut self,
        settings: SnapshotSettings,
    ) -> Result<(), Vec<SnapshotFault>> {
        settings.validate()?;
        self.settings = settings;
        self.shrink();
        Ok(())
    }

    /// Forgets the sensors of machines that are not among `machines`. Gives what their open snapshots still held.
    #[must_use = "pieces must be journalled"]
    pub fn keep_machines(&mut self, machines: &BTreeSet<MachineId>) -> Vec<WaveformSnapshot> {
        let gone: Vec<MachineId> =
            self.machines.keys().filter(|id| !machines.contains(*id)).cloned().collect();
        let mut pieces = Vec::new();
        for machine_id in gone {
            pieces.extend(self.close(&machine_id));
            for sensor in self.machines.remove(&machine_id).unwrap_or_default() {
                self.bytes -= self.rings.remove(&sensor).map_or(0, |ring| ring.bytes());
            }
        }
        pieces
    }

    /// Keeps a block of a sensor of `machine_id`. `scale` is what its counts were multiplied by, if it came as counts.
    /// Gives the pieces that it completes for an open snapshot.
    #[must_use = "pieces must be journalled"]
    pub fn handle_block(
        &mut self,
        machine_id: &MachineId,
        block: &WaveformBlock,
        scale: f64,
    ) -> Vec<WaveformSnapshot> {
        let run = Run::new(machine_id, block, scale);
        if !self.rings.contains_key(&block.sensor_id) && !self.admit(machine_id, &block.sensor_id) {
            self.counts.blocks_not_kept += 1;
            return Vec::new();
        }
        let limit = self.ring_bytes_max();
        let before = self.settings.before;
        let Some(ring) = self.rings.get_mut(&block.sensor_id) else { return Vec::new() };
        if ring.is_repeat(&run) {
            return Vec::new();
        }
        let pieces = self
            .open
            .get_mut(machine_id)
            .map(|open| open.record(&run, &block.sensor_id, &self.settings, &mut self.counts));
        let bytes = ring.bytes();
        self.counts.blocks_not_kept += u64::from(!ring.push(run, before, limit));
        self.bytes = self.bytes - bytes + ring.bytes();
        let mut pieces = pieces.unwrap_or_default();
        if self.open.get(machine_id).is_some_and(Open::is_complete) {
            pieces.extend(self.close(machine_id));
        }
        pieces
    }

    /// Opens a snapshot, or extends the one that is open. Gives the samples before, to be journalled at once. A machine
    /// without waveform sensors gets none.
    #[must_use = "pieces must be journalled"]
    pub fn handle_trip(
        &mut self,
        machine_id: &MachineId,
        trip_id: &str,
        now: Instant,
    ) -> Vec<WaveformSnapshot> {
        let deadline = now + self.settings.after + self.settings.patience;
        if let Some(open) = self.open.get_mut(machine_id) {
            if open.trip_id == trip_id {
                return Vec::new();
            }
            open.deadline =
                deadline.min(open.started + self.settings.length_max + self.settings.patience);
            return open.extend(trip_id, &self.rings, &self.settings, &mut self.counts);
        }
        let sensors = self.machines.get(machine_id).into_iter().flatten();
        let (mut open, mut pieces) = (Open::new(trip_id, now, deadline), Vec::new());
        for sensor in sensors {
            let Some(ring) = self.rings.get(sensor) else { continue };
            let Some(end) = ring.end() else { continue };
            open.sensors.insert(sensor.clone(), OpenSensor::new(end, &self.settings));
            for run in ring.last(self.settings.before) {
                pieces.extend(open.add(sensor, run, &self.settings, &mut self.counts));
            }
        }
        pieces.extend(open.flush());
        if !open.sensors.is_empty() {
            self.open.insert(machine_id.clone(), open);
        }
        pieces
    }

    /// Closes snapshots whose sensors have not delivered the rest in time. Gives what they still held.
    #[must_use = "pieces must be journalled"]
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<WaveformSnapshot> {
        let due: Vec<MachineId> = self
            .open
            .iter()
            .filter(|(_, open)| open.deadline <= now)
            .map(|(machine_id, _)| machine_id.clone())
            .collect();
        due.iter().flat_map(|machine_id| self.close(machine_id)).collect()
    }

    /// Ends all snapshots, at the end of the program. Gives what they still held.
    #[must_use = "pieces must be journalled"]
    pub fn close_all(&mut self) -> Vec<WaveformSnapshot> {
        let open: Vec<MachineId> = self.open.keys().cloned().collect();
        open.iter().flat_map(|machine_id| self.close(machine_id)).collect()
    }

    /// When to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.open.values().map(|open| open.deadline).min()
    }

    /// Bytes of samples in all rings.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sensors that have a ring.
    #[must_use]
    pub fn sensors(&self) -> usize {
        self.rings.len()
    }

    /// Snapshots that are open.
    #[must_use]
    pub fn open_snapshots(&self) -> usize {
        self.open.len()
    }

    /// What was not kept.
    #[must_use]
    pub const fn counts(&self) -> SnapshotCounts {
        self.counts
    }

    fn admit(&mut self, machine_id: &MachineId, sensor: &SensorId) -> bool {
        if self.rings.len() >= self.settings.sensors_max {
            return false;
        }
        self.rings.insert(sensor.clone(), Ring::default());
        self.machines.entry(machine_id.clone()).or_default().insert(sensor.clone());
        self.shrink();
        true
    }

    /// Each ring's share: room for all sensors that there are.
    fn ring_bytes_max(&self) -> usize {
        let share = self.settings.bytes_max / self.rings.len().max(1);
        share.min(self.settings.sensor_bytes_max)
    }

    fn shrink(&mut self) {
        let limit = self.ring_bytes_max();
        for ring in self.rings.values_mut() {
            let bytes = ring.bytes();
            ring.shrink(self.settings.before, limit);
            self.bytes = self.bytes - bytes + ring.bytes();
        }
    }

    fn close(&mut self, machine_id: &MachineId) -> Vec<WaveformSnapshot> {
        self.open.remove(machine_id).map(|mut open| open.flush()).unwrap_or_default()
    }
}

impl Open {
    fn new(trip_id: &str, started: Instant, deadline: Instant) -> Self {
        let sensors = BTreeMap::new();
        Self { trip_id: trip_id.to_owned(), sensors, bytes: 0, started, deadline }
    }

    /// Goes on under the name of a later trip. Gives what was recorded under the earlier one.
    fn extend(
        &mut self,
        trip_id: &str,
        rings: &BTreeMap<SensorId, Ring>,
        settings: &SnapshotSettings,
        counts: &mut SnapshotCounts,
    ) -> Vec<WaveformSnapshot> {
        let mut pieces = self.flush();
        trip_id.clone_into(&mut self.trip_id);
        let sensors: Vec<SensorId> = self.sensors.keys().cloned().collect();
        for sensor in sensors {
            let Some(recorded) = self.sensors.get_mut(&sensor) else { continue };
            recorded.pieces = 0;
            let Some(ring) = rings.get(&sensor) else { continue };
            let Some(end) = ring.end() else { continue };
            let until = end.saturating_add_micros(micros(settings.after));
            recorded.until = until.min(recorded.until_max);
            recorded.is_over = end >= recorded.until;
            // What came since its part was over, while other sensors of the machine were still recorded.
            let (through, until) = (recorded.through, recorded.until);
            for run in ring.since(through) {
                pieces.extend(self.add(&sensor, run.before(until), settings, counts));
            }
        }
        pieces
    }

    /// Takes what is wanted of a new run of samples.
    fn record(
        &mut self,
        run: &Run,
        sensor: &SensorId,
        settings: &SnapshotSettings,
        counts: &mut SnapshotCounts,
    ) -> Vec<WaveformSnapshot> {
        let Some(recorded) = self.sensors.get(sensor).filter(|recorded| !recorded.is_over) else {
            return Vec::new();
        };
        let until = recorded.until;
        let mut pieces = self.add(sensor, run.before(until), settings, counts);
        if let Some(recorded) = self.sensors.get_mut(sensor)
            && run.end() >= until
        {
            recorded.is_over = true;
            pieces.extend(recorded.flush(&self.trip_id));
        }
        pieces
    }

    /// Records samples as far as the snapshot has room.
    fn add(
        &mut self,
        sensor: &SensorId,
        run: Run,
        settings: &SnapshotSettings,
        counts: &mut SnapshotCounts,
    ) -> Vec<WaveformSnapshot> {
        let Some(recorded) = self.sensors.get_mut(sensor) else { return Vec::new() };
        recorded.through = recorded.through.max(run.end());
        let (run, cut) = run.limited_to(settings.snapshot_bytes_max.saturating_sub(self.bytes));
        counts.samples_cut += cut;
        self.bytes += run.bytes();
        recorded.take(run, &self.trip_id, settings.piece_bytes_max)
    }

    fn is_complete(&self) -> bool {
        self.sensors.values().all(|recorded| recorded.is_over)
    }

    fn flush(&mut self) -> Vec<WaveformSnapshot> {
        let trip_id = &self.trip_id;
        self.sensors.values_mut().filter_map(|recorded| recorded.flush(trip_id)).collect()
    }
}

impl OpenSensor {
    fn new(end: EventTime, settings: &SnapshotSettings) -> Self {
        Self {
            until: end.saturating_add_micros(micros(settings.after)),
            until_max: end.saturating_add_micros(micros(settings.length_max)),
            through: end,
            is_over: false,
            pieces: 0,
            pending: None,
        }
    }

    /// Adds samples to the piece that is being filled. Gives the pieces that are full.
    fn take(&mut self, run: Run, trip_id: &str, piece_bytes_max: usize) -> Vec<WaveformSnapshot> {
        let mut pieces = Vec::new();
        let mut rest = Some(run).filter(|run| run.bytes() > 0);
        while let Some(run) = rest {
            let continues =
                self.pending.as_ref().is_none_or(|pending| pending.is_followed_by(&run));
            let full = self.pending.as_ref().is_some_and(|pending| {
                pending.room(piece_bytes_max) == 0 || pending.micros() >= AFTER_PIECE_MICROS
            });
            if !continues || full {
                pieces.extend(self.flush(trip_id));
            }
            let room = self.pending.as_ref().map_or_else(
                || run.room_of_empty(piece_bytes_max),
                |pending| pending.room(piece_bytes_max),
            );
            let (head, tail) = run.split_at(room);
            match &mut self.pending {
                Some(pending) => pending.append(&head),
                None => self.pending = Some(head),
            }
            rest = tail;
        }
        pieces
    }

    fn flush(&mut self, trip_id: &str) -> Option<WaveformSnapshot> {
        let run = self.pending.take()?;
        self.pieces += 1;
        Some(run.into_piece(trip_id, self.pieces))
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
