//! The lab's objects: what a user would apply, and what the operator's own core makes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::Context;
use clap::ValueEnum;
use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use netweft_crds::{IPPool, NetworkMode};
use netweft_operator::{World, plan};
use serde::Serialize;
use serde_json::json;

/// The lab's pool.
pub const POOL: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16));
/// An address of the pool in no block of the lab.
pub const UNUSED_POD_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 255, 1));

/// How packets travel between the lab's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LabMode {
    /// overlay, encapsulation vxlan.
    Vxlan,
}

impl fmt::Display for LabMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan => f.write_str("vxlan"),
        }
    }
}

impl LabMode {
    fn spec(self) -> serde_json::Value {
        match self {
            Self::Vxlan => json!({ "mode": "overlay", "overlay": { "encapsulation": "vxlan" } }),
        }
    }
}

/// Write the user's objects and the operator's, one file each.
pub fn write(folder: &Path, mode: LabMode, nodes: &BTreeMap<String, IpAddr>) -> anyhow::Result<()> {
    let mode: NetworkMode = user_object("NetworkMode", "default", &mode.spec())?;
    let pool: IPPool = user_object(
        "IPPool",
        "default-v4",
        &json!({ "cidr": POOL, "natOutgoing": true, "networkMode": "default" }),
    )?;
    let nodes: Vec<Node> = nodes
        .iter()
        .map(|(name, address)| node(name, *address))
        .collect();
    let world = World {
        pools: vec![&pool],
        modes: vec![&mode],
        nodes: nodes.iter().collect(),
        ..World::default()
    };
    let plan = plan(&world);
    anyhow::ensure!(
        !plan.subnets.create.is_empty(),
        "the operator's core assigns nothing: {plan:?}"
    );
    write_one(folder, "pool", &pool)?;
    write_one(folder, "mode", &mode)?;
    for subnet in &plan.subnets.create {
        write_one(folder, &format!("nodesubnet-{}", subnet.name_any()), subnet)?;
    }
    for network in &plan.networks.create {
        write_one(
            folder,
            &format!("nodenetwork-{}", network.name_any()),
            network,
        )?;
    }
    Ok(())
}

fn user_object<K: serde::de::DeserializeOwned>(
    kind: &str,
    name: &str,
    spec: &serde_json::Value,
) -> anyhow::Result<K> {
    let object = json!({
        "apiVersion": "netweft.io/v1alpha1",
        "kind": kind,
        "metadata": { "name": name, "uid": format!("lab-{name}"), "generation": 1 },
        "spec": spec,
    });
    serde_json::from_value(object).with_context(|| format!("make the {kind} {name}"))
}

fn node(name: &str, address: IpAddr) -> Node {
    let internal = NodeAddress {
        type_: "InternalIP".into(),
        address: address.to_string(),
    };
    Node {
        metadata: ObjectMeta {
            name: Some(name.into()),
            uid: Some(format!("lab-{name}")),
            ..ObjectMeta::default()
        },
        status: Some(NodeStatus {
            addresses: Some(vec![internal]),
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}

fn write_one(folder: &Path, name: &str, object: &impl Serialize) -> anyhow::Result<()> {
    fs::write(
        folder.join(format!("{name}.yaml")),
        serde_saphyr::to_string(object)?,
    )
    .with_context(|| format!("write {name}"))
}
