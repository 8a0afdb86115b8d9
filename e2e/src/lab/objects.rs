//! The lab's objects: what a user would apply, and what the operator's own core makes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::Context;
use clap::ValueEnum;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use netweft_crds::{IPPool, NetworkMode, PodInterface};
use netweft_operator::{World, plan};
use serde::Serialize;
use serde_json::json;

use super::Options;

/// The lab's pool of IPv4.
pub const POOL_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16));
/// The lab's pool of IPv6.
pub const POOL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0),
    64,
));

/// An address of a pool in no block of the lab.
pub fn unused_pod_address(pool: IpNet) -> IpAddr {
    pool.broadcast()
}

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

/// IP families of the lab's nodes and pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both, on nodes and in pods.
    Both,
}

impl Families {
    /// Whether an address of this kind exists in the lab.
    #[must_use]
    pub fn has(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Both => true,
        }
    }

    /// The pools.
    pub fn pools(self) -> impl Iterator<Item = IpNet> {
        let pools = [POOL_V4, POOL_V6].into_iter();
        pools.filter(move |pool| self.has(pool.addr()))
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
            Self::Both => "IPv4 and IPv6",
        })
    }
}

/// Write the user's objects and the operator's, one file each.
pub fn write(
    folder: &Path,
    options: &Options,
    nodes: &BTreeMap<String, Vec<IpAddr>>,
) -> anyhow::Result<()> {
    let mode: NetworkMode = user_object("NetworkMode", "default", &options.mode.spec())?;
    let pools = pools(options, true)?;
    let nodes: Vec<Node> = nodes
        .iter()
        .map(|(name, addresses)| node(name, addresses))
        .collect();
    let world = World {
        pools: pools.iter().collect(),
        modes: vec![&mode],
        nodes: nodes.iter().collect(),
        ..World::default()
    };
    let plan = plan(&world);
    anyhow::ensure!(
        !plan.subnets.create.is_empty(),
        "the operator's core assigns nothing: {plan:?}"
    );
    write_pools(folder, options, true)?;
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

/// Write the pools once more, with another `natOutgoing`. Nothing of the operator's depends on it.
pub fn write_pools(folder: &Path, options: &Options, nat_outgoing: bool) -> anyhow::Result<()> {
    for pool in pools(options, nat_outgoing)? {
        write_one(folder, &format!("pool-{}", pool.name_any()), &pool)?;
    }
    Ok(())
}

fn pools(options: &Options, nat_outgoing: bool) -> anyhow::Result<Vec<IPPool>> {
    let pools = options.families.pools();
    pools
        .map(|cidr| pool(cidr, options.pod_interface, nat_outgoing))
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
    user_object("IPPool", name, &spec)
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

fn node(name: &str, addresses: &[IpAddr]) -> Node {
    let internal = |address: &IpAddr| NodeAddress {
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
            addresses: Some(addresses.iter().map(internal).collect()),
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
