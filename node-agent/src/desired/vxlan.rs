//! The VXLAN way between nodes: one link per VNI, and for each remote block three entries that never age.
//!
//! ```text
//!   route      10.244.1.0/26 via 10.244.1.0 dev nw-vx4096 onlink src <own tunnel address>
//!   neighbour  10.244.1.0 dev nw-vx4096 lladdr <the other node's endpoint> PERMANENT
//!   fdb        <the other node's endpoint> dev nw-vx4096 dst <the other node's address>
//! ```
//!
//! The route finds the next hop, the neighbour its Ethernet address, the forwarding entry the node that has it. The
//! next hop is the block's own first address, which no pod ever has (in IPv6 a link-local one): it follows from the block and
//! its node alone. The endpoint's Ethernet address follows from the node's name. So a joining node costs its peers one small object and no exchange.

use std::net::IpAddr;

use netweft_common::link_names;
use netweft_crds::{VxlanParameters, names};
use netweft_netstate::model::{
    FdbKey, LinkKind, LinkName, Mac, Neighbour, NeighbourKey, NetworkState, Vxlan,
};

use crate::inputs::RemoteBlock;

/// The name of the link.
pub fn link_name(parameters: VxlanParameters) -> Option<LinkName> {
    let VxlanParameters { vni, port } = parameters;
    let other_port = (port != VxlanParameters::default().port).then_some(port);
    link_names::of_vxlan(vni, other_port).parse().ok()
}

/// The Ethernet address of a node's endpoint.
pub fn mac(node: &str) -> Mac {
    Mac(names::vtep_mac(node))
}

/// What the link is, with this outer source address.
pub fn link_kind(parameters: VxlanParameters, local: IpAddr) -> LinkKind {
    let VxlanParameters { vni, port } = parameters;
    LinkKind::Vxlan(Vxlan {
        vni,
        port,
        local: Some(local),
        learning: false,
    })
}

/// The next hop of the route to a block.
///
/// In IPv6 the link-local address that follows from the endpoint's Ethernet address: the kernel refuses a
/// next hop that a route of another link leads to, `onlink` or not (`ip6_route_check_nh_onlink`), and the block's own route does
/// while it is by next hop.
pub fn next_hop(block: &RemoteBlock) -> IpAddr {
    if block.cidr.addr().is_ipv4() {
        return block.cidr.network();
    }
    IpAddr::V6(mac(&block.node).link_local())
}

/// Add what finds the node behind the next hop of its block.
pub fn add_endpoint(
    link: &LinkName,
    block: &RemoteBlock,
    remote: IpAddr,
    kernel: &mut NetworkState,
) {
    let mac = mac(&block.node);
    let neighbour = NeighbourKey {
        link: link.clone(),
        ip: next_hop(block),
    };
    let permanent = Neighbour {
        mac: Some(mac),
        permanent: true,
    };
    kernel.neighbours.insert(neighbour, permanent);
    let link = link.clone();
    kernel.fdb.insert(FdbKey { link, mac }, remote);
}
