//! Traffic during a scenario, and its losses.

pub mod load;
pub mod loss_meter;
pub mod tcp;
