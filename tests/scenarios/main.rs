//! Scenarios: both programs as processes, a real mosquitto, a real Apache Kafka; results are read with a reader that is not
//! ours. One Kafka serves all of them, each with topics, a group, a broker and folders of its own.
//!
//! What a scenario leaves behind lies in `target/tmp/scenarios-<process id>/<name>` and is deleted by the next run.

#[allow(dead_code, reason = "each test binary uses its part of it")]
#[path = "../../edge-module/tests/disk/mod.rs"]
mod disk;

mod actions;
mod adls;
mod alerting;
mod alerting_rebalances;
mod api_fuzz;
mod audit;
mod backfill;
mod bad_input;
mod bad_messages;
mod brokers;
mod cloud_manifests;
mod commissioning;
mod containers;
mod databricks;
mod dead_letters;
mod edge_manifests;
mod event_hubs;
mod exactly_once;
mod feedback;
mod feeder;
mod foreign_writer;
mod gaps;
mod gateway;
mod hub_attack;
mod hub_endpoint;
mod hub_inputs;
mod hub_link;
mod hub_models;
mod hub_provisioning;
mod hub_stand_in;
mod hub_upstream;
mod kafka_faults;
mod lake_copy;
mod lake_disk;
mod lake_forget;
mod lake_upkeep;
mod live_settings;
mod model_evaluation;
mod models;
mod offline_gateway;
mod operation;
mod outages;
mod pair;
mod plant;
mod readers;
mod rebalances;
mod rules;
mod runbook;
mod servers;
mod stop_isolation;
mod stop_path;
mod storage_faults;
mod triggers;
mod waveforms;
