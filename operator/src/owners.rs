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

/// When to ask about more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// All is known.
    Nothing,
    /// There are more than can be asked about together.
    AtOnce,
    /// Some answers are missing: to ask for them at once would only press an API server in trouble.
    Later,
}

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

    /// Asks about those of `pods` that are new, and forgets all others. Where there was no answer it is asked again the next time.
    pub async fn follow(&mut self, pods: impl Iterator<Item = &DrainingPod>) -> Next {
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
        let (unknown, known) = (new.len(), self.known.len());
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
        match self.known.len() - known {
            answers if answers == unknown => Next::Nothing,
            answers if answers > 0 && unknown > AT_ONCE => Next::AtOnce,
            _ => Next::Later,
        }
    }

    /// What is known.
    pub fn state(&self) -> Owners {
        let known = self.known.iter();
        known
            .filter_map(|(key, owner)| Some((key.clone(), owner.clone()?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;
    use crate::testing::{answering, refusal};

    fn pods(count: usize) -> Vec<DrainingPod> {
        let pod = |n: usize| DrainingPod {
            pool: "default-v4".to_owned(),
            namespace: "shop".to_owned(),
            name: format!("web-{n:03}"),
        };
        (0..count).map(pod).collect()
    }

    #[tokio::test]
    async fn more_pods_than_are_asked_about_together_are_asked_about_one_plan_after_the_other() {
        let client = answering(|_| refusal(StatusCode::NOT_FOUND, "NotFound"));
        let mut asked = Asked::new(&client.await);
        let pods = pods(AT_ONCE + 1);
        assert_eq!(asked.follow(pods.iter()).await, Next::AtOnce);
        assert_eq!(asked.follow(pods.iter()).await, Next::Nothing);
        assert_eq!(asked.follow(pods.iter()).await, Next::Nothing);
    }

    #[tokio::test]
    async fn an_api_server_that_refuses_to_answer_is_not_asked_again_at_once() {
        let client = answering(|_| refusal(StatusCode::FORBIDDEN, "Forbidden"));
        let mut asked = Asked::new(&client.await);
        assert_eq!(asked.follow(pods(AT_ONCE + 1).iter()).await, Next::Later);
        assert_eq!(asked.follow(pods(1).iter()).await, Next::Later);
    }

    #[tokio::test]
    async fn one_that_fails_now_and_then_is_asked_on_while_it_answers() {
        let client = answering(|path| {
            if path.ends_with('0') {
                refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
            } else {
                refusal(StatusCode::NOT_FOUND, "NotFound")
            }
        });
        let mut asked = Asked::new(&client.await);
        assert_eq!(asked.follow(pods(2 * AT_ONCE).iter()).await, Next::AtOnce);
        assert_eq!(asked.follow(pods(2).iter()).await, Next::Later);
    }
}
