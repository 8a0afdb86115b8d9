//! What the leader remembers between two plans: deadlines, and what was reported last. All of it is in memory and made again by the next leader.

pub mod absent_nodes;
pub mod drift_events;
pub mod released_blocks;
pub mod subnet_grace;
pub mod usage_counts;
