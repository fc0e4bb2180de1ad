//! The contract between `edge-module`, `cloud-aggregator` and whoever else produces or reads the topics.
//!
//! [`model`] holds the validated domain types, [`wire`] the generated protobuf types with topic, header and
//! property names, `json` the JSON form. Bytes become domain types through [`codec`] and nowhere else, so a
//! value of a domain type has passed every check.

pub mod codec;
mod json;
pub mod model;
pub mod wire;

pub use codec::{DecodeError, Encoding};
