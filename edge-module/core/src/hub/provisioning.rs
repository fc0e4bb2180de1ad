//! Registering at Azure's Device Provisioning Service: which hub a device belongs to, and under which name.
//!
//! A registration is asked for, and then asked after until it is decided. [`Registering`] does one of them: it says what to
//! publish and when, reads the answers, and ends with an [`Assignment`] or with the reason why there is none. Each wait has a
//! limit, and so has the whole. Source: Microsoft, "Communicate with your DPS instance using the MQTT protocol".

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::identity::{HubIdentity, HubIdentityError, check_name};
use super::properties::{encode, parse_bag};

#[cfg(test)]
mod tests;

/// Version of the service's interface that is asked for.
pub const API_VERSION: &str = "2019-03-31";
/// What answers come under.
pub const SUBSCRIPTION: &str = "$dps/registrations/res/#";
/// Longest registration id, in bytes (Azure's own limit).
pub const REGISTRATION_ID_BYTES_MAX: usize = 128;
/// Longest id scope, in bytes: those given out have eleven characters.
pub const ID_SCOPE_BYTES_MAX: usize = 64;

const ANSWERS: &str = "$dps/registrations/res/";
/// Between two questions, where the service does not say.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(2);
/// Longest time that the service can make us wait.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);
/// Refusals of the kind "later" in one registration; the next one waits for another connection.
const DELAYS_MAX: u32 = 5;
/// Of what the service says, in characters of an error.
const SAID_CHARS_MAX: usize = 300;

/// Who registers, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Which instance of the service.
    pub id_scope: String,
    /// Which enrolment, or which device of a group.
    pub registration_id: String,
}

impl Registration {
    /// Takes both names.
    ///
    /// # Errors
    ///
    /// A name is empty, too long, or holds a character that it may not.
    pub fn new(
        id_scope: impl Into<String>,
        registration_id: impl Into<String>,
    ) -> Result<Self, HubIdentityError> {
        let (id_scope, registration_id) = (id_scope.into(), registration_id.into());
        check_name("id scope", &id_scope, ID_SCOPE_BYTES_MAX, "-")?;
        let bytes_max = REGISTRATION_ID_BYTES_MAX;
        check_name("registration id", &registration_id, bytes_max, "-._:")?;
        Ok(Self { id_scope, registration_id })
    }

    /// The MQTT client id.
    #[must_use]
    pub fn client_id(&self) -> String {
        self.registration_id.clone()
    }

    /// The MQTT user name. `product` is the client's own name and version.
    #[must_use]
    pub fn user_name(&self, product: &str) -> String {
        let (path, product) = (self.path(), encode(product));
        format!("{path}/api-version={API_VERSION}&ClientVersion={product}")
    }

    /// What a signature is for, percent-encoded as one text: it is signed and sent in this form.
    #[must_use]
    pub fn resource(&self) -> String {
        encode(&self.path())
    }

    fn path(&self) -> String {
        format!("{}/registrations/{}", self.id_scope, self.registration_id)
    }
}

/// The password. `signature_base64` is the signature of [`string_to_sign`](super::identity::string_to_sign) with the same
/// arguments.
#[must_use]
pub fn registration_signature(resource: &str, signature_base64: &str, expires_unix: u64) -> String {
    let token = super::identity::shared_access_signature(resource, signature_base64, expires_unix);
    format!("{token}&skn=registration")
}

/// Where a device belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Host name of the IoT hub.
    pub hub_host: String,
    /// The device's name there.
    pub device_id: String,
}

/// Why there is no assignment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// The service does not believe who asks.
    #[error(
        "the provisioning service refuses with {status}{said}: check the key or certificate, id-scope, registration-id and the clock"
    )]
    Unauthorized {
        /// As of HTTP.
        status: u16,
        /// What it says, in brackets, or nothing.
        said: String,
    },
    /// It knows no such enrolment.
    #[error(
        "the provisioning service knows no such registration (404{said}): create an enrolment for this registration-id in this id-scope"
    )]
    Unknown {
        /// What it says.
        said: String,
    },
    /// Any other refusal that does not go away by itself.
    #[error("the provisioning service refuses with {status}{said}")]
    Refused {
        /// As of HTTP.
        status: u16,
        /// What it says.
        said: String,
    },
    /// It has too much to do, or is ill.
    #[error("the provisioning service puts off with {status}{said}: tried again by itself")]
    Later {
        /// 429 or 500 and above.
        status: u16,
        /// What it says.
        said: String,
        /// When it may be asked again.
        retry_after: Duration,
    },
    /// Decided, and not in our favour.
    #[error(
        "the provisioning service could not assign a hub{said}: check the enrolment's allocation policy and that a hub is linked"
    )]
    Failed {
        /// What it says.
        said: String,
    },
    /// Switched off by somebody.
    #[error(
        "the enrolment of this device is disabled{said}: enable it at the provisioning service"
    )]
    Disabled {
        /// What it says.
        said: String,
    },
    /// Without a hub.
    #[error(
        "the provisioning service has unassigned this device{said}: assign it, or create its enrolment anew"
    )]
    Unassigned {
        /// What it says.
        said: String,
    },
    /// An answer that is none.
    #[error("the provisioning service answers with something else: {0}")]
    Answer(String),
    /// It is told a hub or device that cannot be one.
    #[error("the provisioning service assigns what cannot be: {0}")]
    Identity(#[from] HubIdentityError),
    /// No answer.
    #[error(
        "the provisioning service has not answered within {} s: check that its endpoint and port can be reached", .0.as_secs()
    )]
    Silent(Duration),
    /// No decision.
    #[error(
        "the provisioning service has not assigned a hub within {} s: check a custom allocation policy", .0.as_secs()
    )]
    Undecided(Duration),
}

impl RegistrationError {
    /// How long the service wants to be left alone.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Later { retry_after, .. } => Some(*retry_after),
            Self::Unauthorized { .. }
            | Self::Unknown { .. }
            | Self::Refused { .. }
            | Self::Failed { .. }
            | Self::Disabled { .. }
            | Self::Unassigned { .. }
            | Self::Answer(_)
            | Self::Identity(_)
            | Self::Silent(_)
            | Self::Undecided(_) => None,
        }
    }
}

/// How long a registration may take.
#[derive(Clone, Copy, Debug)]
pub struct RegistrationLimits {
    /// From a question to its answer.
    pub answer_max: Duration,
    /// From the beginning to the assignment.
    pub whole_max: Duration,
}

/// One registration, from the subscription to the assignment.
#[derive(Debug)]
pub struct Registering {
    registration_id: String,
    limits: RegistrationLimits,
    ends: Instant,
    state: State,
    last_rid: u64,
    delays: u32,
    told_time: Option<String>,
}

#[derive(Clone, Debug)]
enum Question {
    Register,
    /// The id of the operation, as it came.
    Status(String),
}

#[derive(Debug)]
enum State {
    Due { at: Instant, question: Question },
    Asked { rid: u64, until: Instant, question: Question },
}

/// What is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationRequest {
    /// The topic.
    pub topic: String,
    /// The payload.
    pub body: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Answer {
    operation_id: Option<String>,
    status: Option<String>,
    registration_state: Option<RegistrationState>,
    error_code: Option<u64>,
    message: Option<String>,
    timestamp_utc: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RegistrationState {
    assigned_hub: Option<String>,
    device_id: Option<String>,
    error_code: Option<u64>,
    error_message: Option<String>,
}

impl Registering {
    /// Begins when all is subscribed.
    #[must_use]
    pub fn new(registration: &Registration, limits: RegistrationLimits, now: Instant) -> Self {
        Self {
            registration_id: registration.registration_id.clone(),
            limits,
            ends: now + limits.whole_max,
            state: State::Due { at: now, question: Question::Register },
            last_rid: 0,
            delays: 0,
            told_time: None,
        }
    }

    /// The question that is due.
    pub fn poll(&mut self, now: Instant) -> Option<RegistrationRequest> {
        let State::Due { at, question } = &self.state else { return None };
        if *at > now {
            return None;
        }
        let question = question.clone();
        self.last_rid += 1;
        let rid = self.last_rid;
        let request = match &question {
            Question::Register => RegistrationRequest {
                topic: format!("$dps/registrations/PUT/iotdps-register/?$rid={rid}"),
                body: serde_json::json!({ "registrationId": self.registration_id }).to_string(),
            },
            Question::Status(operation) => RegistrationRequest {
                topic: format!(
                    "$dps/registrations/GET/iotdps-get-operationstatus/?$rid={rid}&operationId={}",
                    encode(operation)
                ),
                body: String::new(),
            },
        };
        self.state = State::Asked { rid, until: now + self.limits.answer_max, question };
        Some(request)
    }

    /// When to call [`Self::poll`] or [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        match &self.state {
            State::Due { at, .. } => (*at).min(self.ends),
            State::Asked { until, .. } => (*until).min(self.ends),
        }
    }

    /// # Errors
    ///
    /// Too much time has gone by.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), RegistrationError> {
        match &self.state {
            State::Asked { until, .. } if *until <= now => {
                Err(RegistrationError::Silent(self.limits.answer_max))
            }
            State::Due { .. } | State::Asked { .. } if self.ends <= now => {
                Err(RegistrationError::Undecided(self.limits.whole_max))
            }
            State::Due { .. } | State::Asked { .. } => Ok(()),
        }
    }

    /// Takes what came on a topic. Answers to questions that nobody asks any more are passed over.
    ///
    /// # Errors
    ///
    /// The service refuses, or answers with something else.
    pub fn handle_answer(
        &mut self,
        topic: &str,
        payload: &[u8],
        now: Instant,
    ) -> Result<Option<Assignment>, RegistrationError> {
        let Head { status, rid, retry_after } = Head::parse(topic)
            .ok_or_else(|| RegistrationError::Answer(format!("topic {}", shown(topic))))?;
        let State::Asked { rid: asked, question, .. } = &self.state else { return Ok(None) };
        if rid != asked.to_string() {
            return Ok(None);
        }
        let question = question.clone();
        let answer = serde_json::from_slice::<Answer>(payload);
        if let Ok(Answer { timestamp_utc: Some(time), .. }) = &answer {
            self.told_time = Some(shown(time));
        }
        match status {
            200..=299 => {
                let answer =
                    answer.map_err(|error| RegistrationError::Answer(error.to_string()))?;
                self.decided(answer, question, retry_after, now)
            }
            429 | 500.. => {
                self.put_off(status, &answer.unwrap_or_default(), question, retry_after, now)
            }
            status => Err(refused(status, said(&answer.unwrap_or_default()))),
        }
    }

    /// What the service said of its own time, of the form of RFC 3339, in an answer that refused.
    #[must_use]
    pub fn told_time(&self) -> Option<&str> {
        self.told_time.as_deref()
    }

    fn decided(
        &mut self,
        answer: Answer,
        question: Question,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> Result<Option<Assignment>, RegistrationError> {
        let said = said(&answer);
        let status = answer.status.unwrap_or_default();
        match status.to_ascii_lowercase().as_str() {
            "assigned" => answer.registration_state.unwrap_or_default().assignment().map(Some),
            "assigning" => {
                let question = match (answer.operation_id, question) {
                    (Some(operation), _) => Question::Status(operation),
                    (None, Question::Status(operation)) => Question::Status(operation),
                    (None, Question::Register) => {
                        let text = "assigning, without an operationId".to_owned();
                        return Err(RegistrationError::Answer(text));
                    }
                };
                let at = now + retry_after.unwrap_or(RETRY_AFTER_DEFAULT);
                self.state = State::Due { at, question };
                Ok(None)
            }
            "failed" => Err(RegistrationError::Failed { said }),
            "disabled" => Err(RegistrationError::Disabled { said }),
            "unassigned" => Err(RegistrationError::Unassigned { said }),
            other => Err(RegistrationError::Answer(format!("status {:?}", shown(other)))),
        }
    }

    /// The same question again, if that comes to anything in the time that is left.
    fn put_off(
        &mut self,
        status: u16,
        answer: &Answer,
        question: Question,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> Result<Option<Assignment>, RegistrationError> {
        let retry_after = retry_after.unwrap_or(RETRY_AFTER_DEFAULT);
        self.delays += 1;
        let at = now + retry_after;
        if self.delays > DELAYS_MAX || at >= self.ends {
            return Err(RegistrationError::Later { status, said: said(answer), retry_after });
        }
        self.state = State::Due { at, question };
        Ok(None)
    }
}

impl RegistrationState {
    fn assignment(self) -> Result<Assignment, RegistrationError> {
        let (Some(hub_host), Some(device_id)) = (self.assigned_hub, self.device_id) else {
            let text = "assigned, without assignedHub and deviceId".to_owned();
            return Err(RegistrationError::Answer(text));
        };
        let identity = HubIdentity::new(hub_host, device_id, None)?;
        Ok(Assignment { hub_host: identity.hub_host, device_id: identity.device_id })
    }
}

/// What the topic of an answer says.
struct Head {
    status: u16,
    rid: String,
    retry_after: Option<Duration>,
}

impl Head {
    /// `$dps/registrations/res/202/?$rid=1&retry-after=3`
    fn parse(topic: &str) -> Option<Self> {
        let (status, query) = topic.strip_prefix(ANSWERS)?.split_once('/')?;
        let mut query = parse_bag(query)?;
        let retry_after = query.remove("retry-after").map(|text| text.parse().ok());
        let retry_after = match retry_after {
            None => None,
            Some(seconds) => Some(Duration::from_secs(seconds?).min(RETRY_AFTER_MAX)),
        };
        Some(Self { status: status.parse().ok()?, rid: query.remove("$rid")?, retry_after })
    }
}

fn refused(status: u16, said: String) -> RegistrationError {
    match status {
        401 | 403 => RegistrationError::Unauthorized { status, said },
        404 => RegistrationError::Unknown { said },
        status => RegistrationError::Refused { status, said },
    }
}

/// ` (401002: Unauthorized)`, or nothing.
fn said(answer: &Answer) -> String {
    let state = answer.registration_state.as_ref();
    let code = answer.error_code.or_else(|| state?.error_code).filter(|code| *code > 0);
    let text = answer.message.as_deref().or_else(|| state?.error_message.as_deref());
    match (code, text.map(shown)) {
        (Some(code), Some(text)) => format!(" ({code}: {text})"),
        (Some(code), None) => format!(" ({code})"),
        (None, Some(text)) => format!(" ({text})"),
        (None, None) => String::new(),
    }
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SAID_CHARS_MAX).collect()
}
