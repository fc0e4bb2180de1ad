//! What settings expect of a hub, before there is a connection: what cannot be, what a person may have meant otherwise, and what
//! is in force. `check-config` prints it; a start tells the first two in the log.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};
use edge_core::upstream::Ways;

use super::access::{Access, AccessError, is_wanted};
use crate::config::{HubMode, IotHub, Settings};

/// What is found.
#[derive(Debug, Default)]
pub struct Preflight {
    /// What cannot be as it is, with its key and the remedy.
    pub faults: Vec<String>,
    /// What may be a mistake.
    pub notes: Vec<String>,
    /// What is in force, without secrets.
    pub lines: Vec<String>,
}

impl Preflight {
    /// Of settings and the link that is made of them. Reads certificates and the modes of secrets, and may wait for their disk.
    #[must_use]
    pub fn of(settings: &Settings, access: &Result<Option<Access>, AccessError>) -> Self {
        let mut found = Self::default();
        match access {
            Ok(Some(access)) => found.look_at_files(settings, access),
            Ok(None) => found.lines.push(format!("hub: no link, {}", reason(&settings.iot_hub))),
            Err(error) => found.faults.push(error.to_string()),
        }
        found.look_at_link(settings, access);
        found.lines.push(upstream_line(settings));
        found.lines.push(opc_line(settings));
        found.notes.extend(open_secrets(&settings.iot_hub));
        found
    }

    /// Faults and notes for which nothing has to be read.
    #[must_use]
    pub fn without_files(
        settings: &Settings,
        access: &Result<Option<Access>, AccessError>,
    ) -> Self {
        let mut found = Self::default();
        found.look_at_link(settings, access);
        found
    }

    fn look_at_files(&mut self, settings: &Settings, access: &Access) {
        let mut line = link_line(settings, access);
        match access.read_files() {
            Err(error) => self.faults.push(error.to_string()),
            Ok(None) => {}
            Ok(Some(ends)) => {
                let day = DateTime::<Utc>::from_timestamp(ends, 0);
                let day = day.map(|day| day.to_rfc3339_opts(SecondsFormat::Secs, true));
                let day = day.unwrap_or_else(|| ends.to_string());
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                if ends.saturating_sub_unsigned(now.as_secs()) < 0 {
                    self.faults.push(format!(
                        "iot-hub.certificate-file: its certificate has ended at {day}: put another one in its place"
                    ));
                }
                line = format!("{line}, which ends at {day}");
            }
        }
        self.lines.push(line);
    }

    fn look_at_link(&mut self, settings: &Settings, access: &Result<Option<Access>, AccessError>) {
        let nodes = &settings.opc_publisher.nodes;
        let has_no_inputs = match access {
            Ok(None) => {
                self.faults.extend(hub_without_link(settings));
                Some(format!("there is no link, {}", reason(&settings.iot_hub)))
            }
            Ok(Some(access)) if access.identity().module_id.is_none() => {
                Some("this is a device, to which no route leads".to_owned())
            }
            // What is wrong with the link is told already.
            Ok(Some(_)) | Err(_) => None,
        };
        if let Some(why) = has_no_inputs.filter(|_| !nodes.is_empty()) {
            self.faults.push(format!(
                "opc-publisher.nodes: nobody brings their values: inputs are those of a module of IoT Edge, and {why}; run the module under IoT Edge, or take the nodes out"
            ));
        }
        let is_linked = !matches!(access, Ok(None));
        let may_come = is_linked && settings.iot_hub.may_be_desired("machines");
        for (place, node) in nodes.iter().enumerate() {
            let Some(machine) = &node.machine else { continue };
            if settings.machines.iter().any(|known| known.id == *machine) {
                continue;
            }
            let text =
                format!("opc-publisher.nodes[{place}].machine: no [[machines]] is {machine}");
            if may_come {
                self.notes.push(format!(
                    "{text}; {} is judged by nobody unless the hub desires it",
                    node.sensor
                ));
            } else {
                self.faults.push(format!("{text}; name it there, mend the name, or leave it away"));
            }
        }
    }
}

/// What is wrong with records that are to leave by a hub to which there shall be no link; nothing if that is not so.
#[must_use]
pub fn hub_without_link(settings: &Settings) -> Option<String> {
    settings.upstream.uses_hub().then(|| {
        format!(
            "upstream.order: names the hub, and there is no link, {}; set identity = \"device\" with a connection string or iot-hub.provisioning, run it under IoT Edge, or set order = [\"kafka\"]",
            reason(&settings.iot_hub)
        )
    })
}

/// As [`hub_without_link`], where the hub is the only way and this process is given no link: no record would ever leave.
#[must_use]
pub fn no_way_at_all(
    settings: &Settings,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<String> {
    match settings.upstream.ways() {
        Ways::Kafka | Ways::KafkaThenHub => None,
        Ways::Hub if is_wanted(&settings.iot_hub, variable) => None,
        Ways::Hub => hub_without_link(settings),
    }
}

/// Why there shall be no link.
const fn reason(settings: &IotHub) -> &'static str {
    match settings.identity {
        HubMode::Auto => {
            "since iot-hub.identity is \"auto\" and IoT Edge has not started this process"
        }
        HubMode::Off | HubMode::Module | HubMode::Device => "since iot-hub.identity is \"off\"",
    }
}

fn link_line(settings: &Settings, access: &Access) -> String {
    let (identity, host, proof) = (access.identity(), access.host(), access.proof_name());
    let port = settings.iot_hub.port;
    if let Some((service, registration)) = access.registration() {
        let (scope, id) = (&registration.id_scope, &registration.registration_id);
        let of_service = settings.iot_hub.provisioning.port;
        return format!(
            "hub: as registration {id} of scope {scope}, assigned by {service}:{of_service}, by {proof}"
        );
    }
    let who = match &identity.module_id {
        Some(module) => format!("module {module} of device {}", identity.device_id),
        None => format!("device {}", identity.device_id),
    };
    format!("hub: as {who} of {}, dialled at {host}:{port}, by {proof}", identity.hub_host)
}

fn upstream_line(settings: &Settings) -> String {
    let (upstream, brokers) = (&settings.upstream, &settings.kafka.brokers);
    let output = &upstream.output;
    match upstream.ways() {
        Ways::Kafka => format!("records: by kafka {brokers}"),
        Ways::Hub => format!("records: by the hub alone, output {output}"),
        Ways::KafkaThenHub => format!(
            "records: by kafka {brokers}; after {:?} without it by the hub, output {output}",
            upstream.hub_after
        ),
    }
}

fn opc_line(settings: &Settings) -> String {
    let opc = &settings.opc_publisher;
    match opc.nodes.len() {
        0 => "OPC Publisher: no node".to_owned(),
        nodes => format!("OPC Publisher: {nodes} nodes, from inputs {}", opc.inputs.join(", ")),
    }
}

/// Files with a secret of ours that everybody on this machine may read or change. Asks the disk.
#[must_use]
pub fn open_secrets(settings: &IotHub) -> Vec<String> {
    let provisioning = &settings.provisioning;
    let files = [
        ("connection-string-file", &settings.connection_string_file),
        ("private-key-file", &settings.private_key_file),
        ("provisioning.symmetric-key-file", &provisioning.symmetric_key_file),
        ("provisioning.group-key-file", &provisioning.group_key_file),
    ];
    let note = |(key, path): (&str, &PathBuf)| {
        // One that is not there is named where it is read.
        let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o7777;
        let path = path.display();
        (mode & OTHERS != 0).then(|| {
            format!(
                "iot-hub.{key}: {path} has mode {mode:04o}: everybody on this machine may use this secret; chmod o= {path}"
            )
        })
    };
    files.into_iter().filter_map(note).collect()
}

/// Permissions of those who are neither the owner nor of the group.
const OTHERS: u32 = 0o006;

#[cfg(test)]
mod tests;
