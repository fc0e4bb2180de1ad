//! What tests and the demo need beyond one package: servers on free ports, child processes, recordings, an independent
//! reader of the lake, simulated machines and signals, a stand-in for IoT Edge and IoT Hub.
//!
//! Everything listens on 127.0.0.1 on a port that was free, writes below a folder that the caller names, and ends with the
//! process that started it, even when that process is killed.

pub mod azurite;
pub mod bench;
pub mod cloud_aggregator;
pub mod containers;
pub mod demo;
pub mod edge_module;
pub mod eventually;
pub mod http;
pub mod http_proxy;
pub mod hub;
pub mod kafka;
pub mod lake;
pub mod machine;
pub mod manifests;
pub mod modbus_machine;
pub mod mosquitto;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod publisher;
pub mod random;
pub mod recordings;
pub mod signal;
pub mod tokens;
pub mod workflow;

use std::path::PathBuf;

/// The checkout's root folder.
///
/// # Panics
/// Never: this package lies one level below the root.
#[must_use]
pub fn workspace_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package lies one level below the root")
        .to_owned()
}

/// What the set-up step has installed.
#[must_use]
pub fn setup_dir() -> PathBuf {
    workspace_root().join("target/setup")
}
