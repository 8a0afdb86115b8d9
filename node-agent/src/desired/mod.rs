//! What the node should look like: a pure function of the inputs and the kernel's facts.
//!
//! ```text
//!   Inputs, Facts ──desired──▶ Desired { kernel, nft, sysctls, node and relay configuration, problems }
//! ```
//!
//! One file for each way between nodes; they differ by pure functions only.

pub mod bird;
mod bridge;
mod link_sysctls;
mod mtu_notes;
pub mod nft;
mod node_address;
mod pool_problems;
pub mod probe_plan;
mod routes;
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
use netweft_cni::node::{self, NodeConfig, PoolConfig};
use netweft_crds::{EncapsulateWhen, IpFamily, NodeMode, PodInterface, Transport};
use netweft_netstate::model::{LinkName, NetworkState, Route, RouteKey, RouteKind, TABLE_MAIN};
use netweft_netstate::owner::{METRIC, PROTOCOL_AGENT};
use netweft_udp_relay::config::{OVERHEAD_V4, OVERHEAD_V6, RelayConfig};

use crate::apply::nft::TableFamily;
use crate::apply::sysctl;
use crate::desired::bird::Bird;
use crate::desired::probe_plan::ProbePlan;
use crate::inputs::bgp_routes::METRIC_BIRD;
use crate::inputs::host_facts::Facts;
use crate::inputs::{Inputs, OwnBlock, RemoteBlock};
use crate::status::problem::Problems;

/// Metric of routes that stand by, while the way to a block changes: behind those in use, BIRD's included.
const METRIC_STANDBY: u32 = METRIC_BIRD + 10;

/// The node as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Links, addresses, routes, neighbours and forwarding entries of ours.
    pub kernel: NetworkState,
    /// The nft table of the family inet, as text for `nft -f`.
    pub nft: String,
    /// The nft table of the family bridge, as text for `nft -f`; empty without pods on the bridge.
    pub nft_bridge: String,
    /// Values by path below `/proc/sys/net`, those of single links included.
    pub sysctls: BTreeMap<String, String>,
    /// Links that learn from routers, if they do, in spite of forwarding.
    pub accept_ra_links: BTreeSet<LinkName>,
    /// Links on which packets of pods can come in by another way than answers go out.
    pub loose_rp_filter: BTreeSet<LinkName>,
    /// Ways that stand by and are to be tried.
    pub probes: Vec<ProbePlan>,
    /// Tunnels that no pod of this node needs for its own address: it only sends into them.
    pub spare: BTreeSet<LinkName>,
    /// What the relay of encapsulation udp reads.
    pub udp: RelayConfig,
    /// What BIRD is to do; `None` while BGP is off.
    pub bird: Option<Bird>,
    /// What the plugin reads.
    pub plugin: NodeConfig,
    /// Blocks from which no pod gets an address any more, but in which some may still have one.
    pub withdrawn: Vec<IpNet>,
    /// Bytes of the largest packet that the links with the node's addresses take.
    pub link_mtu: Option<u32>,
    /// What is left out and why, what waits for another program, and what an administrator should know.
    pub problems: Problems,
}

impl Desired {
    /// The nft table of a family, as text for `nft -f`; empty if there is to be none.
    #[must_use]
    pub fn table(&self, family: TableFamily) -> &str {
        match family {
            TableFamily::Inet => &self.nft,
            TableFamily::Bridge => &self.nft_bridge,
        }
    }

    /// Whether there is anything to give to pods.
    #[must_use]
    pub fn has_blocks(&self) -> bool {
        self.plugin.pools.iter().any(|pool| !pool.blocks.is_empty())
    }

    /// The blocks that new pods get addresses of.
    #[must_use]
    pub fn offered(&self) -> BTreeSet<IpNet> {
        let pools = self.plugin.pools.iter();
        pools.flat_map(|pool| pool.blocks.iter().copied()).collect()
    }

    /// The kernel parameters that are looked after, by their paths below `/proc/sys/net`.
    pub fn parameters(&self) -> impl Iterator<Item = String> {
        let loosened = self
            .loose_rp_filter
            .iter()
            .map(|link| sysctl::rp_filter(link.as_str()));
        let listening = self.accept_ra_links.iter().map(sysctl::accept_ra);
        self.sysctls
            .keys()
            .cloned()
            .chain(loosened)
            .chain(listening)
    }
}

/// The node as it should be.
#[must_use]
pub fn desired(inputs: &Inputs, facts: &Facts) -> Desired {
    let plugin = NodeConfig {
        version: node::VERSION,
        pools: plugin_pools(inputs, facts),
        withdrawn: inputs.withdrawn.clone(),
        namespaces: known_namespaces(inputs),
    };
    let mut problems = inputs.problems.clone();
    problems.extend(pool_problems::mixed(&plugin));
    problems.extend(tunnel_address::taken(inputs));
    let mut desired = Desired {
        kernel: NetworkState::default(),
        nft: String::new(),
        nft_bridge: nft::bridge::render(&inputs.pods),
        sysctls: forwarding(inputs),
        accept_ra_links: accept_ra_links(inputs, facts),
        loose_rp_filter: loose_rp_filter(inputs, facts),
        probes: Vec::new(),
        spare: BTreeSet::new(),
        udp: RelayConfig::default(),
        bird: bird::bird(inputs, facts),
        plugin,
        withdrawn: inputs.withdrawn.clone(),
        link_mtu: link_mtu(facts),
        problems,
    };
    if let Some(mtu) = least_mtu(inputs, facts).or(inputs.pods.bridge_mtu) {
        bridge::add_to(inputs, mtu, &mut desired.kernel, &mut desired.sysctls);
    }
    if let Some(mtu) = least_mtu(inputs, facts) {
        node_address::add_to(inputs, mtu, &mut desired.kernel);
    }
    desired.problems.extend(pool_problems::not_received(inputs));
    for mode in &inputs.modes {
        desired
            .problems
            .extend(mtu_notes::beyond(inputs, facts, mode));
        routes::add_to(inputs, facts, mode, &mut desired);
    }
    let blocks = inputs.blocks.iter().map(|block| block.cidr);
    for block in blocks.chain(inputs.withdrawn.iter().copied()) {
        let (key, route) = blackhole(block, METRIC);
        // Not in the place of a bridged block's way to the bridge.
        desired.kernel.routes.entry(key).or_insert(route);
    }
    let links = desired.kernel.links.iter();
    let tunnels = links
        .filter(|(_, link)| link.kind.is_tunnel())
        .map(|(name, _)| name);
    desired.nft = nft::render(inputs, tunnels);
    let families = link_sysctls::parameters(&desired.kernel);
    desired.sysctls.extend(families);
    desired
        .sysctls
        .extend(link_sysctls::of_uplinks(inputs, facts));
    desired.sysctls.extend(link_sysctls::of_pods(inputs));
    desired
}

/// What lets the node forward at all, by family.
fn forwarding(inputs: &Inputs) -> BTreeMap<String, String> {
    let switches = [
        (IpFamily::Ipv4, "ipv4/ip_forward"),
        (IpFamily::Ipv6, sysctl::FORWARDING_V6),
    ];
    let used = switches
        .into_iter()
        .filter(|(family, _)| inputs.carries(*family));
    used.map(|(_, name)| (name.to_owned(), "1".to_owned()))
        .collect()
}

/// Links that would lose what routers have told them once IPv6 is forwarded, unless they are told to go on listening. Forwarding
/// is the whole node's: the kernel drops on every link what it has bgp_routes there (`rt6_purge_dflt_routers`) and then believes no
/// advertisement (`ipv6_accept_ra`), and the default route can be on another link than the node's address.
fn accept_ra_links(inputs: &Inputs, facts: &Facts) -> BTreeSet<LinkName> {
    if !inputs.carries(IpFamily::Ipv6) {
        return BTreeSet::new();
    }
    let own = facts.egress.values().map(|egress| &egress.link);
    own.chain(&facts.listening).cloned().collect()
}

/// Links that answers to pods can leave by another link than the packets come in on: where pools are reached in different ways, or
/// one mode has two, a packet and its answer take each the way of its destination, and so they do where BGP has more than one
/// link to choose from. A strict reverse path filter would drop it.
fn loose_rp_filter(inputs: &Inputs, facts: &Facts) -> BTreeSet<LinkName> {
    let way = |mode: &NodeMode| {
        let plain = matches!(
            mode.transport.get(),
            Some(Transport::Direct | Transport::Bgp)
        );
        (plain, mode.encapsulate_when == EncapsulateWhen::CrossSubnet)
    };
    let ways: BTreeSet<_> = inputs.modes.iter().map(way).collect();
    let links = facts.egress.values().map(|egress| egress.link.clone());
    let links: BTreeSet<_> = links.chain(facts.towards_peers.iter().cloned()).collect();
    let one_link = inputs.bgp.is_none() || links.len() <= 1;
    let one = ways.len() <= 1 && !ways.contains(&(false, true)) && one_link;
    if one { BTreeSet::new() } else { links }
}

/// Bytes of the largest packet of a pod that travels by `mode`; `None` while its egress link is unknown.
#[must_use]
pub fn pod_mtu(inputs: &Inputs, facts: &Facts, mode: &NodeMode) -> Option<u32> {
    if mode.mtu != 0 {
        return Some(mode.mtu);
    }
    let link_mtu = match mode.transport.get()? {
        Transport::Direct | Transport::Bgp => link_mtu(facts)?,
        Transport::Vxlan(_) | Transport::Ipip | Transport::Udp(_) => {
            facts.egress.get(&inputs.local(mode)?)?.mtu
        }
    };
    Some(link_mtu.saturating_sub(overhead(mode)?))
}

/// The same of packets to a block whose node states the size of the packets that it accepts.
#[must_use]
pub fn pod_mtu_to(
    inputs: &Inputs,
    facts: &Facts,
    mode: &NodeMode,
    block: &RemoteBlock,
) -> Option<u32> {
    let own = pod_mtu(inputs, facts, mode)?;
    let taken = block.link_mtu.unwrap_or(u32::MAX);
    Some(own.min(taken.saturating_sub(overhead(mode)?)))
}

/// Bytes that `mode` adds to a pod's packet.
fn overhead(mode: &NodeMode) -> Option<u32> {
    let v4 = mode.outer_family == IpFamily::Ipv4;
    Some(match mode.transport.get()? {
        // Outer IP header, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348, section 5).
        Transport::Vxlan(_) if v4 => 50,
        Transport::Vxlan(_) => 70,
        // Outer IP header (RFC 2003, section 3).
        Transport::Ipip => 20,
        Transport::Udp(_) if v4 => OVERHEAD_V4,
        Transport::Udp(_) => OVERHEAD_V6,
        Transport::Direct | Transport::Bgp => 0,
    })
}

/// Bytes of the largest packet that the links with the node's addresses take.
fn link_mtu(facts: &Facts) -> Option<u32> {
    facts.egress.values().map(|egress| egress.mtu).min()
}

/// Whether `mode` is a datapath to the blocks of `pool`, in use or in standby, and packets of `mtu` bytes are enough for the pool.
fn carries(inputs: &Inputs, mode: &NodeMode, pool: &str, mtu: u32) -> bool {
    let known = inputs.pools.get(pool);
    mode.all_pools().any(|name| name == pool) && known.is_some_and(|pool| fits(pool.cidr, mtu))
}

/// Whether packets of `mtu` bytes are enough for the family of `net`: IPv6 asks for 1280 (RFC 8200, section 5), and the
/// kernel takes it from a link that has fewer.
fn fits(net: IpNet, mtu: u32) -> bool {
    net.addr().is_ipv4() || mtu >= 1280
}

/// A way to a block over a link, by a next hop or straight.
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

/// An address of one of our blocks that no pod has must not follow the default route.
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

/// New pods get the least MTU of all modes in use, so that a packet which fits the pod's link fits every way it may take.
fn least_mtu(inputs: &Inputs, facts: &Facts) -> Option<u32> {
    let modes = inputs.modes.iter();
    modes.filter_map(|mode| pod_mtu(inputs, facts, mode)).min()
}

/// The pools a pod of this node can have an address of, the more specific first: those for some nodes only, then by name.
/// One without a block here is listed too: pods that are meant for it wait, and get no address of another.
fn plugin_pools(inputs: &Inputs, facts: &Facts) -> Vec<PoolConfig> {
    let mtu = least_mtu(inputs, facts);
    let mut pools: BTreeMap<&str, Vec<&OwnBlock>> = BTreeMap::new();
    pools.extend(
        inputs
            .serving
            .iter()
            .map(|name| (name.as_str(), Vec::new())),
    );
    for block in &inputs.blocks {
        pools.entry(&block.pool).or_default().push(block);
    }
    let mut described: Vec<(bool, PoolConfig)> = pools
        .into_iter()
        .filter_map(|(name, blocks)| {
            let pool = inputs.pools.get(name)?;
            inputs.mode_of(name)?;
            let mtu = mtu.filter(|mtu| fits(pool.cidr, *mtu))?;
            let mut reserved = pool.reserved.clone();
            let bridge = match pool.pod_interface {
                PodInterface::Routed => None,
                PodInterface::Bridge => bridge::config(inputs, &blocks),
            };
            let own: BTreeSet<IpAddr> = blocks
                .iter()
                .flat_map(|block| tunnel_address::own_addresses(inputs, block))
                .collect();
            reserved.extend(own.into_iter().map(IpNet::from));
            let config = PoolConfig {
                name: name.to_owned(),
                cidr: Some(pool.cidr),
                pod_interface: pool.pod_interface,
                bridge,
                mtu,
                blocks: blocks.into_iter().map(|block| block.cidr).collect(),
                reserved,
                namespaces: pool
                    .namespaces
                    .as_ref()
                    .map(|chosen| inputs.namespaces_of(chosen)),
                disabled: pool.disabled,
            };
            Some((!pool.some_nodes, config))
        })
        .collect();
    described.sort_by(|(all_nodes, one), (all_nodes_too, other)| {
        (all_nodes, &one.name).cmp(&(all_nodes_too, &other.name))
    });
    described.into_iter().map(|(_, config)| config).collect()
}

/// Where namespaces select pools, a pod of an unknown namespace must wait.
fn known_namespaces(inputs: &Inputs) -> Option<BTreeSet<String>> {
    let chosen = inputs.pools.values().any(|pool| pool.namespaces.is_some());
    chosen.then(|| inputs.namespaces.keys().cloned().collect())
}
