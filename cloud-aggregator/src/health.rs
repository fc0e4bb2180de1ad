//! What `/healthz`, `/readyz` and `/status` tell.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aggregator_core::Accounting;
use serde::Serialize;

use crate::sink::alert::Channel;
use crate::sink::webhook::{TargetHealth, TargetStatus};

/// Where the pipeline stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Waiting for the group to give partitions.
    #[default]
    WaitingForPartitions,
    /// Reading offsets and state from the lake.
    Recovering,
    /// Records flow.
    Running,
    /// The last epoch is being committed.
    Stopping,
}

/// A look at the pipeline.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// Where it stands.
    pub stage: Stage,
    /// Partitions in service, as `<topic>/<partition>`.
    pub partitions: Vec<String>,
    /// Why the storage does not take rows at the moment.
    pub lake_problem: Option<String>,
    /// Partitions that are not read until a person has acted, and why.
    pub corrupt_partitions: Vec<String>,
    /// Name of the last epoch.
    pub last_epoch: Option<String>,
    /// When it was committed.
    pub last_epoch_at: Option<String>,
    /// Epochs committed by this process.
    pub epochs: u64,
    /// Records of these epochs.
    pub records: u64,
    /// Rules in force.
    pub rules: Vec<String>,
    /// Why the newest change of the settings was refused; the rules before stay in force.
    pub settings_refused: Option<String>,
    /// Alerts owed to some channel.
    pub alerts_owed: usize,
    /// Alerts owed to each channel that is owed any: `alert_targets` tells them.
    #[serde(skip)]
    pub alerts_owed_by_channel: BTreeMap<Channel, usize>,
    /// What became of all records of these partitions since they were first read.
    pub accounting: Accounting,
    /// Whom alerts go to, the topic first, and how they are.
    pub alert_targets: Vec<TargetStatus>,
    /// Records missing by device, the first of them: who, how many, between which sequences. Only of the instance that watches.
    pub device_gaps: Vec<String>,
}

/// Shared between the pipeline and the HTTP server.
#[derive(Debug, Default)]
pub struct Health {
    status: Mutex<Status>,
    brokers_down: Arc<AtomicBool>,
    targets: Mutex<Vec<TargetHealth>>,
}

impl Health {
    /// `brokers_down` is kept by the consumer.
    #[must_use]
    pub fn new(brokers_down: Arc<AtomicBool>) -> Self {
        Self { brokers_down, ..Self::default() }
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock());
    }

    /// Shows these targets of alerts from now on.
    pub fn watch_targets(&self, targets: Vec<TargetHealth>) {
        *self.targets.lock().unwrap_or_else(PoisonError::into_inner) = targets;
    }

    /// A copy of the status.
    #[must_use]
    pub fn status(&self) -> Status {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut status = self.lock().clone();
        let owed = &status.alerts_owed_by_channel;
        let with_owed = |target: TargetStatus| {
            let mut found = owed.iter().filter(|(channel, _)| channel.as_str() == target.name);
            TargetStatus { owed: found.next().map_or(0, |(_, count)| *count), ..target }
        };
        status.alert_targets = targets.iter().map(|it| with_owed(it.status())).collect();
        status
    }

    /// Why records are not flowing into the lake; empty if they are.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let status = self.lock();
        let mut problems: Vec<String> = Vec::new();
        if self.brokers_down.load(Ordering::Relaxed) {
            problems.push("kafka: no broker answers".to_owned());
        }
        if let Some(problem) = &status.lake_problem {
            problems.push(format!("lake: {problem}"));
        }
        problems.extend(status.corrupt_partitions.iter().cloned());
        match status.stage {
            Stage::WaitingForPartitions => {
                problems.push("kafka: the group has given no partitions yet".to_owned());
            }
            Stage::Recovering => problems.push("lake: offsets and state are being read".to_owned()),
            Stage::Stopping => problems.push("the process is stopping".to_owned()),
            Stage::Running => {}
        }
        problems
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_tells_what_it_is_owed() {
        let health = Health::default();
        health.watch_targets(vec![TargetHealth::of_topic()]);
        assert_eq!(health.status().alert_targets[0].owed, 0);
        health.update(|status| {
            status.alerts_owed = 3;
            status.alerts_owed_by_channel =
                [(Channel::Topic, 2), (Channel::Target("cmms".into()), 3)].into();
        });
        let shown = serde_json::to_value(health.status()).expect("JSON");
        assert_eq!(shown["alerts_owed"], 3);
        assert_eq!(shown["alert_targets"][0]["name"], "topic");
        assert_eq!(shown["alert_targets"][0]["owed"], 2);
        assert!(shown.get("alerts_owed_by_channel").is_none(), "{shown}");
    }
}
