//! The contract between `edge-module`, `cloud-aggregator` and whoever else produces or reads the topics.
//!
//! [`model`] holds the validated domain types, [`wire`] the generated protobuf types with topic, header and
//! property names, `json` the JSON form, [`sequences`] sets of record numbers. Bytes become domain types through [`codec`] and nowhere else, so a
//! value of a domain type has passed every check.

pub mod codec;
mod json;
pub mod model;
pub mod sequences;
pub mod wire;

pub use codec::{DecodeError, Encoding};
