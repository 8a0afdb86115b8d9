//! What packets are sent and what came of them: pings, TCP connections, the matrix of who reaches whom, losses.

pub mod inject;
pub mod loss_meter;
pub mod matrix;
pub mod ping;
pub mod tcp;
