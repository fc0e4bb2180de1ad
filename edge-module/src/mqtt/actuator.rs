//! What goes between the interlock and the machine side, over MQTT, as small JSON objects.
//!
//! | topic (default) | direction | payload | retained |
//! |---|---|---|---|
//! | `plant/{machine}/command` | out | `{"command":"stop","trip_id":…,"attempt":…}` | no |
//! | `plant/{machine}/heartbeat` | out | `{"device_id":…,"count":…}` | no |
//! | `plant/{machine}/interlock` | out | the latch: `{"state":"armed",…}` | yes |
//! | `plant/{machine}/state` | in | `{"state":"running" \| "stopping" \| "stopped"}` | as the machine likes |
//! | `plant/{machine}/reset` | in | `{"operator":"name"}` | ignored if retained |
//! | `plant/{machine}/shelve` | in | `{"operator":"name","rule":…,"for":"2h","reason":…}` | ignored if retained |

use std::collections::BTreeMap;
use std::time::Duration;

use edge_core::interlock::{LatchSnapshot, MachineState, REASON_CHARACTERS_MAX, ShelveRequest};
use rumqttc::{AsyncClient, ClientError, QoS, SubscribeFilter};
use serde::{Deserialize, Serialize};
use shared_proto::model::MachineId;

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
    /// A person takes a rule out of force, or puts it in force again.
    Shelve(ShelveRequest),
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
    /// A shelving without a reason.
    #[error("{topic}: reason is empty or longer than {REASON_CHARACTERS_MAX} characters")]
    Reason {
        /// Where it came in.
        topic: String,
    },
    /// A person's word that lay in the broker.
    #[error("{topic}: a retained reset or shelving is ignored; publish it without the retain flag")]
    Retained {
        /// Where it came in.
        topic: String,
    },
}

#[derive(Clone, Copy)]
enum ReportKind {
    State,
    Reset,
    Shelve,
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
    /// The topics of these machines.
    pub fn new<'a>(protection: &Protection, machines: impl Iterator<Item = &'a MachineId>) -> Self {
        let mut topics = Self { incoming: BTreeMap::new(), outgoing: BTreeMap::new() };
        for machine in machines {
            let of = |topic: &str| topic.replace("{machine}", machine.as_str());
            let state = (machine.clone(), ReportKind::State);
            topics.incoming.insert(of(&protection.state_topic), state);
            let reset = (machine.clone(), ReportKind::Reset);
            topics.incoming.insert(of(&protection.reset_topic), reset);
            let shelve = (machine.clone(), ReportKind::Shelve);
            topics.incoming.insert(of(&protection.shelve_topic), shelve);
            let outgoing = Outgoing {
                command: of(&protection.command_topic),
                interlock: of(&protection.interlock_topic),
                heartbeat: of(&protection.heartbeat_topic),
            };
            topics.outgoing.insert(machine.clone(), outgoing);
        }
        topics
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
            ReportKind::Reset | ReportKind::Shelve if is_retained => {
                return Err(ReportError::Retained { topic });
            }
            ReportKind::Reset => {
                let expected = "{\"operator\":\"name\"}";
                let reset: ResetPayload = serde_json::from_slice(payload).map_err(|source| {
                    ReportError::Json { topic: topic.clone(), expected, source }
                })?;
                if !is_length(&reset.operator, OPERATOR_CHARACTERS_MAX) {
                    return Err(ReportError::Operator { topic });
                }
                Report::Reset { operator: reset.operator }
            }
            ReportKind::Shelve => Report::Shelve(parse_shelving(topic, payload)?),
        };
        Ok((machine.clone(), report))
    }
}

fn parse_shelving(topic: String, payload: &[u8]) -> Result<ShelveRequest, ReportError> {
    let expected = "{\"operator\":\"name\",\"rule\":\"name\",\"for\":\"2h\",\"reason\":\"why\"}";
    let shelving: ShelvePayload = serde_json::from_slice(payload)
        .map_err(|source| ReportError::Json { topic: topic.clone(), expected, source })?;
    if !is_length(&shelving.operator, OPERATOR_CHARACTERS_MAX) {
        return Err(ReportError::Operator { topic });
    }
    // Putting a rule in force again needs no reason.
    let is_shelving = !shelving.duration.is_zero();
    if is_shelving && !is_length(&shelving.reason, REASON_CHARACTERS_MAX) {
        return Err(ReportError::Reason { topic });
    }
    let ShelvePayload { operator, rule, duration, reason } = shelving;
    Ok(ShelveRequest { operator, rule, duration, reason })
}

/// Whether there is text, and not too much.
fn is_length(text: &str, characters_max: usize) -> bool {
    (1..=characters_max).contains(&text.trim().chars().count())
}

#[derive(Deserialize)]
struct ShelvePayload {
    operator: String,
    rule: String,
    #[serde(rename = "for", with = "humantime_serde")]
    duration: Duration,
    #[serde(default)]
    reason: String,
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

/// Publishes to the machine side. Never waits: a full request queue is an error for the caller to handle.
pub struct Actuator {
    client: AsyncClient,
    topics: Topics,
    /// Topics of machines that were added since the session was set up, which subscribes to its own alone.
    added: Vec<String>,
}

impl Actuator {
    /// An actuator on a session's client.
    #[must_use]
    pub const fn new(client: AsyncClient, topics: Topics) -> Self {
        Self { client, topics, added: Vec::new() }
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
        self.topics.parse(topic, payload, is_retained)
    }

    /// Orders a stop.
    ///
    /// # Errors
    /// The request queue is full.
    pub fn stop(
        &self,
        machine: &MachineId,
        trip_id: &str,
        attempt: u32,
    ) -> Result<(), ClientError> {
        let payload = json(&CommandPayload { command: "stop", trip_id, attempt });
        self.publish(machine, |topics| &topics.command, payload, false)
    }

    /// Shows the state of the latch, retained.
    ///
    /// # Errors
    /// The request queue is full.
    pub fn show(&self, latch: &LatchSnapshot) -> Result<(), ClientError> {
        let payload = json(&InterlockPayload { state: latch.as_str(), latch });
        self.publish(&latch.machine_id, |topics| &topics.interlock, payload, true)
    }

    /// Gives a sign of life.
    ///
    /// # Errors
    /// The request queue is full.
    pub fn heartbeat(
        &self,
        machine: &MachineId,
        device_id: &str,
        count: u64,
    ) -> Result<(), ClientError> {
        let payload = json(&HeartbeatPayload { device_id, count });
        self.publish(machine, |topics| &topics.heartbeat, payload, false)
    }

    /// Takes the topics of other machines in place of those so far and subscribes to the new ones.
    ///
    /// # Errors
    /// The request queue is full; [`Self::subscribe_added`] tries again.
    pub fn replace_topics(&mut self, topics: Topics) -> Result<(), ClientError> {
        let mut added = topics.filters();
        added.retain(|filter| !self.topics.incoming.contains_key(filter));
        self.added.retain(|filter| topics.incoming.contains_key(filter));
        self.added.extend(added);
        self.topics = topics;
        self.subscribe_added()
    }

    /// Subscribes to the topics of machines that were added, after the connection was lost.
    ///
    /// # Errors
    /// The request queue is full.
    pub fn subscribe_added(&self) -> Result<(), ClientError> {
        if self.added.is_empty() {
            return Ok(());
        }
        let filters = self.added.iter();
        self.client.try_subscribe_many(
            filters.map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce)),
        )
    }

    /// Takes back the retained state of a machine that is no longer protected.
    ///
    /// # Errors
    /// The request queue is full.
    pub fn forget(&self, machine: &MachineId) -> Result<(), ClientError> {
        self.publish(machine, |topics| &topics.interlock, Vec::new(), true)
    }

    fn publish(
        &self,
        machine: &MachineId,
        topic: impl Fn(&Outgoing) -> &String,
        payload: Vec<u8>,
        is_retained: bool,
    ) -> Result<(), ClientError> {
        let Some(topics) = self.topics.outgoing.get(machine) else { return Ok(()) };
        self.client.try_publish(topic(topics), QoS::AtLeastOnce, is_retained, payload)
    }
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
        Topics::new(&settings.protection, [machine].iter())
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
        check(
            "plant/press-1/reset",
            r#"{"operator":"Kim"}"#,
            true,
            "retained reset or shelving is ignored",
        );
        check("plant/press-1/reset", r#"{"operator":" "}"#, false, "operator is empty");
        let shelving = r#"{"operator":"Kim","rule":"hot","for":"2h","reason":"probe is out"}"#;
        check("plant/press-1/shelve", shelving, false, "rule: \"hot\", duration: 7200s");
        check("plant/press-1/shelve", shelving, true, "retained reset or shelving is ignored");
        let unshelving = r#"{"operator":"Kim","rule":"hot","for":"0s"}"#;
        check("plant/press-1/shelve", unshelving, false, "duration: 0ns");
        let check_shelving = |change: (&str, &str), expected: &str| {
            check("plant/press-1/shelve", &shelving.replace(change.0, change.1), false, expected);
        };
        check_shelving(("probe is out", " "), "reason is empty");
        check_shelving(("Kim", ""), "operator is empty");
        check_shelving(("2h", "soon"), "expected {\"operator\"");
        check_shelving(("2h", "-2h"), "expected {\"operator\"");
        check("plant/press-2/state", r#"{"state":"stopped"}"#, false, "no configured machine");
        check("plant/press-1/state", &"x".repeat(5000), false, "5000 bytes, at most 4096");
    }
}
