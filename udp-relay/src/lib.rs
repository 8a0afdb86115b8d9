//! The part of the `udp` overlay's relay that other crates use: the file in which the agent lists the tunnels.
//!
//! The relay itself is the program `netweft-udp-relay`.

/// Name of the socket in the shared directory at which the relay that serves listens.
pub const SOCKET: &str = "udp-relay.sock";

pub mod config;
