//! The local broker: sensors and machine reports in, stop commands out.

pub mod actuator;
pub mod source;
