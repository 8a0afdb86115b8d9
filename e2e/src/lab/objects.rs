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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LabMode {
    /// overlay, encapsulation vxlan.
    Vxlan,
    /// overlay, encapsulation ipip.
    Ipip,
    /// overlay, encapsulation udp.
    Udp,
    /// host-gw.
    HostGw,
    /// overlay, encapsulation vxlan, to other subnets only.
    VxlanCrossSubnet,
    /// overlay, encapsulation ipip, to other subnets only.
    IpipCrossSubnet,
    /// overlay, encapsulation udp, to other subnets only.
    UdpCrossSubnet,
}

impl fmt::Display for LabMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::Ipip => "ipip",
            Self::Udp => "udp",
            Self::HostGw => "host-gw",
            Self::VxlanCrossSubnet => "vxlan-cross-subnet",
            Self::IpipCrossSubnet => "ipip-cross-subnet",
            Self::UdpCrossSubnet => "udp-cross-subnet",
        })
    }
}

impl LabMode {
    /// `spec` of a NetworkMode.
    #[must_use]
    pub fn spec(self) -> serde_json::Value {
        let overlay = |encapsulation: &str| {
            let when = if self.crosses_subnets() {
                "cross-subnet"
            } else {
                "always"
            };
            json!({ "mode": "overlay",
                "overlay": { "encapsulation": encapsulation, "encapsulateWhen": when } })
        };
        match self {
            Self::Vxlan | Self::VxlanCrossSubnet => overlay("vxlan"),
            Self::Ipip | Self::IpipCrossSubnet => overlay("ipip"),
            Self::Udp | Self::UdpCrossSubnet => overlay("udp"),
            Self::HostGw => json!({ "mode": "host-gw" }),
        }
    }

    /// Whether nodes on one link send to each other without encapsulation.
    #[must_use]
    pub fn is_plain_on_link(self) -> bool {
        self == Self::HostGw || self.crosses_subnets()
    }

    /// Whether it is about nodes behind a router.
    #[must_use]
    pub fn crosses_subnets(self) -> bool {
        match self {
            Self::VxlanCrossSubnet | Self::IpipCrossSubnet | Self::UdpCrossSubnet => true,
            Self::Vxlan | Self::Ipip | Self::Udp | Self::HostGw => false,
        }
    }

    /// Whether it is the one that every kind of pod is tried with.
    #[must_use]
    pub fn is_first(self) -> bool {
        self == Self::Vxlan
    }

    /// Whether the relay has to run on every node.
    #[must_use]
    pub fn needs_relay(self) -> bool {
        matches!(self, Self::Udp | Self::UdpCrossSubnet)
    }

    /// Whether it carries these families.
    #[must_use]
    pub fn carries(self, families: Families) -> bool {
        let ipip = matches!(self, Self::Ipip | Self::IpipCrossSubnet);
        !ipip || families == Families::V4
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
    nat_outgoing: bool,
) -> anyhow::Result<()> {
    let mode: NetworkMode = user_object("NetworkMode", "default", &options.mode.spec())?;
    let pools = pools(options, nat_outgoing)?;
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
    write_pools(folder, options, nat_outgoing)?;
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
    // An agent never sees a file that is half written.
    let aside = folder.join(format!("{name}.new"));
    fs::write(&aside, serde_saphyr::to_string(object)?)
        .and_then(|()| fs::rename(&aside, folder.join(format!("{name}.yaml"))))
        .with_context(|| format!("write {name}"))
}
