//! The cluster of a lab: nodes, objects, the replacement of the API server and the operator, modes.

mod bgp;
pub mod fake_api;
pub mod families;
pub mod modes;
pub mod nodes;
pub mod objects;
