//! [`Peer`]: a validated BGPPeer. Each BGPPeer is validated on its own.

use std::net::IpAddr;

use kube::core::Selector;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{BGPPeerSpec, NextHopMode, SecretKeyRef};

use crate::plan::bgp::underlay::SessionDefaults;
use crate::plan::validate::ip_pool::selector;

/// A validated BGPPeer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Selector of the nodes with a session.
    pub nodes: Selector,
    /// The other end of the sessions.
    pub target: Target,
    /// AS number of the nodes in this session, instead of their own.
    pub local_as: Option<u32>,
    /// Reference to the password.
    pub password: Option<SecretKeyRef>,
    /// Common parameters of the sessions.
    pub defaults: SessionDefaults,
}

/// The other end of a session.
#[derive(Clone, Debug)]
pub enum Target {
    /// A router.
    Router(Router),
    /// Other nodes.
    Nodes(Selector),
}

/// A router.
#[derive(Clone, Debug)]
pub struct Router {
    /// Its address.
    pub address: IpAddr,
    /// Its TCP port.
    pub port: u16,
    /// Its AS number.
    pub as_number: u32,
    /// The local address, if it is not the node's.
    pub source: Option<IpAddr>,
}

/// Validates a BGPPeer without looking at other objects.
///
/// # Errors
/// The error and the remedy.
pub fn check(name: &str, spec: &BGPPeerSpec) -> Result<Peer, Verdict> {
    // The pattern has all fields, so that a new field needs a decision here.
    let BGPPeerSpec {
        node_selector,
        peer_ip: _,        // by target()
        peer_port: _,      // by target()
        peer_selector: _,  // by target()
        as_number: _,      // by target()
        source_address: _, // by target()
        local_as_number,
        password,
        ebgp_multihop,
        ttl_security,
        hold_time,
        keepalive_time,
        connect_retry_time,
        bfd,
        graceful_restart,
        max_prefixes,
        next_hop_mode,
        communities,
        filters,
    } = spec;
    Ok(Peer {
        name: name.to_owned(),
        nodes: selector(
            "spec.nodeSelector",
            node_selector.clone().unwrap_or_default(),
        )?,
        target: target(spec)?,
        local_as: *local_as_number,
        password: password
            .as_ref()
            .map(|password| password.secret_key_ref.clone()),
        defaults: SessionDefaults {
            hold_time: *hold_time,
            keepalive_time: *keepalive_time,
            connect_retry_time: *connect_retry_time,
            multihop: *ebgp_multihop,
            ttl_security: *ttl_security,
            bfd: bfd.clone(),
            graceful_restart: graceful_restart.clone().unwrap_or_default(),
            max_prefixes: SessionDefaults::max_prefixes(*max_prefixes),
            next_hop_mode: *next_hop_mode,
            communities: communities.clone(),
            filters: filters.clone(),
            password_key: password.as_ref().map(|_| name.to_owned()),
        },
    })
}

fn target(spec: &BGPPeerSpec) -> Result<Target, Verdict> {
    match (spec.peer_ip, spec.as_number, &spec.peer_selector) {
        (Some(address), Some(as_number), None) => Ok(Target::Router(Router {
            address,
            port: spec.peer_port,
            as_number,
            source: spec.source_address,
        })),
        (None, None, Some(_)) if spec.next_hop_mode == NextHopMode::NextHopSelf => {
            Err(Verdict::stalled(
                Reason::Invalid,
                "spec.nextHopMode self is for routers: a node accepts a block from other nodes only with the owner of the block as next hop; \
                 set auto or keep",
            ))
        }
        (None, None, Some(nodes)) => {
            Ok(Target::Nodes(selector("spec.peerSelector", nodes.clone())?))
        }
        (_, _, _) => Err(Verdict::stalled(
            Reason::Invalid,
            "spec takes either peerIP and asNumber (a router, for example 10.1.0.1 and 65001) or peerSelector (other nodes)",
        )),
    }
}
