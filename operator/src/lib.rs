//! The cluster operator: it computes NodeSubnets, NodeNetworks and conditions from IPPools, NetworkModes, BGPPeers and
//! Nodes.
//!
//! A functional core inside a thin shell. The core is [`plan()`]: it computes all due writes ([`Plan`]) from the
//! cluster state ([`ClusterState`]), without a clock, I/O or a client. The shell watches the objects, calls the core
//! and applies the plan.
//!
//! ```text
//!   IPPool NetworkMode BGPPeer Node NodeSubnet NodeNetwork ServiceCIDR, kube-proxy's ConfigMap
//!        │ watch                                      ▲ write (leader)
//!        ▼                                            │
//!      ClusterState ──▶ validate ──▶ ipam ──▶ node_networks, conditions ──▶ Plan
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
