//! What goes between the interlock and the machine side, over MQTT, as small JSON objects.
//!
//! | topic (default) | direction | payload | retained |
//! |---|---|---|---|
//! | `plant/{machine}/command` | out | `{"command":"stop","trip_id":…,"attempt":…}` | no |
//! | `plant/{machine}/heartbeat` | out | `{"device_id":…,"count":…}` | no |
//! | `plant/{machine}/interlock` | out | the latch: `{"state":"armed",…}` | yes |
//! | `plant/{machine}/state` | in | `{"state":"running" \| "stopping" \| "stopped"}` | as the machine likes |
//! | `plant/{machine}/reset` | in | `{"operator":"name"}` | ignored if retained |

use std::collections::BTreeMap;

use edge_core::interlock::{LatchSnapshot, MachineState};
use serde::{Deserialize, Serialize};
use shared_proto::model::MachineId;

use crate::actuation::StopOrder;
use crate::config::Protection;

/// Longest payload of a report or a reset.
const REPORT_BYTES_MAX: usize = 4096;
const OPERATOR_CHARACTERS_MAX: usize = 128;

/// What came from the machine side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The machine says what it does.
    State(MachineState),
    /// A person asks for a reset.
    Reset {
        /// Who.
        operator: String,
    },
}

/// Why a report is none.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A topic that nobody subscribed to.
    #[error("topic {0:?} belongs to no configured machine")]
    Topic(String),
    /// Too long.
    #[error("{topic}: {length} bytes, at most {REPORT_BYTES_MAX} are allowed")]
    TooLong {
        /// Where it came in.
        topic: String,
        /// Its length.
        length: usize,
    },
    /// Not the JSON expected.
    #[error("{topic}: expected {expected}")]
    Json {
        /// Where it came in.
        topic: String,
        /// The form expected.
        expected: &'static str,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A reset without a name.
    #[error("{topic}: operator is empty or longer than {OPERATOR_CHARACTERS_MAX} characters")]
    Operator {
        /// Where it came in.
        topic: String,
    },
    /// A reset that lay in the broker.
    #[error("{topic}: a retained reset is ignored; publish it without the retain flag")]
    Retained {
        /// Where it came in.
        topic: String,
    },
}

#[derive(Clone, Copy)]
enum ReportKind {
    State,
    Reset,
}

/// Topics of all machines, both ways.
pub struct Topics {
    incoming: BTreeMap<String, (MachineId, ReportKind)>,
    outgoing: BTreeMap<MachineId, Outgoing>,
}

struct Outgoing {
    command: String,
    interlock: String,
    heartbeat: String,
}

impl Topics {
    /// Topics of a broker that is a path to the machines `stopped` and where those of `reset` are reset and shown.
    pub fn new<'a>(
        protection: &Protection,
        stopped: impl Iterator<Item = &'a MachineId>,
        reset: impl Iterator<Item = &'a MachineId>,
    ) -> Self {
        let mut topics = Self { incoming: BTreeMap::new(), outgoing: BTreeMap::new() };
        for machine in stopped {
            let topic = protection.state_topic.replace("{machine}", machine.as_str());
            topics.add(protection, machine, topic, ReportKind::State);
        }
        for machine in reset {
            let topic = protection.reset_topic.replace("{machine}", machine.as_str());
            topics.add(protection, machine, topic, ReportKind::Reset);
        }
        topics
    }

    fn add(
        &mut self,
        protection: &Protection,
        machine: &MachineId,
        topic: String,
        kind: ReportKind,
    ) {
        self.incoming.insert(topic, (machine.clone(), kind));
        let of = |topic: &str| topic.replace("{machine}", machine.as_str());
        let outgoing = Outgoing {
            command: of(&protection.command_topic),
            interlock: of(&protection.interlock_topic),
            heartbeat: of(&protection.heartbeat_topic),
        };
        self.outgoing.insert(machine.clone(), outgoing);
    }

    /// The command that stops: topic and payload.
    #[must_use]
    pub fn stop(&self, order: &StopOrder) -> Option<(&str, Vec<u8>)> {
        let (trip_id, attempt) = (order.trip_id.as_str(), order.attempt);
        let topics = self.outgoing.get(&order.machine_id)?;
        Some((&topics.command, json(&CommandPayload { command: "stop", trip_id, attempt })))
    }

    /// The sign of life: topic and payload.
    #[must_use]
    pub fn heartbeat(
        &self,
        machine: &MachineId,
        device_id: &str,
        count: u64,
    ) -> Option<(&str, Vec<u8>)> {
        let topics = self.outgoing.get(machine)?;
        Some((&topics.heartbeat, json(&HeartbeatPayload { device_id, count })))
    }

    /// The state of a latch, to be retained: topic and payload.
    #[must_use]
    pub fn interlock(&self, latch: &LatchSnapshot) -> Option<(&str, Vec<u8>)> {
        let topics = self.outgoing.get(&latch.machine_id)?;
        Some((&topics.interlock, json(&InterlockPayload { state: latch.as_str(), latch })))
    }

    /// What to subscribe to.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        self.incoming.keys().cloned().collect()
    }

    /// Reads a message of the machine side.
    ///
    /// # Errors
    /// Anything that is not one valid report.
    pub fn parse(
        &self,
        topic: &str,
        payload: &[u8],
        is_retained: bool,
    ) -> Result<(MachineId, Report), ReportError> {
        let Some((machine, kind)) = self.incoming.get(topic) else {
            return Err(ReportError::Topic(topic.to_owned()));
        };
        let topic = topic.to_owned();
        if payload.len() > REPORT_BYTES_MAX {
            return Err(ReportError::TooLong { topic, length: payload.len() });
        }
        let report = match kind {
            ReportKind::State => {
                let expected = "{\"state\":\"running\" | \"stopping\" | \"stopped\"}";
                let state: StatePayload = serde_json::from_slice(payload)
                    .map_err(|source| ReportError::Json { topic, expected, source })?;
                Report::State(state.state)
            }
            ReportKind::Reset if is_retained => return Err(ReportError::Retained { topic }),
            ReportKind::Reset => {
                let expected = "{\"operator\":\"name\"}";
                let reset: ResetPayload = serde_json::from_slice(payload).map_err(|source| {
                    ReportError::Json { topic: topic.clone(), expected, source }
                })?;
                let characters = reset.operator.trim().chars().count();
                if !(1..=OPERATOR_CHARACTERS_MAX).contains(&characters) {
                    return Err(ReportError::Operator { topic });
                }
                Report::Reset { operator: reset.operator }
            }
        };
        Ok((machine.clone(), report))
    }
}

#[derive(Deserialize)]
struct StatePayload {
    state: MachineState,
}

#[derive(Deserialize)]
struct ResetPayload {
    operator: String,
}

#[derive(Serialize)]
struct CommandPayload<'a> {
    command: &'static str,
    trip_id: &'a str,
    attempt: u32,
}

#[derive(Serialize)]
struct HeartbeatPayload<'a> {
    device_id: &'a str,
    count: u64,
}

#[derive(Serialize)]
struct InterlockPayload<'a> {
    state: &'a str,
    #[serde(flatten)]
    latch: &'a LatchSnapshot,
}

fn json(payload: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(payload).expect("structs of text and finite numbers always serialise")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Settings;

    fn topics() -> Topics {
        let settings = Settings::load(None::<&Path>).expect("defaults are valid");
        let machine = MachineId::new("press-1").expect("valid");
        let machines = [machine];
        Topics::new(&settings.protection, machines.iter(), machines.iter())
    }

    #[test]
    fn reports_are_read_and_anything_else_is_named() {
        let topics = topics();
        let check = |topic: &str, payload: &str, retained: bool, expected: &str| {
            let found = match topics.parse(topic, payload.as_bytes(), retained) {
                Ok((machine, report)) => format!("{machine} {report:?}"),
                Err(error) => error.to_string(),
            };
            assert!(found.contains(expected), "{topic} {payload}: {found}");
        };
        check("plant/press-1/state", r#"{"state":"stopped"}"#, true, "press-1 State(Stopped)");
        check("plant/press-1/state", r#"{"state":"asleep"}"#, false, "expected {\"state\"");
        check("plant/press-1/reset", r#"{"operator":"Kim"}"#, false, "Reset { operator: \"Kim\" }");
        check("plant/press-1/reset", r#"{"operator":"Kim"}"#, true, "retained reset is ignored");
        check("plant/press-1/reset", r#"{"operator":" "}"#, false, "operator is empty");
        check("plant/press-2/state", r#"{"state":"stopped"}"#, false, "no configured machine");
        check("plant/press-1/state", &"x".repeat(5000), false, "5000 bytes, at most 4096");
    }
}
