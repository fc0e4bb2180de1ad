//! Direct methods: what an operator in the cloud asks of this module. All can be called twice without harm.
//!
//! | method | payload | answer |
//! |---|---|---|
//! | `ping` | none | 200 `{"deviceId":…,"version":…,"time":…}` |
//! | `getStatus` | none | 200, what `/status` shows |
//! | `getTrips` | none | 200 `{"trips":[…]}`: machines whose trip is latched |
//! | `stopMachine` | `{"machineId":…,"operator":"name","reason":"why"}` | 200 `{"tripId":…}`: stopped, and latched until a reset; a machine that is tripped already stays as it is |
//! | `resetMachine` | `{"machineId":…,"operator":"name"}` | 200 `{}`; 409 with the reason while its cause is present; 403 unless `iot-hub.remote-reset` |
//!
//! 400: the payload is none; 404: no such method or machine; 503: the stop path does not answer. Refusals are
//! `{"message":…}`. A call that the hub delivers twice, with the same request id, is carried out once and answered twice.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shared_proto::model::MachineId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::actuation::messages::is_operator;
use crate::admin::Board;
use crate::kafka::now;
use crate::protection::{RemoteAnswer, RemoteOrder, RemoteWish};
use crate::telemetry;

/// Calls whose answers are remembered.
const RECENT_MAX: usize = 64;
/// A hub takes 128 KiB.
const ANSWER_BYTES_MAX: usize = 120 << 10;
/// The stop path answers between two inputs; a caller waits half a minute by default.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls that wait for the stop path.
const PENDING_MAX: usize = 16;
const REASON_CHARACTERS_MAX: usize = 512;
/// What a payload that is none is answered with.
const STOP_FORM: &str = r#"{"machineId":"…","operator":"name","reason":"why"}"#;
const RESET_FORM: &str = r#"{"machineId":"…","operator":"name"}"#;

/// What a caller gets.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// As in HTTP.
    pub(super) status: i32,
    /// JSON.
    pub(super) body: Value,
}

impl Answer {
    fn ok(body: Value) -> Self {
        if body.to_string().len() > ANSWER_BYTES_MAX {
            return Self::refused(507, "the answer is longer than 120 KiB; ask /status on site");
        }
        Self { status: 200, body }
    }

    fn refused(status: i32, message: &str) -> Self {
        Self { status, body: json!({ "message": message }) }
    }
}

/// A call that was taken.
struct Call {
    rid: String,
    /// None: not done yet.
    answer: Option<Answer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StopPayload {
    machine_id: String,
    operator: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ResetPayload {
    machine_id: String,
    operator: String,
}

/// What the module does for callers.
pub(super) struct Methods {
    board: Board,
    orders: mpsc::Sender<RemoteOrder>,
    may_reset: bool,
    recent: VecDeque<Call>,
    pending: JoinSet<(String, Answer)>,
}

impl Methods {
    pub(super) fn new(board: Board, orders: mpsc::Sender<RemoteOrder>, may_reset: bool) -> Self {
        Self { board, orders, may_reset, recent: VecDeque::new(), pending: JoinSet::new() }
    }

    /// Takes a call; gives its answer if there is one already, otherwise [`Self::next`] does.
    pub(super) fn call(&mut self, name: &str, rid: &str, payload: &[u8]) -> Option<Answer> {
        if let Some(call) = self.recent.iter().find(|call| call.rid == rid) {
            return call.answer.clone();
        }
        let answer = self.carry_out(name, rid, payload);
        metrics::counter!(telemetry::HUB_METHODS).increment(1);
        self.recent.push_back(Call { rid: rid.to_owned(), answer: answer.clone() });
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
        answer
    }

    /// The next answer that was waited for; nothing, at once, if none is.
    pub(super) async fn next(&mut self) -> Option<(String, Answer)> {
        let (rid, answer) = self.pending.join_next().await?.ok()?;
        if let Some(call) = self.recent.iter_mut().find(|call| call.rid == rid) {
            call.answer = Some(answer.clone());
        }
        Some((rid, answer))
    }

    /// Nothing: the answer comes later.
    fn carry_out(&mut self, name: &str, rid: &str, payload: &[u8]) -> Option<Answer> {
        let answer = match name {
            "ping" => {
                let status = self.board.status();
                Answer::ok(json!({
                    "deviceId": status.device_id,
                    "version": status.version,
                    "time": now().to_string(),
                }))
            }
            "getStatus" => match serde_json::to_value(self.board.status()) {
                Ok(status) => Answer::ok(status),
                Err(error) => Answer::refused(500, &error.to_string()),
            },
            "getTrips" => self.trips(),
            "stopMachine" => match stop_order(payload) {
                Ok(order) => return self.order(rid, order),
                Err(refused) => refused,
            },
            "resetMachine" if !self.may_reset => Answer::refused(
                403,
                "iot-hub.remote-reset is false: reset the machine where it stands",
            ),
            "resetMachine" => match reset_order(payload) {
                Ok(order) => return self.order(rid, order),
                Err(refused) => refused,
            },
            _ => Answer::refused(
                404,
                "no such method; there are getStatus, getTrips, ping, resetMachine and stopMachine",
            ),
        };
        Some(answer)
    }

    /// Asks the stop path, which never waits for us.
    fn order(&mut self, rid: &str, wanted: Wanted) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        let Wanted { machine_id, operator, wish } = wanted;
        let order = RemoteOrder { machine_id, operator, wish, answer };
        if self.pending.len() >= PENDING_MAX || self.orders.try_send(order).is_err() {
            return Some(Answer::refused(
                503,
                "too many requests wait for the stop path; try again",
            ));
        }
        let rid = rid.to_owned();
        self.pending.spawn(async move {
            let answer = match tokio::time::timeout(ORDER_TIMEOUT, answered).await {
                Ok(Ok(answer)) => answer_of(answer),
                Ok(Err(_)) | Err(_) => Answer::refused(503, "the stop path does not answer"),
            };
            (rid, answer)
        });
        None
    }

    fn trips(&self) -> Answer {
        let machines = self.board.status().machines;
        let tripped = machines.into_iter().filter(|machine| machine.latch.trip.is_some());
        let tripped = tripped.map(|machine| serde_json::to_value(machine.latch));
        match tripped.collect::<Result<Vec<_>, _>>() {
            Ok(trips) => Answer::ok(json!({ "trips": trips })),
            Err(error) => Answer::refused(500, &error.to_string()),
        }
    }
}

/// A request whose payload is of the form.
struct Wanted {
    machine_id: MachineId,
    operator: String,
    wish: RemoteWish,
}

fn stop_order(payload: &[u8]) -> Result<Wanted, Answer> {
    let StopPayload { machine_id, operator, reason } = parse(payload, STOP_FORM)?;
    if reason.trim().is_empty() || reason.chars().count() > REASON_CHARACTERS_MAX {
        let text = format!("reason is empty or longer than {REASON_CHARACTERS_MAX} characters");
        return Err(Answer::refused(400, &text));
    }
    wanted(&machine_id, operator, RemoteWish::Stop { reason })
}

fn reset_order(payload: &[u8]) -> Result<Wanted, Answer> {
    let ResetPayload { machine_id, operator } = parse(payload, RESET_FORM)?;
    wanted(&machine_id, operator, RemoteWish::Reset)
}

fn parse<T: DeserializeOwned>(payload: &[u8], form: &str) -> Result<T, Answer> {
    serde_json::from_slice(payload)
        .map_err(|error| Answer::refused(400, &format!("expected {form}: {error}")))
}

fn wanted(machine_id: &str, operator: String, wish: RemoteWish) -> Result<Wanted, Answer> {
    let machine_id =
        MachineId::new(machine_id).map_err(|error| Answer::refused(400, &error.to_string()))?;
    if !is_operator(&operator) {
        return Err(Answer::refused(400, "operator is empty or too long"));
    }
    Ok(Wanted { machine_id, operator, wish })
}

fn answer_of(answer: RemoteAnswer) -> Answer {
    match answer {
        RemoteAnswer::Done { trip_id: Some(trip_id) } => Answer::ok(json!({ "tripId": trip_id })),
        RemoteAnswer::Done { trip_id: None } => Answer::ok(json!({})),
        RemoteAnswer::Refused(reason) => Answer::refused(409, &reason),
        RemoteAnswer::NoMachine => {
            Answer::refused(404, "the settings of this module name no such machine")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn methods(may_reset: bool) -> (Methods, mpsc::Receiver<RemoteOrder>) {
        let (orders, receiver) = mpsc::channel(1);
        (Methods::new(Board::default(), orders, may_reset), receiver)
    }

    #[tokio::test]
    async fn a_call_that_comes_twice_is_carried_out_once() {
        let (mut methods, mut orders) = methods(true);
        let payload = br#"{"machineId":"press-1","operator":"Kim","reason":"it smokes"}"#;
        for _ in 0..2 {
            assert_eq!(methods.call("stopMachine", "r1", payload), None);
        }
        let order = orders.try_recv().expect("one order");
        assert_eq!(order.wish, RemoteWish::Stop { reason: "it smokes".to_owned() });
        assert!(orders.try_recv().is_err(), "and one only");
        let trip_id = Some("press-1-1".to_owned());
        order.answer.send(RemoteAnswer::Done { trip_id }).expect("somebody waits");
        let expected = Answer::ok(json!({ "tripId": "press-1-1" }));
        assert_eq!(methods.next().await, Some(("r1".to_owned(), expected.clone())));
        assert_eq!(methods.call("stopMachine", "r1", payload), Some(expected));
        assert_eq!(methods.next().await, None);
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused_with_what_to_do() {
        let check = |name: &str, payload: &str, status: i32, words: &str| {
            let (mut methods, _orders) = methods(false);
            let answer = methods.call(name, "r", payload.as_bytes()).expect("at once");
            assert_eq!(answer.status, status, "{answer:?}");
            assert!(answer.body["message"].to_string().contains(words), "{answer:?}");
        };
        check("launch", "", 404, "there are getStatus");
        check("stopMachine", "", 400, "reason");
        check("stopMachine", r#"{"machineId":"m","operator":"","reason":"r"}"#, 400, "operator");
        check("stopMachine", r#"{"machineId":"m","operator":"o","reason":" "}"#, 400, "reason");
        check("stopMachine", r#"{"machineId":"","operator":"o","reason":"r"}"#, 400, "machine_id");
        let unknown = r#"{"machineId":"m","operator":"o","reason":"r","force":true}"#;
        check("stopMachine", unknown, 400, "force");
        check("resetMachine", r#"{"machineId":"m","operator":"o"}"#, 403, "remote-reset");
    }

    #[test]
    fn a_stop_path_that_does_not_answer_fills_no_memory() {
        let (mut methods, _orders) = methods(true);
        let payload = br#"{"machineId":"press-1","operator":"Kim"}"#;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            assert_eq!(methods.call("resetMachine", "r0", payload), None);
            for index in 1..1_000 {
                let answer = methods.call("resetMachine", &format!("r{index}"), payload);
                assert_eq!(answer.map(|answer| answer.status), Some(503));
            }
        });
        assert!(methods.recent.len() <= RECENT_MAX);
    }
}
