//! The API types of netweft: the objects of users, and those between operator and agents.
//!
//! ```text
//!   user      IPPool  NetworkMode  BGPPeer
//!   operator  NodeSubnet (one assigned block)   NodeNetwork.spec (desired state of one node)
//!   agent     NodeNetwork.status (actual state of that node)
//! ```
//!
//! Types, validation rules, printer columns and names, without behaviour. `crdgen` writes the definitions as YAML.

mod bgp;
mod bgp_peer;
mod cel;
pub mod condition;
mod ip_family;
mod ip_pool;
pub mod names;
mod network_mode;
mod node_address;
mod node_network;
mod node_subnet;
mod schema;

pub use crate::bgp::{
    Bfd, FilterAction, FilterRule, Filters, GracefulRestart, NextHopMode, NodeBgp, Session,
    SessionFault, SessionState, SessionStatus,
};
pub use crate::bgp_peer::{
    BGPPeer, BGPPeerSpec, BGPPeerStatus, Password, PeerError, PeerNodes, Prefixes, SecretKeyRef,
};
pub use crate::ip_family::IpFamily;
pub use crate::ip_pool::{
    IPPool, IPPoolSpec, IPPoolStatus, PodInterface, RemainingPods, Usage, UsageCount,
};
pub use crate::network_mode::{
    AsNumberRule, EncapsulateWhen, Encapsulation, Mode, ModeSummary, NetworkMode, NetworkModeSpec,
    NetworkModeStatus, NodeProgress, Overlay, Phase, ProbeProtocol, Rollout, RouteReflectorRule,
    UdpParameters, Underlay, VxlanParameters,
};
pub use crate::node_address::{
    AddressSelector, AddressSelectors, FoundAddress, MAX_FOUND, NodeAddressSelector,
    NodeAddressSource, NodeAddressType, is_routable, matches_link,
};
pub use crate::node_network::{
    BlockRequest, BlockUsage, DrainingPod, DriftStatus, LinkStatus, MAX_PEERS_WITHOUT_BLOCKS,
    NodeMode, NodeNetwork, NodeNetworkSpec, NodeNetworkStatus, OtherNetwork, ProbeStatus,
    RepairCounts, RouteCounts, Transport, TransportSource, TransportType,
};
pub use crate::node_subnet::{
    MAX_LINK_MTU, MIN_LINK_MTU, NodeAddresses, NodeSubnet, NodeSubnetSpec, SubnetState,
};

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionVersion,
    JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

/// The annotation that keeps Argo CD from deleting an object that it manages: the deletion of a definition deletes all its
/// objects. Helm never deletes the definitions of a chart.
const KEPT_BY_ARGO_CD: (&str, &str) = (
    "argocd.argoproj.io/sync-options",
    "Prune=false,Delete=false",
);

/// The definitions of all kinds: those of users first.
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
        add_common_columns(version);
        let schema = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut());
        schema.into_iter().for_each(complete);
    }
    definitions
}

/// Adds the printer columns of all kinds. Ready and Reason follow the columns of the kind; Age and Message follow its columns
/// of `-o wide`. Kinds without a status have no conditions.
fn add_common_columns(version: &mut CustomResourceDefinitionVersion) {
    let column = |name: &str, type_: &str, json_path: String, priority: Option<i32>| {
        CustomResourceColumnDefinition {
            name: name.to_owned(),
            type_: type_.to_owned(),
            json_path,
            priority,
            ..CustomResourceColumnDefinition::default()
        }
    };
    let of_ready = |name: &str, field: &str, priority| {
        let path = format!(".status.conditions[?(@.type=='Ready')].{field}");
        column(name, "string", path, priority)
    };
    let has_conditions = version.subresources.is_some();
    let columns = version.additional_printer_columns.take();
    let (wide, mut columns): (Vec<_>, Vec<_>) = columns
        .into_iter()
        .flatten()
        .partition(|column| column.priority.is_some_and(|priority| priority > 0));
    if has_conditions {
        columns.push(of_ready("Ready", "status", None));
        columns.push(of_ready("Reason", "reason", None));
    }
    columns.extend(wide);
    let created = ".metadata.creationTimestamp".to_owned();
    columns.push(column("Age", "date", created, None));
    if has_conditions {
        columns.push(of_ready("Message", "message", Some(1)));
    }
    version.additional_printer_columns = Some(columns);
}

/// Completes a schema of schemars. Kubernetes warns about the formats of unsigned integers, so the bound of the type becomes a
/// maximum. A list without a list type is atomic.
fn complete(schema: &mut JSONSchemaProps) {
    let maximum = match schema.format.as_deref() {
        Some("uint8") => Some(u8::MAX.into()),
        Some("uint16") => Some(u16::MAX.into()),
        Some("uint32") => Some(u32::MAX.into()),
        _ => None,
    };
    if maximum.is_some() {
        schema.maximum = schema.maximum.or(maximum);
        schema.format = None;
    }
    if schema.format.as_deref() == Some("ip") {
        schema.format = None;
    }
    if schema.type_.as_deref() == Some("array") {
        schema
            .x_kubernetes_list_type
            .get_or_insert_with(|| "atomic".to_owned());
    }
    let properties = schema.properties.iter_mut();
    properties.flat_map(BTreeMap::values_mut).for_each(complete);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        complete(items);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crd_schemas_use_only_kubernetes_formats() {
        let text = serde_json::to_string(&definitions()).unwrap();
        assert!(!text.contains("\"format\":\"uint") && !text.contains("\"format\":\"ip\""));
        assert!(text.contains("\"minimum\":0"), "the bound stays");
    }

    /// Calls `visit` with each field's path and schema.
    fn each_field(
        schema: &JSONSchemaProps,
        path: &str,
        visit: &mut dyn FnMut(&str, &JSONSchemaProps),
    ) {
        visit(path, schema);
        for (name, property) in schema.properties.iter().flatten() {
            each_field(property, &format!("{path}.{name}"), visit);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            each_field(items, &format!("{path}[]"), visit);
        }
    }

    fn check_fields(fault: impl Fn(&str, &JSONSchemaProps) -> bool) {
        let mut faults = Vec::new();
        for definition in definitions() {
            let kind = &definition.spec.names.kind;
            for version in &definition.spec.versions {
                let schema = version.schema.as_ref().unwrap();
                let schema = schema.open_api_v3_schema.as_ref().unwrap();
                each_field(schema, kind, &mut |path, field| {
                    if fault(path, field) {
                        faults.push(path.to_owned());
                    }
                });
            }
        }
        assert!(faults.is_empty(), "{faults:#?}");
    }

    #[test]
    fn every_field_has_a_description() {
        check_fields(|path, field| {
            let sentence = |text: &String| text.ends_with('.') && text.len() > 8;
            !path.ends_with(']')
                && path.contains('.')
                && !field.description.as_ref().is_some_and(sentence)
        });
    }

    #[test]
    fn every_list_has_a_type_and_a_bound() {
        check_fields(|_, field| {
            field.type_.as_deref() == Some("array")
                && (field.x_kubernetes_list_type.is_none() || field.max_items.is_none())
        });
    }

    #[test]
    fn every_string_has_a_bound() {
        check_fields(|_, field| {
            let bounded = field.max_length.is_some()
                || field.enum_.is_some()
                || field.format.as_deref() == Some("date-time");
            field.type_.as_deref() == Some("string") && !bounded
        });
    }

    #[test]
    fn every_number_has_bounds() {
        check_fields(|_, field| {
            let maximum = field.maximum.is_some() || field.format.as_deref() == Some("int64");
            field.type_.as_deref() == Some("integer") && !(maximum && field.minimum.is_some())
        });
    }

    /// In schemars, a field with a schema of its own is required unless serde has a default for it.
    #[test]
    fn no_required_field_is_nullable() {
        check_fields(|_, field| {
            let required = field.required.iter().flatten();
            let fields = required.filter_map(|name| field.properties.as_ref()?.get(name));
            fields.into_iter().any(|field| field.nullable == Some(true))
        });
    }

    #[test]
    fn no_printer_column_shows_a_list_or_an_object() {
        for definition in definitions() {
            for version in &definition.spec.versions {
                let schema = version.schema.as_ref().unwrap();
                let mut types = BTreeMap::new();
                each_field(
                    schema.open_api_v3_schema.as_ref().unwrap(),
                    "",
                    &mut |path, field| {
                        types.insert(path.to_owned(), field.type_.clone());
                    },
                );
                for column in version.additional_printer_columns.iter().flatten() {
                    let path = &column.json_path;
                    let condition = path.starts_with(".status.conditions[?(@.type==");
                    let type_ = types.get(path).and_then(Option::as_deref);
                    let scalar = matches!(type_, Some("string" | "integer" | "boolean"));
                    let allowed = condition || scalar || path.starts_with(".metadata.");
                    assert!(allowed, "{}: {path}", definition.spec.names.kind);
                }
            }
        }
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
