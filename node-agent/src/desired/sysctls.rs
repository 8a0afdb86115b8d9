//! The sysctls of the node: forwarding, IPv6 on the links of the agent, router advertisements, reverse path filters.

use std::collections::{BTreeMap, BTreeSet};

use netweft_crds::{EncapsulateWhen, IpFamily, NodeMode, Transport};
use netweft_netstate::model::{LinkName, NetworkState};

use crate::apply::sysctl;
use crate::inputs::Inputs;
use crate::inputs::host_facts::HostFacts;

/// The sysctls that enable forwarding on the node, by path.
pub fn forwarding(inputs: &Inputs) -> BTreeMap<String, String> {
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

/// The sysctls of the links of the agent, by path, whatever the defaults of new links are. A link gets the values of
/// `conf/default` when it is created (`inetdev_init`, `ipv6_add_dev`). Hardened nodes disable IPv6 by default: the kernel then
/// refuses addresses and routes. IPv4 may not be forwarded by default although `ip_forward` is set: packets that enter by the
/// link are then dropped.
pub fn of_agent_links(kernel: &NetworkState) -> BTreeMap<String, String> {
    let addresses = kernel.addresses.keys();
    let addresses = addresses.map(|key| (&key.link, key.net.addr().is_ipv4()));
    let routes = kernel.routes.iter();
    let routes =
        routes.filter_map(|(key, route)| Some((route.dev.as_ref()?, key.dst.addr().is_ipv4())));
    let is_own = |link: &LinkName| kernel.links.contains_key(link);
    let with_ipv6 = addresses.chain(routes.clone());
    let with_ipv6 = with_ipv6.filter(|(link, ipv4)| !ipv4 && is_own(link));
    let with_ipv6 = with_ipv6.map(|(link, _)| (sysctl::disable_ipv6(link), "0".to_owned()));
    let forwarding = routes.filter(|(link, ipv4)| *ipv4 && is_own(link));
    let forwarding =
        forwarding.map(|(link, _)| (sysctl::forwarding(link, IpFamily::Ipv4), "1".to_owned()));
    let closed = kernel.links.keys().map(no_advertisements);
    with_ipv6.chain(forwarding).chain(closed).collect()
}

/// Router advertisements that arrive by this link configure nothing, in an IPv4 cluster either: the default of the kernel accepts them,
/// and the node would send its own IPv6 traffic to the sender (CVE-2020-10749).
fn no_advertisements(link: &LinkName) -> (String, String) {
    (sysctl::accept_ra(link), "0".to_owned())
}

/// The sysctls of the links of pods, by path. The plugin sets them, and another program can change them later (`sysctl --system`). A
/// routed pod sends from addresses whose routes lead to its link; without the filter the node would also learn neighbours from forged
/// ARP requests (`arp_process`).
pub fn of_pod_links(inputs: &Inputs) -> BTreeMap<String, String> {
    let links = &inputs.pods.links;
    let closed = links.keys().map(no_advertisements);
    let routed = links.iter().filter(|(_, pod)| !pod.bridged);
    let strict = routed.map(|(link, _)| (sysctl::rp_filter(link.as_str()), "1".to_owned()));
    closed.chain(strict).collect()
}

/// The sysctls of the links with the node's addresses, by path. Packets to pods that enter by a link are forwarded only if
/// forwarding is enabled on the link (`ip_route_input_slow`, `ip6_forward`). It can be disabled on single links
/// (`IPv4Forwarding=` of systemd-networkd) while it is enabled on the node.
pub fn of_uplinks(inputs: &Inputs, facts: &HostFacts) -> BTreeMap<String, String> {
    let egress = facts.egress.iter();
    let used = egress.map(|(address, egress)| (IpFamily::of(*address), &egress.link));
    let used = used.filter(|(family, _)| inputs.carries(*family));
    used.map(|(family, link)| (sysctl::forwarding(link, family), "1".to_owned()))
        .collect()
}

/// The links that keep accepting router advertisements. When IPv6 forwarding is enabled, which applies to the whole node, the
/// kernel removes the default routes from router advertisements on every link (`rt6_purge_dflt_routers`) and ignores further
/// advertisements (`ipv6_accept_ra`), unless `accept_ra` of the link is 2. The default route can be on another link than the
/// node's address.
pub fn accept_ra_links(inputs: &Inputs, facts: &HostFacts) -> BTreeSet<LinkName> {
    if !inputs.carries(IpFamily::Ipv6) {
        return BTreeSet::new();
    }
    let egress = facts.egress.values().map(|egress| &egress.link);
    egress.chain(&facts.accept_ra_links).cloned().collect()
}

/// The links on which a packet can arrive whose reply leaves by another link, so that a strict reverse path filter would drop
/// it. That is so where pools have different transports, where a mode has two (`cross-subnet`), and where BGP selects among
/// several links.
pub fn loose_rp_filter(inputs: &Inputs, facts: &HostFacts) -> BTreeSet<LinkName> {
    let transport = |mode: &NodeMode| {
        let unencapsulated = matches!(
            mode.transport.get(),
            Some(Transport::Direct | Transport::Bgp)
        );
        let cross_subnet = mode.encapsulate_when == EncapsulateWhen::CrossSubnet;
        (unencapsulated, cross_subnet)
    };
    let transports: BTreeSet<_> = inputs.modes.iter().map(transport).collect();
    let links = facts.egress.values().map(|egress| egress.link.clone());
    let links: BTreeSet<_> = links.chain(facts.bgp_peer_links.iter().cloned()).collect();
    let one_transport = transports.len() <= 1 && !transports.contains(&(false, true));
    let one_link = inputs.bgp.is_none() || links.len() <= 1;
    if one_transport && one_link {
        BTreeSet::new()
    } else {
        links
    }
}
