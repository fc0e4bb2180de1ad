//! `[[machines.bearings]]` and the speed of the shaft: what explains a spectrum.

use edge_core::bearing::BearingGeometry;
use serde::Deserialize;

use super::Machine;

/// Fastest shaft, in turns a minute.
const SHAFT_RPM_MAX: f64 = 1_000_000.0;

/// One entry of `[[machines.bearings]]`. Diameters in one unit, whatever it is.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bearing {
    /// For people.
    pub name: String,
    /// Balls or rollers of one row.
    pub rolling_elements: u32,
    /// Of a ball or roller.
    pub element_diameter: f64,
    /// Of the circle through their centres.
    pub pitch_diameter: f64,
    /// In degrees.
    #[serde(default)]
    pub contact_angle_deg: f64,
}

impl Bearing {
    /// As the core wants it.
    #[must_use]
    pub const fn geometry(&self) -> BearingGeometry {
        let Self { rolling_elements, element_diameter, pitch_diameter, contact_angle_deg, .. } =
            self;
        BearingGeometry {
            rolling_elements: *rolling_elements,
            element_diameter: *element_diameter,
            pitch_diameter: *pitch_diameter,
            contact_angle_deg: *contact_angle_deg,
        }
    }
}

impl Machine {
    /// What is wrong with its bearings and the speed of its shaft, with the key below the machine's.
    pub(super) fn bearing_faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        for (index, bearing) in self.bearings.iter().enumerate() {
            for fault in bearing.geometry().faults() {
                faults.push((format!("bearings[{index}]"), fault.to_string()));
            }
        }
        if let Some(rpm) = self.shaft_rpm.filter(|rpm| !(0.0..=SHAFT_RPM_MAX).contains(rpm)) {
            let text = format!("{rpm} is not within 0 to {SHAFT_RPM_MAX}");
            faults.push(("shaft-rpm".to_owned(), text));
        }
        faults
    }
}
