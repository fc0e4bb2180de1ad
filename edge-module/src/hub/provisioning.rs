//! Asks the provisioning service to which hub this device belongs, and keeps what it said.
//!
//! The answer is kept in `device.data-dir` as `hub-assignment.json`, readable by its owner alone: JSON with the scope and the
//! registration that it is for, the service that gave it, hub and device. One that is for something else, or cannot be read, is
//! passed over and asked for anew. After a crash it is the one before or the new one, whole.
//!
//! One that gives the same answer again is left alone for longer each time, up to `ASK_INTERVAL_MAX`: what a hub refuses for
//! other reasons, the service does not mend.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge_core::hub::provisioning::{
    Assignment, Registering, Registration, RegistrationError, RegistrationLimits,
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::access::Ticket;
use super::clock::Clock;
use super::connection::{Connection, HubEvent};
use crate::config::{IotHub, Secret};
use crate::durable;
use crate::telemetry;

const FILE: &str = "hub-assignment.json";
/// Of the file: names at their limits, and as much again.
const FILE_BYTES_MAX: usize = 8 << 10;
/// For writing it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// From the first question to the assignment; a custom allocation policy runs a function meanwhile.
const WHOLE_MAX: Duration = Duration::from_secs(180);
/// Before the service is asked again that has given the same answer; it doubles.
const ASK_INTERVAL_MIN: Duration = Duration::from_secs(60);
const ASK_INTERVAL_MAX: Duration = Duration::from_secs(3_600);

/// Why no hub is known.
#[derive(Debug, thiserror::Error)]
pub enum ProvisioningError {
    /// There is no connection, or none any more.
    #[error(
        "provisioning service {host}: {reason}; check that it can be reached, the key or certificate, id-scope, registration-id and the clock"
    )]
    Closed {
        /// The endpoint.
        host: String,
        /// What went wrong.
        reason: String,
    },
    /// It says no, or nothing.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
}

/// What a device shows the provisioning service, and the hub after that.
#[derive(Clone, Debug)]
pub(super) enum DeviceProof {
    /// Base64.
    Key(Secret),
    Certificate {
        chain: PathBuf,
        key: PathBuf,
    },
}

/// The service, and what it said.
#[derive(Debug)]
pub(super) struct Provisioning {
    pub(super) registration: Registration,
    pub(super) endpoint: String,
    pub(super) proof: DeviceProof,
    pub(super) folder: Option<PathBuf>,
    pace: Mutex<Pace>,
}

/// When the service may be asked next.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    not_before: Option<Instant>,
    /// The same answer so many times in a row.
    repeats: u32,
}

/// What is kept.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kept {
    endpoint: String,
    id_scope: String,
    registration_id: String,
    assigned_hub: String,
    device_id: String,
}

impl Provisioning {
    pub(super) fn new(registration: Registration, endpoint: String, proof: DeviceProof) -> Self {
        let pace = Mutex::new(Pace::default());
        Self { registration, endpoint, proof, folder: None, pace }
    }

    /// Whether the service may be asked now.
    pub(super) fn may_ask(&self) -> bool {
        self.pace().not_before.is_none_or(|not_before| Instant::now() >= not_before)
    }

    /// Waits until then.
    pub(super) async fn wait(&self) {
        if let Some(not_before) = self.pace().not_before {
            tokio::time::sleep_until(not_before.into()).await;
        }
    }

    fn pace(&self) -> Pace {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the service. `before` is what was in force.
    pub(super) async fn ask(
        &self,
        ticket: Ticket,
        settings: &IotHub,
        clock: &Clock,
        before: Option<&Assignment>,
    ) -> Result<Assignment, ProvisioningError> {
        let mut connection = Connection::open_registration(ticket, &self.registration, settings);
        let limits =
            RegistrationLimits { answer_max: settings.connect_timeout, whole_max: WHOLE_MAX };
        let asked = self.converse(&mut connection, limits, clock).await;
        connection.close().await;
        let result = if asked.is_ok() { "assigned" } else { "failed" };
        metrics::counter!(telemetry::HUB_REGISTRATIONS, "result" => result).increment(1);
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        *pace = pace.after(&asked, before, Instant::now());
        asked
    }

    async fn converse(
        &self,
        connection: &mut Connection,
        limits: RegistrationLimits,
        clock: &Clock,
    ) -> Result<Assignment, ProvisioningError> {
        let closed =
            |reason: String| ProvisioningError::Closed { host: self.endpoint.clone(), reason };
        let opened = tokio::time::timeout(limits.answer_max, subscribed(connection)).await;
        opened.map_err(|_| RegistrationError::Silent(limits.answer_max))?.map_err(closed)?;
        let mut registering = Registering::new(&self.registration, limits, Instant::now());
        loop {
            if let Some(request) = registering.poll(Instant::now()) {
                let taken = connection.publish(request.topic, request.body.into_bytes());
                taken.map_err(|error| closed(error.to_string()))?;
            }
            let deadline = registering.poll_timeout();
            tokio::select! {
                event = connection.events.recv() => match event {
                    Some(HubEvent::Publish(publish, _)) => {
                        let now = Instant::now();
                        let told =
                            registering.handle_answer(&publish.topic, &publish.payload, now);
                        if let Some(time) = registering.told_time() {
                            clock.told(time);
                        }
                        if let Some(assignment) = told? {
                            return Ok(assignment);
                        }
                    }
                    Some(HubEvent::Connected | HubEvent::Subscribed | HubEvent::Taken(_)) => {}
                    Some(HubEvent::Closed(end)) => return Err(closed(end.reason)),
                    None => return Err(closed("the connection's task has ended".to_owned())),
                },
                () = tokio::time::sleep_until(deadline.into()) => {
                    registering.handle_timeout(Instant::now())?;
                }
            }
        }
    }

    /// What the service said last, if that is for these settings. Reads the disk.
    pub(super) fn read_kept(&self) -> Option<Assignment> {
        let path = self.folder.as_ref()?.join(FILE);
        let text = match read_short(&path) {
            Ok(text) => text?,
            Err(error) => {
                warn!(%error, path = %path.display(), "the hub that was assigned is not known: asked for anew");
                return None;
            }
        };
        let kept = match serde_json::from_slice::<Kept>(&text) {
            Ok(kept) => kept,
            Err(error) => {
                warn!(%error, path = %path.display(), "the hub that was assigned is not known: asked for anew");
                return None;
            }
        };
        let assignment =
            Assignment { hub_host: kept.assigned_hub.clone(), device_id: kept.device_id.clone() };
        if kept == self.kept(&assignment) {
            return Some(assignment);
        }
        info!("the hub that was assigned is of other settings: asked for anew");
        None
    }

    /// For the next start. A disk that does not take it is no reason to have no hub.
    pub(super) async fn keep(&self, assignment: &Assignment) {
        let Some(folder) = self.folder.clone() else { return };
        let text = match serde_json::to_vec_pretty(&self.kept(assignment)) {
            Ok(text) => text,
            Err(error) => {
                warn!(%error, "the hub that was assigned is not kept");
                return;
            }
        };
        let path = folder.join(FILE);
        let write = tokio::task::spawn_blocking(move || durable::replace_private(&path, &text));
        let reason = match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(panic)) => panic.to_string(),
            Err(_) => format!("the disk does not answer within {} s", WRITE_TIMEOUT.as_secs()),
        };
        let folder = folder.display();
        warn!(reason, %folder, "the hub that was assigned is not kept: the next start asks for it");
    }

    fn kept(&self, assignment: &Assignment) -> Kept {
        Kept {
            endpoint: self.endpoint.clone(),
            id_scope: self.registration.id_scope.clone(),
            registration_id: self.registration.registration_id.clone(),
            assigned_hub: assignment.hub_host.clone(),
            device_id: assignment.device_id.clone(),
        }
    }
}

impl Pace {
    /// After an answer.
    fn after(
        self,
        asked: &Result<Assignment, ProvisioningError>,
        before: Option<&Assignment>,
        now: Instant,
    ) -> Self {
        match asked {
            Ok(assignment) if before == Some(assignment) => {
                let doubled = 1_u32.checked_shl(self.repeats).unwrap_or(u32::MAX);
                let wait = ASK_INTERVAL_MIN.saturating_mul(doubled).min(ASK_INTERVAL_MAX);
                Self { not_before: Some(now + wait), repeats: self.repeats.saturating_add(1) }
            }
            Ok(_) => Self::default(),
            Err(ProvisioningError::Registration(error)) => {
                let not_before = error.retry_after().map(|wait| now + wait);
                Self { not_before, ..self }
            }
            Err(ProvisioningError::Closed { .. }) => Self { not_before: None, ..self },
        }
    }
}

async fn subscribed(connection: &mut Connection) -> Result<(), String> {
    loop {
        match connection.events.recv().await {
            Some(HubEvent::Subscribed) => return Ok(()),
            Some(HubEvent::Connected | HubEvent::Publish(..) | HubEvent::Taken(_)) => {}
            Some(HubEvent::Closed(end)) => return Err(end.reason),
            None => return Err("the connection's task has ended".to_owned()),
        }
    }
}

/// Nothing if there is none.
fn read_short(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX as u64).read_to_end(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn provisioning(folder: &Path, registration: &str) -> Provisioning {
        let registration = Registration::new("0ne1", registration).expect("valid names");
        let proof = DeviceProof::Key(Secret::new("AAAA".to_owned()));
        let mut made = Provisioning::new(registration, "dps.example".to_owned(), proof);
        made.folder = Some(folder.to_owned());
        made
    }

    fn assignment(hub: &str) -> Assignment {
        Assignment { hub_host: hub.to_owned(), device_id: "gw-07".to_owned() }
    }

    #[tokio::test]
    async fn what_was_assigned_is_kept_for_these_settings_and_its_owner_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = provisioning(folder.path(), "a");
        assert_eq!(first.read_kept(), None);
        first.keep(&assignment("hub-1")).await;
        first.keep(&assignment("hub-2")).await;
        assert_eq!(first.read_kept(), Some(assignment("hub-2")));
        let path = folder.path().join(FILE);
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(provisioning(folder.path(), "b").read_kept(), None);
        std::fs::write(&path, "{\"assignedHub\":").expect("written");
        assert_eq!(first.read_kept(), None);
        std::fs::write(&path, vec![b' '; 2 * FILE_BYTES_MAX]).expect("written");
        assert_eq!(first.read_kept(), None);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_keeps_nothing_and_says_so_without_failing() {
        let folder = tempfile::tempdir().expect("a folder");
        let gone = provisioning(&folder.path().join("gone"), "a");
        gone.keep(&assignment("hub-1")).await;
        assert_eq!(gone.read_kept(), None);
    }

    #[test]
    fn the_same_answer_again_is_asked_for_ever_more_seldom() {
        let now = Instant::now();
        let (same, other) = (assignment("hub-1"), assignment("hub-2"));
        let mut pace = Pace::default();
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            pace = pace.after(&Ok(same.clone()), Some(&same), now);
            assert_eq!(pace.not_before, Some(now + Duration::from_secs(minutes * 60)));
        }
        pace.repeats = u32::MAX;
        pace = pace.after(&Ok(same.clone()), Some(&same), now);
        assert_eq!(pace.not_before, Some(now + ASK_INTERVAL_MAX));
        assert_eq!(pace.after(&Ok(other), Some(&same), now).not_before, None);
        assert_eq!(pace.after(&Ok(same), None, now).not_before, None);
        let retry_after = Duration::from_secs(600);
        let later = RegistrationError::Later { status: 429, said: String::new(), retry_after };
        assert_eq!(pace.after(&Err(later.into()), None, now).not_before, Some(now + retry_after));
    }
}
