//! Messages of OPC Publisher on their way to the journal: as those of sensors, but acknowledged by whoever waits for them.

use edge_core::opc::{Item, OpcMessage};
use rumqttc::Publish;
use tokio::sync::{mpsc, oneshot, watch};

use super::Recording;
use crate::intake::Refusal;
use crate::journal::JournalCommand;
use crate::mqtt::source::SessionEvent;
use crate::recognition::InputMark;
use crate::store::Entry;

/// A message of OPC Publisher.
pub struct OpcInput {
    /// As it came, under a topic that is the same for each repeat, and marked as one that may be a repeat.
    pub publish: Publish,
    /// What is in it.
    pub message: OpcMessage,
    /// Answered when all that became of it is durable.
    pub durable: oneshot::Sender<()>,
}

/// What is to be recorded next.
pub(super) enum Next {
    /// An event of the MQTT session; nothing if it has ended.
    Session(Option<SessionEvent>),
    Input(Box<OpcInput>),
}

/// In turn: neither keeps the other waiting.
pub(super) async fn next(
    events: &mut mpsc::Receiver<SessionEvent>,
    inputs: &mut Option<mpsc::Receiver<OpcInput>>,
) -> Next {
    let input = async {
        match inputs {
            Some(inputs) => inputs.recv().await,
            None => None,
        }
    };
    tokio::select! {
        event = events.recv() => Next::Session(event),
        Some(input) = input => Next::Input(Box::new(input)),
    }
}

impl Recording {
    /// Says whether the journal is still there.
    pub(super) async fn handle_input(
        &mut self,
        input: OpcInput,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        let mark = InputMark::of(&input.publish);
        let OpcInput { publish, message, durable } = input;
        let records = self.records_of_input(&publish, message, mark);
        let mark = Some(mark).filter(|_| !records.is_empty());
        if !self.hand_over_input(records, None, mark, stop).await {
            return false;
        }
        tokio::select! {
            sent = self.commands.send(JournalCommand::Flush(durable)) => sent.is_ok(),
            _ = stop.changed() => false,
        }
    }

    fn records_of_input(
        &mut self,
        publish: &Publish,
        message: OpcMessage,
        mark: InputMark,
    ) -> Vec<Entry> {
        let mut records = Vec::new();
        if self.is_repeat(publish, mark) {
            return records;
        }
        for item in message.items {
            match item {
                Item::Reading(reading) => self.record(&reading, true, false, &mut records),
                Item::Refused(refused) => {
                    let (reason, detail) = (refused.error.reason(), refused.error.to_string());
                    self.refuse(&Refusal { reason, detail }, publish, &refused.raw, &mut records);
                }
            }
        }
        records
    }
}
