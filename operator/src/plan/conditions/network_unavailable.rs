//! The condition `NetworkUnavailable` of Nodes.
//!
//! Cloud providers set it True when a Node is registered, and the node lifecycle controller taints such Nodes
//! (`node.kubernetes.io/network-unavailable`): no pod is scheduled there until the pod network clears the condition
//! (Kubernetes: `pkg/controller/nodelifecycle`, `taintNodeByCondition`).

use crate::plan::model::cluster_state::NetworkUp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use crate::plan::model::index::ClusterIndex;
use crate::plan::model::index::acknowledged;

/// The condition's type.
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// The Nodes whose agent reports a programmed network while their condition NetworkUnavailable is still set.
#[must_use]
pub fn plan(index: &ClusterIndex<'_>) -> Vec<NetworkUp> {
    let nodes = index.nodes.iter();
    let up = nodes.filter(|(name, node)| {
        let network = index.networks.get(*name);
        is_unavailable(node) && network.is_some_and(|network| acknowledged(network))
    });
    up.map(|(_, node)| NetworkUp {
        node: node.name_any(),
        uid: node.uid(),
        since: index.cluster_state.now,
    })
    .collect()
}

fn is_unavailable(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let mut conditions = conditions.filter(|condition| condition.type_ == NETWORK_UNAVAILABLE);
    conditions.any(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeCondition;

    use super::*;
    use crate::testing::{Cluster, cluster};

    /// Names of the Nodes whose condition the plan clears.
    fn updated_nodes(cluster: &Cluster) -> Vec<String> {
        let up = cluster.plan().network_up.into_iter();
        up.map(|up| up.node).collect()
    }

    #[test]
    fn network_unavailable_is_cleared_when_node_is_programmed() {
        let mut cluster = cluster(3);
        for (node, status) in cluster.nodes.iter_mut().zip(["True", "True", "False"]) {
            let condition = NodeCondition {
                type_: NETWORK_UNAVAILABLE.to_owned(),
                status: status.to_owned(),
                ..NodeCondition::default()
            };
            node.status.as_mut().unwrap().conditions = Some(vec![condition]);
        }
        cluster.reconcile();
        assert!(updated_nodes(&cluster).is_empty());
        cluster.agents_report(0);
        cluster.networks[1]
            .status
            .as_mut()
            .unwrap()
            .observed_generation = Some(0);
        cluster.reconcile_except_network_unavailable();
        assert_eq!(updated_nodes(&cluster), ["worker-1"]);
        cluster.nodes[0].status.as_mut().unwrap().conditions = None;
        assert!(updated_nodes(&cluster).is_empty());
    }
}
