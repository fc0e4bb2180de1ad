//! What a person wants of a machine from afar, by a hub's direct method. A stop is always carried out; nothing depends on its coming.

use std::time::Instant;

use shared_proto::model::MachineId;
use tokio::sync::oneshot;
use tracing::warn;

use super::{Protection, moment};

/// A request, and who waits for what becomes of it.
pub struct RemoteOrder {
    /// Of which machine.
    pub machine_id: MachineId,
    /// Who.
    pub operator: String,
    /// What.
    pub wish: RemoteWish,
    /// What became of it.
    pub answer: oneshot::Sender<RemoteAnswer>,
}

/// What a person wants of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteWish {
    /// Stop it and keep it stopped.
    Stop {
        /// Why.
        reason: String,
    },
    /// Let it start again.
    Reset,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteAnswer {
    /// Done, or it was so already. A trip that is latched is named.
    Done {
        /// Of a stop: the trip that is latched now.
        trip_id: Option<String>,
    },
    /// Not done, and why.
    Refused(String),
    /// The settings name no such machine.
    NoMachine,
}

impl Protection {
    /// Carries a request out and answers it.
    pub(super) fn handle_order(&mut self, order: RemoteOrder) {
        let RemoteOrder { machine_id, operator, wish, answer } = order;
        let result = match wish {
            RemoteWish::Stop { reason } => self.stop_by_order(&machine_id, operator, reason),
            RemoteWish::Reset => self.reset_by_order(&machine_id, &operator),
        };
        // Whoever does not wait any more is not told.
        drop(answer.send(result));
    }

    fn stop_by_order(
        &mut self,
        machine_id: &MachineId,
        operator: String,
        reason: String,
    ) -> RemoteAnswer {
        let Some(interlock) = self.interlocks.get_mut(machine_id) else {
            return RemoteAnswer::NoMachine;
        };
        warn!(%machine_id, operator, reason, "stop ordered from afar");
        let actions = interlock.handle_order(operator, reason, moment());
        let trip_id = interlock.trip_id().map(str::to_owned);
        self.perform(machine_id, actions, Instant::now());
        RemoteAnswer::Done { trip_id }
    }

    /// A machine that is not tripped needs no reset: asked twice, it is done twice.
    fn reset_by_order(&mut self, machine_id: &MachineId, operator: &str) -> RemoteAnswer {
        match self.interlocks.get(machine_id) {
            None => return RemoteAnswer::NoMachine,
            Some(interlock) if !interlock.is_tripped() => {
                return RemoteAnswer::Done { trip_id: None };
            }
            Some(_) => {}
        }
        match self.reset(machine_id, operator) {
            Ok(()) => RemoteAnswer::Done { trip_id: None },
            Err(refusal) => RemoteAnswer::Refused(refusal.to_string()),
        }
    }
}
