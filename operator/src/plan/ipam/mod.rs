//! Which node gets which block.

pub mod assign;
pub mod blocks;
pub mod demand;
pub mod node_subnets;
pub mod utilization;
