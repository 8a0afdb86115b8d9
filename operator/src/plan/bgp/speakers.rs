//! [`Speaker`]: a node as a BGP speaker, before it has sessions.

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
    /// The cluster it reflects for.
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
    identify(&mut speakers);
    speakers
}

/// Gives every speaker an identifier that no other has: its IPv4 address, else a hash of its name. Of two with the same hash,
/// which takes tens of thousands of nodes, the older has it and the younger the next.
fn identify(speakers: &mut [Speaker<'_>]) {
    let addresses = speakers.iter().filter_map(|speaker| speaker.addresses.ipv4);
    let mut taken: BTreeSet<Ipv4Addr> = addresses.collect();
    for speaker in speakers {
        speaker.router_id = match speaker.addresses.ipv4 {
            Some(address) => address,
            None => {
                let ids = (0..).map(|attempt| names::router_id(speaker.name, attempt));
                // There are far more of them than nodes.
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
        identify(speakers);
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
        // An address that is somebody's hash belongs to the node that has it, however young it is.
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
