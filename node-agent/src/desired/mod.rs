//! The desired state of the node: a pure function of the inputs and the host facts.
//!
//! ```text
//!   Inputs, HostFacts ──desired──▶ Desired { kernel, nft, sysctls, configuration of plugin, relay and BIRD, problems }
//! ```
//!
//! Each transport has a file; transports differ only by pure functions.

pub mod bird;
mod bridge;
mod mtu;
pub mod nft;
mod own_address_link;
mod plugin_config;
mod pool_problems;
pub mod probe_plan;
mod routes;
mod sysctls;
#[cfg(test)]
mod tests;
mod tunnel;
pub mod tunnel_address;
mod udp;
pub mod unreachable;
mod vxlan;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netweft_cni::node::NodeConfig;
use netweft_common::link_names::BRIDGE;
use netweft_crds::NodeMode;
use netweft_netstate::model::{LinkName, NetworkState, Route, RouteKey, RouteKind, TABLE_MAIN};
use netweft_netstate::owner::{METRIC, PROTOCOL_AGENT};
use netweft_udp_relay::config::RelayConfig;

use crate::apply::nft::TableFamily;
use crate::apply::sysctl;
use crate::desired::bird::Bird;
use crate::desired::plugin_config::plugin_config;
use crate::desired::probe_plan::ProbePlan;
use crate::inputs::Inputs;
use crate::inputs::bgp_routes::METRIC_BIRD;
use crate::inputs::host_facts::HostFacts;
use crate::status::problem::Problems;

/// Metric of standby routes: higher than that of the routes in use, those of BIRD included.
const METRIC_STANDBY: u32 = METRIC_BIRD + 10;

/// The desired state of the node.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Links, addresses, routes, neighbours and FDB entries of the agent.
    pub kernel: NetworkState,
    /// The nftables table of the family inet, as text for `nft -f`.
    pub nft: String,
    /// The nftables table of the family bridge, as text for `nft -f`; empty without pods on the bridge.
    pub nft_bridge: String,
    /// Values by path below `/proc/sys/net`, those of single links included.
    pub sysctls: BTreeMap<String, String>,
    /// Links that accept router advertisements although the node forwards.
    pub accept_ra_links: BTreeSet<LinkName>,
    /// Links whose reverse path filter must not be strict.
    pub loose_rp_filter: BTreeSet<LinkName>,
    /// Probes over standby datapaths.
    pub probes: Vec<ProbePlan>,
    /// Tunnels that no address of a pod of this node needs: the node only sends into them.
    pub transmit_only_links: BTreeSet<LinkName>,
    /// The configuration of the relay of encapsulation udp.
    pub relay: RelayConfig,
    /// The configuration of BIRD; `None` while BGP is off.
    pub bird: Option<Bird>,
    /// The configuration of the plugin.
    pub plugin: NodeConfig,
    /// Blocks from which no pod gets an address any more, but in which pods may still have addresses.
    pub withdrawn: Vec<IpNet>,
    /// The smallest MTU of the links with the node's addresses, in bytes.
    pub link_mtu: Option<u32>,
    /// Parts that are left out, objects that other programs have to create first, and notes for administrators.
    pub problems: Problems,
}

impl Desired {
    /// The nftables table of a family, as text for `nft -f`; empty: no table.
    #[must_use]
    pub fn table(&self, family: TableFamily) -> &str {
        match family {
            TableFamily::Inet => &self.nft,
            TableFamily::Bridge => &self.nft_bridge,
        }
    }

    /// Whether the node has a block for pods.
    #[must_use]
    pub fn has_blocks(&self) -> bool {
        self.plugin.pools.iter().any(|pool| !pool.blocks.is_empty())
    }

    /// The blocks of new pods.
    #[must_use]
    pub fn allocatable_blocks(&self) -> BTreeSet<IpNet> {
        let pools = self.plugin.pools.iter();
        pools.flat_map(|pool| pool.blocks.iter().copied()).collect()
    }

    /// The paths of all managed sysctls below `/proc/sys/net`.
    pub fn sysctl_paths(&self) -> impl Iterator<Item = String> {
        let rp_filter = self
            .loose_rp_filter
            .iter()
            .map(|link| sysctl::rp_filter(link.as_str()));
        let accept_ra = self.accept_ra_links.iter().map(sysctl::accept_ra);
        self.sysctls
            .keys()
            .cloned()
            .chain(rp_filter)
            .chain(accept_ra)
    }
}

/// Computes the desired state of the node.
#[must_use]
pub fn desired(inputs: &Inputs, facts: &HostFacts) -> Desired {
    let plugin = plugin_config(inputs, facts);
    let mut problems = inputs.problems.clone();
    problems.extend(pool_problems::mixed_interfaces(&plugin));
    problems.extend(tunnel_address::taken(inputs));
    let mut desired = Desired {
        kernel: NetworkState::default(),
        nft: String::new(),
        nft_bridge: String::new(),
        sysctls: sysctls::forwarding(inputs),
        accept_ra_links: sysctls::accept_ra_links(inputs, facts),
        loose_rp_filter: sysctls::loose_rp_filter(inputs, facts),
        probes: Vec::new(),
        transmit_only_links: BTreeSet::new(),
        relay: RelayConfig::default(),
        bird: bird::bird(inputs, facts),
        plugin,
        withdrawn: inputs.withdrawn.clone(),
        link_mtu: mtu::link_mtu(facts),
        problems,
    };
    let mtu = mtu::smallest_pod_mtu(inputs, facts);
    if let Some(mtu) = mtu.or(inputs.pods.bridge_mtu) {
        bridge::add_to(inputs, mtu, &mut desired.kernel, &mut desired.sysctls);
    }
    if let Some(mtu) = mtu {
        own_address_link::add_to(inputs, mtu, &mut desired.kernel);
    }
    desired.problems.extend(pool_problems::not_received(inputs));
    for mode in &inputs.modes {
        desired.problems.extend(mtu::too_large(inputs, facts, mode));
        routes::add_to(inputs, facts, mode, &mut desired);
    }
    let blocks = inputs.blocks.iter().map(|block| block.cidr);
    for block in blocks.chain(inputs.withdrawn.iter().copied()) {
        let (key, route) = blackhole(block, METRIC);
        // The route of a bridged block stays.
        desired.kernel.routes.entry(key).or_insert(route);
    }
    let links = desired.kernel.links.iter();
    let tunnels = links
        .filter(|(_, link)| link.kind.is_tunnel())
        .map(|(name, _)| name);
    desired.nft = nft::render(inputs, tunnels);
    let mut links = desired.kernel.links.keys();
    if links.any(|link| link.as_str() == BRIDGE) {
        desired.nft_bridge = nft::bridge::render(&inputs.pods);
    }
    let of_links = sysctls::of_agent_links(&desired.kernel);
    desired.sysctls.extend(of_links);
    desired.sysctls.extend(sysctls::of_uplinks(inputs, facts));
    desired.sysctls.extend(sysctls::of_pod_links(inputs));
    desired
}

/// Whether `mode` is a datapath to the blocks of `pool`, in use or in standby, and `mtu` is enough for the pool.
fn carries(inputs: &Inputs, mode: &NodeMode, pool: &str, mtu: u32) -> bool {
    let found = inputs.pools.get(pool);
    mode.all_pools().any(|name| name == pool)
        && found.is_some_and(|pool| mtu::is_sufficient(pool.cidr, mtu))
}

/// A route to a block, with or without a next hop.
fn unicast(
    cidr: IpNet,
    via: Option<IpAddr>,
    dev: LinkName,
    source: Option<IpAddr>,
) -> (RouteKey, Route) {
    let route = Route {
        kind: RouteKind::Unicast,
        protocol: PROTOCOL_AGENT,
        via,
        dev: Some(dev),
        onlink: false,
        source,
        mtu: None,
    };
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: cidr,
        metric: METRIC,
    };
    (key, route)
}

/// A blackhole route to a block of this node. Packets to an address without a pod must not follow the default route.
fn blackhole(cidr: IpNet, metric: u32) -> (RouteKey, Route) {
    let route = Route {
        kind: RouteKind::Blackhole,
        protocol: PROTOCOL_AGENT,
        via: None,
        dev: None,
        onlink: false,
        source: None,
        mtu: None,
    };
    (
        RouteKey {
            table: TABLE_MAIN,
            dst: cidr,
            metric,
        },
        route,
    )
}
