//! [`Secrets`]: local copies of the Secrets that BGPPeers name, and of the agents' own; of no others.
//!
//! Each is watched by its name, from when it is needed until it is not, so that the operator neither asks for nor holds what else
//! is in the release's namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1 as core;
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use kube::{Api, Client};
use netweft_crds::BGPPeer;
use tokio::task::{AbortHandle, JoinSet};

use crate::controller::changes::Changes;
use crate::controller::watches::{Follow, Guarded, strip};
use crate::plan::bgp::passwords;
use crate::plan::model::secret::Secret;

/// The copies.
pub struct Secrets {
    api: Api<Guarded<core::Secret>>,
    changed: Arc<Changes>,
    /// Whether passwords are of use to anybody.
    enabled: bool,
    watches: JoinSet<()>,
    copies: BTreeMap<String, Copy>,
}

/// One copy, and what ends its watch.
struct Copy {
    store: Store<Guarded<core::Secret>>,
    watch: Option<AbortHandle>,
}

impl Secrets {
    /// No copies yet, of Secrets in `namespace`; what changes in them is reported to `changed`. Those of users are looked at only if
    /// passwords are `enabled`.
    pub fn new(client: &Client, namespace: &str, changed: &Arc<Changes>, enabled: bool) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            changed: changed.clone(),
            enabled,
            watches: JoinSet::new(),
            copies: BTreeMap::new(),
        }
    }

    /// From now on these BGPPeers' Secrets are watched, and no others.
    pub fn follow<'a>(&mut self, peers: impl Iterator<Item = &'a BGPPeer>) {
        let needed = passwords::needed(peers.filter(|_| self.enabled));
        self.copies.retain(|name, copy| {
            let keep = needed.contains(name);
            if let (false, Some(watch)) = (keep, &copy.watch) {
                watch.abort();
            }
            keep
        });
        for name in needed {
            if !self.copies.contains_key(&name) {
                let copy = self.start(&name);
                self.copies.insert(name, copy);
            }
        }
        // What has been ended is forgotten; a watch ends by itself only if it panics.
        while let Some(ended) = self.watches.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    /// What has been looked at, by name.
    pub fn state(&self) -> BTreeMap<String, Option<Secret>> {
        let listed =
            |copy: &&Copy| matches!(copy.store.wait_until_ready().now_or_never(), Some(Ok(())));
        let copies = self.copies.iter().filter(|(_, copy)| listed(copy));
        copies
            .map(|(name, copy)| {
                let found = copy.store.state();
                let secret = found.first().and_then(|found| found.0.as_ref().ok());
                (name.clone(), secret.map(Secret::from))
            })
            .collect()
    }

    fn start(&mut self, name: &str) -> Copy {
        let by_name = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut follow = Follow::new(&self.changed, &mut self.watches);
        let store = follow.some(self.api.clone(), by_name, strip, |old, new| {
            old.data != new.data || old.metadata.uid != new.metadata.uid
        });
        Copy {
            store,
            watch: follow.last,
        }
    }
}
