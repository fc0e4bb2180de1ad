//! Alerts as CloudEvents 1.0 (JSON) with the Azure Monitor common alert schema as data.
//!
//! Sources: CloudEvents 1.0.2 JSON format; "Common alert schema" of the Azure Monitor documentation.

use std::sync::Arc;

use aggregator_core::Alert;
use serde_json::json;

/// Content type of the body.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";
/// `type` of the CloudEvents.
pub const EVENT_TYPE: &str = "predictive-maintenance.alert.fired.v1";

/// Where an alert goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// A Kafka topic.
    Topic,
    /// An HTTP endpoint.
    Webhook,
}

impl Channel {
    /// The word used in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Webhook => "webhook",
        }
    }
}

/// One alert on its way into a channel.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Idempotency key.
    pub id: Arc<str>,
    /// Key of the Kafka record: the sensor or machine.
    pub key: Arc<str>,
    /// The CloudEvent.
    pub body: Arc<str>,
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

/// Makes the CloudEvent of an alert. The same alert gives the same bytes.
#[must_use]
pub fn delivery(alert: &Alert, source: &str) -> Delivery {
    let fired = alert.fired_at.as_event_time().to_string();
    let target = alert.machine_id.as_ref().map_or(alert.group(), |id| id.as_str());
    let what = if alert.sensor_id.is_some() { "sensor" } else { "machine" };
    let description = format!(
        "{}: {} (it is {}) of {what} {}, {} readings between {} and {}",
        alert.rule,
        alert.threshold,
        alert.observed,
        alert.group(),
        alert.count,
        alert.window_start,
        alert.window_end
    );
    let body = json!({
        "specversion": "1.0",
        "id": alert.id,
        "source": source,
        "type": EVENT_TYPE,
        "subject": alert.group(),
        "time": fired,
        "datacontenttype": "application/json",
        "data": {
            "schemaId": "azureMonitorCommonAlertSchema",
            "data": {
                "essentials": {
                    "alertId": alert.id,
                    "alertRule": alert.rule,
                    "severity": format!("Sev{}", alert.severity),
                    "signalType": "Metric",
                    "monitorCondition": "Fired",
                    "monitoringService": "cloud-aggregator",
                    "alertTargetIDs": [target],
                    "originAlertId": alert.id,
                    "firedDateTime": fired,
                    "description": description,
                    "essentialsVersion": "1.0",
                    "alertContextVersion": "1.0",
                },
                "alertContext": {
                    "rule": alert.rule,
                    "sensorId": alert.sensor_id.as_ref().map(|id| id.as_str().to_owned()),
                    "machineId": alert.machine_id.as_ref().map(|id| id.as_str().to_owned()),
                    "windowStart": alert.window_start.to_string(),
                    "windowEnd": alert.window_end.to_string(),
                    "count": alert.count,
                    "threshold": alert.threshold.to_string(),
                    "observed": alert.observed,
                    "historical": alert.historical,
                },
            },
        },
    });
    Delivery {
        id: alert.id.as_str().into(),
        key: alert.group().into(),
        body: body.to_string().into(),
    }
}
