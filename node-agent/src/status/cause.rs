//! Every cause of a problem that the agent itself finds, with the text that the condition shows.
//!
//! Causes that other modules explain are errors of those modules (`netstate::Error`, `Conflict`, `Unreachable`, `LinkConflict`).

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use netweft_cni::conf::CONFLIST_FILE;
use netweft_netstate::model::LinkName;

use crate::status::problem::ProblemKind;

/// Why something on this node does not work as the objects ask. The text names the object, the cause and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The NodeNetwork names a pool that the watch has not delivered yet.
    #[error("IPPool {pool} serves this node, and the agent has not received it yet")]
    PoolNotReceived {
        /// The IPPool.
        pool: String,
    },
    /// The relay has not created its link.
    #[error(
        "link {link} of the relay: it does not exist; see the pod of DaemonSet netweft-udp-relay on this node"
    )]
    RelayLinkMissing {
        /// The link.
        link: LinkName,
    },
    /// The link exists without a relay.
    #[error(
        "link {link} of the relay: no process reads from it; see the pod of DaemonSet netweft-udp-relay on this node"
    )]
    RelayNotRunning {
        /// The link.
        link: LinkName,
    },
    /// A file for the plugin cannot be written.
    #[error("write {}: {error}", file.display())]
    FileNotWritten {
        /// The file.
        file: PathBuf,
        /// The cause.
        error: String,
    },
    /// A plugin is missing where the container runtime looks for plugins.
    #[error(
        "{error}; without it no pod starts or ends on this node: see whether the folder can be written, and delete the agent's pod of this node if the folder itself was replaced"
    )]
    PluginNotRestored {
        /// The plugin and the cause.
        error: String,
    },
    /// The record of a pod without a link cannot be removed.
    #[error("remove the attachment of container {container_id}: {error}")]
    AttachmentNotRemoved {
        /// The container of the pod.
        container_id: String,
        /// The cause.
        error: String,
    },
    /// The kernel has no links of a kind (`rtnl_newlink` returns `EOPNOTSUPP`).
    #[error(
        "this kernel has no {kind} links, so link {link} is missing and pods behind it are unreachable: load the module {kind} (modprobe {kind}), or choose another encapsulation in the NetworkMode"
    )]
    LinkKindUnsupported {
        /// The link.
        link: LinkName,
        /// The kind, as in `ip link add type`.
        kind: &'static str,
        /// No address of a pod on this node needs the link.
        transmit_only: bool,
    },
    /// The container runtime uses the configuration of another CNI plugin.
    #[error(
        "{} sorts before {CONFLIST_FILE}, so the container runtime uses it instead: remove it",
        file.display()
    )]
    OtherCniConfiguration {
        /// The file.
        file: PathBuf,
    },
    /// A node that netweft has not served yet has the configuration of another CNI plugin.
    #[error(
        "{file} sorts before {CONFLIST_FILE}, so another CNI plugin connects the pods of this node, and netweft changes nothing here: remove the other network and this file, or {OVERRIDE}"
    )]
    OtherNetworkConfiguration {
        /// The file.
        file: String,
    },
    /// A node that netweft has not served yet has routes or addresses of another pod network.
    #[error(
        "another network uses addresses of IPPool {pool} on this node ({}), and netweft changes nothing here: remove the other network, create an IPPool with a range outside and delete {pool}, or {OVERRIDE}",
        ranges(*cidr, interface.as_deref(), *more)
    )]
    OtherNetworkRange {
        /// The IPPool.
        pool: String,
        /// The first range.
        cidr: IpNet,
        /// The link of the range.
        interface: Option<String>,
        /// Number of further ranges.
        more: usize,
    },
    /// A probe packet of a pod was dropped, and nft shows no rule that drops it.
    #[error(
        "a rule of legacy iptables drops packets of pods: a probe was not forwarded. See `iptables-legacy -S FORWARD`; allow the packets with `iptables-legacy -I FORWARD -i nw+ -j ACCEPT` and `iptables-legacy -I FORWARD -o nw+ -j ACCEPT`, and in the configuration of the program that made the rule"
    )]
    DroppedByLegacyIptables,
    /// Another program changes an object of netweft after each repair.
    #[error(
        "{object} was changed by {by} and repaired {times} times in a row: stop the conflicting program"
    )]
    ChangedRepeatedly {
        /// The object.
        object: String,
        /// The program.
        by: String,
        /// Repairs in a row.
        times: u32,
    },
    /// BIRD does not run with the configuration.
    #[error("{error}")]
    Bird {
        /// The cause.
        error: String,
    },
    /// An object does not match its schema.
    #[error("{object} cannot be read: {error}")]
    ObjectUnreadable {
        /// Kind and name.
        object: String,
        /// The cause.
        error: String,
    },
    /// A file with an object does not match the schema.
    #[error("{} cannot be read: {error}", file.display())]
    FileUnreadable {
        /// The file.
        file: PathBuf,
        /// The cause.
        error: String,
    },
    /// A block of an unknown pool.
    #[error("block {block} is not programmed: its IPPool {pool} does not exist or cannot be read")]
    BlockWithoutPool {
        /// The block.
        block: IpNet,
        /// The IPPool.
        pool: String,
    },
    /// The NodeNetwork and the NodeSubnet of a block disagree.
    #[error(
        "block {block} is not programmed: the NodeNetwork lists it, but NodeSubnet {subnet} does not name this node"
    )]
    BlockOfOtherNode {
        /// The block.
        block: IpNet,
        /// The NodeSubnet.
        subnet: String,
    },
    /// The MAC addresses of two tunnel endpoints are equal, since they are derived from the names of the nodes.
    #[error(
        "node {node} is not programmed: its tunnel endpoint has the MAC address of the tunnel endpoint of node {owner}; rename one of the two nodes"
    )]
    TunnelMacConflict {
        /// The node that is left out.
        node: String,
        /// The node that sorts first.
        owner: String,
    },
    /// An entry of `spec.reserved` is invalid.
    #[error(
        "IPPool {pool}: reserved {text:?} is neither an address nor a CIDR; write for example 10.244.7.7 or 10.244.0.0/24"
    )]
    ReservedInvalid {
        /// The IPPool.
        pool: String,
        /// The entry.
        text: String,
    },
    /// A selector is invalid. No pod gets an address of the pool, rather than an address of the wrong pool.
    #[error(
        "IPPool {pool}: spec.namespaceSelector cannot be read, so its pods wait; the operators are In, NotIn, Exists and DoesNotExist"
    )]
    NamespaceSelectorInvalid {
        /// The IPPool.
        pool: String,
    },
    /// The kernel was booted without IPv6.
    #[error(
        "IPPool {pool} is not programmed: this node's kernel has no IPv6, so pods get no IPv6 address here; boot it without ipv6.disable=1, or keep this node out of the pool by spec.nodeSelector"
    )]
    KernelWithoutIpv6 {
        /// The IPPool.
        pool: String,
    },
    /// The operator is newer than the agent.
    #[error(
        "NetworkMode {mode} is not programmed: this agent does not know its transport; update the agents, or choose another spec.mode"
    )]
    TransportUnknown {
        /// The NetworkMode.
        mode: String,
    },
    /// The node has no address of the outer family.
    #[error(
        "NetworkMode {mode} is not programmed: this node has no address for its packets; set kubelet's --node-ip, or select an address with spec.nodeAddress"
    )]
    NoAddressForMode {
        /// The NetworkMode.
        mode: String,
    },
    /// IPv6 requires a link MTU of 1280 bytes (RFC 8200, section 5).
    #[error(
        "IPPool {pool} is not programmed: IPv6 needs packets of 1280 bytes and NetworkMode {mode} has room for {mtu}; raise the MTU of the node's link or spec.mtu"
    )]
    MtuTooSmallForIpv6 {
        /// The IPPool.
        pool: String,
        /// The NetworkMode.
        mode: String,
        /// Bytes.
        mtu: u32,
    },
    /// Pods would have one interface on a bridge and one routed.
    #[error(
        "IPPools {one} and {other} give addresses to the same pods, but one has podInterface bridge and one routed, so such pods are refused: give both the same"
    )]
    PodInterfacesMixed {
        /// An IPPool.
        one: String,
        /// The other IPPool.
        other: String,
    },
    /// The kernel has no nftables family inet.
    #[error(
        "this kernel has no nftables family inet, so pods of {pools} are not masqueraded and reach nothing outside the pools: give the node a kernel with CONFIG_NF_TABLES_INET, or set natOutgoing: false"
    )]
    NftablesInetUnsupported {
        /// The pools, with their kind.
        pools: String,
    },
    /// The kernel cannot have the table, so nothing filters what pods and other hosts send.
    #[error(
        "this kernel has no nftables family inet, so the node does not check the source addresses of pods, and accepts encapsulated packets from every host: give the node a kernel with CONFIG_NF_TABLES_INET"
    )]
    FilterUnsupported,
    /// The kernel cannot have the table of bridges, so nothing filters frames between bridged pods.
    #[error(
        "this kernel has no nftables family bridge, so bridged pods of this node can use the addresses of each other: give the node a kernel with CONFIG_NF_TABLES_BRIDGE, or use podInterface: routed"
    )]
    BridgeFilterUnsupported,
    /// The UDP port on which the agent answers probes cannot be opened.
    #[error(
        "other nodes get no reply by UDP from this node when they probe a new datapath, and can only use ICMP echo: UDP port {port} {reason} set agent.port in the chart to a free port"
    )]
    ProbePortUnavailable {
        /// The port.
        port: u16,
        /// The cause and what to do about it.
        reason: String,
    },
    /// A pod of an earlier version has the tunnel address of a block.
    #[error(
        "a pod has the address {address}, which is the node's own address in block {block} of IPPool {pool}, so connections that the node opens to pods on other nodes may fail: delete that pod, and its controller starts it with another address"
    )]
    TunnelAddressTaken {
        /// The address.
        address: IpAddr,
        /// The block.
        block: IpNet,
        /// The IPPool.
        pool: String,
    },
    /// `spec.mtu` is larger than the link of the node permits.
    #[error(
        "spec.mtu {mtu} of NetworkMode {mode} is too large for link {link}: the MTU of the link is {link_mtu}, {}; set spec.mtu to {} or less, or leave it out",
        too_large(*overhead),
        link_mtu.saturating_sub(*overhead)
    )]
    MtuTooLarge {
        /// The NetworkMode.
        mode: String,
        /// Bytes that the NetworkMode asks for.
        mtu: u32,
        /// The link of the node.
        link: LinkName,
        /// Bytes.
        link_mtu: u32,
        /// Bytes of the encapsulation.
        overhead: u32,
    },
    /// The record of a pod is damaged.
    #[error(
        "the attachment of address {address} cannot be read and is kept ({error}): if no pod of this node has the address, remove the file"
    )]
    AttachmentUnreadable {
        /// The address.
        address: IpAddr,
        /// The cause.
        error: String,
    },
    /// A running pod has no record.
    #[error(
        "link {link} belongs to a pod without a CNI record: delete the pod, and its controller starts another"
    )]
    PodWithoutRecord {
        /// The link of the pod.
        link: LinkName,
    },
    /// The lock of the attachments is held for long.
    #[error(
        "another process holds the lock {}, so withdrawn blocks are not released: if this persists, end that process",
        file.display()
    )]
    StoreLocked {
        /// The lock.
        file: PathBuf,
    },
}

/// The remedy that keeps the other network.
const OVERRIDE: &str =
    "set agent.ignoreOtherNetworks to true in the chart's values to run netweft next to it";

fn ranges(cidr: IpNet, interface: Option<&str>, more: usize) -> String {
    let link = interface.map_or_else(String::new, |link| format!(" on link {link}"));
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{cidr}{link}{more}")
}

fn too_large(overhead: u32) -> String {
    if overhead == 0 {
        "so larger packets are lost without an ICMP error".to_owned()
    } else {
        format!(
            "and {overhead} are for the encapsulation, so larger packets are fragmented, or lost where fragments are dropped"
        )
    }
}

impl Cause {
    /// The kind of the problem.
    #[must_use]
    pub fn kind(&self) -> ProblemKind {
        match self {
            Self::PoolNotReceived { .. }
            | Self::RelayLinkMissing { .. }
            | Self::RelayNotRunning { .. }
            | Self::FileNotWritten { .. }
            | Self::PluginNotRestored { .. }
            | Self::AttachmentNotRemoved { .. }
            | Self::LinkKindUnsupported {
                transmit_only: false,
                ..
            } => ProblemKind::ProgrammingFailed,
            Self::OtherCniConfiguration { .. }
            | Self::OtherNetworkConfiguration { .. }
            | Self::OtherNetworkRange { .. }
            | Self::DroppedByLegacyIptables => ProblemKind::ForeignObject,
            Self::ChangedRepeatedly { .. } => ProblemKind::Contested,
            Self::Bird { .. }
            | Self::ObjectUnreadable { .. }
            | Self::FileUnreadable { .. }
            | Self::BlockWithoutPool { .. }
            | Self::BlockOfOtherNode { .. }
            | Self::TunnelMacConflict { .. }
            | Self::ReservedInvalid { .. }
            | Self::NamespaceSelectorInvalid { .. }
            | Self::KernelWithoutIpv6 { .. }
            | Self::TransportUnknown { .. }
            | Self::NoAddressForMode { .. }
            | Self::MtuTooSmallForIpv6 { .. }
            | Self::PodInterfacesMixed { .. } => ProblemKind::Invalid,
            Self::LinkKindUnsupported {
                transmit_only: true,
                ..
            }
            | Self::NftablesInetUnsupported { .. } => ProblemKind::KernelLacksFeature,
            Self::ProbePortUnavailable { .. }
            | Self::FilterUnsupported
            | Self::BridgeFilterUnsupported
            | Self::TunnelAddressTaken { .. }
            | Self::MtuTooLarge { .. }
            | Self::AttachmentUnreadable { .. }
            | Self::PodWithoutRecord { .. }
            | Self::StoreLocked { .. } => ProblemKind::Note,
        }
    }

    /// The object that the problem is about: its kind and name.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::PoolNotReceived { pool }
            | Self::ReservedInvalid { pool, .. }
            | Self::NamespaceSelectorInvalid { pool }
            | Self::KernelWithoutIpv6 { pool }
            | Self::MtuTooSmallForIpv6 { pool, .. } => format!("IPPool {pool}"),
            Self::RelayLinkMissing { link }
            | Self::RelayNotRunning { link }
            | Self::LinkKindUnsupported { link, .. }
            | Self::PodWithoutRecord { link } => format!("link {link}"),
            Self::FileNotWritten { file, .. }
            | Self::OtherCniConfiguration { file }
            | Self::FileUnreadable { file, .. }
            | Self::StoreLocked { file } => format!("file {}", file.display()),
            Self::PluginNotRestored { .. } => "plugins".to_owned(),
            Self::AttachmentNotRemoved { container_id, .. } => {
                format!("attachment of container {container_id}")
            }
            Self::OtherNetworkConfiguration { .. } | Self::OtherNetworkRange { .. } => {
                "other pod network".to_owned()
            }
            Self::DroppedByLegacyIptables => "legacy iptables".to_owned(),
            Self::ChangedRepeatedly { object, .. } | Self::ObjectUnreadable { object, .. } => {
                object.clone()
            }
            Self::Bird { .. } => "BIRD".to_owned(),
            Self::BlockWithoutPool { block, .. } | Self::BlockOfOtherNode { block, .. } => {
                format!("block {block}")
            }
            Self::TunnelMacConflict { node, .. } => format!("node {node}"),
            Self::NftablesInetUnsupported { pools } => pools.clone(),
            Self::FilterUnsupported => "nft table inet netweft".to_owned(),
            Self::BridgeFilterUnsupported => "nft table bridge netweft".to_owned(),
            Self::TransportUnknown { mode }
            | Self::NoAddressForMode { mode }
            | Self::MtuTooLarge { mode, .. } => format!("NetworkMode {mode}"),
            Self::PodInterfacesMixed { one, other } => format!("IPPools {one} and {other}"),
            Self::ProbePortUnavailable { port, .. } => format!("UDP port {port}"),
            Self::TunnelAddressTaken { address, .. } => format!("address {address}"),
            Self::AttachmentUnreadable { address, .. } => format!("attachment {address}"),
        }
    }
}
