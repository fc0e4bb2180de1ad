//! Which partitions may have written the row of a window. A row names its sensor or machine and no partition; but a state forgets
//! neither sensors nor machines, so it was one that holds this one.

use std::collections::HashMap;
use std::sync::Arc;

use aggregator_core::GroupBy;
use aggregator_core::checkpoint::TopicPartition;

/// A partition that holds a sensor or machine, with its newest event time there.
pub(super) type Holder = (Arc<TopicPartition>, i64);

/// Partitions by the sensors and machines that their states hold.
#[derive(Debug, Default)]
pub(super) struct Origins {
    sensors: HashMap<String, Vec<Holder>>,
    machines: HashMap<String, Vec<Holder>>,
}

impl Origins {
    /// Notes that the state of a partition holds a sensor or machine.
    pub(super) fn add(&mut self, by: GroupBy, group: &str, holder: Holder) {
        let holders = match by {
            GroupBy::Sensor => &mut self.sensors,
            GroupBy::Machine => &mut self.machines,
        };
        holders.entry(group.to_owned()).or_default().push(holder);
    }

    /// Partitions whose states hold a sensor or machine.
    pub(super) fn of(&self, by: GroupBy, group: &str) -> &[Holder] {
        let holders = match by {
            GroupBy::Sensor => self.sensors.get(group),
            GroupBy::Machine => self.machines.get(group),
        };
        holders.map(Vec::as_slice).unwrap_or_default()
    }

    /// Newest event time of a sensor or machine in a partition.
    pub(super) fn newest(
        &self,
        by: GroupBy,
        group: &str,
        partition: &TopicPartition,
    ) -> Option<i64> {
        let holder = self.of(by, group).iter().find(|(holder, _)| **holder == *partition);
        holder.map(|(_, newest)| *newest)
    }
}
