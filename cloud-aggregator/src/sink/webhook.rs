//! Alerts to an HTTP endpoint: POST with an idempotency key, time limit, retries with backoff, Retry-After, circuit breaker, digests.
//!
//! 2xx is delivered. 408, 425, 429, 5xx and transport errors are tried again up to a number of attempts and up to the event's
//! deadline; any other answer will not change and is given up at once. Redirects are not followed: the host was allowed, another
//! was not. Certificates are verified, and neither the URL nor a header's value stands in a log line or an error.
//!
//! Each target is a task with a queue of its own. It sends one event after the other, so that nobody hears of an alert's end before
//! its begin. An event that is given up becomes a dead letter; a digest stands for its events, one dead letter each.
//!
//! The deadline counts from the change of the alert, so that a restart does not begin it anew. An event that is older has one
//! attempt, unless the target is known to be away: then a whole queue of them would wait for as many probes.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aggregator_core::{Micros, ProcessingTime};
use metrics::counter;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use self::circuit::{Circuit, Position};
use self::rate::{Held, Moment, RateLimit};
use self::request::{Attempt, Endpoint};
use super::alert::{Channel, Delivery, Outcome, digest};
use crate::backoff::Backoff;
use crate::config::Target;
use crate::telemetry::names;

mod circuit;
mod rate;
mod request;
mod status;

pub use request::{IDEMPOTENCY_HEADER, WebhookError};
pub use status::{CircuitState, TargetHealth, TargetStatus, names as target_names};

/// Delivers to one endpoint.
#[derive(Debug)]
pub struct Webhook {
    endpoint: Endpoint,
    settings: Target,
    channel: Channel,
    circuit: Circuit,
    rate: RateLimit,
    backoff: Backoff,
    /// After a failure: when the next attempt may go, whichever event it is.
    not_before: Option<Instant>,
    last_failure: String,
    health: TargetHealth,
}

impl Webhook {
    /// Makes the client.
    ///
    /// # Errors
    /// A URL or a header that cannot be used, or a client without trust roots.
    pub fn new(settings: Target) -> Result<Self, WebhookError> {
        Ok(Self {
            endpoint: Endpoint::new(&settings)?,
            channel: Channel::Target(settings.name.as_str().into()),
            circuit: Circuit::new(settings.circuit_failures),
            rate: RateLimit::new(settings.rate),
            backoff: Backoff::new(settings.retry_min, settings.retry_max),
            not_before: None,
            last_failure: String::new(),
            health: TargetHealth::new(&settings.name, settings.kind.as_str()),
            settings,
        })
    }

    /// The channel that its outcomes name.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// How it stands, now and while it runs.
    #[must_use]
    pub fn health(&self) -> TargetHealth {
        self.health.clone()
    }

    /// Delivers until the queue is closed. What is held for a digest then is not sent: it stays owed.
    pub async fn run(
        mut self,
        mut queue: mpsc::Receiver<Delivery>,
        outcomes: mpsc::Sender<Outcome>,
    ) {
        loop {
            if let Some(held) = self.rate.poll(Instant::now()) {
                self.health.held(0);
                if !self.deliver_digest(held, &outcomes).await {
                    return;
                }
            }
            let due = self.rate.poll_timeout();
            let delivery = tokio::select! {
                delivery = queue.recv() => delivery,
                () = wait_until(due) => continue,
            };
            let Some(delivery) = delivery else { return };
            let Some(delivery) = self.rate.handle(delivery, now()) else {
                self.health.held(self.rate.held());
                continue;
            };
            let given_up = self.deliver(&delivery).await;
            if given_up.is_none() {
                self.count_delivered(1);
            }
            if !self.report(delivery.id, given_up, &outcomes).await {
                return;
            }
        }
    }

    /// One event for all that were held; what becomes of it becomes of each. False if nobody listens any more.
    async fn deliver_digest(&mut self, held: Held, outcomes: &mpsc::Sender<Outcome>) -> bool {
        let Target { name, source, .. } = &self.settings;
        let one = digest(name, (held.from, now().time), &held.deliveries, source);
        info!(channel = name, digest = &*one.id, events = held.deliveries.len(), "digest");
        let given_up = self.deliver(&one).await;
        if given_up.is_none() {
            let channel = self.settings.name.clone();
            counter!(target_names::ALERT_DIGESTS_TOTAL, "channel" => channel).increment(1);
            self.count_delivered(held.deliveries.len() as u64);
        }
        let given_up = given_up.map(|reason| format!("as a part of {}: {reason}", one.id));
        for delivery in held.deliveries {
            if !self.report(delivery.id, given_up.clone(), outcomes).await {
                return false;
            }
        }
        true
    }

    fn count_delivered(&self, events: u64) {
        let channel = self.settings.name.clone();
        counter!(names::ALERTS_DELIVERED_TOTAL, "channel" => channel).increment(events);
    }

    async fn report(
        &self,
        id: Arc<str>,
        given_up: Option<String>,
        outcomes: &mpsc::Sender<Outcome>,
    ) -> bool {
        outcomes.send(Outcome { id, channel: self.channel(), given_up }).await.is_ok()
    }

    /// Tries until it is taken, or gives the reason why it is given up.
    async fn deliver(&mut self, delivery: &Delivery) -> Option<String> {
        let deadline = deadline(delivery.changed_at, self.settings.deadline, now());
        let mut attempts = 0;
        loop {
            if self.is_too_late(attempts, deadline) {
                let text = format!(
                    "it was not taken within {:?} (deadline), the last failure: {}",
                    self.settings.deadline, self.last_failure
                );
                return Some(self.give_up(delivery, text));
            }
            self.await_turn().await;
            attempts += 1;
            match self.endpoint.attempt(delivery).await {
                Attempt::Delivered => {
                    self.note_answer();
                    self.health.delivered(now().time);
                    return None;
                }
                Attempt::Never(reason) => {
                    self.note_answer();
                    return Some(self.give_up(delivery, reason));
                }
                Attempt::Again { reason, after } => {
                    self.note_failure(delivery, attempts, reason, after);
                    if attempts >= self.settings.attempts_max {
                        let last = &self.last_failure;
                        let text = format!("{attempts} attempts failed, the last one with: {last}");
                        return Some(self.give_up(delivery, text));
                    }
                }
            }
        }
    }

    /// Whether the next attempt lies behind the deadline. What was never tried is tried, unless the target is known to be away.
    fn is_too_late(&self, attempts: u32, deadline: Instant) -> bool {
        let is_away = match self.circuit.position() {
            Position::Closed => false,
            Position::Open { .. } | Position::HalfOpen => true,
        };
        let is_later = |next: Instant| next > deadline && next > Instant::now();
        (attempts > 0 || is_away) && self.next_attempt().is_some_and(is_later)
    }

    fn next_attempt(&self) -> Option<Instant> {
        match self.circuit.position() {
            Position::Closed | Position::HalfOpen => self.not_before,
            Position::Open { until } => self.not_before.max(Some(until)),
        }
    }

    async fn await_turn(&mut self) {
        if let Some(next) = self.next_attempt() {
            tokio::time::sleep_until(next.into()).await;
        }
        self.circuit.begin_probe();
        self.health.moved(self.circuit.position());
    }

    fn note_answer(&mut self) {
        if self.circuit.position() != Position::Closed {
            info!(channel = self.settings.name, "the target answers again");
        }
        self.circuit.handle_answer();
        self.backoff.reset();
        self.not_before = None;
        self.last_failure.clear();
        self.health.answered();
    }

    fn note_failure(
        &mut self,
        delivery: &Delivery,
        attempt: u32,
        reason: String,
        after: Option<Duration>,
    ) {
        let channel = self.settings.name.as_str();
        counter!(names::ALERT_FAILURES_TOTAL, "channel" => channel.to_owned()).increment(1);
        let alert = &*delivery.id;
        let was_closed = self.circuit.position() == Position::Closed;
        let after = after.unwrap_or_default().min(self.settings.retry_after_max);
        let wait = self.backoff.wait().max(after);
        let instant = Instant::now();
        self.circuit.handle_failure(instant, self.settings.circuit_wait.max(after));
        self.not_before = Some(instant + wait);
        let failures = self.circuit.failures();
        let is_closed = self.circuit.position() == Position::Closed;
        if is_closed {
            warn!(channel, alert, attempt, reason, ?wait, "target did not take an alert");
        } else if was_closed {
            warn!(
                channel,
                alert, attempt, reason, failures, "target fails again and again, it is only probed"
            );
        } else {
            debug!(channel, alert, attempt, reason, failures, "probe of a target failed");
        }
        let next = self.next_attempt().unwrap_or(instant).saturating_duration_since(instant);
        self.health.failed(&reason, now().time, next);
        self.health.moved(self.circuit.position());
        self.last_failure = reason;
    }

    fn give_up(&self, delivery: &Delivery, reason: String) -> String {
        error!(
            channel = self.settings.name,
            alert = &*delivery.id,
            reason,
            "target has not taken an alert, it becomes a dead letter"
        );
        self.health.gave_up(&reason, now().time);
        reason
    }
}

/// When an event has become too old, by the clock for waits.
fn deadline(changed_at: ProcessingTime, limit: Duration, now: Moment) -> Instant {
    let passes = changed_at.saturating_add(Micros::from(limit));
    let left = passes.micros().saturating_sub(now.time.micros());
    // A clock that was set back must not make it longer than it was.
    now.instant + Duration::from_micros(u64::try_from(left).unwrap_or_default()).min(limit)
}

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

fn now() -> Moment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
    Moment { instant: Instant::now(), time: ProcessingTime::from_micros(micros) }
}

#[cfg(test)]
mod tests;
