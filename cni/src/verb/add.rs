//! ADD: an address, a link, the ways to and from it; or nothing at all.
//!
//! ```text
//!   choose address ─▶ record ─▶ veth pair ─▶ host side ─▶ pod side ─▶ result
//!                        ◀──────── undone in reverse when a step fails
//! ```
//!
//! Killed at any point, it leaves at most a record and a link under names that DEL computes from the owner.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::LinkName;
use netweft_netstate::netns;
use netweft_netstate::op::Op;
use netweft_netstate::rtnl::{Rtnl, VethPair};

use super::{block_on, io_error, lock, store, sysctl};
use crate::attachment::{Attachment, Locked, PodAddress, Store, VERSION};
use crate::conf::NetConf;
use crate::env::{Owner, Pod};
use crate::error::PluginError;
use crate::ipam::{self, Choice};
use crate::node::{NodeConfig, PodInterface};
use crate::pod::{self, Identity};
use crate::result;

/// How long a link may take to pass packets once both ends are up. The kernel's link watch runs once a second at least.
const WATCH: Duration = Duration::from_secs(3);

/// Attaches a sandbox and renders the result.
///
/// This plugin makes the link, so it stands first in the chain: a `prevResult` is a mistake in the configuration, and
/// passing over it would lose an earlier plugin's links from the result.
pub(super) fn add(
    conf: &NetConf,
    owner: Owner,
    netns_path: String,
    pod: Pod,
) -> Result<String, PluginError> {
    if conf.prev_result.is_some() {
        return Err(PluginError::Config(
            "prevResult: this plugin must be the first of its chain".to_owned(),
        ));
    }
    let node = NodeConfig::read(Path::new(&conf.run_dir)).map_err(PluginError::Node)?;
    refuse_host_namespace(&netns_path)?;
    let netns = netns::open(Path::new(&netns_path))?;
    let store = store(conf);
    let attachment = reserve(
        &store,
        &node,
        Request {
            owner,
            netns_path,
            pod,
        },
    )?;
    match block_on(wire(&attachment, netns.as_fd())) {
        Ok(()) => Ok(result::render(&attachment, &conf.cni_version)),
        Err(Unwired {
            cause,
            link_remains: true,
        }) => Err(cause),
        Err(Unwired {
            cause,
            link_remains: false,
        }) => {
            // The cause is the news; a record that stays is removed by DEL.
            drop(lock(&store).map(|mut locked| release(&mut locked, &attachment)));
            Err(cause)
        }
    }
}

struct Request {
    owner: Owner,
    netns_path: String,
    pod: Pod,
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

/// Chooses addresses and writes them down as taken.
fn reserve(store: &Store, node: &NodeConfig, request: Request) -> Result<Attachment, PluginError> {
    let Request {
        owner,
        netns_path,
        pod,
    } = request;
    let Identity {
        host_link,
        host_mac,
        pod_mac,
    } = pod::identity(&owner);
    let mut locked = lock(store)?;
    let taken = store.taken().map_err(io_error("read the attachments"))?;
    let mut last = locked.last();
    let choices = choose(node, pod.namespace.as_deref(), &taken, &last)?;
    let mtu = choices
        .iter()
        .map(|choice| choice.pool.mtu)
        .min()
        .unwrap_or_default();
    let addresses = choices
        .iter()
        .map(|choice| PodAddress {
            ip: choice.ip,
            pool: choice.pool.name.clone(),
        })
        .collect();
    let attachment = Attachment {
        version: VERSION,
        owner,
        pod,
        netns: netns_path,
        addresses,
        host_link,
        host_mac,
        pod_mac,
        mtu,
    };
    locked
        .reserve(&attachment)
        .map_err(io_error("write the attachment"))?;
    // Blocks that this node no longer has are forgotten.
    last.retain(|block, _| node.pools.iter().any(|pool| pool.blocks.contains(block)));
    last.extend(choices.iter().map(|choice| (choice.block, choice.ip)));
    locked.remember(&last);
    Ok(attachment)
}

fn choose<'a>(
    node: &'a NodeConfig,
    namespace: Option<&str>,
    taken: &BTreeSet<IpAddr>,
    last: &std::collections::BTreeMap<ipnet::IpNet, IpAddr>,
) -> Result<Vec<Choice<'a>>, PluginError> {
    let choices = ipam::choose(node, namespace, taken, last)
        .map_err(|error| PluginError::TryLater(error.to_string()))?;
    match choices
        .iter()
        .find(|choice| choice.pool.pod_interface != PodInterface::Routed)
    {
        None => Ok(choices),
        Some(choice) => {
            let pool = &choice.pool.name;
            Err(PluginError::Config(format!(
                "pool {pool}: podInterface bridge is not supported yet, use routed"
            )))
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
struct Unwired {
    cause: PluginError,
    /// Whether the link could not be deleted again. Then its addresses must stay taken.
    link_remains: bool,
}

impl<E: Into<PluginError>> From<E> for Unwired {
    fn from(cause: E) -> Self {
        Self {
            cause: cause.into(),
            link_remains: false,
        }
    }
}

/// Makes the link and everything on it, or no link.
async fn wire(attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), Unwired> {
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
            Err(Unwired {
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
    let ipv6 = attachment
        .addresses
        .iter()
        .any(|address| address.ip.is_ipv6());
    sysctl::host(&attachment.host_link)?;
    netns::run_in(netns, "set up a pod's link", || sysctl::pod(if_name, ipv6))??;
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
    let sides = [
        (host, pod::bring_up(&pod::host_state(attachment))),
        (pod, inside.collect()),
    ];
    let steps = || {
        sides
            .iter()
            .flat_map(|(kernel, ops)| ops.iter().map(move |op| (*kernel, op)))
    };
    let is_link = |op: &Op| matches!(op, Op::LinkChange { .. });
    // Links first: the kernel needs a while before they pass packets.
    for (kernel, op) in steps()
        .filter(|(_, op)| is_link(op))
        .chain(steps().filter(|(_, op)| !is_link(op)))
    {
        kernel.apply(op).await?;
    }
    operational(host, &attachment.host_link).await?;
    operational(pod, if_name).await
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
