//! Decisions of the edge module, without IO: time and identity are arguments, actions are answers.
//!
//! `vibration` cuts blocks of samples into windows and `features` describes them; `condition` says what is wrong with a
//! sensor; `interlock` decides when a machine must stop; `fair` keeps one sensor from starving another. On the other path
//! `aggregate` folds readings of an interval into one, `deadband` holds back what says nothing new, `snapshot` keeps the
//! raw samples around a trip, `outbox` keeps the books of what is owed to the cloud, and `ledger` tells the cloud what to expect.
//! `upstream` says which way they leave, to Kafka or to the hub.
//! `hub` speaks with IoT Edge or IoT Hub: who we are there, topics, and the twin; `opc` reads what OPC Publisher sends through it.

pub mod aggregate;
pub mod baseline;
pub mod bearing;
pub mod condition;
pub mod deadband;
pub mod drift;
pub mod explanation;
pub mod fair;
pub mod features;
pub mod hub;
pub mod interlock;
pub mod ledger;
pub mod opc;
pub mod operation;
pub mod outbox;
pub mod snapshot;
pub mod upstream;
pub mod vibration;
