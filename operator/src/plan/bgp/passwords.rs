//! Passwords of BGP sessions: from Secrets of users to the Secret that the agents' pods mount.
//!
//! Agents cannot read Secrets. The operator copies the passwords of BGPPeers into one Secret of the release's
//! namespace, one key for each BGPPeer, and removes unused keys. A missing password leaves the former one, so
//! established sessions stay, and the BGPPeer reports what is missing.

use crate::plan::model::secret::{LABEL, Password, PasswordChange};
use std::collections::{BTreeMap, BTreeSet};

use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::names::PASSWORDS_SECRET;
use netweft_crds::{BGPPeer, SecretKeyRef};

use crate::plan::bgp::Peers;
use crate::plan::bgp::peer::Peer;
use crate::plan::model::cluster_state::{ClusterState, UserKind};

/// Names of the Secrets in use: those that BGPPeers refer to, and the agents' Secret.
pub fn secret_names<'a>(peers: impl Iterator<Item = &'a BGPPeer>) -> BTreeSet<String> {
    let passwords = peers.filter_map(|peer| peer.spec.password.as_ref());
    let names = passwords.map(|password| password.secret_key_ref.name.clone());
    names.chain([PASSWORDS_SECRET.to_owned()]).collect()
}

/// The result of looking up a BGPPeer's password.
#[derive(Clone, Debug)]
pub enum PasswordLookup<'a> {
    /// The password.
    Password(&'a Password),
    /// The Secret has not been read yet.
    Unknown,
    /// The password is missing or unusable.
    Fault(Verdict),
}

/// Looks up a password.
#[must_use]
pub fn find<'a>(
    cluster_state: &'a ClusterState<'_>,
    reference: &SecretKeyRef,
) -> PasswordLookup<'a> {
    let SecretKeyRef { name, key } = reference;
    if !cluster_state.password_secrets.contains(name) {
        return PasswordLookup::Fault(Verdict::stalled(
            Reason::NotFound,
            format!(
                "spec.password names Secret {name}, which the operator may not read: add the name to bird.passwordSecrets in the values of \
                 the Helm chart, and upgrade the release"
            ),
        ));
    }
    let Some(secret) = cluster_state.secrets.get(name) else {
        return PasswordLookup::Unknown;
    };
    // One message for every cause, so that a BGPPeer does not tell which Secrets and keys exist.
    let labelled = secret.as_ref().filter(|secret| secret.labelled);
    let Some(password) = labelled.and_then(|secret| secret.keys.get(key)) else {
        let (label, value) = LABEL;
        return PasswordLookup::Fault(Verdict::stalled(
            Reason::NotFound,
            format!(
                "spec.password names the key {key} of Secret {name}, and the release's namespace has no such key in a Secret with the label \
                 {label}={value}; create the Secret with the key, and label it: kubectl label secret {name} {label}={value}"
            ),
        ));
    };
    match password.fault() {
        Some(fault) => PasswordLookup::Fault(Verdict::stalled(
            Reason::Invalid,
            format!("the password in key {key} of Secret {name} {fault}"),
        )),
        None => PasswordLookup::Password(password),
    }
}

/// The changes of the agents' Secret, if any.
#[must_use]
pub fn plan(cluster_state: &ClusterState<'_>, peers: &Peers) -> Option<PasswordChange> {
    // Nothing is written before the Secret has been read.
    let seen = cluster_state.secrets.get(PASSWORDS_SECRET)?;
    let held = seen.as_ref().map(|secret| &secret.keys);
    // An invalid BGPPeer keeps its password.
    let unreadable = cluster_state.unreadable.iter();
    let unreadable = unreadable.filter(|object| object.kind == UserKind::Peer);
    let mut needed: BTreeSet<&str> = unreadable
        .filter_map(|object| object.metadata.name.as_deref())
        .collect();
    let mut set = BTreeMap::new();
    for (name, peer) in peers {
        let reference = match peer {
            Err(_) => None,
            Ok(Peer { password: None, .. }) => continue,
            Ok(Peer { password, .. }) => password.as_ref(),
        };
        needed.insert(name);
        if let Some(PasswordLookup::Password(password)) =
            reference.map(|reference| find(cluster_state, reference))
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
