//! Decisions of the edge module, without IO: time and identity are arguments, actions are answers.
//!
//! `vibration` cuts blocks of samples into windows and `features` describes them; `interlock` decides when a
//! machine must stop; `fair` keeps one sensor from starving another. On the other path `deadband` holds back what says
//! nothing new and `outbox` keeps the books of what is owed to the cloud.

pub mod deadband;
pub mod fair;
pub mod features;
pub mod interlock;
pub mod outbox;
pub mod vibration;
