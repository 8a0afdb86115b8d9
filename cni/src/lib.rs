//! The CNI plugin: gives a pod its address and its link, and takes them back.
//!
//! No daemon, no socket, no Kubernetes client: all it knows is in the files that the node agent leaves in the shared
//! directory ([`conf`], [`node`]), all it has done is in the kernel and in its own files there ([`attachment`]).

pub mod attachment;
pub mod block;
pub mod block_requests;
pub mod build_attachment;
pub mod commands;
pub mod conf;
pub mod env;
pub mod error;
pub mod host_ports;
pub mod ipam;
pub mod node;
pub mod pod;
pub mod result;
