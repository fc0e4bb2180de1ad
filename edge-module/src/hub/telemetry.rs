//! Records that leave by the hub: the line between the forwarder, which makes messages of them, and the link, which sends them.
//!
//! Each message is reported exactly once: taken, when the hub has acknowledged it, or lost, when its connection ended before. A lost one
//! may have arrived all the same. Nothing waits here for another connection: a message belongs to the one that it was made for, and the
//! report of all that were lost stands in the queue before the next connection is told of. So the forwarder, which looks at the
//! connection first and at the reports then, never sends a record before one that it has to send again, and the order of a lane holds.
//!
//! Limits: [`Uplink::room`] messages on their way, fewer than the 16 past which a hub reads no further, so that answers to methods and
//! the twin never wait behind telemetry; what is full makes the forwarder wait, and records stay in the journal.

use std::collections::{BTreeSet, VecDeque};

use tokio::sync::{mpsc, watch};
use tracing::debug;

/// A message for the hub.
#[derive(Debug)]
pub struct HubMessage {
    /// As the sender counts them.
    pub number: u64,
    /// The connection that it was made for.
    pub connection: u64,
    /// Names and values; those of the system begin with `$.`.
    pub properties: Vec<(&'static str, String)>,
    /// The body.
    pub payload: Vec<u8>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The hub has it.
    Taken,
    /// Its connection has ended: the hub may have it or not.
    Lost,
}

/// What became of which message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubReport {
    /// Of the message.
    pub number: u64,
    /// What became of it.
    pub fate: Fate,
}

/// What comes to the forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineNews {
    /// Of a message; nothing: the link has ended.
    Report(Option<HubReport>),
    /// There is another connection, or none any more.
    Connection,
}

/// The forwarder's end.
#[derive(Debug)]
pub struct Uplink {
    messages: mpsc::Sender<HubMessage>,
    reports: mpsc::Receiver<HubReport>,
    connection: watch::Receiver<Option<u64>>,
}

/// The link's end. All that is on its way is lost when it is dropped.
#[derive(Debug)]
pub struct Downlink {
    messages: mpsc::Receiver<HubMessage>,
    reports: mpsc::Sender<HubReport>,
    connection: watch::Sender<Option<u64>>,
    connections: u64,
    in_flight: BTreeSet<u64>,
    in_flight_max: usize,
    /// Reports that had no place: as many as messages at most, since no message is taken meanwhile.
    unsent: VecDeque<HubReport>,
}

/// Both ends of a line on which so many messages are on their way at most.
#[must_use]
pub fn line(in_flight_max: usize) -> (Uplink, Downlink) {
    let (messages, in_messages) = mpsc::channel(in_flight_max.max(1));
    let (reports, in_reports) = mpsc::channel(in_flight_max.max(1) * 2);
    let connection = watch::Sender::new(None);
    let uplink = Uplink { messages, reports: in_reports, connection: connection.subscribe() };
    let downlink = Downlink {
        messages: in_messages,
        reports,
        connection,
        connections: 0,
        in_flight: BTreeSet::new(),
        in_flight_max: in_flight_max.max(1),
        unsent: VecDeque::new(),
    };
    (uplink, downlink)
}

impl Uplink {
    /// The connection that there is.
    #[must_use]
    pub fn connection(&self) -> Option<u64> {
        *self.connection.borrow()
    }

    /// Messages that may be on their way at the same time.
    #[must_use]
    pub fn room(&self) -> usize {
        self.messages.max_capacity()
    }

    /// Hands a message over; says whether it was taken.
    pub fn send(&self, message: HubMessage) -> bool {
        self.messages.try_send(message).is_ok()
    }

    /// What is reported already.
    pub fn try_report(&mut self) -> Option<HubReport> {
        self.reports.try_recv().ok()
    }

    /// Waits for what comes next.
    pub async fn news(&mut self) -> LineNews {
        tokio::select! {
            biased;
            report = self.reports.recv() => LineNews::Report(report),
            // The reports end with the link, too.
            Ok(()) = self.connection.changed() => LineNews::Connection,
        }
    }
}

impl Downlink {
    /// A connection is there.
    pub fn begin(&mut self) {
        self.connections += 1;
        self.connection.send_replace(Some(self.connections));
    }

    /// The connection is over: what is on its way is lost.
    pub fn end(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            self.in_flight.insert(message.number);
        }
        for number in std::mem::take(&mut self.in_flight) {
            self.tell(HubReport { number, fate: Fate::Lost });
        }
        // After the reports: see the module's description.
        self.connection.send_replace(None);
    }

    /// The next message for the connection that there is; waits while there is none, or no room.
    pub async fn next(&mut self) -> HubMessage {
        self.send_reports();
        loop {
            let has_room = self.in_flight.len() < self.in_flight_max && self.unsent.is_empty();
            let current = *self.connection.borrow();
            if current.is_none() || !has_room {
                std::future::pending::<()>().await;
            }
            let Some(message) = self.messages.recv().await else {
                return std::future::pending().await;
            };
            if current == Some(message.connection) {
                self.in_flight.insert(message.number);
                return message;
            }
            self.tell(HubReport { number: message.number, fate: Fate::Lost });
        }
    }

    /// The hub has it.
    pub fn handle_taken(&mut self, number: u64) {
        if self.in_flight.remove(&number) {
            self.tell(HubReport { number, fate: Fate::Taken });
        }
    }

    /// It was not even handed to the connection.
    pub fn handle_not_sent(&mut self, number: u64) {
        if self.in_flight.remove(&number) {
            self.tell(HubReport { number, fate: Fate::Lost });
        }
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.in_flight.is_empty()
    }

    fn tell(&mut self, report: HubReport) {
        self.unsent.push_back(report);
        self.send_reports();
    }

    fn send_reports(&mut self) {
        while let Some(report) = self.unsent.front() {
            match self.reports.try_send(*report) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => return,
                Err(mpsc::error::TrySendError::Closed(report)) => {
                    debug!(number = report.number, "the forwarder has ended");
                }
            }
            self.unsent.pop_front();
        }
    }
}

impl Drop for Downlink {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u64, connection: u64) -> HubMessage {
        HubMessage { number, connection, properties: Vec::new(), payload: Vec::new() }
    }

    fn reports(uplink: &mut Uplink) -> Vec<(u64, Fate)> {
        let next = || uplink.try_report().map(|report| (report.number, report.fate));
        std::iter::from_fn(next).collect()
    }

    #[tokio::test]
    async fn each_message_is_reported_once_and_belongs_to_one_connection() {
        let (mut uplink, mut downlink) = line(3);
        assert_eq!(uplink.connection(), None);
        downlink.begin();
        assert_eq!(uplink.connection(), Some(1));
        for number in 0..3 {
            assert!(uplink.send(message(number, 1)));
        }
        assert!(!uplink.send(message(3, 1)), "no room");
        assert_eq!(downlink.next().await.number, 0);
        assert_eq!(downlink.next().await.number, 1);
        downlink.handle_taken(1);
        downlink.handle_taken(1);
        assert_eq!(reports(&mut uplink), [(1, Fate::Taken)]);
        // One was on the socket, one waited.
        downlink.end();
        assert_eq!(reports(&mut uplink), [(0, Fate::Lost), (2, Fate::Lost)]);
        assert_eq!(uplink.connection(), None);
        assert!(downlink.is_settled());
        // Made for the connection before.
        downlink.begin();
        assert!(uplink.send(message(4, 1)));
        assert!(uplink.send(message(5, 2)));
        assert_eq!(downlink.next().await.number, 5);
        assert_eq!(reports(&mut uplink), [(4, Fate::Lost)]);
        drop(downlink);
        let lost = HubReport { number: 5, fate: Fate::Lost };
        assert_eq!(uplink.news().await, LineNews::Report(Some(lost)));
        assert_eq!(uplink.news().await, LineNews::Report(None));
        assert_eq!(uplink.connection(), None);
    }

    #[tokio::test]
    async fn a_forwarder_that_reads_no_reports_gets_them_all_later() {
        let (mut uplink, mut downlink) = line(1);
        downlink.begin();
        for number in 0..3 {
            assert!(uplink.send(message(number, 1)));
            assert_eq!(downlink.next().await.number, number);
            downlink.handle_taken(number);
        }
        assert!(uplink.send(message(3, 1)));
        let next = tokio::time::timeout(std::time::Duration::ZERO, downlink.next()).await;
        assert!(next.is_err(), "none is taken while a report has no place");
        assert_eq!(reports(&mut uplink).len(), 2);
        assert_eq!(downlink.next().await.number, 3);
        assert_eq!(reports(&mut uplink), [(2, Fate::Taken)]);
    }
}
