//! The `udp` overlay's relay, as far as others have to know it: the file by which the agent tells it what to relay.
//!
//! The relay itself is the program `netweft-udp-relay`.

pub mod config;
mod file;
