//! The system calls for which neither the standard library nor nix has what is needed: the only unsafe code of the relay.

pub mod receive;
pub mod send;
pub mod tun;
pub mod udp;
