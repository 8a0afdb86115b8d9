//! `IPPool`: a range of pod addresses.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{cel, names, schema};

pub use netweft_common::PodInterface;

/// A range of pod addresses, assigned to nodes in blocks.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "netweft.io",
    version = "v1alpha1",
    kind = "IPPool",
    plural = "ippools",
    shortname = "ipp",
    category = "netweft",
    status = "IPPoolStatus",
    derive = "PartialEq",
    doc = "A range of pod addresses, assigned to nodes in blocks.",
    printcolumn(name = "CIDR", type_ = "string", json_path = ".spec.cidr"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.networkMode"),
    printcolumn(name = "NAT", type_ = "boolean", json_path = ".spec.natOutgoing"),
    printcolumn(
        name = "Blocks",
        type_ = "integer",
        json_path = ".status.usage.blocks.used"
    ),
    printcolumn(
        name = "Total",
        type_ = "integer",
        json_path = ".status.usage.blocks.total"
    ),
    printcolumn(
        name = "Addresses",
        type_ = "integer",
        json_path = ".status.usage.addresses.used"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!isCIDR(self.cidr) || !has(self.blockSize) || (cidr(self.cidr).ip().family() == 4 ? self.blockSize >= 20 && self.blockSize <= 30 : self.blockSize >= 116 && self.blockSize <= 126)").message("spec.blockSize must be 20 to 30 for an IPv4 pool (for example 26) and 116 to 126 for an IPv6 pool (for example 122)"))]
#[x_kube(validation = Rule::new("!isCIDR(self.cidr) || cidr(self.cidr).prefixLength() <= (has(self.blockSize) ? self.blockSize : (cidr(self.cidr).ip().family() == 4 ? 26 : 122))").message("spec.cidr is smaller than one block: choose a shorter prefix, for example /16, or a larger spec.blockSize"))]
#[x_kube(validation = Rule::new("!isCIDR(self.cidr) || !isCIDR(oldSelf.cidr) || (has(self.blockSize) ? self.blockSize : (cidr(self.cidr).ip().family() == 4 ? 26 : 122)) == (has(oldSelf.blockSize) ? oldSelf.blockSize : (cidr(oldSelf.cidr).ip().family() == 4 ? 26 : 122))").message("spec.blockSize is immutable: create another pool with the size you want"))]
#[x_kube(validation = Rule::new("!has(self.reserved) || !isCIDR(self.cidr) || self.reserved.all(r, isIP(r) ? cidr(self.cidr).containsIP(r) : !isCIDR(r) || cidr(self.cidr).containsCIDR(r))").message("spec.reserved must lie inside spec.cidr, for example 10.244.7.7 in 10.244.0.0/16"))]
pub struct IPPoolSpec {
    /// IPv4 or IPv6 range without host bits, for example `10.244.0.0/16`. Immutable.
    #[schemars(schema_with = "schema::cidr")]
    #[x_kube(
        validation = cel::cidr("spec.cidr", "10.244.0.0/16"),
        validation = Rule::new("!isCIDR(self) || ['0.0.0.0/8', '127.0.0.0/8', '169.254.0.0/16', '224.0.0.0/4', '::1/128', 'fe80::/10', 'ff00::/8'].all(c, !cidr(c).containsCIDR(self) && !cidr(self).containsCIDR(c))").message("spec.cidr must hold no link-local, loopback or multicast addresses: use a private range, for example 10.244.0.0/16"),
        validation = Rule::new("self == oldSelf").message("spec.cidr is immutable: create another pool with the range you want")
    )]
    pub cidr: IpNet,

    /// Prefix length of the blocks that are assigned to nodes. Absent: 26 for IPv4 and 122 for IPv6 (64 addresses). Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 128))]
    pub block_size: Option<u8>,

    /// Name of the NetworkMode with the datapath to these addresses.
    #[serde(default = "default_mode")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = cel::name("spec.networkMode", "default"))]
    pub network_mode: String,

    /// How pods are connected to their node. routed: a veth pair and a host route for each pod. bridge: a veth pair on a bridge. Immutable.
    #[serde(default)]
    #[schemars(schema_with = "schema::pod_interface")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.podInterface is immutable: create another pool, routed or bridge"))]
    pub pod_interface: PodInterface,

    /// Whether nodes masquerade packets of these pods to destinations outside all IPPools.
    #[serde(default)]
    pub nat_outgoing: bool,

    /// Further destinations to which packets are not masqueraded, for example `192.168.0.0/16`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::cidr_set")]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c) && cidr(c) == cidr(c).masked())").message("spec.natOutgoingExclude must hold CIDRs without host bits, for example 192.168.0.0/16"))]
    pub nat_outgoing_exclude: Vec<IpNet>,

    /// Whether the pool gives no new blocks and addresses. Assigned blocks and addresses stay.
    #[serde(default)]
    pub disabled: bool,

    /// Whether BGP does not advertise blocks of this pool.
    #[serde(default, rename = "disableBGPExport")]
    pub disable_bgp_export: bool,

    /// Addresses and ranges of the pool that no pod gets, for example `10.244.7.7` or `10.244.0.0/24`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::addresses_or_cidrs")]
    #[x_kube(validation = Rule::new("self.all(r, isIP(r) || (isCIDR(r) && cidr(r) == cidr(r).masked()))").message("spec.reserved must hold addresses, or CIDRs without host bits, for example 10.244.7.7 or 10.244.0.0/24"))]
    pub reserved: Vec<String>,

    /// Label selector of the Nodes that get blocks of this pool. Absent: all Nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_selector")]
    #[x_kube(validation = cel::selector("spec.nodeSelector"))]
    pub node_selector: Option<LabelSelector>,

    /// Label selector of the namespaces whose pods get addresses of this pool. Absent: all namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_selector")]
    #[x_kube(validation = cel::selector("spec.namespaceSelector"))]
    pub namespace_selector: Option<LabelSelector>,
}

fn default_mode() -> String {
    names::DEFAULT_MODE.to_owned()
}

/// The state of an IPPool, written by the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPPoolStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Utilization of the pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// While the pool is disabled or being deleted: pods that still have addresses of it; the first 64 groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub remaining_pods: Vec<RemainingPods>,
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(default)]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Pods of one owner on one node that still have addresses of a pool.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct RemainingPods {
    /// Name of the Node.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// Namespace of the pods.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Controller of the pods by kind and name, for example `Deployment/web`. Absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub owner: Option<String>,
    /// Number of the pods.
    #[schemars(range(min = 0))]
    pub count: i64,
}

/// Utilization of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Blocks assigned to nodes.
    pub blocks: UsageCount,
    /// Addresses given to pods.
    pub addresses: UsageCount,
}

/// A part of a total. An IPv6 pool can have more than 2^63 addresses; the numbers end there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UsageCount {
    /// Number in the pool.
    #[schemars(range(min = 0))]
    pub total: i64,
    /// Number in use.
    #[schemars(range(min = 0))]
    pub used: i64,
}

impl IPPoolSpec {
    /// Prefix length of a block: `blockSize`, or the family's default.
    #[must_use]
    pub fn block_prefix(&self) -> u8 {
        self.block_size.unwrap_or(match self.cidr {
            IpNet::V4(_) => 26,
            IpNet::V6(_) => 122,
        })
    }
}
