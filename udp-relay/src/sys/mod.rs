//! System calls that neither the standard library nor nix offers in the needed form.

pub mod receive;
pub mod send;
pub mod tun;
pub mod udp;
