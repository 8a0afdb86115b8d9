//! Conflicts between objects of the same kind.

use crate::plan::validate::tests::*;
use crate::testing::{at, vxlan};

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
        refusal(&pools.by_name["a"]),
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
            at(3, pool("second", "10.2.0.0/16", "")),
            at(4, pool("around", "10.2.0.0/15", "")),
            at(5, pool("next", "10.3.0.0/16", "")),
        ],
        ..Cluster::default()
    };
    let (_, pools) = check_all(&cluster);
    assert!(refusal(&pools.by_name["inside"]).contains("of IPPool stalled, which is older"));
    assert!(refusal(&pools.by_name["around"]).contains("of IPPool second, which is older"));
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
        refusal(&modes["a"]),
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
    let message: Vec<String> = modes
        .values()
        .filter(|mode| mode.is_err())
        .map(refusal)
        .collect();
    assert_eq!(
        message,
        [
            "Conflict: spec.overlay.encapsulation ipip is already used by NetworkMode ipip-1, which is older; a node has one IPIP link: set spec.networkMode of the IPPools to that mode",
            "Conflict: spec.overlay.udp.port 8285 is already used by NetworkMode udp-1, which is older; choose another, for example 8286",
            "Conflict: spec.overlay.vxlan.port 8285 is already used by NetworkMode udp-1, which is older; choose another, for example 8286",
        ]
    );
}

#[test]
fn different_node_address_in_second_mode_is_unsupported() {
    let other = "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {vni: 2}}, nodeAddress: {cidr: 10.0.0.0/8}}";
    let cluster = Cluster {
        modes: vec![at(1, vxlan("a", 1)), at(2, mode("b", other))],
        ..Cluster::default()
    };
    let (modes, _) = check_all(&cluster);
    assert!(refusal(&modes["b"]).starts_with(
        "NotYetSupported: spec.nodeAddress differs from that of NetworkMode a, which is older"
    ));
}

#[test]
fn youngest_pools_and_modes_beyond_limit_are_refused() {
    let modes =
        (0..20).map(|number| at(number, vxlan(&format!("m{number:02}"), 1 + number as u32)));
    let pools = (0..300_i64).map(|number| {
        let cidr = format!("10.{}.{}.0/24", number / 256, number % 256);
        at(
            number,
            pool(&format!("p{number:03}"), &cidr, "networkMode: m00"),
        )
    });
    let cluster = Cluster {
        modes: modes.collect(),
        pools: pools.collect(),
        ..Cluster::default()
    };
    let (modes, pools) = check_all(&cluster);
    let usable = modes.values().filter(|mode| mode.is_ok()).count();
    assert_eq!((usable, pools.all_usable().count()), (16, 256));
    assert!(modes["m15"].is_ok() && pools.by_name["p255"].is_ok());
    assert_eq!(
        refusal(&pools.by_name["p256"]),
        "TooMany: there are 256 usable IPPools already, the maximum; delete IPPools that are not in use"
    );
    assert!(modes["m16"].is_err());
}
