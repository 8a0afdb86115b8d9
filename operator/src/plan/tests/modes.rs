//! Use and readiness of NetworkModes.

use netweft_crds::condition::{READY, is_true};

use crate::testing::{Cluster, at, cluster, condition, vxlan};

#[test]
fn unused_mode_is_removed_from_node_networks() {
    let mut cluster = cluster(1);
    cluster.modes.push(at(1, vxlan("next", 5)));
    cluster.reconcile();
    cluster.pools[0].spec.network_mode = "next".to_owned();
    cluster.finish_rollout();
    let names: Vec<_> = cluster.networks[0]
        .spec
        .modes
        .iter()
        .map(|mode| mode.name.as_str())
        .collect();
    assert_eq!(names, ["next"]);
}

#[test]
fn mode_is_ready_when_every_node_has_acknowledged() {
    let mut cluster = cluster(7);
    cluster.reconcile();
    let ready =
        |cluster: &Cluster| is_true(&cluster.modes[0].status.as_ref().unwrap().conditions, READY);
    let status = cluster.modes[0].status.clone().unwrap();
    assert_eq!(status.nodes.unwrap().pending.len(), 5);
    assert!(
        status.conditions[0]
            .message
            .ends_with("worker-5 and 2 more"),
        "{}",
        status.conditions[0].message
    );
    cluster.agents_report(0);
    cluster.reconcile();
    assert!(ready(&cluster));
    // A new spec is not acknowledged yet.
    cluster.modes[0] = vxlan("default", 9);
    cluster.reconcile();
    assert!(!ready(&cluster));
    cluster.finish_rollout();
    assert!(ready(&cluster));
    cluster.networks[3].status.as_mut().unwrap().conditions =
        vec![condition(READY, "False", "ProgrammingFailed")];
    cluster.reconcile();
    assert!(!ready(&cluster));
}
