//! [`Asked`]: who made the pods that keep pools from being drained, asked of the API server for one pod after the other and only while
//! they do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use netweft_crds::DrainingPod;
use tracing::warn;

use crate::client::request;
use crate::drain::{self, Owners};

/// Most pods that are asked about before a plan, all together; the others are asked about before the next.
const AT_ONCE: usize = 64;

/// When those of whom nothing was heard are asked about again, if no plan comes before: at once would only press an API server in trouble.
const PAUSE: Duration = Duration::from_secs(30);

/// What has been learnt.
pub struct Asked {
    client: Client,
    /// `None`: the pod is not there any more.
    known: BTreeMap<(String, String), Option<String>>,
    /// Whether nothing was heard of some.
    unanswered: bool,
}

impl Asked {
    /// Nothing yet.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            known: BTreeMap::new(),
            unanswered: false,
        }
    }

    /// Asks about those of `pods` that are new, and forgets all others. Where there was no answer it is asked again the next time.
    /// Returns whether there are more, and it is worth while to ask about them at once.
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
        let answers = self.known.len() - known;
        let more = answers > 0 && unknown > AT_ONCE;
        self.unanswered = !more && answers < unknown;
        more
    }

    /// How long until it has to be asked again.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.unanswered.then_some(PAUSE)
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
        assert!(asked.follow(pods.iter()).await);
        assert!(!asked.follow(pods.iter()).await);
        assert!(!asked.follow(pods.iter()).await);
        assert_eq!(asked.due(), None);
    }

    #[tokio::test]
    async fn an_api_server_that_refuses_to_answer_is_not_asked_again_at_once() {
        let client = answering(|_| refusal(StatusCode::FORBIDDEN, "Forbidden"));
        let mut asked = Asked::new(&client.await);
        for count in [AT_ONCE + 1, 1] {
            assert!(!asked.follow(pods(count).iter()).await);
            assert_eq!(asked.due(), Some(PAUSE));
        }
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
        assert!(asked.follow(pods(2 * AT_ONCE).iter()).await);
        assert!(!asked.follow(pods(2).iter()).await);
        assert_eq!(asked.due(), Some(PAUSE));
    }
}
