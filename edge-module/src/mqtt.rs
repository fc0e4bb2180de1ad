//! Sessions with MQTT brokers.

pub mod acknowledgements;
pub mod sensors;
pub mod source;
