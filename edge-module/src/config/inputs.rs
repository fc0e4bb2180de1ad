//! `[opc-publisher]`: messages of OPC Publisher that a hub's routes bring to inputs of the module.

use std::time::Duration;

use edge_core::opc::{Mapping, NodeMapping, NodeName, OpcLimits};
use serde::Deserialize;
use shared_proto::model::{MachineId, MetricType, SensorId};

use super::Machine;
use super::validate::Faults;

/// As many as one array of readings may have by MQTT, tenfold: more is no message of a hub, which takes 256 KiB.
const VALUES_MAX: usize = 100_000;

/// `[opc-publisher]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OpcPublisher {
    /// Names of the inputs that are read.
    pub inputs: Vec<String>,
    /// Values that are older when they come are recorded, not judged.
    #[serde(with = "humantime_serde")]
    pub judged_within: Duration,
    /// Values of one message.
    pub values_max: usize,
    /// Which node is which sensor.
    pub nodes: Vec<OpcNode>,
}

/// One entry of `[[opc-publisher.nodes]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OpcNode {
    /// Its id.
    #[serde(default)]
    pub node: Option<String>,
    /// Or its name.
    #[serde(default)]
    pub field: Option<String>,
    /// Only of this data set writer.
    #[serde(default)]
    pub writer: Option<String>,
    /// Only of this server.
    #[serde(default)]
    pub server: Option<String>,
    /// What it is here.
    pub sensor: SensorId,
    /// On which machine.
    #[serde(default)]
    pub machine: Option<MachineId>,
    /// What it measures.
    pub metric_type: MetricType,
    /// In which unit.
    #[serde(default)]
    pub unit: Option<String>,
}

impl OpcNode {
    fn mapping(&self) -> Result<NodeMapping, &'static str> {
        let name = match (&self.node, &self.field) {
            (Some(node), None) => NodeName::Node(node.clone()),
            (None, Some(field)) => NodeName::Field(field.clone()),
            (None, None) | (Some(_), Some(_)) => return Err("needs one of node and field"),
        };
        Ok(NodeMapping {
            name,
            writer: self.writer.clone(),
            server: self.server.clone(),
            sensor: self.sensor.clone(),
            machine: self.machine.clone(),
            metric_type: self.metric_type.clone(),
            unit: self.unit.as_deref().map(Into::into),
        })
    }
}

impl OpcPublisher {
    /// As the core wants it.
    ///
    /// # Errors
    /// All faults, each with the place of its node.
    pub fn mapping(&self) -> Result<Mapping, Vec<(usize, String)>> {
        let mut faults = Vec::new();
        let mut nodes = Vec::new();
        for (place, node) in self.nodes.iter().enumerate() {
            match node.mapping() {
                Ok(mapping) => nodes.push(mapping),
                Err(text) => faults.push((place, text.to_owned())),
            }
        }
        // Places are right only while none is missing.
        if !faults.is_empty() {
            return Err(faults);
        }
        let text =
            |(place, fault): (usize, edge_core::opc::MappingFault)| (place, fault.to_string());
        Mapping::new(nodes).map_err(|faults| faults.into_iter().map(text).collect())
    }

    /// Of one message.
    #[must_use]
    pub fn limits(&self, payload_bytes_max: usize) -> OpcLimits {
        OpcLimits {
            payload_bytes_max,
            values_max: self.values_max,
            judged_within_micros: i64::try_from(self.judged_within.as_micros()).unwrap_or(i64::MAX),
        }
    }

    pub(super) fn check(&self, machines: &[Machine], faults: &mut Faults) {
        let (low, high) = (Duration::from_millis(100), Duration::from_secs(3600));
        faults.duration("opc-publisher.judged-within", self.judged_within, low, high);
        faults.range("opc-publisher.values-max", self.values_max, 1, VALUES_MAX);
        for name in &self.inputs {
            if name.is_empty() || name.contains(['/', '+', '#']) {
                faults.add("opc-publisher.inputs", format!("{name:?} is no name of an input"));
            }
        }
        for (place, fault) in self.mapping().err().unwrap_or_default() {
            faults.add(format!("opc-publisher.nodes[{place}]"), fault);
        }
        for (place, node) in self.nodes.iter().enumerate() {
            let Some(machine) = &node.machine else { continue };
            let is_of = |other: &&Machine| {
                let limited = other.limits.iter().map(|limit| &limit.sensor);
                let conditioned = other.sensors.iter().map(|sensor| &sensor.id);
                let mut sensors = limited.chain(other.scored()).chain(conditioned);
                other.id != *machine && sensors.any(|sensor| *sensor == node.sensor)
            };
            if let Some(other) = machines.iter().find(is_of) {
                let text =
                    format!("{machine} has it, but {} of {} names it", node.sensor, other.id);
                faults.add(format!("opc-publisher.nodes[{place}].machine"), text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Settings;

    fn complaint(text: &str) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("edge.toml");
        std::fs::write(&file, text).expect("writing");
        match Settings::load(Some(&file)) {
            Ok(settings) => format!("{} nodes", settings.opc_publisher.nodes.len()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn by_default_one_input_is_read_and_no_node_is_known() {
        let settings = Settings::load(None::<&Path>).expect("defaults are valid");
        assert_eq!(settings.opc_publisher.inputs, ["opc"]);
        assert_eq!(settings.opc_publisher.mapping(), Ok(Default::default()));
    }

    #[test]
    fn a_node_has_one_name_and_belongs_to_the_machine_whose_rules_name_its_sensor() {
        let machine = "[[machines]]\nid = \"press-1\"\n[[machines.limits]]\nname = \"hot\"\n\
                       sensor = \"oil\"\nquantity = \"value\"\nabove = 80.0\n";
        let node = |more: &str| {
            let start =
                "[[opc-publisher.nodes]]\nsensor = \"oil\"\nmetric-type = \"temperature\"\n";
            complaint(&format!("{machine}{start}{more}"))
        };
        assert_eq!(node("node = \"i=7\"\nmachine = \"press-1\"\nunit = \"Cel\""), "1 nodes");
        assert_eq!(node("field = \"Oil\"\nwriter = \"1\"\nserver = \"opc.tcp://plc/\""), "1 nodes");
        for (more, expected) in [
            ("", "opc-publisher.nodes[0]: needs one of node and field"),
            ("node = \"i=7\"\nfield = \"Oil\"", "nodes[0]: needs one of node and field"),
            ("node = \" \"", "nodes[0]: node or field is empty"),
            ("node = \"i=7\"\nmachine = \"press-2\"", "nodes[0].machine: press-2 has it, but oil"),
            ("nod = \"i=7\"", "opc-publisher.nodes[0].nod: unknown key"),
            ("node = 7", "opc-publisher.nodes[0].node"),
        ] {
            let text = node(more);
            assert!(text.contains(expected), "{more}: {text}");
        }
    }

    #[test]
    fn limits_and_names_of_inputs_are_checked() {
        for (line, expected) in [
            ("inputs = [\"a/b\"]", "opc-publisher.inputs: \"a/b\" is no name of an input"),
            ("judged-within = \"1ms\"", "opc-publisher.judged-within"),
            ("values-max = 0", "opc-publisher.values-max: 0 is out of range"),
        ] {
            let text = complaint(&format!("[opc-publisher]\n{line}\n"));
            assert!(text.contains(expected), "{line}: {text}");
        }
    }
}
