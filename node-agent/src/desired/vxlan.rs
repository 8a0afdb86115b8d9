//! The VXLAN transport: one link per VNI, and for each remote block three entries that never expire.
//!
//! ```text
//!   route      10.244.1.0/26 via 10.244.1.0 dev nw-vx4096 onlink src <own tunnel address>
//!   neighbour  10.244.1.0 dev nw-vx4096 lladdr <MAC of the other node's endpoint> PERMANENT
//!   fdb        <MAC of the other node's endpoint> dev nw-vx4096 dst <the other node's address>
//! ```
//!
//! The route has the next hop, the neighbour entry its MAC address, and the FDB entry the node with this MAC address. The next hop
//! is the first address of the block, which no pod gets (in IPv6 a link-local address). The MAC address of an endpoint is derived
//! from the name of its node. A node that joins therefore requires one small object, and no exchange between nodes.

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

/// The MAC address of a node's tunnel endpoint.
pub fn mac(node: &str) -> Mac {
    Mac(names::vtep_mac(node))
}

/// The kind of the link, with this outer source address.
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
/// In IPv6 it is the link-local address that is derived from the MAC address of the endpoint (RFC 4291, appendix A). The kernel
/// refuses a next hop to which a route of another link exists, even with `onlink` (`ip6_route_check_nh_onlink`), and while the
/// mode changes from host-gw, the route to the block is such a route.
pub fn next_hop(block: &RemoteBlock) -> IpAddr {
    if block.cidr.addr().is_ipv4() {
        return block.cidr.network();
    }
    IpAddr::V6(mac(&block.node).link_local())
}

/// Adds the neighbour and FDB entry of the next hop to a block.
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
