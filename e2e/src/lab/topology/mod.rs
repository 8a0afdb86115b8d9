//! The topology between nodes: namespaces, segments connected by a router, fabrics.

pub mod fabric;
pub mod namespace;
pub mod nft;
pub mod segment;
pub mod underlay;
