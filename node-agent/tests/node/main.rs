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
mod listening;
mod multicast;
mod other_networks;
mod picture;
mod plugins;
mod port_taken;
mod probing;
mod programs;
mod repair;
mod requests;
mod second_nic;
mod standby;
mod sweep;
mod tunnel_address;
mod unowned;
mod uplinks;
