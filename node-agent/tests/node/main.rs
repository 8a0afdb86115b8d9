//! Tests of one node with the released agent and plugin, with the real kernel and real files. Each test has a network namespace
//! without external connectivity.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod block_requests;
mod check;
mod clean;
mod conditions;
mod disabled_ipv6;
mod draining_pods;
mod drift;
mod filter;
mod firewall;
mod killed_agent;
mod lab;
mod leaked_objects;
mod link_conflicts;
mod link_mtu;
mod multicast;
mod nft_failures;
mod node_snapshot;
mod other_networks;
mod plugin_restore;
mod plugin_upgrade;
mod pod_repair;
mod probe_protocols;
mod router_advertisements;
mod second_nic;
mod standby_mode;
mod tunnel_address;
mod without_node_network;
