//! The demo: three machines, one fault, one network cut, and nothing lost.
//!
//! [`script`] tells the story and asks [`services`] for the brokers and the two programs; [`plant`] and [`machine`] are
//! the machines, [`figures`] and [`narrator`] what the reader sees. At the end [`verdict`] holds the tables, read by
//! [`tables`], against what the machines made.

pub mod configuration;
pub mod embedded;
pub mod figures;
pub mod machine;
pub mod narrator;
pub mod plant;
pub mod replay;
pub mod report;
pub mod script;
pub mod services;
pub mod tables;
pub mod verdict;

pub use script::{Options, run};
