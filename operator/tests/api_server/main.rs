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
mod audit;
mod bgp;
mod chart;
mod chart_life;
mod clean;
mod cluster_facts;
mod control_plane;
mod gate;
mod growth;
mod leaders;
mod ledger;
mod life;
mod objects;
mod operator;
mod refused;
mod rough;
mod simulation;
mod slow;
