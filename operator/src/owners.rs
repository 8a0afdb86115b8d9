//! [`Asked`]: who made the pods that keep pools from being drained, asked of the API server for one pod after the other and only while
//! they do.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use netweft_crds::DrainingPod;
use tracing::warn;

use crate::client::request;
use crate::drain::{self, Owners};

/// Most pods that are asked about before a plan, all together; the others are asked about before the next.
const AT_ONCE: usize = 64;

/// What has been learnt.
pub struct Asked {
    client: Client,
    /// `None`: the pod is not there any more.
    known: BTreeMap<(String, String), Option<String>>,
}

impl Asked {
    /// Nothing yet.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            known: BTreeMap::new(),
        }
    }

    /// Asks about those of `pods` that are new, and forgets all others. Returns whether there are more to ask about. Where there was no
    /// answer it is asked again the next time.
    pub async fn follow(&mut self, pods: impl Iterator<Item = &DrainingPod>) -> bool {
        let mut before = std::mem::take(&mut self.known);
        let mut new = BTreeSet::new();
        for key in pods.map(drain::key) {
            match before.remove(&key) {
                Some(owner) => drop(self.known.insert(key, owner)),
                // One pod may have addresses of two such pools.
                None if self.known.contains_key(&key) => {}
                None => drop(new.insert(key)),
            }
        }
        let more = new.len() > AT_ONCE;
        let questions = new
            .into_iter()
            .take(AT_ONCE)
            .map(async |(namespace, name)| {
                let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
                let found = request("get", "Pod", &name, api.get_metadata_opt(&name)).await;
                (found, (namespace, name))
            });
        for (found, key) in join_all(questions).await {
            match found {
                Ok(found) => {
                    let owner = found.map(|pod| drain::owner_of(&pod.metadata));
                    self.known.insert(key, owner);
                }
                Err(error) => warn!(error = error.chain(), "a pod's owner is not known"),
            }
        }
        more
    }

    /// What is known.
    pub fn state(&self) -> Owners {
        let known = self.known.iter();
        known
            .filter_map(|(key, owner)| Some((key.clone(), owner.clone()?)))
            .collect()
    }
}
