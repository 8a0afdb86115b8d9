//! Rollouts of a changed datapath.

mod absent_nodes;
mod edits;
mod probes;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netweft_crds::{NodeMode, Phase};

use crate::testing::{Cluster, at, cluster, mode, node};

/// A converged cluster whose mode is edited to host-gw.
fn edited_mode(nodes: usize) -> Cluster {
    let mut cluster = cluster(nodes);
    cluster.reconcile();
    cluster.agents_report(0);
    cluster.reconcile();
    cluster.edit_mode("{mode: host-gw}");
    cluster
}

/// The datapaths of each node: those in use, then the standby datapaths.
fn datapaths(cluster: &Cluster) -> Vec<String> {
    let of = |modes: &[NodeMode], list: fn(&NodeMode) -> &Vec<String>| {
        let chosen = modes.iter().filter(|mode| !list(mode).is_empty());
        chosen
            .map(|mode| mode.transport.get().unwrap().to_string())
            .collect::<Vec<_>>()
            .join("+")
    };
    let nodes = cluster.networks.iter().map(|network| {
        let modes = &network.spec.modes;
        let standby = of(modes, |mode| &mode.standby_pools);
        let slash = if standby.is_empty() { "" } else { "/" };
        format!("{}{slash}{standby}", of(modes, |mode| &mode.pools))
    });
    nodes.collect()
}

fn phase(cluster: &Cluster) -> Phase {
    cluster.modes[0].status.as_ref().unwrap().phase.unwrap()
}

fn message(cluster: &Cluster) -> String {
    let status = cluster.modes[0].status.as_ref().unwrap();
    let ready = status
        .conditions
        .iter()
        .find(|it| it.type_ == "Ready")
        .unwrap();
    format!("{}: {}", ready.reason, ready.message)
}

#[test]
fn mode_change_proceeds_in_phases_and_node_by_node() {
    let mut cluster = edited_mode(3);
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw"; 3]);
    assert_eq!(phase(&cluster), Phase::Preparing);
    let from = cluster.modes[0]
        .status
        .as_ref()
        .unwrap()
        .from
        .clone()
        .unwrap();
    assert_eq!(
        serde_json::to_string(&from).unwrap(),
        r#"{"mode":"overlay","encapsulation":"vxlan"}"#
    );
    // The agents have acknowledged the new datapath, but not probed it.
    cluster.agents_report(0);
    cluster.reconcile();
    assert_eq!(
        (phase(&cluster), datapaths(&cluster)[0].as_str()),
        (Phase::Preparing, "vxlan/host-gw")
    );
    cluster.agents_probe(&[]);
    for switched in 1..=3 {
        cluster.reconcile();
        assert_eq!(phase(&cluster), Phase::Switching);
        let expected = |n| {
            if n < switched {
                "host-gw/vxlan"
            } else {
                "vxlan/host-gw"
            }
        };
        assert_eq!(
            datapaths(&cluster),
            (0..3).map(expected).collect::<Vec<_>>()
        );
        assert!(message(&cluster).contains(&format!(
            "from vxlan to host-gw: {} of 3 nodes",
            switched - 1
        )));
        cluster.agents_probe(&[]);
    }
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["host-gw"; 3]);
    assert_eq!(phase(&cluster), Phase::Retiring);
    cluster.agents_report(0);
    cluster.reconcile();
    assert_eq!(phase(&cluster), Phase::Stable);
    assert!(cluster.modes[0].status.as_ref().unwrap().from.is_none());
    assert_eq!(message(&cluster), "Programmed: 3 of 3 nodes programmed");
}

#[test]
fn pool_with_new_network_mode_changes_in_phases() {
    let mut cluster = cluster(2);
    cluster.modes.push(at(
        1,
        mode("next", "{mode: host-gw, rollout: {maxConcurrent: 100%}}"),
    ));
    cluster.reconcile();
    cluster.agents_probe(&[]);
    cluster.reconcile();
    cluster.pools[0].spec.network_mode = "next".to_owned();
    cluster.reconcile();
    let names = |cluster: &Cluster| -> Vec<String> {
        let modes = cluster.networks[0].spec.modes.iter();
        modes
            .map(|mode| {
                format!(
                    "{} {}/{}",
                    mode.name,
                    mode.pools.len(),
                    mode.standby_pools.len()
                )
            })
            .collect()
    };
    assert_eq!(names(&cluster), ["default 1/0", "next 0/1"]);
    cluster.agents_probe(&[]);
    cluster.reconcile();
    assert_eq!(names(&cluster), ["default 0/1", "next 1/0"]);
    assert_eq!(
        datapaths(&cluster),
        ["host-gw/vxlan"; 2],
        "all nodes switch together"
    );
    cluster.agents_probe(&[]);
    cluster.reconcile();
    assert_eq!(names(&cluster), ["next 1/0"]);
}

#[test]
fn unacknowledged_node_network_holds_mode_change() {
    let mut cluster = edited_mode(3);
    cluster.reconcile();
    cluster.agents_probe(&[]);
    cluster.reconcile();
    // worker-1 must switch and does not acknowledge: no other node switches, and all nodes keep the previous datapath.
    let status = cluster.networks[0].status.clone();
    for _ in 0..3 {
        cluster.agents_probe(&[]);
        cluster.networks[0].status = status.clone();
        cluster.reconcile();
    }
    assert_eq!(
        datapaths(&cluster),
        ["host-gw/vxlan", "vxlan/host-gw", "vxlan/host-gw"]
    );
    assert_eq!(
        cluster.modes[0]
            .status
            .as_ref()
            .unwrap()
            .nodes
            .as_ref()
            .unwrap()
            .pending[0],
        "worker-1"
    );
}

/// The NodeNetworks are written one after the other at the end of a rollout, and a write may fail.
#[test]
fn removed_old_transport_does_not_return_to_node() {
    let mut cluster = edited_mode(3);
    for _ in 0..4 {
        cluster.reconcile();
        cluster.agents_probe(&[]);
    }
    let before = cluster.networks[2].clone();
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["host-gw"; 3]);
    cluster.networks[2] = before;
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["host-gw"; 3]);
}

#[test]
fn node_joining_during_mode_change_uses_same_transports() {
    let mut cluster = edited_mode(2);
    cluster.reconcile();
    cluster.nodes.push(node("worker-3", &["10.1.0.3"]));
    cluster.reconcile();
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw"; 3]);
    // The rollout does not wait for a node whose agent has never reported.
    let status = cluster.networks[2].status.clone();
    cluster.agents_probe(&["worker-3"]);
    cluster.networks[2].status = status;
    cluster.reconcile();
    assert_eq!(
        datapaths(&cluster),
        ["host-gw/vxlan", "vxlan/host-gw", "host-gw/vxlan"]
    );
}

#[test]
fn max_concurrent_limits_switching_nodes() {
    for (at_once, expected) in [
        (IntOrString::Int(2), 2),
        (IntOrString::String("30%".to_owned()), 3),
        (IntOrString::String("1%".to_owned()), 1),
    ] {
        let mut cluster = edited_mode(10);
        cluster.modes[0].spec.rollout.max_concurrent = at_once.clone();
        cluster.reconcile();
        cluster.agents_probe(&[]);
        cluster.reconcile();
        let switched = datapaths(&cluster)
            .iter()
            .filter(|it| it.starts_with("host-gw"))
            .count();
        assert_eq!(switched, expected, "{at_once:?}");
    }
}
