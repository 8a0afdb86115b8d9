//! Filtering before connection tracking: pods send from their own addresses only, and only nodes send into tunnels.
//!
//! ```text
//!   prerouting ─┬─ nw0123456789a ─▶ from_routed_pod ─┬─▶ from_pod ─▶ encapsulated_from_pod
//!               ├─ nw-br0 ────────▶ from_bridge ─────┘
//!               ├─ nw-vx4096, … ──▶ from_tunnel
//!               └─ other links, tunnel port or protocol ─▶ to_tunnel: from a node: not tracked; else dropped
//!   output ────── tunnel port or protocol, to a node: not tracked
//!   translated ── a tunnel port after destination NAT: dropped
//! ```
//!
//! - A pod may send from an address whose route leads to the pod's link, by the kernel's own routes (`nft_fib4_eval`, `nft_fib6_eval`).
//!   No state of single pods is needed, so the filter holds from the first packet of a pod and while no agent runs.
//! - Encapsulated packets are accepted from nodes only, and bypass connection tracking: a Service or a host port on the tunnel's port
//!   cannot redirect them (CVE-2020-8554).
//! - A packet for a Service gets its destination after these chains. The chains `translated_*` therefore check the first packet of each
//!   connection once more. Their expression `ct state` also turns on the reassembly of fragments (`nf_defrag_ipv4`), without which the
//!   port of a fragment is unknown.
//! - Routed pods and the node have permanent neighbour entries of each other, and tunnels have no neighbours to discover. Neighbor
//!   discovery by these links would only fill the neighbour table of the node. Router advertisements and redirects would change the routes
//!   of the node (CVE-2020-10749).

use std::collections::BTreeSet;

use netweft_common::link_names::{AGENT_PREFIX, BRIDGE, FIREWALL_PROBE_PREFIX, PREFIX};
use netweft_crds::Transport;

use crate::desired::nft::{Family, chain};
use crate::inputs::Inputs;

/// Neighbor discovery as a whole (RFC 4861, section 4).
const DISCOVERY: &str = "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect } counter drop";
/// What only a router may send.
const OF_ROUTERS: &str =
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect } counter drop";
/// The route to the source does not lead to the link that the packet came in by.
const FOREIGN_SOURCE: &str = "fib saddr . iif oif missing counter drop";
/// The packet is for the node itself, broadcast and multicast included.
const TO_NODE: &str = "fib daddr type != unicast counter drop";

/// The chains of the filter.
pub fn chains(inputs: &Inputs) -> String {
    let tunnels = TunnelTraffic::of(inputs);
    let mut text = [prerouting(&tunnels), from_links(), from_pod(&tunnels)].concat();
    text += &from_tunnel(&tunnels);
    if !tunnels.is_empty() {
        text += &to_tunnel(&tunnels);
    }
    text
}

/// What encapsulated packets look like on the network of the nodes, for every mode in use or in standby.
struct TunnelTraffic {
    ports: BTreeSet<u16>,
    ipip: bool,
}

impl TunnelTraffic {
    fn of(inputs: &Inputs) -> Self {
        let modes = inputs.modes.iter();
        let transports: Vec<Transport> = modes.filter_map(|mode| mode.transport.get()).collect();
        let port = |transport: &Transport| match transport {
            Transport::Vxlan(parameters) => Some(parameters.port),
            Transport::Udp(parameters) => Some(parameters.port),
            Transport::Ipip | Transport::Direct | Transport::Bgp => None,
        };
        Self {
            ports: transports.iter().filter_map(port).collect(),
            ipip: transports.contains(&Transport::Ipip),
        }
    }

    fn is_empty(&self) -> bool {
        self.ports.is_empty() && !self.ipip
    }

    /// One rule for each port and protocol. A comparison each, because a set would be a lookup for every packet.
    fn rules(&self, verdict: &str) -> Vec<String> {
        let ipip = self.ipip.then(|| format!("ip protocol 4 {verdict}"));
        self.udp_rules(verdict).into_iter().chain(ipip).collect()
    }

    fn udp_rules(&self, verdict: &str) -> Vec<String> {
        let ports = self.ports.iter();
        ports
            .map(|port| format!("udp dport {port} {verdict}"))
            .collect()
    }
}

fn prerouting(tunnels: &TunnelTraffic) -> String {
    let rules = [
        "type filter hook prerouting priority raw; policy accept;".to_owned(),
        format!("iifname \"{PREFIX}*\" goto from_link"),
    ];
    let to_tunnels = tunnels.rules("goto to_tunnel");
    chain("prerouting", rules.into_iter().chain(to_tunnels))
}

/// The links of pods, of the bridge and of tunnels.
fn from_links() -> String {
    let by_link = chain(
        "from_link",
        [
            format!("iifname \"{BRIDGE}\" goto from_bridge"),
            format!("iifname \"{AGENT_PREFIX}*\" goto from_tunnel"),
            format!("iifname \"{FIREWALL_PROBE_PREFIX}*\" accept"),
            FOREIGN_SOURCE.to_owned(),
            DISCOVERY.to_owned(),
            "goto from_pod".to_owned(),
        ],
    );
    // A host without an address yet asks whether the address is in use, and joins the groups of the address (RFC 4862, RFC 3810).
    let unspecified = "ip6 saddr :: icmpv6 type { nd-neighbor-solicit, mld-listener-report, mld2-listener-report } accept";
    let bridge = chain(
        "from_bridge",
        [unspecified, FOREIGN_SOURCE, OF_ROUTERS, "goto from_pod"].map(str::to_owned),
    );
    by_link + &bridge
}

fn from_pod(tunnels: &TunnelTraffic) -> String {
    let rules = [
        // The host port plugin can make loopback addresses routable (`route_localnet`).
        "ip daddr 127.0.0.0/8 counter drop",
        "icmp type redirect counter drop",
        "meta l4proto 4 goto encapsulated_from_pod",
        "meta l4proto 41 goto encapsulated_from_pod",
    ];
    let rules = rules.map(str::to_owned).into_iter();
    let rules = rules.chain(tunnels.udp_rules("goto encapsulated_from_pod"));
    let outside = Family::BOTH.map(outside_pools);
    let encapsulated = outside.into_iter().chain([TO_NODE.to_owned()]);
    chain("encapsulated_from_pod", encapsulated) + &chain("from_pod", rules)
}

/// Pods may run tunnels between pods. A node could take any other packet for one of its own tunnels, after masquerading even for one of
/// another node.
fn outside_pools(family: Family) -> String {
    let (header, pools) = (family.header(), family.pools_set());
    format!("{header} daddr != @{pools} counter drop")
}

fn from_tunnel(tunnels: &TunnelTraffic) -> String {
    let nested = tunnels.rules(TO_NODE).into_iter();
    chain(
        "from_tunnel",
        [DISCOVERY.to_owned()].into_iter().chain(nested),
    )
}

fn to_tunnel(tunnels: &TunnelTraffic) -> String {
    let with_nodes = |end: &str, verdict: &str| {
        let rule = |family: Family| {
            let (header, nodes) = (family.header(), family.nodes_set());
            format!("{header} {end} @{nodes} {verdict}")
        };
        Family::BOTH.map(rule)
    };
    let from_nodes = with_nodes("saddr", "notrack accept").into_iter();
    let to_nodes = with_nodes("daddr", "notrack accept");
    let base = |hook: &str, rules: Vec<String>| {
        let hook = format!("type {hook}; policy accept;");
        [hook].into_iter().chain(rules).collect::<Vec<_>>()
    };
    // Before the source changes, so that what the node itself sends is known by its source.
    let forwarded = |family: Family| {
        let (header, pools) = (family.header(), family.pools_set());
        let unless = format!("{header} daddr != @{pools} fib saddr type != local");
        tunnels.udp_rules(&format!("ct state new {unless} counter drop"))
    };
    let forwarded = Family::BOTH.into_iter().flat_map(forwarded).collect();
    let received = tunnels.udp_rules("ct state new counter drop");
    [
        chain("to_tunnel", from_nodes.chain([TO_NODE.to_owned()])),
        chain("to_node", to_nodes),
        chain(
            "output",
            base(
                "filter hook output priority raw",
                tunnels.rules("goto to_node"),
            ),
        ),
        chain(
            "translated_forwarded",
            base("nat hook postrouting priority srcnat - 1", forwarded),
        ),
        chain(
            "translated_received",
            base("nat hook input priority 99", received),
        ),
    ]
    .concat()
}
