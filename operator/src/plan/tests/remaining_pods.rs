//! Pods that remain in disabled and deleted pools.

use netweft_crds::{DrainingPod, RemainingPods};

use crate::testing::{Cluster, cluster};

/// Two nodes whose agents report these pods: node, pool, namespace and name.
fn cluster_with_pods(pods: &[(usize, &str, &str, &str)]) -> Cluster {
    let mut cluster = cluster(2);
    cluster.reconcile();
    cluster.agents_report(0);
    for (node, pool, namespace, name) in pods {
        let status = cluster.networks[*node].status.as_mut().unwrap();
        status.subnets[0].used += 1;
        status.subnets[0].free -= 1;
        status.draining_pods.push(DrainingPod {
            pool: (*pool).to_owned(),
            namespace: (*namespace).to_owned(),
            name: (*name).to_owned(),
        });
    }
    cluster
}

fn remaining(cluster: &Cluster) -> Vec<String> {
    let status = cluster.pools[0].status.as_ref().unwrap();
    let line = |entry: &RemainingPods| {
        let owner = entry.owner.as_deref().unwrap_or("?");
        format!("{} {} {owner} {}", entry.node, entry.namespace, entry.count)
    };
    status.remaining_pods.iter().map(line).collect()
}

const PODS: [(usize, &str, &str, &str); 5] = [
    (1, "default-v4", "shop", "web-b"),
    (0, "default-v4", "shop", "web-a"),
    (0, "default-v4", "shop", "web-c"),
    (0, "default-v4", "default", "alone"),
    (0, "other", "shop", "web-d"),
];

#[test]
fn disabled_pool_lists_remaining_pods_by_node_and_owner() {
    let mut cluster = cluster_with_pods(&PODS);
    let owner = |namespace: &str, name: &str, owner: &str| {
        ((namespace.to_owned(), name.to_owned()), owner.to_owned())
    };
    cluster.pod_owners = [
        owner("shop", "web-a", "Deployment/web"),
        owner("shop", "web-b", "Deployment/web"),
        owner("shop", "web-c", "Deployment/web"),
    ]
    .into();
    cluster.reconcile();
    assert_eq!(
        remaining(&cluster),
        Vec::<String>::new(),
        "the pool is not disabled"
    );
    cluster.pools[0].spec.disabled = true;
    cluster.reconcile();
    assert_eq!(
        remaining(&cluster),
        [
            "worker-1 default ? 1",
            "worker-1 shop Deployment/web 2",
            "worker-2 shop Deployment/web 1"
        ]
    );
    assert!(
        cluster
            .pool_message("default-v4")
            .ends_with("; 5 addresses are in use, see status.remainingPods")
    );
}

#[test]
fn deleted_pool_lists_remaining_pods() {
    let mut cluster = cluster_with_pods(&PODS[..1]);
    crate::plan::tests::delete_pool(&mut cluster, "default-v4");
    cluster.reconcile();
    assert_eq!(remaining(&cluster), ["worker-2 shop ? 1"]);
    assert_eq!(
        cluster.pool_message("default-v4"),
        "False InUse: being deleted; waiting until 2 blocks are without pods (see status.remainingPods) on worker-1, worker-2"
    );
}

#[test]
fn remaining_pods_list_is_bounded() {
    let names: Vec<String> = (0..100).map(|n| format!("ns-{n:03}")).collect();
    let pods: Vec<_> = names
        .iter()
        .map(|name| (0, "default-v4", name.as_str(), "pod"))
        .collect();
    let mut cluster = cluster_with_pods(&pods);
    cluster.pools[0].spec.disabled = true;
    cluster.reconcile();
    assert_eq!(remaining(&cluster).len(), 64);
}
