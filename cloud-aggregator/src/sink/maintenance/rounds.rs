//! Rounds of maintenance beside the other work of the process.

use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use shared_proto::model::EventTime;
use tokio::sync::watch;
use tracing::{error, warn};

use super::{Maintenance, Reports, system_clock};
use crate::backoff::Backoff;
use crate::causes::describe;
use crate::config;
use crate::outcomes::measured::measure;
use crate::sink::commit::within;
use crate::sink::delta::LakeError;
use crate::telemetry::names;

/// How often the age of the last success is told.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// So many operation timeouts may the reading of alerts and outcomes take.
const MEASURING_PATIENCE: u32 = 10;

/// Maintains the tables until `stop` is set or its sender gone. A round that is cut off leaves what a crash leaves.
pub async fn run(lake: config::Lake, settings: config::Maintenance, stop: watch::Receiver<bool>) {
    let mut rounds = Rounds {
        backoff: Backoff::new(settings.retry_min, settings.retry_max),
        maintenance: None,
        last_success: Instant::now(),
        measured: None,
        stop,
        lake,
        settings,
    };
    let mut wait = rounds.settings.interval;
    while rounds.pause(wait).await {
        let outcome = rounds.round().await;
        let Some(outcome) = outcome else { break };
        let is_ours = matches!(outcome, Outcome::Done(_));
        wait = rounds.conclude(outcome);
        if is_ours {
            rounds.measure().await;
        }
    }
    if let Some(maintenance) = rounds.maintenance
        && let Err(error) = maintenance.release().await
    {
        warn!(error = describe(&error), "the maintenance lease is left to end by itself");
    }
}

/// What came of a round.
enum Outcome {
    Done(Reports),
    HeldElsewhere,
    Failed(LakeError),
    Panicked,
}

struct Rounds {
    lake: config::Lake,
    settings: config::Maintenance,
    maintenance: Option<Maintenance>,
    backoff: Backoff,
    last_success: Instant,
    /// When the precision of the alerts was computed last.
    measured: Option<Instant>,
    stop: watch::Receiver<bool>,
}

impl Rounds {
    /// Waits; false: the process stops.
    async fn pause(&mut self, wait: Duration) -> bool {
        let end = Instant::now() + wait;
        loop {
            let age = self.last_success.elapsed().as_secs_f64();
            gauge!(names::MAINTENANCE_LAST_SUCCESS_AGE_SECONDS).set(age);
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return !*self.stop.borrow();
            }
            tokio::select! {
                changed = self.stop.changed() => {
                    if changed.is_err() || *self.stop.borrow() {
                        return false;
                    }
                }
                () = tokio::time::sleep(left.min(TELL_INTERVAL)) => {}
            }
        }
    }

    /// One round in a task of its own, so that a panic ends nothing else. `None`: the process stops.
    async fn round(&mut self) -> Option<Outcome> {
        let opened = match self.maintenance.take() {
            Some(maintenance) => Ok(maintenance),
            None => Maintenance::open(&self.lake, &self.settings, system_clock())
                .map(Maintenance::checking_its_clock),
        };
        let mut maintenance = match opened {
            Ok(maintenance) => maintenance,
            Err(error) => return Some(Outcome::Failed(error)),
        };
        let mut task = tokio::spawn(async move {
            let result = maintenance.round(None).await;
            (maintenance, result)
        });
        let joined = tokio::select! {
            joined = &mut task => joined,
            _ = self.stop.wait_for(|stop| *stop) => {
                task.abort();
                return None;
            }
        };
        Some(match joined {
            Ok((maintenance, result)) => {
                self.maintenance = Some(maintenance);
                match result {
                    Ok(Some(reports)) => Outcome::Done(reports),
                    Ok(None) => Outcome::HeldElsewhere,
                    Err(error) => Outcome::Failed(error),
                }
            }
            Err(_) => Outcome::Panicked,
        })
    }

    /// What people found of the alerts, as metrics. It is left when the process stops.
    async fn measure(&mut self) {
        let interval = self.settings.precision_interval;
        if self.measured.is_some_and(|last| last.elapsed() < interval) {
            return;
        }
        self.measured = Some(Instant::now());
        let now = EventTime::from_micros(system_clock()().micros());
        let limit = MEASURING_PATIENCE * self.lake.operation_timeout;
        let measured = tokio::select! {
            measured = within(limit, measure(&self.lake, now)) => measured,
            _ = self.stop.wait_for(|stop| *stop) => return,
        };
        if let Err(error) = measured {
            warn!(error = describe(&error), "the precision of the alerts is not computed");
        }
    }

    /// Counts a round and says when the next is due.
    fn conclude(&mut self, outcome: Outcome) -> Duration {
        let count = |outcome: &'static str| {
            counter!(names::MAINTENANCE_ROUNDS_TOTAL, "outcome" => outcome).increment(1);
        };
        let is_done = match outcome {
            Outcome::Done(reports) => reports.values().all(|report| report.problem.is_none()),
            Outcome::HeldElsewhere => {
                count("held-elsewhere");
                self.last_success = Instant::now();
                self.backoff.reset();
                return self.settings.interval;
            }
            Outcome::Failed(error) => {
                warn!(error = describe(&error), "maintenance failed and is tried again");
                false
            }
            Outcome::Panicked => {
                error!("maintenance has panicked and is begun anew");
                false
            }
        };
        if is_done {
            count("done");
            self.last_success = Instant::now();
            self.backoff.reset();
            return self.settings.interval;
        }
        count("failed");
        self.backoff.wait().max(self.settings.interval)
    }
}
