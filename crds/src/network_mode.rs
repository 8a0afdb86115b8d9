//! `NetworkMode`: how packets travel between nodes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bgp::GracefulRestart;
use crate::node_address::NodeAddressSource;
use crate::{bgp, rule, schema};

/// How packets between pods of different nodes travel.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "netweft.io",
    version = "v1alpha1",
    kind = "NetworkMode",
    plural = "networkmodes",
    shortname = "nm",
    category = "netweft",
    status = "NetworkModeStatus",
    derive = "PartialEq",
    doc = "How packets between pods of different nodes travel.",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(
        name = "Encapsulation",
        type_ = "string",
        json_path = ".spec.overlay.encapsulation"
    ),
    printcolumn(
        name = "When",
        type_ = "string",
        json_path = ".spec.overlay.encapsulateWhen"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Done", type_ = "integer", json_path = ".status.nodes.done"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.mode == 'overlay') == has(self.overlay)").message("spec.overlay belongs to spec.mode overlay: give both, for example {mode: overlay, overlay: {encapsulation: vxlan}}, or neither"))]
#[x_kube(validation = Rule::new("self.mode == 'underlay' || !has(self.underlay)").message("spec.underlay belongs to spec.mode underlay: set spec.mode to underlay or remove spec.underlay"))]
pub struct NetworkModeSpec {
    /// overlay: encapsulated; host-gw: routed by next hop on a shared link; underlay: routed by BGP.
    pub mode: Mode,

    /// Parameters of mode overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,

    /// Parameters of mode underlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<Underlay>,

    /// Bytes of the largest packet a pod may send; 0: measured on the egress link, less the encapsulation.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == 0 || (self >= 1280 && self <= 65535)").message("spec.mtu must be 0 (measured) or 1280 to 65535, for example 1450"))]
    pub mtu: u32,

    /// Which of a node's addresses the others send to: one selector for both families, or one for each.
    #[serde(default)]
    pub node_address: NodeAddressSource,

    /// How an edit of this mode, or of a pool's `networkMode` to this one, is carried out.
    #[serde(default)]
    pub rollout: Rollout,
}

/// How a change of the way between nodes is carried out. No packet is lost in any case.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Nodes that begin to send the new way at the same time: a number, or a part of all nodes in percent.
    #[serde(default = "default_at_once")]
    #[schemars(schema_with = "schema::number_or_percent")]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 1 : self.matches('^([1-9]|[1-9][0-9]|100)%$')").message("spec.rollout.atOnce must be a number of nodes, 1 or more, or a percentage from 1% to 100%, for example 10%"))]
    pub at_once: IntOrString,
    /// A Node that has not been Ready for so long, or whose agent has acknowledged nothing for so long, is not waited for; it is named, and
    /// follows when it comes back.
    #[serde(default = "default_progress_deadline")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rule::duration("spec.rollout.progressDeadline", "1s", "86400s", "600s"))]
    pub progress_deadline: kube::core::Duration,
    /// How nodes test the new way before they send by it. auto: by ICMP echo and by UDP to the agents' port, and one answer is enough;
    /// icmp: by ICMP echo alone; udp: by UDP alone; none: no test, for networks that drop both. Then a new way that carries nothing is not
    /// noticed.
    #[serde(default)]
    pub probe: ProbeProtocol,
}

/// How a way is tried.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeProtocol {
    /// By ICMP echo and by UDP; one answer is enough.
    #[default]
    Auto,
    /// By ICMP echo alone (RFC 792, RFC 4443).
    Icmp,
    /// By UDP to the agents' port alone.
    Udp,
    /// Not at all.
    None,
}

impl ProbeProtocol {
    /// Whether nodes are asked by ICMP echo.
    #[must_use]
    pub const fn uses_icmp(self) -> bool {
        matches!(self, Self::Auto | Self::Icmp)
    }

    /// Whether nodes are asked by UDP.
    #[must_use]
    pub const fn uses_udp(self) -> bool {
        matches!(self, Self::Auto | Self::Udp)
    }

    /// Whether it is the default.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            at_once: default_at_once(),
            progress_deadline: default_progress_deadline(),
            probe: ProbeProtocol::default(),
        }
    }
}

impl Rollout {
    /// How many of `nodes` may switch at the same time: 1 at least.
    #[must_use]
    pub fn at_once(&self, nodes: usize) -> usize {
        let many = match &self.at_once {
            IntOrString::Int(number) => usize::try_from(*number).unwrap_or_default(),
            IntOrString::String(text) => {
                let percent = text
                    .strip_suffix('%')
                    .and_then(|part| part.parse::<usize>().ok());
                nodes
                    .saturating_mul(percent.unwrap_or_default().min(100))
                    .div_ceil(100)
            }
        };
        many.max(1)
    }
}

fn default_at_once() -> IntOrString {
    IntOrString::String("10%".to_owned())
}

fn default_progress_deadline() -> kube::core::Duration {
    std::time::Duration::from_mins(10).into()
}

/// The three ways between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Encapsulated in packets between node addresses.
    Overlay,
    /// Plain, by next hop on a link that the nodes share.
    HostGw,
    /// Plain, by routes that BGP distributes.
    Underlay,
}

/// Parameters of mode overlay.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.encapsulation == 'vxlan' || !has(self.vxlan)").message("spec.overlay.vxlan belongs to encapsulation vxlan: remove it or set spec.overlay.encapsulation to vxlan"))]
#[x_kube(validation = Rule::new("self.encapsulation == 'udp' || !has(self.udp)").message("spec.overlay.udp belongs to encapsulation udp: remove it or set spec.overlay.encapsulation to udp"))]
pub struct Overlay {
    /// The kind of tunnel.
    pub encapsulation: Encapsulation,
    /// always: to every node; cross-subnet: only to nodes that are not on the same link.
    #[serde(default)]
    pub encapsulate_when: EncapsulateWhen,
    /// Parameters of encapsulation vxlan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<VxlanParameters>,
    /// Parameters of encapsulation udp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpParameters>,
}

/// The kinds of tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Encapsulation {
    /// VXLAN in the kernel (RFC 7348).
    Vxlan,
    /// IP in IP in the kernel (RFC 2003); IPv4 only.
    Ipip,
    /// UDP in a userspace relay.
    Udp,
}

/// When packets are encapsulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EncapsulateWhen {
    /// To every other node.
    #[default]
    Always,
    /// Only to nodes in another subnet.
    CrossSubnet,
}

/// Parameters of a VXLAN tunnel.
#[derive(KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VxlanParameters {
    /// Network identifier, 1 to 16777215.
    #[serde(default = "default_vni")]
    #[x_kube(validation = rule::within("spec.overlay.vxlan.vni", 1, 16_777_215, 4096))]
    pub vni: u32,
    /// UDP destination port.
    #[serde(default = "default_vxlan_port")]
    #[x_kube(validation = rule::port("spec.overlay.vxlan.port", 4789))]
    pub port: u16,
}

impl Default for VxlanParameters {
    fn default() -> Self {
        Self {
            vni: default_vni(),
            port: default_vxlan_port(),
        }
    }
}

fn default_vni() -> u32 {
    4096
}

fn default_vxlan_port() -> u16 {
    4789
}

/// Parameters of a UDP tunnel.
#[derive(KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpParameters {
    /// UDP destination port.
    #[serde(default = "default_udp_port")]
    #[x_kube(validation = rule::port("spec.overlay.udp.port", 8285))]
    pub port: u16,
}

impl Default for UdpParameters {
    fn default() -> Self {
        Self {
            port: default_udp_port(),
        }
    }
}

fn default_udp_port() -> u16 {
    8285
}

/// Parameters of mode underlay.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rule::keepalive_before_hold("spec.underlay"))]
pub struct Underlay {
    /// AS number of nodes for which `asNumbers` says nothing else. A plain number, also beyond 65535: one in dotted notation (RFC 5396) is
    /// the first part times 65536 plus the second, 4200000000 for 64086.59904.
    #[serde(default = "default_as_number")]
    #[x_kube(validation = rule::as_number("spec.underlay.asNumber"))]
    pub as_number: u32,
    /// AS numbers by node; the first match counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub as_numbers: Vec<AsNumberRule>,
    /// TCP port on which the nodes listen.
    #[serde(default = "bgp::port")]
    #[x_kube(validation = rule::port("spec.underlay.listenPort", 179))]
    pub listen_port: u16,
    /// Whether every node has a session with every other.
    #[serde(default = "yes")]
    pub node_to_node_mesh: bool,
    /// Nodes that reflect routes (RFC 4456).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub route_reflectors: Vec<RouteReflectorRule>,
    /// Time without a message after which a session of the mesh is dead.
    #[serde(default = "bgp::ninety_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rule::duration("spec.underlay.holdTime", "3s", "65535s", "90s"))]
    pub hold_time: kube::core::Duration,
    /// Time between keepalives.
    #[serde(default = "bgp::thirty_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rule::duration("spec.underlay.keepaliveTime", "1s", "65535s", "30s"))]
    pub keepalive_time: kube::core::Duration,
    /// Time between attempts to connect.
    #[serde(default = "bgp::five_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rule::duration("spec.underlay.connectRetryTime", "1s", "65535s", "5s"))]
    pub connect_retry_time: kube::core::Duration,
    /// Graceful restart of the mesh's sessions (RFC 4724).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graceful_restart: Option<GracefulRestart>,
}

impl Default for Underlay {
    fn default() -> Self {
        Self {
            as_number: default_as_number(),
            as_numbers: Vec::new(),
            listen_port: bgp::port(),
            node_to_node_mesh: yes(),
            route_reflectors: Vec::new(),
            hold_time: bgp::ninety_seconds(),
            keepalive_time: bgp::thirty_seconds(),
            connect_retry_time: bgp::five_seconds(),
            graceful_restart: None,
        }
    }
}

fn default_as_number() -> u32 {
    64512
}

fn yes() -> bool {
    true
}

/// An AS number for some nodes.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AsNumberRule {
    /// The nodes.
    #[schemars(schema_with = "schema::selector")]
    #[x_kube(validation = rule::selector("spec.underlay.asNumbers[].nodeSelector"))]
    pub node_selector: LabelSelector,
    /// Their AS number, a plain number.
    #[x_kube(validation = rule::as_number("spec.underlay.asNumbers[].asNumber"))]
    pub as_number: u32,
}

/// Some nodes as route reflectors.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteReflectorRule {
    /// The nodes.
    #[schemars(schema_with = "schema::selector")]
    #[x_kube(validation = rule::selector("spec.underlay.routeReflectors[].nodeSelector"))]
    pub node_selector: LabelSelector,
    /// Cluster identifier in the form of an IPv4 address (RFC 4456, section 7).
    #[serde(rename = "clusterID")]
    #[schemars(length(min = 7, max = 15))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 4 && self != '0.0.0.0'").message("spec.underlay.routeReflectors[].clusterID must have the form of an IPv4 address, for example 10.0.0.250"))]
    pub cluster_id: String,
}

/// What the operator says about a mode.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkModeStatus {
    /// The generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where a change of the mode stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What the nodes change from, while they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<ModeSummary>,
    /// How many nodes carry traffic this way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeProgress>,
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(default)]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// The phases of a change, in their order.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum Phase {
    /// Every node learns to receive the new way.
    Preparing,
    /// Nodes begin to send the new way.
    Switching,
    /// The old way is removed.
    Retiring,
    /// Nothing changes.
    Stable,
}

/// A mode in few words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModeSummary {
    /// The mode.
    pub mode: Mode,
    /// Its encapsulation, for overlay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<Encapsulation>,
}

/// How far the nodes are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeProgress {
    /// Nodes that should carry traffic this way.
    pub total: i64,
    /// Nodes that do.
    pub done: i64,
    /// Some of those that do not yet, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
}
