//! The cluster operator: pools, modes, peers and nodes become NodeSubnets, NodeNetworks and conditions.
//!
//! A functional core inside a thin shell. The core is [`plan()`]: one complete picture of the cluster ([`ClusterState`]) to
//! every write that is due ([`Plan`]), with no clock, no I/O and no client. The shell watches, calls it and writes.
//!
//! ```text
//!   IPPool NetworkMode BGPPeer Node NodeSubnet NodeNetwork ServiceCIDR, kube-proxy's ConfigMap
//!        │ watch                                      ▲ write (leader)
//!        ▼                                            │
//!      ClusterState ──▶ validate ──▶ assign ──▶ networks, status ──▶ Plan
//! ```

mod commands;
mod controller;
mod leader_election;
mod plan;
mod telemetry;
#[cfg(test)]
mod testing;

pub use crate::commands::args::{Args, Command};
pub use crate::commands::cleanup::clean;
pub use crate::commands::run::run;
pub use crate::plan::ipam::utilization::Utilization;
pub use crate::plan::model::cluster_state::{
    Changes, ClusterState, ConditionEvent, FinalizerChange, Plan, StatusChange, Unreadable,
    UserKind,
};
pub use crate::plan::plan;
