//! What lets a family of addresses pass the agent's links and the node's uplinks, whatever the defaults for links are.

use std::collections::BTreeMap;

use netweft_crds::IpFamily;
use netweft_netstate::model::{LinkName, NetworkState};

use crate::apply::sysctl;
use crate::inputs::Inputs;
use crate::inputs::host_facts::Facts;

/// Parameters of single links, by path. A link gets the values of `conf/default` when it is made (`inetdev_init`, `ipv6_add_dev`). IPv6 is
/// off by default on hardened nodes: the kernel refuses addresses and routes then. IPv4 may not be forwarded by default, although
/// `ip_forward` is set: packets that come in by the link would be refused.
pub fn parameters(kernel: &NetworkState) -> BTreeMap<String, String> {
    let addresses = kernel.addresses.keys();
    let addresses = addresses.map(|key| (&key.link, key.net.addr().is_ipv4()));
    let routes = kernel.routes.iter();
    let routes =
        routes.filter_map(|(key, route)| Some((route.dev.as_ref()?, key.dst.addr().is_ipv4())));
    let ipv6 = addresses.chain(routes.clone()).filter(|(_, ipv4)| !ipv4);
    let forwards = routes.filter(|(_, ipv4)| *ipv4);
    let ours = |link: &LinkName| kernel.links.contains_key(link);
    let ipv6 = ipv6.filter(|(link, _)| ours(link));
    let ipv6 = ipv6.map(|(link, _)| (sysctl::disable_ipv6(link), "0".to_owned()));
    let closed = kernel.links.keys().map(no_advertisements);
    let forwards = forwards.filter(|(link, _)| ours(link));
    let forwards =
        forwards.map(|(link, _)| (sysctl::forwarding(link, IpFamily::Ipv4), "1".to_owned()));
    ipv6.chain(forwards).chain(closed).collect()
}

/// Router advertisements that arrive by this link configure nothing, in an IPv4 cluster either: the default of the kernel accepts them,
/// and the node would send its own IPv6 traffic to the sender (CVE-2020-10749).
fn no_advertisements(link: &LinkName) -> (String, String) {
    (sysctl::accept_ra(link), "0".to_owned())
}

/// Parameters of the links of pods, by path. The plugin sets them; another program can change them later (`sysctl --system`). A routed
/// pod sends from addresses whose routes lead to its link; without the filter the node would also learn neighbours from forged ARP
/// requests (`arp_process`).
pub fn of_pods(inputs: &Inputs) -> BTreeMap<String, String> {
    let links = &inputs.pods.links;
    let closed = links.keys().map(no_advertisements);
    let routed = links.iter().filter(|(_, pod)| !pod.bridged);
    let strict = routed.map(|(link, _)| (sysctl::rp_filter(link.as_str()), "1".to_owned()));
    closed.chain(strict).collect()
}

/// Parameters of the links with the node's addresses, by path. Packets to pods that come in by a link are forwarded only if the link
/// forwards (`ip_route_input_slow`, `ip6_forward`), and single links can be told not to (`IPv4Forwarding=` of systemd-networkd) while
/// the switch for all is on.
pub fn of_uplinks(inputs: &Inputs, facts: &Facts) -> BTreeMap<String, String> {
    let egress = facts.egress.iter();
    let used = egress.map(|(address, egress)| (IpFamily::of(*address), &egress.link));
    let used = used.filter(|(family, _)| inputs.carries(*family));
    used.map(|(family, link)| (sysctl::forwarding(link, family), "1".to_owned()))
        .collect()
}
