//! Validation of single NetworkModes.

use netweft_crds::{
    AddressSelector, AddressSelectors, EncapsulateWhen, UdpParameters, VxlanParameters,
};

use crate::plan::validate::tests::*;

fn selector(cidr: &str, interface: &str, reaches: &str) -> Option<AddressSelector> {
    Some(AddressSelector {
        cidr: cidr.parse().ok(),
        interface: Some(interface.to_owned()).filter(|it| !it.is_empty()),
        reaches: reaches.parse().ok(),
    })
}

#[test]
fn node_address_selector_applies_to_matching_families() {
    let by_link = || selector("", "eth1", "");
    for (node_address, ipv4, ipv6) in [
        ("{from: internal-ip}", None, None),
        ("{interface: eth1}", by_link(), by_link()),
        ("{cidr: 10.0.0.0/8}", selector("10.0.0.0/8", "", ""), None),
        ("{cidr: 'fd00::/16'}", None, selector("fd00::/16", "", "")),
        ("{reaches: 10.1.0.1}", selector("", "", "10.1.0.1"), None),
        (
            "{reaches: '2001:db8::1'}",
            None,
            selector("", "", "2001:db8::1"),
        ),
        ("{ipv4: {interface: eth1}}", by_link(), None),
        (
            "{ipv4: {interface: eth1}, ipv6: {from: internal-ip}}",
            by_link(),
            None,
        ),
        (
            "{ipv4: {reaches: 10.1.0.1}, ipv6: {cidr: 'fd00::/16'}}",
            selector("", "", "10.1.0.1"),
            selector("fd00::/16", "", ""),
        ),
    ] {
        let spec = format!("{{mode: host-gw, nodeAddress: {node_address}}}");
        let mode = checked_mode(&spec).unwrap();
        assert_eq!(
            mode.address,
            AddressSelectors { ipv4, ipv6 },
            "{node_address}"
        );
    }
}

#[test]
fn ambiguous_or_empty_node_address_selector_is_refused() {
    for node_address in [
        "{}",
        "{from: internal-ip, interface: eth1}",
        "{cidr: 10.0.0.0/8, reaches: 10.1.0.1}",
        "{cidr: 10.0.0.0/8, interface: eth1}",
        "{from: internal-ip, ipv6: {interface: eth1}}",
        "{ipv4: {}}",
        "{ipv4: {from: internal-ip, interface: eth1}}",
        "{ipv4: {cidr: 'fd00::/16'}}",
        "{ipv6: {reaches: 10.1.0.1}}",
    ] {
        let spec = format!("{{mode: host-gw, nodeAddress: {node_address}}}");
        let message = refusal(&checked_mode(&spec));
        assert!(
            message.starts_with("Invalid: "),
            "{node_address}: {message}"
        );
    }
    let message = refusal(&checked_mode(
        "{mode: host-gw, nodeAddress: {ipv4: {cidr: 'fd00::/16'}}}",
    ));
    assert_eq!(
        message,
        "Invalid: cidr and reaches of spec.nodeAddress.ipv4 must be IPv4 too"
    );
}

#[test]
fn valid_mode_spec_is_accepted() {
    let spec = "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {vni: 7, port: 8472}}, mtu: 1400, nodeAddress: {cidr: 10.0.0.0/8}}";
    let mode = checked_mode(spec).unwrap();
    let vxlan = VxlanParameters { vni: 7, port: 8472 };
    assert_eq!((mode.transport, mode.mtu), (Transport::Vxlan(vxlan), 1400));
    assert_eq!(
        mode.address,
        AddressSelectors {
            ipv4: selector("10.0.0.0/8", "", ""),
            ipv6: None
        }
    );
}

#[test]
fn every_transport_is_parsed_from_mode_spec() {
    let overlay = |of: &str| format!("{{mode: overlay, overlay: {{{of}}}}}");
    let (always, cross) = (EncapsulateWhen::Always, EncapsulateWhen::CrossSubnet);
    for (spec, transport, when) in [
        ("{mode: host-gw}".to_owned(), Transport::Direct, always),
        ("{mode: underlay}".to_owned(), Transport::Bgp, always),
        (overlay("encapsulation: ipip"), Transport::Ipip, always),
        (
            overlay("encapsulation: ipip, encapsulateWhen: cross-subnet"),
            Transport::Ipip,
            cross,
        ),
        (
            overlay("encapsulation: udp"),
            Transport::Udp(UdpParameters { port: 8285 }),
            always,
        ),
        (
            overlay("encapsulation: udp, udp: {port: 9000}"),
            Transport::Udp(UdpParameters { port: 9000 }),
            always,
        ),
    ] {
        let mode = checked_mode(&spec).unwrap();
        assert_eq!(
            (mode.transport, mode.encapsulate_when),
            (transport, when),
            "{spec}"
        );
        assert_eq!(
            mode.node_mode(IpFamily::Ipv4).transport.get(),
            Some(transport),
            "{spec}"
        );
    }
}

#[test]
fn invalid_mode_values_are_refused_with_remedy() {
    let message = refusal(&checked_mode("{mode: overlay}"));
    assert!(
        message.starts_with("Invalid: spec.overlay is missing"),
        "{message}"
    );
    let message = refusal(&checked_mode(
        "{mode: overlay, overlay: {encapsulation: vxlan}, nodeAddress: {}}",
    ));
    assert!(
        message.starts_with("Invalid: spec.nodeAddress takes exactly one"),
        "{message}"
    );
}

/// CEL rules refuse these values, too. Objects that are older than the rules get this message.
#[test]
fn invalid_underlay_spec_is_refused_with_reason() {
    for (parameters, expected) in [
        (
            "routeReflectors: [{nodeSelector: {}, clusterID: ten}]",
            "spec.underlay.routeReflectors[].clusterID \"ten\" does not have the form of an IPv4 address",
        ),
        (
            "routeReflectors: [{nodeSelector: {matchExpressions: [{key: a, operator: Near}]}, clusterID: 1.1.1.1}]",
            "spec.underlay.routeReflectors[].nodeSelector: ",
        ),
        (
            "asNumbers: [{nodeSelector: {matchExpressions: [{key: a, operator: Near}]}, asNumber: 1}]",
            "spec.underlay.asNumbers[].nodeSelector: ",
        ),
    ] {
        let spec = format!("{{mode: underlay, underlay: {{{parameters}}}}}");
        let message = refusal(&checked_mode(&spec));
        assert!(
            message.starts_with(&format!("Invalid: {expected}")),
            "{message}"
        );
    }
}

#[test]
fn udp_mode_without_relay_is_refused() {
    let cluster = Cluster {
        modes: vec![mode(
            "default",
            "{mode: overlay, overlay: {encapsulation: udp}}",
        )],
        ..Cluster::default()
    };
    let mut cluster_state = cluster.cluster_state();
    assert!(modes(&cluster_state)["default"].is_ok());
    cluster_state.without_udp_relay = true;
    let message = refusal(&modes(&cluster_state)["default"]);
    assert!(
        message.starts_with("NotFound: ") && message.contains("udpRelay.enabled"),
        "{message}"
    );
}

#[test]
fn underlay_mode_without_bird_is_refused() {
    let cluster = Cluster {
        modes: vec![mode("default", "{mode: underlay}")],
        ..Cluster::default()
    };
    let mut cluster_state = cluster.cluster_state();
    assert!(modes(&cluster_state)["default"].is_ok());
    cluster_state.without_bird = true;
    let message = refusal(&modes(&cluster_state)["default"]);
    assert!(
        message.starts_with("NotFound: ") && message.contains("bird.enabled"),
        "{message}"
    );
}
