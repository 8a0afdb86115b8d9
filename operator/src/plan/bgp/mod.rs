//! BGP: from the NetworkMode of mode underlay, BGPPeers and Nodes to the sessions of every node, and from the session
//! states that agents report to the statuses of BGPPeers.
//!
//! ```text
//!   NetworkMode ─▶ underlay ──┐
//!   Node ───────▶ speakers ───┼─▶ sessions ─▶ NodeNetwork.spec.bgp ┄┄ agents ┄┄▶ NodeNetwork.status.sessions
//!   BGPPeer ────▶ peer ───────┘      └──▶ conditions::bgp_peer ◀───────────────────────────┘
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
use crate::plan::bgp::sessions::{Coverage, SessionBuilder};
use crate::plan::bgp::underlay::Underlay;
use crate::plan::model::index::ClusterIndex;
use crate::plan::validate::oldest_first;

/// All BGP sessions of a cluster.
#[derive(Debug, Default)]
pub struct BgpTopology {
    /// The NetworkMode of mode underlay in use.
    pub mode: String,
    /// The BGP configuration of every node.
    pub speakers: BTreeMap<String, NodeBgp>,
    /// Nodes without some sessions of the NetworkMode, because of the limits.
    pub left_out: Vec<String>,
    /// The nodes of each BGPPeer, by name.
    pub coverage: BTreeMap<String, Coverage>,
}

/// The BGPPeers, each validated or with its error, oldest first.
pub type Peers = Vec<(String, Result<Peer, Verdict>)>;

/// Validates the BGPPeers.
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

/// Computes all sessions.
///
/// # Errors
/// Why no node runs a BGP speaker.
pub fn resolve(index: &ClusterIndex<'_>, peers: &Peers) -> Result<BgpTopology, Verdict> {
    let (mode, underlay) = in_use(index)?;
    let speakers = speakers::speakers(index, underlay);
    let mut builder = SessionBuilder::new(underlay, families(index, mode), &speakers);
    let coverage = peers.iter().filter_map(|(name, peer)| {
        let coverage = builder.add_peer(peer.as_ref().ok()?);
        Some((name.clone(), coverage))
    });
    let coverage = coverage.collect();
    let left_out = builder.add_mode();
    Ok(BgpTopology {
        mode: mode.to_owned(),
        speakers: builder.finish(),
        left_out,
        coverage,
    })
}

/// The usable NetworkMode of mode underlay that a pool uses.
fn in_use<'v>(index: &'v ClusterIndex<'_>) -> Result<(&'v str, &'v Underlay), Verdict> {
    let underlay_modes = oldest_first(&index.cluster_state.modes).into_iter();
    let underlay_modes = underlay_modes.filter(|mode| mode.spec.mode == crds::Mode::Underlay);
    let mut why = Verdict::stalled(
        Reason::NotFound,
        "no node runs a BGP speaker, because no NetworkMode has mode underlay; create a NetworkMode and set spec.networkMode of an IPPool to it",
    );
    for (number, object) in underlay_modes.enumerate() {
        let verdict = match index.modes.get(&object.name_any()) {
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
        // If several modes are unusable, the oldest must be repaired.
        if number == 0 {
            why = verdict;
        }
    }
    Err(why)
}

/// Families of the pools of a mode. An invalid pool counts while nodes have blocks of it.
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
