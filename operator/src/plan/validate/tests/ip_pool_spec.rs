//! Validation of single IPPools, and of their NetworkMode.

use crate::plan::model::cluster_state::Unreadable;
use crate::plan::validate::tests::*;
use crate::testing::{at, vxlan};

#[test]
fn valid_pool_spec_is_accepted() {
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
fn invalid_pool_values_are_refused_with_remedy() {
    for (cidr, more, expected) in [
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
        let message = refusal(&checked_pool(cidr, more));
        assert!(
            message.starts_with("Invalid: ") && message.contains(expected),
            "{cidr} {more}: {message}"
        );
    }
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
        refusal(&pools.by_name["six"]),
        "Invalid: spec.networkMode default has encapsulation ipip, which carries IPv4 only; name a mode with encapsulation vxlan or udp, or of mode host-gw"
    );
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
        refusal(&pools.by_name["one"]),
        "NotFound: spec.networkMode names NetworkMode default, which does not exist; create it or name another: a"
    );
    assert_eq!(
        refusal(&pools.by_name["two"]),
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
        refusal(&pools.by_name["p"]),
        "Invalid: NetworkMode default cannot be used: the object cannot be read: no"
    );
}
