//! The relay of the `udp` overlay.

fn main() {}
