//! The operator and the chart against a real kube-apiserver with a real etcd.
//!
//! The programs come from the directory in `NETWEFT_KUBE_BIN`. Each test has its own control plane on loopback.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod admission;
mod agent;
mod agent_rights;
mod api_faults;
mod audit;
mod bgp;
mod chart;
mod chart_lifecycle;
mod clean;
mod cluster_facts;
mod cluster_lifecycle;
mod control_plane;
mod held_writes;
mod invariants;
mod leaders;
mod objects;
mod operator;
mod refused;
mod simulation;
mod slow_api;
mod surplus_blocks;
