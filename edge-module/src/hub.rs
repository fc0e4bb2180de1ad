//! The link to Azure: as a module to edgeHub of IoT Edge, or as a device to an IoT Hub; one MQTT code path for both.
//!
//! ```text
//! hub -- desired properties --> link --> reload (checked whole, in force whole or refused whole) --> reported properties
//! hub -- direct methods ------> link --> methods --> answer
//! board (what /status shows) -> link --> reported properties
//! journal -> kafka (forwarder) -> telemetry -> link --> output, where `upstream.order` names the hub
//! hub -- messages to inputs --> link --> inputs --> stop path; recording -> journal --> acknowledgement
//! ```
//!
//! Nothing else depends on it: machines are protected and records are journalled without a hub, Kafka gets them where it is a way, and
//! the settings that the hub desired last hold from the disk. Every connection is made anew from nothing: fresh token, fresh
//! authorities, all subscriptions, then the whole twin.

pub mod access;
mod clock;
mod connection;
mod hmac;
mod inputs;
mod link;
mod measures;
mod methods;
pub mod preflight;
mod provisioning;
mod report;
mod sparing;
pub mod telemetry;
mod tls;
mod workload;

pub use inputs::{INPUT_QUEUE_LENGTH, InputLines, InputQueue, Inputs};
pub use link::{Link, Links};
