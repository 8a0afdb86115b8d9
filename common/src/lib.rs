//! Code of several programs of netweft that knows neither Kubernetes nor netlink.

pub mod atomic_file;
mod error_chain;
pub mod heartbeat;
pub mod link_names;

pub use error_chain::error_chain;
