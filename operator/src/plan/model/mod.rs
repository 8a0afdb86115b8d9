//! The cluster as a plan sees it.

pub mod cluster_state;
pub mod index;
pub mod node;
pub mod secret;
