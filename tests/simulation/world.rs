//! The whole plant: lets time pass, makes trouble, then ends it and waits until everything has arrived.

use std::collections::BTreeSet;
use std::time::Instant;

use aggregator_core::checkpoint::TopicPartition;
use shared_proto::model::{DeviceId, EventTime, Generation, MetricType, Reading, SensorId};

use crate::broker::{Broker, Payload, partition_of};
use crate::cloud::{Instance, Lake};
use crate::edge::{Edge, clock_at};
use crate::random::Random;

pub(crate) const SECOND: i64 = 1_000_000;
/// 2026-03-01T00:00:00Z.
const ORIGIN: i64 = 1_772_323_200 * SECOND;
const STEPS: usize = 300;
const DRAIN_STEPS_MAX: usize = 5_000;

/// Both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) instant: Instant,
    pub(crate) micros: i64,
}

/// How much trouble there is, in chances a thousand and step.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    /// Sensors measure.
    pub(crate) produce: bool,
    pub(crate) network_per_mille: usize,
    pub(crate) break_per_mille: usize,
    pub(crate) crash_per_mille: usize,
    pub(crate) disk_loss_per_mille: usize,
    pub(crate) too_large_per_mille: usize,
    pub(crate) rebalance_per_mille: usize,
    pub(crate) foreign_per_mille: usize,
}

impl Faults {
    fn any(random: &mut Random) -> Self {
        let mut up_to = |most| if random.chance(250) { 0 } else { random.below(most) };
        Self {
            produce: true,
            network_per_mille: up_to(60),
            break_per_mille: up_to(200),
            crash_per_mille: up_to(40),
            disk_loss_per_mille: up_to(200),
            too_large_per_mille: up_to(20),
            rebalance_per_mille: up_to(60),
            foreign_per_mille: up_to(300),
        }
    }

    const NONE: Self = Self {
        produce: false,
        network_per_mille: 0,
        break_per_mille: 0,
        crash_per_mille: 0,
        disk_loss_per_mille: 0,
        too_large_per_mille: 0,
        rebalance_per_mille: 0,
        foreign_per_mille: 0,
    };
}

/// What happened in a run, to see that the runs see everything.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) edge_crashes: usize,
    pub(crate) disks_lost: usize,
    pub(crate) send_failures: usize,
    pub(crate) refused: usize,
    pub(crate) evicted: usize,
    pub(crate) cloud_crashes: usize,
    pub(crate) epochs: usize,
    pub(crate) ownership_lost: usize,
    pub(crate) rolled_forward: usize,
}

/// What the oracle remembers; no part of the simulated programs reads it.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Every reading that a sensor made.
    pub(crate) measured: Vec<Reading>,
    /// Every record that became durable in a journal.
    pub(crate) journalled: Vec<Payload>,
    /// `device/generation/sequence` of records that the broker refuses.
    pub(crate) refused: BTreeSet<String>,
    pub(crate) lost_generations: BTreeSet<(DeviceId, Generation)>,
    pub(crate) totals: Totals,
}

#[derive(Debug)]
pub(crate) struct World {
    random: Random,
    start: Instant,
    micros: i64,
    edges: Vec<Edge>,
    pub(crate) broker: Broker,
    pub(crate) instances: [Instance; 2],
    pub(crate) lake: Lake,
    pub(crate) history: History,
}

impl World {
    /// Runs a plant from its first reading until everything has arrived and every window is closed.
    pub(crate) fn run(seed: u64, start: Instant) -> Self {
        let mut random = Random::new(seed);
        let clock = clock_at(start, ORIGIN, ORIGIN);
        let edges = (0..=random.below(3)).map(|n| Edge::new(n, clock, &mut random)).collect();
        let mut world = Self {
            random,
            start,
            micros: ORIGIN,
            edges,
            broker: Broker::new(),
            instances: Default::default(),
            lake: Lake::default(),
            history: History::default(),
        };
        world.share_out();
        let faults = Faults::any(&mut world.random);
        for _ in 0..STEPS {
            world.step(&faults);
        }
        world.drain();
        world
    }

    fn clock(&self) -> Clock {
        clock_at(self.start, ORIGIN, self.micros)
    }

    fn step(&mut self, faults: &Faults) {
        self.micros += self.random.between(SECOND / 20, 3 * SECOND);
        let clock = self.clock();
        let Self { random, edges, broker, instances, lake, history, .. } = self;
        for edge in edges {
            edge.step(clock, faults, broker, history, random);
        }
        if random.chance(faults.foreign_per_mille) {
            add_foreign(clock, broker, random);
        }
        for instance in instances {
            instance.step(clock, faults, broker, lake, &mut history.totals, random);
        }
        if random.chance(faults.rebalance_per_mille) {
            self.rebalance();
        }
    }

    /// Ends all trouble and lets everything arrive.
    fn drain(&mut self) {
        self.edges.iter_mut().for_each(Edge::heal);
        self.instances.iter_mut().for_each(Instance::heal);
        self.share_out();
        for _ in 0..DRAIN_STEPS_MAX {
            let is_sent = self.edges.iter().all(Edge::is_drained);
            if is_sent && self.instances.iter().all(|one| one.is_drained(&self.broker)) {
                return;
            }
            self.step(&Faults::NONE);
        }
        panic!("does not come to rest in {DRAIN_STEPS_MAX} steps");
    }

    /// Gives each partition to exactly one instance; both know.
    fn share_out(&mut self) {
        let clock = self.clock();
        let mut shares: [BTreeSet<TopicPartition>; 2] = Default::default();
        for partition in self.broker.logs.keys() {
            shares[self.random.below(2)].insert(partition.clone());
        }
        for (instance, share) in self.instances.iter_mut().zip(&shares) {
            instance.assign(share, clock, &mut self.lake, &mut self.history.totals);
        }
    }

    /// One instance is given other partitions; half of the time the former owner does not know yet.
    fn rebalance(&mut self) {
        if self.random.chance(500) {
            return self.share_out();
        }
        let clock = self.clock();
        let taker = self.random.below(2);
        let mut share = self.instances[taker].partitions();
        for partition in self.broker.logs.keys() {
            if self.random.chance(500) {
                share.insert(partition.clone());
            }
        }
        let totals = &mut self.history.totals;
        self.instances[taker].assign(&share, clock, &mut self.lake, totals);
    }
}

/// Readings of a producer that numbers nothing, and bytes that are no record.
fn add_foreign(clock: Clock, broker: &mut Broker, random: &mut Random) {
    let payload = if random.chance(200) {
        Payload::Garbage
    } else {
        let sensor = SensorId::new(&format!("foreign/{}", random.below(2))).expect("a name");
        let metric = MetricType::new("temperature").expect("a literal name");
        let at = EventTime::from_micros(clock.micros - random.between(0, 20 * SECOND));
        Payload::Reading(Reading::new(sensor, at, metric, 100.0 + 5.0 * random.deviation()))
    };
    broker.append(&partition_of(&payload), payload);
}
