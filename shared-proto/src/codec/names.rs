//! Names that records repeat, kept so that each is checked and allocated once.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::HashSet;

use super::{DecodeError, Decoded, Encoding, checked_unit, decode_reading_with};
use crate::model::{DeviceId, MachineId, MetricType, NameError, SensorId};

/// Names of each kind that are kept; with one more all are forgotten.
const NAMES_MAX: usize = 65_536;

/// Where the names of a record come from.
pub(super) trait Names {
    fn sensor(&mut self, text: &str) -> Result<SensorId, NameError>;
    fn machine(&mut self, text: &str) -> Result<MachineId, NameError>;
    fn device(&mut self, text: &str) -> Result<DeviceId, NameError>;
    fn metric_type(&mut self, text: &str) -> Result<MetricType, NameError>;
    fn unit(&mut self, text: &str) -> Result<Arc<str>, DecodeError>;
}

/// Each name is made anew.
pub(super) struct Fresh;

impl Names for Fresh {
    fn sensor(&mut self, text: &str) -> Result<SensorId, NameError> {
        SensorId::new(text)
    }

    fn machine(&mut self, text: &str) -> Result<MachineId, NameError> {
        MachineId::new(text)
    }

    fn device(&mut self, text: &str) -> Result<DeviceId, NameError> {
        DeviceId::new(text)
    }

    fn metric_type(&mut self, text: &str) -> Result<MetricType, NameError> {
        MetricType::new(text)
    }

    fn unit(&mut self, text: &str) -> Result<Arc<str>, DecodeError> {
        checked_unit(text)
    }
}

/// Reads many records. One whose names it has seen, and without features, costs no allocation.
#[derive(Debug, Default)]
pub struct Decoder(Kept);

#[derive(Debug, Default)]
struct Kept {
    sensors: HashSet<SensorId>,
    machines: HashSet<MachineId>,
    devices: HashSet<DeviceId>,
    metric_types: HashSet<MetricType>,
    units: HashSet<Arc<str>>,
}

impl Decoder {
    /// Reads one reading.
    ///
    /// # Errors
    /// Anything that is not one valid reading.
    pub fn decode_reading(
        &mut self,
        bytes: &[u8],
        encoding: Encoding,
    ) -> Result<Decoded, DecodeError> {
        decode_reading_with(bytes, encoding, &mut self.0)
    }
}

impl Names for Kept {
    fn sensor(&mut self, text: &str) -> Result<SensorId, NameError> {
        kept(&mut self.sensors, text, SensorId::new)
    }

    fn machine(&mut self, text: &str) -> Result<MachineId, NameError> {
        kept(&mut self.machines, text, MachineId::new)
    }

    fn device(&mut self, text: &str) -> Result<DeviceId, NameError> {
        kept(&mut self.devices, text, DeviceId::new)
    }

    fn metric_type(&mut self, text: &str) -> Result<MetricType, NameError> {
        kept(&mut self.metric_types, text, MetricType::new)
    }

    fn unit(&mut self, text: &str) -> Result<Arc<str>, DecodeError> {
        kept(&mut self.units, text, checked_unit)
    }
}

fn kept<T: Borrow<str> + Clone + Eq + Hash, E>(
    names: &mut HashSet<T>,
    text: &str,
    new: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, E> {
    if let Some(name) = names.get(text) {
        return Ok(name.clone());
    }
    let name = new(text)?;
    if names.len() >= NAMES_MAX {
        names.clear();
    }
    names.insert(name.clone());
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_allocated_once_and_a_wrong_one_is_refused_each_time() {
        let mut decoder = Decoder::default();
        let record =
            br#"{"sensor_id":"s","timestamp":"2026-03-01T08:15:30Z","metric_type":"m","value":1}"#;
        let mut decode = |bytes: &[u8]| decoder.decode_reading(bytes, Encoding::Json);
        let first = decode(record).expect("valid").reading;
        let second = decode(record).expect("valid").reading;
        assert_eq!(first, second);
        assert_eq!(first.sensor_id.as_str().as_ptr(), second.sensor_id.as_str().as_ptr());
        let empty = String::from_utf8_lossy(record).replace("\"s\"", "\" \"");
        for _ in 0..2 {
            let error = decode(empty.as_bytes()).expect_err("a name of nothing but a space");
            assert_eq!(error.to_string(), "sensor_id is empty");
        }
    }

    #[test]
    fn more_names_than_are_kept_are_read_all_the_same() {
        let mut names = HashSet::default();
        for number in 0..=NAMES_MAX {
            let name = kept(&mut names, &number.to_string(), SensorId::new).expect("valid");
            assert_eq!(name.as_str(), number.to_string());
        }
        assert_eq!(names.len(), 1);
    }
}
