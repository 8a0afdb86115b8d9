//! Additional checks of mode underlay: BGP as the only source of routes, restarts and rollouts of BIRD, and a router that replaces
//! the node-to-node mesh.

mod mesh;
mod restarts;
mod router;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnet::IpNet;
use serde::Deserialize;

use crate::harness::poll::until;
use crate::kind::host;
use crate::kind::kubectl::{get, items, text};

pub(crate) use crate::kind::checks::bgp::mesh::underlay_blocks_are_routed_only_by_bgp;
pub(crate) use crate::kind::checks::bgp::restarts::{
    bird_rollout_loses_no_packets, killed_bird_processes_lose_no_packets,
    release_upgrade_keeps_bgp_sessions,
};
pub(crate) use crate::kind::checks::bgp::router::mesh_replacement_by_router_loses_no_packets;

/// Route protocol number of BIRD (`RTPROT_BIRD`).
const PROTOCOL: &str = "12";
/// Metric of the routes that netweft's BIRD adds to the kernel.
const METRIC: u32 = 78;
/// Time limit until every node has every route and session.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// A route that BIRD has added to the kernel of a node.
#[derive(Deserialize)]
struct BirdRoute {
    dst: IpNet,
    gateway: Option<IpAddr>,
    dev: String,
    metric: u32,
}

/// The routes that BIRD has added to the kernel of a node.
fn routes_of_bird(node: &str) -> anyhow::Result<Vec<BirdRoute>> {
    let routes = host::on(node, &["ip", "-j", "route", "show", "proto", PROTOCOL])?;
    serde_json::from_str(&routes).with_context(|| format!("parse the routes of {node}: {routes}"))
}

/// Every node has routes to the blocks of all other nodes, with the address of the owner as next hop, and no other BGP routes.
fn check_routes() -> anyhow::Result<()> {
    let networks = get(&["nodenetworks"])?;
    let mut addresses = BTreeMap::new();
    for network in items(&networks) {
        let address: IpAddr = text(network, "/spec/addresses/ipv4")?.parse()?;
        addresses.insert(text(network, "/metadata/name")?.to_owned(), address);
    }
    let subnets = get(&["nodesubnets"])?;
    let mut blocks = Vec::new();
    for subnet in items(&subnets) {
        let node = text(subnet, "/spec/node")?;
        // The blocks of a deleted node are kept for the grace period.
        if let Some(address) = addresses.get(node) {
            let cidr: IpNet = text(subnet, "/spec/cidr")?.parse()?;
            blocks.push((node, cidr, *address));
        }
    }
    for node in addresses.keys() {
        let others = blocks.iter().filter(|(owner, ..)| owner != node);
        let expected: BTreeSet<_> = others
            .map(|(_, cidr, next_hop)| (*cidr, Some(*next_hop), METRIC))
            .collect();
        let found = routes_of_bird(node)?.into_iter();
        let found = found
            .map(|route| (route.dst, route.gateway, route.metric))
            .collect();
        ensure!(!expected.is_empty(), "no other node has a block");
        ensure!(
            expected == found,
            "{node} has the BGP routes {found:?} instead of {expected:?}"
        );
    }
    Ok(())
}

/// Wait until every node has the expected BGP routes.
fn await_convergence() -> anyhow::Result<()> {
    until(
        "the BGP routes to all blocks on every node",
        CONVERGENCE_TIMEOUT,
        check_routes,
    )
}

/// A session in the status of a NodeNetwork.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Session {
    name: String,
    state: String,
    last_transition_time: Option<String>,
    #[serde(default)]
    message: String,
}

/// The sessions in the status of all NodeNetworks, by node.
fn reported_sessions() -> anyhow::Result<BTreeMap<String, Vec<Session>>> {
    let networks = get(&["nodenetworks"])?;
    let sessions = items(&networks).map(|network| {
        let node = text(network, "/metadata/name")?.to_owned();
        let list = network.pointer("/status/sessions").cloned();
        let list = list.unwrap_or_else(|| serde_json::json!([]));
        Ok((node, serde_json::from_value(list)?))
    });
    sessions.collect()
}

/// The sessions that every node must have: the mesh, and one with the BGPPeer `router`.
#[derive(Clone, Copy, Debug)]
struct ExpectedSessions<'a> {
    mesh: bool,
    router: Option<&'a str>,
}

/// Only the sessions of the mesh.
const MESH: ExpectedSessions<'_> = ExpectedSessions {
    mesh: true,
    router: None,
};

impl ExpectedSessions<'_> {
    /// Wait until all nodes have the expected sessions and no others, and all sessions are established.
    fn await_established(self) -> anyhow::Result<()> {
        let condition = format!("{self:?} to be established");
        until(&condition, CONVERGENCE_TIMEOUT, || {
            let reported = reported_sessions()?;
            let nodes: BTreeSet<&String> = reported.keys().collect();
            for (node, sessions) in &reported {
                let others = nodes.iter().filter(|name| self.mesh && **name != node);
                let names = others.map(|other| format!("mesh-{other}"));
                let expected: BTreeSet<_> = names.chain(self.router.map(str::to_owned)).collect();
                let found = sessions
                    .iter()
                    .map(|session| session.name.clone())
                    .collect();
                ensure!(
                    expected == found,
                    "{node} has the sessions {found:?} instead of {expected:?}"
                );
                for session in sessions {
                    ensure!(
                        session.state == "Established",
                        "a session of {node} is not established: {session:?}"
                    );
                }
            }
            Ok(())
        })
    }
}
