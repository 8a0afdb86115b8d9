//! ADD: an address, a link, the ways to and from it; or nothing at all.
//!
//! ```text
//!   choose address ─▶ record ─▶ veth pair ─▶ links up ─▶ announcement ─▶ neighbours, routes ─▶ result
//!                        ◀──────── undone in reverse when a step fails
//! ```
//!
//! Killed at any point, it leaves at most a record and a link under names that DEL computes from the owner. The record is
//! held as under way from its first moment to the end, so that the agent keeps its hands off.

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
use crate::attachment::{Attachment, Locked, Store, UnderWay};
use crate::block_requests::Requests;
use crate::build_attachment::{Request, build_attachment};
use crate::conf::NetConf;
use crate::env::{AttachmentId, Pod};
use crate::error::PluginError;
use crate::ipam::{self, AllocationError, POOLS_ANNOTATION, PodRequest};
use crate::node::NodeConfig;
use crate::pod;
use crate::result;

/// How long a link may take to pass packets once both ends are up. The kernel's link watch runs once a second at least.
const WATCH: Duration = Duration::from_secs(3);

/// Attaches a sandbox and renders the result.
///
/// This plugin makes the link, so it stands first in the chain: a `prevResult` is a mistake in the configuration, and
/// passing over it would lose an earlier plugin's links from the result.
pub(super) fn add(
    conf: &NetConf,
    owner: AttachmentId,
    netns_path: String,
    pod: Pod,
) -> Result<String, PluginError> {
    if conf.prev_result.is_some() {
        return Err(PluginError::Config(
            "prevResult: this plugin must be the first of its chain".to_owned(),
        ));
    }
    // A node that is not set up gets no files from us.
    node_config(conf)?;
    refuse_host_namespace(&netns_path)?;
    let netns = netns::open(Path::new(&netns_path))?;
    let store = store(conf);
    let (attachment, _under_way) = reserve(
        conf,
        &store,
        Request {
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
            // The cause is the news; a record that stays is removed by DEL.
            drop(lock(&store).map(|mut locked| release(&mut locked, &attachment)));
            Err(cause)
        }
    }
}

fn refuse_host_namespace(path: &str) -> Result<(), PluginError> {
    let wrong = |problem: String| PluginError::Environment {
        name: "CNI_NETNS",
        problem,
    };
    let id = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let given = id(path).map_err(|error| wrong(format!("{path}: {error}")))?;
    match id("/proc/self/ns/net") {
        Ok(ours) if ours == given => {
            Err(wrong(format!("{path} is the node's own network namespace")))
        }
        _ => Ok(()),
    }
}

fn node_config(conf: &NetConf) -> Result<NodeConfig, PluginError> {
    NodeConfig::read(Path::new(&conf.run_dir)).map_err(PluginError::Node)
}

/// Chooses addresses and writes them down as taken.
fn reserve(
    conf: &NetConf,
    store: &Store,
    request: Request,
) -> Result<(Attachment, UnderWay), PluginError> {
    let mut locked = lock(store)?;
    // Not before: blocks may have been taken away while this waited.
    let node = node_config(conf)?;
    let taken = store
        .taken()
        .map_err(attachments_error("read the attachments", conf))?;
    let mut last = locked.last();
    let pod_request = PodRequest {
        namespace: request.pod.namespace.as_deref(),
        pools: conf
            .runtime_config
            .annotations
            .get(POOLS_ANNOTATION)
            .map(String::as_str),
    };
    let choices = ipam::choose(&node, pod_request, &taken, &last).map_err(|error| {
        let more = [damaged(store, &error), ask_for_blocks(conf, &error)].concat();
        PluginError::TryLater(format!("{error}{more}"))
    })?;
    let attachment = build_attachment(request, &choices)?;
    let under_way = locked
        .reserve(&attachment)
        .map_err(attachments_error("write the attachment", conf))?;
    // Blocks that this node no longer has are forgotten.
    last.retain(|block, _| node.pools.iter().any(|pool| pool.blocks.contains(block)));
    last.extend(choices.iter().map(|choice| (choice.block, choice.ip)));
    locked.remember(&last);
    Ok((attachment, under_way))
}

/// Addresses that nobody may have, where they could be what is missing.
fn damaged(store: &Store, exhausted: &AllocationError) -> String {
    let records = match exhausted {
        AllocationError::NoAddress(_) => store.list().unwrap_or_default(),
        AllocationError::NoPool(_)
        | AllocationError::UnknownNamespace(_)
        | AllocationError::NotForThisPod { .. } => BTreeMap::new(),
    };
    let damaged = records.iter().filter(|(_, record)| record.is_err());
    let damaged: Vec<String> = damaged.map(|(ip, _)| ip.to_string()).collect();
    if damaged.is_empty() {
        return String::new();
    }
    format!(
        "; the records of {} cannot be read and keep their addresses: netweft-agent check says why",
        damaged.join(", ")
    )
}

/// Leaves word that blocks are needed, where those could be what is missing.
fn ask_for_blocks(conf: &NetConf, exhausted: &AllocationError) -> String {
    let AllocationError::NoAddress(lacks) = exhausted else {
        return String::new();
    };
    let requests = Requests::new(Path::new(&conf.run_dir));
    let wanted = lacks.iter().map(|lack| &lack.without_block);
    let made: Vec<_> = wanted
        .filter(|pools| !pools.is_empty())
        .map(|pools| requests.make(pools))
        .collect();
    let failed = made.iter().find_map(|made| made.as_ref().err());
    match (made.len(), failed) {
        (0, _) => String::new(),
        (_, None) => "; a block has been asked for, try again".to_owned(),
        (_, Some(error)) => {
            format!("; a block cannot be asked for, since the request cannot be written: {error}")
        }
    }
}

fn release(locked: &mut Locked<'_>, attachment: &Attachment) -> std::io::Result<()> {
    locked.release(
        &attachment.owner,
        attachment.addresses.iter().map(|address| address.ip),
    )
}

/// A sandbox that could not be attached.
struct SetupError {
    cause: PluginError,
    /// Whether the link could not be deleted again. Then its addresses must stay taken.
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

/// Makes the link and everything on it, or no link.
async fn setup_interfaces(
    attachment: &Attachment,
    netns: BorrowedFd<'_>,
) -> Result<(), SetupError> {
    let if_name = &attachment.owner.if_name;
    let (pod, host) = (Rtnl::in_netns(netns)?, Rtnl::new()?);
    if pod.link_exists(if_name).await? {
        let problem = format!("{if_name} already exists in {}", attachment.netns);
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
        // From here on the link is ours to delete.
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
    sysctl::host(&attachment.host_link, ipv6)?;
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
    let inside = loopback
        .into_iter()
        .chain(pod::bring_up(&pod::pod_state(attachment)));
    let outside = pod::bring_up(&pod::host_state(attachment));
    let (outside_first, outside_then) = outside.into_iter().partition(is_of_link);
    let (inside_first, inside_then) = inside.partition(is_of_link);
    apply(host, outside_first).await?;
    apply(pod, inside_first).await?;
    // A bridge passes no packets before it has a port that does.
    for (kernel, link) in [
        (host, Some(&attachment.host_link)),
        (pod, Some(if_name)),
        (host, bridge),
    ] {
        if let Some(link) = link {
            operational(kernel, link).await?;
        }
    }
    if bridge.is_some() {
        announce(pod, attachment).await?;
    }
    apply(host, outside_then).await?;
    apply(pod, inside_then).await
}

/// Whether this makes a link and its addresses, and not what leads over it.
fn is_of_link(op: &Op) -> bool {
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

/// Lets the kernel tell the other ports who has the pod's addresses now: their last owner's Ethernet address may still be in
/// the caches of its neighbours, and the kernel would doubt it only after seconds. Setting the address that the link has
/// already is what makes it do so (`inetdev_event`, `ndisc_netdev_event`). It also empties the pod's own neighbour table,
/// which therefore is filled afterwards.
async fn announce(pod: &Rtnl, attachment: &Attachment) -> Result<(), PluginError> {
    let op = Op::LinkChange {
        name: attachment.owner.if_name.clone(),
        mtu: None,
        mac: Some(attachment.pod_mac),
        up: None,
    };
    Ok(pod.apply(&op).await?)
}

/// Waits until a link passes packets, so that the first one of a pod is not lost.
async fn operational(kernel: &Rtnl, link: &LinkName) -> Result<(), PluginError> {
    let until = Instant::now() + WATCH;
    while !kernel.link_is_operational(link).await? {
        if Instant::now() > until {
            return Err(PluginError::TryLater(format!(
                "link {link} is up but passes no packets"
            )));
        }
        // The runtime's clock ticks in milliseconds, and this is its only task.
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}
