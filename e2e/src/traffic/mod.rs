//! Traffic generators and their results: pings, TCP connections, injected packets, the reachability matrix, packet loss.

pub mod inject;
pub mod loss_meter;
pub mod matrix;
pub mod ping;
pub mod tcp;
