//! [`Owners`](crate::plan::model::cluster_state::Owners): who made the pods that keep pools from being drained, asked of the API server for one pod after
//! the other and only while they do.
//!
//! A task of its own asks, so that an API server that is slow to answer delays no plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use netweft_crds::DrainingPod;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::warn;

use crate::controller::api_request::request;
use crate::controller::changes::Changes;
use crate::plan::conditions::remaining_pods;
use crate::plan::model::cluster_state::Owners;

/// Most pods that are asked about at a time, all together; the others follow.
const MAX_CONCURRENT: usize = 64;

/// When those of whom nothing was heard are asked about again: at once would only press an API server in trouble.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Namespace and name of a pod.
type Pods = BTreeSet<(String, String)>;

/// Asks for owners, and what is known of them.
pub struct Lookup {
    pods: watch::Sender<Pods>,
    owners: watch::Receiver<Owners>,
}

impl Lookup {
    /// Starts the task as one of `tasks`; it reports to `changed` when more is known. It ends with the [`Lookup`].
    pub fn start(client: &Client, changed: &Arc<Changes>, tasks: &mut JoinSet<()>) -> Self {
        let (pods, asked) = watch::channel(Pods::new());
        let (told, owners) = watch::channel(Owners::new());
        tasks.spawn(ask(
            PodOwnerCache::new(client),
            asked,
            told,
            changed.clone(),
        ));
        Self { pods, owners }
    }

    /// From now on these pods' owners are of interest, and no others'.
    pub fn follow<'a>(&self, pods: impl Iterator<Item = &'a DrainingPod>) {
        let pods = pods.map(remaining_pods::key).collect();
        self.pods.send_if_modified(|old| {
            let new = *old != pods;
            if new {
                *old = pods;
            }
            new
        });
    }

    /// What is known.
    pub fn state(&self) -> Owners {
        self.owners.borrow().clone()
    }
}

async fn ask(
    mut asked: PodOwnerCache,
    mut pods: watch::Receiver<Pods>,
    told: watch::Sender<Owners>,
    changed: Arc<Changes>,
) {
    loop {
        let wanted = pods.borrow_and_update().clone();
        let more = asked.follow(wanted).await;
        let state = asked.state();
        let new = told.send_if_modified(|old| {
            let new = *old != state;
            if new {
                *old = state;
            }
            new
        });
        if new {
            changed.report("pod owners");
        }
        if more {
            continue;
        }
        tokio::select! {
            result = pods.changed() => if result.is_err() {
                return;
            },
            () = tokio::time::sleep(RETRY_INTERVAL), if asked.unanswered => {}
        }
    }
}

/// What has been learnt.
struct PodOwnerCache {
    client: Client,
    /// `None`: the pod is not there any more.
    known: BTreeMap<(String, String), Option<String>>,
    /// Whether nothing was heard of some.
    unanswered: bool,
}

impl PodOwnerCache {
    /// Nothing yet.
    fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            known: BTreeMap::new(),
            unanswered: false,
        }
    }

    /// Asks about those of `pods` that are new, and forgets all others. Where there was no answer it is asked again the next time.
    /// Returns whether there are more, and it is worth while to ask about them at once.
    async fn follow(&mut self, pods: Pods) -> bool {
        let mut before = std::mem::take(&mut self.known);
        let mut new = BTreeSet::new();
        // The names are an agent's words.
        for key in pods.into_iter().filter(is_name) {
            match before.remove(&key) {
                Some(owner) => drop(self.known.insert(key, owner)),
                None => drop(new.insert(key)),
            }
        }
        let (unknown, known) = (new.len(), self.known.len());
        let questions = new
            .into_iter()
            .take(MAX_CONCURRENT)
            .map(async |(namespace, name)| {
                let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
                let found = request("get", "Pod", &name, api.get_metadata_opt(&name)).await;
                (found, (namespace, name))
            });
        for (found, key) in join_all(questions).await {
            match found {
                Ok(found) => {
                    let owner = found.map(|pod| remaining_pods::owner_of(&pod.metadata));
                    self.known.insert(key, owner);
                }
                Err(error) => warn!(error = error.chain(), "pod owner lookup failed"),
            }
        }
        let answers = self.known.len() - known;
        let more = answers > 0 && unknown > MAX_CONCURRENT;
        self.unanswered = !more && answers < unknown;
        more
    }

    /// What is known.
    fn state(&self) -> Owners {
        let known = self.known.iter();
        known
            .filter_map(|(key, owner)| Some((key.clone(), owner.clone()?)))
            .collect()
    }
}

/// Whether both can be parts of a URL's path: names of Kubernetes (RFC 1123, section 2.1) can.
fn is_name((namespace, name): &(String, String)) -> bool {
    let is_part = |text: &str| {
        let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c);
        !text.is_empty() && text.bytes().all(legal) && !text.starts_with('.')
    };
    is_part(namespace) && is_part(name)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::http::StatusCode;

    use super::*;
    use crate::testing::{answering, hanging, refusal};

    fn pods(count: usize) -> Pods {
        let pod = |n: usize| ("shop".to_owned(), format!("web-{n:03}"));
        (0..count).map(pod).collect()
    }

    fn draining(namespace: &str, name: &str) -> DrainingPod {
        DrainingPod {
            pool: "default-v4".to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    #[tokio::test]
    async fn pod_owner_lookups_beyond_batch_size_follow() {
        let client = answering(|_| refusal(StatusCode::NOT_FOUND, "NotFound"));
        let mut asked = PodOwnerCache::new(&client.await);
        let pods = pods(MAX_CONCURRENT + 1);
        assert!(asked.follow(pods.clone()).await);
        assert!(!asked.follow(pods.clone()).await);
        assert!(!asked.follow(pods).await);
        assert!(!asked.unanswered);
    }

    #[tokio::test]
    async fn refused_pod_owner_lookup_is_not_repeated_at_once() {
        let client = answering(|_| refusal(StatusCode::FORBIDDEN, "Forbidden"));
        let mut asked = PodOwnerCache::new(&client.await);
        for count in [MAX_CONCURRENT + 1, 1] {
            assert!(!asked.follow(pods(count)).await);
            assert!(asked.unanswered);
        }
    }

    #[tokio::test]
    async fn partly_failing_pod_owner_lookups_continue() {
        let client = answering(|path| {
            if path.ends_with('0') {
                refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
            } else {
                refusal(StatusCode::NOT_FOUND, "NotFound")
            }
        });
        let mut asked = PodOwnerCache::new(&client.await);
        assert!(asked.follow(pods(2 * MAX_CONCURRENT)).await);
        assert!(!asked.follow(pods(2)).await);
        assert!(asked.unanswered);
    }

    #[tokio::test]
    async fn hung_pod_owner_lookup_does_not_block_controller() {
        let (client, changed, mut tasks) = (
            hanging().await,
            Arc::new(Changes::default()),
            JoinSet::new(),
        );
        let lookup = Lookup::start(&client, &changed, &mut tasks);
        lookup.follow([draining("shop", "web")].iter());
        assert_eq!(lookup.state(), Owners::new());
        tokio::task::yield_now().await;
        lookup.follow([].iter());
        assert_eq!(lookup.state(), Owners::new());
    }

    #[tokio::test]
    async fn pod_owner_lookup_reads_only_metadata_and_notifies() {
        let paths = Arc::new(Mutex::new(Vec::new()));
        let log = paths.clone();
        let client = answering(move |path| {
            log.lock().unwrap().push(path.to_owned());
            let pod = r#"{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "web"}}"#;
            (StatusCode::OK, pod.to_owned())
        });
        let (client, changed, mut tasks) =
            (client.await, Arc::new(Changes::default()), JoinSet::new());
        let lookup = Lookup::start(&client, &changed, &mut tasks);
        let pods = [
            draining("shop", "web"),
            draining("../../nodes", "web"),
            draining("shop", ".."),
            draining("shop", "web?watch"),
            draining("", "web"),
        ];
        lookup.follow(pods.iter());
        changed.reported().await;
        let owner = (("shop".to_owned(), "web".to_owned()), "Pod/web".to_owned());
        assert_eq!(lookup.state(), [owner].into());
        assert_eq!(*paths.lock().unwrap(), ["/api/v1/namespaces/shop/pods/web"]);
        drop(lookup);
        assert!(tasks.join_next().await.unwrap().is_ok());
    }
}
