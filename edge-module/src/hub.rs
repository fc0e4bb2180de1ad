//! The link to Azure: as a module to edgeHub of IoT Edge, or as a device to an IoT Hub; one MQTT code path for both.
//!
//! ```text
//! hub -- desired properties --> link --> reload (checked whole, in force whole or refused whole) --> reported properties
//! hub -- direct methods ------> link --> methods --> answer
//! board (what /status shows) -> link --> reported properties
//! ```
//!
//! Nothing else depends on it: machines are protected, records are journalled and sent without a hub, and the settings that
//! it desired last hold from the disk. Every connection is made anew from nothing: fresh token, fresh authorities, all
//! subscriptions, then the whole twin.

pub mod access;
mod connection;
mod link;
mod methods;
mod report;
mod sparing;
mod workload;

pub use link::{Link, Links};
