//! Acknowledging by hand, many at once.
//!
//! The client library takes one request for each ten packets that it reads: under a backlog acknowledgements given to it one by
//! one fall behind, and a broker whose messages in flight pile up searches them for each acknowledgement that comes late. So
//! only the first of those that wait is a request, to wake the session; the others are written after it together.
//! They keep their order, as MQTT asks for [MQTT-4.6.0-2].
//!
//! What waits when the connection breaks is forgotten: the broker delivers those messages again, under the same packet
//! identifiers on the same session, and under others on a new one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rumqttc::{AsyncClient, Publish, QoS};
use tracing::debug;

/// How often the end looks whether all is written.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What is owed to the broker for a message, on the connection that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    connection: u64,
    packet_id: u16,
}

impl Receipt {
    /// Nothing is owed for QoS 0.
    #[must_use]
    pub(super) fn new(publish: &Publish, connection: u64) -> Option<Self> {
        let packet_id = publish.pkid;
        (publish.qos != QoS::AtMostOnce).then_some(Self { connection, packet_id })
    }
}

#[derive(Debug, Default)]
struct Waiting {
    /// Number of the connection.
    connection: u64,
    packet_ids: VecDeque<u16>,
    /// The session has a request before it that wakes it.
    is_woken: bool,
}

/// Acknowledges a session's messages.
#[derive(Clone, Debug)]
pub struct Acknowledgements {
    client: AsyncClient,
    waiting: Arc<Mutex<Waiting>>,
}

impl Acknowledgements {
    pub(super) fn new(client: AsyncClient) -> Self {
        Self { client, waiting: Arc::default() }
    }

    /// Acknowledges messages in the order in which they came. Those of a connection that is gone come again.
    pub fn give(&self, receipts: impl IntoIterator<Item = Receipt>) {
        let mut waiting = self.lock();
        let connection = waiting.connection;
        let current = receipts.into_iter().filter(|receipt| receipt.connection == connection);
        waiting.packet_ids.extend(current.map(|receipt| receipt.packet_id));
        if waiting.is_woken {
            return;
        }
        let Some(first) = waiting.packet_ids.pop_front() else { return };
        match self.client.try_ack(&with_packet_id(first)) {
            Ok(()) => waiting.is_woken = true,
            Err(error) => {
                // It leaves with the next that are given.
                debug!(%error, "acknowledgements wait");
                waiting.packet_ids.push_front(first);
            }
        }
    }

    /// What waits, after the session has written the one that woke it.
    pub(super) fn take(&self) -> VecDeque<u16> {
        let mut waiting = self.lock();
        waiting.is_woken = false;
        std::mem::take(&mut waiting.packet_ids)
    }

    /// Returns when nothing waits.
    pub async fn wait_until_written(&self) {
        let is_waiting = || {
            let waiting = self.lock();
            waiting.is_woken || !waiting.packet_ids.is_empty()
        };
        while is_waiting() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Forgets what waits; `drain` does so with the client's requests. Gives the number of the next connection.
    pub(super) fn forget(&self, drain: impl FnOnce()) -> u64 {
        let mut waiting = self.lock();
        drain();
        *waiting = Waiting { connection: waiting.connection + 1, ..Waiting::default() };
        waiting.connection
    }

    // A panic while holding the lock leaves a list that is still a list.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client library wants the message; it looks at these two fields.
fn with_packet_id(packet_id: u16) -> Publish {
    let mut publish = Publish::new("", QoS::AtLeastOnce, Vec::new());
    publish.pkid = packet_id;
    publish
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledgements() -> (Acknowledgements, rumqttc::EventLoop) {
        let options = rumqttc::MqttOptions::new("test", "127.0.0.1", 1);
        let (client, event_loop) = AsyncClient::new(options, 1);
        (Acknowledgements::new(client), event_loop)
    }

    fn receipts(connection: u64, ids: std::ops::RangeInclusive<u16>) -> Vec<Receipt> {
        ids.map(|packet_id| Receipt { connection, packet_id }).collect()
    }

    #[test]
    fn the_first_wakes_the_session_and_the_others_follow_together() {
        let (acknowledgements, _event_loop) = acknowledgements();
        acknowledgements.give(receipts(0, 1..=3));
        acknowledgements.give(receipts(0, 4..=5));
        assert!(acknowledgements.lock().is_woken, "by the first");
        assert_eq!(acknowledgements.take(), [2, 3, 4, 5]);
        assert!(acknowledgements.take().is_empty());
    }

    #[test]
    fn one_that_cannot_wake_leaves_with_the_next() {
        let (acknowledgements, mut event_loop) = acknowledgements();
        acknowledgements.client.try_subscribe("x", QoS::AtLeastOnce).expect("room for one request");
        acknowledgements.give(receipts(0, 7..=8));
        assert!(!acknowledgements.lock().is_woken);
        event_loop.clean();
        acknowledgements.give(receipts(0, 9..=9));
        assert_eq!(acknowledgements.take(), [8, 9], "after 7, which wakes");
    }

    #[test]
    fn messages_of_a_connection_that_is_gone_are_not_acknowledged() {
        let (acknowledgements, mut event_loop) = acknowledgements();
        acknowledgements.give(receipts(0, 1..=3));
        assert_eq!(acknowledgements.forget(|| event_loop.clean()), 1);
        assert!(event_loop.pending.is_empty(), "the client forgets its acknowledgements, too");
        acknowledgements.give(receipts(0, 4..=5));
        assert!(!acknowledgements.lock().is_woken);
        acknowledgements.give(receipts(1, 1..=2));
        assert_eq!(acknowledgements.take(), [2]);
    }

    #[test]
    fn nothing_is_owed_for_quality_of_service_0() {
        let publish = |qos| Publish::new("x", qos, Vec::new());
        assert_eq!(Receipt::new(&publish(QoS::AtMostOnce), 0), None);
        assert!(Receipt::new(&publish(QoS::AtLeastOnce), 0).is_some());
    }
}
