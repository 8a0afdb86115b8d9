//! The configuration of the relay (`udp.json`): its tunnels, and the node of each block.

use std::net::IpAddr;

use ipnet::IpNet;
use netweft_common::link_names::UDP_PREFIX;
use netweft_crds::UdpParameters;
use netweft_netstate::model::LinkName;
use netweft_udp_relay::config::{PeerConfig, RelayConfig, TunnelConfig};

use crate::status::cause::Cause;
use crate::status::problem::Problem;

/// The name of the link: `nw-udp` and the port, at most 11 bytes.
pub fn link_name(parameters: UdpParameters) -> Option<LinkName> {
    format!("{UDP_PREFIX}{}", parameters.port).parse().ok()
}

/// Adds a tunnel without peers to the configuration of the relay.
pub fn add_tunnel(
    link: &LinkName,
    parameters: UdpParameters,
    local: IpAddr,
    config: &mut RelayConfig,
) {
    if config
        .tunnels
        .iter()
        .any(|tunnel| tunnel.link == link.as_str())
    {
        return;
    }
    config.tunnels.push(TunnelConfig {
        link: link.to_string(),
        port: parameters.port,
        local,
        peers: Vec::new(),
    });
}

/// Adds a block with its node. Peers are in the order of their addresses.
pub fn add_block(link: &LinkName, block: IpNet, remote: IpAddr, config: &mut RelayConfig) {
    let mut tunnels = config.tunnels.iter_mut();
    let Some(tunnel) = tunnels.find(|tunnel| tunnel.link == link.as_str()) else {
        return;
    };
    let at = tunnel.peers.partition_point(|peer| peer.address < remote);
    match tunnel.peers.get_mut(at) {
        Some(peer) if peer.address == remote => {
            if !peer.blocks.contains(&block) {
                peer.blocks.push(block);
            }
        }
        Some(_) | None => tunnel.peers.insert(
            at,
            PeerConfig {
                address: remote,
                blocks: vec![block],
            },
        ),
    }
}

/// The problem while the relay has not created its link, or no process has the link open. `is_open` is `None` without a link.
pub fn relay_problem(link: &LinkName, is_open: Option<&bool>) -> Option<Problem> {
    let link = link.clone();
    let cause = match is_open {
        Some(true) => return None,
        Some(false) => Cause::RelayNotRunning { link },
        None => Cause::RelayLinkMissing { link },
    };
    Some(Problem::from(cause))
}
