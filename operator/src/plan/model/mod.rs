//! The input and output of a plan.

pub mod cluster_state;
pub mod index;
pub mod node;
pub mod secret;
