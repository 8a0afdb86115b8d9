//! Passwords of BGP sessions: from Secrets of users to the one Secret that the agents' pods mount.
//!
//! The agents cannot read Secrets. So the operator copies what BGPPeers name into one Secret of the release's namespace, a key
//! for each BGPPeer, and takes away what none names any more. What is named and not there leaves what was there: sessions that
//! are up stay up, and the BGPPeer says what is missing.

use crate::plan::model::secret::{Password, PasswordChange};
use std::collections::{BTreeMap, BTreeSet};

use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::names::PASSWORDS_SECRET;
use netweft_crds::{BGPPeer, SecretKeyRef};

use crate::plan::bgp::Peers;
use crate::plan::bgp::peer::Peer;
use crate::plan::model::cluster_state::{ClusterState, UserKind};

/// Names of the Secrets that have to be looked at: what BGPPeers name, and the agents'.
pub fn needed<'a>(peers: impl Iterator<Item = &'a BGPPeer>) -> BTreeSet<String> {
    let passwords = peers.filter_map(|peer| peer.spec.password.as_ref());
    let names = passwords.map(|password| password.secret_key_ref.name.clone());
    names.chain([PASSWORDS_SECRET.to_owned()]).collect()
}

/// The result of looking up a BGPPeer's password.
#[derive(Clone, Debug)]
pub enum Found<'a> {
    /// It is there.
    Password(&'a Password),
    /// The Secret has not been looked at yet.
    Unknown,
    /// It is not there, or of no use.
    Fault(Verdict),
}

/// Looks a password up.
#[must_use]
pub fn find<'a>(cluster_state: &'a ClusterState<'_>, at: &SecretKeyRef) -> Found<'a> {
    let SecretKeyRef { name, key } = at;
    let secret = match cluster_state.secrets.get(name) {
        None => return Found::Unknown,
        Some(None) => {
            return Found::Fault(Verdict::stalled(
                Reason::NotFound,
                format!(
                    "spec.password names Secret {name}, which does not exist in the release's namespace; create it with the key {key}"
                ),
            ));
        }
        Some(Some(secret)) => secret,
    };
    match secret.keys.get(key) {
        None => Found::Fault(Verdict::stalled(
            Reason::NotFound,
            format!("spec.password names the key {key}, which Secret {name} does not have; add it"),
        )),
        Some(password) => match password.fault() {
            Some(fault) => Found::Fault(Verdict::stalled(
                Reason::Invalid,
                format!("the password in key {key} of Secret {name} {fault}"),
            )),
            None => Found::Password(password),
        },
    }
}

/// How the agents' Secret has to change, if it has to.
#[must_use]
pub fn plan(cluster_state: &ClusterState<'_>, peers: &Peers) -> Option<PasswordChange> {
    // Nothing is written before it has been looked at.
    let seen = cluster_state.secrets.get(PASSWORDS_SECRET)?;
    let held = seen.as_ref().map(|secret| &secret.keys);
    // A BGPPeer that is wrong keeps what it has.
    let unreadable = cluster_state.unreadable.iter();
    let unreadable = unreadable.filter(|object| object.kind == UserKind::Peer);
    let mut needed: BTreeSet<&str> = unreadable
        .filter_map(|object| object.metadata.name.as_deref())
        .collect();
    let mut set = BTreeMap::new();
    for (name, peer) in peers {
        let at = match peer {
            Err(_) => None,
            Ok(Peer { password: None, .. }) => continue,
            Ok(Peer { password, .. }) => password.as_ref(),
        };
        needed.insert(name);
        if let Some(Found::Password(password)) = at.map(|at| find(cluster_state, at))
            && held.and_then(|keys| keys.get(name)) != Some(password)
        {
            set.insert(name.clone(), password.clone());
        }
    }
    let remove: BTreeSet<String> = held
        .into_iter()
        .flat_map(BTreeMap::keys)
        .filter(|key| !needed.contains(key.as_str()))
        .cloned()
        .collect();
    (!set.is_empty() || !remove.is_empty()).then(|| PasswordChange {
        seen: seen
            .as_ref()
            .map(|secret| (secret.uid.clone(), secret.resource_version.clone())),
        set,
        remove,
    })
}
