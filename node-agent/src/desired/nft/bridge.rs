//! Filtering of frames that come in by the ports of the bridge.
//!
//! ```text
//!   frame ─▶ port, Ethernet and IP source are those of a pod ───────────────────────────▶ accepted
//!        └─▶ port of a known pod: ARP with the pod's own addresses, address detection ──▶ accepted; everything else dropped
//! ```
//!
//! The bridge learns Ethernet addresses after this hook (`br_handle_frame_finish`), so that a dropped frame changes no forwarding entry.
//! Frames to reserved group addresses (IEEE 802.1D, table 7-10) skip this hook, and the bridge does not learn from these
//! (`no_linklocal_learn`).
//! The sender of ARP and the target of a neighbor advertisement are addresses of the pod, so that the pod takes no address of a neighbour.
//! (Pods have permanent neighbour entries of the gateway.)
//! The table follows the records of pods. A port without a record yet is filtered only as far as frames pass the table inet
//! (`bridge-nf-call-iptables`): router advertisements and redirects.

use std::net::IpAddr;

use netweft_netstate::model::{LinkName, Mac};

use crate::apply::nft::TableFamily;
use crate::desired::nft::{chain, set, table};
use crate::pods::{PodLink, PodState};

/// What only a router may send (RFC 4861, section 4).
const OF_ROUTERS: &str = "icmpv6 type { nd-router-advert, nd-redirect } counter drop";
/// The target of a neighbor advertisement, behind 8 bytes (RFC 4861, section 4.4).
const ADVERTISED: &str = "@th,64,128";

/// The table of a node with a bridge.
pub fn render(pods: &PodState) -> String {
    let ports: Vec<(&LinkName, &PodLink)> =
        pods.links.iter().filter(|(_, pod)| pod.bridged).collect();
    let names = ports.iter().map(|(name, _)| format!("\"{name}\""));
    let macs = ports.iter().map(|(name, pod)| key(name, pod.mac));
    let sources = |ipv4: bool| {
        let ports = ports.iter();
        ports.flat_map(move |(name, pod)| {
            let own = sources(pod).filter(move |address| address.is_ipv4() == ipv4);
            own.map(|address| (key(name, pod.mac), address))
        })
    };
    let by_text = |(key, address): (String, IpAddr)| format!("{key} . {address}");
    let targets = sources(false)
        .filter_map(|(key, address)| Some(format!("{key} . {}", as_number(address)?)));
    let text = [
        set("ports", "typeof iifname", names),
        set("macs", "typeof iifname . ether saddr", macs),
        set(
            "sources_v4",
            "typeof iifname . ether saddr . ip saddr",
            sources(true).map(by_text),
        ),
        set(
            "sources_v6",
            "typeof iifname . ether saddr . ip6 saddr",
            sources(false).map(by_text),
        ),
        set(
            "targets_v6",
            &format!("typeof iifname . ether saddr . {ADVERTISED}"),
            targets,
        ),
        chains(),
    ];
    table(TableFamily::Bridge, &text.concat())
}

/// An IPv6 address as nftables compares raw bytes.
fn as_number(address: IpAddr) -> Option<String> {
    match address {
        IpAddr::V6(address) => Some(format!("{:#034x}", u128::from(address))),
        IpAddr::V4(_) => None,
    }
}

/// The addresses of the pod, and the link-local one that the kernel derives (`addrconf_ifid_eui48`).
fn sources(pod: &PodLink) -> impl Iterator<Item = IpAddr> {
    let own = pod.addresses.iter().copied();
    own.chain([IpAddr::V6(pod.mac.link_local())])
}

fn key(port: &LinkName, mac: Mac) -> String {
    format!("\"{port}\" . {mac}")
}

fn chains() -> String {
    // The first rule is the only one that packets of established IPv4 connections meet.
    let prerouting = [
        "type filter hook prerouting priority dstnat; policy accept;",
        "iifname . ether saddr . ip saddr @sources_v4 accept",
        "iifname . ether saddr . ip6 saddr @sources_v6 goto ipv6",
        "iifname @ports goto other",
    ];
    let ipv6 = [
        format!(
            "icmpv6 type nd-neighbor-advert iifname . ether saddr . {ADVERTISED} != @targets_v6 counter drop"
        ),
        OF_ROUTERS.to_owned(),
        "accept".to_owned(),
    ];
    let other = [
        "iifname . ether saddr . arp saddr ip @sources_v4 iifname . arp saddr ether . arp saddr ip @sources_v4 accept",
        // Whether an address is in use, before it has one (RFC 5227, RFC 4862), and groups of the address.
        "iifname . ether saddr @macs arp saddr ip 0.0.0.0 accept",
        "iifname . ether saddr @macs ip6 saddr :: icmpv6 type { nd-neighbor-solicit, mld-listener-report, mld2-listener-report } accept",
        "counter drop",
    ];
    [
        chain("ipv6", ipv6),
        chain("other", other.map(str::to_owned)),
        chain("prerouting", prerouting.map(str::to_owned)),
    ]
    .concat()
}
