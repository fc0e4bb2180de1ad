//! What a stand-in has seen.

use std::collections::BTreeMap;
use std::time::Instant;

use rumqttc::PacketType;

/// A message that the hub took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubMessage {
    /// The number of the connection that brought it.
    pub connection: u64,
    /// Its sender's device.
    pub device: String,
    /// Its sender's module, if it was one.
    pub module: Option<String>,
    /// What routes go by.
    pub output: Option<String>,
    /// Without those of the system.
    pub properties: BTreeMap<String, String>,
    /// `$.ct` and such, without `$.on`.
    pub system: BTreeMap<String, String>,
    /// As sent.
    pub body: Vec<u8>,
    /// Its sender says that it may have been sent before.
    pub is_duplicate: bool,
}

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To this server.
    FromClient,
    /// From this server.
    ToClient,
}

/// A packet on the wire.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// When it was read or written.
    pub at: Instant,
    /// Numbers grow with time and are given once.
    pub connection: u64,
    /// Which way.
    pub direction: Direction,
    /// CONNECT, PUBLISH and so on.
    pub kind: PacketType,
    /// Of a publish; filters of a subscription, separated by spaces.
    pub topic: Option<String>,
    /// The whole packet.
    pub bytes: Vec<u8>,
}

/// Something that the hub did not stand: most of them end the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which connection.
    pub connection: u64,
    /// For people.
    pub reason: String,
}
