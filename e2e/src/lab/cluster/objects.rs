//! Constructors of users' objects and of Nodes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Context;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use netweft_crds::{BGPPeer, IPPool, NetworkMode, PodInterface};
use serde_json::{Value, json};

use crate::lab::cluster::families::Families;

/// An address of a pool outside all assigned blocks.
pub fn unused_pod_address(pool: IpNet) -> IpAddr {
    pool.broadcast()
}

/// The NetworkMode that all pools use.
pub fn mode(spec: &Value) -> anyhow::Result<NetworkMode> {
    user_object("NetworkMode", "default", spec)
}

/// A BGPPeer.
pub fn peer(name: &str, spec: &Value) -> anyhow::Result<BGPPeer> {
    user_object("BGPPeer", name, spec)
}

/// One IPPool for each family.
pub fn pools(
    families: Families,
    pod_interface: PodInterface,
    nat_outgoing: bool,
) -> anyhow::Result<Vec<IPPool>> {
    let pools = families.pools();
    pools
        .map(|cidr| pool(cidr, pod_interface, nat_outgoing))
        .collect()
}

fn pool(cidr: IpNet, pod_interface: PodInterface, nat_outgoing: bool) -> anyhow::Result<IPPool> {
    let name = if cidr.addr().is_ipv4() {
        "default-v4"
    } else {
        "default-v6"
    };
    let spec = json!({ "cidr": cidr, "natOutgoing": nat_outgoing, "networkMode": "default",
        "podInterface": pod_interface });
    named_pool(name, &spec)
}

/// An IPPool with this name.
pub fn named_pool(name: &str, spec: &Value) -> anyhow::Result<IPPool> {
    user_object("IPPool", name, spec)
}

fn user_object<K: serde::de::DeserializeOwned>(
    kind: &str,
    name: &str,
    spec: &Value,
) -> anyhow::Result<K> {
    let object = json!({
        "apiVersion": "netweft.io/v1alpha1",
        "kind": kind,
        "metadata": { "name": name, "uid": format!("lab-{name}"), "generation": 1 },
        "spec": spec,
    });
    serde_json::from_value(object).with_context(|| format!("create the {kind} {name}"))
}

/// A Node as the kubelet registers it.
pub fn node(name: &str, addresses: &[IpAddr], labels: BTreeMap<String, String>) -> Node {
    let internal = |address: &IpAddr| NodeAddress {
        type_: "InternalIP".into(),
        address: address.to_string(),
    };
    Node {
        metadata: ObjectMeta {
            name: Some(name.into()),
            uid: Some(format!("lab-{name}")),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        status: Some(NodeStatus {
            addresses: Some(addresses.iter().map(internal).collect()),
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}
