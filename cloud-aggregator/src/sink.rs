//! Where rows and alerts leave.

pub mod alert;
pub mod alert_topic;
pub mod commit;
pub mod delta;
mod folder_store;
mod log_checkpoint;
pub mod maintenance;
pub mod rows;
pub mod state_file;
pub mod webhook;
