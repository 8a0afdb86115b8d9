//! Messages about links.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeBooleanOptionFlags, BridgeBooleanOptions, In6AddrGenMode,
    InfoBridge, InfoBridgePort, InfoData, InfoIpTunnel, InfoKind, InfoPortData, InfoPortKind,
    InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};

use crate::model::{Link, LinkKind, LinkName, Mac, Vxlan};

/// Flags of a request that creates an object and fails if it exists.
pub(super) const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// Both ends of a veth pair, with one MTU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethPair {
    /// Name of this namespace's end.
    pub host_name: LinkName,
    /// Ethernet address of this namespace's end.
    pub host_mac: Mac,
    /// Name of the other namespace's end.
    pub peer_name: LinkName,
    /// Ethernet address of the other namespace's end.
    pub peer_mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
}

/// The peer is a complete link message, so the kernel creates it in its namespace with its final name (`veth_newlink`).
/// An interruption therefore leaves no peer in the host's namespace.
pub(super) fn add_veth(pair: &VethPair, netns: BorrowedFd<'_>) -> RouteNetlinkMessage {
    let VethPair {
        host_name,
        host_mac,
        peer_name,
        peer_mac,
        mtu,
    } = pair;
    let mut peer = named(peer_name);
    peer.attributes.extend([
        LinkAttribute::Address(peer_mac.0.to_vec()),
        LinkAttribute::Mtu(*mtu),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ]);
    let mut message = named(host_name);
    message.attributes.extend([
        LinkAttribute::Address(host_mac.0.to_vec()),
        LinkAttribute::Mtu(*mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ]);
    RouteNetlinkMessage::NewLink(message)
}

/// Creates a link, down.
pub(super) fn add(name: &LinkName, link: &Link) -> Result<RouteNetlinkMessage, &'static str> {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::Mtu(link.mtu));
    message
        .attributes
        .extend(link.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    let info = match &link.kind {
        LinkKind::Vxlan(vxlan) => vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(vxlan_data(vxlan)),
        ],
        // Without a remote endpoint, the next hop of the route is the outer destination (`ip_tunnel_xmit`).
        LinkKind::Ipip { local } => vec![
            LinkInfo::Kind(InfoKind::IpIp),
            LinkInfo::Data(InfoData::IpTunnel(vec![InfoIpTunnel::Local(IpAddr::V4(
                *local,
            ))])),
        ],
        LinkKind::Tun => return Err("the program that reads from a TUN link creates it"),
        LinkKind::Bridge => vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![without_link_local_learning()])),
        ],
        LinkKind::Veth => return Err("a veth is one end of a pair; use add_veth"),
        LinkKind::Other(kind) if kind.is_empty() => return Err("hardware cannot be created"),
        LinkKind::Other(kind) => vec![LinkInfo::Kind(InfoKind::from(kind.as_str()))],
    };
    message.attributes.push(LinkAttribute::LinkInfo(info));
    Ok(RouteNetlinkMessage::NewLink(message))
}

/// Frames to reserved group addresses (IEEE 802.1D) add no forwarding entry: netfilter cannot drop them before the bridge learns
/// (`br_handle_frame`).
fn without_link_local_learning() -> InfoBridge {
    let option = BridgeBooleanOptionFlags::NoLinkLocalLearn;
    InfoBridge::MultiBoolOpt(BridgeBooleanOptions {
        value: option,
        mask: option,
    })
}

fn vxlan_data(vxlan: &Vxlan) -> InfoData {
    let Vxlan {
        vni,
        port,
        local,
        learning,
    } = vxlan;
    let mut data = vec![
        InfoVxlan::Id(*vni),
        InfoVxlan::Port(*port),
        InfoVxlan::Learning(*learning),
    ];
    data.extend(local.map(|local| match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    }));
    InfoData::Vxlan(data)
}

/// Disables the automatic link-local address: netweft does not need it, and duplicate address detection takes a second.
/// The kernel ignores `IFLA_AF_SPEC` when it creates a link (`rtnl_create_link`), so this is a request after the creation
/// and before the link is set up.
pub(super) fn without_link_local(name: &LinkName) -> RouteNetlinkMessage {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let mut message = named(name);
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
            vec![mode],
        )]));
    RouteNetlinkMessage::SetLink(message)
}

/// Changes a link; the kernel applies MTU and MAC before the state (`do_setlink`).
pub(super) fn change(
    name: &LinkName,
    mtu: Option<u32>,
    mac: Option<Mac>,
    up: Option<bool>,
) -> RouteNetlinkMessage {
    let mut message = named(name);
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    message
        .attributes
        .extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    if let Some(up) = up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up {
            LinkFlags::Up
        } else {
            LinkFlags::empty()
        };
    }
    RouteNetlinkMessage::SetLink(message)
}

/// Attaches a link to the bridge with this index; 0 detaches it.
pub(super) fn enslave(name: &LinkName, master: u32) -> RouteNetlinkMessage {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::Controller(master));
    RouteNetlinkMessage::SetLink(message)
}

/// Sets the mode of a port. Only `RTM_NEWLINK` accepts attributes of a port, and only of a link that is attached
/// (`rtnl_changelink`), so this is a separate message.
pub(super) fn hairpin(name: &LinkName, hairpin: bool) -> RouteNetlinkMessage {
    let mode = InfoBridgePort::HairpinMode(hairpin);
    let mut message = named(name);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![mode])),
    ]));
    RouteNetlinkMessage::NewLink(message)
}

pub(super) fn delete(name: &LinkName) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelLink(named(name))
}

pub(super) fn get(name: &LinkName) -> RouteNetlinkMessage {
    let mut message = named(name);
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

fn named(name: &LinkName) -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.as_str().to_owned()));
    message
}
