//! Telemetry of the agent: metrics, health, failures in the log.

pub mod admin;
pub mod failure_log;
pub mod health;
pub mod metrics;
