//! Traffic during a scenario, and what it cost.

pub mod load;
pub mod loss_meter;
pub mod tcp;
