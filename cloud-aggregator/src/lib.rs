//! Counts anomalies from Kafka in event-time windows, writes Delta tables exactly once, alerts.
//!
//! [`source::kafka`] tells records and rebalances, [`counting`] turns them into rows with the decisions of
//! `aggregator-core`, [`sink::commit`] commits rows and offsets together, [`alerts`] keeps what is owed to
//! [`sink::alert_topic`] and [`sink::webhook`]. [`pipeline`] is the one loop over all of it, [`app`] the only place that
//! spawns. [`reload`] brings other rules into force, [`trial`] shows what rules make of a file. [`gap_watch`] looks for records
//! that are missing, [`commands`] look at the lake beside a running aggregator.

pub mod admin;
pub mod alerts;
pub mod app;
pub mod audit;
pub mod backoff;
pub mod causes;
pub mod cli;
pub mod commands;
pub mod config;
pub mod counting;
pub mod dead_letters;
pub mod forget;
pub mod gap_watch;
pub mod hand_over;
pub mod health;
pub mod lake_contract;
pub mod lake_copy;
pub mod lake_reader;
pub mod outcomes;
pub mod pipeline;
pub mod reload;
pub mod sink;
pub mod source;
pub mod telemetry;
pub mod trial;
