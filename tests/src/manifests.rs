//! What is deployed, read and checked as the services that take it would.

pub mod cloud;
pub mod edge;
