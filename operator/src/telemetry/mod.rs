//! Metrics and health endpoints of the operator.

pub mod admin;
pub mod metrics;
