//! Filtering before connection tracking: pods send from their own addresses only, and only nodes send into tunnels.
//!
//! ```text
//!   prerouting ─┬─ nw0123456789a ─▶ from_link ───┬─▶ from_pod ─▶ encapsulated_from_pod
//!               ├─ nw-br0 ────────▶ from_bridge ─┘
//!               ├─ nw-vx4096, … ──▶ from_tunnel
//!               └─ other links, tunnel port or protocol, from a node: not tracked
//!   output ────── tunnel port or protocol, to a node: not tracked
//!   input ─────── tunnel port or protocol: tracked packets are dropped
//!   translated ── tunnel port after destination NAT, forwarded: dropped
//! ```
//!
//! - A pod may send from an address whose route leads to the pod's link, by the kernel's own routes (`nft_fib4_eval`, `nft_fib6_eval`).
//!   No state of single pods is needed, so the filter holds from the first packet of a pod and while no agent runs.
//! - Encapsulated packets are accepted from nodes only, and bypass connection tracking: a Service or a host port on the tunnel's port
//!   cannot redirect them (CVE-2020-8554).
//! - Every other packet to a tunnel has an entry of connection tracking when it reaches the node. The chain `input` drops it after NAT, so
//!   that a Service leads to no tunnel either, and the reply to a masqueraded flow with a tunnel's port as source arrives. The expression
//!   `ct state` also turns on the reassembly of fragments (`nf_defrag_ipv4`), without which the port of a fragment is unknown.
//! - A packet for a Service gets its destination after `prerouting`. If the destination is a tunnel of another node, masquerading would make
//!   it a packet from a node. The chain `translated` drops it.
//! - Routed pods and the node have permanent neighbour entries of each other, and tunnels have no neighbours to discover. Neighbor
//!   discovery by these links would only fill the neighbour table of the node. Router advertisements and redirects would change the routes
//!   of the node (CVE-2020-10749).

use std::collections::BTreeSet;

use netweft_common::link_names::{AGENT_PREFIX, BRIDGE, FIREWALL_PROBE_PREFIX, PREFIX};
use netweft_crds::{IpFamily, Transport};

use crate::desired::nft::{chain, words};
use crate::inputs::Inputs;

/// Neighbor discovery as a whole (RFC 4861, section 4).
const DISCOVERY: &str = "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect } counter drop";
/// Neighbor discovery that configures routes, or makes a router remember the sender.
const OF_ROUTERS: &str =
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect } counter drop";
/// The route to the source does not lead to the link that the packet came in by.
const FOREIGN_SOURCE: &str = "fib saddr . iif oif missing counter drop";
/// The host port plugin can make loopback addresses routable (`route_localnet`).
const TO_LOOPBACK: &str = "ip daddr 127.0.0.0/8 counter drop";
/// What changes routes of the node in IPv4 (RFC 792).
const REDIRECT: &str = "icmp type redirect counter drop";

/// The chains of the filter. `ports`: UDP ports of tunnels.
pub fn chains(inputs: &Inputs, ports: &BTreeSet<u16>) -> String {
    let mut modes = inputs.modes.iter();
    let ipip = modes.any(|mode| mode.transport.get() == Some(Transport::Ipip));
    let tunnels = TunnelTraffic { ports, ipip };
    let mut text = [prerouting(&tunnels), from_links(), from_pod(&tunnels)].concat();
    if !tunnels.is_empty() {
        text += &to_tunnels(&tunnels);
    }
    text
}

/// What encapsulated packets look like on the network of the nodes, for every mode in use or in standby.
struct TunnelTraffic<'a> {
    ports: &'a BTreeSet<u16>,
    ipip: bool,
}

impl TunnelTraffic<'_> {
    fn is_empty(&self) -> bool {
        self.ports.is_empty() && !self.ipip
    }

    /// One rule for each port and protocol. A comparison each, because a set would be a lookup for every packet.
    fn rules(&self, verdict: &str) -> Vec<String> {
        let ipip = self.ipip.then(|| format!("ip protocol 4 {verdict}"));
        self.udp_rules(verdict).chain(ipip).collect()
    }

    fn udp_rules(&self, verdict: &str) -> impl Iterator<Item = String> {
        let ports = self.ports.iter();
        ports.map(move |port| format!("udp dport {port} {verdict}"))
    }
}

fn prerouting(tunnels: &TunnelTraffic<'_>) -> String {
    let rules = [
        "type filter hook prerouting priority raw; policy accept;".to_owned(),
        format!("iifname \"{PREFIX}*\" goto from_link"),
    ];
    let from_nodes = tunnels.rules("goto from_node");
    chain("prerouting", rules.into_iter().chain(from_nodes))
}

/// The links of pods, of the bridge and of tunnels.
fn from_links() -> String {
    let by_link = [
        format!("iifname \"{BRIDGE}\" goto from_bridge"),
        format!("iifname \"{AGENT_PREFIX}*\" goto from_tunnel"),
        format!("iifname \"{FIREWALL_PROBE_PREFIX}*\" accept"),
        FOREIGN_SOURCE.to_owned(),
        DISCOVERY.to_owned(),
        "goto from_pod".to_owned(),
    ];
    // A host without an address yet asks whether the address is in use, and joins the groups of the address (RFC 4862, RFC 3810).
    let unspecified = "ip6 saddr :: icmpv6 type { nd-neighbor-solicit, mld-listener-report, mld2-listener-report } accept";
    let bridge = [unspecified, FOREIGN_SOURCE, OF_ROUTERS, "goto from_pod"];
    let tunnel = [DISCOVERY, TO_LOOPBACK, REDIRECT];
    [
        chain("from_link", by_link),
        chain("from_bridge", bridge.map(str::to_owned)),
        chain("from_tunnel", tunnel.map(str::to_owned)),
    ]
    .concat()
}

/// Pods may run tunnels between pods. Masquerading would make an encapsulated packet to any other address one from a node.
fn from_pod(tunnels: &TunnelTraffic<'_>) -> String {
    let outside_pools = IpFamily::ALL.map(|family| {
        let words = words(family);
        format!("{} daddr != @{} counter drop", words.header, words.pools)
    });
    let rules = [TO_LOOPBACK, REDIRECT].map(str::to_owned).into_iter();
    let rules = rules.chain(tunnels.rules("goto encapsulated_from_pod"));
    chain("encapsulated_from_pod", outside_pools) + &chain("from_pod", rules)
}

fn to_tunnels(tunnels: &TunnelTraffic<'_>) -> String {
    let untracked = |end: &str| {
        IpFamily::ALL.map(|family| {
            let words = words(family);
            format!("{} {end} @{} notrack accept", words.header, words.nodes)
        })
    };
    let base = |hook: &str, rules: Vec<String>| {
        let hook = format!("type {hook}; policy accept;");
        [hook].into_iter().chain(rules).collect::<Vec<_>>()
    };
    // Before the source changes, so that what the node itself sends is known by its source.
    let translated = IpFamily::ALL.into_iter().flat_map(|family| {
        let words = words(family);
        let elsewhere = format!("{} daddr != @{}", words.header, words.pools);
        tunnels
            .udp_rules(&format!(
                "ct state new,related {elsewhere} fib saddr type != local counter drop"
            ))
            .collect::<Vec<_>>()
    });
    let output = tunnels.rules("goto to_node");
    let input = tunnels.rules("ct state != untracked counter drop");
    [
        chain("from_node", untracked("saddr")),
        chain("to_node", untracked("daddr")),
        chain("output", base("filter hook output priority raw", output)),
        // After source NAT and IPVS, which change the destination at this hook (`ip_vs_ops4`).
        chain("input", base("filter hook input priority 101", input)),
        chain(
            "translated",
            base(
                "nat hook postrouting priority srcnat - 1",
                translated.collect(),
            ),
        ),
    ]
    .concat()
}
