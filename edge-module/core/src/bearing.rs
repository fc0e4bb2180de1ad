//! Frequencies at which a damaged rolling bearing knocks, from its geometry.
//!
//! With n elements of diameter d on a pitch circle of diameter D, the contact angle φ and the shaft's speed 1:
//!
//! - cage (FTF) = ½ · (1 − d/D · cos φ)
//! - outer race (BPFO) = n/2 · (1 − d/D · cos φ)
//! - inner race (BPFI) = n/2 · (1 + d/D · cos φ)
//! - element (BSF) = D/(2d) · (1 − (d/D · cos φ)²)
//!
//! Source: Randall, Antoni, "Rolling element bearing diagnostics — a tutorial", Mechanical Systems and Signal Processing 25 (2011),
//! equations 1 to 4; the same in Randall, "Vibration-based Condition Monitoring" (2011). They hold for an outer ring that stands, an
//! inner ring that turns and elements that roll: real ones slip, and a line lies 1 to 2 % beside its place. A spot on an element
//! strikes both races in one turn, so its line is at 2 BSF.

use serde::{Deserialize, Serialize};

/// Most elements of a row.
pub const ROLLING_ELEMENTS_MAX: u32 = 1_000;

/// What a bearing's maker states. Both diameters in one unit, whichever: their ratio alone counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BearingGeometry {
    /// Balls or rollers of one row.
    pub rolling_elements: u32,
    /// Of a ball or roller.
    pub element_diameter: f64,
    /// Of the circle through the elements' centres.
    pub pitch_diameter: f64,
    /// 0 for a deep-groove or cylindrical roller bearing under radial load.
    #[serde(default)]
    pub contact_angle_deg: f64,
}

/// What cannot be in a geometry.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum BearingFault {
    /// No bearing has so many.
    #[error("rolling-elements is {0}: 2 to {ROLLING_ELEMENTS_MAX} are allowed")]
    RollingElements(u32),
    /// No length.
    #[error("element-diameter is {0}: it must be finite and above 0")]
    ElementDiameter(f64),
    /// No length.
    #[error("pitch-diameter is {0}: it must be finite and above 0")]
    PitchDiameter(f64),
    /// No angle of a bearing that turns.
    #[error("contact-angle-deg is {0}: 0 or more and less than 90 is allowed")]
    ContactAngle(f64),
    /// The elements would overlap.
    #[error(
        "{rolling_elements} elements of diameter {element_diameter} do not fit on a \
         pitch-diameter of {pitch_diameter}"
    )]
    NoRoom {
        /// How many.
        rolling_elements: u32,
        /// Of one.
        element_diameter: f64,
        /// Of the circle through their centres.
        pitch_diameter: f64,
    },
}

/// Frequencies as multiples of the shaft's speed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BearingFrequencies {
    /// A turn of the cage (FTF).
    pub cage: f64,
    /// An element passes a spot of the outer race (BPFO).
    pub outer: f64,
    /// An element passes a spot of the inner race (BPFI).
    pub inner: f64,
    /// A turn of an element about itself (BSF).
    pub element: f64,
}

impl BearingGeometry {
    /// Everything that cannot be.
    #[must_use]
    pub fn faults(&self) -> Vec<BearingFault> {
        let Self { rolling_elements, element_diameter, pitch_diameter, contact_angle_deg } = *self;
        let is_length = |length: f64| length.is_finite() && length > 0.0;
        let mut faults = Vec::new();
        if !(2..=ROLLING_ELEMENTS_MAX).contains(&rolling_elements) {
            faults.push(BearingFault::RollingElements(rolling_elements));
        }
        if !is_length(element_diameter) {
            faults.push(BearingFault::ElementDiameter(element_diameter));
        }
        if !is_length(pitch_diameter) {
            faults.push(BearingFault::PitchDiameter(pitch_diameter));
        }
        if !(0.0..90.0).contains(&contact_angle_deg) {
            faults.push(BearingFault::ContactAngle(contact_angle_deg));
        }
        // Neighbouring centres are a chord of the pitch circle apart.
        let chord = pitch_diameter * (std::f64::consts::PI / f64::from(rolling_elements)).sin();
        if faults.is_empty() && element_diameter > chord {
            faults.push(BearingFault::NoRoom {
                rolling_elements,
                element_diameter,
                pitch_diameter,
            });
        }
        faults
    }

    /// The frequencies, as multiples of the shaft's speed.
    ///
    /// # Errors
    /// All of [`Self::faults`], if there is one.
    pub fn frequencies(&self) -> Result<BearingFrequencies, Vec<BearingFault>> {
        let faults = self.faults();
        if !faults.is_empty() {
            return Err(faults);
        }
        let elements = f64::from(self.rolling_elements);
        let diameters = self.element_diameter / self.pitch_diameter;
        let ratio = diameters * self.contact_angle_deg.to_radians().cos();
        Ok(BearingFrequencies {
            cage: 0.5 * (1.0 - ratio),
            outer: 0.5 * elements * (1.0 - ratio),
            inner: 0.5 * elements * (1.0 + ratio),
            element: 0.5 / diameters * (1.0 - ratio * ratio),
        })
    }
}

impl BearingFrequencies {
    /// The lines of damage with their usual short names, as multiples of the shaft's speed.
    #[must_use]
    pub const fn lines(&self) -> [(&'static str, f64); 4] {
        [
            ("FTF", self.cage),
            ("BPFO", self.outer),
            ("BPFI", self.inner),
            ("2 BSF", 2.0 * self.element),
        ]
    }
}

#[cfg(test)]
mod tests;
