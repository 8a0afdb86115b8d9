//! The blocks that a node without a NodeNetwork may still allocate from. Its Node was deleted or is not registered yet.

use std::collections::BTreeSet;

use ipnet::IpNet;
use netweft_cni::node::NodeConfig;

use crate::inputs::Objects;

/// The configuration of the plugin without lost blocks. The node keeps the blocks whose NodeSubnet names it, an `Orphaned` one
/// included, because no other node gets such a block. A block without a NodeSubnet can be assigned to another node at any time.
///
/// An unreadable object can be the NodeNetwork, or the NodeSubnet of any block: then all blocks are kept.
#[must_use]
pub fn without_lost_blocks(node: &str, objects: &Objects, config: &NodeConfig) -> NodeConfig {
    let mut kept = config.clone();
    if objects.network.is_some() || !objects.unreadable.is_empty() {
        return kept;
    }
    let subnets = objects.subnets.iter().map(|subnet| &subnet.spec);
    let own = subnets.filter(|spec| spec.node == node);
    let own: BTreeSet<IpNet> = own.map(|spec| spec.cidr).collect();
    for pool in &mut kept.pools {
        pool.blocks.retain(|block| own.contains(block));
    }
    kept.withdrawn.retain(|block| own.contains(block));
    kept
}

#[cfg(test)]
mod tests {
    use netweft_cni::node::{PodInterface, PoolConfig};
    use netweft_crds::{NodeAddresses, NodeSubnet, NodeSubnetSpec, SubnetState};

    use super::*;
    use crate::status::problem::{ProblemKind, problem};

    const BLOCKS: [&str; 2] = ["10.244.0.0/26", "10.244.0.64/26"];
    const WITHDRAWN: &str = "10.244.0.128/26";

    fn config() -> NodeConfig {
        NodeConfig {
            version: 1,
            pools: vec![PoolConfig {
                name: "p".into(),
                cidr: None,
                pod_interface: PodInterface::Routed,
                bridge: None,
                mtu: 1400,
                blocks: BLOCKS.map(|block| block.parse().unwrap()).into(),
                reserved: vec![],
                namespaces: None,
                disabled: false,
            }],
            withdrawn: vec![WITHDRAWN.parse().unwrap()],
            namespaces: None,
        }
    }

    fn subnet(cidr: &str, node: &str, state: SubnetState) -> NodeSubnet {
        let spec = NodeSubnetSpec {
            cidr: cidr.parse().unwrap(),
            pool: "p".into(),
            node: node.into(),
            node_addresses: NodeAddresses::default(),
            as_number: None,
            link_mtu: None,
            state,
        };
        spec.into_object()
    }

    /// The blocks that are kept with these objects.
    fn kept(objects: &Objects) -> Vec<String> {
        let kept = without_lost_blocks("one", objects, &config());
        let blocks = kept.pools.iter().flat_map(|pool| &pool.blocks);
        blocks
            .chain(&kept.withdrawn)
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn block_owned_by_other_node_is_not_allocated_from() {
        let mut objects = Objects::default();
        assert_eq!(kept(&objects), Vec::<String>::new());
        objects.subnets = vec![
            subnet(BLOCKS[0], "two", SubnetState::Active),
            subnet(BLOCKS[1], "one", SubnetState::Active),
        ];
        assert_eq!(
            kept(&objects),
            [BLOCKS[1]],
            "the first block has another owner"
        );
    }

    #[test]
    fn orphaned_block_of_deleted_node_is_kept() {
        for state in [SubnetState::Active, SubnetState::Orphaned] {
            let all = [BLOCKS[0], BLOCKS[1], WITHDRAWN];
            let objects = Objects {
                subnets: all.map(|cidr| subnet(cidr, "one", state)).into(),
                ..Objects::default()
            };
            assert_eq!(kept(&objects), all);
        }
    }

    #[test]
    fn blocks_stay_with_node_network_or_unreadable_objects() {
        let all = [BLOCKS[0], BLOCKS[1], WITHDRAWN];
        let unreadable = Objects {
            unreadable: [problem(ProblemKind::Invalid, "NodeSubnet x cannot be read")]
                .into_iter()
                .collect(),
            ..Objects::default()
        };
        assert_eq!(kept(&unreadable), all);
        let network =
            "{apiVersion: netweft.io/v1alpha1, kind: NodeNetwork, metadata: {name: one}, spec: {}}";
        let with_network = Objects {
            network: Some(serde_saphyr::from_str(network).unwrap()),
            ..Objects::default()
        };
        assert_eq!(kept(&with_network), all);
    }
}
