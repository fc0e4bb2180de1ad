//! By example, then against a producer and a broker that lose, repeat and break off.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const SETTINGS: OutboxSettings = OutboxSettings {
    in_flight_max: 4,
    backoff_min: Duration::from_millis(100),
    backoff_max: Duration::from_secs(1),
};

#[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
fn start() -> Instant {
    Instant::now()
}

fn sequences(numbers: &[u64]) -> Vec<Sequence> {
    numbers.iter().copied().map(Sequence).collect()
}

/// An outbox with these records in flight.
fn outbox_with(numbers: &[u64], now: Instant) -> Outbox {
    let mut outbox = Outbox::new(Sequence(0), SETTINGS);
    for sequence in sequences(numbers) {
        assert!(outbox.next_to_send(now).is_some_and(|after| after < sequence));
        outbox.handle_sent(sequence);
    }
    outbox
}

#[test]
fn trim_point_moves_over_what_is_done_without_holes() {
    let now = start();
    let mut outbox = outbox_with(&[3, 7, 8, 12], now);
    assert_eq!(outbox.acknowledged(), Sequence(0));
    assert_eq!(outbox.next_to_send(now), None, "full");
    assert_eq!(outbox.handle_acknowledged(Sequence(7)), Some(Sequence(2)), "nothing before 3");
    assert_eq!(outbox.handle_acknowledged(Sequence(3)), Some(Sequence(7)));
    assert_eq!(outbox.handle_acknowledged(Sequence(3)), None, "a report twice changes nothing");
    assert_eq!(outbox.handle_acknowledged(Sequence(12)), None);
    assert_eq!(outbox.handle_acknowledged(Sequence(8)), Some(Sequence(12)));
    assert_eq!(outbox.handle_scanned(Sequence(20)), Some(Sequence(20)));
    assert_eq!(outbox.next_to_send(now), Some(Sequence(20)));
}

#[test]
fn nothing_is_sent_after_a_failure_until_all_in_flight_is_reported() {
    let now = start();
    let mut outbox = outbox_with(&[1, 2, 3], now);
    assert_eq!(outbox.handle_failed(Sequence(2), Disposition::Retry, now, 1.0), None);
    assert_eq!(outbox.next_to_send(now), None);
    assert_eq!(outbox.handle_scanned(Sequence(9)), None);
    assert_eq!(outbox.handle_acknowledged(Sequence(3)), None);
    assert_eq!(outbox.poll_timeout(), None, "1 is still in flight");
    assert_eq!(outbox.handle_acknowledged(Sequence(1)), Some(Sequence(1)));
    let resume_at = now + SETTINGS.backoff_min;
    assert_eq!(outbox.poll_timeout(), Some(resume_at));
    assert_eq!(outbox.next_to_send(resume_at - Duration::from_nanos(1)), None);
    assert_eq!(outbox.next_to_send(resume_at), Some(Sequence(1)), "2 is the next");
}

#[test]
fn backoff_doubles_up_to_its_limit_and_starts_anew_after_a_delivery() {
    let mut now = start();
    let mut outbox = Outbox::new(Sequence(0), SETTINGS);
    let mut fail = |outbox: &mut Outbox, jitter| {
        assert!(outbox.next_to_send(now).is_some());
        outbox.handle_sent(Sequence(1));
        assert_eq!(outbox.handle_failed(Sequence(1), Disposition::Retry, now, jitter), None);
        let wait = outbox.poll_timeout().expect("backs off") - now;
        now += wait;
        wait.as_millis()
    };
    let waits: Vec<u128> = (0..6).map(|_| fail(&mut outbox, 1.0)).collect();
    assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    assert_eq!(fail(&mut outbox, 0.0), 500, "jitter takes up to half");
    assert_eq!(fail(&mut outbox, f64::NAN), 1000);
    assert_eq!(outbox.failures_in_a_row(), 8);
    assert!(outbox.next_to_send(now).is_some());
    outbox.handle_sent(Sequence(1));
    assert_eq!(outbox.handle_acknowledged(Sequence(1)), Some(Sequence(1)));
    assert_eq!(outbox.failures_in_a_row(), 0);
}

#[test]
fn dead_letter_is_done_and_stops_nothing() {
    let now = start();
    let mut outbox = outbox_with(&[1, 2], now);
    let trim = outbox.handle_failed(Sequence(1), Disposition::DeadLetter, now, 0.0);
    assert_eq!(trim, Some(Sequence(1)));
    assert_eq!(outbox.next_to_send(now), Some(Sequence(2)));
}

#[test]
fn fatal_failure_halts_for_good() {
    let now = start();
    let mut outbox = outbox_with(&[1, 2], now);
    assert_eq!(outbox.handle_failed(Sequence(1), Disposition::Fatal, now, 0.0), None);
    assert_eq!(outbox.handle_acknowledged(Sequence(2)), None);
    assert!(outbox.is_halted());
    assert_eq!(outbox.next_to_send(now + Duration::from_secs(3600)), None);
    assert_eq!(outbox.acknowledged(), Sequence(0));
}

#[test]
fn evicted_record_is_not_sent_again() {
    let now = start();
    let mut outbox = outbox_with(&[1, 2, 3], now);
    let trim = outbox.handle_evicted(Sequence(1)..=Sequence(2));
    assert_eq!(trim, Some(Sequence(2)));
    assert_eq!(outbox.handle_failed(Sequence(1), Disposition::Retry, now, 0.0), None);
    assert_eq!(outbox.next_to_send(now), Some(Sequence(3)), "no reason to wait");
    assert_eq!(outbox.handle_acknowledged(Sequence(2)), None);
    assert_eq!(outbox.handle_acknowledged(Sequence(3)), Some(Sequence(3)));
    assert_eq!(outbox.in_flight(), 0);
}

#[test]
#[should_panic(expected = "a lane is sent in order")]
fn sending_out_of_order_is_a_fault_of_the_caller() {
    let mut outbox = outbox_with(&[5], start());
    outbox.handle_sent(Sequence(5));
}

const PARTITIONS: u64 = 3;

/// One step of a random run; numbers choose among what is possible.
#[derive(Clone, Debug)]
enum Step {
    Send,
    /// The broker takes the oldest in flight of a partition and reports it.
    Deliver(u64),
    /// The broker takes this many of a partition's records in flight, then the connection breaks: all of
    /// them, taken or not, are reported as failed.
    Break(u64, usize),
    /// The oldest in flight of a partition is refused for ever.
    Refuse(u64),
    /// The journal drops its oldest records.
    Evict(usize),
    Wait(u64),
    /// The process dies; the broker takes this many more of each partition.
    Crash(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => Just(Step::Send),
        8 => (0..PARTITIONS).prop_map(Step::Deliver),
        2 => (0..PARTITIONS, 0_usize..4).prop_map(|(on, taken)| Step::Break(on, taken)),
        1 => (0..PARTITIONS).prop_map(Step::Refuse),
        1 => (1_usize..4).prop_map(Step::Evict),
        3 => (1_u64..1_500).prop_map(Step::Wait),
        1 => (0_usize..4).prop_map(Step::Crash),
    ]
}

struct World {
    now: Instant,
    outbox: Outbox,
    /// What the journal holds of this lane.
    journal: BTreeSet<Sequence>,
    in_flight: BTreeMap<u64, VecDeque<Sequence>>,
    /// What the broker took, by partition.
    log: BTreeMap<u64, Vec<Sequence>>,
    ever_sent: BTreeSet<Sequence>,
    refused: BTreeSet<Sequence>,
    evicted: BTreeSet<Sequence>,
    /// A failure was reported and records in flight are not.
    must_wait: bool,
}

impl World {
    fn new(journal: BTreeSet<Sequence>) -> Self {
        let empty = |partition| (partition, VecDeque::new());
        Self {
            now: start(),
            outbox: Outbox::new(Sequence(0), SETTINGS),
            journal,
            in_flight: (0..PARTITIONS).map(empty).collect(),
            log: (0..PARTITIONS).map(|partition| (partition, Vec::new())).collect(),
            ever_sent: BTreeSet::new(),
            refused: BTreeSet::new(),
            evicted: BTreeSet::new(),
            must_wait: false,
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Send => self.send(),
            Step::Deliver(on) => {
                if let Some(sequence) = self.take(on) {
                    self.log.entry(on).or_default().push(sequence);
                    let trim = self.outbox.handle_acknowledged(sequence);
                    self.trim(trim);
                }
            }
            Step::Break(on, taken) => {
                let mut left = taken;
                while let Some(sequence) = self.take(on) {
                    if left > 0 {
                        left -= 1;
                        self.log.entry(on).or_default().push(sequence);
                    }
                    self.must_wait |= !self.evicted.contains(&sequence);
                    let retry = Disposition::Retry;
                    let trim = self.outbox.handle_failed(sequence, retry, self.now, 0.5);
                    self.trim(trim);
                }
            }
            Step::Refuse(on) => {
                if let Some(sequence) = self.take(on) {
                    self.refused.insert(sequence);
                    let letter = Disposition::DeadLetter;
                    let trim = self.outbox.handle_failed(sequence, letter, self.now, 0.5);
                    self.trim(trim);
                }
            }
            Step::Evict(count) => self.evict(count),
            Step::Wait(ms) => self.now += Duration::from_millis(ms),
            Step::Crash(taken) => {
                for (on, records) in &mut self.in_flight {
                    let delivered = records.drain(..).take(taken);
                    self.log.entry(*on).or_default().extend(delivered);
                }
                self.outbox = Outbox::new(self.outbox.acknowledged(), SETTINGS);
                self.must_wait = false;
            }
        }
        let in_flight: usize = self.in_flight.values().map(VecDeque::len).sum();
        assert_eq!(self.outbox.in_flight(), in_flight);
        assert!(in_flight <= SETTINGS.in_flight_max);
        self.must_wait &= in_flight > 0;
    }

    fn take(&mut self, on: u64) -> Option<Sequence> {
        self.in_flight.get_mut(&on).and_then(VecDeque::pop_front)
    }

    fn send(&mut self) {
        let Some(after) = self.outbox.next_to_send(self.now) else { return };
        assert!(!self.must_wait, "sent while a failure is open");
        let Some(sequence) = self.journal.range(after.next()..).next().copied() else {
            let last = self.journal.last().copied().unwrap_or(after).max(after);
            let trim = self.outbox.handle_scanned(last);
            return self.trim(trim);
        };
        if self.ever_sent.insert(sequence) {
            let mut delivered = self.log.values().flatten();
            assert!(delivered.all(|other| *other < sequence), "first sent after a later one");
        }
        self.outbox.handle_sent(sequence);
        self.in_flight.entry(sequence.0 % PARTITIONS).or_default().push_back(sequence);
    }

    fn evict(&mut self, count: usize) {
        let oldest: Vec<Sequence> = self.journal.iter().take(count).copied().collect();
        let (Some(first), Some(last)) = (oldest.first(), oldest.last()) else { return };
        let trim = self.outbox.handle_evicted(*first..=*last);
        for sequence in &oldest {
            self.journal.remove(sequence);
            self.evicted.insert(*sequence);
        }
        self.trim(trim);
    }

    /// Trims the journal, which must not lose what nobody has.
    fn trim(&mut self, to: Option<Sequence>) {
        let Some(to) = to else { return };
        let delivered: BTreeSet<Sequence> = self.log.values().flatten().copied().collect();
        for sequence in self.journal.extract_if(..=to, |_| true) {
            let is_done = delivered.contains(&sequence) || self.refused.contains(&sequence);
            assert!(is_done, "{sequence:?} is trimmed and nobody has it");
        }
    }

    /// Delivers everything that is left.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            let in_flight = self.outbox.in_flight() > 0;
            if self.journal.is_empty() && !in_flight {
                return;
            }
            self.apply(&Step::Wait(1_000));
            self.apply(&Step::Send);
            for on in 0..PARTITIONS {
                self.apply(&Step::Deliver(on));
            }
        }
        panic!("does not come to an end: {:?}", self.outbox);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_record_arrives_once_behind_a_high_water_mark(
        numbers in prop::collection::btree_set(1_u64..500, 1..60),
        steps in prop::collection::vec(any_step(), 0..200),
    ) {
        let all: BTreeSet<Sequence> = numbers.into_iter().map(Sequence).collect();
        let mut world = World::new(all.clone());
        for step in &steps {
            world.apply(step);
        }
        world.finish();
        let mut counted = BTreeSet::new();
        for log in world.log.values() {
            let mut highest = Sequence(0);
            for sequence in log {
                if *sequence > highest {
                    highest = *sequence;
                    prop_assert!(counted.insert(*sequence));
                }
            }
        }
        counted.extend(&world.refused);
        counted.extend(&world.evicted);
        prop_assert_eq!(counted, all);
    }
}

#[test]
fn what_was_acknowledged_before_a_recall_is_not_sent_the_other_way() {
    let now = start();
    let mut outbox = outbox_with(&[3, 7, 8, 12], now);
    assert_eq!(outbox.handle_acknowledged(Sequence(3)), Some(Sequence(6)));
    assert_eq!(outbox.handle_acknowledged(Sequence(8)), None);
    assert_eq!(outbox.handle_failed(Sequence(7), Disposition::Retry, now, 1.0), None);
    assert_eq!(outbox.handle_recalled(), None);
    assert_eq!(outbox.in_flight(), 0);
    assert_eq!(
        outbox.next_to_send(now),
        Some(Sequence(6)),
        "at once: the other way has not failed"
    );
    assert!(!outbox.pass_over(Sequence(7)));
    outbox.handle_sent(Sequence(7));
    assert!(outbox.pass_over(Sequence(8)));
    assert!(!outbox.pass_over(Sequence(8)), "once");
    outbox.handle_sent(Sequence(12));
    // The other way fails too: what has arrived the first way stays so.
    outbox.handle_failed(Sequence(7), Disposition::Retry, now, 1.0);
    outbox.handle_acknowledged(Sequence(12));
    let resume_at = outbox.poll_timeout().expect("it backs off");
    assert_eq!(outbox.next_to_send(resume_at), Some(Sequence(6)));
    outbox.handle_sent(Sequence(7));
    assert!(outbox.pass_over(Sequence(8)));
    assert_eq!(outbox.handle_acknowledged(Sequence(7)), Some(Sequence(8)));
}

/// What happens to records that leave now one way and now another.
#[derive(Clone, Debug)]
enum Turn {
    Send,
    /// The record at this place in flight is acknowledged.
    Acknowledge(usize),
    /// All in flight from this place on are lost.
    Lose(usize),
    Recall,
    Wait,
}

fn any_turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        12 => Just(Turn::Send),
        8 => (0_usize..4).prop_map(Turn::Acknowledge),
        1 => (0_usize..4).prop_map(Turn::Lose),
        1 => Just(Turn::Recall),
        2 => Just(Turn::Wait),
    ]
}

/// Two ways, of which one is in use.
struct Ways {
    now: Instant,
    outbox: Outbox,
    journal: BTreeSet<Sequence>,
    in_flight: Vec<Sequence>,
    /// By the way that was in use.
    acknowledged: [BTreeSet<Sequence>; 2],
    way: usize,
    /// Of this stay: each way sees a lane in order unless something was lost.
    last_sent: Sequence,
}

impl Ways {
    fn send(&mut self) {
        let Some(mut after) = self.outbox.next_to_send(self.now) else { return };
        loop {
            let next = self.journal.range(after.next()..).next().copied();
            let Some(sequence) = next else {
                let last = self.journal.last().copied().unwrap_or(after).max(after);
                self.outbox.handle_scanned(last);
                return;
            };
            if !self.outbox.pass_over(sequence) {
                let other = &self.acknowledged[1 - self.way];
                assert!(!other.contains(&sequence), "{sequence:?} has arrived the other way");
                assert!(sequence > self.last_sent, "{sequence:?} after {:?}", self.last_sent);
                self.last_sent = sequence;
                self.outbox.handle_sent(sequence);
                self.in_flight.push(sequence);
                return;
            }
            let Some(next) = self.outbox.next_to_send(self.now) else { return };
            after = next;
        }
    }

    fn acknowledge(&mut self, place: usize) {
        if place < self.in_flight.len() {
            let sequence = self.in_flight.remove(place);
            self.acknowledged[self.way].insert(sequence);
            self.outbox.handle_acknowledged(sequence);
        }
    }

    fn apply(&mut self, turn: &Turn) {
        match turn {
            Turn::Send => self.send(),
            Turn::Acknowledge(place) => self.acknowledge(*place),
            Turn::Lose(place) => {
                for sequence in self.in_flight.split_off((*place).min(self.in_flight.len())) {
                    self.outbox.handle_failed(sequence, Disposition::Retry, self.now, 0.5);
                    self.last_sent = Sequence(0);
                }
            }
            Turn::Recall => {
                self.in_flight.clear();
                self.outbox.handle_recalled();
                (self.way, self.last_sent) = (1 - self.way, Sequence(0));
            }
            Turn::Wait => self.now += SETTINGS.backoff_max,
        }
        let arrived: BTreeSet<_> = self.acknowledged.iter().flatten().copied().collect();
        let done = self.outbox.acknowledged();
        assert!(
            self.journal.range(..=done).all(|it| arrived.contains(it)),
            "trimmed and not there"
        );
    }
}

proptest! {
    #[test]
    fn on_two_ways_each_record_arrives_and_none_both_ways_once_it_is_decided(
        numbers in prop::collection::btree_set(1_u64..500, 1..60),
        turns in prop::collection::vec(any_turn(), 0..300),
    ) {
        let mut ways = Ways {
            now: start(),
            outbox: Outbox::new(Sequence(0), SETTINGS),
            journal: numbers.into_iter().map(Sequence).collect(),
            in_flight: Vec::new(),
            acknowledged: [BTreeSet::new(), BTreeSet::new()],
            way: 0,
            last_sent: Sequence(0),
        };
        for turn in &turns {
            ways.apply(turn);
        }
        let last = ways.journal.last().copied().unwrap_or_default();
        for _ in 0..1_000 {
            for turn in [Turn::Wait, Turn::Send, Turn::Acknowledge(0)] {
                ways.apply(&turn);
            }
        }
        prop_assert_eq!(ways.outbox.acknowledged(), last);
        prop_assert_eq!(ways.outbox.in_flight(), 0);
    }
}
