//! Filtering of what pods and other hosts send.

use netweft_crds::UdpParameters;

use super::*;
use crate::pods::PodLink;

fn with_transport(transport: Transport) -> Inputs {
    let mut inputs = inputs();
    inputs.modes[0].transport = TransportSource::from(transport);
    inputs
}

/// The rules of a chain.
fn chain<'a>(nft: &'a str, name: &str) -> Vec<&'a str> {
    let lines = nft.lines().map(str::trim);
    let mut from = lines.skip_while(|line| *line != format!("chain {name} {{"));
    from.next();
    from.take_while(|line| *line != "}").collect()
}

fn pod(bridged: bool, addresses: &[&str]) -> PodLink {
    PodLink {
        bridged,
        mac: "02:00:00:00:00:05".parse().unwrap(),
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
    }
}

#[test]
fn links_accept_no_router_advertisements_in_ipv4_cluster() {
    let mut inputs = inputs();
    inputs.pods.links = [(
        "nw0123456789a".parse().unwrap(),
        pod(false, &["10.244.0.5"]),
    )]
    .into();
    inputs
        .pools
        .values_mut()
        .for_each(|pool| pool.pod_interface = PodInterface::Bridge);
    let desired = desired(&inputs, &facts());
    let links = desired.kernel.links.keys().chain(inputs.pods.links.keys());
    let links: Vec<_> = links.map(sysctl::accept_ra).collect();
    assert_eq!(links.len(), 3, "{links:?}");
    for name in links {
        assert_eq!(
            desired.sysctls.get(&name).map(String::as_str),
            Some("0"),
            "{name}"
        );
    }
}

#[test]
fn pod_link_has_strict_rp_filter_only_if_routed() {
    for (bridged, value) in [(false, Some("1")), (true, None)] {
        let mut inputs = inputs();
        inputs.pods.links = [(
            "nw0123456789a".parse().unwrap(),
            pod(bridged, &["10.244.0.5"]),
        )]
        .into();
        let desired = desired(&inputs, &facts());
        let found = desired.sysctls.get(&sysctl::rp_filter("nw0123456789a"));
        assert_eq!(found.map(String::as_str), value);
    }
}

#[test]
fn sources_of_pods_are_checked_in_every_mode() {
    let vxlan = VxlanParameters::default();
    for transport in [
        Transport::Vxlan(vxlan),
        Transport::Ipip,
        Transport::Direct,
        Transport::Bgp,
    ] {
        for nat_outgoing in [false, true] {
            let mut inputs = with_transport(transport);
            inputs
                .pools
                .values_mut()
                .for_each(|pool| pool.nat_outgoing = nat_outgoing);
            let nft = desired(&inputs, &facts()).nft;
            let rules = chain(&nft, "from_link");
            assert!(
                rules.contains(&"fib saddr . iif oif missing counter drop"),
                "{rules:?}"
            );
        }
    }
}

#[test]
fn tunnels_of_modes_in_use_and_standby_accept_nodes_only() {
    let port = |port| Transport::Vxlan(VxlanParameters { vni: 1, port });
    let mut inputs = with_transport(port(4789));
    let mut standby = inputs.modes[0].clone();
    standby.transport = TransportSource::from(Transport::Udp(UdpParameters { port: 8285 }));
    standby.standby_pools = std::mem::take(&mut standby.pools);
    let mut ipip = standby.clone();
    ipip.transport = TransportSource::from(Transport::Ipip);
    inputs.modes.extend([standby, ipip]);

    let nft = desired(&inputs, &facts()).nft;
    for chain in [chain(&nft, "prerouting"), chain(&nft, "output")] {
        for what in ["udp dport 4789 ", "udp dport 8285 ", "ip protocol 4 "] {
            let mut rules = chain.iter();
            assert!(
                rules.any(|rule| rule.starts_with(what)),
                "{what}: {chain:?}"
            );
        }
    }
    assert!(nft.contains("elements = { 192.0.2.2, 192.0.2.3 }"), "{nft}");
}

#[test]
fn nodes_without_tunnel_track_all_packets() {
    let nft = desired(&with_transport(Transport::Direct), &facts()).nft;
    assert!(
        !nft.contains("notrack") && !nft.contains("ct state"),
        "{nft}"
    );
}

#[test]
fn nft_table_of_bridged_pods_matches_snapshot() {
    let mut inputs = inputs();
    assert_eq!(desired(&inputs, &facts()).nft_bridge, "");
    inputs
        .pools
        .values_mut()
        .for_each(|pool| pool.pod_interface = PodInterface::Bridge);
    inputs.pods.links = [
        (
            "nw0123456789a".parse().unwrap(),
            pod(true, &["10.244.0.5", "fd00:10::5"]),
        ),
        (
            "nw0123456789b".parse().unwrap(),
            pod(false, &["10.244.0.6"]),
        ),
    ]
    .into();
    insta::assert_snapshot!(desired(&inputs, &facts()).nft_bridge);
}

#[test]
fn masqueraded_udp_flows_have_no_source_port_of_tunnel() {
    let mut inputs = with_transport(Transport::Vxlan(VxlanParameters {
        vni: 1,
        port: 60000,
    }));
    inputs
        .pools
        .values_mut()
        .for_each(|pool| pool.nat_outgoing = true);
    let nft = desired(&inputs, &facts()).nft;
    let rules = chain(&nft, "postrouting");
    let ports = " meta l4proto udp masquerade to :1024-59999 fully-random";
    assert!(rules[1].ends_with(ports), "{rules:?}");
}
