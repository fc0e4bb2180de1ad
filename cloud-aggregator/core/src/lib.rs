//! Decisions of the cloud aggregator, without clock, socket, file, thread or randomness.
//!
//! A record of one Kafka partition goes through [`partition::PartitionState`]:
//!
//! ```text
//! handle_reading -> dedup (seen before?) -> limits -> watermark (late? what closes?) -> window (count)
//!        `-> Disposition: what becomes of the record       `-> Outputs: rows of `anomalies`, findings -> alert::AlertBook
//! ```
//!
//! An [`alert::AlertBook`] makes one alert of the findings of a machine and rule while they last, and of trips.
//!
//! [`gaps`] holds the tables against the ledgers of the devices.
//! [`checkpoint`] decides what one epoch commits together and what a start finds of it, [`maintenance`] what becomes of the
//! files that epochs leave. Time is an argument:
//! [`time::ProcessingTime`] is when the aggregator looks, `EventTime` is when a sensor measured.

pub mod accounting;
pub mod alert;
pub mod checkpoint;
pub mod dedup;
pub mod exact;
pub mod filter;
pub mod gaps;
pub mod hub;
pub mod maintenance;
pub mod partition;
pub mod ranges;
pub mod rows;
pub mod rule;
pub mod settings;
pub mod time;
pub mod watermark;
pub mod window;

pub use accounting::{Accounting, Disposition};
pub use alert::{AlertBook, AlertEvent, AlertGroup, AlertSettings, AlertState, Finding};
pub use filter::Filter;
pub use partition::{Outputs, PartitionState};
pub use rule::{Aggregate, Comparison, GroupBy, OutputMode, Rule, Threshold};
pub use settings::{Settings, SettingsFault};
pub use time::{Micros, ProcessingTime};
pub use window::{AnomalyRow, ClosedBy};
