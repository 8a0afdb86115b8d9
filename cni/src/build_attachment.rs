//! What a pod's attachment will be: its addresses, and what they need. Pure.

use ipnet::IpNet;

use crate::attachment::{Attachment, Bridge, PodAddress, VERSION};
use crate::env::{AttachmentId, Pod};
use crate::error::PluginError;
use crate::ipam::Choice;
use crate::node::PodInterface;
use crate::pod::{self, Identity};

/// Who is to be attached.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose the attachment will be.
    pub owner: AttachmentId,
    /// Path of the sandbox's network namespace.
    pub netns_path: String,
    /// The pod, as far as the runtime told.
    pub pod: Pod,
}

/// The attachment that is to be made.
///
/// # Errors
/// The pools cannot be wired together, or `node.json` lacks what this pool needs.
pub fn build_attachment(
    request: Request,
    choices: &[Choice<'_>],
) -> Result<Attachment, PluginError> {
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
    let addresses: Result<Vec<PodAddress>, PluginError> = choices.iter().map(address).collect();
    Ok(Attachment {
        version: VERSION,
        owner,
        pod,
        netns: netns_path,
        addresses: addresses?,
        host_link,
        host_mac,
        pod_mac,
        bridge: bridge(choices)?,
        mtu: choices
            .iter()
            .map(|choice| choice.pool.mtu)
            .min()
            .unwrap_or_default(),
    })
}

/// The bridge of all chosen pools, or none of any: a pod has one link, and a port of a bridge has no routes of its own.
fn bridge(choices: &[Choice<'_>]) -> Result<Option<Bridge>, PluginError> {
    let bridged = |choice: &&Choice<'_>| choice.pool.pod_interface == PodInterface::Bridge;
    let (bridged, routed): (Vec<_>, Vec<_>) = choices.iter().partition(bridged);
    match (bridged.first(), routed.first()) {
        (None, _) => Ok(None),
        (Some(choice), None) => {
            let bridge = choice.pool.bridge.as_ref().map(|bridge| Bridge {
                link: bridge.link.clone(),
                mac: bridge.mac,
            });
            bridge.map(Some).ok_or_else(|| no_gateway(choice))
        }
        (Some(bridged), Some(routed)) => Err(PluginError::Config(format!(
            "pool {} has podInterface bridge and pool {} has podInterface routed, but a pod has one link: give the \
             IPv4 and the IPv6 pool of the same pods the same podInterface",
            bridged.pool.name, routed.pool.name
        ))),
    }
}

fn address(choice: &Choice<'_>) -> Result<PodAddress, PluginError> {
    let gateway = match choice.pool.pod_interface {
        PodInterface::Routed => None,
        PodInterface::Bridge => {
            let bridge = choice.pool.bridge.as_ref();
            let ip = bridge.and_then(|bridge| bridge.gateways.get(&choice.block));
            let net = ip.and_then(|ip| IpNet::new(*ip, choice.block.prefix_len()).ok());
            Some(net.ok_or_else(|| no_gateway(choice))?)
        }
    };
    Ok(PodAddress {
        ip: choice.ip,
        pool: choice.pool.name.clone(),
        gateway,
    })
}

fn no_gateway(choice: &Choice<'_>) -> PluginError {
    PluginError::TryLater(format!(
        "the bridge of pool {} has no gateway for block {} in node.json; the agent writes it when it next looks",
        choice.pool.name, choice.block
    ))
}
