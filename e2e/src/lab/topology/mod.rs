//! What nodes are connected by: namespaces, segments with a router between, fabrics.

pub mod fabric;
pub mod namespace;
pub mod segment;
pub mod underlay;
