//! The kernel state of an attachment in the namespaces of pod and host. Pure.
//!
//! ```text
//!   pod                                   host
//!   eth0  10.244.0.5/32                   nw0123456789a   no address
//!   169.254.1.1 dev eth0                  10.244.0.5 dev nw0123456789a
//!   default via 169.254.1.1
//!   neighbour 169.254.1.1 = host MAC      neighbour 10.244.0.5 = pod MAC
//! ```
//!
//! The gateway of a routed pod is on no link; it is the same address for every pod. A permanent neighbour entry has its
//! Ethernet address, so neither ARP nor proxy ARP is needed, and no packet waits for address resolution.
//!
//! Bridged pods are on one layer 2 segment. The agent creates the bridge and sets its addresses:
//!
//! ```text
//!   pod                                   host
//!   eth0  10.244.0.66/26                  nw0123456789a   port of nw-br0, hairpin
//!   10.244.0.64/26 dev eth0               nw-br0  10.244.0.65/26
//!   default via 10.244.0.65
//!   neighbour 10.244.0.65 = bridge MAC
//! ```
//!
//! The port is in hairpin mode, because a Service can forward a connection of a pod to the pod itself: the bridge then sends
//! the frame out of the port on which it arrived. The gateway has a permanent neighbour entry here too, so that no other
//! pod can spoof it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netweft_common::link_names;
use netweft_netstate::model::{
    Address, AddressKey, Link, LinkKind, LinkName, Mac, Neighbour, NeighbourKey, NetworkState,
    Port, Route, RouteKey, RouteKind, TABLE_MAIN,
};
use netweft_netstate::op::Op;
use netweft_netstate::owner::{METRIC, PROTOCOL_AGENT, PROTOCOL_PLUGIN};
use sha2::{Digest, Sha256};

use crate::attachment::{Attachment, PodAddress};
use crate::env::AttachmentId;

/// Gateway of routed IPv4 pods.
pub const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
/// Gateway of routed IPv6 pods.
pub const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// The link-local address of the bridge. The source of a neighbour solicitation is the source address of the packet if the
/// link has this address, else the link-local address of the link; without one the kernel sends no solicitation
/// (`ndisc_solicit`). Packets from other nodes, and from addresses on other links of this node, would then not reach a pod.
pub const BRIDGE_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The kernel's default metrics, of IPv4 and IPv6. The routes of a pod need no other.
const POD_METRICS: [u32; 2] = [0, 1024];

/// Name of the host's link and Ethernet addresses of both ends, computed from the owner: DEL and GC need no record for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The host's end.
    pub host_link: LinkName,
    /// Ethernet address of the host's end.
    pub host_mac: Mac,
    /// Ethernet address of the pod's end.
    pub pod_mac: Mac,
}

/// Computes who is who. Both MACs are locally administered (bit 1 of the first byte).
///
/// # Panics
/// Never: 13 hexadecimal characters are a link name.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "nw and 11 hexadecimal digits are always a valid link name"
)]
pub fn identity(owner: &AttachmentId) -> Identity {
    let hash: [u8; 32] = Sha256::digest(format!("{}/{}", owner.container_id, owner.if_name)).into();
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = hash;
    let hex: String = [a, b, c, d, e, f]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = link_names::of_pod(&hex);
    Identity {
        host_link: name.parse().expect("a link name"),
        host_mac: Mac([2, g, h, i, j, k]),
        pod_mac: Mac([2, l, m, n, o, p]),
    }
}

/// The gateway of a pod for one of its addresses.
#[must_use]
pub fn gateway(address: &PodAddress) -> IpAddr {
    let routed = if address.ip.is_ipv4() {
        GATEWAY_V4
    } else {
        GATEWAY_V6
    };
    address.gateway.map_or(routed, |gateway| gateway.addr())
}

/// The address with its prefix length on the pod's link: that of the block on a bridge, else that of one address.
#[must_use]
pub fn link_address(address: &PodAddress) -> IpNet {
    let length = address.gateway.map(|gateway| gateway.prefix_len());
    let net = length.and_then(|length| IpNet::new(address.ip, length).ok());
    net.unwrap_or_else(|| IpNet::from(address.ip))
}

/// The destination of the default route for the family of an address.
#[must_use]
pub fn default_destination(ip: IpAddr) -> IpNet {
    let unspecified = if ip.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    IpNet::new_assert(unspecified, 0)
}

/// The host's side. The agent also restores it after external changes.
#[must_use]
pub fn host_state(attachment: &Attachment) -> NetworkState {
    let Attachment {
        addresses,
        host_link,
        host_mac,
        pod_mac,
        bridge,
        mtu,
        ..
    } = attachment;
    let mut state = NetworkState::default();
    state.links.insert(host_link.clone(), veth(*host_mac, *mtu));
    if let Some(bridge) = bridge {
        let port = Port {
            master: bridge.link.clone(),
            hairpin: true,
        };
        state.ports.insert(host_link.clone(), port);
        return state;
    }
    for address in addresses {
        state
            .neighbours
            .insert(neighbour_key(host_link, address.ip), permanent(*pod_mac));
        let key = RouteKey {
            table: TABLE_MAIN,
            dst: IpNet::from(address.ip),
            metric: METRIC,
        };
        state.routes.insert(key, route(host_link, None));
    }
    state
}

/// The bridge's link-local address, for a bridge with an IPv6 gateway.
#[must_use]
pub fn bridge_link_local(link: &LinkName) -> (AddressKey, Address) {
    let net = IpNet::new_assert(IpAddr::V6(BRIDGE_LINK_LOCAL), 64);
    let link = link.clone();
    (AddressKey { link, net }, Address { link_scope: true })
}

/// The part of the agent's bridge that a bridged pod needs; empty for a routed pod.
#[must_use]
pub fn bridge_state(attachment: &Attachment) -> NetworkState {
    let mut state = NetworkState::default();
    let Some(bridge) = &attachment.bridge else {
        return state;
    };
    let link = Link {
        kind: LinkKind::Bridge,
        ..veth(bridge.mac, attachment.mtu)
    };
    state.links.insert(bridge.link.clone(), link);
    let gateways = attachment.addresses.iter();
    for net in gateways.filter_map(|address| address.gateway) {
        let key = AddressKey {
            link: bridge.link.clone(),
            net,
        };
        state.addresses.insert(key, Address::default());
        if net.addr().is_ipv6() {
            state.addresses.extend([bridge_link_local(&bridge.link)]);
        }
        let key = RouteKey {
            table: TABLE_MAIN,
            dst: net.trunc(),
            metric: METRIC,
        };
        let to_block = Route {
            protocol: PROTOCOL_AGENT,
            source: Some(net.addr()),
            ..route(&bridge.link, None)
        };
        state.routes.insert(key, to_block);
    }
    state
}

/// The pod's side.
#[must_use]
pub fn pod_state(attachment: &Attachment) -> NetworkState {
    let Attachment {
        owner,
        addresses,
        host_mac,
        pod_mac,
        bridge,
        mtu,
        ..
    } = attachment;
    let link = &owner.if_name;
    let gateway_mac = bridge.as_ref().map_or(*host_mac, |bridge| bridge.mac);
    let mut state = NetworkState::default();
    state.links.insert(link.clone(), veth(*pod_mac, *mtu));
    for address in addresses {
        let gateway = gateway(address);
        let [v4, v6] = POD_METRICS;
        let metric = if gateway.is_ipv4() { v4 } else { v6 };
        let key = |dst| RouteKey {
            table: TABLE_MAIN,
            dst,
            metric,
        };
        let net = link_address(address);
        state.addresses.insert(
            AddressKey {
                link: link.clone(),
                net,
            },
            Address::default(),
        );
        state
            .neighbours
            .insert(neighbour_key(link, gateway), permanent(gateway_mac));
        let direct = match address.gateway {
            Some(_) => Some(net.trunc()),
            // IPv4 needs a route to the gateway. IPv6 assumes that a link-local next hop is on the link (`ip6_validate_gw`).
            None => gateway.is_ipv4().then(|| IpNet::from(gateway)),
        };
        let direct = direct.map(|net| (key(net), route(link, None)));
        state.routes.extend(direct);
        state.routes.insert(
            key(default_destination(gateway)),
            route(link, Some(gateway)),
        );
    }
    state
}

/// The operations that set up `state`, whose links exist and are down.
#[must_use]
pub fn setup_ops(state: &NetworkState) -> Vec<Op> {
    let NetworkState {
        links,
        ports,
        addresses,
        routes,
        neighbours,
        fdb: _,
        carriers: _,
        policy_routing: _,
        special_addresses: _,
    } = state;
    let up = |name: &LinkName| Op::LinkChange {
        name: name.clone(),
        mtu: None,
        mac: None,
        up: Some(true),
    };
    // The link joins the bridge before it is up, so that it never passes a packet outside of the bridge.
    let attach = ports.iter().map(|(link, port)| Op::PortReplace {
        link: link.clone(),
        port: port.clone(),
    });
    let mut ops: Vec<Op> = attach.chain(links.keys().map(up)).collect();
    ops.extend(addresses.iter().map(|(key, address)| Op::AddressAdd {
        key: key.clone(),
        address: address.clone(),
    }));
    ops.extend(
        neighbours
            .iter()
            .map(|(key, neighbour)| Op::NeighbourReplace {
                key: key.clone(),
                neighbour: neighbour.clone(),
            }),
    );
    // The route to the gateway before the one through it.
    let (through, direct): (Vec<_>, Vec<_>) =
        routes.iter().partition(|(_, route)| route.via.is_some());
    let routes = direct.into_iter().chain(through);
    ops.extend(routes.map(|(key, route)| Op::RouteAdd {
        key: key.clone(),
        route: route.clone(),
    }));
    ops
}

/// The parts of `expected` that are missing or different in `actual`. Additional objects are no difference: later plugins
/// add them, and may change the MTU.
#[must_use]
pub fn differences(actual: &NetworkState, expected: &NetworkState) -> Vec<String> {
    let mut found = Vec::new();
    for (name, link) in &expected.links {
        match actual.links.get(name) {
            None => found.push(format!("link {name} is missing")),
            Some(actual) if actual.mac != link.mac => {
                found.push(format!("link {name} has another Ethernet address"));
            }
            Some(actual) if !actual.up => found.push(format!("link {name} is down")),
            Some(_) => {}
        }
    }
    let missing = setup_ops(expected).into_iter().filter(|op| match op {
        Op::PortReplace { link, port } => actual.ports.get(link) != Some(port),
        Op::AddressAdd { key, .. } => !actual.addresses.contains_key(key),
        Op::NeighbourReplace { key, neighbour } => actual.neighbours.get(key) != Some(neighbour),
        Op::RouteAdd { key, route } => actual.routes.get(key) != Some(route),
        _ => false,
    });
    found.extend(missing.map(|op| format!("not in effect: {op}")));
    found
}

fn veth(mac: Mac, mtu: u32) -> Link {
    Link {
        kind: LinkKind::Veth,
        mac: Some(mac),
        mtu,
        up: true,
    }
}

fn neighbour_key(link: &LinkName, ip: IpAddr) -> NeighbourKey {
    NeighbourKey {
        link: link.clone(),
        ip,
    }
}

fn permanent(mac: Mac) -> Neighbour {
    Neighbour {
        mac: Some(mac),
        permanent: true,
    }
}

fn route(link: &LinkName, via: Option<IpAddr>) -> Route {
    Route {
        kind: RouteKind::Unicast,
        protocol: PROTOCOL_PLUGIN,
        via,
        dev: Some(link.clone()),
        onlink: false,
        source: None,
        mtu: None,
    }
}

#[cfg(test)]
mod tests;
