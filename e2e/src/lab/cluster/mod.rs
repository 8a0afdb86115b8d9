//! The lab's nodes as one cluster: objects, the API server's stand-in, modes.

pub mod fake_api;
pub mod families;
pub mod modes;
pub mod nodes;
pub mod objects;
