//! Which node is which sensor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shared_proto::model::{EventTime, MachineId, MetricType, Reading, SensorId, UNIT_BYTES_MAX};

/// How a node is named in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeName {
    /// By its id, byte for byte as OPC Publisher writes it: `NodeId` of a sample, or a data set's name of a field.
    Node(String),
    /// By a name: `DisplayName` of a sample, or a data set's name of a field.
    Field(String),
}

impl NodeName {
    fn text(&self) -> &str {
        match self {
            Self::Node(text) | Self::Field(text) => text,
        }
    }
}

/// A node, and what its values become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeMapping {
    /// Its name.
    pub name: NodeName,
    /// Only of this data set writer, by `DataSetWriterName` or `DataSetWriterId`. Samples have no writer.
    pub writer: Option<String>,
    /// Only of this server, by `EndpointUrl` or `ApplicationUri` of a sample or `PublisherId` of a network message.
    pub server: Option<String>,
    /// Who measured.
    pub sensor: SensorId,
    /// Which machine the sensor sits on.
    pub machine: Option<MachineId>,
    /// What.
    pub metric_type: MetricType,
    /// In which unit.
    pub unit: Option<Arc<str>>,
}

impl NodeMapping {
    /// A reading of this sensor.
    pub(super) fn reading(&self, time: EventTime, value: f64) -> Reading {
        let (sensor, metric_type) = (self.sensor.clone(), self.metric_type.clone());
        let mut reading = Reading::new(sensor, time, metric_type, value);
        reading.machine_id.clone_from(&self.machine);
        reading.unit.clone_from(&self.unit);
        reading
    }

    /// How much narrower than the name alone, or nothing if it is another's.
    fn narrowness(&self, source: &Source<'_>) -> Option<u8> {
        let name = match self.name {
            NodeName::Node(_) => source.node,
            NodeName::Field(_) => source.field,
        };
        let is_of = |wanted: &Option<String>, found: [Option<&str>; 2]| {
            wanted.as_deref().is_none_or(|wanted| found.contains(&Some(wanted)))
        };
        let fits = name == Some(self.name.text())
            && is_of(&self.writer, source.writers)
            && is_of(&self.server, source.servers);
        let is_node = matches!(self.name, NodeName::Node(_));
        let set = [is_node, self.writer.is_some(), self.server.is_some()];
        fits.then(|| set.into_iter().map(u8::from).fold(0, |sum, bit| sum * 2 + bit))
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) node: Option<&'a str>,
    pub(super) field: Option<&'a str>,
    pub(super) writers: [Option<&'a str>; 2],
    pub(super) servers: [Option<&'a str>; 2],
}

impl<'a> Source<'a> {
    /// For people.
    pub(super) fn name(&self) -> &'a str {
        self.node.or(self.field).unwrap_or_default()
    }
}

/// What is wrong with a mapping.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MappingFault {
    /// A text without characters.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A unit over its limit.
    #[error("unit has {0} bytes, at most {UNIT_BYTES_MAX} are allowed")]
    Unit(usize),
    /// The same node again.
    #[error("{0:?} is there twice for the same writer and server")]
    NodeTwice(String),
    /// Another node's sensor again: their values would mix.
    #[error("{metric_type} of sensor {sensor} is another node's already")]
    SensorTwice {
        /// Which sensor.
        sensor: SensorId,
        /// What it measures.
        metric_type: MetricType,
    },
}

/// All nodes that are read. Of several that fit a value the one named by its id goes first, then the one of its writer, then
/// the one of its server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    nodes: BTreeMap<String, Vec<NodeMapping>>,
}

impl Mapping {
    /// Checks and takes over the nodes.
    ///
    /// # Errors
    /// All faults, each with the place of its node.
    pub fn new(nodes: Vec<NodeMapping>) -> Result<Self, Vec<(usize, MappingFault)>> {
        let mut faults = Vec::new();
        let (mut names, mut sensors) = (BTreeSet::new(), BTreeSet::new());
        for (place, node) in nodes.iter().enumerate() {
            let name = Some(node.name.text());
            let texts = [
                ("node or field", name),
                ("writer", node.writer.as_deref()),
                ("server", node.server.as_deref()),
                ("unit", node.unit.as_deref()),
            ];
            for (what, text) in texts {
                if text.is_some_and(|text| text.trim().is_empty()) {
                    faults.push((place, MappingFault::Empty(what)));
                }
            }
            let unit_bytes = node.unit.as_deref().map_or(0, str::len);
            if unit_bytes > UNIT_BYTES_MAX {
                faults.push((place, MappingFault::Unit(unit_bytes)));
            }
            let is_node = matches!(node.name, NodeName::Node(_));
            if !names.insert((is_node, name, &node.writer, &node.server)) {
                faults.push((place, MappingFault::NodeTwice(node.name.text().to_owned())));
            }
            if !sensors.insert((&node.sensor, &node.metric_type)) {
                let (sensor, metric_type) = (node.sensor.clone(), node.metric_type.clone());
                faults.push((place, MappingFault::SensorTwice { sensor, metric_type }));
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut this = Self::default();
        for node in nodes {
            this.nodes.entry(node.name.text().to_owned()).or_default().push(node);
        }
        Ok(this)
    }

    /// The node that a value is of.
    pub(super) fn find(&self, source: &Source<'_>) -> Option<&NodeMapping> {
        let named = |name: Option<&str>| name.and_then(|name| self.nodes.get(name));
        let candidates = named(source.node).into_iter().chain(named(source.field)).flatten();
        candidates
            .filter_map(|node| Some((node.narrowness(source)?, node)))
            .max_by_key(|(narrowness, _)| *narrowness)
            .map(|(_, node)| node)
    }
}
