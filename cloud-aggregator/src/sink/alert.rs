//! Alerts as CloudEvents 1.0 (JSON) with the Azure Monitor common alert schema as data.
//!
//! Three types of events leave: an alert has fired, it is resolved, and a digest of several for targets that take no more than so
//! many in a time. The same event of an alert gives the same bytes, also after a crash. What people are told in one text is cut at
//! [`DETAIL_BYTES_MAX`], and a digest holds [`DIGEST_ALERTS_MAX`] alerts, so that no event comes near the 1,000,000 bytes that
//! Event Hubs takes.
//!
//! Sources: CloudEvents 1.0.2 JSON format; "Common alert schema" of the Azure Monitor documentation.

use std::fmt;
use std::sync::Arc;

use aggregator_core::{AlertEvent, AlertState, ProcessingTime};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Content type of the body.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";
/// Most alerts of one digest; the others are only counted.
pub const DIGEST_ALERTS_MAX: usize = 50;
/// What a machine event tells people is cut behind so many bytes.
pub const DETAIL_BYTES_MAX: usize = 2048;
/// `subject` of a digest.
const DIGEST_SUBJECT: &str = "digest";
/// Name of the target that the keys `webhook-…` make.
pub const WEBHOOK: &str = "webhook";

/// Where an alert goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// The Kafka topic.
    Topic,
    /// One of `[[alerts.targets]]`, by its name.
    Target(Arc<str>),
}

impl Channel {
    /// The word used in logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Topic => "topic",
            Self::Target(name) => name,
        }
    }
}

/// One event on its way into a channel.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Idempotency key.
    pub id: Arc<str>,
    /// Key of the Kafka record: the `subject`.
    pub key: Arc<str>,
    /// The CloudEvent.
    pub body: Arc<str>,
    /// When the alert changed: a target's deadline counts from here.
    pub changed_at: ProcessingTime,
    /// What a digest tells of it; a digest itself has none.
    pub told: Option<Arc<Told>>,
}

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Idempotency key.
    pub id: Arc<str>,
    /// Which channel.
    pub channel: Channel,
    /// `None`: delivered; else why it never will be.
    pub given_up: Option<String>,
}

/// A CloudEvent in structured mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CloudEvent<T, D> {
    /// "1.0".
    pub specversion: SpecVersion,
    /// Unique together with the source: a repeat has the same.
    pub id: String,
    /// Which aggregator.
    pub source: String,
    /// What has happened.
    #[serde(rename = "type")]
    pub kind: T,
    /// The machine, the sensor where no machine is known, or "digest".
    pub subject: String,
    /// When it happened, RFC 3339 in UTC.
    pub time: String,
    /// "application/json".
    pub datacontenttype: DataContentType,
    /// The alert or the digest.
    pub data: D,
}

/// The event of one alert.
pub type AlertCloudEvent = CloudEvent<AlertType, CommonAlert>;
/// The event of several alerts.
pub type DigestCloudEvent = CloudEvent<DigestType, DigestData>;

/// Version of the CloudEvents specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SpecVersion {
    /// 1.0.
    #[serde(rename = "1.0")]
    One,
}

/// Content type of `data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DataContentType {
    /// JSON.
    #[serde(rename = "application/json")]
    Json,
}

/// `type` of the event of one alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AlertType {
    /// The alert has begun.
    #[serde(rename = "predictive-maintenance.alert.fired.v1")]
    Fired,
    /// The alert is over.
    #[serde(rename = "predictive-maintenance.alert.resolved.v1")]
    Resolved,
}

/// `type` of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DigestType {
    /// Several alerts at once.
    #[serde(rename = "predictive-maintenance.alert.digest.v1")]
    Digest,
}

/// `schemaId` of the common alert schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SchemaId {
    /// The common alert schema.
    #[serde(rename = "azureMonitorCommonAlertSchema")]
    CommonAlert,
}

/// `data` of the event of one alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommonAlert {
    /// "azureMonitorCommonAlertSchema".
    pub schema_id: SchemaId,
    /// The alert.
    pub data: Told,
}

/// An alert as the common alert schema has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// What every alert of Azure Monitor has.
    pub essentials: Essentials,
    /// What ours have besides.
    pub alert_context: AlertContext,
}

/// `severity` of the common alert schema.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum Severity {
    /// Critical.
    Sev0,
    /// Error.
    Sev1,
    /// Warning.
    Sev2,
    /// Informational.
    Sev3,
    /// Verbose.
    Sev4,
}

/// `monitorCondition` of the common alert schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Condition {
    /// The alert has begun.
    Fired,
    /// The alert is over.
    Resolved,
}

/// `essentials` of the common alert schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Essentials {
    /// The same for all events of an alert.
    #[serde(rename = "alertId")]
    pub alert_id: String,
    /// The rule.
    #[serde(rename = "alertRule")]
    pub alert_rule: String,
    /// From Sev0 (critical) to Sev4 (verbose).
    pub severity: Severity,
    /// "Metric".
    #[serde(rename = "signalType")]
    pub signal_type: String,
    /// Whether it begins or is over.
    #[serde(rename = "monitorCondition")]
    pub monitor_condition: Condition,
    /// "cloud-aggregator".
    #[serde(rename = "monitoringService")]
    pub monitoring_service: String,
    /// The machine, or the sensor where no machine is known.
    #[serde(rename = "alertTargetIDs")]
    pub alert_target_ids: Vec<String>,
    /// The same.
    #[serde(rename = "configurationItems")]
    pub configuration_items: Vec<String>,
    /// The alert's id again.
    #[serde(rename = "originAlertId")]
    pub origin_alert_id: String,
    /// When it began, RFC 3339 in UTC.
    #[serde(rename = "firedDateTime")]
    pub fired_date_time: String,
    /// When it was over, RFC 3339 in UTC.
    #[serde(rename = "resolvedDateTime", default, skip_serializing_if = "Option::is_none")]
    pub resolved_date_time: Option<String>,
    /// One sentence for people.
    pub description: String,
    /// "1.0".
    #[serde(rename = "essentialsVersion")]
    pub essentials_version: String,
    /// "1.0".
    #[serde(rename = "alertContextVersion")]
    pub alert_context_version: String,
}

/// `alertContext`: what only our alerts have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AlertContext {
    /// The rule.
    pub rule: String,
    /// Number of this event among those of the alert, from 1.
    pub revision: u32,
    /// The machine, if it is known.
    pub machine_id: Option<String>,
    /// The sensor of the first finding, if it is known.
    pub sensor_id: Option<String>,
    /// Start of the first finding's window, RFC 3339 in UTC.
    pub window_start: String,
    /// End of the last finding's window, RFC 3339 in UTC.
    pub window_end: String,
    /// Findings so far.
    pub findings: u64,
    /// Readings in the window that showed most.
    pub count: u64,
    /// What a window must not be.
    pub threshold: String,
    /// What the window that showed most was; no number has null.
    pub observed: Option<f64>,
    /// For the record, not for a call-out.
    pub historical: bool,
    /// Trip of the interlock that it is about.
    pub trip_id: Option<String>,
    /// What a machine event tells: cause, value.
    pub detail: String,
}

/// `data` of a digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DigestData {
    /// Start of the time in which too many events came, RFC 3339 in UTC.
    pub from: String,
    /// Its end, RFC 3339 in UTC.
    pub to: String,
    /// The most severe first, at most 50.
    #[schemars(length(max = 50))]
    pub alerts: Vec<Told>,
    /// How many are not listed.
    pub more: u64,
}

impl Severity {
    /// Of 0 (critical) to 4 (verbose), which rules and machine events have.
    #[must_use]
    pub fn new(severity: u8) -> Self {
        match severity {
            0 => Self::Sev0,
            1 => Self::Sev1,
            2 => Self::Sev2,
            3 => Self::Sev3,
            4.. => Self::Sev4,
        }
    }
}

/// Makes the CloudEvent of an event of an alert. The same event gives the same bytes.
#[must_use]
pub fn delivery(event: &AlertEvent, source: &str) -> Delivery {
    let told = told(event);
    let id: Arc<str> = event.event_id().into();
    let subject = subject(event);
    let body = text(&CloudEvent {
        specversion: SpecVersion::One,
        id: id.to_string(),
        source: source.to_owned(),
        kind: match event.state {
            AlertState::Fired => AlertType::Fired,
            AlertState::Resolved => AlertType::Resolved,
        },
        subject: subject.to_owned(),
        time: time(event.changed_at),
        datacontenttype: DataContentType::Json,
        data: CommonAlert { schema_id: SchemaId::CommonAlert, data: told.clone() },
    });
    Delivery {
        id,
        key: subject.into(),
        body,
        changed_at: event.changed_at,
        told: Some(Arc::new(told)),
    }
}

/// Makes one event of several. Which are listed, if they are too many: the most severe, then those that came first.
#[must_use]
pub fn digest(
    target: &str,
    (from, to): (ProcessingTime, ProcessingTime),
    held: &[Delivery],
    source: &str,
) -> Delivery {
    let mut alerts: Vec<&Told> = held.iter().filter_map(|one| one.told.as_deref()).collect();
    // Keeps the order of those that are alike.
    alerts.sort_by_key(|told| told.essentials.severity);
    alerts.truncate(DIGEST_ALERTS_MAX);
    let more = (held.len() - alerts.len()) as u64;
    let alerts = alerts.into_iter().cloned().collect();
    let id: Arc<str> = format!("digest-{target}-{}", from.micros()).into();
    let body = text(&CloudEvent {
        specversion: SpecVersion::One,
        id: id.to_string(),
        source: source.to_owned(),
        kind: DigestType::Digest,
        subject: DIGEST_SUBJECT.to_owned(),
        time: time(to),
        datacontenttype: DataContentType::Json,
        data: DigestData { from: time(from), to: time(to), alerts, more },
    });
    let changed_at = held.iter().map(|delivery| delivery.changed_at).min().unwrap_or(to);
    Delivery { id, key: DIGEST_SUBJECT.into(), body, changed_at, told: None }
}

/// A CloudEvent that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// An alert has begun.
    Fired,
    /// An alert is over.
    Resolved,
    /// Several at once.
    Digest,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fired, Self::Resolved, Self::Digest];

    /// The word of the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fired => "fired",
            Self::Resolved => "resolved",
            Self::Digest => "digest",
        }
    }
}

/// The JSON Schema (draft 7) of a CloudEvent, without references: the triggers of Logic Apps and Power Automate follow none. Fields that
/// it does not name are allowed, so that a version with one more breaks nobody's trigger.
#[must_use]
pub fn schema(kind: EventKind) -> Value {
    match kind {
        EventKind::Fired => of_one(AlertType::Fired, Condition::Fired),
        EventKind::Resolved => of_one(AlertType::Resolved, Condition::Resolved),
        EventKind::Digest => generated::<DigestCloudEvent>("Digest of alerts"),
    }
}

/// The Rust type is the same for both: here each says which it is, and whether there is an end.
fn of_one(kind: AlertType, condition: Condition) -> Value {
    let mut schema = generated::<AlertCloudEvent>(match condition {
        Condition::Fired => "Alert that has fired",
        Condition::Resolved => "Alert that is resolved",
    });
    let essentials = "/properties/data/properties/data/properties/essentials";
    narrow(&mut schema, "/properties/type", &json!(kind));
    narrow(&mut schema, &format!("{essentials}/properties/monitorCondition"), &json!(condition));
    let resolved = "resolvedDateTime";
    match condition {
        Condition::Fired => {
            let properties = schema.pointer_mut(&format!("{essentials}/properties"));
            if let Some(Value::Object(properties)) = properties {
                properties.remove(resolved);
            }
        }
        Condition::Resolved => {
            let required = schema.pointer_mut(&format!("{essentials}/required"));
            if let Some(Value::Array(required)) = required {
                required.push(json!(resolved));
            }
            let place = schema.pointer_mut(&format!("{essentials}/properties/{resolved}/type"));
            if let Some(place) = place {
                *place = json!("string");
            }
        }
    }
    schema
}

/// Of all values only one.
fn narrow(schema: &mut Value, pointer: &str, value: &Value) {
    if let Some(place) = schema.pointer_mut(pointer) {
        *place = json!({ "type": "string", "enum": [value] });
    }
}

fn generated<T: JsonSchema>(title: &str) -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), json!(title));
    schema.to_value()
}

fn told(event: &AlertEvent) -> Told {
    let subject = subject(event).to_owned();
    let text = |text: &str| text.to_owned();
    Told {
        essentials: Essentials {
            alert_id: event.alert_id.clone(),
            alert_rule: event.rule.clone(),
            severity: Severity::new(event.severity),
            signal_type: text("Metric"),
            monitor_condition: match event.state {
                AlertState::Fired => Condition::Fired,
                AlertState::Resolved => Condition::Resolved,
            },
            monitoring_service: text("cloud-aggregator"),
            alert_target_ids: vec![subject.clone()],
            configuration_items: vec![subject],
            origin_alert_id: event.alert_id.clone(),
            fired_date_time: time(event.fired_at),
            resolved_date_time: match event.state {
                AlertState::Fired => None,
                AlertState::Resolved => Some(time(event.resolved_at.unwrap_or(event.changed_at))),
            },
            description: description(event),
            essentials_version: text("1.0"),
            alert_context_version: text("1.0"),
        },
        alert_context: AlertContext {
            rule: event.rule.clone(),
            revision: event.revision,
            machine_id: event.machine_id.as_ref().map(|id| text(id.as_str())),
            sensor_id: event.sensor_id.as_ref().map(|id| text(id.as_str())),
            window_start: event.window_start.to_string(),
            window_end: event.window_end.to_string(),
            findings: event.findings,
            count: event.count,
            threshold: event.threshold.clone(),
            observed: Some(event.observed).filter(|observed| observed.is_finite()),
            historical: event.historical,
            trip_id: event.trip_id.clone(),
            detail: cut(&event.detail).to_owned(),
        },
    }
}

/// The machine, or the sensor where no machine is known.
fn subject(event: &AlertEvent) -> &str {
    let sensor = || event.sensor_id.as_ref().map_or("", |id| id.as_str());
    event.machine_id.as_ref().map_or_else(sensor, |id| id.as_str())
}

fn description(event: &AlertEvent) -> String {
    let subject = subject(event);
    let sensor = event.sensor_id.as_ref().map(|id| id.as_str()).filter(|id| *id != subject);
    let sensor = sensor.map_or_else(String::new, |id| format!(" (sensor {id})"));
    let what = match event.state {
        AlertState::Fired => "fired on",
        AlertState::Resolved => "is over on",
    };
    let mut text = format!("{} {what} {subject}{sensor}: {}", event.rule, Reason(event));
    if event.historical {
        text.push_str("; it is told late, for the record");
    }
    text
}

/// Why an alert was raised, and for how long: of findings the figures, of a machine event its own text.
struct Reason<'a>(&'a AlertEvent);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        if event.threshold.is_empty() {
            let detail = match cut(&event.detail) {
                "" => "the machine says so",
                detail => detail,
            };
            return write!(formatter, "{detail}, at {}", event.window_start);
        }
        let AlertEvent { threshold, observed, count, window_start, window_end, .. } = event;
        write!(formatter, "{threshold} (it is {observed}), {count} readings")?;
        if event.findings > 1 {
            write!(formatter, " in the worst of {} windows", event.findings)?;
        }
        write!(formatter, " between {window_start} and {window_end}")?;
        match cut(&event.detail) {
            "" => Ok(()),
            detail => write!(formatter, "; {detail}"),
        }
    }
}

/// The text up to a limit, between two characters.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(DETAIL_BYTES_MAX)]
}

fn time(of: ProcessingTime) -> String {
    of.as_event_time().to_string()
}

fn text<D: Serialize, T: Serialize>(event: &CloudEvent<T, D>) -> Arc<str> {
    serde_json::to_string(event).expect("texts, numbers and lists of them").into()
}

#[cfg(test)]
pub(crate) mod tests;
