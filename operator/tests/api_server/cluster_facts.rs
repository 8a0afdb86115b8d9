//! What the operator learns about the cluster besides its own objects, and what it says before it has learnt anything.

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use netweft_crds::condition::READY;
use netweft_crds::{BGPPeer, IPPool};
use serde_json::json;

use crate::control_plane::{ControlPlane, free_port};
use crate::objects::{all, create, create_node, delete, delete_definition, eventually, merge};
use crate::operator::{Operator, WAIT_TIMEOUT, owners, until_assigned};

async fn wait_for_pool_condition(admin: &Client, reason: &str, words: &str) {
    let pools: Api<IPPool> = Api::all(admin.clone());
    let what = format!("the pool says {reason}: {words}");
    eventually(&what, WAIT_TIMEOUT, async || {
        let status = pools.get("default-v4").await.unwrap().status?;
        let mut conditions = status.conditions.into_iter();
        conditions.find(|c| c.type_ == READY && c.reason == reason && c.message.contains(words))
    })
    .await;
}

#[tokio::test]
async fn pool_status_follows_kube_proxy_services_and_nodes() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, "worker-1", "10.1.0.1").await;
    let operator = Operator::start(&plane, "one", &[]).await;
    wait_for_pool_condition(&admin, "Allocatable", "").await;

    let proxies: Api<ConfigMap> = Api::namespaced(admin.clone(), "kube-system");
    let says = |configuration: &str| json!({ "metadata": { "name": "kube-proxy" }, "data": { "config.conf": configuration } });
    create(&proxies, says("clusterCIDR: 10.0.0.0/16\n")).await;
    wait_for_pool_condition(&admin, "KubeProxyMismatch", "clusterCIDR 10.0.0.0/16").await;
    // A cluster has to come up before somebody can repair it.
    create_node(&admin, "worker-2", "10.1.0.2").await;
    until_assigned(&admin, 2).await;
    let by_name = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: nw}\n";
    operator.until_at_rest().await;
    merge(&proxies, "kube-proxy", says(by_name)).await;
    wait_for_pool_condition(&admin, "Allocatable", "").await;

    let ranges: Api<ServiceCIDR> = Api::all(admin.clone());
    let more = json!({ "metadata": { "name": "more" }, "spec": { "cidrs": ["10.244.128.0/20"] } });
    operator.until_at_rest().await;
    create(&ranges, more).await;
    wait_for_pool_condition(&admin, "Overlap", "10.244.128.0/20 (ServiceCIDR more)").await;
    // No more blocks; what was given stays.
    let before = owners(&admin).await;
    create_node(&admin, "worker-3", "10.1.0.3").await;
    operator.until_at_rest().await;
    assert_eq!(owners(&admin).await, before);
    delete(&ranges, "more").await;
    until_assigned(&admin, 3).await;
    // A Node with an address of pods' costs nobody else anything.
    create_node(&admin, "worker-4", "10.244.7.7").await;
    wait_for_pool_condition(&admin, "Allocatable", "Node worker-4 (10.244.7.7)").await;
    let nodes: Api<Node> = Api::all(admin.clone());
    delete(&nodes, "worker-4").await;
    wait_for_pool_condition(&admin, "Allocatable", "").await;
}

/// The API server's own Service range is known without anybody's help.
#[tokio::test]
async fn pool_in_service_cidr_assigns_no_blocks() {
    let plane = ControlPlane::start().await;
    let pool = "pools=[{\"name\":\"default-v4\",\"spec\":{\"cidr\":\"10.96.0.0/12\"}}]";
    let chart = crate::control_plane::CHART;
    plane.helm(&[
        "install",
        "netweft",
        chart,
        "--create-namespace",
        "--set-json",
        pool,
    ]);
    let admin = plane.admin();
    create_node(&admin, "worker-1", "10.1.0.1").await;
    let _operator = Operator::start(&plane, "one", &[]).await;
    wait_for_pool_condition(&admin, "Overlap", "10.96.0.0/16 (ServiceCIDR kubernetes)").await;
    assert!(owners(&admin).await.is_empty());
}

#[tokio::test]
async fn operator_without_api_server_is_live_but_not_ready() {
    let plane = ControlPlane::with_chart().await;
    let nowhere = format!("https://127.0.0.1:{}", free_port());
    let mut operator = Operator::start_by(&plane, &nowhere, "lost", &[]).await;
    let live = eventually("it answers", WAIT_TIMEOUT, async || {
        operator.get("/livez").await
    });
    assert!(live.await.starts_with("HTTP/1.0 200"));
    let ready = operator.get("/readyz").await.unwrap();
    assert!(ready.starts_with("HTTP/1.0 503"), "{ready}");
    assert!(
        ready.ends_with("not all objects have been listed yet\n"),
        "{ready}"
    );
    assert!(operator.counts("netweft_operator_leader 0").await.is_some());
    assert!(operator.process.runs());
    operator.stop();
}

#[tokio::test]
async fn operator_creates_and_updates_crds() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    let definitions: Api<CustomResourceDefinition> = Api::all(admin.clone());
    // One is missing, one is of another version.
    delete_definition(&admin, "bgppeers.netweft.io").await;
    let names = json!({ "spec": { "names": { "shortNames": ["old"] } } });
    merge(&definitions, "ippools.netweft.io", names).await;
    let operator = Operator::start(&plane, "one", &[]).await;
    eventually("it has listed its kinds", WAIT_TIMEOUT, async || {
        operator.is_ready().await
    })
    .await;
    assert!(all::<BGPPeer>(&admin).await.is_empty());
    let pools = definitions.get("ippools.netweft.io").await.unwrap();
    let names = pools.spec.names.short_names.unwrap();
    assert!(names.contains(&"ipp".to_owned()));
}
