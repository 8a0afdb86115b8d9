//! The operator and the chart against a real kube-apiserver with a real etcd.
//!
//! The programs come from the directory in `NETWEFT_KUBE_BIN`; each test has a control plane of its own, on loopback.

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
mod growth;
mod held_writes;
mod leaders;
mod ledger;
mod objects;
mod operator;
mod refused;
mod simulation;
mod slow_api;
