//! The CNI plugin: allocates addresses to a pod and creates its link; releases and deletes them again.
//!
//! The plugin has no daemon, no socket and no Kubernetes client. Its input is the network configuration ([`conf`]) and
//! `node.json` ([`node`]), which the node agent writes. Its state is in the kernel and in attachment records
//! ([`attachment`]).

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
