//! What goes between the interlock and the machine side, over MQTT, as small JSON objects.
//!
//! | topic (default) | direction | payload | retained |
//! |---|---|---|---|
//! | `plant/{machine}/command` | out | `{"command":"stop","trip_id":…,"attempt":…}` | no |
//! | `plant/{machine}/heartbeat` | out | `{"device_id":…,"count":…}` | no |
//! | `plant/{machine}/interlock` | out | the latch: `{"state":"armed",…}`, and with `refused` the last request of a person that was refused, until one is granted; while the machine is learnt `learning`, and of what was learnt `learnt_at` | yes |
//! | `plant/{machine}/state` | in | `{"state":"running" \| "stopping" \| "stopped"}` | as the machine likes |
//! | `plant/{machine}/reset` | in | `{"operator":"name"}` | ignored if retained |
//! | `plant/{machine}/shelve` | in | `{"operator":"name","rule":…,"for":"2h","reason":…}` | ignored if retained |
//! | `plant/{machine}/learn` | in | `{"operator":"name","for":"10m"}`, and perhaps `"within":"2h"`, `"replace":true` | ignored if retained |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edge_core::interlock::{LatchSnapshot, MachineState, REASON_CHARACTERS_MAX, ShelveRequest};
use serde::{Deserialize, Serialize};
use shared_proto::model::{EventTime, MachineId};

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
    /// A person takes a rule out of force, or puts it in force again.
    Shelve(ShelveRequest),
    /// A person lets the machine be learnt, or ends that.
    Learn(LearnOrder),
}

/// What a person wants to be learnt of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnOrder {
    /// Who.
    pub operator: String,
    /// Running time of each condition; 0: learning ends.
    pub duration: Duration,
    /// Longest time for all of it, if it is not that of the settings.
    pub within: Option<Duration>,
    /// The machine is another than the one learnt before.
    pub is_replacing: bool,
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
    #[error("{topic}: a retained request is ignored; publish it without the retain flag")]
    Retained {
        /// Where it came in.
        topic: String,
    },
}

/// A request of a person that was not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedRequest {
    /// `reset`, `shelve` or `learn`.
    pub request: &'static str,
    /// Who asked.
    pub operator: String,
    /// Why not, and what to do.
    pub reason: String,
    /// When, in RFC 3339.
    pub at: String,
}

/// How far a machine is learnt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownLearning {
    /// Who asked for it.
    pub operator: String,
    /// Since when.
    pub since: EventTime,
    /// When it ends at the latest.
    pub until: EventTime,
    /// The operating condition of now; `None`: none that is known.
    pub condition: Option<String>,
    /// What each sensor needs in each condition.
    pub wanted: ShownWindows,
    /// What was learnt, by condition: of the sensor that is least far.
    pub conditions: BTreeMap<String, ShownWindows>,
    /// Windows that are learnt when the next readings confirm the condition.
    pub waiting: u64,
}

/// Windows, and the running time that they stand for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ShownWindows {
    /// How many.
    pub windows: u64,
    /// Running time.
    pub seconds: f64,
}

/// What is shown of an interlock.
#[derive(Clone, Debug)]
pub struct ShownLatch {
    /// Its state.
    pub latch: LatchSnapshot,
    /// The last request that was refused, if none was granted since.
    pub refused: Option<RefusedRequest>,
    /// How far the machine is learnt, while it is.
    pub learning: Option<ShownLearning>,
    /// When the baseline was learnt that is in force, in RFC 3339.
    pub learnt_at: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReportKind {
    State,
    Reset,
    Shelve,
    Learn,
}

/// Topics of all machines, both ways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topics {
    incoming: BTreeMap<String, (MachineId, ReportKind)>,
    outgoing: BTreeMap<MachineId, Outgoing>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
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
            topics.add(protection, machine, &protection.state_topic, ReportKind::State);
        }
        for machine in reset {
            topics.add(protection, machine, &protection.reset_topic, ReportKind::Reset);
            topics.add(protection, machine, &protection.shelve_topic, ReportKind::Shelve);
            topics.add(protection, machine, &protection.learn_topic, ReportKind::Learn);
        }
        topics
    }

    fn add(&mut self, protection: &Protection, machine: &MachineId, topic: &str, kind: ReportKind) {
        let of = |topic: &str| topic.replace("{machine}", machine.as_str());
        self.incoming.insert(of(topic), (machine.clone(), kind));
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
    pub fn interlock(&self, shown: &ShownLatch) -> Option<(&str, Vec<u8>)> {
        let ShownLatch { latch, refused, learning, learnt_at } = shown;
        let topics = self.outgoing.get(&latch.machine_id)?;
        let state = latch.as_str();
        let payload = InterlockPayload { state, latch, refused, learning, learnt_at };
        Some((&topics.interlock, json(&payload)))
    }

    /// Where latches are shown.
    #[must_use]
    pub fn latches(&self) -> BTreeSet<&str> {
        self.outgoing.values().map(|topics| topics.interlock.as_str()).collect()
    }

    /// What to subscribe to.
    #[must_use]
    pub fn filters(&self) -> BTreeSet<&str> {
        self.incoming.keys().map(String::as_str).collect()
    }

    /// What a person asks for on a topic, and of which machine.
    #[must_use]
    pub fn asked_on(&self, topic: &str) -> Option<(&MachineId, &'static str)> {
        let (machine_id, kind) = self.incoming.get(topic)?;
        let request = match kind {
            ReportKind::State => return None,
            ReportKind::Reset => "reset",
            ReportKind::Shelve => "shelve",
            ReportKind::Learn => "learn",
        };
        Some((machine_id, request))
    }

    /// The machine whose state comes on a topic.
    #[must_use]
    pub fn confirmed_on(&self, topic: &str) -> Option<&MachineId> {
        let is_state = |(_, kind): &&(MachineId, ReportKind)| *kind == ReportKind::State;
        self.incoming.get(topic).filter(is_state).map(|(machine_id, _)| machine_id)
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
            ReportKind::Reset | ReportKind::Shelve | ReportKind::Learn if is_retained => {
                return Err(ReportError::Retained { topic });
            }
            ReportKind::Reset => {
                let expected = "{\"operator\":\"name\"}";
                let reset: ResetPayload = serde_json::from_slice(payload).map_err(|source| {
                    ReportError::Json { topic: topic.clone(), expected, source }
                })?;
                if !is_operator(&reset.operator) {
                    return Err(ReportError::Operator { topic });
                }
                Report::Reset { operator: reset.operator }
            }
            ReportKind::Shelve => Report::Shelve(parse_shelving(topic, payload)?),
            ReportKind::Learn => Report::Learn(parse_learning(topic, payload)?),
        };
        Ok((machine.clone(), report))
    }
}

fn parse_shelving(topic: String, payload: &[u8]) -> Result<ShelveRequest, ReportError> {
    let expected = "{\"operator\":\"name\",\"rule\":\"name\",\"for\":\"2h\",\"reason\":\"why\"}";
    let shelving: ShelvePayload = serde_json::from_slice(payload)
        .map_err(|source| ReportError::Json { topic: topic.clone(), expected, source })?;
    if !is_operator(&shelving.operator) {
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

fn parse_learning(topic: String, payload: &[u8]) -> Result<LearnOrder, ReportError> {
    let expected = "{\"operator\":\"name\",\"for\":\"10m\"}";
    let learning: LearnPayload = serde_json::from_slice(payload)
        .map_err(|source| ReportError::Json { topic: topic.clone(), expected, source })?;
    if !is_operator(&learning.operator) {
        return Err(ReportError::Operator { topic });
    }
    let LearnPayload { operator, duration, within, replace } = learning;
    Ok(LearnOrder { operator, duration, within, is_replacing: replace })
}

/// Whether a text may be the name of somebody who asks for something.
#[must_use]
pub fn is_operator(text: &str) -> bool {
    is_length(text, OPERATOR_CHARACTERS_MAX)
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

/// A key that is not understood is refused: whoever writes "replaces" means something.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LearnPayload {
    operator: String,
    #[serde(rename = "for", with = "humantime_serde")]
    duration: Duration,
    #[serde(default, with = "humantime_serde")]
    within: Option<Duration>,
    #[serde(default)]
    replace: bool,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: &'a Option<RefusedRequest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    learning: &'a Option<ShownLearning>,
    #[serde(skip_serializing_if = "Option::is_none")]
    learnt_at: &'a Option<String>,
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
        check("plant/press-1/reset", r#"{"operator":"Kim"}"#, true, "retained request is ignored");
        check("plant/press-1/reset", r#"{"operator":" "}"#, false, "operator is empty");
        let shelving = r#"{"operator":"Kim","rule":"hot","for":"2h","reason":"probe is out"}"#;
        check("plant/press-1/shelve", shelving, false, "rule: \"hot\", duration: 7200s");
        check("plant/press-1/shelve", shelving, true, "retained request is ignored");
        let unshelving = r#"{"operator":"Kim","rule":"hot","for":"0s"}"#;
        check("plant/press-1/shelve", unshelving, false, "duration: 0ns");
        let check_shelving = |change: (&str, &str), expected: &str| {
            check("plant/press-1/shelve", &shelving.replace(change.0, change.1), false, expected);
        };
        check_shelving(("probe is out", " "), "reason is empty");
        check_shelving(("Kim", ""), "operator is empty");
        let learning = r#"{"operator":"Kim","for":"10m","within":"2h","replace":true}"#;
        check("plant/press-1/learn", learning, false, "duration: 600s, within: Some(7200s)");
        check("plant/press-1/learn", learning, true, "retained request is ignored");
        let check_learning = |change: (&str, &str), expected: &str| {
            check("plant/press-1/learn", &learning.replace(change.0, change.1), false, expected);
        };
        check_learning(
            ("\"within\":\"2h\",\"replace\":true", "\"within\":\"2h\""),
            "is_replacing: false",
        );
        check_learning(("Kim", " "), "operator is empty");
        check_learning(("replace", "replaces"), "expected {\"operator\"");
        check_learning(("10m", "soon"), "expected {\"operator\"");
        check_shelving(("2h", "soon"), "expected {\"operator\"");
        check_shelving(("2h", "-2h"), "expected {\"operator\"");
        check("plant/press-2/state", r#"{"state":"stopped"}"#, false, "no configured machine");
        check("plant/press-1/state", &"x".repeat(5000), false, "5000 bytes, at most 4096");
    }

    #[test]
    fn learning_is_shown_beside_the_latch_while_it_goes_on() {
        let text_of = |shown: &ShownLatch| {
            let topics = topics();
            let (topic, payload) = topics.interlock(shown).expect("a machine of the settings");
            assert_eq!(topic, "plant/press-1/interlock");
            String::from_utf8(payload).expect("text")
        };
        let latch = LatchSnapshot {
            machine_id: MachineId::new("press-1").expect("valid"),
            trip_count: 0,
            trip: None,
            machine_state: Some(MachineState::Running),
            shelved: Vec::new(),
            alarms: Vec::new(),
            sensor_faults: Vec::new(),
            dry_run: false,
            rule_version: "1a2b".to_owned(),
        };
        let learning = ShownLearning {
            operator: "Kim".to_owned(),
            since: EventTime::from_micros(1_772_353_800_000_000),
            until: EventTime::from_micros(1_772_357_400_000_000),
            condition: None,
            wanted: ShownWindows { windows: 30, seconds: 600.0 },
            conditions: [("idle".to_owned(), ShownWindows { windows: 12, seconds: 24.5 })].into(),
            waiting: 3,
        };
        let mut shown =
            ShownLatch { latch, refused: None, learning: Some(learning), learnt_at: None };
        let head = r#"{"state":"armed","machine_id":"press-1","trip_count":0,"trip":null,"machine_state":"running","rule_version":"1a2b""#;
        let of_learning = concat!(
            r#","learning":{"operator":"Kim","since":1772353800000000,"until":1772357400000000,"condition":null,"#,
            r#""wanted":{"windows":30,"seconds":600.0},"conditions":{"idle":{"windows":12,"seconds":24.5}},"waiting":3}}"#
        );
        assert_eq!(text_of(&shown), format!("{head}{of_learning}"));
        (shown.learning, shown.learnt_at) = (None, Some("2026-03-01T08:31:41Z".to_owned()));
        assert_eq!(text_of(&shown), format!(r#"{head},"learnt_at":"2026-03-01T08:31:41Z"}}"#));
    }
}
