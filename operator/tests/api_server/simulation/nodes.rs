//! Nodes of the simulation, and garbage collection of their NodeNetworks, because no controller manager runs. The
//! monitor is informed before each request.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use netweft_crds::NodeNetwork;
use serde_json::{Value, json};

use crate::invariants::InvariantMonitor;
use crate::objects::object;

/// Maximum number of concurrent requests.
pub const CONCURRENCY: usize = 32;

/// Creates and deletes Nodes.
#[derive(Clone)]
pub struct Nodes {
    api: Api<Node>,
    monitor: Arc<InvariantMonitor>,
}

impl Nodes {
    /// Nodes of the cluster that `monitor` watches.
    pub fn new(admin: &Client, monitor: &Arc<InvariantMonitor>) -> Self {
        Self {
            api: Api::all(admin.clone()),
            monitor: monitor.clone(),
        }
    }

    /// Creates Nodes. The address follows from the number.
    pub async fn create(&self, numbers: &[usize]) {
        each(numbers, |number| async move {
            let (name, address) = (name(number), address(number));
            self.monitor
                .with(|checker| checker.add_node(&name, address, Instant::now()));
            // Like a kubelet, create the Node together with its addresses.
            let node: Node = object(json!({
                "metadata": { "name": name },
                "status": node_status(address),
            }));
            let node = self
                .api
                .create(&PostParams::default(), &node)
                .await
                .unwrap();
            self.monitor
                .with(|checker| checker.set_node_uid(&name, node.uid()));
        })
        .await;
    }

    /// Deletes these Nodes.
    pub async fn delete(&self, numbers: &[usize]) {
        each(numbers, |number| async move {
            let name = name(number);
            self.monitor
                .with(|checker| checker.remove_node(&name, Instant::now()));
            self.api
                .delete(&name, &DeleteParams::default())
                .await
                .unwrap();
        })
        .await;
    }

    /// Changes the addresses of Nodes.
    pub async fn change_address(&self, numbers: &[usize], offset: usize) {
        each(numbers, |number| async move {
            let (name, address) = (name(number), address(number + offset));
            self.monitor
                .with(|checker| checker.set_node_address(&name, address));
            let patch = json!({ "status": node_status(address) });
            let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
            let patched = self.api.patch_status(&name, &params, &patch).await;
            patched.unwrap();
        })
        .await;
    }
}

/// Name of a Node.
pub fn name(number: usize) -> String {
    format!("node-{number:05}")
}

fn address(number: usize) -> IpAddr {
    let first = u32::from(Ipv4Addr::new(172, 16, 0, 0));
    Ipv4Addr::from(first + u32::try_from(number).unwrap()).into()
}

fn node_status(address: IpAddr) -> Value {
    json!({ "addresses": [{ "type": "InternalIP", "address": address }] })
}

async fn each<F: Future<Output = ()>>(numbers: &[usize], action: impl Fn(usize) -> F) {
    let actions = futures::stream::iter(numbers.iter().map(|number| action(*number)));
    actions.buffer_unordered(CONCURRENCY).collect::<()>().await;
}

/// Deletes NodeNetworks whose Node is deleted, like the garbage collector.
pub async fn collect_garbage(admin: Client, monitor: Arc<InvariantMonitor>) {
    let api: Api<NodeNetwork> = Api::all(admin);
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let deleted = monitor.with(|checker| {
            let is_deleted = |name: &str, owner: Option<&str>| match checker.node_uid(name) {
                None => true,
                // The Node is being created.
                Some(None) => false,
                Some(uid) => uid != owner,
            };
            let networks = checker.networks().iter();
            let deleted = networks.filter(|(name, now)| is_deleted(name, now.owner.as_deref()));
            let deleted = deleted.map(|(name, now)| {
                let preconditions = Preconditions {
                    uid: now.uid.clone(),
                    resource_version: now.version.clone(),
                };
                (
                    name.clone(),
                    DeleteParams::default().preconditions(preconditions),
                )
            });
            deleted.collect::<Vec<_>>()
        });
        let deletions = deleted.into_iter().map(|(name, params)| {
            let api = &api;
            async move { api.delete(&name, &params).await }
        });
        // NodeNetworks that have changed in the meantime are handled in the next round.
        let deletions = futures::stream::iter(deletions).buffer_unordered(CONCURRENCY);
        deletions.for_each(|_| async {}).await;
    }
}
