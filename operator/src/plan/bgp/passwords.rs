//! Passwords of BGP sessions: from Secrets of users to the one Secret that the agents' pods mount.
//!
//! The agents cannot read Secrets. So the operator copies what BGPPeers name into one Secret of the release's namespace, a key
//! for each BGPPeer, and takes away what none names any more. What is named and not there leaves what was there: sessions that
//! are up stay up, and the BGPPeer says what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1 as core;
use netweft_crds::condition::{Reason, Verdict};
use netweft_crds::names::PASSWORDS_SECRET;
use netweft_crds::{BGPPeer, SecretKeyRef};

use crate::plan::bgp::Peers;
use crate::plan::bgp::peer::Peer;
use crate::plan::model::cluster_state::{ClusterState, UserKind};

/// Most bytes of a key of TCP MD5 (`TCP_MD5SIG_MAXKEYLEN` in Linux).
const LONGEST: usize = 80;

/// A password; it shows itself to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Password {
    /// A password of these bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes, for the request that stores them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// What is wrong with it, and what to do.
    fn fault(&self) -> Option<&'static str> {
        let plain = |byte: &u8| matches!(byte, b' '..=b'~') && *byte != b'"';
        match self.0.as_slice() {
            [] => Some("is empty"),
            [.., b'\n'] => Some("ends with a line end; write it without, for example with printf"),
            password if password.len() > LONGEST => {
                Some("is longer than the 80 bytes that TCP MD5 takes")
            }
            password if !password.iter().all(plain) => {
                Some("has other characters than printable ASCII without the quotation mark")
            }
            _ => None,
        }
    }
}

/// A Secret as far as it is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secret {
    /// Its UID.
    pub uid: Option<String>,
    /// Its version.
    pub resource_version: Option<String>,
    /// Its keys.
    pub keys: BTreeMap<String, Password>,
}

impl From<&core::Secret> for Secret {
    fn from(secret: &core::Secret) -> Self {
        let keys = secret.data.iter().flatten();
        Self {
            uid: secret.metadata.uid.clone(),
            resource_version: secret.metadata.resource_version.clone(),
            keys: keys
                .map(|(key, value)| (key.clone(), Password::new(value.0.clone())))
                .collect(),
        }
    }
}

/// How the agents' Secret has to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswordChange {
    /// The Secret that was looked at: UID and version; none: there is none.
    pub seen: Option<(Option<String>, Option<String>)>,
    /// Keys to set.
    pub set: BTreeMap<String, Password>,
    /// Keys to take away.
    pub remove: BTreeSet<String>,
}

/// Names of the Secrets that have to be looked at: what BGPPeers name, and the agents'.
pub fn needed<'a>(peers: impl Iterator<Item = &'a BGPPeer>) -> BTreeSet<String> {
    let passwords = peers.filter_map(|peer| peer.spec.password.as_ref());
    let names = passwords.map(|password| password.secret_key_ref.name.clone());
    names.chain([PASSWORDS_SECRET.to_owned()]).collect()
}

/// What can be said about a BGPPeer's password.
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
