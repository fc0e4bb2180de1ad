//! Which alerts are owed to which channel.
//!
//! An alert is owed from its epoch's commit until every channel has taken it or given it up; what is owed stands in
//! each state file, so that a crash sends it again under the same id. Delivery never blocks counting: what does not
//! fit a channel's queue waits here.
//!
//! While the lake takes no rows, the same epoch is read back and counted again and again. What a channel has taken from this
//! process it does not get from it a second time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use aggregator_core::Alert;
use aggregator_core::checkpoint::TopicPartition;
use metrics::{counter, gauge};
use tokio::sync::mpsc;
use tracing::error;

use crate::sink::alert::{Channel, Delivery, Outcome, delivery};
use crate::telemetry::names;

/// An alert that some channel will never take.
#[derive(Debug)]
pub struct Undelivered {
    /// Partition it came from.
    pub partition: TopicPartition,
    /// The alert.
    pub alert: Alert,
    /// `alert-undelivered` or `alert-overflow`.
    pub reason: &'static str,
    /// A sentence for people.
    pub detail: String,
    /// The CloudEvent.
    pub body: Arc<str>,
}

#[derive(Debug)]
struct Owed {
    partition: TopicPartition,
    alert: Alert,
    delivery: Delivery,
    channels: BTreeSet<Channel>,
}

/// What came of adding an alert.
#[derive(Debug, Default)]
pub struct Added {
    /// This process has not had it before.
    pub is_new: bool,
    /// Every channel has taken it from this process: nothing is owed.
    pub is_settled: bool,
    /// The oldest alert, given up because more are owed than are kept.
    pub overflow: Option<Undelivered>,
}

/// Alerts that are owed.
#[derive(Debug)]
pub struct AlertDesk {
    channels: BTreeMap<Channel, mpsc::Sender<Delivery>>,
    /// Ids that wait for a place in a channel's queue, oldest first.
    waiting: BTreeMap<Channel, VecDeque<Arc<str>>>,
    owed: BTreeMap<Arc<str>, Owed>,
    /// Ids in the order in which they became owed.
    order: VecDeque<Arc<str>>,
    /// Ids that this process has had, owed or not, with the channels that have taken them; the latest only.
    known: BTreeMap<Arc<str>, BTreeSet<Channel>>,
    /// These ids in the order in which they came.
    known_order: VecDeque<Arc<str>>,
    owed_max: usize,
    source: String,
}

impl AlertDesk {
    /// Nothing owed.
    #[must_use]
    pub fn new(
        channels: BTreeMap<Channel, mpsc::Sender<Delivery>>,
        owed_max: usize,
        source: String,
    ) -> Self {
        let waiting = channels.keys().map(|channel| (*channel, VecDeque::new())).collect();
        Self {
            channels,
            waiting,
            owed: BTreeMap::new(),
            order: VecDeque::new(),
            known: BTreeMap::new(),
            known_order: VecDeque::new(),
            owed_max,
            source,
        }
    }

    /// Forgets what is owed: the partitions are somebody else's, or are read back from the lake.
    pub fn clear(&mut self) {
        self.owed.clear();
        self.order.clear();
        self.waiting.values_mut().for_each(VecDeque::clear);
    }

    /// Forgets the alerts of partitions that are somebody else's now: its state file owes them.
    pub fn forget(&mut self, partitions: &[TopicPartition]) {
        self.owed.retain(|_, owed| !partitions.contains(&owed.partition));
        let owed = &self.owed;
        self.order.retain(|id| owed.contains_key(id));
    }

    /// Owes an alert to every channel that has not taken it. At the limit the oldest is given up.
    pub fn add(&mut self, partition: TopicPartition, alert: Alert) -> Added {
        let delivery = delivery(&alert, &self.source);
        let id = Arc::clone(&delivery.id);
        let is_new = self.get_to_know(&id);
        if self.owed.contains_key(&id) {
            return Added { is_new, ..Added::default() };
        }
        let taken = self.known.get(&id);
        let has_not_taken = |channel: &&Channel| !taken.is_some_and(|by| by.contains(channel));
        let channels: BTreeSet<Channel> =
            self.channels.keys().filter(has_not_taken).copied().collect();
        if channels.is_empty() {
            return Added { is_new, is_settled: true, overflow: None };
        }
        for channel in &channels {
            self.waiting.entry(*channel).or_default().push_back(Arc::clone(&id));
        }
        self.order.push_back(Arc::clone(&id));
        self.owed.insert(id, Owed { partition, alert, delivery, channels });
        let overflow = if self.owed.len() > self.owed_max { self.give_up_oldest() } else { None };
        Added { is_new, is_settled: false, overflow }
    }

    /// Whether the id is new.
    fn get_to_know(&mut self, id: &Arc<str>) -> bool {
        if self.known.contains_key(id) {
            return false;
        }
        self.known.insert(Arc::clone(id), BTreeSet::new());
        self.known_order.push_back(Arc::clone(id));
        // As many that are settled as may be owed.
        if self.known_order.len() > 2 * self.owed_max
            && let Some(oldest) = self.known_order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    fn give_up_oldest(&mut self) -> Option<Undelivered> {
        loop {
            let id = self.order.pop_front()?;
            let Some(owed) = self.owed.remove(&id) else { continue };
            let detail = format!(
                "more than {} alerts are owed (alerts.pending-max): see why the channels do not take them",
                self.owed_max
            );
            counter!(names::ALERTS_GIVEN_UP_TOTAL, "channel" => "all").increment(1);
            error!(
                alert = &*id,
                owed_max = self.owed_max,
                "too many alerts are owed, the oldest is given up"
            );
            return Some(Undelivered {
                partition: owed.partition,
                alert: owed.alert,
                reason: "alert-overflow",
                detail,
                body: owed.delivery.body,
            });
        }
    }

    /// Fills the channels' queues.
    pub fn pump(&mut self) {
        for (channel, sender) in &self.channels {
            let Some(queue) = self.waiting.get_mut(channel) else { continue };
            while let Some(id) = queue.front() {
                let Some(owed) = self.owed.get(id) else {
                    queue.pop_front();
                    continue;
                };
                let Ok(permit) = sender.try_reserve() else { break };
                permit.send(owed.delivery.clone());
                queue.pop_front();
            }
        }
        gauge!(names::ALERTS_PENDING).set(self.owed.len() as f64);
    }

    /// Takes note of what became of a delivery.
    pub fn handle(&mut self, outcome: Outcome) -> Option<Undelivered> {
        // Also of what was forgotten meanwhile: it may be owed again.
        if outcome.given_up.is_none()
            && let Some(taken) = self.known.get_mut(&outcome.id)
        {
            taken.insert(outcome.channel);
        }
        let owed = self.owed.get_mut(&outcome.id)?;
        owed.channels.remove(&outcome.channel);
        let undelivered = outcome.given_up.map(|detail| {
            let channel = outcome.channel.as_str();
            counter!(names::ALERTS_GIVEN_UP_TOTAL, "channel" => channel).increment(1);
            Undelivered {
                partition: owed.partition.clone(),
                alert: owed.alert.clone(),
                reason: "alert-undelivered",
                detail: format!("{channel}: {detail}"),
                body: Arc::clone(&owed.delivery.body),
            }
        });
        if owed.channels.is_empty() {
            self.owed.remove(&outcome.id);
            if self.order.len() > 2 * self.owed_max {
                let owed = &self.owed;
                self.order.retain(|id| owed.contains_key(id));
            }
        }
        undelivered
    }

    /// Alerts of a partition that are owed, for the state file.
    #[must_use]
    pub fn owed_of(&self, partition: &TopicPartition) -> Vec<Alert> {
        let of_partition = |owed: &&Owed| owed.partition == *partition;
        self.owed.values().filter(of_partition).map(|owed| owed.alert.clone()).collect()
    }

    /// How many alerts are owed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owed.len()
    }

    /// Whether nothing is owed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }
}

#[cfg(test)]
mod tests;
