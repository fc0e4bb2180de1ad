//! Direct methods: what an operator in the cloud asks of this module. All can be called twice without harm.
//!
//! | method | payload | answer |
//! |---|---|---|
//! | `journalStatus` | none | 200: what waits in the journal, which way it leaves, what was lost |
//! | `ping` | none | 200 `{"deviceId":…,"version":…,"time":…}` |
//! | `getStatus` | none | 200, what `/status` shows |
//! | `getTrips` | none | 200 `{"trips":[…]}`: machines whose trip is latched |
//! | `stopMachine` | `{"machineId":…,"operator":"name","reason":"why"}` | 200 `{"tripId":…}`: stopped, and latched until a reset; a machine that is tripped already stays as it is |
//! | `resetMachine` | `{"machineId":…,"operator":"name"}` | 200 `{}`; 409 with the reason while its cause is present; 403 unless `iot-hub.remote-reset` |
//! | `setModel` | `{"name":…,"url":…,"sha256":…}` | 200 with what is done about it; 409 if the settings do not take it |
//!
//! Schemas of all payloads and answers: `METHODS.md`. 400: the payload is none; 404: no such method or machine; 503: the stop path does not answer. Refusals are
//! `{"message":…}`. A call that the hub delivers again, with the same request id, is carried out once, and answered the same.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shared_proto::model::MachineId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::sparing::cut;
use crate::actuation::messages::is_operator;
use crate::admin::{Board, JournalStatus, LostRange};
use crate::kafka::now;
use crate::models::ShownModel;
use crate::protection::{RemoteAnswer, RemoteOrder, RemoteWish};
use crate::reload::{ModelWish, SetBundle};
use crate::telemetry;

/// Calls whose answers are remembered.
const RECENT_MAX: usize = 64;
/// A hub takes 128 KiB.
const ANSWER_BYTES_MAX: usize = 120 << 10;
/// The stop path answers between two inputs; a caller waits half a minute by default.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it takes other settings to come into force, if something does not answer.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(15);
/// A model that nobody has begun to fetch within this is in force already.
const MODEL_SEEN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer waits for a bundle to be fetched and tested: a caller waits half a minute by default.
const MODEL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often that is looked at.
const MODEL_LOOK: Duration = Duration::from_millis(200);
/// Calls that wait for the stop path or the settings.
const PENDING_MAX: usize = 16;
const REASON_CHARACTERS_MAX: usize = 512;
/// Longest refusal.
const MESSAGE_CHARACTERS_MAX: usize = 1_000;
/// What a payload that is none is answered with.
const STOP_FORM: &str = r#"{"machineId":"…","operator":"name","reason":"why"}"#;
const MODEL_FORM: &str = r#"{"name":"…","url":"https://…","sha256":"…"}"#;
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
        // A name or a value of the payload may stand in it, and is as long as the caller likes.
        let message = cut(message, MESSAGE_CHARACTERS_MAX);
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
struct ModelPayload {
    name: String,
    url: String,
    sha256: String,
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
    models: mpsc::Sender<ModelWish>,
    may_reset: bool,
    recent: VecDeque<Call>,
    pending: JoinSet<(String, Answer)>,
}

impl Methods {
    pub(super) fn new(
        board: Board,
        (orders, models): (mpsc::Sender<RemoteOrder>, mpsc::Sender<ModelWish>),
        may_reset: bool,
    ) -> Self {
        let (recent, pending) = (VecDeque::new(), JoinSet::new());
        Self { board, orders, models, may_reset, recent, pending }
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
            "journalStatus" => Answer::ok(journal_status(&self.board.status().journal)),
            "setModel" => match parse::<ModelPayload>(payload, MODEL_FORM) {
                Ok(wanted) => return self.set_model(rid, wanted),
                Err(refused) => refused,
            },
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
                "no such method; there are getStatus, getTrips, journalStatus, ping, resetMachine, setModel and stopMachine",
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

    /// Asks for other settings, and waits for what becomes of the bundle.
    fn set_model(&mut self, rid: &str, wanted: ModelPayload) -> Option<Answer> {
        let ModelPayload { name, url, sha256 } = wanted;
        let (answer, answered) = oneshot::channel();
        let bundle = SetBundle { url, sha256 };
        let before = self.board.status().models.remove(&name);
        let wish = ModelWish { name: name.clone(), bundle, answer };
        if self.pending.len() >= PENDING_MAX || self.models.try_send(wish).is_err() {
            return Some(Answer::refused(
                503,
                "too many requests wait for the settings; try again",
            ));
        }
        let (rid, board) = (rid.to_owned(), self.board.clone());
        self.pending.spawn(async move {
            let answer = match tokio::time::timeout(SETTINGS_TIMEOUT, answered).await {
                Ok(Ok(Ok(not_kept))) => {
                    let model = settled_model(&board, &name, before).await;
                    Answer::ok(model_answer(&name, &model, not_kept))
                }
                Ok(Ok(Err(refusal))) => Answer::refused(409, &refusal),
                Ok(Err(_)) | Err(_) => Answer::refused(503, "the settings do not answer"),
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

/// What is done about a model when its bundle is fetched and tested, or when that takes too long to wait for.
async fn settled_model(board: &Board, name: &str, before: Option<ShownModel>) -> ShownModel {
    let begun = tokio::time::Instant::now();
    loop {
        let shown = board.status().models.remove(name);
        let waited = begun.elapsed();
        let is_seen = shown != before || waited >= MODEL_SEEN_TIMEOUT;
        let is_fetched = shown.as_ref().is_some_and(|model| model.state != "fetching");
        if (is_seen && is_fetched) || waited >= MODEL_TIMEOUT {
            return shown.unwrap_or_default();
        }
        tokio::time::sleep(MODEL_LOOK).await;
    }
}

fn model_answer(name: &str, model: &ShownModel, not_kept: Option<String>) -> Value {
    json!({
        "name": name,
        "state": if model.state.is_empty() { "none" } else { model.state },
        "inForce": model.in_force,
        "candidate": model.candidate,
        "refusal": model.refusal,
        "notKept": not_kept,
    })
}

fn journal_status(journal: &JournalStatus) -> Value {
    let range = |range: &LostRange| {
        json!({
            "lane": range.lane,
            "cause": range.cause,
            "firstSequence": range.first_sequence,
            "lastSequence": range.last_sequence,
            "records": range.records,
        })
    };
    json!({
        "upstream": journal.upstream,
        "backlogRecords": journal.backlog_records,
        "oldestAgeSeconds": journal.oldest_age_seconds,
        "diskBytes": journal.disk_bytes,
        "segments": journal.segments,
        "lost": journal.lost.iter().map(range).collect::<Vec<_>>(),
        "lostRanges": journal.lost_ranges,
    })
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
mod tests;
