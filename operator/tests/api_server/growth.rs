//! A node runs short of addresses, gets a second block, and gives it back in its time; also when another leads meanwhile.

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use netweft_crds::NodeNetwork;
use serde_json::json;
use std::time::{Duration, Instant};

use crate::control_plane::ControlPlane;
use crate::held_writes::Gate;
use crate::ledger::Ledger;
use crate::objects::{create_node, eventually};
use crate::operator::{Operator, WAIT_TIMEOUT, owners, until_assigned};

const NODE: &str = "worker-1";
const DELAY: Duration = Duration::from_secs(3);

/// In the agent's place: so many pods in each block of the present generation.
async fn report(networks: &Api<NodeNetwork>, pods: &[i64]) {
    let network = networks.get(NODE).await.unwrap();
    assert_eq!(network.spec.subnets.len(), pods.len());
    let usage = network.spec.subnets.iter().zip(pods);
    let usage: Vec<_> = usage
        .map(|(cidr, used)| json!({ "cidr": cidr, "used": used, "free": 61 - used }))
        .collect();
    let status = json!({
        "observedGeneration": network.metadata.generation,
        "subnets": usage,
        "conditions": [{ "type": "Ready", "status": "True", "reason": "Programmed", "message": "",
            "lastTransitionTime": Timestamp::UNIX_EPOCH.to_string() }],
    });
    let patch = Patch::Merge(json!({ "status": status }));
    let parameters = PatchParams::default();
    networks
        .patch_status(NODE, &parameters, &patch)
        .await
        .unwrap();
}

async fn until_blocks(networks: &Api<NodeNetwork>, wanted: usize) -> Vec<IpNet> {
    eventually("the blocks in the NodeNetwork", WAIT_TIMEOUT, async || {
        let subnets = networks.get(NODE).await.unwrap().spec.subnets;
        (subnets.len() == wanted).then_some(subnets)
    })
    .await
}

async fn owned(admin: &Client) -> usize {
    owners(admin).await[NODE].len()
}

#[tokio::test]
async fn second_block_is_released_after_surplus_delay() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, NODE, "10.1.0.1").await;
    let flags = ["--surplus-delay", "3s"];
    let operator = Operator::start(&plane, "one", &flags).await;
    until_assigned(&admin, 1).await;
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    let first = until_blocks(&networks, 1).await;

    report(&networks, &[50]).await;
    let both = until_blocks(&networks, 2).await;
    assert_eq!(both[0], first[0], "the first stays the first");
    operator.until_at_rest().await;
    assert_eq!(owned(&admin).await, 2, "one at a time");

    // Another operator begins to count anew.
    operator.stop();
    report(&networks, &[10, 0]).await;
    let begun = Instant::now();
    let operator = Operator::start(&plane, "two", &flags).await;
    assert_eq!(until_blocks(&networks, 1).await, first);
    assert!(begun.elapsed() >= DELAY, "{:?}", begun.elapsed());
    operator.until_at_rest().await;
    assert_eq!(owned(&admin).await, 2, "the agent has not seen it");
    report(&networks, &[10]).await;
    eventually("the block is given back", WAIT_TIMEOUT, async || {
        (owned(&admin).await == 1).then_some(())
    })
    .await;
    assert_eq!(until_blocks(&networks, 1).await, first);
}

/// Its leader is stopped with the delete under way. The next one knows of no surplus, and the block is handed out from again when the
/// delete arrives.
#[tokio::test]
async fn late_delete_does_not_remove_restored_block() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, NODE, "10.1.0.1").await;
    // A lease that is over soon; and what is empty goes at once.
    let soon = ["--lease-duration", "2s"];
    let hasty = [soon[0], soon[1], "--surplus-delay", "0s"];
    let operator = Operator::start(&plane, "zero", &hasty).await;
    until_assigned(&admin, 1).await;
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    until_blocks(&networks, 1).await;
    report(&networks, &[50]).await;
    let both = until_blocks(&networks, 2).await;
    report(&networks, &[10, 0]).await;
    until_blocks(&networks, 1).await;
    operator.stop();
    report(&networks, &[10]).await;

    let gate = Gate::open_for(&plane, 0).await;
    let first = Operator::start_by(&plane, &gate.url, "first", &hasty).await;
    eventually("the delete is under way", WAIT_TIMEOUT, async || {
        (gate.held() == 1).then_some(())
    })
    .await;
    first.process.signal("STOP");
    let ledger = Ledger::begin(&admin).await;
    let _second = Operator::start(&plane, "second", &soon).await;
    assert_eq!(until_blocks(&networks, 2).await, both);
    report(&networks, &[10, 1]).await;

    gate.open();
    eventually("it has arrived", WAIT_TIMEOUT, async || {
        (gate.answered() >= 1).then_some(())
    })
    .await;
    first.process.signal("CONT");
    eventually("it came too late", WAIT_TIMEOUT, async || {
        let metrics = first.get("/metrics").await?;
        let stale =
            "netweft_operator_writes_total{kind=\"NodeSubnet\",verb=\"delete\",result=\"stale\"}";
        metrics.contains(stale).then_some(())
    })
    .await;
    eventually("the first has stepped down", WAIT_TIMEOUT, async || {
        first.counts("netweft_operator_leader 0").await
    })
    .await;
    assert_eq!(until_blocks(&networks, 2).await, both);
    assert_eq!(owned(&admin).await, 2);
    assert_eq!(ledger.breaches(), [""; 0]);
}
