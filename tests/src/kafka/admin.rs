//! What an operator does to topics.

use anyhow::bail;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};

use super::{Kafka, REQUEST_DEADLINE, client_config};

type Admin = AdminClient<DefaultClientContext>;

fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_DEADLINE))
}

pub(super) fn create_topics(
    bootstrap: &str,
    names: &[&str],
    partitions: i32,
    replicas: i32,
) -> anyhow::Result<()> {
    let admin: Admin = client_config(bootstrap).create()?;
    let topics: Vec<_> = names
        .iter()
        .map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(replicas)))
        .collect();
    for result in block_on(admin.create_topics(&topics, &options()))?? {
        if let Err((name, code)) = result {
            bail!("creating the topic {name}: {code}");
        }
    }
    Ok(())
}

impl Kafka {
    /// Raises the number of a topic's partitions to `count`.
    ///
    /// # Errors
    /// The broker refuses.
    pub fn add_partitions(&self, topic: &str, count: usize) -> anyhow::Result<()> {
        let admin: Admin = self.client_config().create()?;
        let wanted = [NewPartitions::new(topic, count)];
        for result in block_on(admin.create_partitions(&wanted, &options()))?? {
            if let Err((name, code)) = result {
                bail!("adding partitions to {name}: {code}");
            }
        }
        Ok(())
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// The broker refuses.
    pub fn delete_topic(&self, topic: &str) -> anyhow::Result<()> {
        let admin: Admin = self.client_config().create()?;
        for result in block_on(admin.delete_topics(&[topic], &options()))?? {
            if let Err((name, code)) = result {
                bail!("deleting the topic {name}: {code}");
            }
        }
        Ok(())
    }

    /// Deletes what a partition holds below `offset`, as its retention does; `None`: all of it.
    ///
    /// # Errors
    /// The broker refuses.
    pub fn delete_records(
        &self,
        topic: &str,
        partition: i32,
        offset: Option<i64>,
    ) -> anyhow::Result<()> {
        let admin: Admin = self.client_config().create()?;
        let mut list = TopicPartitionList::new();
        let below = offset.map_or(Offset::End, Offset::Offset);
        list.add_partition_offset(topic, partition, below)?;
        let deleted = block_on(admin.delete_records(&list, &options()))??;
        for element in deleted.elements() {
            element.error()?;
        }
        Ok(())
    }
}
