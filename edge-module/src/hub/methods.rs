//! Direct methods: what an operator in the cloud asks of this module. All can be called twice without harm.
//!
//! | method | payload | answer |
//! |---|---|---|
//! | `ping` | none | 200 `{"deviceId":…,"version":…,"time":…}` |
//! | `getStatus` | none | 200, what `/status` shows |
//! | `getTrips` | none | 200 `{"trips":[…]}`: machines whose trip is latched |
//!
//! 404: no such method; 500: it panicked. A call that the hub delivers twice, with the same request id, is carried out once and answered twice.

use std::collections::VecDeque;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tracing::info;

use crate::admin::Board;
use crate::kafka::now;
use crate::telemetry;

/// Calls whose answers are remembered.
const RECENT_MAX: usize = 64;
/// A hub takes 128 KiB.
const ANSWER_BYTES_MAX: usize = 120 << 10;

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

/// What the module does for callers.
pub(super) struct Methods {
    board: Board,
    recent: VecDeque<Call>,
    pending: JoinSet<(String, Answer)>,
}

impl Methods {
    pub(super) fn new(board: Board) -> Self {
        Self { board, recent: VecDeque::new(), pending: JoinSet::new() }
    }

    /// Takes a call; gives its answer if there is one already, otherwise [`Self::next`] does.
    pub(super) fn call(&mut self, name: &str, rid: &str, payload: &[u8]) -> Option<Answer> {
        if let Some(call) = self.recent.iter().find(|call| call.rid == rid) {
            return call.answer.clone();
        }
        let answer = self.carry_out(name, rid, payload);
        let status = answer.as_ref().map(|answer| answer.status);
        info!(method = name, status, "direct method");
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

    fn carry_out(&mut self, name: &str, _rid: &str, _payload: &[u8]) -> Option<Answer> {
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
            _ => Answer::refused(404, "no such method; there are getStatus, getTrips and ping"),
        };
        Some(answer)
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
