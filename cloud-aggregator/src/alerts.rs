//! Which alerts are owed to which channel.
//!
//! An event of an alert is owed from its epoch's commit until every channel that wants it has taken it or given it up; what is owed
//! stands in each state file with the channels that have not taken it, so that a crash sends it again under the same id, to those
//! alone. Who wants it is asked anew at each start: a target that the settings no longer name is owed nothing, and one that is new
//! hears of what comes from then on. Delivery never blocks counting: what does not fit a channel's queue waits here.
//!
//! An event that is suppressed (maintenance, shelved) is owed to nobody. A digest is its channel's own matter: the events in it
//! are owed until the digest is delivered.
//!
//! While the lake takes no rows, the same epoch is read back and counted again and again. What a channel has taken from this
//! process it does not get from it a second time.

pub mod commands;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use aggregator_core::AlertEvent;
use aggregator_core::checkpoint::{OwedTo, TopicPartition};
use metrics::{counter, gauge};
use tokio::sync::mpsc;
use tracing::error;

use crate::config::Audience;
use crate::sink::alert::{Channel, Delivery, Outcome, delivery};
use crate::telemetry::names;

/// An event that some channel will never take.
#[derive(Debug)]
pub struct Undelivered {
    /// Partition it came from.
    pub partition: TopicPartition,
    /// The event.
    pub alert: AlertEvent,
    /// `alert-undelivered` or `alert-overflow`.
    pub reason: &'static str,
    /// A sentence for people.
    pub detail: String,
    /// The CloudEvent.
    pub body: Arc<str>,
}

/// A channel that is open.
#[derive(Debug)]
pub struct Outlet {
    /// Its queue.
    pub sender: mpsc::Sender<Delivery>,
    /// Which events it wants.
    pub audience: Audience,
}

#[derive(Debug)]
struct Owed {
    partition: TopicPartition,
    alert: AlertEvent,
    delivery: Delivery,
    channels: BTreeSet<Channel>,
}

/// What came of adding an event.
#[derive(Debug, Default)]
pub struct Added {
    /// This process has not had it before.
    pub is_new: bool,
    /// Every channel that wants it has taken it from this process: nothing is owed.
    pub is_settled: bool,
    /// The oldest event, given up because more are owed than are kept.
    pub overflow: Option<Undelivered>,
}

/// Events of alerts that are owed.
#[derive(Debug)]
pub struct AlertDesk {
    channels: BTreeMap<Channel, Outlet>,
    /// Ids that wait for a place in a channel's queue, oldest first.
    waiting: BTreeMap<Channel, VecDeque<Arc<str>>>,
    owed: BTreeMap<Arc<str>, Owed>,
    /// How many of these are owed to each channel that is owed any.
    owed_by_channel: BTreeMap<Channel, usize>,
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
    pub fn new(channels: BTreeMap<Channel, Outlet>, owed_max: usize, source: String) -> Self {
        let waiting = channels.keys().map(|channel| (channel.clone(), VecDeque::new())).collect();
        Self {
            channels,
            waiting,
            owed: BTreeMap::new(),
            owed_by_channel: BTreeMap::new(),
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
        self.owed_by_channel.clear();
        self.order.clear();
        self.waiting.values_mut().for_each(VecDeque::clear);
    }

    /// Forgets the events of partitions that are somebody else's now: its state file owes them.
    pub fn forget(&mut self, partitions: &[TopicPartition]) {
        let counts = &mut self.owed_by_channel;
        self.owed.retain(|_, owed| {
            let is_kept = !partitions.contains(&owed.partition);
            if !is_kept {
                owed.channels.iter().for_each(|channel| take_one(counts, channel));
            }
            is_kept
        });
        let owed = &self.owed;
        self.order.retain(|id| owed.contains_key(id));
        self.waiting.values_mut().for_each(|queue| queue.retain(|id| owed.contains_key(id)));
    }

    /// Owes an event to every channel that wants it and has not taken it. At the limit the oldest is given up.
    pub fn add(&mut self, partition: TopicPartition, alert: AlertEvent) -> Added {
        self.add_to(partition, alert, None)
    }

    /// As [`Self::add`], of what was owed before a restart: to those channels alone, if they are known.
    pub fn add_to(
        &mut self,
        partition: TopicPartition,
        alert: AlertEvent,
        to: Option<&BTreeSet<String>>,
    ) -> Added {
        let delivery = delivery(&alert, &self.source);
        let id = Arc::clone(&delivery.id);
        let is_new = self.get_to_know(&id);
        if self.owed.contains_key(&id) {
            return Added { is_new, ..Added::default() };
        }
        let mut channels = self.wanting(&id, &alert);
        if let Some(to) = to {
            // The others have taken it, from the process before.
            channels.retain(|channel| to.contains(channel.as_str()));
        }
        if channels.is_empty() {
            return Added { is_new, is_settled: true, overflow: None };
        }
        for channel in &channels {
            self.waiting.entry(channel.clone()).or_default().push_back(Arc::clone(&id));
            *self.owed_by_channel.entry(channel.clone()).or_insert(0) += 1;
        }
        self.order.push_back(Arc::clone(&id));
        self.owed.insert(id, Owed { partition, alert, delivery, channels });
        let overflow = if self.owed.len() > self.owed_max { self.give_up_oldest() } else { None };
        Added { is_new, is_settled: false, overflow }
    }

    /// Channels that want the event and have not taken it from this process.
    fn wanting(&self, id: &Arc<str>, alert: &AlertEvent) -> BTreeSet<Channel> {
        if alert.suppressed_by.is_some() {
            return BTreeSet::new();
        }
        let taken = self.known.get(id);
        let has_taken = |channel: &Channel| taken.is_some_and(|by| by.contains(channel));
        let wanting = self
            .channels
            .iter()
            .filter(|(channel, outlet)| outlet.audience.wants(alert) && !has_taken(channel));
        wanting.map(|(channel, _)| channel.clone()).collect()
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
            let counts = &mut self.owed_by_channel;
            owed.channels.iter().for_each(|channel| take_one(counts, channel));
            let channels: Vec<&str> = owed.channels.iter().map(Channel::as_str).collect();
            let detail = format!(
                "more than {} alerts are owed (alerts.pending-max): see why {} does not take them",
                self.owed_max,
                channels.join(", ")
            );
            counter!(names::ALERTS_GIVEN_UP_TOTAL, "channel" => "all").increment(1);
            error!(
                alert = &*id,
                owed_max = self.owed_max,
                channels = channels.join(", "),
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

    /// Fills the channels' queues. One that is full holds nobody else up.
    pub fn pump(&mut self) {
        for (channel, outlet) in &self.channels {
            let Some(queue) = self.waiting.get_mut(channel) else { continue };
            while let Some(id) = queue.front() {
                let Some(owed) = self.owed.get(id) else {
                    queue.pop_front();
                    continue;
                };
                let Ok(permit) = outlet.sender.try_reserve() else { break };
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
            taken.insert(outcome.channel.clone());
        }
        let owed = self.owed.get_mut(&outcome.id)?;
        if owed.channels.remove(&outcome.channel) {
            take_one(&mut self.owed_by_channel, &outcome.channel);
        }
        let undelivered = outcome.given_up.map(|detail| {
            let channel = outcome.channel.as_str();
            counter!(names::ALERTS_GIVEN_UP_TOTAL, "channel" => channel.to_owned()).increment(1);
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

    /// Events of a partition that are owed, for the state file.
    #[must_use]
    pub fn owed_of(&self, partition: &TopicPartition) -> (Vec<AlertEvent>, OwedTo) {
        let owed = self.owed.iter().filter(|(_, owed)| owed.partition == *partition);
        let names = |owed: &Owed| owed.channels.iter().map(|it| it.as_str().to_owned()).collect();
        owed.map(|(id, owed)| (owed.alert.clone(), (id.to_string(), names(owed)))).unzip()
    }

    /// How many events are owed to each channel that is owed any.
    #[must_use]
    pub fn owed_by_channel(&self) -> &BTreeMap<Channel, usize> {
        &self.owed_by_channel
    }

    /// How many events are owed.
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

/// One less for a channel; one that is owed nothing is not listed.
fn take_one(counts: &mut BTreeMap<Channel, usize>, channel: &Channel) {
    if let Some(count) = counts.get_mut(channel) {
        *count -= 1;
        if *count == 0 {
            counts.remove(channel);
        }
    }
}

#[cfg(test)]
mod tests;
