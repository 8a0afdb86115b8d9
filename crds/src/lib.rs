//! The objects of netweft: what users declare and what the operator and the agents tell each other.
//!
//! ```text
//!   user      IPPool  NetworkMode  BGPPeer
//!   operator  NodeSubnet (one assigned block)   NodeNetwork.spec (what one node does)
//!   agent     NodeNetwork.status (what that node has done)
//! ```
//!
//! Types, validation rules, printer columns and names; nothing that acts. `crdgen` prints the schemas as YAML.

mod bgp;
mod bgp_peer;
pub mod condition;
mod ip_pool;
pub mod names;
mod network_mode;
mod node_address;
mod node_network;
mod node_subnet;
mod rule;
mod schema;

pub use bgp::{
    Bfd, FilterAction, FilterRule, Filters, GracefulRestart, NextHopMode, NodeBgp, Session,
    SessionFault, SessionState, SessionStatus,
};
pub use bgp_peer::{
    BGPPeer, BGPPeerSpec, BGPPeerStatus, Password, PeerError, PeerNodes, Prefixes, SecretKeyRef,
};
pub use ip_pool::{IPPool, IPPoolSpec, IPPoolStatus, PodInterface, Remaining, Usage, UsageCount};
pub use network_mode::{
    AsNumberRule, EncapsulateWhen, Encapsulation, Mode, ModeSummary, NetworkMode, NetworkModeSpec,
    NetworkModeStatus, NodeProgress, Overlay, Phase, ProbeProtocol, Rollout, RouteReflectorRule,
    UdpParameters, Underlay, VxlanParameters,
};
pub use node_address::{
    AddressSelector, AddressSelectors, FoundAddress, MAX_FOUND, NodeAddressSelector,
    NodeAddressSource, NodeAddressWord, is_beyond_the_link, matches_link,
};
pub use node_network::{
    BlockRequest, BlockUsage, DrainingPod, DriftStatus, IpFamily, LinkStatus, NodeMode,
    NodeNetwork, NodeNetworkSpec, NodeNetworkStatus, OtherNetwork, RepairCounts, RouteCounts,
    StandbyStatus, Transport, Way,
};
pub use node_subnet::{NodeAddresses, NodeSubnet, NodeSubnetSpec, SubnetState};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

/// The annotation that keeps Argo CD from deleting an object that it manages: a definition takes all its objects with it. Helm
/// keeps the definitions of a chart by itself.
const KEPT_BY_ARGO_CD: (&str, &str) = (
    "argocd.argoproj.io/sync-options",
    "Prune=false,Delete=false",
);

/// The definitions of all our kinds, in the order in which a reader wants to meet them.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut definitions = vec![
        IPPool::crd(),
        NetworkMode::crd(),
        BGPPeer::crd(),
        NodeSubnet::crd(),
        NodeNetwork::crd(),
    ];
    for definition in &mut definitions {
        let (key, value) = KEPT_BY_ARGO_CD;
        let annotations = definition.metadata.annotations.get_or_insert_default();
        annotations.insert(key.to_owned(), value.to_owned());
    }
    for version in definitions
        .iter_mut()
        .flat_map(|definition| &mut definition.spec.versions)
    {
        let schema = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut());
        schema.into_iter().for_each(drop_unknown_formats);
    }
    definitions
}

/// schemars states formats that Kubernetes does not know and warns about: the width of unsigned integers, and "ip".
fn drop_unknown_formats(schema: &mut JSONSchemaProps) {
    let unknown = |format: &String| format.starts_with("uint") || format == "ip";
    if schema.format.as_ref().is_some_and(unknown) {
        schema.format = None;
    }
    let properties = schema
        .properties
        .iter_mut()
        .flat_map(|properties| properties.values_mut());
    properties.for_each(drop_unknown_formats);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        drop_unknown_formats(items);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crd_schemas_use_only_kubernetes_formats() {
        let text = serde_json::to_string(&definitions()).unwrap();
        assert!(!text.contains("\"format\":\"uint") && !text.contains("\"format\":\"ip\""));
        assert!(text.contains("\"minimum\":0"), "the bound itself stays");
    }

    #[test]
    fn crds_are_excluded_from_argo_cd_deletion() {
        for definition in definitions() {
            let annotations = definition.metadata.annotations.unwrap();
            let options = &annotations["argocd.argoproj.io/sync-options"];
            assert_eq!(options, "Prune=false,Delete=false");
        }
    }

    #[test]
    fn status_subresource_is_absent_only_in_node_subnet() {
        for definition in definitions() {
            let status = definition
                .spec
                .versions
                .iter()
                .all(|version| version.subresources.is_some());
            assert_eq!(
                status,
                definition.spec.names.kind != "NodeSubnet",
                "{}",
                definition.spec.names.kind
            );
        }
    }
}
