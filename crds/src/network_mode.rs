//! `NetworkMode`: the datapath between nodes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bgp::GracefulRestart;
use crate::node_address::NodeAddressSource;
use crate::{bgp, cel, schema};

/// The datapath between pods of different nodes.
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
    doc = "The datapath between pods of different nodes: overlay, host-gw or underlay. IPPools refer to it by spec.networkMode.",
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
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total"),
    printcolumn(
        name = "Updated",
        type_ = "integer",
        json_path = ".status.nodes.updated"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.mode == 'overlay') == has(self.overlay)").message("spec.overlay belongs to spec.mode overlay: give both, for example {mode: overlay, overlay: {encapsulation: vxlan}}, or neither"))]
#[x_kube(validation = Rule::new("self.mode == 'underlay' || !has(self.underlay)").message("spec.underlay belongs to spec.mode underlay: set spec.mode to underlay or remove spec.underlay"))]
pub struct NetworkModeSpec {
    /// overlay: packets are encapsulated (see spec.overlay). host-gw: routes have node addresses as next hops, so all nodes share a
    /// link. underlay: BGP distributes the routes (see spec.underlay).
    pub mode: Mode,

    /// Parameters of mode overlay; required with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,

    /// Parameters of mode underlay. Absent: the defaults of all parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<Underlay>,

    /// MTU of pods in bytes. 0: the agent measures the MTU of the link to other nodes and subtracts the encapsulation.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    #[x_kube(validation = Rule::new("self == 0 || (self >= 1280 && self <= 65535)").message("spec.mtu must be 0 (measured) or 1280 to 65535, for example 1450"))]
    pub mtu: u32,

    /// Selector of the node address to which other nodes send packets: one for both IP families, or one for each.
    #[serde(default)]
    pub node_address: NodeAddressSource,

    /// How nodes change to this mode after an edit of it, or of IPPool.spec.networkMode.
    #[serde(default)]
    pub rollout: Rollout,
}

/// How nodes change from one datapath to another. No packet is lost in any case.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Number of nodes that change to the new datapath at the same time, or a percentage of all nodes.
    #[serde(default = "default_max_concurrent")]
    #[schemars(schema_with = "schema::number_or_percent")]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 1 : self.matches('^([1-9]|[1-9][0-9]|100)%$')").message("spec.rollout.maxConcurrent must be a number of nodes, 1 or more, or a percentage from 1% to 100%, for example 10%"))]
    pub max_concurrent: IntOrString,
    /// Time after which a change no longer waits for a Node that is not Ready, or whose agent does not acknowledge its spec. The status
    /// names the Node, and the Node follows when it is back.
    #[serde(default = "default_progress_deadline")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = cel::duration("spec.rollout.progressDeadline", "1s", "86400s", "600s"))]
    pub progress_deadline: kube::core::Duration,
    /// Protocol of the probes that nodes send over the new datapath before they use it. auto: ICMP echo and UDP to the port of the
    /// agents; one reply is enough. icmp: ICMP echo only. udp: UDP only. none: no probes, for networks that drop both protocols; then a
    /// new datapath that does not work stays unnoticed.
    #[serde(default)]
    pub probe: ProbeProtocol,
}

/// Protocol of probes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeProtocol {
    /// ICMP echo and UDP; one reply is enough.
    #[default]
    Auto,
    /// ICMP echo only (RFC 792, RFC 4443).
    Icmp,
    /// UDP to the port of the agents only.
    Udp,
    /// No probes.
    None,
}

impl ProbeProtocol {
    /// Whether probes use ICMP echo.
    #[must_use]
    pub const fn uses_icmp(self) -> bool {
        matches!(self, Self::Auto | Self::Icmp)
    }

    /// Whether probes use UDP.
    #[must_use]
    pub const fn uses_udp(self) -> bool {
        matches!(self, Self::Auto | Self::Udp)
    }

    /// Whether this is the default.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            max_concurrent: default_max_concurrent(),
            progress_deadline: default_progress_deadline(),
            probe: ProbeProtocol::default(),
        }
    }
}

impl Rollout {
    /// Maximum number of `nodes` that change at the same time, at least 1.
    #[must_use]
    pub fn max_concurrent(&self, nodes: usize) -> usize {
        let limit = match &self.max_concurrent {
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
        limit.max(1)
    }
}

fn default_max_concurrent() -> IntOrString {
    IntOrString::String("10%".to_owned())
}

fn default_progress_deadline() -> kube::core::Duration {
    std::time::Duration::from_mins(10).into()
}

/// The three modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Packets of pods are encapsulated in packets between node addresses.
    Overlay,
    /// Routes have node addresses as next hops.
    HostGw,
    /// BGP distributes the routes.
    Underlay,
}

/// Parameters of mode overlay.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.encapsulation == 'vxlan' || !has(self.vxlan)").message("spec.overlay.vxlan belongs to encapsulation vxlan: remove it or set spec.overlay.encapsulation to vxlan"))]
#[x_kube(validation = Rule::new("self.encapsulation == 'udp' || !has(self.udp)").message("spec.overlay.udp belongs to encapsulation udp: remove it or set spec.overlay.encapsulation to udp"))]
pub struct Overlay {
    /// vxlan: VXLAN tunnel of the kernel. ipip: IP-in-IP tunnel of the kernel, for IPv4 pods only. udp: UDP tunnel of a userspace relay.
    pub encapsulation: Encapsulation,
    /// always: packets to every node are encapsulated. cross-subnet: only packets to nodes that are not on the same link.
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
    /// VXLAN network identifier (VNI), 1 to 16777215.
    #[serde(default = "default_vni")]
    #[x_kube(validation = cel::within("spec.overlay.vxlan.vni", 1, 16_777_215, 4096))]
    pub vni: u32,
    /// UDP destination port of the tunnel.
    #[serde(default = "default_vxlan_port")]
    #[x_kube(validation = cel::port("spec.overlay.vxlan.port", 4789))]
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
    /// UDP destination port of the tunnel.
    #[serde(default = "default_udp_port")]
    #[x_kube(validation = cel::port("spec.overlay.udp.port", 8285))]
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
#[x_kube(validation = cel::keepalive_before_hold("spec.underlay"))]
pub struct Underlay {
    /// AS number of nodes that match no entry of asNumbers. A plain number, also beyond 65535: a number in dotted notation (RFC 5396) is
    /// the first part times 65536 plus the second, for example 4200000000 for 64086.59904.
    #[serde(default = "default_as_number")]
    #[x_kube(validation = cel::as_number("spec.underlay.asNumber"))]
    pub as_number: u32,
    /// AS numbers of some nodes. The first matching entry counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub as_numbers: Vec<AsNumberRule>,
    /// TCP port on which the BGP speakers of the nodes listen.
    #[serde(default = "bgp::port")]
    #[x_kube(validation = cel::port("spec.underlay.listenPort", 179))]
    pub listen_port: u16,
    /// Whether every node has a BGP session with every other node.
    #[serde(default = "yes")]
    pub node_to_node_mesh: bool,
    /// Nodes that are route reflectors (RFC 4456).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub route_reflectors: Vec<RouteReflectorRule>,
    /// Hold time of the sessions between nodes (RFC 4271): a session without messages for this time ends.
    #[serde(default = "bgp::ninety_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = cel::duration("spec.underlay.holdTime", "3s", "65535s", "90s"))]
    pub hold_time: kube::core::Duration,
    /// Time between KEEPALIVE messages of the sessions between nodes.
    #[serde(default = "bgp::thirty_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = cel::duration("spec.underlay.keepaliveTime", "1s", "65535s", "30s"))]
    pub keepalive_time: kube::core::Duration,
    /// Time between attempts to establish a session between nodes.
    #[serde(default = "bgp::five_seconds")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = cel::duration("spec.underlay.connectRetryTime", "1s", "65535s", "5s"))]
    pub connect_retry_time: kube::core::Duration,
    /// Graceful restart of the sessions between nodes (RFC 4724). Absent: enabled with a restart time of 120s.
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
    /// Label selector of the Nodes.
    #[schemars(schema_with = "schema::selector")]
    #[x_kube(validation = cel::selector("spec.underlay.asNumbers[].nodeSelector"))]
    pub node_selector: LabelSelector,
    /// AS number of these Nodes, as a plain number.
    #[x_kube(validation = cel::as_number("spec.underlay.asNumbers[].asNumber"))]
    pub as_number: u32,
}

/// Some nodes as route reflectors.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteReflectorRule {
    /// Label selector of the Nodes.
    #[schemars(schema_with = "schema::selector")]
    #[x_kube(validation = cel::selector("spec.underlay.routeReflectors[].nodeSelector"))]
    pub node_selector: LabelSelector,
    /// Cluster ID of the route reflectors in the form of an IPv4 address (RFC 4456, section 7).
    #[serde(rename = "clusterID")]
    #[schemars(length(min = 7, max = 15))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 4 && self != '0.0.0.0'").message("spec.underlay.routeReflectors[].clusterID must have the form of an IPv4 address, for example 10.0.0.250"))]
    pub cluster_id: String,
}

/// The state of a NetworkMode, written by the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkModeStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Phase of the change to this mode. Preparing: every node prepares the new datapath and probes it. Switching: nodes begin to send over
    /// the new datapath. Retiring: nodes remove the old datapath. Stable: no change is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Former datapath, while nodes change to this mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<ModeSummary>,
    /// Progress of the nodes.
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
    /// Every node prepares the new datapath and probes it.
    Preparing,
    /// Nodes begin to send over the new datapath.
    Switching,
    /// Nodes remove the old datapath.
    Retiring,
    /// No change is under way.
    Stable,
}

/// Summary of a datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModeSummary {
    /// Mode of the datapath.
    pub mode: Mode,
    /// Encapsulation, with mode overlay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<Encapsulation>,
}

/// Progress of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeProgress {
    /// Number of nodes that use this mode or are to use it.
    #[schemars(range(min = 0))]
    pub total: i64,
    /// Number of these nodes that use this mode.
    #[schemars(range(min = 0))]
    pub updated: i64,
    /// Names of nodes that do not use this mode yet; the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::object_names")]
    pub pending: Vec<String>,
}
