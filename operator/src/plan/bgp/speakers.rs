//! [`Speaker`]: a node as a BGP speaker, without sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use netweft_crds::{NodeAddresses, names};

use crate::plan::bgp::underlay::Underlay;
use crate::plan::model::index::ClusterIndex;
use crate::plan::validate::oldest_first;

/// A node as a BGP speaker.
#[derive(Clone, Debug)]
pub struct Speaker<'a> {
    /// The node.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Its addresses.
    pub addresses: NodeAddresses,
    /// Its AS number.
    pub as_number: u32,
    /// Its BGP identifier.
    pub router_id: Ipv4Addr,
    /// Cluster ID, if the node is a route reflector.
    pub cluster_id: Option<Ipv4Addr>,
}

/// All nodes as speakers, oldest first.
pub fn speakers<'a>(index: &ClusterIndex<'a>, underlay: &Underlay) -> Vec<Speaker<'a>> {
    let nodes: Vec<&Node> = index.nodes.values().copied().collect();
    let nodes = oldest_first(&nodes).into_iter();
    let mut speakers: Vec<_> = nodes
        .filter_map(|node| {
            Some(Speaker {
                name: node.metadata.name.as_deref()?,
                labels: node.labels(),
                addresses: index.own_addresses(node),
                as_number: underlay.as_number(node.labels()),
                router_id: Ipv4Addr::UNSPECIFIED,
                cluster_id: underlay.cluster_id(node.labels()),
            })
        })
        .collect();
    set_router_ids(&mut speakers);
    speakers
}

/// Sets unique router IDs: the IPv4 address, or a hash of the name. If hashes collide, which takes tens of thousands of
/// nodes, the older node gets the hash and the younger one the next.
fn set_router_ids(speakers: &mut [Speaker<'_>]) {
    let addresses = speakers.iter().filter_map(|speaker| speaker.addresses.ipv4);
    let mut taken: BTreeSet<Ipv4Addr> = addresses.collect();
    for speaker in speakers {
        speaker.router_id = match speaker.addresses.ipv4 {
            Some(address) => address,
            None => {
                let ids = (0..).map(|attempt| names::router_id(speaker.name, attempt));
                // There are far more IDs than nodes.
                let mut free = ids.skip_while(|id| taken.contains(id));
                free.next().unwrap_or(Ipv4Addr::UNSPECIFIED)
            }
        };
        taken.insert(speaker.router_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaker<'a>(
        name: &'a str,
        ipv4: Option<Ipv4Addr>,
        labels: &'a BTreeMap<String, String>,
    ) -> Speaker<'a> {
        Speaker {
            name,
            labels,
            addresses: NodeAddresses { ipv4, ipv6: None },
            as_number: 64512,
            router_id: Ipv4Addr::UNSPECIFIED,
            cluster_id: None,
        }
    }

    fn ids(speakers: &mut [Speaker<'_>]) -> Vec<Ipv4Addr> {
        set_router_ids(speakers);
        speakers.iter().map(|speaker| speaker.router_id).collect()
    }

    #[test]
    fn router_id_is_ipv4_address_or_name_hash() {
        let labels = BTreeMap::new();
        let address = Ipv4Addr::new(10, 1, 0, 1);
        let mut speakers = [
            speaker("a", Some(address), &labels),
            speaker("b", None, &labels),
        ];
        assert_eq!(ids(&mut speakers), [address, names::router_id("b", 0)]);
    }

    #[test]
    fn router_ids_are_unique_per_node() {
        let labels = BTreeMap::new();
        // An address that equals a hash is the ID of the node with that address, even if that node is the youngest.
        let hash = names::router_id("b", 0);
        let mut speakers = [
            speaker("b", None, &labels),
            speaker("b", None, &labels),
            speaker("c", Some(hash), &labels),
        ];
        let expected = [names::router_id("b", 1), names::router_id("b", 2), hash];
        assert_eq!(ids(&mut speakers), expected);
    }
}
