//! The cluster operator: pools, modes, peers and nodes become NodeSubnets, NodeNetworks and conditions.
//!
//! A functional core inside a thin shell. The core is [`plan()`]: one complete picture of the cluster ([`World`]) to
//! every write that is due ([`Plan`]), with no clock, no I/O and no client. The shell watches, calls it and writes.
//!
//! ```text
//!   IPPool NetworkMode BGPPeer Node NodeSubnet NodeNetwork ServiceCIDR, kube-proxy's ConfigMap
//!        │ watch                                      ▲ write (leader)
//!        ▼                                            │
//!      World ──▶ validate ──▶ assign ──▶ networks, status ──▶ Plan
//! ```

pub mod assign;
mod availability;
pub mod bgp;
pub mod blocks;
mod change;
mod claims;
mod clean;
mod kube_proxy;
pub mod mode;
mod needs;
mod networks;
mod node_address;
mod other_networks;
mod plan;
pub mod pool;
mod status;
mod subnets;
pub mod validate;
pub mod view;
mod words;
pub mod world;

mod absences;
mod admin;
pub mod args;
mod client;
mod controller;
mod counts;
mod definitions;
mod drain;
mod drifts;
mod error;
mod events;
mod freed;
mod graces;
pub mod growth;
mod lead;
mod metrics;
mod owners;
mod run;
mod secrets;
mod snapshot;
mod telemetry;
#[cfg(test)]
mod testing;
mod watch;
mod write;

pub use clean::clean;
pub use plan::plan;
pub use run::run;
pub use telemetry::init as init_logging;
pub use world::{Changes, FinalizerChange, News, Plan, StatusChange, Unreadable, UserKind, World};
