//! Code of several programs that needs neither Kubernetes nor netlink.

pub mod atomic_file;
mod error_chain;
pub mod heartbeat;
pub mod link_names;
mod pod_interface;

pub use error_chain::error_chain;
pub use pod_interface::PodInterface;
