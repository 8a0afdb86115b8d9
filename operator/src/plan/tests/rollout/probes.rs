//! Probes during a rollout.

use std::collections::BTreeSet;

use netweft_crds::{Phase, ProbeProtocol};

use crate::plan::tests::rollout::{datapaths, edited_mode, message, phase};
use crate::testing::Cluster;

#[test]
fn mode_change_waits_while_probe_of_node_fails() {
    let mut cluster = edited_mode(3);
    cluster.reconcile();
    cluster.agents_probe(&["worker-3"]);
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw"; 3]);
    assert_eq!(
        message(&cluster),
        "Preparing: from vxlan to host-gw: nodes prepare the new datapath and probe it; traffic stays on the old datapath until all probes succeed; waiting for worker-1, worker-2; worker-1 gets no reply over host-gw from worker-3 to ICMP echo or UDP port 9471; allow ICMP echo or UDP port 9471 between nodes, or set spec.rollout.probe to none"
    );
    // Probes of nodes that do not exist are ignored.
    cluster.agents_probe(&["worker-9"]);
    cluster.reconcile();
    assert_eq!(phase(&cluster), Phase::Switching);
}

#[test]
fn probe_setting_applies_only_to_standby_mode() {
    let probes = |cluster: &Cluster| {
        let modes = cluster.networks.iter().flat_map(|it| &it.spec.modes);
        modes.map(|mode| mode.probe).collect::<BTreeSet<_>>()
    };
    let mut cluster = edited_mode(3);
    for (probe, expected) in [
        ("udp", ProbeProtocol::Udp),
        ("icmp", ProbeProtocol::Icmp),
        ("none", ProbeProtocol::None),
        ("auto", ProbeProtocol::Auto),
        ("udp", ProbeProtocol::Udp),
    ] {
        cluster.edit_mode(&format!("{{mode: host-gw, rollout: {{probe: {probe}}}}}"));
        cluster.reconcile();
        let used = probes(&cluster);
        assert!(used.contains(&expected), "{probe}: {used:?}");
        assert!(
            used.is_subset(&[expected, ProbeProtocol::Auto].into()),
            "{used:?}"
        );
    }
    cluster.finish_rollout();
    assert_eq!(phase(&cluster), Phase::Stable);
    assert_eq!(probes(&cluster), [ProbeProtocol::Auto].into());
}

#[test]
fn probe_none_lets_mode_change_proceed() {
    let mut cluster = edited_mode(3);
    let rounds = |cluster: &mut Cluster| {
        for _ in 0..8 {
            cluster.reconcile();
            cluster.agents_probe(&["worker-2"]);
        }
    };
    rounds(&mut cluster);
    assert_eq!(phase(&cluster), Phase::Preparing);
    // Every node must still acknowledge the new datapath.
    let status = cluster.networks[0].status.as_mut().unwrap();
    status.observed_generation = Some(0);
    cluster.edit_mode("{mode: host-gw, rollout: {probe: none}}");
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw"; 3]);
    rounds(&mut cluster);
    assert_eq!(phase(&cluster), Phase::Stable);
}

#[test]
fn node_with_failed_probe_does_not_switch_transport() {
    let mut cluster = edited_mode(3);
    cluster.reconcile();
    cluster.agents_probe(&[]);
    cluster.reconcile();
    assert_eq!(datapaths(&cluster)[0], "host-gw/vxlan");
    cluster.agents_probe(&[]);
    cluster.networks[1].status.as_mut().unwrap().probes[0].unreachable =
        vec!["worker-3".to_owned()];
    cluster.reconcile();
    assert_eq!(
        datapaths(&cluster),
        ["host-gw/vxlan", "vxlan/host-gw", "host-gw/vxlan"]
    );
}
