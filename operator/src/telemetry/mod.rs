//! What the operator tells of itself: metrics, health.

pub mod admin;
pub mod metrics;
