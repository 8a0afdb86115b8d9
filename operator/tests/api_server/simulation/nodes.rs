//! Nodes of the simulation: they are created, deleted, moved, and what they leave is collected, since no controller manager runs
//! here. The ledger is told before anything is asked for.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use netweft_crds::NodeNetwork;
use serde_json::{Value, json};

use crate::ledger::Ledger;
use crate::objects::object;

/// Requests under way at a time.
pub const CONCURRENCY: usize = 32;

/// Creates and deletes Nodes.
#[derive(Clone)]
pub struct Nodes {
    api: Api<Node>,
    ledger: Arc<Ledger>,
}

impl Nodes {
    /// Of the cluster that `ledger` writes about.
    pub fn new(admin: &Client, ledger: &Arc<Ledger>) -> Self {
        Self {
            api: Api::all(admin.clone()),
            ledger: ledger.clone(),
        }
    }

    /// Lets these Nodes join; each has the address of its number.
    pub async fn join(&self, numbers: &[usize]) {
        each(numbers, |number| async move {
            let (name, address) = (name(number), address(number));
            self.ledger
                .with(|book| book.node_comes(&name, address, Instant::now()));
            // A kubelet creates its Node with its addresses.
            let node: Node = object(json!({
                "metadata": { "name": name },
                "status": stated(address),
            }));
            let node = self
                .api
                .create(&PostParams::default(), &node)
                .await
                .unwrap();
            self.ledger.with(|book| book.node_is(&name, node.uid()));
        })
        .await;
    }

    /// Deletes these Nodes.
    pub async fn leave(&self, numbers: &[usize]) {
        each(numbers, |number| async move {
            let name = name(number);
            self.ledger
                .with(|book| book.node_goes(&name, Instant::now()));
            self.api
                .delete(&name, &DeleteParams::default())
                .await
                .unwrap();
        })
        .await;
    }

    /// Gives these Nodes other addresses.
    pub async fn readdress(&self, numbers: &[usize], offset: usize) {
        each(numbers, |number| async move {
            let (name, address) = (name(number), address(number + offset));
            self.ledger.with(|book| book.node_moves(&name, address));
            let patch = json!({ "status": stated(address) });
            let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
            let moved = self.api.patch_status(&name, &params, &patch).await;
            moved.unwrap();
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

fn stated(address: IpAddr) -> Value {
    json!({ "addresses": [{ "type": "InternalIP", "address": address }] })
}

async fn each<F: Future<Output = ()>>(numbers: &[usize], act: impl Fn(usize) -> F) {
    let acts = futures::stream::iter(numbers.iter().map(|number| act(*number)));
    acts.buffer_unordered(CONCURRENCY).collect::<()>().await;
}

/// In the garbage collector's place: deletes NodeNetworks whose Node is gone.
pub async fn collect(admin: Client, ledger: Arc<Ledger>) {
    let api: Api<NodeNetwork> = Api::all(admin);
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let dead = ledger.with(|book| {
            let is_dead = |name: &str, owner: Option<&str>| match book.uid_of(name) {
                None => true,
                // It is being created.
                Some(None) => false,
                Some(uid) => uid != owner,
            };
            let networks = book.networks().iter();
            let dead = networks.filter(|(name, now)| is_dead(name, now.owner.as_deref()));
            let dead = dead.map(|(name, now)| {
                let seen = Preconditions {
                    uid: now.uid.clone(),
                    resource_version: now.version.clone(),
                };
                (name.clone(), DeleteParams::default().preconditions(seen))
            });
            dead.collect::<Vec<_>>()
        });
        let deletions = dead.into_iter().map(|(name, params)| {
            let api = &api;
            async move { api.delete(&name, &params).await }
        });
        // One that was changed meanwhile is looked at again.
        let deletions = futures::stream::iter(deletions).buffer_unordered(CONCURRENCY);
        deletions.for_each(|_| async {}).await;
    }
}
