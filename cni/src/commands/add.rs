//! ADD: allocates addresses, creates the link, and sets up routes and neighbours; or changes nothing.
//!
//! ```text
//!   allocate ─▶ record ─▶ veth pair ─▶ links up ─▶ announcement ─▶ neighbours, routes ─▶ result
//!                  ◀──────── undone in reverse order when a step fails
//! ```
//!
//! An ADD that is killed at any point leaves at most a record and a link. DEL computes the names of both from the owner.
//! The record is locked until the end of ADD, so that the agent does not treat the attachment as leaked.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::LinkName;
use netweft_netstate::netns;
use netweft_netstate::op::Op;
use netweft_netstate::rtnl::{Rtnl, VethPair};

use super::{attachments_error, block_on, lock, store, sysctl};
use crate::attachment::{AddInProgress, Attachment, Locked, Store};
use crate::block_requests::BlockRequests;
use crate::build_attachment::{AttachmentRequest, build_attachment};
use crate::conf::NetConf;
use crate::env::{AttachmentId, Pod};
use crate::error::{PluginError, io_remedy};
use crate::ipam::{self, AllocationError, POOLS_ANNOTATION, PodRequest};
use crate::node::NodeConfig;
use crate::pod;
use crate::result;

/// How long a link may take to become operational when both ends are up. The kernel's link watch runs at least once a
/// second.
const OPERATIONAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Attaches a sandbox and renders the result.
///
/// This plugin creates the link, so it must be the first in the chain: a `prevResult` is an error of the configuration.
/// If ADD ignored it, the result would lack the links of an earlier plugin.
pub(super) fn add(
    conf: &NetConf,
    owner: AttachmentId,
    netns_path: String,
    pod: Pod,
) -> Result<String, PluginError> {
    if conf.prev_result.is_some() {
        return Err(PluginError::Config(
            "field prevResult of the network configuration is set, but plugin netweft must be the first in the list: \
             move it there"
                .to_owned(),
        ));
    }
    // Before any file is created: ADD leaves nothing on a node that is not set up.
    node_config(conf)?;
    refuse_host_namespace(&netns_path)?;
    let netns = netns::open(Path::new(&netns_path))?;
    let store = store(conf);
    let (attachment, _in_progress) = reserve(
        conf,
        &store,
        AttachmentRequest {
            owner,
            netns_path,
            pod,
        },
    )?;
    match block_on(setup_interfaces(&attachment, netns.as_fd())) {
        Ok(()) => Ok(result::render(&attachment, &conf.cni_version)),
        Err(SetupError {
            cause,
            link_remains: true,
        }) => Err(cause),
        Err(SetupError {
            cause,
            link_remains: false,
        }) => {
            // The error to report is the cause. DEL removes a record that stays.
            drop(lock(&store).map(|mut locked| release(&mut locked, &attachment)));
            Err(cause)
        }
    }
}

fn refuse_host_namespace(path: &str) -> Result<(), PluginError> {
    let invalid = |problem: String| PluginError::Environment {
        name: "CNI_NETNS",
        problem,
    };
    let id = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let pod = id(path).map_err(|error| {
        invalid(format!(
            "open {path}: {error}; the sandbox has ended, and the kubelet creates another one"
        ))
    })?;
    match id("/proc/self/ns/net") {
        Ok(node) if node == pod => Err(invalid(format!(
            "{path} is the node's own network namespace: the container runtime must set that of a sandbox"
        ))),
        _ => Ok(()),
    }
}

fn node_config(conf: &NetConf) -> Result<NodeConfig, PluginError> {
    NodeConfig::read(Path::new(&conf.run_dir)).map_err(PluginError::Node)
}

/// Allocates addresses and stores the attachment record.
fn reserve(
    conf: &NetConf,
    store: &Store,
    request: AttachmentRequest,
) -> Result<(Attachment, AddInProgress), PluginError> {
    let mut locked = lock(store)?;
    // After the lock is acquired: the agent can withdraw blocks before.
    let node = node_config(conf)?;
    let allocated = store
        .allocated()
        .map_err(attachments_error("read the attachment records", conf))?;
    let mut cursors = locked.cursors();
    let pod_request = PodRequest {
        namespace: request.pod.namespace.as_deref(),
        pools: conf
            .runtime_config
            .annotations
            .get(POOLS_ANNOTATION)
            .map(String::as_str),
    };
    let allocations =
        ipam::allocate(&node, pod_request, &allocated, &cursors).map_err(|error| {
            let details = [
                unreadable_records(store, &error),
                request_blocks(conf, &error),
            ];
            PluginError::TryLater(format!("{error}{}", details.concat()))
        })?;
    let attachment = build_attachment(request, &allocations)?;
    let in_progress = locked
        .reserve(&attachment)
        .map_err(attachments_error("write the attachment record", conf))?;
    // Cursors of blocks that this node no longer has are dropped.
    cursors.retain(|block, _| node.pools.iter().any(|pool| pool.blocks.contains(block)));
    cursors.extend(
        allocations
            .iter()
            .map(|allocation| (allocation.block, allocation.ip)),
    );
    locked.store_cursors(&cursors);
    Ok((attachment, in_progress))
}

/// If no address is free: the addresses with an unreadable record, which no pod can get.
fn unreadable_records(store: &Store, error: &AllocationError) -> String {
    let records = match error {
        AllocationError::NoAddress(_) => store.list().unwrap_or_default(),
        AllocationError::NoPool(_)
        | AllocationError::UnknownNamespace(_)
        | AllocationError::NotForThisPod { .. } => BTreeMap::new(),
    };
    let unreadable = records.iter().filter(|(_, record)| record.is_err());
    let unreadable: Vec<String> = unreadable.map(|(ip, _)| ip.to_string()).collect();
    if unreadable.is_empty() {
        return String::new();
    }
    format!(
        "; the attachment records of {} cannot be read, and these addresses stay allocated: netweft-agent check prints \
         the reason",
        unreadable.join(", ")
    )
}

/// If no address is free: requests a block of each family whose pools have none on this node.
fn request_blocks(conf: &NetConf, error: &AllocationError) -> String {
    let AllocationError::NoAddress(shortages) = error else {
        return String::new();
    };
    let requests = BlockRequests::new(Path::new(&conf.run_dir));
    let results: Vec<_> = shortages
        .iter()
        .map(|shortage| &shortage.without_block)
        .filter(|pools| !pools.is_empty())
        .map(|pools| requests.submit(pools))
        .collect();
    let failure = results.iter().find_map(|result| result.as_ref().err());
    match (results.len(), failure) {
        (0, _) => String::new(),
        (_, None) => "; a block has been requested".to_owned(),
        (_, Some(error)) => format!(
            "; the request for a block cannot be written to {}: {error}{}",
            requests.dir().display(),
            io_remedy(error)
        ),
    }
}

fn release(locked: &mut Locked<'_>, attachment: &Attachment) -> std::io::Result<()> {
    locked.release(
        &attachment.owner,
        attachment.addresses.iter().map(|address| address.ip),
    )
}

/// Why a sandbox could not be attached.
struct SetupError {
    cause: PluginError,
    /// Whether the link could not be deleted again. Then its addresses must stay allocated.
    link_remains: bool,
}

impl<E: Into<PluginError>> From<E> for SetupError {
    fn from(cause: E) -> Self {
        Self {
            cause: cause.into(),
            link_remains: false,
        }
    }
}

/// Creates the link and everything on it, or leaves no link.
async fn setup_interfaces(
    attachment: &Attachment,
    netns: BorrowedFd<'_>,
) -> Result<(), SetupError> {
    let if_name = &attachment.owner.if_name;
    let (pod, host) = (Rtnl::in_netns(netns)?, Rtnl::new()?);
    if pod.link_exists(if_name).await? {
        let problem = format!(
            "{if_name} already exists in network namespace {}: the container runtime must call DEL before another ADD, \
             or set another name",
            attachment.netns
        );
        return Err(PluginError::Environment {
            name: "CNI_IFNAME",
            problem,
        }
        .into());
    }
    let pair = VethPair {
        host_name: attachment.host_link.clone(),
        host_mac: attachment.host_mac,
        peer_name: if_name.clone(),
        peer_mac: attachment.pod_mac,
        mtu: attachment.mtu,
    };
    host.add_veth(&pair, netns).await?;
    match configure(attachment, &host, &pod, netns).await {
        Ok(()) => Ok(()),
        // From here on this ADD owns the link and has to delete it.
        Err(cause) => {
            let link_remains = host.delete_link(&attachment.host_link).await.is_err();
            Err(SetupError {
                cause,
                link_remains,
            })
        }
    }
}

async fn configure(
    attachment: &Attachment,
    host: &Rtnl,
    pod: &Rtnl,
    netns: BorrowedFd<'_>,
) -> Result<(), PluginError> {
    let if_name = &attachment.owner.if_name;
    let bridge = attachment.bridge.as_ref().map(|bridge| &bridge.link);
    let ipv6 = attachment
        .addresses
        .iter()
        .any(|address| address.ip.is_ipv6());
    sysctl::host(&attachment.host_link, ipv6, bridge.is_some())?;
    netns::run_in(netns, "set up a pod's link", || {
        sysctl::pod(if_name, ipv6, bridge.is_some())
    })??;
    let loopback: Option<LinkName> = "lo".parse().ok();
    let loopback = loopback.map(|name| Op::LinkChange {
        name,
        mtu: None,
        mac: None,
        up: Some(true),
    });
    let pod_ops = loopback
        .into_iter()
        .chain(pod::setup_ops(&pod::pod_state(attachment)));
    let host_ops = pod::setup_ops(&pod::host_state(attachment));
    let (host_link_ops, host_route_ops) = host_ops.into_iter().partition(is_link_op);
    let (pod_link_ops, pod_route_ops) = pod_ops.partition(is_link_op);
    apply(host, host_link_ops).await?;
    apply(pod, pod_link_ops).await?;
    // The bridge last: it becomes operational with its first operational port.
    for (kernel, link) in [
        (host, Some(&attachment.host_link)),
        (pod, Some(if_name)),
        (host, bridge),
    ] {
        if let Some(link) = link {
            wait_until_operational(kernel, link).await?;
        }
    }
    if bridge.is_some() {
        announce(pod, attachment).await?;
    }
    apply(host, host_route_ops).await?;
    apply(pod, pod_route_ops).await
}

/// Whether the operation sets up a link or its addresses, and not routes or neighbours.
fn is_link_op(op: &Op) -> bool {
    matches!(
        op,
        Op::LinkChange { .. } | Op::PortReplace { .. } | Op::AddressAdd { .. }
    )
}

async fn apply(kernel: &Rtnl, ops: Vec<Op>) -> Result<(), PluginError> {
    for op in &ops {
        kernel.apply(op).await?;
    }
    Ok(())
}

/// Makes the kernel announce the pod's addresses to the other ports of the bridge (gratuitous ARP, unsolicited neighbour
/// advertisement). Their neighbour tables may still have the Ethernet address of the last pod with this address, and the
/// kernel would verify such an entry only after seconds. The kernel sends the announcement when the Ethernet address of
/// the link is set, also to its present value (`inetdev_event`, `ndisc_netdev_event`). This also flushes the pod's
/// neighbour table, so the pod's neighbours are set afterwards.
async fn announce(pod: &Rtnl, attachment: &Attachment) -> Result<(), PluginError> {
    let op = Op::LinkChange {
        name: attachment.owner.if_name.clone(),
        mtu: None,
        mac: Some(attachment.pod_mac),
        up: None,
    };
    Ok(pod.apply(&op).await?)
}

/// Waits until a link passes packets, so that the first packet of a pod is not lost.
async fn wait_until_operational(kernel: &Rtnl, link: &LinkName) -> Result<(), PluginError> {
    let deadline = Instant::now() + OPERATIONAL_TIMEOUT;
    while !kernel.link_is_operational(link).await? {
        if Instant::now() > deadline {
            return Err(PluginError::TryLater(format!(
                "link {link} is not operational after {} s: ip link show has its state; netweft-agent repairs the links \
                 of this node",
                OPERATIONAL_TIMEOUT.as_secs()
            )));
        }
        // The timer of the asynchronous runtime has a resolution of a millisecond, and this is the only task.
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}
