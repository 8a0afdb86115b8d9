//! The `udp` overlay's relay, as far as others have to know it: the file by which the agent tells it what to relay.
//!
//! The relay itself is the program `netweft-udp-relay`.

/// Name of the socket in the shared directory at which the relay that serves listens.
pub const SOCKET: &str = "udp-relay.sock";

pub mod config;
