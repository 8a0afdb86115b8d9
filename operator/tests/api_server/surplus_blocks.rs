//! A node with few free addresses gets a second block and releases it after the delay, also if the leader changes.

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use netweft_crds::NodeNetwork;
use serde_json::json;
use std::time::{Duration, Instant};

use crate::control_plane::ControlPlane;
use crate::held_writes::WriteGate;
use crate::invariants::InvariantMonitor;
use crate::objects::{create_node, eventually};
use crate::operator::{Operator, WAIT_TIMEOUT, owners, wait_until_assigned};

const NODE: &str = "worker-1";
const DELAY: Duration = Duration::from_secs(3);

/// Reports numbers of pods in the blocks of the current generation, like an agent.
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

async fn wait_for_blocks(networks: &Api<NodeNetwork>, count: usize) -> Vec<IpNet> {
    eventually("the blocks in the NodeNetwork", WAIT_TIMEOUT, async || {
        let subnets = networks.get(NODE).await.unwrap().spec.subnets;
        (subnets.len() == count).then_some(subnets)
    })
    .await
}

async fn block_count(admin: &Client) -> usize {
    owners(admin).await[NODE].len()
}

#[tokio::test]
async fn second_block_is_released_after_surplus_delay() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, NODE, "10.1.0.1").await;
    let flags = ["--surplus-delay", "3s"];
    let operator = Operator::start(&plane, "one", &flags).await;
    wait_until_assigned(&admin, 1).await;
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    let first = wait_for_blocks(&networks, 1).await;

    report(&networks, &[50]).await;
    let both = wait_for_blocks(&networks, 2).await;
    assert_eq!(both[0], first[0], "the first block stays the first");
    operator.wait_until_idle().await;
    assert_eq!(block_count(&admin).await, 2, "one more block is enough");

    // A new operator measures the delay from zero.
    operator.stop();
    report(&networks, &[10, 0]).await;
    let start = Instant::now();
    let operator = Operator::start(&plane, "two", &flags).await;
    assert_eq!(wait_for_blocks(&networks, 1).await, first);
    assert!(start.elapsed() >= DELAY, "{:?}", start.elapsed());
    operator.wait_until_idle().await;
    assert_eq!(
        block_count(&admin).await,
        2,
        "the agent has not acknowledged yet"
    );
    report(&networks, &[10]).await;
    eventually("the block is released", WAIT_TIMEOUT, async || {
        (block_count(&admin).await == 1).then_some(())
    })
    .await;
    assert_eq!(wait_for_blocks(&networks, 1).await, first);
}

/// The leader is stopped while its delete is in progress. The next leader has not observed the surplus and restores the
/// block. Then the delete arrives.
#[tokio::test]
async fn late_delete_does_not_remove_restored_block() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, NODE, "10.1.0.1").await;
    // A short lease, and no delay for surplus blocks.
    let short_lease = ["--lease-duration", "2s"];
    let no_delay = [short_lease[0], short_lease[1], "--surplus-delay", "0s"];
    let operator = Operator::start(&plane, "zero", &no_delay).await;
    wait_until_assigned(&admin, 1).await;
    let networks: Api<NodeNetwork> = Api::all(admin.clone());
    wait_for_blocks(&networks, 1).await;
    report(&networks, &[50]).await;
    let both = wait_for_blocks(&networks, 2).await;
    report(&networks, &[10, 0]).await;
    wait_for_blocks(&networks, 1).await;
    operator.stop();
    report(&networks, &[10]).await;

    let gate = WriteGate::start(&plane, 0).await;
    let first = Operator::start_with_url(&plane, &gate.url, "first", &no_delay).await;
    eventually("the delete is held", WAIT_TIMEOUT, async || {
        (gate.held() == 1).then_some(())
    })
    .await;
    first.process.signal("STOP");
    let monitor = InvariantMonitor::start(&admin).await;
    let _second = Operator::start(&plane, "second", &short_lease).await;
    assert_eq!(wait_for_blocks(&networks, 2).await, both);
    report(&networks, &[10, 1]).await;

    gate.open();
    eventually("the delete has arrived", WAIT_TIMEOUT, async || {
        (gate.answered() >= 1).then_some(())
    })
    .await;
    first.process.signal("CONT");
    eventually("the delete conflicts", WAIT_TIMEOUT, async || {
        let metrics = first.get("/metrics").await?;
        let stale =
            "netweft_operator_writes_total{kind=\"NodeSubnet\",verb=\"delete\",result=\"stale\"}";
        metrics.contains(stale).then_some(())
    })
    .await;
    eventually("the first is not the leader", WAIT_TIMEOUT, async || {
        first.has_metric("netweft_operator_leader 0").await
    })
    .await;
    assert_eq!(wait_for_blocks(&networks, 2).await, both);
    assert_eq!(block_count(&admin).await, 2);
    assert_eq!(monitor.violations(), [""; 0]);
}
