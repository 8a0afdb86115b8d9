//! Edits of a mode before, during and without a rollout.

use netweft_crds::{Phase, Transport};

use crate::plan::tests::rollout::{datapaths, edited_mode, phase};
use crate::testing::{at, cluster, mode, pool, vxlan};

#[test]
fn reverted_mode_edit_switches_nodes_back() {
    let mut cluster = edited_mode(2);
    cluster.reconcile();
    cluster.agents_probe(&[]);
    cluster.reconcile();
    cluster.agents_probe(&[]);
    assert_eq!(datapaths(&cluster), ["host-gw/vxlan", "vxlan/host-gw"]);
    cluster.edit_mode("{mode: overlay, overlay: {encapsulation: vxlan}}");
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw", "vxlan/host-gw"]);
    cluster.agents_probe(&[]);
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["vxlan"; 2]);
}

#[test]
fn second_edit_during_change_keeps_all_used_transports() {
    let mut cluster = edited_mode(2);
    cluster.reconcile();
    cluster.agents_probe(&[]);
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["host-gw/vxlan", "vxlan/host-gw"]);
    cluster.edit_mode("{mode: overlay, overlay: {encapsulation: udp}}");
    cluster.reconcile();
    assert_eq!(
        datapaths(&cluster),
        ["host-gw/udp+vxlan", "vxlan/udp+host-gw"]
    );
    assert_eq!(phase(&cluster), Phase::Preparing);
}

#[test]
fn mode_change_with_conflicting_ports_is_immediate() {
    let mut cluster = cluster(2);
    cluster.modes[0] = at(
        0,
        mode(
            "default",
            "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {port: 8285}}}",
        ),
    );
    cluster.reconcile();
    cluster.agents_probe(&[]);
    cluster.reconcile();
    cluster.edit_mode("{mode: overlay, overlay: {encapsulation: udp}}");
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["udp"; 2]);
}

#[test]
fn only_transport_edits_start_mode_change() {
    for (spec, change) in [
        (
            "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {port: 4790}}}",
            true,
        ),
        (
            "{mode: overlay, overlay: {encapsulation: vxlan, vxlan: {vni: 7}}}",
            true,
        ),
        (
            "{mode: overlay, overlay: {encapsulation: vxlan, encapsulateWhen: cross-subnet}}",
            true,
        ),
        (
            "{mode: overlay, overlay: {encapsulation: vxlan}, mtu: 1300}",
            true,
        ),
        (
            "{mode: overlay, overlay: {encapsulation: vxlan}, rollout: {maxConcurrent: 1}}",
            false,
        ),
    ] {
        let mut cluster = cluster(1);
        cluster.reconcile();
        cluster.agents_probe(&[]);
        cluster.reconcile();
        cluster.edit_mode(spec);
        cluster.reconcile();
        assert_eq!(phase(&cluster) == Phase::Preparing, change, "{spec}");
    }
}

#[test]
fn bgp_stays_while_node_may_use_underlay_routes() {
    let mut cluster = cluster(2);
    cluster.modes[0] = at(0, mode("default", "{mode: underlay}"));
    cluster.reconcile();
    cluster.agents_probe(&[]);
    cluster.reconcile();
    cluster.edit_mode("{mode: overlay, overlay: {encapsulation: vxlan}}");
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["underlay/vxlan"; 2]);
    assert!(cluster.networks.iter().all(|it| it.spec.bgp.is_some()));
    for _ in 0..3 {
        cluster.agents_probe(&[]);
        cluster.reconcile();
    }
    assert_eq!(datapaths(&cluster), ["vxlan"; 2]);
    assert!(cluster.networks.iter().all(|it| it.spec.bgp.is_none()));
}

#[test]
fn change_to_underlay_keeps_old_transport_at_first() {
    let mut cluster = edited_mode(2);
    cluster.edit_mode("{mode: underlay}");
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["vxlan/underlay"; 2]);
    assert!(cluster.networks.iter().all(|it| it.spec.bgp.is_some()));
    let direct = Transport::Bgp;
    assert!(
        cluster.networks[0]
            .spec
            .modes
            .iter()
            .any(|it| it.transport.get() == Some(direct))
    );
}

/// Rollouts of two modes do not affect each other.
#[test]
fn simultaneous_mode_changes_are_independent() {
    let mut cluster = cluster(2);
    cluster.modes.push(at(1, vxlan("other", 7)));
    let mut other = at(1, pool("other", "10.9.0.0/16", ""));
    other.spec.network_mode = "other".to_owned();
    cluster.pools.push(other);
    cluster.reconcile();
    cluster.agents_probe(&[]);
    cluster.reconcile();
    cluster.edit_mode("{mode: host-gw}");
    cluster.reconcile();
    assert_eq!(phase(&cluster), Phase::Preparing);
    assert_eq!(
        cluster.modes[1].status.as_ref().unwrap().phase,
        Some(Phase::Stable)
    );
}
