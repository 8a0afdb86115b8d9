//! BGP: a NetworkMode of mode underlay, BGPPeers and Nodes become the sessions of every node, and what nodes say of them becomes
//! the BGPPeers' statuses.
//!
//! ```text
//!   NetworkMode ─▶ underlay ──┐
//!   Node ───────▶ speakers ───┼─▶ wiring ─▶ NodeNetwork.spec.bgp of every node ┄ agents ┄▶ NodeNetwork.status.sessions
//!   BGPPeer ────▶ peer ───────┘      └────▶ report ◀───────────────────────────────────────────────────────┘
//!   Secret ─────▶ passwords ─▶ the agents' Secret
//! ```

pub mod passwords;
pub mod peer;
pub mod sessions;
mod speakers;
#[cfg(test)]
mod tests;
pub mod underlay;

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::{self as crds, IpFamily, NodeBgp};

use crate::plan::bgp::peer::Peer;
use crate::plan::bgp::sessions::{Coverage, Wiring};
use crate::plan::bgp::underlay::Underlay;
use crate::plan::model::index::ClusterIndex;
use crate::plan::validate::oldest_first;

/// All sessions of a cluster.
#[derive(Debug, Default)]
pub struct BgpTopology {
    /// The NetworkMode that nodes speak BGP by.
    pub mode: String,
    /// Every node's part.
    pub speakers: BTreeMap<String, NodeBgp>,
    /// Nodes that the NetworkMode's own sessions leave out, because they would be too many.
    pub left_out: Vec<String>,
    /// What BGPPeers make, by name.
    pub coverage: BTreeMap<String, Coverage>,
}

/// The BGPPeers, each checked or with what is wrong with it, oldest first.
pub type Peers = Vec<(String, Result<Peer, Verdict>)>;

/// Checks the BGPPeers.
#[must_use]
pub fn peers(index: &ClusterIndex<'_>) -> Peers {
    let objects = oldest_first(&index.cluster_state.peers).into_iter();
    objects
        .map(|object| {
            let name = object.name_any();
            let peer = peer::check(&name, &object.spec);
            (name, peer)
        })
        .collect()
}

/// Resolves who has a session with whom.
///
/// # Errors
/// Why no node speaks BGP.
pub fn resolve(index: &ClusterIndex<'_>, peers: &Peers) -> Result<BgpTopology, Verdict> {
    let (mode, underlay) = in_use(index)?;
    let speakers = speakers::speakers(index, underlay);
    let mut wiring = Wiring::new(underlay, families(index, mode), &speakers);
    let coverage = peers.iter().filter_map(|(name, peer)| {
        let coverage = wiring.peer(peer.as_ref().ok()?);
        Some((name.clone(), coverage))
    });
    let coverage = coverage.collect();
    let left_out = wiring.mode();
    Ok(BgpTopology {
        mode: mode.to_owned(),
        speakers: wiring.finish(),
        left_out,
        coverage,
    })
}

/// The one mode of mode underlay that can be used and that a pool uses.
fn in_use<'v>(index: &'v ClusterIndex<'_>) -> Result<(&'v str, &'v Underlay), Verdict> {
    let written = oldest_first(&index.cluster_state.modes).into_iter();
    let written = written.filter(|mode| mode.spec.mode == crds::Mode::Underlay);
    let mut why = Verdict::stalled(
        Reason::NotFound,
        "no node runs a BGP speaker, because no NetworkMode has mode underlay; create a NetworkMode and set spec.networkMode of an IPPool to it",
    );
    for (number, object) in written.enumerate() {
        let said = match index.modes.get(&object.name_any()) {
            Some(Ok(mode)) => match &mode.underlay {
                Some(underlay) if !families(index, &mode.name).is_empty() => {
                    return Ok((&mode.name, underlay));
                }
                Some(_) | None => Verdict::stalled(
                    Reason::NotFound,
                    format!(
                        "no node runs a BGP speaker, because no usable IPPool has spec.networkMode {}",
                        mode.name
                    ),
                ),
            },
            Some(Err(why)) => Verdict::stalled(
                why.reason,
                format!(
                    "no node runs a BGP speaker, because NetworkMode {} cannot be used: {}",
                    object.name_any(),
                    why.message
                ),
            ),
            None => continue,
        };
        // Of several that cannot be had, the oldest is the one to repair.
        if number == 0 {
            why = said;
        }
    }
    Err(why)
}

/// Families of the pools that a mode is for. A pool in trouble counts as long as nodes have blocks of it.
fn families(index: &ClusterIndex<'_>, mode: &str) -> BTreeSet<IpFamily> {
    let pools = index.pool_objects.iter().filter(|(name, pool)| {
        let holds = || {
            index
                .cluster_state
                .subnets
                .iter()
                .any(|s| s.spec.pool == **name)
        };
        pool.spec.network_mode == mode && (index.pools.usable(name).is_some() || holds())
    });
    pools
        .map(|(_, pool)| IpFamily::of(pool.spec.cidr.addr()))
        .collect()
}
