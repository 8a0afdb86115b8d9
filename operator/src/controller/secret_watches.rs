//! [`SecretWatches`]: local copies of the Secrets that BGPPeers name, and of the agents' Secret.
//!
//! Each Secret is watched by its name, and only while it is needed. The operator neither reads nor holds other Secrets
//! of the release's namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1 as core;
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use kube::{Api, Client};
use netweft_crds::BGPPeer;
use netweft_crds::names::PASSWORDS_SECRET;
use tokio::task::{AbortHandle, JoinSet};

use crate::controller::reconcile_trigger::ReconcileTrigger;
use crate::controller::watches::{Guarded, WatchStarter, strip};
use crate::plan::bgp::passwords;
use crate::plan::model::secret::Secret;

/// The copies.
pub struct SecretWatches {
    api: Api<Guarded<core::Secret>>,
    trigger: Arc<ReconcileTrigger>,
    /// The Secrets of users that the operator may read.
    allowed: BTreeSet<String>,
    watches: JoinSet<()>,
    copies: BTreeMap<String, WatchedSecret>,
}

/// One copy and its watch.
struct WatchedSecret {
    store: Store<Guarded<core::Secret>>,
    watch: Option<AbortHandle>,
}

impl SecretWatches {
    /// No copies yet, of Secrets in `namespace`. Their changes trigger `trigger`. Of the Secrets of users, only those in
    /// `allowed` are watched.
    pub fn new(
        client: &Client,
        namespace: &str,
        trigger: &Arc<ReconcileTrigger>,
        allowed: BTreeSet<String>,
    ) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            trigger: trigger.clone(),
            allowed,
            watches: JoinSet::new(),
            copies: BTreeMap::new(),
        }
    }

    /// Sets the BGPPeers whose Secrets are watched.
    pub fn set_peers<'a>(&mut self, peers: impl Iterator<Item = &'a BGPPeer>) {
        let mut needed = passwords::secret_names(peers);
        needed.retain(|name| name == PASSWORDS_SECRET || self.allowed.contains(name));
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
        // Removes aborted watches. A watch ends by itself only if it panics.
        while let Some(ended) = self.watches.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    /// The Secrets that have been listed, by name.
    pub fn secrets(&self) -> BTreeMap<String, Option<Secret>> {
        let listed = |copy: &&WatchedSecret| {
            matches!(copy.store.wait_until_ready().now_or_never(), Some(Ok(())))
        };
        let copies = self.copies.iter().filter(|(_, copy)| listed(copy));
        copies
            .map(|(name, copy)| {
                let found = copy.store.state();
                let secret = found.first().and_then(|found| found.0.as_ref().ok());
                (name.clone(), secret.map(Secret::from))
            })
            .collect()
    }

    fn start(&mut self, name: &str) -> WatchedSecret {
        let by_name = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut starter = WatchStarter::new(&self.trigger, &mut self.watches);
        let store = starter.watch(self.api.clone(), by_name, strip, |old, new| {
            old.data != new.data
                || old.metadata.uid != new.metadata.uid
                || old.metadata.labels != new.metadata.labels
        });
        WatchedSecret {
            store,
            watch: starter.last_watch,
        }
    }
}
