//! The links on which routers may advertise themselves. They keep `accept_ra` although the node forwards.

use std::collections::BTreeSet;

use netweft_netstate::model::{Link, LinkKind, LinkName, NetworkState};

use crate::inputs::host_facts::LOOPBACK;

/// Kinds of uplinks (`IFLA_INFO_KIND`); hardware has no kind.
const UPLINK_KINDS: [&str; 4] = ["", "bond", "team", "vlan"];
/// Protocol of routes that the kernel has added for a router advertisement (`RTPROT_RA`).
const PROTOCOL_RA: u8 = 9;

/// Hardware, links that are stacked on it, and every link with a route from a router advertisement. Links of containers and
/// virtual machines are left out, because those could give the node a default route.
pub(super) fn links(actual: &NetworkState) -> BTreeSet<LinkName> {
    let is_uplink = |link: &Link| matches!(&link.kind, LinkKind::Other(kind) if UPLINK_KINDS.contains(&kind.as_str()));
    let links = actual.links.iter();
    let uplinks = links.filter(|(name, link)| name.as_str() != LOOPBACK && is_uplink(link));
    let routes = actual.routes.values();
    let advertised = routes.filter(|route| route.protocol == PROTOCOL_RA);
    let advertised = advertised.filter_map(|route| route.dev.as_ref());
    let all = uplinks.map(|(name, _)| name).chain(advertised);
    all.cloned().collect()
}
