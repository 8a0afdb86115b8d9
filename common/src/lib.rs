//! What several of netweft's programs need, and what knows neither Kubernetes nor the kernel's network.

pub mod atomic_file;
mod error_chain;
pub mod heartbeat;

pub use error_chain::error_chain;
