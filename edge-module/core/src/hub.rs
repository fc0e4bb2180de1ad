//! The link to Azure IoT Edge or IoT Hub, without IO: what to say, what was said, and what is still owed.
//!
//! `identity` tells who connects and what it signs; `topics` names what is published and subscribed and reads what arrives, with
//! the property bags of `properties`; `provisioning` asks which hub a device belongs to, and `certificate` says until when its
//! certificate holds; `twin` keeps the desired properties up to date and the reported ones true. A module under
//! IoT Edge and a plain device differ in their identity alone.

pub mod certificate;
pub mod identity;
pub mod properties;
pub mod provisioning;
pub mod topics;
pub mod twin;
