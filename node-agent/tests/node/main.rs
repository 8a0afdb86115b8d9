//! One node with the released agent and plugin: real kernel, real files, a network namespace of each test's own without a
//! way out.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

mod check;
mod clean;
mod conditions;
mod crash;
mod draining;
mod drift;
mod firewall;
mod install;
mod ipv6_off;
mod lab;
mod leaked_objects;
mod link_conflicts;
mod multicast;
mod node_state;
mod other_networks;
mod plugins;
mod probing;
mod programs;
mod repair;
mod requests;
mod router_advertisements;
mod second_nic;
mod standby;
mod tunnel_address;
mod uplinks;
mod without_node_network;
