//! The bookkeeping of store-and-forward for one lane: what may be sent next, what is in flight, what may be
//! trimmed, when to try again.
//!
//! The caller reads the journal, hands records to the producer and reports here what became of them:
//!
//! 1. [`Outbox::next_to_send`] answers with a sequence: send the first record of this lane above it, and
//!    report it with [`Outbox::handle_sent`]; when the journal was read through without finding one, report
//!    that with [`Outbox::handle_scanned`].
//! 2. For each record sent exactly one report comes back: [`Outbox::handle_acknowledged`] or
//!    [`Outbox::handle_failed`].
//! 3. Each of them may answer with a new trim point: everything of this lane up to it is done. A sequence is
//!    shared by all lanes of a device, so the journal is trimmed to the lowest trim point of its lanes.
//!
//! The bargain that deduplication by high-water mark needs: after a failure that is not final nothing more is
//! sent until every record in flight is reported, then sending resumes at the lowest record that is not
//! done. What was delivered after a failed record is then sent again; it is a repeat and is dropped
//! downstream. The producer must keep its half: within a Kafka partition it must not deliver a record after
//! one before it failed (librdkafka: idempotence with `enable.gapless.guarantee`, or no message timeout).

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use shared_proto::model::Sequence;

/// Limits of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxSettings {
    /// Records sent and not yet reported, at least 1.
    pub in_flight_max: usize,
    /// First wait after a failure, above 0; doubles with each further failure.
    pub backoff_min: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
}

/// What a failure means for the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Transient: back off and send again.
    Retry,
    /// This record will never pass and has been written to the dead letters: it is done.
    DeadLetter,
    /// We no longer know what we hold: nothing more is sent by this outbox.
    Fatal,
}

/// The bookkeeping of one lane.
#[derive(Debug)]
pub struct Outbox {
    settings: OutboxSettings,
    /// Everything of this lane up to here is done.
    acknowledged: Sequence,
    /// Last sequence sent, or read through without finding a record of this lane.
    cursor: Sequence,
    /// Sent and not done, in order, with records that are done behind one that is not.
    in_flight: VecDeque<Slot>,
    /// Acknowledged before a recall, above the cursor: not to be sent the other way.
    done_before: BTreeSet<Sequence>,
    /// Acknowledged, and sent again all the same because a record before them failed: not to be sent the other way.
    done_here: BTreeSet<Sequence>,
    /// Records in `in_flight` whose report has not come.
    unreported: usize,
    phase: Phase,
    failures_in_a_row: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    sequence: Sequence,
    is_reported: bool,
    /// Acknowledged, dead-lettered or evicted: never to be sent again.
    is_done: bool,
    /// It was done before a recall: it stays so when the lane goes back.
    is_passed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Sending,
    /// A record failed: waiting until everything in flight is reported.
    Draining {
        resume_at: Instant,
    },
    /// Waiting until the next attempt.
    BackingOff {
        resume_at: Instant,
    },
    Halted,
}

impl Outbox {
    /// An outbox that starts after the last sequence known to be done.
    #[must_use]
    pub fn new(acknowledged: Sequence, settings: OutboxSettings) -> Self {
        Self {
            settings,
            acknowledged,
            cursor: acknowledged,
            in_flight: VecDeque::new(),
            done_before: BTreeSet::new(),
            done_here: BTreeSet::new(),
            unreported: 0,
            phase: Phase::Sending,
            failures_in_a_row: 0,
        }
    }

    /// The sequence after which the next record of this lane may be sent; nothing while the lane is full,
    /// waits for reports after a failure, backs off or is halted.
    pub fn next_to_send(&mut self, now: Instant) -> Option<Sequence> {
        match self.phase {
            Phase::Sending => {}
            Phase::BackingOff { resume_at } if resume_at <= now => self.phase = Phase::Sending,
            Phase::BackingOff { .. } | Phase::Draining { .. } | Phase::Halted => return None,
        }
        (self.in_flight.len() < self.settings.in_flight_max.max(1)).then_some(self.cursor)
    }

    /// Takes note of a record handed to the producer.
    ///
    /// # Panics
    /// If [`Outbox::next_to_send`] did not just answer with a lower sequence: the order of the lane is lost.
    pub fn handle_sent(&mut self, sequence: Sequence) {
        assert_eq!(self.phase, Phase::Sending, "record {} sent while waiting", sequence.0);
        assert!(
            sequence > self.cursor,
            "record {} sent after {}: a lane is sent in order",
            sequence.0,
            self.cursor.0
        );
        self.cursor = sequence;
        self.unreported += 1;
        self.in_flight.push_back(Slot {
            sequence,
            is_reported: false,
            is_done: false,
            is_passed: false,
        });
    }

    /// Takes back what is in flight: no report of it comes any more, or none that counts. Sending goes on at once after the lowest
    /// record that is not done. Returns the new trim point, if it moved.
    pub fn handle_recalled(&mut self) -> Option<Sequence> {
        if let Some(lowest) = self.in_flight.iter().find(|slot| !slot.is_done) {
            let before = Sequence(lowest.sequence.0 - 1);
            let ahead = self.in_flight.iter().filter(|slot| slot.is_done);
            let ahead = ahead.map(|slot| slot.sequence).filter(|sequence| *sequence > before);
            self.done_before.extend(ahead);
            self.cursor = before;
        }
        self.done_before.append(&mut self.done_here);
        self.in_flight.clear();
        self.unreported = 0;
        self.failures_in_a_row = 0;
        self.phase = match self.phase {
            Phase::Halted => Phase::Halted,
            Phase::Sending | Phase::Draining { .. } | Phase::BackingOff { .. } => Phase::Sending,
        };
        self.advance()
    }

    /// Whether the next record of the lane was acknowledged before it was recalled. Then it is not to be sent: it counts as sent and
    /// done from here on.
    pub fn pass_over(&mut self, sequence: Sequence) -> bool {
        if self.phase != Phase::Sending || !self.done_before.remove(&sequence) {
            return false;
        }
        self.cursor = self.cursor.max(sequence);
        let slot = Slot { sequence, is_reported: true, is_done: true, is_passed: true };
        self.in_flight.push_back(slot);
        self.advance();
        true
    }

    /// Takes note that no record of this lane lies between the last one sent and `through`.
    /// Returns the new trim point, if it moved.
    pub fn handle_scanned(&mut self, through: Sequence) -> Option<Sequence> {
        match self.phase {
            Phase::Sending => self.cursor = self.cursor.max(through),
            // The cursor goes back anyway.
            Phase::Draining { .. } | Phase::BackingOff { .. } | Phase::Halted => return None,
        }
        self.advance()
    }

    /// Takes a delivery report. Returns the new trim point, if it moved. A report of a record that is not in
    /// flight changes nothing.
    pub fn handle_acknowledged(&mut self, sequence: Sequence) -> Option<Sequence> {
        self.report(sequence, true);
        self.finish_draining();
        self.advance()
    }

    /// Takes the report of a failure. `jitter` is a random fraction, 0 to 1. Returns the new trim point, if
    /// it moved: a dead-lettered record is done.
    pub fn handle_failed(
        &mut self,
        sequence: Sequence,
        disposition: Disposition,
        now: Instant,
        jitter: f64,
    ) -> Option<Sequence> {
        match disposition {
            Disposition::DeadLetter => {
                self.report(sequence, true);
            }
            Disposition::Retry => {
                if self.report(sequence, false) {
                    self.start_draining(now, jitter);
                }
            }
            Disposition::Fatal => {
                self.report(sequence, false);
                self.phase = Phase::Halted;
            }
        }
        self.finish_draining();
        self.advance()
    }

    /// Takes note that the journal dropped these records to make room: none of them is sent again. Returns
    /// the new trim point, if it moved.
    pub fn handle_evicted(&mut self, range: RangeInclusive<Sequence>) -> Option<Sequence> {
        for slot in &mut self.in_flight {
            slot.is_done |= range.contains(&slot.sequence);
        }
        self.finish_draining();
        self.advance()
    }

    /// When to call [`Outbox::next_to_send`] again although no report came.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::BackingOff { resume_at } => Some(resume_at),
            Phase::Sending | Phase::Draining { .. } | Phase::Halted => None,
        }
    }

    /// Everything of this lane up to here is done.
    #[must_use]
    pub const fn acknowledged(&self) -> Sequence {
        self.acknowledged
    }

    /// Records with the producer whose report has not come.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.unreported
    }

    /// Failures since the last acknowledgement.
    #[must_use]
    pub const fn failures_in_a_row(&self) -> u32 {
        self.failures_in_a_row
    }

    /// Whether a fatal failure ended the sending.
    #[must_use]
    pub const fn is_halted(&self) -> bool {
        match self.phase {
            Phase::Halted => true,
            Phase::Sending | Phase::Draining { .. } | Phase::BackingOff { .. } => false,
        }
    }

    /// Marks a record as reported; answers whether it was in flight and its report is of use.
    fn report(&mut self, sequence: Sequence, is_done: bool) -> bool {
        let Ok(index) = self.in_flight.binary_search_by_key(&sequence, |slot| slot.sequence) else {
            return false;
        };
        let slot = &mut self.in_flight[index];
        if slot.is_reported {
            return false;
        }
        slot.is_reported = true;
        self.unreported -= 1;
        let is_of_use = !slot.is_done;
        slot.is_done |= is_done;
        is_of_use
    }

    fn start_draining(&mut self, now: Instant, jitter: f64) {
        match self.phase {
            Phase::Sending => {
                self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                let resume_at = now + self.settings.backoff(self.failures_in_a_row, jitter);
                self.phase = Phase::Draining { resume_at };
            }
            // One outage fails many records: it is one step of the backoff.
            Phase::Draining { .. } | Phase::BackingOff { .. } | Phase::Halted => {}
        }
    }

    /// When everything in flight is reported: goes back to before the lowest record that is not done.
    fn finish_draining(&mut self) {
        let Phase::Draining { resume_at } = self.phase else { return };
        if self.unreported > 0 {
            return;
        }
        if let Some(lowest) = self.in_flight.iter().position(|slot| !slot.is_done) {
            let before = self.in_flight[lowest].sequence.0 - 1;
            for slot in self.in_flight.drain(lowest..).filter(|slot| slot.is_done) {
                let done = if slot.is_passed { &mut self.done_before } else { &mut self.done_here };
                done.insert(slot.sequence);
            }
            self.cursor = Sequence(before);
        }
        self.phase = Phase::BackingOff { resume_at };
    }

    /// Forgets what is done at the front and moves the trim point to before the first that is not.
    fn advance(&mut self) -> Option<Sequence> {
        while self.in_flight.front().is_some_and(|slot| slot.is_done && slot.is_reported) {
            self.in_flight.pop_front();
        }
        let first_open = self.in_flight.iter().find(|slot| !slot.is_done);
        let done = first_open.map_or(self.cursor, |slot| Sequence(slot.sequence.0 - 1));
        (done > self.acknowledged).then(|| {
            self.acknowledged = done;
            for kept in [&mut self.done_before, &mut self.done_here] {
                while kept.first().is_some_and(|first| *first <= done) {
                    kept.pop_first();
                }
            }
            // Only progress ends a row of failures: records behind the failing one may well be delivered meanwhile.
            self.failures_in_a_row = 0;
            done
        })
    }
}

impl OutboxSettings {
    /// The wait after so many failures in a row: between half of the doubled minimum and all of it.
    fn backoff(&self, failures_in_a_row: u32, jitter: f64) -> Duration {
        let doublings = failures_in_a_row.saturating_sub(1).min(31);
        let whole = self.backoff_min.saturating_mul(1 << doublings).min(self.backoff_max);
        let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 1.0 };
        whole.mul_f64(0.5 + 0.5 * jitter)
    }
}
