use netweft_crds::{
    AddressSelector, AddressSelectors, EncapsulateWhen, UdpParameters, VxlanParameters,
};

use crate::plan::model::cluster_state::Unreadable;
use crate::plan::validate::*;
use crate::testing::{Cluster, at, mode, pool, vxlan};

fn checked_mode(spec: &str) -> Result<Mode, Verdict> {
    network_mode::check("m", &mode("m", spec).spec)
}

fn checked_pool(cidr: &str, more: &str) -> Result<Pool, Verdict> {
    ip_pool::check("p", &pool("p", cidr, more).spec, false)
}

fn check_all(cluster: &Cluster) -> (Modes, Pools) {
    let cluster_state = cluster.cluster_state();
    let modes = modes(&cluster_state);
    let pools = pools(&cluster_state, &modes);
    (modes, pools)
}

fn wrong<T: fmt::Debug>(result: &Result<T, Verdict>) -> String {
    let why = result.as_ref().unwrap_err();
    format!("{}: {}", why.reason.as_str(), why.message)
}

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
        let said = wrong(&checked_mode(&spec));
        assert!(said.starts_with("Invalid: "), "{node_address}: {said}");
    }
    let said = wrong(&checked_mode(
        "{mode: host-gw, nodeAddress: {ipv4: {cidr: 'fd00::/16'}}}",
    ));
    assert_eq!(
        said,
        "Invalid: cidr and reaches of spec.nodeAddress.ipv4 must be IPv4 too"
    );
}

#[test]
fn valid_mode_and_pool_spec_are_accepted() {
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
    let pool = checked_pool(
        "10.0.0.0/16",
        "blockSize: 27, reserved: [10.0.0.0/24, 10.0.7.7], disabled: true, podInterface: bridge",
    )
    .unwrap();
    assert_eq!((pool.block_prefix, pool.open), (27, false));
    assert_eq!(
        pool.reserved,
        [
            "10.0.0.0/24".parse().unwrap(),
            "10.0.7.7/32".parse().unwrap()
        ]
    );
}

#[test]
fn every_transport_is_parsed_from_mode_spec() {
    let overlay = |of: &str| format!("{{mode: overlay, overlay: {{{of}}}}}");
    let (always, cross) = (EncapsulateWhen::Always, EncapsulateWhen::CrossSubnet);
    for (spec, way, when) in [
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
            (way, when),
            "{spec}"
        );
        assert_eq!(
            mode.node_mode(IpFamily::Ipv4).transport.get(),
            Some(way),
            "{spec}"
        );
    }
}

#[test]
fn invalid_pool_values_are_refused_with_remedy() {
    for (cidr, more, words) in [
        (
            "10.0.0.0/16",
            "reserved: [ten]",
            "spec.reserved \"ten\" is neither an address nor a CIDR",
        ),
        (
            "10.0.0.0/16",
            "reserved: [10.0.0.5/24]",
            "has host bits; write 10.0.0.0/24 for the range or 10.0.0.5 for",
        ),
        (
            "10.0.0.0/16",
            "reserved: [10.1.0.0/24]",
            "10.1.0.0/24 is not inside spec.cidr 10.0.0.0/16",
        ),
        (
            "10.0.0.0/16",
            "reserved: ['fd00::1']",
            "is not inside spec.cidr",
        ),
        (
            "10.0.0.0/16",
            "blockSize: 19",
            "spec.blockSize 19 must be 20 to 30, for example 26",
        ),
        (
            "10.0.0.0/16",
            "blockSize: 31",
            "spec.blockSize 31 must be 20 to 30",
        ),
        (
            "10.0.0.0/28",
            "",
            "spec.cidr 10.0.0.0/28 is smaller than one block of /26",
        ),
        (
            "10.0.0.1/16",
            "",
            "spec.cidr 10.0.0.1/16 has host bits; write 10.0.0.0/16",
        ),
        (
            "10.0.0.0/16",
            "nodeSelector: {matchExpressions: [{key: a, operator: Near}]}",
            "the operators are In, NotIn, Exists and DoesNotExist",
        ),
    ] {
        let said = wrong(&checked_pool(cidr, more));
        assert!(
            said.starts_with("Invalid: ") && said.contains(words),
            "{cidr} {more}: {said}"
        );
    }
}

#[test]
fn invalid_mode_values_are_refused_with_remedy() {
    let said = wrong(&checked_mode("{mode: overlay}"));
    assert!(
        said.starts_with("Invalid: spec.overlay is missing"),
        "{said}"
    );
    let said = wrong(&checked_mode(
        "{mode: overlay, overlay: {encapsulation: vxlan}, nodeAddress: {}}",
    ));
    assert!(
        said.starts_with("Invalid: spec.nodeAddress takes exactly one"),
        "{said}"
    );
}

#[test]
fn older_pool_wins_over_overlapping_younger() {
    let cluster = Cluster {
        modes: vec![vxlan("default", 1)],
        pools: vec![
            at(2, pool("a", "10.0.0.0/8", "")),
            at(1, pool("b", "10.5.0.0/16", "")),
        ],
        ..Cluster::default()
    };
    let (_, pools) = check_all(&cluster);
    assert!(pools.by_name["b"].is_ok());
    assert_eq!(
        wrong(&pools.by_name["a"]),
        "Overlap: spec.cidr 10.0.0.0/8 overlaps 10.5.0.0/16 of IPPool b, which is older; delete one of the two IPPools and create a pool with another range"
    );
    assert_eq!(pools.by_age, ["b", "a"]);
}

#[test]
fn overlapping_pools_of_equal_age_are_ordered_by_name() {
    let cluster = Cluster {
        modes: vec![vxlan("default", 1)],
        pools: vec![
            at(1, pool("b", "10.0.0.0/8", "")),
            at(1, pool("a", "10.5.0.0/16", "")),
        ],
        ..Cluster::default()
    };
    let (_, pools) = check_all(&cluster);
    assert!(pools.by_name["a"].is_ok() && pools.by_name["b"].is_err());
}

#[test]
fn stalled_pool_keeps_range_unless_stalled_by_overlap() {
    let cluster = Cluster {
        modes: vec![vxlan("default", 1)],
        pools: vec![
            at(1, pool("stalled", "10.1.0.0/16", "reserved: [10.9.0.1]")),
            at(2, pool("inside", "10.1.2.0/24", "")),
            at(3, pool("beside", "10.2.0.0/16", "")),
            at(4, pool("around", "10.2.0.0/15", "")),
            at(5, pool("next", "10.3.0.0/16", "")),
        ],
        ..Cluster::default()
    };
    let (_, pools) = check_all(&cluster);
    assert!(wrong(&pools.by_name["inside"]).contains("of IPPool stalled, which is older"));
    assert!(wrong(&pools.by_name["around"]).contains("of IPPool beside, which is older"));
    assert!(pools.by_name["next"].is_ok());
}

#[test]
fn younger_mode_with_same_vni_is_conflict() {
    let cluster = Cluster {
        modes: vec![
            at(2, vxlan("a", 4096)),
            at(1, vxlan("b", 4096)),
            at(3, vxlan("c", 4097)),
        ],
        ..Cluster::default()
    };
    let (modes, _) = check_all(&cluster);
    assert!(modes["b"].is_ok() && modes["c"].is_ok());
    assert_eq!(
        wrong(&modes["a"]),
        "Conflict: spec.overlay.vxlan.vni 4096 is already used by NetworkMode b, which is older; choose another, for example 4097"
    );
}

#[test]
fn older_mode_wins_exclusive_link_or_port() {
    let overlay =
        |name: &str, of: &str| mode(name, &format!("{{mode: overlay, overlay: {{{of}}}}}"));
    let cluster = Cluster {
        modes: vec![
            at(1, overlay("ipip-1", "encapsulation: ipip")),
            at(
                2,
                overlay(
                    "ipip-2",
                    "encapsulation: ipip, encapsulateWhen: cross-subnet",
                ),
            ),
            at(1, overlay("udp-1", "encapsulation: udp")),
            at(2, overlay("udp-2", "encapsulation: udp")),
            at(
                3,
                overlay(
                    "vxlan-1",
                    "encapsulation: vxlan, vxlan: {vni: 1, port: 8285}",
                ),
            ),
            at(
                3,
                overlay("vxlan-2", "encapsulation: vxlan, vxlan: {vni: 1}"),
            ),
            at(
                4,
                overlay("vxlan-3", "encapsulation: vxlan, vxlan: {vni: 3}"),
            ),
            at(4, mode("plain-1", "{mode: host-gw}")),
            at(4, mode("plain-2", "{mode: host-gw}")),
        ],
        ..Cluster::default()
    };
    let (modes, _) = check_all(&cluster);
    let said: Vec<String> = modes
        .values()
        .filter(|mode| mode.is_err())
        .map(wrong)
        .collect();
    assert_eq!(
        said,
        [
            "Conflict: spec.overlay.encapsulation ipip is already used by NetworkMode ipip-1, which is older; a node has one IPIP link: set spec.networkMode of the IPPools to that mode",
            "Conflict: spec.overlay.udp.port 8285 is already used by NetworkMode udp-1, which is older; choose another, for example 8286",
            "Conflict: spec.overlay.vxlan.port 8285 is already used by NetworkMode udp-1, which is older; choose another, for example 8286",
        ]
    );
}

#[test]
fn ipip_mode_is_refused_for_ipv6_pool() {
    let cluster = Cluster {
        modes: vec![mode(
            "default",
            "{mode: overlay, overlay: {encapsulation: ipip}}",
        )],
        pools: vec![
            at(1, pool("four", "10.0.0.0/16", "")),
            at(2, pool("six", "fd00:10::/64", "")),
        ],
        ..Cluster::default()
    };
    let (_, pools) = check_all(&cluster);
    assert!(pools.by_name["four"].is_ok());
    assert_eq!(
        wrong(&pools.by_name["six"]),
        "Invalid: spec.networkMode default has encapsulation ipip, which carries IPv4 only; name a mode with encapsulation vxlan or udp, or of mode host-gw"
    );
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
    let said = wrong(&modes(&cluster_state)["default"]);
    assert!(
        said.starts_with("NotFound: ") && said.contains("udpRelay.enabled"),
        "{said}"
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
    let said = wrong(&modes(&cluster_state)["default"]);
    assert!(
        said.starts_with("NotFound: ") && said.contains("bird.enabled"),
        "{said}"
    );
}

/// Its rules are CEL's too; what slipped in before them says what is wrong.
#[test]
fn invalid_underlay_spec_is_refused_with_reason() {
    for (parameters, words) in [
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
        let said = wrong(&checked_mode(&spec));
        assert!(said.starts_with(&format!("Invalid: {words}")), "{said}");
    }
}

#[test]
fn different_node_address_in_second_mode_is_unsupported() {
    let other = "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {vni: 2}}, nodeAddress: {cidr: 10.0.0.0/8}}";
    let cluster = Cluster {
        modes: vec![at(1, vxlan("a", 1)), at(2, mode("b", other))],
        ..Cluster::default()
    };
    let (modes, _) = check_all(&cluster);
    assert!(wrong(&modes["b"]).starts_with(
        "NotYetSupported: spec.nodeAddress differs from that of NetworkMode a, which is older"
    ));
}

const BY_LINK: &str = "{mode: host-gw, nodeAddress: {interface: eth1}}";

#[test]
fn pool_with_missing_or_invalid_mode_is_refused() {
    let cluster = Cluster {
        modes: vec![at(1, vxlan("a", 1)), at(1, mode("b", BY_LINK))],
        pools: vec![
            at(1, pool("one", "10.1.0.0/16", "")),
            at(1, pool("two", "10.2.0.0/16", "networkMode: b")),
            at(1, pool("three", "10.3.0.0/16", "networkMode: a")),
        ],
        ..Cluster::default()
    };
    let (_, pools) = check_all(&cluster);
    assert_eq!(
        wrong(&pools.by_name["one"]),
        "NotFound: spec.networkMode names NetworkMode default, which does not exist; create it or name another: a"
    );
    assert_eq!(
        wrong(&pools.by_name["two"]),
        "NotYetSupported: NetworkMode b cannot be used: spec.nodeAddress differs from that of NetworkMode a, which is older: different values are not supported yet; set the same value in both"
    );
    assert!(pools.by_name["three"].is_ok());
}

#[test]
fn unreadable_mode_differs_from_missing_mode() {
    let cluster = Cluster {
        pools: vec![pool("p", "10.0.0.0/16", "")],
        ..Cluster::default()
    };
    let mut cluster_state = cluster.cluster_state();
    let metadata = vxlan("default", 1).metadata;
    cluster_state.unreadable.push(Unreadable {
        kind: UserKind::Mode,
        metadata,
        error: "no".to_owned(),
    });
    let modes = modes(&cluster_state);
    let pools = pools(&cluster_state, &modes);
    assert_eq!(
        wrong(&pools.by_name["p"]),
        "Invalid: NetworkMode default cannot be used: the object cannot be read: no"
    );
}
