//! Test traffic and its results: pings, TCP connections, the ping matrix, losses.

pub mod inject;
pub mod loss_meter;
pub mod matrix;
pub mod ping;
pub mod tcp;
