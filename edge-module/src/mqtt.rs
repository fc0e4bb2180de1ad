//! Sessions with MQTT brokers.

pub mod sensors;
pub mod source;
