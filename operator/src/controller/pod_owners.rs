//! [`PodOwnerLookup`]: looks up the owners of the pods that keep pools from being drained. The API server is asked for
//! each pod by its name, and only while a pool is drained.
//!
//! A separate task sends the requests, so a slow API server does not delay a plan.

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
use crate::controller::reconcile_trigger::ReconcileTrigger;
use crate::plan::conditions::remaining_pods;
use crate::plan::model::cluster_state::{PodKey, PodOwners};

/// Maximum number of concurrent requests. The other pods follow afterwards.
const MAX_CONCURRENT: usize = 64;

/// Delay before failed requests are repeated. An immediate repetition would burden an overloaded API server.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Namespaces and names of pods.
type PodKeys = BTreeSet<PodKey>;

/// Handle of the lookup task.
pub struct PodOwnerLookup {
    pods: watch::Sender<PodKeys>,
    owners: watch::Receiver<PodOwners>,
}

impl PodOwnerLookup {
    /// Starts the lookup as one of `tasks`. It triggers `trigger` when owners change, and ends with the
    /// [`PodOwnerLookup`].
    pub fn start(
        client: &Client,
        trigger: &Arc<ReconcileTrigger>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (pods, requested) = watch::channel(PodKeys::new());
        let (found, owners) = watch::channel(PodOwners::new());
        let cache = PodOwnerCache::new(client);
        tasks.spawn(run(cache, requested, found, trigger.clone()));
        Self { pods, owners }
    }

    /// Sets the pods whose owners are looked up.
    pub fn set_pods<'a>(&self, pods: impl Iterator<Item = &'a DrainingPod>) {
        let pods = pods.map(remaining_pods::pod_key).collect();
        send_if_different(&self.pods, pods);
    }

    /// The owners found so far.
    pub fn owners(&self) -> PodOwners {
        self.owners.borrow().clone()
    }
}

/// Sends `new` if it differs from the value sent last. Returns whether it does.
fn send_if_different<T: PartialEq>(sender: &watch::Sender<T>, new: T) -> bool {
    sender.send_if_modified(|old| {
        let differs = *old != new;
        if differs {
            *old = new;
        }
        differs
    })
}

async fn run(
    mut cache: PodOwnerCache,
    mut pods: watch::Receiver<PodKeys>,
    found: watch::Sender<PodOwners>,
    trigger: Arc<ReconcileTrigger>,
) {
    loop {
        let requested = pods.borrow_and_update().clone();
        let more = cache.update(requested).await;
        if send_if_different(&found, cache.owners()) {
            trigger.trigger("pod owners");
        }
        if more {
            continue;
        }
        tokio::select! {
            result = pods.changed() => if result.is_err() {
                return;
            },
            () = tokio::time::sleep(RETRY_INTERVAL), if cache.has_failures => {}
        }
    }
}

/// The owners of the requested pods.
struct PodOwnerCache {
    client: Client,
    /// `None`: the pod does not exist.
    owners: BTreeMap<PodKey, Option<String>>,
    /// Whether a request has failed.
    has_failures: bool,
}

impl PodOwnerCache {
    /// An empty cache.
    fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            owners: BTreeMap::new(),
            has_failures: false,
        }
    }

    /// Looks up the owners of new `pods`, and removes all other pods. Failed lookups are repeated at the next call.
    /// Returns whether more pods are left that should be looked up at once.
    async fn update(&mut self, pods: PodKeys) -> bool {
        let mut before = std::mem::take(&mut self.owners);
        let mut new = BTreeSet::new();
        // Agents report the names, so they are untrusted input for a URL.
        for key in pods.into_iter().filter(is_name) {
            match before.remove(&key) {
                Some(owner) => drop(self.owners.insert(key, owner)),
                None => drop(new.insert(key)),
            }
        }
        let (new_count, cached) = (new.len(), self.owners.len());
        let requests = new
            .into_iter()
            .take(MAX_CONCURRENT)
            .map(async |(namespace, name)| {
                let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
                let pod = request("get", "Pod", &name, api.get_metadata_opt(&name)).await;
                (pod, (namespace, name))
            });
        for (pod, key) in join_all(requests).await {
            match pod {
                Ok(pod) => {
                    let owner = pod.map(|pod| remaining_pods::owner_of(&pod.metadata));
                    self.owners.insert(key, owner);
                }
                Err(error) => warn!(error = error.chain(), "pod owner lookup failed"),
            }
        }
        let answered = self.owners.len() - cached;
        let more = answered > 0 && new_count > MAX_CONCURRENT;
        self.has_failures = !more && answered < new_count;
        more
    }

    /// The owners of all pods that exist.
    fn owners(&self) -> PodOwners {
        let owners = self.owners.iter();
        owners
            .filter_map(|(key, owner)| Some((key.clone(), owner.clone()?)))
            .collect()
    }
}

/// Whether namespace and name are names of Kubernetes (RFC 1123, section 2.1), which are safe in the path of a URL.
fn is_name((namespace, name): &PodKey) -> bool {
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
    use crate::testing::{error_response, responding_client, unresponsive_client};

    fn pods(count: usize) -> PodKeys {
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
        let client = responding_client(|_| error_response(StatusCode::NOT_FOUND, "NotFound"));
        let mut cache = PodOwnerCache::new(&client.await);
        let pods = pods(MAX_CONCURRENT + 1);
        assert!(cache.update(pods.clone()).await);
        assert!(!cache.update(pods.clone()).await);
        assert!(!cache.update(pods).await);
        assert!(!cache.has_failures);
    }

    #[tokio::test]
    async fn refused_pod_owner_lookup_is_not_repeated_at_once() {
        let client = responding_client(|_| error_response(StatusCode::FORBIDDEN, "Forbidden"));
        let mut cache = PodOwnerCache::new(&client.await);
        for count in [MAX_CONCURRENT + 1, 1] {
            assert!(!cache.update(pods(count)).await);
            assert!(cache.has_failures);
        }
    }

    #[tokio::test]
    async fn partly_failing_pod_owner_lookups_continue() {
        let client = responding_client(|path| {
            if path.ends_with('0') {
                error_response(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
            } else {
                error_response(StatusCode::NOT_FOUND, "NotFound")
            }
        });
        let mut cache = PodOwnerCache::new(&client.await);
        assert!(cache.update(pods(2 * MAX_CONCURRENT)).await);
        assert!(!cache.update(pods(2)).await);
        assert!(cache.has_failures);
    }

    #[tokio::test]
    async fn hung_pod_owner_lookup_does_not_block_controller() {
        let (client, trigger, mut tasks) = (
            unresponsive_client().await,
            Arc::new(ReconcileTrigger::default()),
            JoinSet::new(),
        );
        let lookup = PodOwnerLookup::start(&client, &trigger, &mut tasks);
        lookup.set_pods([draining("shop", "web")].iter());
        assert_eq!(lookup.owners(), PodOwners::new());
        tokio::task::yield_now().await;
        lookup.set_pods([].iter());
        assert_eq!(lookup.owners(), PodOwners::new());
    }

    #[tokio::test]
    async fn pod_owner_lookup_reads_only_metadata_and_notifies() {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        let client = responding_client(move |path| {
            log.lock().unwrap().push(path.to_owned());
            let pod = r#"{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "web"}}"#;
            (StatusCode::OK, pod.to_owned())
        });
        let (client, trigger, mut tasks) = (
            client.await,
            Arc::new(ReconcileTrigger::default()),
            JoinSet::new(),
        );
        let lookup = PodOwnerLookup::start(&client, &trigger, &mut tasks);
        let pods = [
            draining("shop", "web"),
            draining("../../nodes", "web"),
            draining("shop", ".."),
            draining("shop", "web?watch"),
            draining("", "web"),
        ];
        lookup.set_pods(pods.iter());
        trigger.triggered().await;
        let owner = (("shop".to_owned(), "web".to_owned()), "Pod/web".to_owned());
        assert_eq!(lookup.owners(), [owner].into());
        assert_eq!(
            *requests.lock().unwrap(),
            ["/api/v1/namespaces/shop/pods/web"]
        );
        drop(lookup);
        assert!(tasks.join_next().await.unwrap().is_ok());
    }
}
