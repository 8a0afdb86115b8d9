//! Probes over a datapath in standby: the packets, the task that sends them, and the task that answers those of other nodes.

pub mod packet;
pub mod responder;
pub mod sender;
