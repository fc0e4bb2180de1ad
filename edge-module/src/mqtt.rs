//! Sessions with MQTT brokers.

pub mod source;
