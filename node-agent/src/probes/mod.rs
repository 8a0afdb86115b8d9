//! Probes over standby datapaths: the packets, the task that sends them, and the task that answers the probes of other nodes.

pub mod packet;
pub mod responder;
pub mod sender;
