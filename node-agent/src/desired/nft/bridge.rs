//! Filtering of frames that come in by the ports of the bridge.
//!
//! ```text
//!   frame ─▶ port, Ethernet and IP source are those of a pod ───────────────────────────▶ accepted
//!        └─▶ port of a known pod: ARP with the pod's own addresses, address detection ──▶ accepted; everything else dropped
//!   ```
//!
//! The bridge learns Ethernet addresses after this hook (`br_handle_frame_finish`), so that a dropped frame changes no forwarding entry.
//! Neighbours of a pod cannot be deceived either: the sender of ARP and the target of a neighbor advertisement are addresses of the pod.
//! The table follows the records of pods; the port of a pod without a record yet is not filtered.

use std::fmt::Write;
use std::net::IpAddr;

use netweft_netstate::model::{LinkName, Mac};

use crate::desired::nft::{chain, list};
use crate::pods::{PodLink, PodState};

/// The table; empty without a pod on the bridge.
pub fn render(pods: &PodState) -> String {
    let ports: Vec<(&LinkName, &PodLink)> =
        pods.links.iter().filter(|(_, pod)| pod.bridged).collect();
    if ports.is_empty() {
        return String::new();
    }
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
    let as_number = |(key, address): (String, IpAddr)| match address {
        IpAddr::V6(address) => Some(format!("{key} . {:#034x}", u128::from(address))),
        IpAddr::V4(_) => None,
    };
    let mut text = String::from(
        "add table bridge netweft\ndelete table bridge netweft\ntable bridge netweft {\n",
    );
    text += &set("ports", "iifname", names);
    text += &set("macs", "iifname . ether saddr", macs);
    text += &set(
        "sources_v4",
        "iifname . ether saddr . ip saddr",
        sources(true).map(by_text),
    );
    text += &set(
        "sources_v6",
        "iifname . ether saddr . ip6 saddr",
        sources(false).map(by_text),
    );
    // A neighbor advertisement has the target behind 8 bytes (RFC 4861, section 4.4).
    text += &set(
        "targets_v6",
        "iifname . ether saddr . @th,64,128",
        sources(false).filter_map(as_number),
    );
    text += &chains();
    text += "}\n";
    text
}

/// The addresses of the pod, and the link-local one that the kernel derives (`addrconf_ifid_eui48`).
fn sources(pod: &PodLink) -> impl Iterator<Item = IpAddr> {
    let own = pod.addresses.iter().copied();
    own.chain([IpAddr::V6(pod.mac.link_local())])
}

fn key(port: &LinkName, mac: Mac) -> String {
    format!("\"{port}\" . {mac}")
}

fn set(name: &str, of: &str, elements: impl Iterator<Item = String>) -> String {
    let elements: Vec<String> = elements.collect();
    let mut text = format!("\tset {name} {{\n\t\ttypeof {of}\n");
    if !elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", list(&elements));
    }
    text += "\t}\n";
    text
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
        "icmpv6 type nd-neighbor-advert iifname . ether saddr . @th,64,128 != @targets_v6 counter drop",
        "icmpv6 type { nd-router-advert, nd-redirect } counter drop",
        "accept",
    ];
    let other = [
        "iifname . ether saddr . arp saddr ip @sources_v4 iifname . arp saddr ether . arp saddr ip @sources_v4 accept",
        // Whether an address is in use, before it has one (RFC 5227, RFC 4862), and groups of the address.
        "iifname . ether saddr @macs arp saddr ip 0.0.0.0 accept",
        "iifname . ether saddr @macs ip6 saddr :: icmpv6 type { nd-neighbor-solicit, mld-listener-report, mld2-listener-report } accept",
        "counter drop",
    ];
    [
        chain("ipv6", ipv6.map(str::to_owned)),
        chain("other", other.map(str::to_owned)),
        chain("prerouting", prerouting.map(str::to_owned)),
    ]
    .concat()
}
