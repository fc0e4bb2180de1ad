//! The edge module: reads machine sensors, stops the machine at once, journals, forwards to Kafka.
//!
//! Two paths that share nothing but the local broker:
//!
//! ```text
//! mqtt::source (protection) -> backlog -> analysis -> [interlock] -> actuation              protection, own thread
//! mqtt::source (recording)  -> intake -> analysis -> [deadband]  -> journal (store) -> kafka
//! hub (desired properties)  -> reload -> both, models              settings; nothing waits for it
//! ```
//!
//! Decisions are in `edge-core`; here is what touches the world.

pub mod actuation;
pub mod admin;
pub mod analysis;
pub mod app;
pub mod backlog;
pub mod baseline_tool;
pub mod bundle_store;
pub mod calibration;
pub mod cli;
pub mod config;
pub mod data_dir;
pub mod durable;
pub mod explain;
pub mod explanations;
pub mod hub;
pub mod intake;
pub mod journal;
pub mod journal_tool;
pub mod judge;
pub mod kafka;
pub mod latch;
pub mod limits;
pub mod log_output;
pub mod models;
pub mod mqtt;
pub mod protection;
pub mod recognition;
pub mod recording;
pub mod reload;
pub mod scoring;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod watchdog;
