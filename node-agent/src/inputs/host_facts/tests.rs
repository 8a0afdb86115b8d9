//! Host facts of a node with one uplink.

mod accept_ra;
mod egress;
mod route_lookup;

use std::collections::BTreeMap;

use netweft_crds::{EncapsulateWhen, NodeAddresses};
use netweft_netstate::model::{Address, AddressKey, Link, Route, RouteKey, RouteKind, TABLE_MAIN};

use crate::inputs::host_facts::*;
use crate::inputs::{OwnBlock, RemoteBlock};
use crate::pods::PodState;
use crate::status::problem::Problems;

fn derive(actual: &NetworkState, inputs: &Inputs) -> Result<HostFacts, NodeAddressMissing> {
    HostFacts::derive(actual, inputs, &LookedUp::new())
}

fn link(kind: LinkKind) -> Link {
    Link {
        kind,
        mac: None,
        mtu: 1400,
        up: true,
    }
}

fn state() -> NetworkState {
    let mut state = NetworkState::default();
    let name: LinkName = "uplink7".parse().unwrap();
    state.links.insert(name.clone(), link(LinkKind::Veth));
    let key = AddressKey {
        link: name,
        net: "192.0.2.1/24".parse().unwrap(),
    };
    state.addresses.insert(key, Address::default());
    state
}

fn inputs(addresses: NodeAddresses, outer_family: IpFamily) -> Inputs {
    inputs_by(Transport::Ipip, addresses, outer_family)
}

fn inputs_by(transport: Transport, addresses: NodeAddresses, outer_family: IpFamily) -> Inputs {
    let mode = NodeMode {
        name: "default".into(),
        pools: vec![],
        standby_pools: vec![],
        transport: transport.into(),
        outer_family,
        encapsulate_when: EncapsulateWhen::default(),
        mtu: 0,
        probe: Default::default(),
    };
    Inputs {
        node: "n".into(),
        addresses,
        modes: vec![mode],
        serving_pools: vec![],
        nodes: [].into(),
        namespaces: BTreeMap::new(),
        blocks: vec![],
        withdrawn: vec![],
        remote: vec![],
        pools: BTreeMap::new(),
        bgp: None,
        pods: PodState::default(),
        problems: Problems::default(),
    }
}

fn addresses(ipv4: &str, ipv6: &str) -> NodeAddresses {
    NodeAddresses {
        ipv4: ipv4.parse().ok(),
        ipv6: ipv6.parse().ok(),
    }
}

fn remote(node: &str, address: &str) -> RemoteBlock {
    RemoteBlock {
        cidr: "10.244.0.64/26".parse().unwrap(),
        pool: "p".into(),
        node: node.into(),
        addresses: addresses(address, ""),
        link_mtu: None,
    }
}

fn default_route(dev: &str, protocol: u8) -> (RouteKey, Route) {
    let key = RouteKey {
        table: TABLE_MAIN,
        dst: "0.0.0.0/0".parse().unwrap(),
        metric: 0,
    };
    let route = Route {
        kind: RouteKind::Unicast,
        protocol,
        via: "192.0.2.254".parse().ok(),
        dev: dev.parse().ok(),
        onlink: false,
        source: None,
        mtu: None,
    };
    (key, route)
}

#[test]
fn missing_tunnel_endpoint_address_is_named_in_error() {
    let gone = inputs(addresses("192.0.2.9", ""), IpFamily::Ipv4);
    let error = derive(&state(), &gone).unwrap_err();
    assert!(error.to_string().contains("192.0.2.9"));
    // No tunnel ends at this one.
    let other = inputs(addresses("192.0.2.1", "2001:db8::9"), IpFamily::Ipv4);
    assert_eq!(derive(&state(), &other).unwrap().egress.len(), 1);
    let needed = inputs(addresses("192.0.2.1", "2001:db8::9"), IpFamily::Ipv6);
    assert!(derive(&state(), &needed).is_err());
}

#[test]
fn missing_node_address_is_error_only_for_pod_families() {
    let mut both = inputs_by(
        Transport::Direct,
        addresses("192.0.2.1", "2001:db8::9"),
        IpFamily::Ipv4,
    );
    assert!(
        derive(&state(), &both).is_ok(),
        "no pod has an IPv6 address"
    );
    both.blocks.push(OwnBlock {
        cidr: "fd00::/122".parse().unwrap(),
        pool: "p".into(),
    });
    let error = derive(&state(), &both).unwrap_err();
    assert!(error.to_string().contains("2001:db8::9"));
}

#[test]
fn tun_links_are_listed_with_carrier_state() {
    let mut state = state();
    for name in ["nw-udp8285", "nw-udp8286"] {
        let link = Link {
            kind: LinkKind::Tun,
            mac: None,
            mtu: 1500,
            up: true,
        };
        state.links.insert(name.parse().unwrap(), link);
    }
    state.carriers.insert("nw-udp8286".parse().unwrap());
    let inputs = inputs(addresses("192.0.2.1", ""), IpFamily::Ipv4);
    let tun_links = derive(&state, &inputs).unwrap().tun_links;
    assert_eq!(tun_links.into_values().collect::<Vec<_>>(), [false, true]);
}
