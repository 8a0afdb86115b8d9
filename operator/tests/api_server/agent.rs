//! What an agent does at the API server, done by hand: the program itself would write into this machine's kernel.

use futures::StreamExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use netweft_crds::condition::READY;
use netweft_crds::{IPPool, NodeNetwork, NodeSubnet};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::task::JoinSet;

use crate::control_plane::ControlPlane;
use crate::objects::token;

/// The agent of a node, with the token that its pod would have.
pub struct Agent {
    client: Client,
    node: String,
    _watches: JoinSet<()>,
}

impl Agent {
    /// Lists and watches what an agent looks at.
    pub async fn start(plane: &ControlPlane, node: &str) -> Self {
        let client = plane.client(&token(&plane.admin(), "netweft-agent", Some(node)).await);
        let mut watches = JoinSet::new();
        let all = watcher::Config::default;
        watch::<IPPool>(&client, all(), &mut watches);
        watch::<NodeSubnet>(&client, all(), &mut watches);
        let own = all().fields(&format!("metadata.name={node}"));
        watch::<NodeNetwork>(&client, own, &mut watches);
        Self {
            client,
            node: node.to_owned(),
            _watches: watches,
        }
    }

    /// Says that the kernel agrees with the NodeNetwork as `admin` sees it, and that so many pods are in each block.
    pub async fn acknowledge(&self, admin: &Client, used: i64) {
        let networks: Api<NodeNetwork> = Api::all(admin.clone());
        let network = networks.get(&self.node).await.unwrap();
        let subnets = network.spec.subnets.iter();
        let subnets = subnets.map(|cidr| json!({ "cidr": cidr, "used": used, "free": 64 - used }));
        let condition = json!({ "type": READY, "status": "True", "reason": "Programmed", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let status = json!({ "observedGeneration": network.metadata.generation,
            "subnets": subnets.collect::<Vec<_>>(), "conditions": [condition] });
        let patch = Patch::Apply(
            json!({ "apiVersion": "netweft.io/v1alpha1", "kind": "NodeNetwork", "status": status }),
        );
        let params = PatchParams::apply("netweft-agent").force();
        let networks: Api<NodeNetwork> = Api::all(self.client.clone());
        let written = networks.patch_status(&self.node, &params, &patch).await;
        written.unwrap();
    }
}

fn watch<K>(client: &Client, config: watcher::Config, watches: &mut JoinSet<()>)
where
    K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let events = watcher(Api::<K>::all(client.clone()), config);
    watches.spawn(events.for_each(async |event| {
        event.unwrap();
    }));
}
