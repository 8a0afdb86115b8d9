//! Rollouts with Nodes that are not Ready, and with agents that do not acknowledge.

use std::time::Duration;

use kube::ResourceExt;
use netweft_crds::Phase;

use crate::plan::tests::rollout::{datapaths, edited_mode, message, phase};
use crate::testing::{Cluster, cluster, node};

#[test]
fn long_not_ready_node_is_skipped_in_mode_change() {
    let mut cluster = edited_mode(3);
    cluster.reconcile();
    let last_status = cluster.networks[2].status.clone();
    let step = |cluster: &mut Cluster| {
        cluster.agents_probe(&["worker-3"]);
        cluster.networks[2].status = last_status.clone();
        cluster.reconcile();
    };
    step(&mut cluster);
    assert_eq!(phase(&cluster), Phase::Preparing);
    cluster
        .not_ready
        .insert("worker-3".to_owned(), Duration::from_secs(599));
    step(&mut cluster);
    assert_eq!(phase(&cluster), Phase::Preparing);
    cluster
        .not_ready
        .insert("worker-3".to_owned(), Duration::from_secs(600));
    step(&mut cluster);
    assert_eq!(
        datapaths(&cluster),
        ["host-gw/vxlan", "vxlan/host-gw", "host-gw/vxlan"]
    );
    assert!(
        message(&cluster).ends_with("not waiting for worker-3: Node not Ready"),
        "{}",
        message(&cluster)
    );
    step(&mut cluster);
    step(&mut cluster);
    // When the node returns it uses only the new datapath.
    assert_eq!(datapaths(&cluster), ["host-gw"; 3]);
    step(&mut cluster);
    assert_eq!(phase(&cluster), Phase::Stable);
}

/// Three nodes with agents, and a Node without an agent.
fn with_node_without_agent() -> Cluster {
    let mut cluster = cluster(3);
    cluster.nodes.push(node("no-agent", &["10.9.9.9"]));
    cluster
}

/// All agents acknowledge and probe, except on the Node without an agent.
fn other_agents_finish_rollout(cluster: &mut Cluster) {
    for _ in 0..10 {
        cluster.reconcile();
        cluster.agents_probe(&["no-agent"]);
        for network in &mut cluster.networks {
            if network.name_any() == "no-agent" {
                network.status = None;
            }
        }
    }
    cluster.reconcile();
}

#[test]
fn node_without_agent_does_not_hold_mode_change() {
    let mut cluster = with_node_without_agent();
    other_agents_finish_rollout(&mut cluster);
    assert_eq!(
        message(&cluster),
        "Programming: 3 of 4 nodes programmed; waiting for no-agent"
    );
    let deadline = Duration::from_secs(600);
    cluster
        .unacknowledged
        .insert("no-agent".to_owned(), deadline);
    other_agents_finish_rollout(&mut cluster);
    let expected = "Programmed: 3 of 4 nodes programmed; not waiting for no-agent: NodeNetwork not acknowledged within spec.rollout.progressDeadline";
    assert_eq!(message(&cluster), expected);
    cluster.edit_mode("{mode: host-gw}");
    other_agents_finish_rollout(&mut cluster);
    assert_eq!(
        (phase(&cluster), message(&cluster).as_str()),
        (Phase::Stable, expected)
    );
    assert_eq!(datapaths(&cluster), ["host-gw"; 4]);
    // If an agent starts later, the rollout waits for it.
    cluster.unacknowledged.clear();
    cluster.edit_mode("{mode: overlay, overlay: {encapsulation: vxlan}}");
    cluster.finish_rollout();
    assert_eq!(message(&cluster), "Programmed: 4 of 4 nodes programmed");
}

#[test]
fn agent_not_acknowledging_holds_mode_change_until_deadline() {
    let mut cluster = edited_mode(3);
    cluster.reconcile();
    let last_status = cluster.networks[2].status.clone();
    let rounds = |cluster: &mut Cluster| {
        for _ in 0..6 {
            cluster.agents_probe(&["worker-3"]);
            cluster.networks[2].status.clone_from(&last_status);
            cluster.reconcile();
        }
    };
    let absent_for = |seconds| (String::from("worker-3"), Duration::from_secs(seconds));
    cluster.unacknowledged.extend([absent_for(599)]);
    rounds(&mut cluster);
    assert_eq!(datapaths(&cluster), ["vxlan/host-gw"; 3]);
    cluster.unacknowledged.extend([absent_for(600)]);
    rounds(&mut cluster);
    assert_eq!(
        (phase(&cluster), datapaths(&cluster)),
        (Phase::Stable, vec!["host-gw".to_owned(); 3])
    );
}

#[test]
fn mode_without_working_agents_is_not_ready() {
    let mut cluster = cluster(1);
    cluster.reconcile();
    cluster.unacknowledged = [("worker-1".to_owned(), Duration::from_secs(600))].into();
    cluster.reconcile();
    assert!(
        message(&cluster).starts_with("Programming: 0 of 1 node programmed; not waiting for"),
        "{}",
        message(&cluster)
    );
}
