//! What the operator tells of itself: logs, metrics, health.

pub mod admin;
pub mod logging;
pub mod metrics;
