//! The part of the relay of the `udp` overlay that other crates use: the file in which the agent lists the tunnels.
//!
//! The relay itself is the program `netweft-udp-relay`.

/// Name of the socket in the shared directory on which the serving relay listens.
pub const SOCKET: &str = "udp-relay.sock";

pub mod config;
