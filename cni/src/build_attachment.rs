//! Builds the attachment of a pod from its allocated addresses. Pure.

use ipnet::IpNet;

use crate::attachment::{Attachment, Bridge, PodAddress, VERSION};
use crate::env::{AttachmentId, Pod};
use crate::error::PluginError;
use crate::ipam::Allocation;
use crate::node::PodInterface;
use crate::pod::{self, Identity};

/// The sandbox to attach.
#[derive(Clone, Debug)]
pub struct AttachmentRequest {
    /// Owner of the attachment.
    pub owner: AttachmentId,
    /// Path of the sandbox's network namespace.
    pub netns_path: String,
    /// The pod, as far as the runtime passes it.
    pub pod: Pod,
}

/// The attachment with these addresses.
///
/// # Errors
/// The pools have different pod interfaces, or `node.json` has no bridge or gateway for a pool with bridged pods.
pub fn build_attachment(
    request: AttachmentRequest,
    allocations: &[Allocation<'_>],
) -> Result<Attachment, PluginError> {
    let AttachmentRequest {
        owner,
        netns_path,
        pod,
    } = request;
    let Identity {
        host_link,
        host_mac,
        pod_mac,
    } = pod::identity(&owner);
    let addresses: Result<Vec<PodAddress>, PluginError> = allocations.iter().map(address).collect();
    Ok(Attachment {
        version: VERSION,
        owner,
        pod,
        netns: netns_path,
        addresses: addresses?,
        host_link,
        host_mac,
        pod_mac,
        bridge: bridge(allocations)?,
        mtu: allocations
            .iter()
            .map(|allocation| allocation.pool.mtu)
            .min()
            .unwrap_or_default(),
    })
}

/// The bridge of all pools, or none if all pools are routed: a pod has one link, and no routes lead to a port of a bridge.
fn bridge(allocations: &[Allocation<'_>]) -> Result<Option<Bridge>, PluginError> {
    let bridged =
        |allocation: &&Allocation<'_>| allocation.pool.pod_interface == PodInterface::Bridge;
    let (bridged, routed): (Vec<_>, Vec<_>) = allocations.iter().partition(bridged);
    match (bridged.first(), routed.first()) {
        (None, _) => Ok(None),
        (Some(allocation), None) => {
            let bridge = allocation.pool.bridge.as_ref().map(|bridge| Bridge {
                link: bridge.link.clone(),
                mac: bridge.mac,
            });
            bridge.map(Some).ok_or_else(|| no_gateway(allocation))
        }
        (Some(bridged), Some(routed)) => Err(PluginError::Config(format!(
            "IPPool {} has podInterface bridge and IPPool {} has podInterface routed, but a pod has one link: create an \
             IPPool for the same pods with the podInterface of the other",
            bridged.pool.name, routed.pool.name
        ))),
    }
}

fn address(allocation: &Allocation<'_>) -> Result<PodAddress, PluginError> {
    let gateway = match allocation.pool.pod_interface {
        PodInterface::Routed => None,
        PodInterface::Bridge => {
            let bridge = allocation.pool.bridge.as_ref();
            let ip = bridge.and_then(|bridge| bridge.gateways.get(&allocation.block));
            let net = ip.and_then(|ip| IpNet::new(*ip, allocation.block.prefix_len()).ok());
            Some(net.ok_or_else(|| no_gateway(allocation))?)
        }
    };
    Ok(PodAddress {
        ip: allocation.ip,
        pool: allocation.pool.name.clone(),
        gateway,
    })
}

fn no_gateway(allocation: &Allocation<'_>) -> PluginError {
    PluginError::TryLater(format!(
        "node.json has no gateway for block {} of IPPool {}, which has podInterface bridge: netweft-agent writes it in its \
         next sync; the log of netweft-agent has the reason if this error persists",
        allocation.block, allocation.pool.name
    ))
}
