//! Assignment of blocks to nodes.

pub mod assign;
pub mod blocks;
pub mod demand;
pub mod node_subnets;
pub mod utilization;
