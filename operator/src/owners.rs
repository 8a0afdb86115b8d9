//! [`Asked`]: who made the pods that keep pools from being drained, asked of the API server for one pod after the other and only while
//! they do.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use netweft_crds::DrainingPod;
use tracing::warn;

use crate::client::request;
use crate::drain::{self, Owners};

/// Most pods that are asked about before a plan; the others are asked about before the next.
const AT_ONCE: usize = 64;
/// Questions that are under way together.
const TOGETHER: usize = 8;

/// What has been learnt.
pub struct Asked {
    client: Client,
    /// `None`: the pod is not there any more, or has not been told of.
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

    /// Asks about those of `pods` that are new, and forgets all others. Returns whether there are more to ask about.
    pub async fn follow(&mut self, pods: impl Iterator<Item = &DrainingPod>) -> bool {
        let mut before = std::mem::take(&mut self.known);
        let mut new = Vec::new();
        for key in pods.map(drain::key) {
            match before.remove(&key) {
                Some(owner) => drop(self.known.insert(key, owner)),
                None if !self.known.contains_key(&key) => new.push(key),
                None => {}
            }
        }
        let more = new.len() > AT_ONCE;
        new.truncate(AT_ONCE);
        let asked = stream::iter(new).map(|key| {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
            async move { (owner(&api, &key.1).await, key) }
        });
        let answers: Vec<_> = asked.buffer_unordered(TOGETHER).collect().await;
        self.known
            .extend(answers.into_iter().map(|(owner, key)| (key, owner)));
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

async fn owner(api: &Api<Pod>, name: &str) -> Option<String> {
    match request("get", "Pod", name, api.get_metadata_opt(name)).await {
        Ok(found) => found.map(|pod| drain::owner_of(&pod.metadata)),
        Err(error) => {
            warn!(error = error.chain(), "a pod's owner is not known");
            None
        }
    }
}
