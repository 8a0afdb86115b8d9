//! What a cluster of mode underlay has to pass besides: routes by BGP alone, BIRD that dies or is replaced, a router that takes
//! the place of the mesh.

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

/// BIRD's number among the kernel's sources of routes, and the metric that is netweft's in it.
const PROTOCOL: &str = "12";
const METRIC: u32 = 78;
/// Time limit until every node has every route and session.
const CONVERGED: Duration = Duration::from_secs(60);

/// A route that BIRD has given to a node's kernel.
#[derive(Deserialize)]
struct Learnt {
    dst: IpNet,
    gateway: Option<IpAddr>,
    dev: String,
    metric: u32,
}

/// What BIRD has given to a node's kernel.
fn learnt(node: &str) -> anyhow::Result<Vec<Learnt>> {
    let routes = host::on(node, &["ip", "-j", "route", "show", "proto", PROTOCOL])?;
    serde_json::from_str(&routes).with_context(|| format!("read the routes of {node}: {routes}"))
}

/// Every node has learnt every other's blocks, by that node's own address, and nothing else.
fn everything_is_learnt() -> anyhow::Result<()> {
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
        // A node that has gone keeps its blocks for a while.
        if let Some(address) = addresses.get(node) {
            let cidr: IpNet = text(subnet, "/spec/cidr")?.parse()?;
            blocks.push((node, cidr, *address));
        }
    }
    for node in addresses.keys() {
        let others = blocks.iter().filter(|(owner, ..)| owner != node);
        let wanted: BTreeSet<_> = others
            .map(|(_, cidr, by)| (*cidr, Some(*by), METRIC))
            .collect();
        let found = learnt(node)?.into_iter();
        let found = found
            .map(|route| (route.dst, route.gateway, route.metric))
            .collect();
        ensure!(!wanted.is_empty(), "no other node has a block");
        ensure!(
            wanted == found,
            "{node} has learnt {found:?} instead of {wanted:?}"
        );
    }
    Ok(())
}

/// Wait until that is so.
fn converged() -> anyhow::Result<()> {
    until(
        "every node to have learnt every block",
        CONVERGED,
        everything_is_learnt,
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

/// All sessions in the statuses, by node.
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

/// Which sessions the nodes should have.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    mesh: bool,
    router: Option<&'a str>,
}

/// The mesh and nothing else.
const MESH: Wanted<'_> = Wanted {
    mesh: true,
    router: None,
};

impl Wanted<'_> {
    /// Wait until all nodes have them, all established, and no other.
    fn established(self) -> anyhow::Result<()> {
        until(&format!("{self:?} to be established"), CONVERGED, || {
            let reported = reported_sessions()?;
            let nodes: BTreeSet<&String> = reported.keys().collect();
            for (node, sessions) in &reported {
                let others = nodes.iter().filter(|name| self.mesh && **name != node);
                let names = others.map(|other| format!("mesh-{other}"));
                let wanted: BTreeSet<_> = names.chain(self.router.map(str::to_owned)).collect();
                let found = sessions
                    .iter()
                    .map(|session| session.name.clone())
                    .collect();
                ensure!(
                    wanted == found,
                    "{node} has the sessions {found:?} instead of {wanted:?}"
                );
                for session in sessions {
                    ensure!(session.state == "Established", "{node}: {session:?}");
                }
            }
            Ok(())
        })
    }
}
