//! The kinds of objects that are written, with their names for logs and metrics.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Resource;
use kube::core::ClusterResourceScope;
use netweft_crds::{BGPPeer, IPPool, NetworkMode, NodeNetwork, NodeSubnet};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// An object that all writes here are about.
pub trait Written:
    Named
    + Resource<DynamicType = (), Scope = ClusterResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
{
}

/// A kind that writes are counted by.
pub trait Named {
    const KIND: &'static str;
}

impl Named for IPPool {
    const KIND: &'static str = "IPPool";
}
impl Named for NetworkMode {
    const KIND: &'static str = "NetworkMode";
}
impl Named for BGPPeer {
    const KIND: &'static str = "BGPPeer";
}
impl Named for NodeSubnet {
    const KIND: &'static str = "NodeSubnet";
}
impl Named for NodeNetwork {
    const KIND: &'static str = "NodeNetwork";
}
impl Named for Node {
    const KIND: &'static str = "Node";
}
impl Named for Secret {
    const KIND: &'static str = "Secret";
}
impl Written for IPPool {}
impl Written for NetworkMode {}
impl Written for BGPPeer {}
impl Written for NodeSubnet {}
impl Written for NodeNetwork {}
