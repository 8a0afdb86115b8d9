//! `NodeSubnet`: one block of addresses and the node that owns it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ip_family::IpFamily;
use crate::{cel, names, schema};

/// Smallest MTU in bytes of a link with IPv4 (RFC 791, section 3.2).
pub const MIN_LINK_MTU: u32 = 68;
/// Largest size in bytes of an IPv4 packet (RFC 791, section 3.1).
pub const MAX_LINK_MTU: u32 = 65535;

/// One assigned block. The name of the object is derived from the CIDR, so the API server refuses a second owner.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "netweft.io",
    version = "v1alpha1",
    kind = "NodeSubnet",
    plural = "nodesubnets",
    shortname = "nsub",
    category = "netweft",
    derive = "PartialEq",
    doc = "One block of pod addresses and the node that owns it. Written by the operator.",
    printcolumn(name = "CIDR", type_ = "string", json_path = ".spec.cidr"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "IPv4", type_ = "string", json_path = ".spec.nodeAddresses.ipv4"),
    printcolumn(name = "IPv6", type_ = "string", json_path = ".spec.nodeAddresses.ipv6"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    validation = Rule::new("self.spec.cidr.contains(':') ? self.metadata.name.matches('^([0-9a-f]{4}-){8}[0-9]{1,3}$') && isCIDR(self.metadata.name.substring(0, 39).replace('-', ':') + '/' + self.metadata.name.substring(40)) && cidr(self.metadata.name.substring(0, 39).replace('-', ':') + '/' + self.metadata.name.substring(40)) == cidr(self.spec.cidr) : self.metadata.name == self.spec.cidr.replace('.', '-').replace('/', '-')").message("metadata.name must be spec.cidr with '-' for '.', ':' and '/', IPv6 written in full, for example 10-244-3-64-26")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.cidr == oldSelf.cidr && self.pool == oldSelf.pool && self.node == oldSelf.node").message("spec.cidr, spec.pool and spec.node are immutable: the operator deletes the NodeSubnet to give the block to another node"))]
pub struct NodeSubnetSpec {
    /// The block, without host bits.
    #[schemars(schema_with = "schema::cidr")]
    #[x_kube(validation = cel::cidr("spec.cidr", "10.244.3.64/26"))]
    pub cidr: IpNet,
    /// Name of the IPPool that the block belongs to.
    #[schemars(length(min = 1, max = 253))]
    pub pool: String,
    /// Name of the Node that owns the block.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// Addresses of the node, to which other nodes send packets for the block.
    #[serde(default)]
    pub node_addresses: NodeAddresses,
    /// AS number of the node, if it differs from that of the NetworkMode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub as_number: Option<u32>,
    /// MTU in bytes of the node's links to other nodes. Absent: the agent has not reported it yet.
    #[serde(default, rename = "linkMTU", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = MIN_LINK_MTU, max = MAX_LINK_MTU))]
    pub link_mtu: Option<u32>,
    /// Active: the Node exists, and the block is routed. Orphaned: the Node object is gone, the routes are withdrawn, and the block is kept
    /// for a grace period.
    pub state: SubnetState,
}

/// The addresses of a node, at most one of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeAddresses {
    /// The IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_ip")]
    pub ipv6: Option<Ipv6Addr>,
}

impl NodeAddresses {
    /// The addresses, IPv4 first.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        self.ipv4
            .map(IpAddr::V4)
            .into_iter()
            .chain(self.ipv6.map(IpAddr::V6))
    }

    /// The address of a family.
    #[must_use]
    pub fn of(self, family: IpFamily) -> Option<IpAddr> {
        self.iter().find(|address| IpFamily::of(*address) == family)
    }
}

/// Whether the Node of a block exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SubnetState {
    /// The Node exists, and the block is routed.
    Active,
    /// The Node object is gone, the routes are withdrawn, and the block is kept for a grace period.
    Orphaned,
}

impl NodeSubnetSpec {
    /// The object with this spec and the name of its block.
    #[must_use]
    pub fn into_object(self) -> NodeSubnet {
        let name = names::node_subnet_name(&self.cidr);
        NodeSubnet::new(&name, self)
    }
}
