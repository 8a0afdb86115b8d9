//! The kinds of written objects, with their names for logs and metrics.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Resource;
use kube::core::ClusterResourceScope;
use netweft_crds::{BGPPeer, IPPool, NetworkMode, NodeNetwork, NodeSubnet};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A kind of cluster-scoped object that plans write.
pub trait PlannedObject:
    KindName
    + Resource<DynamicType = (), Scope = ClusterResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
{
}

/// The name of a kind in logs and metrics.
pub trait KindName {
    const KIND: &'static str;
}

impl KindName for IPPool {
    const KIND: &'static str = "IPPool";
}
impl KindName for NetworkMode {
    const KIND: &'static str = "NetworkMode";
}
impl KindName for BGPPeer {
    const KIND: &'static str = "BGPPeer";
}
impl KindName for NodeSubnet {
    const KIND: &'static str = "NodeSubnet";
}
impl KindName for NodeNetwork {
    const KIND: &'static str = "NodeNetwork";
}
impl KindName for Node {
    const KIND: &'static str = "Node";
}
impl KindName for Secret {
    const KIND: &'static str = "Secret";
}
impl PlannedObject for IPPool {}
impl PlannedObject for NetworkMode {}
impl PlannedObject for BGPPeer {}
impl PlannedObject for NodeSubnet {}
impl PlannedObject for NodeNetwork {}
