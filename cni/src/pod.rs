//! What an attachment looks like in the two namespaces. Pure.
//!
//! ```text
//!   pod                                   host
//!   eth0  10.244.0.5/32                   nw0123456789a   no address
//!   169.254.1.1 dev eth0                  10.244.0.5 dev nw0123456789a
//!   default via 169.254.1.1
//!   neighbour 169.254.1.1 = host MAC      neighbour 10.244.0.5 = pod MAC
//! ```
//!
//! The gateway is an address of nobody, the same for every pod: a permanent neighbour says who answers for it, so no ARP
//! and no proxy is needed, and neither side ever waits for a resolution.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netweft_netstate::model::{
    Address, AddressKey, Link, LinkKind, LinkName, Mac, Neighbour, NeighbourKey, NetworkState,
    Route, RouteKey, RouteKind, TABLE_MAIN,
};
use netweft_netstate::op::Op;
use netweft_netstate::owner::{METRIC, PROTOCOL_PLUGIN};
use sha2::{Digest, Sha256};

use crate::attachment::Attachment;
use crate::env::Owner;

/// Gateway of IPv4 pods.
pub const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
/// Gateway of IPv6 pods.
pub const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// What the kernel makes of an unset metric, in IPv4 and IPv6. A pod's only routes need no other.
const POD_METRICS: [u32; 2] = [0, 1024];

/// Name of the host's link and MACs of both ends, computed from the owner: DEL and GC know them without any record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The host's end.
    pub host_link: LinkName,
    /// Its Ethernet address.
    pub host_mac: Mac,
    /// The pod's end's Ethernet address.
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
pub fn identity(owner: &Owner) -> Identity {
    let hash: [u8; 32] = Sha256::digest(format!("{}/{}", owner.container_id, owner.if_name)).into();
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = hash;
    let hex: String = [a, b, c, d, e, f]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = format!("nw{hex:.11}");
    Identity {
        host_link: name.parse().expect("a link name"),
        host_mac: Mac([2, g, h, i, j, k]),
        pod_mac: Mac([2, l, m, n, o, p]),
    }
}

/// The gateway of an address' family.
#[must_use]
pub const fn gateway(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { GATEWAY_V4 } else { GATEWAY_V6 }
}

/// The default destination of an address' family.
#[must_use]
pub fn everywhere(ip: IpAddr) -> IpNet {
    let unspecified = if ip.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    IpNet::new_assert(unspecified, 0)
}

/// The host's side: what the agent also puts back when it is damaged.
#[must_use]
pub fn host_state(attachment: &Attachment) -> NetworkState {
    let Attachment {
        addresses,
        host_link,
        host_mac,
        pod_mac,
        mtu,
        ..
    } = attachment;
    let mut state = NetworkState::default();
    state.links.insert(host_link.clone(), veth(*host_mac, *mtu));
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

/// The pod's side.
#[must_use]
pub fn pod_state(attachment: &Attachment) -> NetworkState {
    let Attachment {
        owner,
        addresses,
        host_mac,
        pod_mac,
        mtu,
        ..
    } = attachment;
    let link = &owner.if_name;
    let mut state = NetworkState::default();
    state.links.insert(link.clone(), veth(*pod_mac, *mtu));
    for address in addresses {
        let gateway = gateway(address.ip);
        let [v4, v6] = POD_METRICS;
        let metric = if gateway.is_ipv4() { v4 } else { v6 };
        let key = |dst| RouteKey {
            table: TABLE_MAIN,
            dst,
            metric,
        };
        let net = IpNet::from(address.ip);
        state.addresses.insert(
            AddressKey {
                link: link.clone(),
                net,
            },
            Address::default(),
        );
        state
            .neighbours
            .insert(neighbour_key(link, gateway), permanent(*host_mac));
        if gateway.is_ipv4() {
            // IPv6 takes a link-local next hop to be on the link (`ip6_validate_gw`); IPv4 wants to be told.
            state
                .routes
                .insert(key(IpNet::from(gateway)), route(link, None));
        }
        state
            .routes
            .insert(key(everywhere(gateway)), route(link, Some(gateway)));
    }
    state
}

/// The operations that put `state` onto its links, which exist and are down.
#[must_use]
pub fn bring_up(state: &NetworkState) -> Vec<Op> {
    let NetworkState {
        links,
        addresses,
        routes,
        neighbours,
        ports: _,
        fdb: _,
    } = state;
    let up = |name: &LinkName| Op::LinkChange {
        name: name.clone(),
        mtu: None,
        mac: None,
        up: Some(true),
    };
    let mut ops: Vec<Op> = links.keys().map(up).collect();
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

/// What of `expected` is missing or different in `actual`, in words. More than expected is fine: later plugins add to it,
/// and may change the MTU.
#[must_use]
pub fn differences(actual: &NetworkState, expected: &NetworkState) -> Vec<String> {
    let mut found = Vec::new();
    for (name, link) in &expected.links {
        match actual.links.get(name) {
            None => found.push(format!("link {name} is missing")),
            Some(there) if there.mac != link.mac => {
                found.push(format!("link {name} has another MAC"));
            }
            Some(there) if !there.up => found.push(format!("link {name} is down")),
            Some(_) => {}
        }
    }
    let missing = bring_up(expected).into_iter().filter(|op| match op {
        Op::AddressAdd { key, .. } => !actual.addresses.contains_key(key),
        Op::NeighbourReplace { key, neighbour } => actual.neighbours.get(key) != Some(neighbour),
        Op::RouteAdd { key, route } => actual.routes.get(key) != Some(route),
        _ => false,
    });
    found.extend(missing.map(|op| format!("undone: {op}")));
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
mod tests {
    use super::*;
    use crate::attachment::{PodAddress, VERSION};
    use crate::env::Pod;
    use netweft_netstate::diff::diff;
    use netweft_netstate::owner;

    fn owner() -> Owner {
        Owner {
            container_id: "c0ffee".to_owned(),
            if_name: "eth0".parse().unwrap(),
        }
    }

    fn attachment() -> Attachment {
        let Identity {
            host_link,
            host_mac,
            pod_mac,
        } = identity(&owner());
        let address = |ip: &str| PodAddress {
            ip: ip.parse().unwrap(),
            pool: "default".to_owned(),
        };
        Attachment {
            version: VERSION,
            owner: owner(),
            pod: Pod::default(),
            netns: "/run/netns/x".to_owned(),
            addresses: vec![address("10.244.0.5"), address("fd00::5")],
            host_link,
            host_mac,
            pod_mac,
            mtu: 1350,
        }
    }

    fn words(state: &NetworkState) -> Vec<String> {
        bring_up(state).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn identity_is_recognised_and_differs_between_owners() {
        let one = identity(&owner());
        assert_eq!(one, identity(&owner()));
        assert!(
            owner::Owner::plugin().owns_link(&one.host_link),
            "{}",
            one.host_link
        );
        let other = identity(&Owner {
            if_name: "eth1".parse().unwrap(),
            ..owner()
        });
        assert!(
            one.host_link != other.host_link
                && one.host_mac != other.host_mac
                && one.host_mac != one.pod_mac
        );
        assert!(one.host_mac.0[0] == 2 && one.pod_mac.0[0] == 2);
    }

    #[test]
    fn the_host_gets_a_route_and_a_neighbour_per_address() {
        let link = identity(&owner()).host_link;
        let mac = identity(&owner()).pod_mac;
        let expected = [
            format!("set link {link} up"),
            format!("set neighbour 10.244.0.5 dev {link} mac {mac}"),
            format!("set neighbour fd00::5 dev {link} mac {mac}"),
            format!("add route 10.244.0.5/32 dev {link}"),
            format!("add route fd00::5/128 dev {link}"),
        ];
        assert_eq!(words(&host_state(&attachment())), expected);
    }

    #[test]
    fn the_pod_gets_its_addresses_and_a_way_out() {
        let mac = identity(&owner()).host_mac;
        let expected = [
            "set link eth0 up".to_owned(),
            "add address 10.244.0.5/32 dev eth0".to_owned(),
            "add address fd00::5/128 dev eth0".to_owned(),
            format!("set neighbour 169.254.1.1 dev eth0 mac {mac}"),
            format!("set neighbour fe80::1 dev eth0 mac {mac}"),
            "add route 169.254.1.1/32 dev eth0".to_owned(),
            "add route 0.0.0.0/0 via 169.254.1.1 dev eth0".to_owned(),
            "add route ::/0 via fe80::1 dev eth0".to_owned(),
        ];
        assert_eq!(words(&pod_state(&attachment())), expected);
    }

    #[test]
    fn the_agent_can_compare_the_host_side() {
        let state = host_state(&attachment());
        let found = diff(&state, &state, &owner::Owner::plugin());
        assert_eq!((found.ops.len(), found.conflicts.len()), (0, 0));
    }

    #[test]
    fn differences_name_what_is_gone_and_accept_more() {
        let expected = host_state(&attachment());
        let mut actual = expected.clone();
        actual.links.values_mut().for_each(|link| link.mtu = 1300);
        assert_eq!(differences(&actual, &expected), Vec::<String>::new());
        actual.routes.pop_first();
        actual.links.values_mut().for_each(|link| link.up = false);
        let link = identity(&owner()).host_link;
        let said = [
            format!("link {link} is down"),
            format!("undone: add route 10.244.0.5/32 dev {link}"),
        ];
        assert_eq!(differences(&actual, &expected), said);
    }
}
